"""Owns what is told to whom: the notice to the admin, and what a notice says. Called by the lifecycles."""

from __future__ import annotations

from typing import Any

from smi_workflow.engine.declaration import Case, Effect

TELL_ADMIN = Effect(
    "tell_admin", queue="notices", harmless="the same stands in the history", survives=True, attempts=150
)


def what_happened(case: Case[Any]) -> dict[str, object]:
    """What the admin is told, frozen as it was: no personal data, so that it may lie in the queue."""
    return {"trigger": case.trigger, "state": case.state, "reason": case.reason, "actor": case.actor}


def money_to_return(case: Case[Any]) -> dict[str, object]:
    """What the buyer is told, frozen as it failed: what was paid, and how much of it is still to go back."""
    job = case.row
    return {"paid_cents": job.paid_cents, "amount_cents": job.refundable_cents + job.refunding_cents}
