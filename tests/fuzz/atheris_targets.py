"""Owns the long runs: atheris, guided by coverage, on the properties that pytest runs with made-up examples.

    python -m tests.fuzz.atheris_targets TARGET [-runs=N] [-max_total_time=SECONDS] [CORPUS_FOLDER …]
    python -m tests.fuzz.atheris_targets --list

What begins with `raw_` takes atheris's bytes as they are; the others are hypothesis's own properties, which read
their examples out of the bytes. A finding is written to a file `crash-…`, which the same command runs again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra, without stubs

with atheris.instrument_imports(include=["smi_workflow", "json", "PIL", "email"]):
    from smi_workflow.errors import BadSignature, InvalidInput, ServiceError
    from smi_workflow.intake import reduce_stripe_event
    from smi_workflow.integrations.stripe_events import verify_event
    from smi_workflow.integrations.stripe_http import error_for
    from smi_workflow.integrations.upsampler_api import _json_object, parse_upscale
    from tests.fuzz import (
        test_addresses,
        test_facts,
        test_files,
        test_mail,
        test_settings_and_urls,
        test_stripe,
        test_upsampler,
        test_web,
    )
    from tests.fuzz.fuzzed import PROPERTIES
    from tests.fuzz.shop import close_shop

# Importing them puts their properties on the list.
MODULES = (
    test_addresses, test_facts, test_files, test_mail,
    test_settings_and_urls, test_stripe, test_upsampler, test_web,
)  # fmt: skip
EVENT = {
    "object": "event",
    "id": "evt_1",
    "type": "refund.updated",
    "data": {"object": {"id": "re_1", "amount": 5}},
}
UPSCALE = {"id": "up-1", "status": "SUCCESS", "imageUrl": "https://x.example/r.png", "creditCost": 1.5}


def raw_image(data: bytes) -> None:
    """A stranger's image, or a result."""
    test_files.inspect(data)


def raw_event(data: bytes) -> None:
    """A body that Stripe signed."""
    with suppress(InvalidInput, BadSignature):
        event = verify_event(data, test_stripe.signed(data), [test_stripe.SECRET], now=test_stripe.NOW)
        json.dumps(reduce_stripe_event(event))


def raw_signature(data: bytes) -> None:
    """The header of whoever says to be Stripe."""
    with suppress(BadSignature):
        verify_event(b"{}", data.decode("latin-1"), [test_stripe.SECRET], now=test_stripe.NOW)
        raise AssertionError("it was taken for Stripe's")


def raw_upscale(data: bytes) -> None:
    """An answer or a callback of Upsampler's."""
    with suppress(InvalidInput):
        parse_upscale(_json_object(data))


def raw_stripe_error(data: bytes) -> None:
    """An answer of Stripe's that is no success."""
    error = error_for(402, {}, data.decode("utf-8", "replace"), changes=True, now=datetime.now(UTC))
    assert isinstance(error, ServiceError)


# Target → what it starts from, beside what atheris finds by itself.
RAW: dict[Callable[[bytes], None], tuple[bytes, ...]] = {
    raw_image: test_files.real_images(),
    raw_event: (json.dumps(EVENT).encode(),),
    raw_signature: (test_stripe.signed(b"[]").encode(), b"t=1,v1=a,v1=b,v0=c"),
    raw_upscale: (json.dumps(UPSCALE).encode(), b'{"id": 1, "status": "FAILED", "error": [{"message": "no"}]}'),
    raw_stripe_error: (b'{"error": {"code": "card_declined", "message": "no"}}',),
}


def main(arguments: list[str]) -> int:
    """Run one target until it is stopped or finds something; returns the exit status of what is wrong before."""
    raw = {target.__name__: target for target in RAW}
    names = sorted([*raw, *PROPERTIES])
    if len(arguments) < 2 or arguments[1] not in names:
        sys.stdout.write("\n".join(names) + "\n")
        return 0 if "--list" in arguments else 2
    name, options = arguments[1], arguments[2:]
    with tempfile.TemporaryDirectory(prefix="smi-corpus-") as corpus:
        for number, seed in enumerate(RAW[raw[name]] if name in raw else ()):
            Path(corpus, str(number)).write_bytes(seed)
        target = raw[name] if name in raw else _property(name)
        atheris.Setup([arguments[0], corpus, *options], target)
        try:
            # It ends the process by itself once it has run for as long as it was told to.
            atheris.Fuzz()
        finally:
            close_shop()
    return 0


def _property(name: str) -> Callable[[bytes], None]:
    """Hypothesis's own bridge, which answers with the bytes that it used; atheris wants no answer."""
    run = PROPERTIES[name].hypothesis.fuzz_one_input

    def target(data: bytes) -> None:
        run(data)

    return target


if __name__ == "__main__":
    sys.exit(main(sys.argv))
