"""Upsampler's callbacks, early, late, twice or of another visit: one file, one mail. Called by pytest."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.jobs.model import Job
from tests.support.desks import at_once
from tests.support.sales import Sales


def open_ends(sales: Sales) -> dict[str, tuple[str, str]]:
    """Events that are neither applied nor ignored."""
    return {name: row for name, row in sales.event_rows().items() if row[0] not in ("applied", "ignored")}


def callback_three_times(sales: Sales, submission: dict[str, Any], **changes: Any) -> None:
    """The same callback, three times at once."""

    def deliver() -> Any:
        return sales.app.inbox.handle(sales.receive_callback(submission, **changes))

    outcomes = at_once(sales.app, *[deliver] * 3)
    assert not [one for one in outcomes if isinstance(one, BaseException)], outcomes


def assert_completed_once(sales: Sales, job_id: str) -> None:
    """One delivery, one file, one mail, and the money is kept."""
    triggers = sales.triggers(job_id)
    assert sales.job(job_id).status == "completed", triggers
    assert triggers.count("upscale_delivered") == triggers.count("complete") == 1
    assert len(sales.mails("Your upscaled image is ready")) == 1
    assert len(list(sales.app.storage.path("results").rglob("*.*"))) == 1
    assert sales.refunds(job_id) == []
    sales.balances(job_id)
    assert not open_ends(sales)


@pytest.mark.parametrize("when", ["early", "in time", "late"])
def test_a_callback_three_times_at_once(sales_everywhere: Sales, when: str) -> None:
    sales = sales_everywhere
    job = sales.sold()
    effect_id = sales.effect("submit_upscale").id
    if when == "early":

        def between(attempt: Any, real: Any) -> Any:
            outcome = real(attempt)
            callback_three_times(sales, sales.upscaled())
            assert sales.job(job.job_id).status == "pending"
            return outcome

        assert sales.performer("submit_upscale", between).perform(effect_id) == "done"
    else:
        sales.app.performer.perform(effect_id)
        sales.upscaled()
        if when == "late":
            sales.advance(seconds=30)
            sales.work()
            assert sales.job(job.job_id).status == "completed"
        callback_three_times(sales, sales.upscaled())
    sales.work()
    assert_completed_once(sales, job.job_id)
    assert len(sales.submissions()) == 1


def test_a_callback_and_a_poll_at_the_same_moment(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.processing()
    submission = sales.upscaled()
    sales.advance(seconds=30)
    poll = sales.effect("poll_upscale").id
    outcomes = at_once(
        sales.app,
        lambda: sales.app.performer.perform(poll),
        lambda: sales.app.inbox.handle(sales.receive_callback(submission)),
    )
    assert not [one for one in outcomes if isinstance(one, BaseException)], outcomes
    sales.work()
    assert_completed_once(sales, job.job_id)


def again(sales: Sales, job: Job) -> None:
    """An outage ends the first attempt; an admin sends the job on its way again."""
    sales.app.jobs.fire(job.job_id, "fail", actor="system", reason="", facts={"code": "outage"})
    sales.app.jobs.fire(job.job_id, "retry", actor="admin:jane", reason="the outage is over")


@pytest.mark.parametrize("submitted", [False, True])
def test_a_callback_of_an_earlier_visit_is_ignored(sales_everywhere: Sales, submitted: bool) -> None:
    sales = sales_everywhere
    job = sales.processing()
    first = sales.upscaled()
    again(sales, job)
    if submitted:
        sales.perform("submit_upscale")
    callback_three_times(sales, first)
    state, reason = sales.event_rows()[f"{first['id']}:SUCCESS"]
    assert (state, reason) == ("ignored", "it answers a submission of an earlier visit")
    assert sales.job(job.job_id).delivered_at is None
    if not submitted:
        sales.perform("submit_upscale")
    callback_three_times(sales, sales.upscaled())
    sales.work()
    assert_completed_once(sales, job.job_id)
    assert sales.job(job.job_id).upsampler_job_id == sales.submissions()[1]["id"] != first["id"]


def test_a_callback_that_waited_does_not_outlive_its_visit(sales: Sales) -> None:
    """Parked in one visit, woken in the next: it is not taken for the answer to the new submission."""
    job = sales.sold()
    sales.sandbox.upsampler.faults.add({"path": "/api/v1/precise-upscale"}, {"kind": "reset_after"})
    assert sales.perform("submit_upscale") == "to be retried"
    first = sales.upscaled()
    assert sales.call_back(first).state == "parked"
    again(sales, job)
    sales.work(hold=("submit_upscale",))
    assert sales.event_rows()[f"{first['id']}:SUCCESS"][0] == "ignored"
    sales.work()
    sales.call_back(sales.upscaled())
    sales.work()
    assert_completed_once(sales, job.job_id)
    assert len(sales.submissions()) == 2


@pytest.mark.parametrize("first", ["SUCCESS", "FAILED"])
def test_whatever_upsampler_says_second_changes_nothing(sales: Sales, first: str) -> None:
    job = sales.processing()
    submission = sales.upscaled()
    failed = {"status": "FAILED", "imageUrl": None, "error": "No GPU is free"}
    told = [{}, failed] if first == "SUCCESS" else [failed, {}]
    for changes in told:
        callback_three_times(sales, submission, **changes)
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert after.status == ("completed" if first == "SUCCESS" else "failed")
    assert after.refunded_cents == (0 if first == "SUCCESS" else 50)
    assert not open_ends(sales)


def test_of_two_submissions_the_one_that_fails_does_not_end_the_job(sales: Sales) -> None:
    job = sales.sold()
    sales.sandbox.upsampler.faults.add({"path": "/api/v1/precise-upscale"}, {"kind": "reset_after"})
    sales.perform("submit_upscale")
    sales.advance_to("submit_upscale")
    sales.perform("submit_upscale")
    lost, known = sales.upscaled(0), sales.upscaled(1)
    callback_three_times(sales, lost, status="FAILED", imageUrl=None, error="No GPU is free")
    assert sales.job(job.job_id).status == "processing"
    callback_three_times(sales, known)
    sales.work()
    assert_completed_once(sales, job.job_id)


@pytest.mark.parametrize("status", ["IN_QUEUE", "IN_PROGRESS"])
def test_news_of_progress_is_no_result(sales: Sales, status: str) -> None:
    job = sales.processing()
    event = sales.call_back(sales.upscaled(), status=status, imageUrl=None)
    assert (event.state, event.reason) == ("ignored", f"still {status}")
    assert sales.job(job.job_id).status == "processing"


def test_a_callback_for_nobody_is_ignored(sales: Sales) -> None:
    sales.processing()
    submission = {**sales.upscaled(), "webhook": "https://x.example/webhooks/upsampler/nobody/signature"}
    event = sales.call_back(submission)
    assert (event.state, event.reason) == ("ignored", "the submission it answers is not on record")


def test_nothing_is_due_for_ever_after_a_sale(sales: Sales) -> None:
    """When the link is over, nothing is left to do, and nothing waits for anybody."""
    job = sales.completed()
    sales.run_down(hours=25)
    assert sales.owed(job.job_id) == {}
    assert sales.due() == []
    sales.clock.advance(days=30)
    assert sales.due() == []
    assert sales.clock.now() - job.created_at > timedelta(days=31)
