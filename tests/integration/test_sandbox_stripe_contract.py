"""Owns the checks of the imitated Stripe against Stripe's own description. Called by pytest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe
from jsonschema import Draft202012Validator

from smi_workflow.sandbox import Sandbox
from smi_workflow.sandbox.stripe_params import LISTS, REFUND_CREATE, SESSION_CREATE, Fields
from tests.support.contracts import contracts_dir
from tests.support.sandbox import (
    AUTH,
    WEBHOOK_SECRET,
    Site,
    form,
    lever,
    post,
    running_sandbox,
    running_site,
    stripe_client,
)

# The subset was stripped of everything named "description", properties included.
STRIPPED = {"description"}


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@pytest.fixture
def sandbox(tmp_path: Path, site: Site) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path, webhook_url=f"{site.url}/hook", webhook_secrets=(WEBHOOK_SECRET,)) as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> stripe.StripeClient:
    return stripe_client(sandbox.stripe.url)


def nullable(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable` in the words of JSON Schema."""
    if isinstance(schema, list):
        return [nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {name: nullable(value) for name, value in schema.items()}
    if converted.pop("nullable", None) is True:
        return {"anyOf": [converted, {"type": "null"}]}
    return converted


class Contract:
    """The public description of Stripe's API, asked about answers."""

    def __init__(self) -> None:
        self.document = json.loads((contracts_dir() / "stripe-openapi-subset.json").read_text())
        self.schemas = nullable(self.document["components"]["schemas"])

    def problems(self, name: str, payload: Any) -> list[str]:
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": self.schemas}}
        problems = [
            f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(payload)
        ]
        known = set(self.document["components"]["schemas"][name]["properties"]) | STRIPPED
        return problems + [f"no such property: {key}" for key in payload if key not in known]

    def list_problems(self, path: str, payload: Any) -> list[str]:
        answer = self.document["paths"][path]["get"]["responses"]["200"]
        schema = nullable(
            answer["schema"] if "schema" in answer else answer["content"]["application/json"]["schema"]
        )
        schema["components"] = {"schemas": self.schemas}
        return [
            f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(payload)
        ]


def test_every_answer_fits_stripes_own_description(sandbox: Sandbox, client: stripe.StripeClient) -> None:
    contract = Contract()
    answers: list[tuple[str, Any]] = []

    def asked(schema: str, path: str, data: Any = None) -> Any:
        url = f"{sandbox.stripe.url}{path}"
        answer = requests.get(url, headers=AUTH, timeout=10) if data is None else post(sandbox, path, data)
        answers.append((schema, answer.json()))
        return answer.json()

    opened = asked("checkout.session", "/v1/checkout/sessions", form(**{"metadata[job]": "1"}))
    asked("checkout.session", f"/v1/checkout/sessions/{opened['id']}", {"metadata[job]": "2"})
    requests.post(f"{opened['url']}/decline", timeout=10)
    declined = asked("checkout.session", f"/v1/checkout/sessions/{opened['id']}")
    asked("payment_intent", f"/v1/payment_intents/{declined['payment_intent']}")
    requests.post(f"{opened['url']}/pay", allow_redirects=False, timeout=10)
    asked("checkout.session", f"/v1/checkout/sessions/{opened['id']}?expand[]=line_items")
    intent = asked("payment_intent", f"/v1/payment_intents/{declined['payment_intent']}")
    asked("charge", f"/v1/charges/{intent['latest_charge']}")
    asked("payment_intent", f"/v1/payment_intents/{intent['id']}", {"metadata[note]": "x"})
    refund = asked("refund", "/v1/refunds", {"payment_intent": intent["id"], "amount": "100"})
    asked("refund", f"/v1/refunds/{refund['id']}")
    asked("refund", f"/v1/refunds/{refund['id']}", {"metadata[note]": "x"})
    pending = lever(
        sandbox, "stripe/dashboard/refunds", {"charge": intent["latest_charge"], "amount": 1, "status": "pending"}
    )
    lever(sandbox, f"stripe/refunds/{pending['id']}/settle", {"outcome": "failed"})
    asked("refund", f"/v1/refunds/{pending['id']}")
    dispute = lever(sandbox, "stripe/dashboard/disputes", {"charge": intent["latest_charge"]})
    lever(sandbox, f"stripe/dashboard/disputes/{dispute['id']}/close", {"outcome": "won"})
    asked("dispute", f"/v1/disputes/{dispute['id']}")
    closed = asked("checkout.session", "/v1/checkout/sessions", form())
    asked("checkout.session", f"/v1/checkout/sessions/{closed['id']}/expire", {})
    delayed = asked("checkout.session", "/v1/checkout/sessions", form())
    requests.post(f"{delayed['url']}/pay?method=delayed", allow_redirects=False, timeout=10)
    lever(sandbox, f"stripe/sessions/{delayed['id']}/settle", {"outcome": "failed"})
    asked("checkout.session", f"/v1/checkout/sessions/{delayed['id']}")
    asked("error", "/v1/checkout/sessions/cs_unknown")
    asked("error", "/v1/refunds", {"colour": "red"})
    asked("error", "/v1/unheard_of")

    lists = {
        path: requests.get(f"{sandbox.stripe.url}{path}?limit=100", headers=AUTH, timeout=10).json()
        for path in ("/v1/checkout/sessions", "/v1/refunds", "/v1/events")
    }
    for event in lists["/v1/events"]["data"]:
        answers.append(("event", asked("event", f"/v1/events/{event['id']}")))
        answers.append((event["data"]["object"]["object"], event["data"]["object"]))
    kinds = {event["type"] for event in lists["/v1/events"]["data"]}
    assert {"checkout.session.async_payment_failed", "refund.failed", "charge.dispute.funds_reinstated"} <= kinds
    problems = [(name, problem) for name, payload in answers for problem in contract.problems(name, payload)]
    problems += [(path, problem) for path, page in lists.items() for problem in contract.list_problems(path, page)]
    assert problems == []
    assert len(answers) > 60


def strangers(fields: Fields, properties: dict[str, Any]) -> list[str]:
    """The parameters that the description does not have."""
    found = []
    for name, field in fields.items():
        known = properties.get(name)
        if known is None:
            found += [] if name in STRIPPED else [name]
            continue
        item = known.get("items", known)
        inner = field.item.fields if field.item else field.fields
        found += [f"{name}.{deeper}" for deeper in strangers(inner, item.get("properties", {}))]
    return found


def test_every_parameter_that_the_sandbox_knows_is_stripes() -> None:
    paths = Contract().document["paths"]
    for path, fields in (("/v1/checkout/sessions", SESSION_CREATE), ("/v1/refunds", REFUND_CREATE)):
        content = paths[path]["post"]["requestBody"]["content"]
        assert strangers(fields, content["application/x-www-form-urlencoded"]["schema"]["properties"]) == []
    for path, kind in (
        ("/v1/checkout/sessions", "sessions"),
        ("/v1/refunds", "refunds"),
        ("/v1/events", "events"),
    ):
        names = {parameter["name"] for parameter in paths[path]["get"]["parameters"]}
        assert set(LISTS[kind]) <= names
