"""Owns the engine's own tables: history, effects, inbox, audit. Called by the engine.

Models are declared without a database; `Tables` binds them to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from peewee import BigAutoField, BooleanField, CharField, Database, IntegerField, Model

from smi_workflow.engine.database import LongTextField, UtcDateTimeField, bind

ID_LENGTH = 64


class EffectState(StrEnum):
    """Where an effect stands. The last four are settled: nothing runs it again but an operator."""

    DUE = "due"
    CLAIMED = "claimed"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class EventState(StrEnum):
    """Where an event stands."""

    RECEIVED = "received"
    PARKED = "parked"
    APPLIED = "applied"
    IGNORED = "ignored"
    NEEDS_PERSON = "needs_person"


class Subject(Model):
    """What every governed row has beside its own columns; its key and state columns are named by the workflow."""

    version = IntegerField(default=0, help_text="Sequence of the last transition; 0 before the first.")
    visit = IntegerField(default=0, help_text="Sequence of the transition that entered the present state.")
    parked_events = IntegerField(default=0, help_text="Events that wait for a later state of this row.")


class Transition(Model):
    """History: one applied trigger. Rows are only ever added."""

    id = BigAutoField()
    workflow = CharField(32)
    subject_id = CharField(ID_LENGTH)
    sequence = IntegerField()
    trigger = CharField(64)
    from_state = CharField(32)
    to_state = CharField(32)
    actor = CharField(100)
    reason = LongTextField(default="")
    metadata = LongTextField(default="{}")
    fingerprint = CharField(16)
    idempotency_key = CharField(100, null=True)
    caused_by = CharField(80, null=True, help_text="effect:<id> or event:<id> whose outcome fired it.")
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_transitions"
        indexes = (
            (("workflow", "subject_id", "sequence"), True),
            (("workflow", "subject_id", "idempotency_key"), True),
        )


class EffectRow(Model):
    """The durable queue: one side effect owed because of a transition, or one timer."""

    id = CharField(32, primary_key=True)
    workflow = CharField(32)
    subject_id = CharField(ID_LENGTH)
    visit = IntegerField(help_text="The stay in a state that it is owed to.")
    sequence = IntegerField(help_text="The transition that owed it.")
    name = CharField(64)
    queue = CharField(32)
    is_timer = BooleanField(default=False)
    survives = BooleanField(default=False, help_text="True: still owed when the visit is over.")
    inputs = LongTextField(default="{}", help_text="Parameters of the call, frozen when it was owed.")
    state = CharField(16, default=EffectState.DUE)
    due_at = UtcDateTimeField()
    attempts = IntegerField(default=0, help_text="Counted before the call goes out.")
    attempts_max = IntegerField()
    doubts = IntegerField(default=0, help_text="Attempts that nobody knows the outcome of.")
    waits = IntegerField(default=0, help_text="Times it asked to be run again without failing.")
    lease_token = CharField(40, null=True)
    lease_until = UtcDateTimeField(null=True)
    first_attempt_at = UtcDateTimeField(null=True)
    last_error = LongTextField(null=True)
    outcome = LongTextField(null=True)
    created_at = UtcDateTimeField()
    settled_at = UtcDateTimeField(null=True)

    class Meta:
        table_name = "smi_effects"
        indexes = (
            (("workflow", "subject_id", "visit"), False),
            (("state", "queue", "due_at"), False),
            (("state", "lease_until"), False),
        )


class EventRow(Model):
    """The inbox: something a provider told us, taken in once."""

    id = CharField(32, primary_key=True)
    provider = CharField(32)
    event_id = CharField(150)
    kind = CharField(100)
    payload = LongTextField()
    workflow = CharField(32, null=True)
    subject_id = CharField(ID_LENGTH, null=True)
    state = CharField(16, default=EventState.RECEIVED)
    reason = LongTextField(null=True)
    attempts = IntegerField(default=0)
    due_at = UtcDateTimeField()
    received_at = UtcDateTimeField()
    settled_at = UtcDateTimeField(null=True)

    class Meta:
        table_name = "smi_inbox"
        indexes = (
            (("provider", "event_id"), True),
            (("state", "due_at"), False),
            (("workflow", "subject_id", "state"), False),
        )


class AuditRow(Model):
    """What people and processes did to the machinery itself: queues, effects, events, late results."""

    id = BigAutoField()
    actor = CharField(100)
    act = CharField(64)
    target = CharField(100)
    reason = LongTextField(default="")
    details = LongTextField(default="{}")
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_audit"
        indexes = ((("target",), False), (("created_at",), False))


ENGINE_MODELS: tuple[type[Model], ...] = (Transition, EffectRow, EventRow, AuditRow)


@dataclass(frozen=True, slots=True)
class Tables:
    """The engine's tables, bound to one database."""

    transitions: type[Transition]
    effects: type[EffectRow]
    events: type[EventRow]
    audit: type[AuditRow]

    @classmethod
    def bound_to(cls, database: Database, prefix: str) -> Self:
        """Bind all of them."""
        return cls(
            transitions=bind(Transition, database, prefix),
            effects=bind(EffectRow, database, prefix),
            events=bind(EventRow, database, prefix),
            audit=bind(AuditRow, database, prefix),
        )

    def all(self) -> tuple[type[Model], ...]:
        """Every bound model, for creating tables."""
        return (self.transitions, self.effects, self.events, self.audit)
