"""Owns what lies in a state of the model beside rows: effects that are owed, events, and the log of one step.

Called by model.py and its siblings.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from smi_workflow.engine.attempt import Outcome
from smi_workflow.engine.declaration import Effect
from smi_workflow.errors import ServiceRefused

DUE, CLAIMED, KEPT = "due", "claimed", "kept"


class OpenEffect(NamedTuple):
    """An effect that is owed; `kept` ones are settled, and only remembered by their id."""

    id: str
    effect: Effect
    workflow: str
    subject_id: str
    visit: int
    is_timer: bool
    deadline: bool
    inputs: str
    due_at: datetime
    owed_at: datetime
    first_attempt_at: datetime | None = None
    doubts: bool = False
    waits: bool = False
    state: str = DUE
    outcome: Outcome | ServiceRefused | None = None


class Event(NamedTuple):
    """Something a provider has told, or is about to: nobody knows when it is handled."""

    provider: str
    id: str
    kind: str
    payload: str
    copies: int = 1
    state: str = "received"
    workflow: str | None = None
    subject_id: str | None = None


class Applied(NamedTuple):
    """One applied trigger."""

    workflow: str
    subject_id: str
    trigger: str
    from_state: str
    to_state: str
    actor: str
    owed: tuple[str, ...]


class Settled(NamedTuple):
    """What became of an effect, an event, or of something that should not have happened."""

    what: str
    how: str
    broken: bool = False
