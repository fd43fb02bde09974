"""The Procfile's processes, killed with -9: a sale survives the death of any of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from email import message_from_bytes
from email.policy import default as default_policy
from pathlib import Path

import psutil
import requests

from smi_workflow.jobs.model import Job, JobStatus
from tests.support.stack import Stack, running_stack

SIZE = (60, 40)


def is_delivered(job: Job) -> bool:
    """Stored, and the mail is out."""
    return job.status == JobStatus.COMPLETED and job.email_sent


def check_delivered_once(stack: Stack, job_id: str, submissions_at_most: int) -> None:
    """The promises about a delivered job, checked against the providers' own books."""
    job = stack.wait_for(job_id, is_delivered, "the delivery")
    triggers = stack.triggers(job_id)
    assert triggers.count("payment_received") == 1
    assert triggers.count("complete") == 1
    assert [row.sequence for row in stack.app.jobs.history(job_id)] == list(range(1, len(triggers) + 1))
    submissions = [s for s in stack.ledger("upsampler")["submissions"] if job_id in s["source_url"]]
    assert 1 <= len(submissions) <= submissions_at_most
    links = {
        link
        for mail in stack.ledger("mail_http")["mails"]
        if mail["subject"].startswith("Your upscaled image is ready") and job_id in _text_of(Path(mail["path"]))
        for link in mail["links"]
    }
    assert len(links) == 1, f"the mails disagree about the link: {links}"
    answer = requests.get(links.pop(), timeout=30)
    stored = stack.app.storage.path(str(job.upscaled_file_path)).read_bytes()
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(stored).digest()


def test_one_sale_and_nothing_left_running(tmp_path: Path) -> None:
    with running_stack(tmp_path) as (stack, site):
        job_id = stack.order(f"{site.url}/photo.png", SIZE)
        stack.pay(job_id)
        check_delivered_once(stack, job_id, submissions_at_most=1)
        pids = [process.pid for process in stack.running.values()]
        families = [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    stack.wait(
        lambda: not [pid for pid in (*pids, *families) if psutil.pid_exists(pid) and not _is_zombie(pid)],
        "every process to be gone",
    )
    stack.wait(lambda: not _users_of(tmp_path), "the embedded broker to be gone")


def test_worker_killed_between_submit_and_result(tmp_path: Path) -> None:
    with running_stack(tmp_path, sandbox={"upsampler_work_seconds": 2.0}) as (stack, site):
        job_id = stack.order(f"{site.url}/photo.png", SIZE)
        stack.pay(job_id)
        stack.wait_for(job_id, lambda job: job.status == JobStatus.PROCESSING, "the submission")
        stack.kill("slow")
        stack.start("slow")
        check_delivered_once(stack, job_id, submissions_at_most=1)


def test_worker_killed_while_the_submission_is_unanswered(tmp_path: Path) -> None:
    """The submission got through, its answer did not, and the worker died waiting for it."""
    with running_stack(tmp_path) as (stack, site):
        stack.sandbox.upsampler.faults.add({"path": "/api/v1/precise-upscale"}, {"kind": "hang"}, times=1)
        job_id = stack.order(f"{site.url}/photo.png", SIZE)
        stack.pay(job_id)
        stack.wait(lambda: bool(stack.ledger("upsampler")["submissions"]), "the submission to arrive")
        stack.kill("slow")
        stack.start("slow")
        check_delivered_once(stack, job_id, submissions_at_most=2)
        effects = stack.app.tables.effects
        submit = effects.get((effects.subject_id == job_id) & (effects.name == "submit_upscale"))
        assert submit.attempts == 2, "the attempt that died was not on record"


def test_a_worker_told_to_stop_finishes_what_it_does(tmp_path: Path) -> None:
    """SIGTERM, to the whole group as process managers send it: the call that is out is waited for and settled."""
    with running_stack(tmp_path, SMI_LEASE_SECONDS="600") as (stack, site):
        stack.sandbox.upsampler.faults.add(
            {"path": "/api/v1/precise-upscale"}, {"kind": "slow", "seconds": 3}, times=1
        )
        job_id = stack.order(f"{site.url}/photo.png", SIZE)
        stack.pay(job_id)
        stack.wait(lambda: bool(stack.ledger("upsampler")["submissions"]), "the submission to arrive")
        worker = stack.running.pop("slow")
        os.killpg(worker.pid, signal.SIGTERM)
        assert worker.wait(30) == 0
        assert stack.triggers(job_id)[-1] in ("upscale_started", "upscale_delivered")
        stack.start("slow")
        check_delivered_once(stack, job_id, submissions_at_most=1)


def test_relay_killed(tmp_path: Path) -> None:
    """Without a relay, messages still ring; with one again, what only it can ring is rung."""
    with running_stack(tmp_path, sandbox={"upsampler_work_seconds": 0.5}) as (stack, site):
        first = stack.order(f"{site.url}/photo.png", SIZE)
        stack.kill("relay")
        stack.pay(first)
        check_delivered_once(stack, first, submissions_at_most=1)
        second = stack.order(f"{site.url}/photo.png", SIZE)
        stack.sandbox.upsampler.faults.add({"webhook": "*"}, {"kind": "lost"}, times=None)
        stack.pay(second)
        stack.wait_for(second, lambda job: job.status == JobStatus.PROCESSING, "the submission")
        stack.start("relay")
        # Only a poll can find the result now, and polls are timers: the relay's to ring.
        check_delivered_once(stack, second, submissions_at_most=1)


def test_embedded_broker_killed_and_restarted_empty(tmp_path: Path) -> None:
    """The message waits in the broker, which dies and comes back without it."""
    with running_stack(tmp_path) as (stack, site):
        stack.kill("slow")
        job_id = stack.order(f"{site.url}/photo.png", SIZE)
        stack.pay(job_id)
        stack.wait_for(job_id, lambda job: job.status == JobStatus.PENDING, "the payment")
        (server,) = _servers_of(tmp_path)
        for file in (tmp_path / "var" / "broker").glob("appendonly*"):
            shutil.rmtree(file)
        server.kill()
        stack.wait(
            lambda: [each.pid for each in _servers_of(tmp_path)] not in ([], [server.pid]), "another server"
        )
        stack.start("slow")
        check_delivered_once(stack, job_id, submissions_at_most=1)


def test_refund_when_upscaling_fails_for_good(tmp_path: Path) -> None:
    """The other half of the promise, through the real processes: the money goes back, once."""
    with running_stack(tmp_path, SMI_REFUND_DELAY_MINUTES="0.01") as (stack, site):
        stack.sandbox.upsampler.faults.add({"result": True}, {"kind": "fail"}, times=None)
        job_id = stack.order(f"{site.url}/photo.png", SIZE)
        stack.pay(job_id)
        job = stack.wait_for(job_id, lambda job: job.refunded_cents > 0, "the refund")
        assert (job.status, job.refunded_cents, job.refunding_cents) == ("failed", job.paid_cents, 0)
        assert [refund["amount"] for refund in stack.ledger("stripe")["refunds"]] == [job.paid_cents]


def _text_of(path: Path) -> str:
    message = message_from_bytes(path.read_bytes(), policy=default_policy)
    body = message.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


def _servers_of(folder: Path) -> list[psutil.Process]:
    """The embedded broker's server processes of one stack."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if "valkey" in process.info["name"] and process.cwd().startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _users_of(folder: Path) -> list[str]:
    """Command lines of whatever still works in a stack's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if any(str(folder) in word for word in process.info["cmdline"] or ()) or process.cwd().startswith(
                str(folder)
            ):
                found.append(" ".join(process.info["cmdline"]))
        except psutil.Error:
            continue
    return found


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
