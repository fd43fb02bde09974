"""Law 11: money is conserved, whatever happens in whatever order; checked against Stripe's books after each step.

Called by pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariants
from smi_workflow.errors import EngineError, GuardRefused
from smi_workflow.jobs.invariants import SALE_INVARIANTS
from smi_workflow.jobs.model import Job
from tests.support.desks import at_once
from tests.support.sales import Sales

JANE = "admin:jane"


def refund(sales: Sales, job: Job, amount_cents: int | None = None, actor: str = JANE) -> None:
    """An admin gives money back."""
    facts = {} if amount_cents is None else {"amount_cents": amount_cents}
    sales.app.jobs.fire(job.job_id, "refund", actor=actor, reason="the buyer asked", facts=facts)


def test_a_sale_keeps_its_money(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.order()
    sales.balances(job.job_id)
    sales.pay(job)
    sales.deliver()
    sales.balances(job.job_id)
    sales.perform("submit_upscale")
    sales.call_back(sales.upscaled())
    sales.work()
    sales.balances(job.job_id)
    done = sales.job(job.job_id)
    assert (done.status, done.paid_cents, done.refunded_cents, done.email) == (
        "completed",
        50,
        0,
        "jane@example.com",
    )
    assert (done.amount_charged, done.credits_used) == (Decimal("0.50"), Decimal(1))


@pytest.mark.parametrize("state", ["pending", "processing", "completed", "failed"])
def test_a_full_refund_from_every_paid_state(sales: Sales, state: str) -> None:
    ways: dict[str, Callable[[], Job]] = {
        "pending": sales.sold, "processing": sales.processing, "completed": sales.completed,
        "failed": sales.failed,
    }  # fmt: skip
    job = ways[state]()
    assert job.status == state
    refund(sales, job)
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunding_cents == 50
    sales.work()
    sales.balances(job.job_id)
    sales.deliver()
    sales.work()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert after.status == ("completed" if state == "completed" else "failed")
    assert (after.refunding_cents, after.refunded_cents, after.refund_amount) == (0, 50, after.amount_charged)
    assert after.refund_reason == "the buyer asked"
    assert len(sales.mails("We have returned $0.50")) == 1
    with pytest.raises(GuardRefused, match="nothing is left to refund"):
        refund(sales, job)
    # What was under way at Upsampler ends nowhere.
    sales.advance(hours=2)
    sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).status == after.status


def test_two_partial_refunds_and_the_rest(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.completed()
    for cents in (10, 15):
        refund(sales, job, cents)
        sales.balances(job.job_id)
    with pytest.raises(GuardRefused, match="26 is not within 1 to 25 usd"):
        refund(sales, job, 26)
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == 25
    refund(sales, job)
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert (after.refunded_cents, after.status) == (50, "completed")
    assert [row.cents for row in sales.refunds(job.job_id)] == [10, 15, 25]
    sales.work()
    assert [mail["subject"] for mail in sales.mails("We have returned")] == [
        "We have returned $0.10", "We have returned $0.15", "We have returned $0.25",
    ]  # fmt: skip


def test_a_partial_refund_and_then_a_failure_gives_back_the_rest(sales: Sales) -> None:
    job = sales.processing()
    refund(sales, job, 20)
    sales.work(hold=("poll_upscale",))
    sales.balances(job.job_id)
    assert sales.job(job.job_id).status == "processing"
    sales.app.jobs.mark_failed(job.job_id, "upsampler_failed")
    sales.work()
    sales.balances(job.job_id)
    assert [(row.cents, row.state) for row in sales.refunds(job.job_id)] == [(20, "succeeded"), (30, "succeeded")]


@pytest.mark.parametrize("status", ["failed", "pending"])
def test_a_refund_that_stripe_loses_is_released_and_told(sales: Sales, status: str) -> None:
    job = sales.completed()
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": status})
    refund(sales, job)
    sales.work()
    sales.balances(job.job_id)
    if status == "pending":
        (row,) = sales.refunds(job.job_id)
        assert (row.state, sales.job(job.job_id).refunding_cents) == ("pending", 50)
        sales.lever(f"refunds/{row.stripe_refund_id}/settle", outcome="failed")
        sales.deliver()
        sales.work()
        sales.balances(job.job_id)
    (row,) = sales.refunds(job.job_id)
    after = sales.job(job.job_id)
    assert (row.state, after.refunding_cents, after.refunded_cents) == ("failed", 0, 0)
    assert len(sales.mails("refund failed")) == 1
    # The webhooks that tell of it once more change nothing, and none of them needs a person.
    sales.deliver()
    assert {state for state, _ in sales.event_rows().values()} <= {"applied", "ignored"}
    refund(sales, job)
    sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == 50


def test_a_settled_refund_that_the_bank_sends_back(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.completed()
    refund(sales, job, 20)
    sales.work()
    (row,) = sales.refunds(job.job_id)
    assert row.state == "succeeded"
    sales.lever(f"refunds/{row.stripe_refund_id}/settle", outcome="failed")
    sales.deliver()
    sales.work()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert (after.refunded_cents, after.refunding_cents, after.refund_amount) == (0, 0, Decimal(0))
    assert sales.refunds(job.job_id)[0].state == "failed"
    assert len(sales.mails("refund failed")) == 1
    assert {state for state, _ in sales.event_rows().values()} <= {"applied", "ignored"}


def test_a_slow_refund_is_asked_after(sales: Sales) -> None:
    job = sales.completed()
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "pending"})
    refund(sales, job)
    sales.work()
    (row,) = sales.refunds(job.job_id)
    sales.advance(hours=1)
    assert ("check_refund", "again later") in sales.work()
    sales.lever(f"refunds/{row.stripe_refund_id}/settle", outcome="succeeded")
    sales.advance(hours=6)
    assert ("check_refund", "done") in sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == 50


def test_a_refund_that_nobody_settles_is_told_after_three_days(sales: Sales) -> None:
    job = sales.completed()
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "pending"})
    refund(sales, job)
    sales.work()
    sales.advance(hours=72)
    sales.work()
    assert len(sales.mails("refund overdue")) == 1
    assert sales.refunds(job.job_id)[0].state == "pending"
    sales.balances(job.job_id)


def test_three_days_are_counted_from_the_start_of_a_refund(sales: Sales) -> None:
    """Not anew with every state that it goes through."""
    job = sales.completed()
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "requires_action"})
    refund(sales, job)
    sales.work()
    assert sales.refunds(job.job_id)[0].state == "submitted"
    sales.advance(hours=60)
    (row,) = sales.refunds(job.job_id)
    facts = {"stripe_refund_id": row.stripe_refund_id, "amount_cents": row.cents, "currency": row.currency}
    sales.app.engine.fire("refund", row.refund_id, "pending", actor="stripe", facts=facts)
    sales.advance(hours=12)
    sales.work()
    assert len(sales.mails("refund overdue")) == 1


def test_the_webhook_of_a_refund_may_come_before_the_answer(sales_everywhere: Sales) -> None:
    """woocommerce-gateway-stripe #838: one row here, one refund there."""
    sales = sales_everywhere
    job = sales.completed()
    refund(sales, job)
    sales.sandbox.stripe.faults.add({"method": "POST", "path": "/v1/refunds"}, {"kind": "reset_after"})
    assert sales.perform("submit_refund") == "to be retried"
    sales.balances(job.job_id)
    sales.deliver()
    sales.balances(job.job_id)
    assert sales.refunds(job.job_id)[0].state == "succeeded"
    sales.advance(minutes=30)
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    assert len(sales.refunds(job.job_id)) == len(sales.ledger()["refunds"]) == 1
    assert sales.triggers(job.job_id).count("refund_settled") == 1


def test_a_refund_at_the_dashboard_counts_once(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.completed()
    assert job.stripe_payment_intent_id is not None
    for amount in (20, 30):
        sales.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id, amount=amount)
        told = [sales.receive(event) for event in sales.events() if event["type"].startswith("refund.")]
        at_once(sales.app, *[lambda one=one: sales.app.inbox.handle(one) for one in told for _ in range(2)])
        sales.balances(job.job_id)
        # Whoever lost the race tries again, and finds it on record.
        sales.advance(seconds=10)
        sales.work()
        sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == 50
    assert sales.triggers(job.job_id).count("refund_settled") == 2
    assert {state for state, _ in sales.event_rows().values()} <= {"applied", "ignored"}


def test_a_full_refund_at_the_dashboard_stops_the_work(sales: Sales) -> None:
    job = sales.processing()
    sales.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id)
    sales.deliver()
    after = sales.job(job.job_id)
    assert (after.status, after.failure_code, after.refunded_cents) == ("failed", "refunded", 50)
    sales.call_back(sales.upscaled())
    sales.work()
    sales.balances(job.job_id)
    assert "complete" not in sales.triggers(job.job_id)


def test_an_automatic_and_an_admins_refund_at_the_same_moment(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.failed()
    sales.advance_to("refund_due")
    due = sales.effect("refund_due").id
    outcomes = at_once(
        sales.app,
        *[lambda: sales.app.performer.perform(due)] * 2,
        *[lambda: refund(sales, job)] * 2,
    )
    unexpected = [one for one in outcomes if isinstance(one, BaseException) and not isinstance(one, EngineError)]
    assert not unexpected
    sales.balances(job.job_id)
    at_once(sales.app, *[lambda: sales.perform("submit_refund")] * 3)
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    assert len(sales.refunds(job.job_id)) == len(sales.ledger()["refunds"]) == 1


@pytest.mark.parametrize("inquiry", [False, True])
@pytest.mark.parametrize("without_intent", [False, True])
def test_a_chargeback_in_the_middle_of_the_work(sales: Sales, inquiry: bool, without_intent: bool) -> None:
    job = sales.processing()
    dispute = sales.lever(
        "dashboard/disputes", payment_intent=job.stripe_payment_intent_id, inquiry=inquiry,
        without_intent=without_intent,
    )  # fmt: skip
    sales.deliver()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    if inquiry:
        # Nothing is withdrawn yet: the buyer gets the image.
        assert (after.status, after.disputed_cents) == ("processing", 0)
        return
    assert (after.status, after.failure_code, after.disputed_cents) == ("failed", "chargeback", 50)
    assert "refund_due" not in sales.owed(job.job_id)
    sales.call_back(sales.upscaled())
    sales.work()
    assert "complete" not in sales.triggers(job.job_id)
    with pytest.raises(GuardRefused, match="a chargeback has withdrawn the money"):
        refund(sales, job)
    sales.lever(f"dashboard/disputes/{dispute['id']}/close", outcome="won")
    sales.deliver()
    sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).disputed_cents == 0
    assert sales.mails("dispute closed") and sales.mails("job dispute opened")
    # The money came back to a shop that delivered nothing: it goes on to the buyer, by itself and once.
    assert (sales.job(job.job_id).refunded_cents, len(sales.ledger()["refunds"])) == (50, 1)


def test_a_partial_chargeback_holds_the_rest_and_a_person_knows(sales: Sales) -> None:
    """Stripe refunds nothing of what a bank disputes: what is left waits, and nobody is accused of it."""
    job = sales.processing()
    sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id, amount=30)
    sales.deliver()
    sales.run_down(days=6)
    assert (sales.job(job.job_id).status, sales.job(job.job_id).refundable_cents) == ("failed", 20)
    assert sales.mails("dispute opened")
    every = (*ENGINE_INVARIANTS, *SALE_INVARIANTS)
    judged = Invariants(sales.app.engine, every, exists=sales.app.storage.exists)
    assert list(judged.of_subject("job", job.job_id)) == list(judged.everywhere()) == []


def test_a_chargeback_after_delivery_is_told(sales: Sales) -> None:
    job = sales.completed()
    sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id, amount=30)
    sales.deliver()
    sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).status == "completed"
    assert sales.mails("job dispute opened")


def test_goods_and_money_go_together_only_on_an_admins_word(sales: Sales) -> None:
    job = sales.failed()
    refund(sales, job)
    sales.work()
    with pytest.raises(GuardRefused, match="a refund is under way or done"):
        sales.app.jobs.fire(job.job_id, "retry", actor=JANE, reason="once more")
    with pytest.raises(GuardRefused, match="a reason is needed"):
        sales.app.jobs.fire(job.job_id, "retry", actor=JANE, facts={"override": True})
    sales.app.jobs.fire(job.job_id, "retry", actor=JANE, reason="a gift", facts={"override": True})
    sales.perform("submit_upscale")
    sales.call_back(sales.upscaled())
    sales.work()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert (after.status, after.refunded_cents, after.overridden) == ("completed", 50, True)


def test_a_retry_takes_back_a_refund_that_is_only_due(sales: Sales) -> None:
    job = sales.failed()
    assert "refund_due" in sales.owed(job.job_id)
    sales.app.jobs.fire(job.job_id, "retry", actor=JANE, reason="the outage is over")
    assert "refund_due" not in sales.owed(job.job_id)
    sales.perform("submit_upscale")
    sales.call_back(sales.upscaled())
    sales.advance(minutes=40)
    sales.work()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert (after.status, after.refunded_cents, sales.refunds(job.job_id)) == ("completed", 0, [])
