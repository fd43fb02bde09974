"""Owns the product's own verdict in a chaos run: its invariants over the final database. Called by run.py."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

from smi_workflow.app import App
from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariants
from smi_workflow.jobs.invariants import SALE_INVARIANTS
from smi_workflow.settings import Settings
from tests.chaos.admin import ShiftedClock


def violations(settings: Settings, ahead: timedelta) -> list[str]:
    """What the invariants find in a system that has come to rest, in the time that its processes live in."""
    with closing(App(settings, ring=lambda *bell: None, clock=ShiftedClock(ahead))) as app:
        judges = Invariants(
            app.engine, [*ENGINE_INVARIANTS, *SALE_INVARIANTS], exists=app.storage.exists, at_rest=True
        )
        return [
            f"{found.invariant}: {found.workflow} {found.subject_id}: {found.text}"
            for found in judges.everywhere()
        ]
