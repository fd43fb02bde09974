"""Owns the notice to the admin, which both workflows owe. Called by lifecycle.py and refunds.py."""

from __future__ import annotations

from typing import Any

from smi_workflow.engine.declaration import Case, Effect

TELL_ADMIN = Effect(
    "tell_admin", queue="notices", harmless="the same stands in the history", survives=True, attempts=150
)


def what_happened(case: Case[Any]) -> dict[str, object]:
    """What the admin is told, frozen as it was: no personal data, so that it may lie in the queue."""
    return {"trigger": case.trigger, "state": case.state, "reason": case.reason, "actor": case.actor}
