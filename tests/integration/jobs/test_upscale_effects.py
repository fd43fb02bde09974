"""What is asked of Upsampler, and the fetching of results: lost, late, twice, or nonsense. Called by pytest."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smi_workflow.jobs.lifecycle import SUBMIT_UPSCALE
from tests.support.sales import Providers, Sales, open_sales

SUBMIT = {"method": "POST", "path": "/api/v1/precise-upscale"}
RESULTS = {"method": "GET", "path": "/results/"}
STATUS = {"method": "GET", "path": "/api/v1/status/"}

NO_CREDIT = {"status": 402, "body": {"error": "Insufficient credit balance"}}


def break_upsampler(sales: Sales, match: dict[str, Any], kind: str, times: int | None = 1, **fields: Any) -> None:
    """Tell the imitated Upsampler what to do wrong."""
    sales.sandbox.upsampler.faults.add(match, {"kind": kind, **fields}, times=times)


def refunded(sales: Sales, job_id: str) -> None:
    """Assert that all the money went back, once."""
    sales.deliver()
    sales.balances(job_id)
    job = sales.job(job_id)
    assert (job.status, job.refunded_cents, job.refunding_cents) == ("failed", 50, 0)
    assert len(sales.ledger()["refunds"]) == 1


def test_what_is_submitted(sales: Sales) -> None:
    job = sales.processing()
    (submission,) = sales.submissions()
    assert (submission["factor"], submission["source_size"]) == (4, (20, 10))
    assert submission["source_url"].startswith(f"{sales.site.url}/source/{job.job_id}/")
    assert job.upsampler_job_id == submission["id"]
    assert job.submit_effect_id == sales.effect("submit_upscale").id
    assert job.submit_effect_id in submission["webhook"]


# -- submitting --


@pytest.mark.parametrize(
    ("kind", "fields", "most"),
    [
        ("hang", {"seconds": 0.1}, 2),
        ("reset_after", {}, 2),
        ("reset", {}, 1),
        ("garbage", {}, 2),
        ("status", {"status": 503}, 1),
        ("status", {"status": 429}, 1),
    ],
)
def test_a_submission_of_unknown_outcome_costs_at_most_one_more(
    sales: Sales, kind: str, fields: dict[str, Any], most: int
) -> None:
    job = sales.sold()
    break_upsampler(sales, SUBMIT, kind, **fields)
    assert sales.perform("submit_upscale") == "to be retried"
    assert sales.job(job.job_id).status == "pending"
    sales.advance_to("submit_upscale")
    assert sales.perform("submit_upscale") == "done"
    assert 1 <= len(sales.submissions()) <= most
    # Whichever is first is taken, the other one changes nothing.
    states = [sales.call_back(sales.upscaled(index)).state for index in range(len(sales.submissions()))]
    assert states == ["applied", "ignored"][: len(states)]
    sales.work()
    assert sales.job(job.job_id).status == "completed"
    assert sales.triggers(job.job_id).count("complete") == 1
    sales.balances(job.job_id)


def test_a_callback_that_waits_saves_the_second_submission(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.sold()
    break_upsampler(sales, SUBMIT, "reset_after")
    assert sales.perform("submit_upscale") == "to be retried"
    event = sales.call_back(sales.upscaled())
    assert (event.state, event.reason) == ("parked", "its submission is not on record yet")
    sales.advance_to("submit_upscale")
    sales.work()
    assert len(sales.submissions()) == 1
    assert sales.job(job.job_id).status == "completed"
    assert sales.job(job.job_id).upsampler_job_id == sales.submissions()[0]["id"]
    sales.balances(job.job_id)


def test_the_last_attempt_of_unknown_outcome_is_looked_up(sales: Sales) -> None:
    job = sales.sold()
    all_but_one = SUBMIT_UPSCALE.attempts - 1
    break_upsampler(sales, SUBMIT, "status", times=all_but_one, status=503)
    for _ in range(all_but_one):
        sales.advance_to("submit_upscale")
        sales.work()
    break_upsampler(sales, SUBMIT, "reset_after")

    def later(attempt: Any, real: Any) -> Any:
        try:
            return real(attempt)
        finally:
            sales.call_back(sales.upscaled())

    sales.advance_to("submit_upscale")
    assert sales.performer("submit_upscale", later).perform(sales.effect("submit_upscale").id) == "done"
    sales.work()
    assert sales.job(job.job_id).status == "completed"


def test_a_worker_that_dies_after_submitting(sales: Sales) -> None:
    job = sales.sold()
    assert sales.perform_late("submit_upscale") == "came back too late"
    assert sales.triggers(job.job_id).count("upscale_started") == 1
    for index in range(2):
        sales.call_back(sales.upscaled(index))
    sales.work()
    assert sales.job(job.job_id).status == "completed"
    assert sales.triggers(job.job_id).count("upscale_delivered") == 1


@pytest.mark.parametrize(
    ("match", "kind", "fields", "code", "final"),
    [
        (SUBMIT, "status", NO_CREDIT, "insufficient_credit", False),
        (SUBMIT, "status", {"status": 401}, "unauthorized", False),
        ({"result": True}, "fail_at_submit", {"text": "Unsupported image"}, "upsampler_failed", True),
    ],
)
def test_a_refused_submission_fails_the_job(
    sales: Sales, match: dict[str, Any], kind: str, fields: dict[str, Any], code: str, final: bool
) -> None:
    job = sales.sold()
    break_upsampler(sales, match, kind, **fields)
    sales.work()
    after = sales.job(job.job_id)
    assert (after.status, after.failure_code) == ("failed", code)
    if not final:
        # The shop's own trouble: an admin has time to mend it and retry.
        assert sales.owed(job.job_id)["refund_due"] == timedelta(minutes=30)
        sales.advance(minutes=30)
    sales.work()
    refunded(sales, job.job_id)


def test_an_upscale_that_may_not_start_any_more(sales: Sales) -> None:
    """Submitted, and meanwhile a refund was asked for: nobody gets the goods and the money."""
    job = sales.sold()

    def meanwhile(attempt: Any, real: Any) -> Any:
        outcome = real(attempt)
        sales.app.jobs.fire(job.job_id, "refund", actor="admin:jane", reason="asked", facts={"amount_cents": 10})
        return outcome

    performed = sales.performer("submit_upscale", meanwhile).perform(sales.effect("submit_upscale").id)
    assert performed == "failed"
    assert sales.job(job.job_id).failure_code == "no_refund_is_under_way"
    sales.run_down(minutes=31)
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == 50


def test_a_paid_job_that_upsampler_never_takes_is_refunded(sales: Sales) -> None:
    job = sales.sold()
    sales.advance(hours=24)
    sales.work(hold=("submit_upscale",))
    assert sales.job(job.job_id).failure_code == "pending_timeout"
    assert sales.perform("submit_upscale") == "skipped"
    assert sales.submissions() == []
    sales.advance(minutes=30)
    sales.work()
    refunded(sales, job.job_id)


# -- asking --


def test_asking_grows_rarer_until_the_deadline_gives_up(sales: Sales) -> None:
    sales.sandbox.upsampler.faults.add({"result": True}, {"kind": "never"})
    job = sales.processing()
    waits = []
    while sales.job(job.job_id).status == "processing":
        owed = sales.owed(job.job_id)
        waits.append(owed["poll_upscale"].total_seconds())
        sales.advance(seconds=min(wait.total_seconds() for wait in owed.values()))
        sales.work()
    assert waits[:6] == [30, 45, 67.5, 101.25, 151.875, 227.8125]
    assert max(waits) <= 300
    after = sales.job(job.job_id)
    assert (after.status, after.failure_code) == ("failed", "upsampler_timeout")
    assert after.failed_at and after.processing_started_at
    assert after.failed_at - after.processing_started_at == timedelta(minutes=15)
    last = sales.app.jobs.history(job.job_id)[-1]
    assert last.reason == "Upsampler was still IN_PROGRESS after 15 minutes"
    sales.advance(minutes=30)
    sales.work()
    refunded(sales, job.job_id)
    assert len(sales.mails("could not upscale")) == len(sales.mails("job fail")) == 1


@pytest.mark.parametrize("asker", ["poll_upscale", "upscale_deadline"])
def test_a_result_whose_callback_is_lost_is_asked_for(sales: Sales, asker: str) -> None:
    job = sales.processing()
    sales.upscaled()
    sales.advance_to(asker)
    other = {"poll_upscale": "upscale_deadline", "upscale_deadline": "poll_upscale"}[asker]
    sales.work(hold=(other,))
    assert sales.job(job.job_id).status == "completed"
    # The callback comes after all.
    assert sales.call_back(sales.upscaled()).state == "ignored"
    sales.balances(job.job_id)


def test_a_delivery_ends_the_asking_and_gives_the_fetching_its_own_time(sales: Sales) -> None:
    job = sales.processing()
    submission = sales.upscaled()
    sales.advance(minutes=14)
    sales.call_back(submission)
    assert sales.owed(job.job_id) == {"fetch_result": timedelta(0), "fetch_deadline": timedelta(minutes=15)}
    sales.run_down(minutes=10, hold=("fetch_result",))
    assert sales.job(job.job_id).status == "processing"
    sales.run_down(minutes=5, hold=("fetch_result",))
    assert sales.job(job.job_id).failure_code == "fetch_timeout"


def test_an_upscale_that_fails_is_refunded_at_once(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    sales.sandbox.upsampler.faults.add({"result": True}, {"kind": "fail", "text": "No GPU is free"})
    job = sales.processing()
    assert sales.call_back(sales.upscaled()).state == "applied"
    sales.work()
    refunded(sales, job.job_id)
    failed = next(row for row in sales.app.jobs.history(job.job_id) if row.trigger == "fail")
    assert (failed.actor, failed.reason) == ("upsampler", "No GPU is free")
    assert sales.job(job.job_id).failure_code == "upsampler_failed"


def test_a_job_that_an_admin_put_here_without_a_submission_ends_as_well(sales: Sales) -> None:
    job = sales.sold()
    facts = {"target": "processing"}
    sales.app.jobs.fire(job.job_id, "override", actor="admin:jane", reason="by mistake", facts=facts)
    sales.run_down(minutes=15)
    assert sales.job(job.job_id).failure_code == "never_submitted"
    sales.run_down(minutes=31)
    refunded(sales, job.job_id)


def test_a_submission_that_upsampler_forgets_fails_at_the_deadline(sales: Sales) -> None:
    job = sales.processing()
    break_upsampler(sales, STATUS, "status", times=None, status=404)
    sales.run_down(minutes=15)
    after = sales.job(job.job_id)
    assert (after.status, after.failure_code) == ("failed", "not_found")
    sales.run_down(minutes=31)
    refunded(sales, job.job_id)


def test_no_answer_at_the_deadline_is_asked_for_again(sales: Sales) -> None:
    job = sales.processing()
    sales.upscaled()
    sales.advance(minutes=15)
    break_upsampler(sales, STATUS, "status", times=2, status=503)
    sales.work(hold=("poll_upscale",))
    assert sales.job(job.job_id).status == "processing"
    sales.advance_to("upscale_deadline")
    sales.work(hold=("poll_upscale",))
    sales.advance_to("upscale_deadline")
    sales.work(hold=("poll_upscale",))
    assert sales.job(job.job_id).status == "completed"


@pytest.fixture
def choosy(sqlite_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop that takes results from Upsampler's own hosts only, which the sandbox is not."""
    with open_sales(sqlite_url, tmp_path, providers, result_hosts=("*.upsampler.com",)) as opened:
        yield opened


def test_a_result_from_nowhere_ends_the_job(choosy: Sales) -> None:
    sales = choosy
    job = sales.processing()
    event = sales.call_back(sales.upscaled())
    assert event.state == "ignored"
    assert "cannot be fetched" in (event.reason or "")
    sales.run_down(minutes=16)
    after = sales.job(job.job_id)
    assert (after.status, after.failure_code) == ("failed", "result_url_is_allowed")
    sales.run_down(minutes=31)
    refunded(sales, job.job_id)


# -- fetching --


@pytest.mark.parametrize("kind", ["wrong_dimensions", "not_an_image", "truncated"])
def test_a_result_that_is_not_what_was_sold_is_refunded_at_once(sales: Sales, kind: str) -> None:
    sales.sandbox.upsampler.faults.add({"result": True}, {"kind": kind})
    job = sales.processing()
    sales.call_back(sales.upscaled())
    sales.work()
    assert sales.job(job.job_id).failure_code == {"truncated": "not_an_image"}.get(kind, kind)
    assert sales.job(job.job_id).upscaled_file_path is None
    refunded(sales, job.job_id)


def test_what_is_stored_is_the_image_that_was_sold(sales: Sales) -> None:
    job = sales.completed()
    assert job.upscaled_file_path is not None
    with Image.open(io.BytesIO(sales.app.storage.path(job.upscaled_file_path).read_bytes())) as image:
        assert image.size == job.expected_size == (80, 40)
    done = next(row for row in sales.app.jobs.history(job.job_id) if row.trigger == "complete")
    assert f'"file_name":"{job.upscaled_file_path}"' in done.metadata


def test_a_result_that_is_late_to_come_is_fetched_again(sales: Sales) -> None:
    job = sales.processing()
    break_upsampler(sales, RESULTS, "status", times=3, status=503)
    sales.call_back(sales.upscaled())
    sales.run_down(minutes=2)
    assert sales.job(job.job_id).status == "completed"
    assert sales.effect("fetch_result").attempts == 4


@pytest.mark.parametrize("fault", ["gone", "away"])
def test_a_result_that_never_comes_fails_the_job(sales: Sales, fault: str) -> None:
    job = sales.processing()
    submission = sales.upscaled()
    if fault == "gone":
        sales.sandbox.upsampler.clock.advance(4 * 3600)
    else:
        break_upsampler(sales, RESULTS, "status", times=None, status=503)
    sales.call_back(submission)
    sales.run_down(minutes=16)
    after = sales.job(job.job_id)
    assert after.status == "failed"
    assert after.failure_code == ("forbidden" if fault == "gone" else "http_5xx")
    sales.run_down(minutes=31)
    refunded(sales, job.job_id)


def test_a_worker_that_dies_after_storing_is_not_asked_to_fetch_again(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.processing()
    sales.call_back(sales.upscaled())
    sales.perform_and_die("fetch_result")
    assert sales.job(job.job_id).status == "processing"
    break_upsampler(sales, RESULTS, "status", times=None, status=410)
    sales.work()
    assert sales.job(job.job_id).status == "completed"
    assert [rule["taken"] for rule in sales.sandbox.upsampler.faults.listing()] == [0]
    assert len(list((sales.app.storage.path("results")).rglob("*.png"))) == 1


def test_a_worker_that_comes_back_late_with_a_file_changes_nothing(sales: Sales) -> None:
    job = sales.processing()
    sales.call_back(sales.upscaled())
    assert sales.perform_late("fetch_result") == "came back too late"
    assert sales.triggers(job.job_id).count("complete") == 1
    assert len(list((sales.app.storage.path("results")).rglob("*.png"))) == 1


def test_a_file_that_is_stored_after_the_job_ended_is_not_delivered(sales: Sales) -> None:
    job = sales.processing()
    sales.call_back(sales.upscaled())

    def meanwhile(attempt: Any, real: Any) -> Any:
        outcome = real(attempt)
        sales.app.jobs.mark_failed(job.job_id, "upsampler_failed")
        return outcome

    assert sales.performer("fetch_result", meanwhile).perform(sales.effect("fetch_result").id) == "skipped"
    sales.work()
    refunded(sales, job.job_id)
    assert "complete" not in sales.triggers(job.job_id)


def test_a_refund_meanwhile_keeps_the_file_from_being_delivered(sales: Sales) -> None:
    job = sales.processing()
    sales.call_back(sales.upscaled())
    sales.app.jobs.fire(job.job_id, "refund", actor="admin:jane", reason="asked")
    sales.work()
    refunded(sales, job.job_id)
