"""Refunds that come to nothing, and what an admin may do: counted under the job's lock. Called by pytest."""

from __future__ import annotations

from typing import Any

import pytest

from smi_workflow.errors import EngineError, GuardRefused, TransitionNotAllowed
from smi_workflow.jobs.model import Job, Refund
from tests.support.desks import at_once
from tests.support.sales import Sales

JANE = "admin:jane"


def lost(sales: Sales, job: Job, *, status: str = "failed", **facts: Any) -> Refund:
    """A refund that Stripe took on and that came to nothing."""
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "failed" if status == "failed" else "pending"})
    sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="asked", facts=facts)
    sales.perform("submit_refund")
    if status == "canceled":
        sales.lever(f"refunds/{sales.refunds(job.job_id)[-1].stripe_refund_id}/settle", outcome="canceled")
    sales.deliver()
    sales.work(hold=("poll_upscale",))
    row = sales.refunds(job.job_id)[-1]
    assert row.state == status
    return row


def retry(sales: Sales, row: Refund, **how: Any) -> Any:
    """An admin sends it once more."""
    return sales.app.jobs.fire_refund(row.refund_id, "retry", actor=JANE, reason="topped up", **how)


def elsewhere(sales: Sales, row: Refund, reason: str = "by bank transfer") -> Any:
    """An admin has paid the buyer in another way."""
    return sales.app.jobs.fire_refund(row.refund_id, "settle_elsewhere", actor=JANE, reason=reason)


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_lost_refund_is_sent_once_more(sales_everywhere: Sales, status: str) -> None:
    sales = sales_everywhere
    job = sales.completed()
    first = lost(sales, job, status=status, amount_cents=20)
    told = len(sales.mails())
    retry(sales, first)
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunding_cents == 20
    sales.work()
    sales.balances(job.job_id)
    (row,) = sales.refunds(job.job_id)
    assert (row.refund_id, row.state, row.tries) == (first.refund_id, "succeeded", 2)
    assert row.past_stripe_ids == first.stripe_refund_id != row.stripe_refund_id
    assert sales.job(job.job_id).refunded_cents == 20
    # Under a key of its own, and told apart at Stripe: the answer to the first would be given again.
    made = {one["id"]: one for one in sales.ledger()["refunds"]}
    assert made[row.stripe_refund_id or ""]["metadata"]["try"] == "2"
    assert "try" not in made[first.stripe_refund_id or ""]["metadata"]
    assert len(sales.mails()) == told + 1
    with pytest.raises(TransitionNotAllowed):
        retry(sales, row)


def test_late_news_of_the_first_try_say_nothing_about_the_second(sales: Sales) -> None:
    job = sales.completed()
    first = lost(sales, job)
    retry(sales, first)
    news = [event for event in sales.events() if event["data"]["object"].get("id") == first.stripe_refund_id]
    for event in news:
        for status in ("failed", "succeeded"):
            told = {**event["data"]["object"], "status": status}
            again = {**event, "id": f"{event['id']}_{status}", "data": {"object": told}}
            sales.app.inbox.handle(sales.receive(again))
    sales.balances(job.job_id)
    (row,) = sales.refunds(job.job_id)
    assert (row.state, sales.job(job.job_id).refunding_cents) == ("requested", 50)
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    assert [one.state for one in sales.refunds(job.job_id)] == ["succeeded"]


def test_the_second_try_is_found_by_listing_and_not_taken_for_the_first(sales: Sales) -> None:
    job = sales.completed()
    first = lost(sales, job)
    retry(sales, first)
    sales.sandbox.stripe.faults.add({"method": "POST", "path": "/v1/refunds"}, {"kind": "reset_after"})
    sales.work()
    sales.advance(hours=25)
    sales.work()
    sales.balances(job.job_id)
    (row,) = sales.refunds(job.job_id)
    assert row.state == "succeeded"
    assert len(sales.ledger()["refunds"]) == 2


def test_a_refund_settled_elsewhere_is_the_buyers_money_all_the_same(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.failed()
    row = lost(sales, job)
    mails = len(sales.mails())
    with pytest.raises(GuardRefused, match="a reason is needed"):
        elsewhere(sales, row, reason=" ")
    elsewhere(sales, row)
    sales.work()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert (after.refunded_cents, after.refunding_cents, after.refundable_cents) == (50, 0, 0)
    # Stripe's books keep it as ours, and no mail says that it is on its way to the card.
    assert [payment.refunded_cents for payment in sales.payments(job.job_id)] == [0]
    assert len(sales.mails()) == mails
    with pytest.raises(GuardRefused, match="nothing is left to refund"):
        sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="once more")
    with pytest.raises(TransitionNotAllowed):
        retry(sales, row)
    with pytest.raises(GuardRefused, match="a refund is under way or done"):
        sales.app.jobs.fire(job.job_id, "retry", actor=JANE, reason="goods too")


def test_what_went_back_meanwhile_is_not_sent_again(sales: Sales) -> None:
    job = sales.completed()
    row = lost(sales, job)
    sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="another", facts={"amount_cents": 1})
    for act in (retry, elsewhere):
        with pytest.raises(GuardRefused, match=r"50 (is not within 1 to 49|was settled where 49)"):
            act(sales, row)
    sales.work()
    sales.balances(job.job_id)


def test_no_refund_is_tried_again_while_a_chargeback_is_open(sales: Sales) -> None:
    job = sales.completed()
    row = lost(sales, job)
    sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id)
    sales.deliver()
    with pytest.raises(GuardRefused, match="a chargeback has withdrawn the money"):
        retry(sales, row)
    sales.balances(job.job_id)


def test_a_full_refund_tried_again_ends_the_work_that_began_meanwhile(sales: Sales) -> None:
    job = sales.failed()
    row = lost(sales, job)
    sales.app.jobs.fire(job.job_id, "retry", actor=JANE, reason="the outage is over")
    sales.perform("submit_upscale")
    retry(sales, row)
    after = sales.job(job.job_id)
    assert (after.status, after.failure_code, after.refunding_cents) == ("failed", "refunded", 50)
    sales.work()
    sales.balances(job.job_id)


def test_admins_who_are_at_it_at_once_send_it_once(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.completed()
    row = lost(sales, job)
    outcomes = at_once(
        sales.app, lambda: retry(sales, row), lambda: retry(sales, row), lambda: elsewhere(sales, row),
        lambda: sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="asked again"),
    )  # fmt: skip
    assert sum(not isinstance(one, BaseException) for one in outcomes) == 1, outcomes
    assert all(isinstance(one, EngineError) for one in outcomes if isinstance(one, BaseException))
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == 50


def test_a_refund_made_at_stripe_is_not_ours_to_try_again(sales: Sales) -> None:
    job = sales.completed()
    made = sales.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id, amount=20)
    sales.deliver()
    sales.lever(f"refunds/{made['id']}/settle", outcome="failed")
    sales.deliver()
    (row,) = sales.refunds(job.job_id)
    assert (row.state, row.tries) == ("failed", 0)
    with pytest.raises(GuardRefused, match="was made at Stripe's own pages"):
        retry(sales, row)
    elsewhere(sales, row)
    assert sales.job(job.job_id).refunded_cents == 20


def test_nobody_reports_by_hand_what_became_of_a_refund(sales: Sales) -> None:
    job = sales.completed()
    row = lost(sales, job)
    for workflow, key, trigger in (
        ("refund", row.refund_id, "fail"), ("refund", row.refund_id, "succeed"),
        ("job", job.job_id, "refund_retried"), ("job", job.job_id, "refund_failed"),
    ):  # fmt: skip
        facts = {"amount_cents": 50, "refund_id": row.refund_id}
        with pytest.raises((GuardRefused, TransitionNotAllowed)):
            sales.app.engine.fire(workflow, key, trigger, actor=JANE, facts=facts)
    sales.balances(job.job_id)


def test_a_refund_given_up_that_stripe_made_all_the_same_counts(sales: Sales) -> None:
    """We took it for never made, and told a person; then Stripe tells of it."""
    job = sales.completed()
    sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="asked", facts={"amount_cents": 20})
    (row,) = sales.refunds(job.job_id)
    facts = {"code": "unknown_outcome", "effect": "submit_refund"}
    sales.app.engine.fire("refund", row.refund_id, "fail", actor="system", facts=facts)
    sales.lever(
        "dashboard/refunds", payment_intent=job.stripe_payment_intent_id, amount=20,
        metadata={"refund_id": row.refund_id, "job_id": job.job_id},
    )  # fmt: skip
    sales.deliver()
    sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == 20
    assert [one.state for one in sales.refunds(job.job_id)] == ["failed", "succeeded"]


def test_who_overrides_while_the_refund_is_on_its_way_gets_what_she_asked_for(sales: Sales) -> None:
    """Law 11: never both, unless an admin said so. Here one did, knowing that the money was going back."""
    job = sales.failed()
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "pending"})
    sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="asked")
    sales.work()
    with pytest.raises(GuardRefused, match="a refund is under way or done"):
        sales.app.jobs.fire(job.job_id, "retry", actor=JANE, reason="goods too")
    sales.app.jobs.fire(job.job_id, "retry", actor=JANE, reason="a gift", facts={"override": True})
    sales.perform("submit_upscale")
    (row,) = sales.refunds(job.job_id)
    sales.lever(f"refunds/{row.stripe_refund_id}/settle", outcome="succeeded")
    sales.deliver()
    assert (sales.job(job.job_id).status, sales.job(job.job_id).refunded_cents) == ("processing", 50)
    sales.call_back(sales.upscaled())
    sales.work()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).status == "completed"


def test_an_override_says_nothing_about_a_refund_that_comes_later(sales: Sales) -> None:
    job = sales.failed()
    sales.app.jobs.fire(job.job_id, "retry", actor=JANE, reason="no matter what", facts={"override": True})
    sales.perform("submit_upscale")
    sales.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id)
    sales.deliver()
    sales.balances(job.job_id)
    assert (sales.job(job.job_id).status, sales.job(job.job_id).failure_code) == ("failed", "refunded")
