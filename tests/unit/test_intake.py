"""The cutting down of Stripe's events, and that readers of nothing say so. Called by pytest."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Ignore
from smi_workflow.engine.tables import EventRow
from smi_workflow.errors import InvalidInput
from smi_workflow.intake import StripeReader, reduce_stripe_event
from tests.support.contracts import contracts_dir

NOBODY = cast("Engine", None)
SESSION = {
    "id": "cs_1", "object": "checkout.session", "amount_total": 384, "currency": "usd", "payment_status": "paid",
    "payment_intent": "pi_1", "status": "complete", "metadata": {"job_id": "j1"}, "client_reference_id": "j1",
    "customer_details": {"email": "jane@example.com", "name": "Jane", "address": {"city": "Ulm"}, "phone": "1"},
    "shipping_details": {"name": "Jane"}, "success_url": "https://shop.example/", "livemode": False,
}  # fmt: skip


def event(thing: Any, **changes: Any) -> dict[str, Any]:
    """An event about something."""
    return {"id": "evt_1", "type": "x.y", "livemode": False, "data": {"object": thing}, **changes}


def test_only_what_is_read_is_kept() -> None:
    kept = reduce_stripe_event(event(SESSION))
    assert kept == {
        "id": "evt_1", "type": "x.y", "livemode": False,
        "object": {
            "id": "cs_1", "amount_total": 384, "currency": "usd", "payment_status": "paid", "status": "complete",
            "payment_intent": "pi_1", "charge": None, "metadata": {"job_id": "j1"}, "client_reference_id": "j1",
            "email": "jane@example.com", "error_code": None, "livemode": False,
        },
    }  # fmt: skip
    for personal in ("Ulm", '"Jane"', "phone"):
        assert personal not in json.dumps(kept)


@pytest.mark.parametrize("value", ["pi_1", {"id": "pi_1", "object": "payment_intent", "amount": 5}])
def test_an_expanded_field_is_its_id(value: Any) -> None:
    kept = reduce_stripe_event(event({**SESSION, "payment_intent": value, "charge": value}))
    assert (kept["object"]["payment_intent"], kept["object"]["charge"]) == ("pi_1", "pi_1")


def test_a_declined_card_says_why() -> None:
    intent = {"id": "pi_1", "last_payment_error": {"code": "card_declined", "message": "Your card …"}}
    assert reduce_stripe_event(event(intent))["object"]["error_code"] == "card_declined"


@pytest.mark.parametrize(
    ("moved", "told"),
    [
        (None, (None, None)),
        ([], (False, False)),
        ([{"amount": -384}], (True, False)),
        ([{"amount": -384}, {"amount": 384}], (True, True)),
        ([7, None, {}, {"amount": "1"}], (False, False)),
    ],
)
def test_a_dispute_tells_what_it_has_moved_so_far(moved: Any, told: tuple[bool | None, bool | None]) -> None:
    kept = reduce_stripe_event(event({"id": "dp_1", "balance_transactions": moved}))["object"]
    assert (kept.get("was_taken"), kept.get("was_returned")) == told


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"id": "evt_1", "type": "x"},
        {"id": "evt_1", "type": "x", "data": None},
        {"id": "evt_1", "type": "x", "data": []},
        {"id": "evt_1", "type": "x", "data": {"object": []}},
        {"id": "evt_1", "type": "x", "data": {"object": "cs_1"}},
        {"id": None, "type": "x", "data": {"object": {}}},
        {"id": "", "type": "x", "data": {"object": {}}},
        {"id": 7, "type": "x", "data": {"object": {}}},
        {"id": "evt_1", "data": {"object": {}}},
        {"id": "evt_1", "type": "x", "data": {"object": {"payment_intent": 7}}},
        {"id": "evt_1", "type": "x", "data": {"object": {"payment_intent": {}}}},
    ],
)
def test_what_is_no_event_is_said_so(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        reduce_stripe_event(broken)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*SESSION, "charge", "reason", "last_payment_error", "amount", "failure_reason"])


@given(st.dictionaries(names, junk, max_size=6), st.booleans())
def test_junk_in_any_field_is_refused_or_harmless(thing: dict[str, Any], livemode: bool) -> None:
    try:
        kept = reduce_stripe_event(event(thing, livemode=livemode))
    except InvalidInput:
        return
    found = kept["object"]
    assert isinstance(found["metadata"], dict)
    for name in ("id", "payment_intent", "charge", "email", "error_code"):
        assert found[name] is None or isinstance(found[name], str)


def read(kind: str, thing: dict[str, Any]) -> Any:
    """What a reader without any database says: it must not need one."""
    row = EventRow(payload=json.dumps({"id": "evt_1", "type": kind, "livemode": False, "object": thing}))
    return StripeReader(NOBODY)(row)


@pytest.mark.parametrize("kind", ["charge.updated", "payment_intent.created", "customer.created", "", "x" * 100])
def test_events_that_mean_nothing_are_ignored_whatever_the_state(kind: str) -> None:
    assert read(kind, {"id": "x"}) == Ignore(f"{kind} changes nothing here")


def test_an_object_without_an_id_is_nobody() -> None:
    reading = read("checkout.session.completed", {"id": None, "metadata": {}})
    assert isinstance(reading, Ignore)


def test_stripes_own_examples_are_cut_down() -> None:
    bodies = sorted((contracts_dir() / "stripe-events").glob("*.json"))
    assert bodies
    for path in bodies:
        told = json.loads(path.read_text())
        kept = reduce_stripe_event(told)
        assert kept["object"]["id"] == told["data"]["object"]["id"], path.name
        assert len(json.dumps(kept)) < len(json.dumps(told))
