"""Owns the checks of how Stripe's objects are read. Called by pytest."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from smi_workflow.errors import ConfigError
from smi_workflow.integrations.stripe_api import StripeApi
from smi_workflow.integrations.stripe_objects import CheckoutSession, PaymentIntent, StripeRefund
from tests.support.contracts import contracts_dir


def published(name: str) -> dict[str, Any]:
    payload = json.loads((contracts_dir() / "stripe-objects" / f"{name}.json").read_text())
    assert isinstance(payload, dict)
    return payload


def test_reads_the_published_session() -> None:
    session = CheckoutSession.from_payload(published("checkout.session"))
    assert session.status == "open"
    assert session.payment_intent == "pi_1PgafyB7WZ01zgkWSjxsAJo3"
    assert session.amount_total_cents is None
    assert session.expires_at == datetime(2009, 2, 13, 23, 31, 30, tzinfo=UTC)
    assert session.email == "example@example.com"


def test_an_intent_may_come_expanded_or_not_at_all() -> None:
    payload = published("checkout.session")
    expanded = CheckoutSession.from_payload(
        {**payload, "payment_intent": {"id": "pi_x", "object": "payment_intent"}}
    )
    assert expanded.payment_intent == "pi_x"
    assert CheckoutSession.from_payload({**payload, "payment_intent": None}).payment_intent is None


def test_the_address_given_beforehand_counts_until_the_buyer_gives_one() -> None:
    payload = {**published("checkout.session"), "customer_details": None, "customer_email": "jane@example.com"}
    assert CheckoutSession.from_payload(payload).email == "jane@example.com"


def test_reads_the_published_intent() -> None:
    intent = PaymentIntent.from_payload(published("payment_intent"))
    assert (intent.amount_cents, intent.amount_received_cents, intent.currency) == (1099, 0, "usd")
    assert intent.charge is None
    charged = PaymentIntent.from_payload({**published("payment_intent"), "latest_charge": {"id": "ch_1"}})
    assert charged.charge == "ch_1"


def test_reads_the_published_refund() -> None:
    refund = StripeRefund.from_payload(published("refund"))
    assert (refund.status, refund.amount_cents, refund.payment_intent) == ("succeeded", 100, None)
    assert StripeRefund.from_payload({**published("refund"), "status": None}).status == "pending"


@pytest.mark.parametrize(
    ("field", "value"),
    [("amount_total", "384"), ("amount_total", 3.5), ("livemode", None), ("expires_at", True), ("id", "")],
)
def test_odd_fields_are_not_guessed_at(field: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        CheckoutSession.from_payload({**published("checkout.session"), field: value})


@pytest.mark.parametrize("key", ["", "sk_test_ü", "sk_test_1\n", "sk test"])
def test_a_key_that_cannot_be_sent_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        StripeApi(key, "https://api.stripe.com")
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize("url", ["", "api.stripe.com", "ftp://x", "https://", "https://x?y=1"])
def test_a_base_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        StripeApi("sk_test_1", url)


@pytest.mark.parametrize("seconds", [0, -1, 30])
def test_the_total_time_stays_below_half_a_minute(seconds: float) -> None:
    with pytest.raises(ConfigError):
        StripeApi("sk_test_1", "https://api.stripe.com", timeout_seconds=seconds)


def test_the_key_is_in_no_repr() -> None:
    api = StripeApi("sk_test_hidden", "https://api.stripe.com")
    assert "hidden" not in repr(api)
    assert "hidden" not in repr(vars(api))
