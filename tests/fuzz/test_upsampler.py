"""What Upsampler answers and posts. Called by pytest, atheris."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from smi_workflow.errors import InvalidInput, ServiceError
from smi_workflow.integrations.upsampler_api import (
    UpsamplerClient,
    _json_object,
    parse_upscale,
    refusal_code,
)
from tests.fuzz.fuzzed import fuzzed
from tests.fuzz.made_up import header_values, ids, json_values, objects, texts

STATUSES = st.sampled_from(["IN_QUEUE", "IN_PROGRESS", "SUCCESS", "FAILED", "success", ""])
upscales = objects({
    "id": ids("up-1") | st.integers(), "status": STATUSES, "imageUrl": texts | st.just("https://x.example/r.png"),
    "creditCost": st.decimals() | st.floats() | st.integers() | texts,
    "error": texts | st.lists(st.fixed_dictionaries({"message": texts}), max_size=3),
})  # fmt: skip


@fuzzed(400, payload=upscales | json_values)
def test_an_upscale_is_read_or_refused(payload: Any) -> None:
    try:
        found = parse_upscale(payload)
    except InvalidInput:
        return
    assert 0 < len(found.id) <= 200
    assert found.credit_cost is None or (isinstance(found.credit_cost, Decimal) and found.credit_cost >= 0)
    assert found.error is None or len(found.error) <= 500
    assert found.status != "SUCCESS" or found.image_url


@fuzzed(
    200,
    body=st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.integers(0, 3000).map(lambda depth: b'{"a":' * depth)
    | st.sampled_from([b'{"creditCost": 1e999999999999999999}', b'{"creditCost": ' + b"9" * 5000 + b"}"]),
    status=st.integers(100, 599),
    headers=st.dictionaries(st.just("Retry-After"), header_values),
)
def test_an_answer_has_a_meaning(body: bytes, status: int, headers: dict[str, str]) -> None:
    answer = _json_object(body)
    assert answer is None or isinstance(answer, dict)
    client = UpsamplerClient("key", "http://127.0.0.1:1/api", image_type="universal", extra_inputs={})
    error = client._error(status, headers, answer)
    assert isinstance(error, ServiceError)
    assert len(str(error)) < 2000


@fuzzed(100, text=st.none() | texts)
def test_an_error_text_names_a_code_or_none(text: str | None) -> None:
    assert refusal_code(text) is None or text
