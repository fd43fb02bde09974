"""Hooks in the process: one signal for each transition that has one, after the commit, whatever listeners do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.app import hooks
from smi_workflow.engine.unit import Applied
from smi_workflow.errors import GuardRefused
from tests.support.desks import Desk, open_desk
from tests.support.sales import Sales

NAMES = ("smi_job_created", "smi_payment_completed", "smi_job_completed", "smi_job_failed")
PAYMENT: dict[str, Any] = {
    "session_id": "cs_1", "amount_cents": 1, "currency": "usd", "livemode": False, "email": None,
    "payment_intent_id": "pi_9",
}  # fmt: skip
FILE: dict[str, Any] = {
    "file_name": "results/new.png", "width": 80, "height": 40, "format": "PNG", "size_bytes": 9, "sha256": "0",
}  # fmt: skip


@pytest.fixture
def counter(sqlite_url: str, tmp_path: Path) -> Iterator[Desk]:
    """Rows and triggers without providers, on SQLite."""
    with open_desk(sqlite_url, tmp_path) as opened:
        yield opened


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str, int]]]:
    """Every signal sent: its name, the job, the transition."""
    found: list[tuple[str, str, int]] = []
    with ExitStack() as stack:
        for name in NAMES:

            def listen(sender: Applied, job_id: str, name: str = name) -> None:
                assert sender.hook == name
                found.append((name, job_id, sender.sequence))

            stack.enter_context(hooks.signal(name).connected_to(listen))
        yield found


def test_a_sale_is_told_as_it_goes(sales: Sales, heard: list[tuple[str, str, int]]) -> None:
    job = sales.completed()
    sales.deliver()
    sales.work()
    numbers = {row.trigger: row.sequence for row in sales.app.jobs.history(job.job_id)}
    assert heard == [
        ("smi_job_created", job.job_id, 1),
        ("smi_payment_completed", job.job_id, numbers["payment_received"]),
        ("smi_job_completed", job.job_id, numbers["complete"]),
    ]


FAILURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "the work fails": ("processing", "fail", {"code": "outage"}),
    "it fails before it began": ("pending", "fail", {"code": "outage"}),
    "a bank debit fails": ("awaiting_payment", "payment_failed", {"code": "delayed_payment_failed"}),
    "an admin refunds it in mid-work": ("processing", "refund", {}),
    "Stripe refunds it in mid-work": (
        "processing", "refund_settled", {"amount_cents": 384, "is_ours": True, "role": "sale"}),
    "the bank withdraws the money in mid-work": (
        "pending", "dispute_opened", {"dispute_id": "dp", "withdrawn_cents": 384}),
}  # fmt: skip


@pytest.mark.parametrize(("status", "trigger", "facts"), FAILURES.values(), ids=list(FAILURES))
def test_each_way_to_fail_is_told_once(
    counter: Desk, heard: list[tuple[str, str, int]], status: str, trigger: str, facts: dict[str, Any]
) -> None:
    desk = counter
    job_id = desk.put(status, refunding_cents=384 if trigger == "refund_settled" else 0)
    heard.clear()
    actor = "admin:jane" if trigger == "refund" else "system"
    applied = desk.fire(job_id, trigger, actor, "a test", **facts)
    assert applied.to_state == "failed"
    assert heard == [("smi_job_failed", job_id, applied.sequence)]


def test_what_stays_or_is_overridden_tells_nobody(counter: Desk, heard: list[tuple[str, str, int]]) -> None:
    """A refund of what was delivered is no failure; who overrides tells whom it concerns."""
    desk = counter
    job_id = desk.put("completed")
    heard.clear()
    desk.fire(job_id, "refund", "admin:jane", "the buyer asked")
    desk.fire(job_id, "override", "admin:jane", "by phone", target="failed", effects=True)
    desk.fire(job_id, "retry", "admin:jane", "a gift", override=True)
    assert heard == []


def test_what_was_only_tried_or_refused_tells_nobody(
    counter: Desk, heard: list[tuple[str, str, int]]
) -> None:
    desk = counter
    waiting, working = desk.put("awaiting_payment"), desk.put("processing")
    heard.clear()
    desk.app.jobs.fire(working, "fail", actor="admin:jane", facts={"code": "outage"}, dry_run=True)
    with pytest.raises(GuardRefused):
        desk.fire(waiting, "payment_received", **PAYMENT)
    with pytest.raises(GuardRefused):
        desk.fire(working, "complete", **{**FILE, "width": 1})
    assert heard == []


def test_the_same_request_twice_is_told_once(counter: Desk, heard: list[tuple[str, str, int]]) -> None:
    job_id = counter.put("processing")
    heard.clear()
    for _ in range(2):
        counter.app.jobs.fire(
            job_id, "fail", actor="admin:jane", facts={"code": "outage"}, idempotency_key="once"
        )
    assert len(heard) == 1


def test_it_is_committed_when_it_is_told(desk: Desk) -> None:
    """A listener that looks, in whatever process, finds what it was told of."""
    job_id = desk.put("processing")
    seen: list[tuple[int, str]] = []

    def look(sender: Applied, job_id: str) -> None:
        seen.append((desk.app.database.transaction_depth(), desk.job(job_id).status))

    with hooks.signal("smi_job_failed").connected_to(look):
        desk.fire(job_id, "fail", code="outage")
    assert seen == [(0, "failed")]


def test_a_listener_that_raises_keeps_it_from_no_other(
    counter: Desk, heard: list[tuple[str, str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever is asked first: what it raises is logged, the others hear of it, and the job goes on."""
    job_id = counter.put("processing")
    heard.clear()

    def break_down(sender: Applied, job_id: str) -> None:
        raise ZeroDivisionError("a listener's own fault")

    def break_as_well(sender: Applied, job_id: str) -> None:
        raise ZeroDivisionError("another one's")

    signal = hooks.signal("smi_job_failed")
    with signal.connected_to(break_down), signal.connected_to(break_as_well), caplog.at_level(logging.ERROR):
        counter.fire(job_id, "fail", code="outage")
    assert len(heard) == 1
    assert caplog.text.count("a receiver of smi_job_failed failed on job") == 2
    assert counter.job(job_id).status == "failed"
    assert "tell_admin" in counter.owed(job_id)
