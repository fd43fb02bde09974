"""News that comes late or the wrong way round: found by simulation and crash points, kept as tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.sales import Providers, Sales, open_sales, running_providers


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    """One sandbox for all tests of this file."""
    with running_providers(tmp_path_factory.mktemp("providers")) as running:
        yield running


@pytest.fixture
def sales(sqlite_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop on SQLite."""
    with open_sales(sqlite_url, tmp_path, providers) as opened:
        yield opened


def refund_told(sales: Sales, intent: str, status: str, event_id: str) -> dict[str, Any]:
    """What Stripe tells of a refund that somebody made on its page."""
    thing: dict[str, Any] = {
        "id": "re_elsewhere", "object": "refund", "payment_intent": intent, "charge": None, "amount": 20,
        "currency": "usd", "status": status, "metadata": {},
    }  # fmt: skip
    return {"id": event_id, "type": "refund.updated", "livemode": False, "data": {"object": thing}}


@pytest.mark.parametrize("order", [("failed", "succeeded"), ("succeeded", "failed"), ("canceled", "succeeded")])
def test_a_refund_made_at_stripe_that_failed_has_failed_in_whatever_order_we_are_told(
    sales: Sales, order: tuple[str, str]
) -> None:
    job = sales.completed()
    assert job.stripe_payment_intent_id is not None
    for number, status in enumerate(order):
        sales.app.inbox.handle(
            sales.receive(refund_told(sales, job.stripe_payment_intent_id, status, f"evt_{number}"))
        )
    after = sales.job(job.job_id)
    assert (after.refunded_cents, after.refunding_cents, after.refundable_cents) == (0, 0, after.paid_cents)
    [row] = sales.refunds(job.job_id)
    ended = "canceled" if "canceled" in order else "failed"
    assert (row.state, row.stripe_refund_id, row.cents, row.tries) == (ended, "re_elsewhere", 20, 0)
    # A life of its own, from its first row, and nothing that would ask Stripe for it again.
    history = [item.trigger for item in sales.app.engine.history("refund", row.refund_id)]
    assert history[:2] == ["request", "found_at_stripe"]
    assert sales.effects("submit_refund", row.refund_id) == []
    [payment] = sales.payments(job.job_id)
    assert payment.refunded_cents == 0


def test_a_notice_of_failure_that_goes_out_after_the_refund_says_that_the_money_goes_back(sales: Sales) -> None:
    job = sales.failed()
    sales.advance(minutes=31)
    sales.work(hold={"send_failure_notice"})
    assert sales.job(job.job_id).refunded_cents == job.paid_cents
    sales.work()
    [mail] = [mail for mail in sales.mails() if "upscale your image" in mail["subject"]]
    assert "your money goes back" in mail["subject"]
    assert sales.mails("nothing was charged") == []


def test_who_paid_is_forgotten_by_the_inbox_once_the_event_is_settled(sales: Sales) -> None:
    job = sales.order(email=None)
    sales.pay(job, email="jane@example.com")
    sales.deliver("checkout.session.completed")
    assert sales.job(job.job_id).email == "jane@example.com"
    events = sales.app.tables.events
    kept = [row.payload for row in events.select() if row.kind == "checkout.session.completed"]
    assert kept
    assert not any("jane@example.com" in payload for payload in kept)
    assert all(json.loads(payload)["object"]["payment_intent"] for payload in kept)


def test_whoever_paid_a_wrong_amount_is_told_when_it_goes_back(sales: Sales) -> None:
    job = sales.order(email=None)
    sales.pay(job, email="jane@example.com")
    [event] = sales.events("checkout.session.completed")
    event["data"]["object"]["amount_total"] += 1
    sales.app.inbox.handle(sales.receive(event))
    assert sales.job(job.job_id).status == "awaiting_payment"
    assert sales.job(job.job_id).email == "jane@example.com"


def test_an_override_owes_the_end_of_the_checkout_once(sales: Sales) -> None:
    job = sales.order()
    facts = {"target": "abandoned", "effects": True}
    sales.app.jobs.fire(job.job_id, "override", actor="admin:jane", reason="she called", facts=facts)
    assert len(sales.effects("expire_session")) == 1
