"""Owns what waits for a person and may belong to no sale: a workflow that tells the admin once. Called by app.py.

An event that could not be applied for three days may be about a charge that nobody knows, so no job can owe the
notice. The alert does: it is raised in the commit that gives the event up, and is closed by a person, on record.
"""

from __future__ import annotations

from smi_workflow.engine.database import readable
from smi_workflow.engine.declaration import Move, State
from smi_workflow.engine.tables import EventRow
from smi_workflow.engine.unit import Unit
from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs import guards
from smi_workflow.jobs.model import Alert, AlertState
from smi_workflow.jobs.telling import TELL_ADMIN, what_happened

OPEN, CLOSED = AlertState

ALERT = Workflow(
    name="alert",
    model=Alert,
    key="alert_id",
    state_column="state",
    initial=OPEN,
    touched_column="updated_at",
    started_by="raised",
    states=(
        State(OPEN, "a person is needed", owes=(TELL_ADMIN.now(what_happened),)),
        State(CLOSED, "a person has seen to it"),
    ),
    moves=(Move("close", OPEN, CLOSED, (guards.reason_is_given,), by="admin"),),
)


def raise_for_event(unit: Unit, event: EventRow, reason: str) -> None:
    """Tell the admin of an event that needs a person; once, as its id names the alert."""
    job_id = event.subject_id if event.workflow == "job" else None
    text = f"{event.kind} of {event.provider} ({event.event_id}) could not be applied: {reason}"
    columns = {"alert_id": event.id, "job_id": job_id, "text": readable(text), "created_at": unit.now}
    unit.start("alert", columns, actor="system", reason=readable(text))
