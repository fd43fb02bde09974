"""An overlapping deploy with real processes: workers of two releases on the same queues, and a roll-back."""

from __future__ import annotations

from pathlib import Path

from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.model import Job, JobStatus
from tests.support.later_shop import HELD, LATER_JOB, REVIEWING, migrate_to_later
from tests.support.stack import Stack, running_stack

SIZE = (60, 40)
LATER = "dramatiq tests.support.later_actors --processes 1 --threads 4 --queues events payments notices upscales"


def is_delivered(job: Job) -> bool:
    """Stored, and the mail is out."""
    return job.status == JobStatus.COMPLETED and job.email_sent


def prints(stack: Stack, job_id: str) -> set[str]:
    """Under which definitions a job lived."""
    return {row.fingerprint for row in stack.app.jobs.history(job_id)}


def check_nothing_is_lost(stack: Stack, job_ids: list[str]) -> None:
    """Every effect and event ended well, and no sale took a step twice."""
    effects, events = stack.app.tables.effects, stack.app.tables.events
    assert not [(row.name, row.last_error) for row in effects.select().where(effects.state == "failed")]
    assert not [(row.kind, row.reason) for row in events.select().where(events.state == "needs_person")]
    for job_id in job_ids:
        triggers = stack.triggers(job_id)
        assert triggers.count("payment_received") == triggers.count("complete") == 1
        assert [row.sequence for row in stack.app.jobs.history(job_id)] == list(range(1, len(triggers) + 1))


def test_workers_of_two_releases_share_the_work(tmp_path: Path) -> None:
    with running_stack(tmp_path, start=False) as (stack, site):
        migrate_to_later(stack.app, tmp_path)
        stack.commands["later"] = LATER
        stack.start()
        job_ids = [stack.order(f"{site.url}/photo.png", SIZE) for _ in range(6)]
        for job_id in job_ids:
            stack.pay(job_id)
        for job_id in job_ids:
            stack.wait_for(job_id, is_delivered, "the delivery")
        check_nothing_is_lost(stack, job_ids)
        both = {print_ for job_id in job_ids for print_ in prints(stack, job_id)}
        assert both == {JOB.fingerprint, LATER_JOB.fingerprint}


def test_a_sale_outlives_a_roll_back_and_the_next_deploy(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    with running_stack(tmp_path, start=False) as (stack, site):
        migrate_to_later(stack.app, tmp_path)
        stack.environment[HELD] = str(held)
        stack.commands["later"] = LATER
        stack.start("web", "downloads", "urgent", "relay", "later")
        job_id = stack.order(f"{site.url}/photo.png", SIZE)
        stack.pay(job_id)
        stack.wait_for(job_id, lambda job: job.status == REVIEWING, "the later release's state")

        stack.kill("later")
        stack.start("slow")
        # The earlier release's worker gets the bells of an effect that it has no actor for.
        log = tmp_path / "slow.log"
        stack.wait(lambda: "review_result" in log.read_text(), "the earlier release to be rung for a review")
        other = stack.order(f"{site.url}/photo.png", SIZE)
        stack.pay(other)
        stack.wait_for(other, is_delivered, "the delivery of an ordinary sale meanwhile")
        assert stack.app.jobs.get_job(job_id).status == REVIEWING
        effects = stack.app.tables.effects
        owed = effects.get((effects.subject_id == job_id) & (effects.name == "review_result"))
        # The killed worker may have been in the middle of one.
        assert owed.state in ("due", "claimed") and owed.attempts <= 1

        held.unlink()
        stack.start("later")
        stack.wait_for(job_id, is_delivered, "the delivery after the next deploy")
        check_nothing_is_lost(stack, [job_id, other])
        assert prints(stack, other) == {JOB.fingerprint}
