"""Owns the checks of webhook signatures. Called by pytest."""

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from typing import Any

import pytest
import stripe

from smi_workflow.errors import BadSignature, InvalidInput
from smi_workflow.integrations.stripe_events import verify_event
from tests.support.contracts import contracts_dir

NOW = 1_800_000_000
SECRET = "whsec_one"
EVENT: dict[str, Any] = {
    "id": "evt_1",
    "object": "event",
    "type": "checkout.session.completed",
    "data": {"object": {"id": "cs_1", "object": "checkout.session"}},
}


def sign(body: bytes, secret: str = SECRET, stamp: int = NOW) -> str:
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, sha256).hexdigest()
    return f"t={stamp},v1={digest}"


def verify(body: bytes, header: str | None, *secrets: str) -> dict[str, Any]:
    return verify_event(body, header, secrets or (SECRET,), now=NOW)


BODY = json.dumps(EVENT).encode()


def test_accepts_what_stripes_own_library_signed() -> None:
    header = stripe.WebhookSignature.generate_signature_header(BODY.decode(), SECRET, NOW)
    assert verify(BODY, header) == EVENT


def test_accepts_every_captured_event() -> None:
    for path in sorted((contracts_dir() / "stripe-events").glob("*.json")):
        body = path.read_bytes()
        assert verify(body, sign(body)) == json.loads(body), path.name


def test_any_of_several_secrets_may_fit() -> None:
    assert verify(BODY, sign(BODY, "whsec_old"), "whsec_new", "whsec_old") == EVENT


def test_any_of_several_signatures_may_fit() -> None:
    good = sign(BODY)
    assert verify(BODY, good.replace("v1=", "v1=00ff,v1=ü,v0=1,v1=")) == EVENT


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"t={NOW}",
        f"t={NOW},v0=abc",
        "v1=abc",
        sign(BODY, "whsec_other"),
        sign(BODY).replace("v1=", "v1=é"),
        f"t={NOW},v1=",
        f"t={NOW},v1=ünïcode",
        f"t={NOW},v1=\udce9",
        sign(BODY).replace("t=", "t=+"),
        sign(BODY).replace(f"t={NOW}", f"t={NOW + 1}"),
        sign(BODY) + f",t={NOW}",
        "t=" + "9" * 5000 + ",v1=abc",
        "t=١٢٣,v1=abc",
        sign(BODY).upper(),
    ],
)
def test_refuses_what_is_not_properly_signed(header: str | None) -> None:
    with pytest.raises(BadSignature):
        verify(BODY, header)


def test_refuses_another_body() -> None:
    with pytest.raises(BadSignature):
        verify(BODY + b" ", sign(BODY))


@pytest.mark.parametrize("secrets", [[], [""], [" \t"]])
def test_a_blank_secret_fits_nothing(secrets: list[str]) -> None:
    with pytest.raises(BadSignature):
        verify_event(BODY, sign(BODY, secrets[0] if secrets else ""), secrets, now=NOW)


@pytest.mark.parametrize("away", [-301, 301])
def test_refuses_stale_and_future_stamps(away: int) -> None:
    with pytest.raises(BadSignature, match="too far"):
        verify(BODY, sign(BODY, stamp=NOW + away))


@pytest.mark.parametrize("away", [-300, 300])
def test_accepts_stamps_within_the_tolerance(away: int) -> None:
    assert verify(BODY, sign(BODY, stamp=NOW + away)) == EVENT


def test_no_tolerance_is_no_switch_to_turn_the_check_off() -> None:
    with pytest.raises(BadSignature):
        verify_event(BODY, sign(BODY, stamp=NOW - 1), [SECRET], now=NOW, tolerance_seconds=0)


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b'{"id": "\xe9"}'])
def test_refuses_bodies_that_are_not_utf8_signed_or_not(body: bytes) -> None:
    for header in (sign(body), sign(BODY)):
        with pytest.raises(BadSignature):
            verify(body, header)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"1",
        b'"event"',
        b"{",
        b"[" * 200_000,
        b"9" * 10_000,
        b"\xef\xbb\xbf{}",
        json.dumps({**EVENT, "object": "v2.core.event"}).encode(),
        json.dumps({**EVENT, "object": "charge"}).encode(),
        json.dumps({**EVENT, "id": None}).encode(),
        json.dumps({**EVENT, "id": ""}).encode(),
        json.dumps({**EVENT, "type": 3}).encode(),
        json.dumps({**EVENT, "data": []}).encode(),
        json.dumps({**EVENT, "data": {"object": None}}).encode(),
        json.dumps({key: EVENT[key] for key in ("id", "object", "type")}).encode(),
    ],
)
def test_refuses_signed_bodies_that_are_no_event(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        verify(body, sign(body))
