"""Payments that fit no sale: never accepted, always on record, sent back or held. Called by pytest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from smi_workflow.jobs.model import Job
from tests.support.sales import Providers, Sales, open_sales


@pytest.fixture(params=["refund", "hold"])
def unexpected(
    request: pytest.FixtureRequest, sqlite_url: str, tmp_path: Path, providers: Providers
) -> Iterator[Sales]:
    """A shop that sends unexpected money back, and one that holds it for a person."""
    with open_sales(sqlite_url, tmp_path, providers, unexpected_payment=request.param) as opened:
        yield opened


def second_session(sales: Sales, job: Job, currency: str = "usd") -> Job:
    """Another checkout of the same job, which no rule of ours opens; returns the job as if it were its own."""
    session = sales.app.stripe.create_checkout_session(
        job_id=job.job_id, amount_cents=50, currency=currency, description="again", email=None,
        key=f"second-{job.job_id}", success_url="https://x.example/", cancel_url="https://x.example/",
        expires_at=sales.clock.now() + timedelta(hours=12),
    )  # fmt: skip
    copy = sales.job(job.job_id)
    copy.stripe_checkout_session_id = session.id
    return copy


def settle_unexpected(sales: Sales, job: Job, role: str, cents: int) -> None:
    """What did not fit is on record once, and went back or is held; the admin knows."""
    sales.deliver()
    sales.balances(job.job_id)
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    extra = [payment for payment in sales.payments(job.job_id) if payment.role != "sale"]
    assert [(payment.role, payment.cents) for payment in extra] == [(role, cents)]
    back = cents if sales.app.settings.unexpected_payment == "refund" else 0
    assert extra[0].refunded_cents == back
    assert len(sales.refunds(job.job_id)) == (1 if back else 0)
    assert len(sales.mails("job payment unexpected")) == 1


def test_a_second_payment_is_surplus(unexpected: Sales) -> None:
    sales = unexpected
    job = sales.order()
    other = second_session(sales, job)
    sales.pay(job)
    sales.deliver()
    sales.pay(other)
    settle_unexpected(sales, job, "surplus", 50)
    after = sales.job(job.job_id)
    assert (after.status, after.paid_cents, after.refunded_cents) == ("processing", 50, 0)
    assert after.status != "failed"


def test_a_chargeback_of_a_surplus_payment_leaves_the_sale_alone(sales: Sales) -> None:
    job = sales.order()
    other = second_session(sales, job)
    sales.pay(job)
    sales.deliver()
    sales.pay(other)
    sales.deliver()
    surplus = next(payment for payment in sales.payments(job.job_id) if payment.role == "surplus")
    sales.lever("dashboard/disputes", payment_intent=surplus.payment_intent_id)
    sales.deliver()
    after = sales.job(job.job_id)
    assert (after.status, after.disputed_cents) == ("pending", 0)


@pytest.mark.parametrize("amount", [49, 51, 5000])
def test_a_wrong_amount_is_never_accepted(unexpected: Sales, amount: int) -> None:
    sales = unexpected
    job = sales.order()
    sales.pay(job, amount=amount)
    settle_unexpected(sales, job, "mismatch", amount)
    after = sales.job(job.job_id)
    assert (after.status, after.payment_status, after.paid_cents) == ("awaiting_payment", "pending", 0)
    # Its checkout is used up: at the deadline the job is given up, and no second payment is asked for.
    sales.advance_to("payment_deadline")
    sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).status == "abandoned"
    assert len(sales.payments(job.job_id)) == 1


def test_a_wrong_amount_whose_webhook_is_lost_is_found_at_the_deadline(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job, amount=51)
    sales.advance_to("payment_deadline")
    sales.work()
    sales.balances(job.job_id)
    assert sales.triggers(job.job_id)[:4] == ["create", "checkout_opened", "payment_unexpected", "refund_settled"]
    sales.advance(minutes=5)
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert (after.status, after.paid_cents) == ("abandoned", 0)
    (payment,) = sales.payments(job.job_id)
    assert (payment.role, payment.refunded_cents) == ("mismatch", 51)


def test_another_currency_is_never_accepted(unexpected: Sales) -> None:
    sales = unexpected
    job = sales.order()
    other = second_session(sales, job, currency="eur")
    sales.pay(other)
    settle_unexpected(sales, job, "mismatch", 50)
    assert sales.job(job.job_id).status == "awaiting_payment"


def test_whoever_paid_in_a_strange_session_does_not_get_the_link(unexpected: Sales) -> None:
    """Their address is known first, for their refund; the sale's own buyer takes its place."""
    sales = unexpected
    job = sales.order()
    sales.pay(second_session(sales, job), email="stranger@example.com")
    settle_unexpected(sales, job, "mismatch", 50)
    assert sales.job(job.job_id).email == "stranger@example.com"
    sales.pay(job, email="jane@example.com")
    sales.deliver()
    sales.work()
    assert sales.job(job.job_id).payment_status == "paid"
    assert sales.job(job.job_id).email == "jane@example.com"


def test_a_strange_session_is_never_accepted(unexpected: Sales) -> None:
    """The right amount, but not where we asked for it."""
    sales = unexpected
    job = sales.order()
    sales.pay(second_session(sales, job))
    settle_unexpected(sales, job, "mismatch", 50)
    assert sales.job(job.job_id).status == "awaiting_payment"
    # The buyer may still pay the right one.
    sales.pay(job)
    sales.deliver()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).status == "pending"


def test_live_and_test_mode_never_mix(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    for event in sales.events("checkout.session.completed"):
        row = sales.app.tables.events.get_by_id(sales.receive({**event, "livemode": True}))
        sales.app.inbox.handle(row.id)
    after = sales.job(job.job_id)
    assert (after.status, after.paid_cents) == ("awaiting_payment", 0)
    (payment,) = sales.payments(job.job_id)
    assert (payment.role, payment.livemode) == ("mismatch", True)


def test_events_of_a_strange_session_move_nothing(sales: Sales) -> None:
    """Unpaid, failed or expired: a session that is not the job's own says nothing about the job."""
    job = sales.order()
    other = second_session(sales, job)
    deadline = sales.owed(job.job_id)["payment_deadline"]
    sales.pay(other, delayed=True)
    sales.deliver()
    sales.lever(f"sessions/{other.stripe_checkout_session_id}/settle", outcome="failed")
    sales.deliver()
    assert sales.job(job.job_id).status == "awaiting_payment"
    assert sales.owed(job.job_id)["payment_deadline"] == deadline


def test_a_late_payment_revives_an_abandoned_job(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.order()
    sales.pay(job)
    sales.app.jobs.fire(
        job.job_id,
        "abandon",
        actor="system",
        reason="as if Stripe had said so",
        facts={"session_status": "expired"},
    )
    sales.deliver()
    after = sales.job(job.job_id)
    assert (after.status, after.payment_status) == ("pending", "paid")
    sales.balances(job.job_id)
    assert "purge_job" not in sales.owed(job.job_id)
    sales.perform("submit_upscale")
    sales.call_back(sales.upscaled())
    sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).status == "completed"


def test_a_payment_of_a_dead_job_goes_back(sales: Sales) -> None:
    job = sales.order()
    sales.app.jobs.fire(job.job_id, "payment_failed", actor="stripe", reason="", facts={"code": "gone"})
    sales.pay(job)
    sales.deliver()
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    (payment,) = sales.payments(job.job_id)
    assert (payment.role, payment.refunded_cents, sales.job(job.job_id).status) == ("surplus", 50, "failed")
