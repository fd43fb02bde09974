"""What Upsampler's answers and callbacks are read as."""

from __future__ import annotations

import json
import math
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smi_workflow.errors import ConfigError, InvalidInput
from smi_workflow.integrations.upsampler_api import (
    UpsamplerClient,
    Upscale,
    UpscaleStatus,
    parse_upscale,
    refusal_code,
)
from tests.support.contracts import contracts_dir


def test_a_full_answer_is_read() -> None:
    payload = {
        "id": "up_1",
        "status": "SUCCESS",
        "imageUrl": "https://cdn.upsampler.com/1.png",
        "compressedImageUrl": "https://cdn.upsampler.com/1.jpg",
        "creditCost": 15.75,
        "error": None,
    }
    assert parse_upscale(payload) == Upscale(
        "up_1", UpscaleStatus.SUCCESS, "https://cdn.upsampler.com/1.png", Decimal("15.75"), None
    )


def test_the_statuses_are_those_of_the_contract() -> None:
    text = (contracts_dir() / "upsampler.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| statuses |"))
    assert {f"`{status}`" for status in UpscaleStatus} == set(line.split("|")[2].strip().split(", "))


@pytest.mark.parametrize("words", ["Invalid API key", "insufficient credit", "unauthorized", "unsupported",
                                   "not allowed", "exceed", "too large"])  # fmt: skip
def test_every_final_text_of_the_contract_has_a_code(words: str) -> None:
    assert words.lower() in (contracts_dir() / "upsampler.md").read_text(encoding="utf-8").lower()
    assert refusal_code(f"Sorry: {words.upper()}!") is not None


def test_other_texts_may_pass() -> None:
    assert refusal_code("GPU fell over") is None
    assert refusal_code(None) is None


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("id", {"id": None}),
        ("id", {"id": ""}),
        ("id", {"id": True}),
        ("id", {"id": ["up_1"]}),
        ("id", {"id": ".."}),
        ("id", {"id": "a b"}),
        ("id", {"id": "a\nb"}),
        ("id", {"id": "x" * 201}),
        ("status", {"status": None}),
        ("status", {"status": "completed"}),
        ("status", {"status": "success"}),
        ("status", {"status": []}),
        ("status", {"status": {}}),
        ("imageUrl", {"imageUrl": 5}),
        ("imageUrl", {"status": "SUCCESS", "imageUrl": None}),
        ("imageUrl", {"status": "SUCCESS", "imageUrl": ""}),
        ("creditCost", {"creditCost": "many"}),
        ("creditCost", {"creditCost": True}),
        ("creditCost", {"creditCost": -1}),
        ("creditCost", {"creditCost": math.nan}),
        ("creditCost", {"creditCost": math.inf}),
        ("creditCost", {"creditCost": "sNaN"}),
        ("creditCost", {"creditCost": []}),
    ],
)
def test_a_bad_field_is_named(field: str, change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_upscale({"id": "up_1", "status": "IN_QUEUE", **change})
    assert caught.value.field == field


@pytest.mark.parametrize("payload", [None, [], "text", 1, [{"id": "up_1"}]])
def test_something_else_than_an_object_is_refused(payload: object) -> None:
    with pytest.raises(InvalidInput):
        parse_upscale(payload)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, None),
        ("", None),
        ("  out of\n GPU ", "out of GPU"),
        (["too large", "", " also  odd"], "too large; also odd"),
        ([], None),
        ([{"message": "too large"}, 5, None], "too large"),
        ({"message": "too large"}, "too large"),
        (17, None),
        ("x" * 900, "x" * 500),
    ],
)
def test_the_error_may_come_in_several_shapes(error: object, text: str | None) -> None:
    assert parse_upscale({"id": "up_1", "status": "FAILED", "error": error}).error == text


@pytest.mark.parametrize(("cost", "read"), [(16, "16"), ("1.25", "1.25"), (Decimal("0.25"), "0.25"), (0, "0")])
def test_credits_are_exact(cost: object, read: str) -> None:
    upscale = parse_upscale({"id": 7, "status": "IN_PROGRESS", "creditCost": cost})
    assert (upscale.id, upscale.credit_cost) == ("7", Decimal(read))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["id", "status", "imageUrl", "creditCost", "error"]), json_values))
def test_any_json_is_read_or_refused(payload: dict[str, object]) -> None:
    try:
        parse_upscale(json.loads(json.dumps(payload)))
    except InvalidInput as error:
        assert error.field in {"id", "status", "imageUrl", "creditCost"}


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_an_unusable_key_is_a_matter_of_configuration_and_stays_secret(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        UpsamplerClient(key, "https://upsampler.com/api/v1", image_type="universal", extra_inputs={})
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "base", ["", "upsampler.com", "ftp://a.com", "https://", "https://u:p@a.com", "https://a.com/?b"]
)
def test_an_unusable_base_is_a_matter_of_configuration(base: str) -> None:
    with pytest.raises(ConfigError):
        UpsamplerClient("key", base, image_type="universal", extra_inputs={})


def test_the_key_is_not_shown() -> None:
    client = UpsamplerClient("top-secret", "https://a.com", image_type="anime", extra_inputs={})
    assert "top-secret" not in f"{client!r} {client}"
