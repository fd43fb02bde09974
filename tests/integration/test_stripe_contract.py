"""Owns the check of every request against Stripe's own description. Called by pytest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from inspect import isfunction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

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
from tests.support.sales import Providers, open_sales, running_providers

DISPUTE = {"id": "dp_1", "object": "dispute", "amount": 384, "status": "won"}


@pytest.fixture
def server() -> Iterator[FakeStripe]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    with running_providers(tmp_path_factory.mktemp("providers")) as running:
        yield running


# The subset has no charges.
NOT_DESCRIBED = {"retrieve_charge_intent"}


class NotedApi(StripeApi):
    """The real client, which notes what is called."""

    called: set[str]

    def __getattribute__(self, name: str) -> Any:
        if name in METHODS:
            self.called.add(name)
        return super().__getattribute__(name)


METHODS = {name for name, value in vars(StripeApi).items() if isfunction(value) and not name.startswith("_")}


@pytest.fixture
def api(server: FakeStripe) -> Iterator[NotedApi]:
    api = NotedApi(KEY, server.url)
    api.called = {"close"}
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


# What the subset leaves out takes the same parameters as its neighbour in it.
LIKE = {"/v1/disputes": "/v1/refunds"}


def check_against_description(request: Request) -> None:
    description = json.loads((contracts_dir() / "stripe-openapi-subset.json").read_text())
    path = LIKE.get(request.path, request.path)
    for template, operations in description["paths"].items():
        if not re.fullmatch(re.sub(r"\{[^}]+\}", r"[^/]+", template), path):
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


def test_every_request_fits_stripes_description(server: FakeStripe, api: NotedApi) -> None:
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
        listing({"id": "evt_2", "object": "event"}),
        listing(REFUND, more=True),
        listing(),
        listing(DISPUTE),
        Answer(SESSION),
        Answer(INTENT),
        Answer(REFUND),
    ]
    create(api)
    create(api, email=None)
    api.retrieve_checkout_session("cs_1")
    api.expire_checkout_session("cs_1", key="effect-3")
    api.find_checkout_session(job_id="nobody", since=SOON, until=SOON)
    api.retrieve_payment_intent("pi_1")
    refund(api)
    refund(api, reason=None, metadata={})
    api.retrieve_refund("re_1")
    api.list_refunds(payment_intent="pi_1")
    list(api.list_events(since=SOON, types=["charge.refunded"], undelivered_only=True))
    list(api.list_events(since=SOON))
    list(api.list_events(since=SOON, after="evt_1"))
    list(api.list_bodies("refund", since=SOON))
    assert list(api.list_bodies("dispute", since=SOON, after="dp_0")) == [DISPUTE]
    assert api.retrieve_body("session", "cs_1") == SESSION
    assert api.retrieve_body("intent", "pi_1") == INTENT
    assert api.retrieve_body("refund", "re_1") == REFUND
    assert server.answers == []
    assert len(server.requests) == 22
    for request in server.requests:
        check_against_description(request)
    assert api.called == METHODS - NOT_DESCRIBED, "a method whose requests nobody compares"


def test_what_a_shop_really_sends(
    server: FakeStripe, sqlite_url: str, tmp_path: Path, providers: Providers
) -> None:
    """Between the shop and the imitated Stripe, over several sales: all that goes out is caught and compared."""

    def forward(request: Request) -> Answer:
        base = providers.sandbox.stripe.url
        names = request.headers.keys() - {"Host", "Content-Length"}
        headers = {name: request.headers[name] for name in names}
        pairs = {"data" if request.method == "POST" else "params": request.pairs}
        sending = requests.Request(request.method, f"{base}{request.path}", headers=headers, **pairs)
        with requests.Session() as session:
            found = session.send(sending.prepare(), timeout=30)
        return Answer(found.content, found.status_code)

    server.respond = forward
    with open_sales(sqlite_url, tmp_path, providers, stripe_api_base=server.url) as sales:
        stripe = sales.sandbox.stripe
        # Delivered; a part goes back, then the rest through a bank that takes its time.
        job = sales.completed(email="jane@example.com")
        sales.app.jobs.fire(job.job_id, "refund", actor="admin:jane", reason="asked", facts={"amount_cents": 20})
        sales.work()
        stripe.faults.add({"refund": True}, {"kind": "pending"})
        sales.app.jobs.fire(job.job_id, "refund", actor="admin:jane", reason="asked again")
        sales.work()
        sales.advance_to("check_refund")
        sales.work()
        # One is given up, whose session is ended; nobody pays the other, whose session is asked for.
        facts = {"target": "abandoned", "effects": True}
        sales.app.jobs.fire(sales.order().job_id, "override", actor="admin:jane", reason="a test", facts=facts)
        sales.work()
        sales.advance_to("payment_deadline", sales.order().job_id)
        sales.work()
        # Orders and refunds whose answers never came, looked for once Stripe has forgotten their keys.
        stripe.faults.add({"method": "POST", "path": "/v1/checkout/sessions"}, {"kind": "status", "status": 503})
        sales.order()
        other = sales.completed()
        sales.app.jobs.fire(other.job_id, "refund", actor="admin:jane", reason="asked")
        stripe.faults.add({"method": "POST", "path": "/v1/refunds"}, {"kind": "reset_after"})
        sales.work()
        sales.advance(hours=23, minutes=30)
        sales.work()
    for request in server.requests:
        check_against_description(request)
    sent = {(request.method, re.sub("/[a-z]+_[A-Za-z0-9_]+", "/ID", request.path)) for request in server.requests}
    assert sent >= {
        ("POST", "/v1/checkout/sessions"), ("GET", "/v1/checkout/sessions"), ("GET", "/v1/checkout/sessions/ID"),
        ("POST", "/v1/checkout/sessions/ID/expire"), ("POST", "/v1/refunds"), ("GET", "/v1/refunds"),
        ("GET", "/v1/refunds/ID"),
    }  # fmt: skip
    assert all(request.headers.get("Idempotency-Key") for request in server.requests if request.method == "POST")


def test_the_description_would_catch_a_wrong_request() -> None:
    for pairs in (
        [("mode", "payments")],
        [("payment_method_types[0]", "card")],
        [("line_items[0][price_data][currency]", "usd"), ("line_items[0][price_data][amount]", "3")],
        [("expires_at", "tomorrow")],
    ):
        with pytest.raises(jsonschema.ValidationError):
            check_against_description(Request("POST", "/v1/checkout/sessions", pairs, {}))
