"""Owns cases for guards and delays: one row, some facts, no database. Called by the unit tests of jobs."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from smi_workflow.engine.declaration import Case, Facts, UnitOfWork
from smi_workflow.jobs.model import Job, Refund
from tests.support.desks import job_columns, usual

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICY = SimpleNamespace(
    payment_timeout_hours=24.0, delayed_payment_days=14.0, pending_timeout_hours=24.0, poll_seconds=30.0,
    processing_timeout_minutes=15.0, refund_delay_minutes=30.0, download_expiry_hours=24.0,
    unexpected_payment="refund", secret_keys=(b"k" * 32,),
)  # fmt: skip


def job_case(
    status: str = "pending",
    facts: dict[str, Any] | None = None,
    trigger: str = "",
    reason: str = "",
    **columns: Any,
) -> Case[Job]:
    """A job in this state, as usual but for these columns."""
    row = Job(**{**job_columns("job-1"), **usual(status, NOW), **columns, "status": status})
    return _case(row, status, facts, trigger, reason)


def refund_case(state: str = "requested", facts: dict[str, Any] | None = None, **columns: Any) -> Case[Refund]:
    """A refund of 100 cents in this state."""
    given = {"refund_id": "r1", "job_id": "job-1", "payment_intent_id": "pi", "cents": 100, "currency": "usd",
             "created_at": NOW}
    return _case(Refund(**{**given, **columns, "state": state}), state, facts, "", "")


def _case(row: Any, state: str, facts: dict[str, Any] | None, trigger: str, reason: str) -> Case[Any]:
    nobody = cast("UnitOfWork", None)
    return Case(
        row=row, state=state, trigger=trigger, facts=Facts(facts), now=NOW, actor="system", reason=reason,
        unit=nobody, policy=POLICY,
    )  # fmt: skip
