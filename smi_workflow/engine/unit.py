"""Owns one database transaction of the engine: locks, starts and fires subjects inside it. Called by fire.py.

Law 1 lives here: guards, the row, its history, the effects owed, other subjects and whatever caused it all
are written through one Unit, committed together or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from peewee import Model

from smi_workflow.engine.database import Slot, readable, stamp
from smi_workflow.engine.declaration import Case, Facts, MissingFact
from smi_workflow.engine.outbox import Outbox
from smi_workflow.engine.points import Point, reach
from smi_workflow.engine.registry import Registry
from smi_workflow.engine.tables import EventState, Subject
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import (
    EngineError,
    GuardRefused,
    InvalidInput,
    StaleState,
    TransitionConflict,
    TransitionNotAllowed,
    UnknownState,
    UnknownSubject,
    UnknownTrigger,
)

M = TypeVar("M", bound=Model)

EVENT_ACTOR = "handle_event"
EVENT_QUEUE = "events"
WORD_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Bell:
    """What to ring once the commit stands."""

    message_id: str
    actor_name: str
    queue: str


@dataclass(frozen=True, slots=True)
class OwedEffect:
    """An effect that a transition wrote to the queue."""

    id: str
    name: str
    queue: str
    due_at: datetime
    is_timer: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """One applied trigger, as history keeps it."""

    workflow: str
    subject_id: str
    trigger: str
    sequence: int
    from_state: str
    to_state: str
    actor: str
    reason: str
    at: datetime
    metadata: Mapping[str, object] = field(default_factory=dict)
    owed: tuple[OwedEffect, ...] = ()
    hook: str | None = None
    replayed: bool = False


class Unit:
    """One open transaction. What it has locked, it keeps; what it owes is rung after the commit."""

    def __init__(self, registry: Registry, outbox: Outbox, now: datetime) -> None:
        self.registry = registry
        self.outbox = outbox
        self.now = now
        self.bells: list[Bell] = []
        self.applied: list[Applied] = []
        self.cause: str | None = None
        self._rows: dict[tuple[str, str], Any] = {}
        self._moving: dict[tuple[str, str], str] = {}

    def new_id(self) -> str:
        """A fresh id from the engine's source, for a new subject."""
        return self.registry.chance.new_id()

    def bound(self, model: type[M]) -> type[M]:
        """The declared model, bound to this transaction's database."""
        return self.registry.bound(model)

    def lock(self, workflow: str, key: str) -> Any:
        """Take the row's lock, its parent's first, and return the row as it is now.

        Raises:
            UnknownSubject: no such row.
        """
        held = self._rows.get((workflow, key))
        if held is not None:
            return held
        flow = self.registry.workflow(workflow)
        if flow.parent is not None:
            unlocked = self.registry.read(flow, key)
            if unlocked is None:
                raise UnknownSubject(workflow, key)
            # A row never changes its parent, so what was read without a lock stays true.
            self.lock(flow.parent.workflow, getattr(unlocked, flow.parent.column))
        row = self.registry.read(flow, key, lock=True)
        if row is None:
            raise UnknownSubject(workflow, key)
        self._rows[(workflow, key)] = row
        return row

    def start(self, workflow: str, columns: Mapping[str, object], *, actor: str, reason: str = "") -> Any:
        """Create a subject in its first state, with history and the effects of that state.

        Returns: the new row.
        """
        _check_words(actor=actor)
        flow = self.registry.workflow(workflow)
        if flow.parent is not None:
            self.lock(flow.parent.workflow, str(columns[flow.parent.column]))
        model = self.registry.bound(flow.model)
        stamps = {flow.touched_column: self.now} if flow.touched_column is not None else {}
        row = model(**{**stamps, **columns, flow.state_column: flow.initial, "version": 1, "visit": 1})
        self.registry.insert(row)
        reach(Point.ROW_WRITTEN)
        key = str(getattr(row, flow.key))
        self._rows[(workflow, key)] = row
        case = self._case(flow, row, flow.started_by, {}, actor, reason)
        case.hook = flow.start_hook
        case.owe((*flow.state(flow.initial).owes, *flow.owed_by(None)))
        self._write_history(
            flow, case, key, sequence=1, from_state="", to_state=flow.initial, idempotency_key=None
        )
        reach(Point.HISTORY_WRITTEN)
        owed = self._owe(flow, case, key, visit=1, sequence=1)
        reach(Point.EFFECTS_OWED)
        self._note(flow, case, key, 1, "", flow.initial, owed)
        return row

    def fire(
        self,
        workflow: str,
        key: str,
        trigger: str,
        *,
        actor: str,
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
        expected_state: str | None = None,
        idempotency_key: str | None = None,
    ) -> Applied:
        """Apply one trigger to one subject inside this transaction.

        Raises:
            UnknownSubject, UnknownTrigger, TransitionNotAllowed, StaleState, GuardRefused: refused, nothing done.
            UnknownState: another release put it where this one knows nothing; leave it to that release.
            TransitionConflict: the row moved although we hold its lock (another writer that takes none).
        """
        _check_words(actor=actor, idempotency_key=idempotency_key or "")
        flow = self.registry.workflow(workflow)
        row = self.lock(workflow, key)
        state = str(getattr(row, flow.state_column))
        if idempotency_key is not None:
            earlier = self._earlier(flow, key, trigger, idempotency_key)
            if earlier is not None:
                return earlier
        if expected_state is not None and expected_state != state:
            raise StaleState(workflow, key, expected_state, state)
        if not flow.knows(state):
            raise UnknownState(workflow, key, state)
        allowed = flow.allowed(state)
        if trigger not in allowed:
            kind = TransitionNotAllowed if trigger in flow.triggers() else UnknownTrigger
            raise kind(workflow, key, state, trigger, allowed)
        if (workflow, key) in self._moving:
            during = self._moving[(workflow, key)]
            raise EngineError(f"{workflow} {key} is in the middle of '{during}': its changes cannot fire it")
        flow.check_facts(facts or {})
        self._moving[(workflow, key)] = trigger
        case = self._case(flow, row, trigger, facts or {}, actor, reason)
        try:
            self._execute(flow, case, key)
            return self._write(flow, case, key, state, idempotency_key)
        finally:
            del self._moving[(workflow, key)]

    def wake_strays(self, name: str) -> None:
        """Try again the events that name this and were parked while nobody knew whose they are."""
        events = self.registry.tables.events
        self._try_again(
            (events.state == EventState.PARKED) & events.subject_id.is_null() & events.payload.contains(name)
        )

    # -- the steps of fire, in order ----------------------------------------------------------------------------

    def _execute(self, flow: Workflow, case: Case[Any], key: str) -> None:
        try:
            done = flow.machine.events[case.trigger].trigger(case)
        except MissingFact as missing:
            raise InvalidInput(
                missing.name, f"'{case.trigger}' needs this fact, and it was not given"
            ) from missing
        if done:
            return
        if case.refusals:
            guard, why = case.refusals[0]
            raise GuardRefused(flow.name, key, case.state, case.trigger, guard, why)
        raise TransitionNotAllowed(flow.name, key, case.state, case.trigger, flow.allowed(case.state))

    def _write(
        self, flow: Workflow, case: Case[Any], key: str, from_state: str, idempotency_key: str | None
    ) -> Applied:
        move = case.move
        assert move is not None
        moved = move.to is not None
        version, old_visit = case.row.version, case.row.visit
        sequence = version + 1
        visit = sequence if moved else old_visit
        case.set(version=sequence, visit=visit, **{flow.state_column: case.state})
        if flow.touched_column is not None:
            case.set(**{flow.touched_column: self.now})
        self._update(flow, case, key, version)
        reach(Point.ROW_WRITTEN)
        self._write_history(flow, case, key, sequence, from_state, case.state, idempotency_key)
        reach(Point.HISTORY_WRITTEN)
        if moved and flow.sets_timers(from_state):
            self.outbox.cancel_timers(flow.name, key, old_visit, self.now)
        for effect in move.cancels:
            self.outbox.cancel(flow.name, key, old_visit, effect.name, self.now)
        reach(Point.TIMERS_CANCELLED)
        owed = self._owe(flow, case, key, visit, sequence)
        reach(Point.EFFECTS_OWED)
        if case.row.parked_events:
            self._wake_parked(flow.name, key)
        return self._note(flow, case, key, sequence, from_state, case.state, owed)

    def _update(self, flow: Workflow, case: Case[Any], key: str, version: int) -> None:
        model = self.registry.bound(flow.model)
        names = tuple(sorted(case.changes))

        def build() -> Any:
            values = {name: Slot(name) for name in names}
            matches = (getattr(model, flow.key) == Slot("key")) & (model.version == Slot("version_read"))
            return model.update(values).where(matches)

        fields = model._meta.fields
        values: dict[str, object] = {name: fields[name].db_value(case.changes[name]) for name in names}
        values |= {"key": key, "version_read": version}
        cursor = self.registry.statement(("update", flow.name, names), build).run(values)
        if cursor.rowcount != 1:
            raise TransitionConflict(f"{flow.name} {key} is no longer at version {version}")

    def _write_history(
        self,
        flow: Workflow,
        case: Case[Any],
        key: str,
        sequence: int,
        from_state: str,
        to_state: str,
        idempotency_key: str | None,
    ) -> None:
        table = self.registry.tables.transitions
        values: dict[str, object] = {
            "workflow": flow.name,
            "subject_id": key,
            "sequence": sequence,
            "trigger": case.trigger,
            "from_state": from_state,
            "to_state": to_state,
            "actor": case.actor,
            "reason": case.reason,
            "metadata": to_json(case.metadata) if case.metadata else "{}",
            "fingerprint": flow.fingerprint,
            "idempotency_key": idempotency_key,
            "caused_by": self.cause,
            "created_at": stamp(self.now),
        }
        self.registry.statement("history", lambda: table.insert({name: Slot(name) for name in values})).run(values)

    def _owe(self, flow: Workflow, case: Case[Any], key: str, visit: int, sequence: int) -> tuple[OwedEffect, ...]:
        owed = []
        for item in case.owed:
            delay = item.after(case) if item.after is not None else None
            due_at = self.now + delay if delay is not None else self.now
            owed += [
                (item, to_json(inputs), due_at, self.registry.chance.new_id()) for inputs in item.inputs_of(case)
            ]
        self.outbox.insert(flow.name, key, visit, sequence, owed, self.now)
        for item, _, due_at, effect_id in owed:
            if due_at <= self.now:
                self.bells.append(Bell(effect_id, item.effect.name, item.effect.queue))
        return tuple(
            OwedEffect(effect_id, item.effect.name, item.effect.queue, due_at, item.is_timer)
            for item, _, due_at, effect_id in owed
        )

    def _wake_parked(self, workflow: str, key: str) -> None:
        """Events that came too early are tried again on each transition of their subject."""
        events = self.registry.tables.events
        parked = (events.workflow == workflow) & (events.subject_id == key) & (events.state == EventState.PARKED)
        self._try_again(parked)

    def _try_again(self, parked: Any) -> None:
        events = self.registry.tables.events
        ids = [row.id for row in events.select(events.id).where(parked)]
        if ids:
            events.update(due_at=self.now).where(events.id.in_(ids)).execute()
            self.bells += [Bell(event_id, EVENT_ACTOR, EVENT_QUEUE) for event_id in ids]

    # -- small parts ----------------------------------------------------------------------------------------------

    def _case(
        self, flow: Workflow, row: Subject, trigger: str, facts: Mapping[str, Any], actor: str, reason: str
    ) -> Case[Any]:
        return Case(
            row=row,
            state=str(getattr(row, flow.state_column)),
            trigger=trigger,
            facts=Facts(facts),
            now=self.now,
            actor=actor,
            reason=readable(reason),
            unit=self,
            policy=self.registry.policy,
        )

    def _earlier(self, flow: Workflow, key: str, trigger: str, idempotency_key: str) -> Applied | None:
        table = self.registry.tables.transitions
        row = (
            table.select()
            .where(
                (table.workflow == flow.name)
                & (table.subject_id == key)
                & (table.idempotency_key == idempotency_key)
            )
            .first()
        )
        if row is None:
            return None
        if row.trigger != trigger:
            raise InvalidInput("idempotency_key", f"was used for '{row.trigger}', not for '{trigger}'")
        return Applied(
            flow.name, key, row.trigger, row.sequence, row.from_state, row.to_state, row.actor, row.reason,
            row.created_at, json.loads(row.metadata), replayed=True,
        )  # fmt: skip

    def _note(
        self,
        flow: Workflow,
        case: Case[Any],
        key: str,
        sequence: int,
        from_state: str,
        to_state: str,
        owed: tuple[OwedEffect, ...],
    ) -> Applied:
        applied = Applied(
            flow.name, key, case.trigger, sequence, from_state, to_state, case.actor, case.reason,
            self.now, dict(case.metadata), owed, case.hook,
        )  # fmt: skip
        self.applied.append(applied)
        return applied


def _check_words(**words: str) -> None:
    """What history names its rows by must fit its columns as it is; each database would treat it its own way."""
    for name, word in words.items():
        if len(word) > WORD_LENGTH or readable(word) != word:
            raise InvalidInput(name, f"must be at most {WORD_LENGTH} readable characters")


def to_json(value: Mapping[str, object]) -> str:
    """Write metadata and inputs the same way each time: sorted keys, no spaces, no floats for money."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
