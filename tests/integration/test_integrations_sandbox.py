"""Owns the check that our Stripe and mail clients get along with the sandbox. Called by pytest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from smi_workflow.errors import ServiceRefused
from smi_workflow.integrations.mailer import Letter, Mailer
from smi_workflow.integrations.stripe_api import CheckoutSession, StripeApi
from smi_workflow.sandbox.sandbox import Sandbox, SandboxConfig


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(folder=tmp_path)) as sandbox:
        yield sandbox


@pytest.fixture
def api(sandbox: Sandbox) -> Iterator[StripeApi]:
    api = StripeApi("sk_test_sandbox", sandbox.stripe.url)
    yield api
    api.close()


def open_session(api: StripeApi, job_id: str = "job_1", key: str = "effect-1") -> CheckoutSession:
    # A whole hour's start: the same parameters for the same key.
    until = datetime.fromtimestamp(int(time.time()) // 3600 * 3600, UTC) + timedelta(hours=3)
    return api.create_checkout_session(
        job_id=job_id,
        amount_cents=384,
        currency="usd",
        description="Upscaled image",
        success_url="https://shop.example/thanks",
        cancel_url="https://shop.example/cancelled",
        expires_at=until,
        email="jane@example.com",
        key=key,
    )


def test_a_sale_from_checkout_to_refund(sandbox: Sandbox, api: StripeApi) -> None:
    start = datetime.now(UTC) - timedelta(minutes=1)
    session = open_session(api)
    assert open_session(api) == session
    assert (session.status, session.payment_status, session.amount_total_cents) == ("open", "unpaid", 384)
    assert api.find_checkout_session(job_id="job_1", since=start, until=datetime.now(UTC)) == session
    assert api.find_checkout_session(job_id="job_2", since=start, until=datetime.now(UTC)) is None
    paid = requests.post(f"{sandbox.stripe.url}/_sandbox/stripe/sessions/{session.id}/pay", json={}, timeout=10)
    assert paid.status_code == 200, paid.text

    session = api.expire_checkout_session(session.id, key="effect-2")
    assert (session.status, session.payment_status) == ("complete", "paid")
    assert session.payment_intent is not None
    intent = api.retrieve_payment_intent(session.payment_intent)
    assert (intent.status, intent.amount_received_cents, intent.metadata) == (
        "succeeded",
        384,
        {"job_id": "job_1"},
    )
    assert intent.charge is not None
    assert api.retrieve_charge_intent(intent.charge) == intent.id

    def refund(amount_cents: int, key: str) -> str:
        return api.create_refund(
            payment_intent=intent.id,
            amount_cents=amount_cents,
            reason="requested_by_customer",
            metadata={"refund": key},
            key=key,
        ).id

    first = refund(384, "effect-3")
    assert refund(384, "effect-3") == first
    with pytest.raises(ServiceRefused) as other:
        refund(100, "effect-3")
    assert other.value.code == "idempotency_key_in_use"
    with pytest.raises(ServiceRefused) as again:
        refund(384, "effect-4")
    assert again.value.code == "charge_already_refunded"
    assert [found.id for found in api.list_refunds(payment_intent=intent.id)] == [first]
    assert api.retrieve_refund(first).metadata == {"refund": "effect-3"}
    kinds = {event["type"] for event in api.list_events(since=start)}
    assert {"checkout.session.completed", "payment_intent.succeeded", "refund.created"} <= kinds
    only = api.list_events(since=start, types=["checkout.session.completed"])
    assert [event["data"]["object"]["id"] for event in only] == [session.id]


def test_an_open_session_is_closed(api: StripeApi) -> None:
    session = open_session(api)
    assert api.expire_checkout_session(session.id, key="effect-2").status == "expired"
    assert api.expire_checkout_session(session.id, key="effect-5").status == "expired"
    with pytest.raises(ServiceRefused) as unknown:
        api.retrieve_checkout_session("cs_test_nothing")
    assert (unknown.value.code, unknown.value.status) == ("resource_missing", 404)


def test_more_sessions_than_fit_one_page(api: StripeApi) -> None:
    start = datetime.now(UTC)
    for number in range(105):
        open_session(api, f"job_{number}", f"effect-{number}")
    found = api.find_checkout_session(job_id="job_0", since=start, until=datetime.now(UTC))
    assert found is not None
    assert found.metadata == {"job_id": "job_0"}


def test_mail_is_taken_and_refused(sandbox: Sandbox) -> None:
    mailer = Mailer(sandbox.mail.url, "no-reply@shop.example")
    mailer.send(Letter("jane@example.com", "s", "t\n", "h\n", "<effect-1@shop.example>"))
    with pytest.raises(ServiceRefused) as refused:
        mailer.send(Letter("bounce@example.com", "s", "t\n", "h\n", "<effect-2@shop.example>"))
    assert refused.value.code == "recipient_refused"
