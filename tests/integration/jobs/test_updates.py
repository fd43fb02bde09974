"""The seeds' Job Manager, heading by heading: what changes a job goes through the machine. Called by pytest."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from smi_workflow.errors import (
    GuardRefused,
    InvalidInput,
    ServiceRefused,
    StatusNotReachable,
    TransitionNotAllowed,
    UnknownJob,
)
from smi_workflow.jobs.costs import profit
from smi_workflow.jobs.model import Job
from tests.support.desks import Desk
from tests.support.sales import Sales

JANE = "admin:jane"


def refused(call: Any, *arguments: Any, **named: Any) -> InvalidInput:
    """The typed error of a call with something wrong in it."""
    with pytest.raises(InvalidInput) as caught:
        call(*arguments, **named)
    return caught.value


def intent_of(sales: Sales, job: Job) -> str:
    """The payment that was made in the job's checkout, as Stripe has it."""
    session = sales.app.stripe.retrieve_checkout_session(str(job.stripe_checkout_session_id))
    return str(session.payment_intent)


# -- Status Management: Status Updates --------------------------------------------------------------------------


def test_status_updates_fire_the_declared_trigger(desk: Desk) -> None:
    jobs = desk.app.jobs
    job_id = desk.put("processing")
    failed = jobs.update_status(job_id, "failed", actor=JANE, reason="an outage", facts={"code": "outage"})
    assert (failed.trigger, failed.to_state, failed.actor, failed.reason) == ("fail", "failed", JANE, "an outage")
    assert "refund_due" in desk.owed(job_id)
    assert jobs.update_status(job_id, "pending", actor=JANE).trigger == "retry"
    assert "submit_upscale" in desk.owed(job_id)
    started = {"upsampler_job_id": "up-1", "submit_effect_id": "e1"}
    assert jobs.update_status(job_id, "processing", facts=started).trigger == "upscale_started"


def test_a_status_that_is_there_already_is_no_error(desk: Desk) -> None:
    """Whoever repeats a call after a lost answer gets the same one."""
    job_id = desk.put("processing")
    first = desk.app.jobs.update_status(job_id, "failed", actor=JANE, reason="an outage")
    desk.app.jobs.update_job(job_id, {"post_id": 7}, actor=JANE)
    again = desk.app.jobs.update_status(job_id, "failed", actor=JANE, reason="an outage")
    assert (again.trigger, again.sequence, again.reason, again.replayed) == (
        "fail", first.sequence, "an outage", True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "wanted", "actor", "why"),
    [
        ("awaiting_payment", "pending", JANE, "not fired by hand"),
        ("awaiting_payment", "pending", "system", "needs this fact"),
        ("pending", "processing", JANE, "not fired by hand"),
        ("processing", "completed", JANE, "not fired by hand"),
        ("processing", "completed", "system", "needs this fact"),
        ("failed", "completed", JANE, "nothing leads there from failed"),
        ("completed", "failed", JANE, "nothing leads there from completed"),
        ("completed", "awaiting_payment", JANE, "nothing leads there"),
    ],
)
def test_a_status_that_is_only_claimed_is_refused_and_override_named(
    desk: Desk, status: str, wanted: str, actor: str, why: str
) -> None:
    """There is no side door past the machine: nothing is paid or delivered because somebody says so."""
    job_id = desk.put(status)
    before = desk.job(job_id).__data__
    with pytest.raises(StatusNotReachable) as caught:
        desk.app.jobs.update_status(job_id, wanted, actor=actor)
    assert why in str(caught.value) and "'override'" in str(caught.value)
    assert (caught.value.status, caught.value.wanted) == (status, wanted)
    assert desk.job(job_id).__data__ == before


def test_unknown_statuses_and_jobs_are_named(desk: Desk) -> None:
    assert refused(desk.app.jobs.update_status, desk.put("pending"), "done").field == "status"
    for call in (
        lambda: desk.app.jobs.update_status("nobody", "failed"),
        lambda: desk.app.jobs.update_job("nobody", {"post_id": 7}),
        lambda: desk.app.jobs.update_checkout_session("nobody", "cs_1"),
        lambda: desk.app.jobs.mark_payment_completed("nobody", "pi_1"),
        lambda: desk.app.jobs.update_cost_data("nobody", {"upsampler_cost": 1}),
        lambda: desk.app.jobs.generate_download_token("nobody"),
    ):
        with pytest.raises(UnknownJob):
            call()


def test_update_with_additional_data(desk: Desk) -> None:
    job_id = desk.put("completed")
    desk.app.jobs.update_job(job_id, {"email": "joe@example.com", "post_id": 7}, actor=JANE, reason="by phone")
    job = desk.job(job_id)
    assert (job.email, job.post_id) == ("joe@example.com", 7)
    last = desk.app.jobs.history(job_id)[-1]
    assert (last.trigger, last.actor, last.metadata) == ("amend", JANE, '{"fields":["email","post_id"]}')


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"upsampler_job_id": "up-1"}, "upsampler_job_id", "use the trigger 'upscale_started'"),
        ({"processing_started_at": "now"}, "processing_started_at", "use the trigger 'upscale_started'"),
        ({"post_id": 7, "status": "completed"}, "status", "use update_status"),
        ({"amount_charged": 1}, "amount_charged", "use mark_payment_completed"),
        ({"amount_cost": 1}, "amount_cost", "use update_cost_data"),
        ({"download_token": "x"}, "download_token", "use generate_download_token"),
        ({"paid_cents": 0}, "paid_cents", "cannot be amended"),
        ({"email": "nobody"}, "email", "@"),
        ({"post_id": "seven"}, "post_id", "must be a whole number"),
        ({7: "x"}, "7", "cannot be amended"),
    ],
)
def test_data_that_is_not_amended_is_refused_by_its_name(
    desk: Desk, fields: dict[Any, Any], field: str, said: str
) -> None:
    job_id = desk.put("completed")
    problem = refused(desk.app.jobs.update_job, job_id, fields, actor=JANE)
    assert problem.field == field and said in problem.problem
    assert len(desk.app.jobs.history(job_id)) == 1


# -- Payment Integration ----------------------------------------------------------------------------------------


def test_mark_payment_completed_asks_stripe(sales: Sales) -> None:
    """Its webhook never came; now it is on record as if it had, and when it comes it changes nothing."""
    job = sales.order()
    sales.pay(job)
    intent = intent_of(sales, job)
    applied = sales.app.jobs.mark_payment_completed(job.job_id, intent)
    assert (applied.trigger, applied.actor, applied.to_state) == ("payment_received", "stripe", "pending")
    paid = sales.job(job.job_id)
    assert (paid.paid_cents, paid.email, paid.payment_status) == (50, "jane@example.com", "paid")
    assert sales.app.jobs.mark_payment_completed(job.job_id, intent).replayed
    sales.deliver()
    assert sales.triggers(job.job_id).count("payment_received") == 1
    sales.balances(job.job_id)


def test_a_payment_that_stripe_does_not_confirm_is_refused(sales: Sales) -> None:
    job = sales.order()
    unpaid = refused(sales.app.jobs.mark_payment_completed, job.job_id, "pi_invented")
    assert unpaid.field == "payment_intent_id" and "is not the payment of" in unpaid.problem
    other = sales.order()
    sales.pay(other)
    theirs = intent_of(sales, other)
    assert "is not the payment of" in refused(sales.app.jobs.mark_payment_completed, job.job_id, theirs).problem
    assert sales.job(job.job_id).status == "awaiting_payment"


def test_a_payment_under_way_is_not_completed(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job, delayed=True)
    intent = intent_of(sales, job)
    assert "is unpaid at Stripe" in refused(sales.app.jobs.mark_payment_completed, job.job_id, intent).problem


def test_a_payment_of_another_amount_is_refused_by_the_guard(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job, amount=49)
    intent = intent_of(sales, job)
    with pytest.raises(GuardRefused) as caught:
        sales.app.jobs.mark_payment_completed(job.job_id, intent)
    assert caught.value.guard == "payment_fits_the_sale"
    assert sales.job(job.job_id).paid_cents == 0


def test_linking_a_checkout_session_asks_stripe(sales: Sales) -> None:
    """Opened, and the answer was lost for good: somebody finds it at Stripe's pages."""
    job = sales.order()
    session_id = str(job.stripe_checkout_session_id)
    assert sales.app.jobs.update_checkout_session(job.job_id, session_id).replayed
    _forget_session(sales, job.job_id)
    applied = sales.app.jobs.update_checkout_session(job.job_id, session_id)
    assert (applied.trigger, applied.actor) == ("checkout_opened", "stripe")
    again = sales.job(job.job_id)
    assert (again.stripe_checkout_session_id, again.checkout_url) == (session_id, job.checkout_url)


def _forget_session(sales: Sales, job_id: str) -> None:
    table = sales.app.job_tables.jobs
    table.update(stripe_checkout_session_id=None, checkout_url=None).where(table.job_id == job_id).execute()


def test_a_session_that_is_not_the_jobs_is_refused(sales: Sales) -> None:
    job, other = sales.order(), sales.order()
    jobs = sales.app.jobs
    theirs = str(other.stripe_checkout_session_id)
    assert "is on record already" in refused(jobs.update_checkout_session, job.job_id, theirs).problem
    own = str(job.stripe_checkout_session_id)
    _forget_session(sales, job.job_id)
    assert "not a session of this job" in refused(jobs.update_checkout_session, job.job_id, theirs).problem
    with pytest.raises(ServiceRefused):
        jobs.update_checkout_session(job.job_id, "cs_test_invented")
    table = sales.app.job_tables.jobs
    table.update(amount_due_cents=51).where(table.job_id == job.job_id).execute()
    assert "another amount" in refused(jobs.update_checkout_session, job.job_id, own).problem
    assert sales.job(job.job_id).stripe_checkout_session_id is None


def test_no_session_is_linked_while_the_jobs_own_is_being_opened(sales: Sales) -> None:
    """Two open checkouts could both be paid."""
    sales.sandbox.stripe.faults.add({"path": "/v1/checkout/sessions"}, {"kind": "status", "status": 500})
    job = sales.order()
    assert job.stripe_checkout_session_id is None
    problem = refused(sales.app.jobs.update_checkout_session, job.job_id, "cs_test_1").problem
    assert "is being opened right now" in problem


# -- Cost Tracking: Financial Data ------------------------------------------------------------------------------


def test_cost_tracking(desk: Desk) -> None:
    """The seeds' cost structure, as it stands there."""
    job_id = desk.put("completed", amount_cost=Decimal("0.64"), credits_used=Decimal(16))
    costs = {
        "upsampler_cost": 0.64, "customer_price": 3.84, "credits_required": 16.0, "markup_percentage": 500
    }  # fmt: skip
    desk.app.jobs.update_cost_data(job_id, costs)
    assert profit(desk.job(job_id)) == Decimal("3.20")
    bill = {"upsampler_cost": Decimal("0.60")}
    applied = desk.app.jobs.update_cost_data(job_id, bill, actor=JANE, reason="the bill of May")
    assert (applied.trigger, applied.metadata) == (
        "correct_costs", {"before": {"amount_cost": "0.64"}, "after": {"amount_cost": "0.60"}}
    )  # fmt: skip
    job = desk.job(job_id)
    assert (job.amount_cost, job.credits_used, profit(job)) == (Decimal("0.60"), Decimal(16), Decimal("3.24"))
    assert (job.paid_cents, job.amount_due_cents, job.markup_percentage) == (384, 384, Decimal(500))


@pytest.mark.parametrize(
    ("costs", "field"),
    [
        ({"upsampler_cost": "much"}, "upsampler_cost"),
        ({"upsampler_cost": 0.6, "customer_price": 0.01}, "customer_price"),
        ({"upsampler_cost": 0.6, "markup_percentage": 0}, "markup_percentage"),
        ({"paid_cents": 0}, "paid_cents"),
    ],
)
def test_money_is_no_cost(desk: Desk, costs: dict[str, Any], field: str) -> None:
    job_id = desk.put("completed")
    assert refused(desk.app.jobs.update_cost_data, job_id, costs).field == field
    assert len(desk.app.jobs.history(job_id)) == 1


# -- Download Management: Token Generation ----------------------------------------------------------------------


def test_token_generation(sales: Sales) -> None:
    job = sales.completed()
    (old,) = [link for mail in sales.mails() for link in mail["links"] if "/download/" in link]
    token = sales.app.jobs.generate_download_token(job.job_id, actor=JANE, reason="she lost the mail")
    assert len(token) == 64 and token.isalnum() and not old.endswith(token)
    again = sales.job(job.job_id)
    assert again.token_generation == 2 and again.download_token != token
    sales.work()
    links = [link for mail in sales.mails() for link in mail["links"] if "/download/" in link]
    assert [link.endswith(token) for link in links] == [False, True]
    assert sales.triggers(job.job_id)[-2:] == ["renew_download", "notice_sent"]


@pytest.mark.parametrize("status", ["awaiting_payment", "pending", "processing", "failed", "abandoned"])
def test_no_token_for_what_is_not_delivered(desk: Desk, status: str) -> None:
    with pytest.raises(TransitionNotAllowed):
        desk.app.jobs.generate_download_token(desk.put(status))


def test_no_token_for_what_is_gone_or_was_refunded(desk: Desk) -> None:
    for columns, guard in (
        ({"upscaled_file_path": None}, "file_can_be_served"), ({"refunded_cents": 384}, "money_is_kept")
    ):  # fmt: skip
        with pytest.raises(GuardRefused) as caught:
            desk.app.jobs.generate_download_token(desk.put("completed", **columns))
        assert caught.value.guard == guard
