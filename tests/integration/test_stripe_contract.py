"""Owns the check of every request against Stripe's own description. Called by pytest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest

from smi_workflow.integrations.stripe_api import StripeApi
from tests.integration.stripe_wire import (
    INTENT,
    KEY,
    REFUND,
    SESSION,
    SOON,
    Answer,
    FakeStripe,
    Request,
    create,
    listing,
    refund,
    serving,
)
from tests.support.contracts import contracts_dir


@pytest.fixture
def server() -> Iterator[FakeStripe]:
    with serving() as server:
        yield server


@pytest.fixture
def api(server: FakeStripe) -> Iterator[StripeApi]:
    api = StripeApi(KEY, server.url)
    yield api
    api.close()


def _coerced(value: Any, schema: Mapping[str, Any]) -> Any:
    """Give form values the types that the description says, where they can be read so."""
    if "anyOf" in schema:
        kinds = [option for option in schema["anyOf"] if (option["type"] == "object") is isinstance(value, dict)]
        return _coerced(value, kinds[0])
    kind = schema.get("type")
    if kind == "object" and isinstance(value, dict):
        known = schema.get("properties", {})
        extra = schema.get("additionalProperties") or {}
        return {name: _coerced(item, known.get(name, extra)) for name, item in value.items()}
    if kind == "array" and isinstance(value, dict):
        assert list(value) == [str(index) for index in range(len(value))]
        return [_coerced(item, schema["items"]) for item in value.values()]
    if kind == "integer" and isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    if kind == "boolean" and value in ("true", "false"):
        return value == "true"
    return value


def _closed(schema: Any) -> Any:
    """The same schema with no unknown fields allowed at any depth."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(item) for name, item in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def check_against_description(request: Request) -> None:
    description = json.loads((contracts_dir() / "stripe-openapi-subset.json").read_text())
    for template, operations in description["paths"].items():
        if not re.fullmatch(re.sub(r"\{[^}]+\}", r"[^/]+", template), request.path):
            continue
        operation = operations.get(request.method.lower())
        if operation is None:
            continue
        if request.method == "POST":
            content = operation["requestBody"]["content"]["application/x-www-form-urlencoded"]
            schema = content["schema"]
        else:
            queries = [item for item in operation["parameters"] if item["in"] == "query"]
            schema = {"type": "object", "properties": {item["name"]: item["schema"] for item in queries}}
        jsonschema.validate(_coerced(request.parameters, schema), _closed(schema))
        return
    pytest.fail(f"{request.method} {request.path} is not described")


def test_every_request_fits_stripes_description(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [
        *[Answer(SESSION)] * 4,
        listing(SESSION, more=True),
        listing(),
        Answer(INTENT),
        *[Answer(REFUND)] * 3,
        listing(REFUND, more=True),
        listing(),
        listing({"id": "evt_1", "object": "event"}, more=True),
        listing(),
        listing(),
    ]
    create(api)
    create(api, email=None)
    api.retrieve_checkout_session("cs_1")
    api.expire_checkout_session("cs_1", key="effect-3")
    api.find_checkout_session(job_id="nobody", since=SOON)
    api.retrieve_payment_intent("pi_1")
    refund(api)
    refund(api, reason=None, metadata={})
    api.retrieve_refund("re_1")
    api.list_refunds(payment_intent="pi_1")
    list(api.list_events(since=SOON, types=["charge.refunded"], undelivered_only=True))
    list(api.list_events(since=SOON))
    assert server.answers == []
    assert len(server.requests) == 15
    for request in server.requests:
        check_against_description(request)


def test_the_description_would_catch_a_wrong_request() -> None:
    for pairs in (
        [("mode", "payments")],
        [("payment_method_types[0]", "card")],
        [("line_items[0][price_data][currency]", "usd"), ("line_items[0][price_data][amount]", "3")],
        [("expires_at", "tomorrow")],
    ):
        with pytest.raises(jsonschema.ValidationError):
            check_against_description(Request("POST", "/v1/checkout/sessions", pairs, {}))
