"""Owns events: taken in once, translated later, settled in the commit of what they cause.

Called by web/, which receives, and workers/, which handle.

Law 10 lives here. None is dropped: what comes too early is parked, what can never apply is ignored, both with
the reason; what stays parked for three days needs a person.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import peewee

from smi_workflow.engine.database import Slot, Statement, read_stamp, readable, stamp
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.outbox import GRACE
from smi_workflow.engine.points import Point, reach
from smi_workflow.engine.tables import EventRow, EventState
from smi_workflow.engine.unit import EVENT_ACTOR, EVENT_QUEUE, Bell, Unit
from smi_workflow.errors import (
    EngineError,
    GuardRefused,
    InvalidInput,
    TransitionConflict,
    TransitionNotAllowed,
    UnknownState,
    UnknownSubject,
)

PATIENCE = timedelta(days=3)
RETRY_FIRST_SECONDS = 5.0
RETRY_MAX_SECONDS = 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fire:
    """An event means: fire this trigger. If it is refused, try `or_else`; if that is refused too, `otherwise`."""

    workflow: str
    key: str
    trigger: str
    actor: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    or_else: Fire | None = None
    otherwise: Literal["park", "ignore"] = "park"


@dataclass(frozen=True, slots=True)
class Park:
    """An event cannot be used yet; the subject, where it is known, wakes it on its next transition.

    `version` is the subject's as it was judged: if it has moved on since, the event is tried again at once.
    """

    reason: str
    workflow: str | None = None
    key: str | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Ignore:
    """An event can never apply, or means nothing to us."""

    reason: str


Reading = Fire | Park | Ignore
Translator = Callable[[EventRow], Reading]


@dataclass(frozen=True, slots=True)
class Told:
    """What became of an event, or would: the trigger that it fired, or the reason why it did not."""

    state: EventState
    reason: str
    workflow: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class DueEvent:
    """What the sweep needs to know of an event: how to ring for it."""

    id: str
    is_fresh: bool  # received a moment ago, and rung by whoever received it


@dataclass(frozen=True, slots=True)
class Received:
    """The receipt for an event."""

    id: str
    is_new: bool


class Inbox:
    """Takes events in, and applies them.

    Args:
        translators: provider → what its events mean. They read, but change nothing and call no provider.
        keep: what is kept of the payload of an event that is settled; all of it unless told.
        call_person: told, in the commit that gives an event up, that it needs a person, and why.
    """

    def __init__(
        self,
        engine: Engine,
        translators: Mapping[str, Translator],
        keep: Callable[[str], str] = str,
        call_person: Callable[[Unit, EventRow, str], object] = lambda unit, event, reason: None,
    ) -> None:
        self._engine = engine
        self._translators = translators
        self._keep = keep
        self._call_person = call_person
        self._table = table = engine.tables.events
        slots = {name: Slot(name) for name in ("id", "provider", "event_id", "kind", "payload")}
        new = table.insert({**slots, "due_at": Slot("now"), "received_at": Slot("now")}).on_conflict_ignore()
        self._insert = Statement(engine.database, new)
        same = (table.provider == Slot("provider")) & (table.event_id == Slot("event_id"))
        self._known = Statement(engine.database, table.select(table.id).where(same))

    def receive(self, provider: str, event_id: str, kind: str, payload: str) -> Received:
        """Keep an event, once however often it is delivered; one commit, then the bell.

        Args:
            event_id: the provider's name for it, unique with the provider.
            payload: JSON, already cut down to what translating needs.
        """

        def work(unit: Unit) -> Received:
            new_id = self._engine.chance.new_id()
            row = {
                "id": new_id, "provider": provider, "event_id": event_id, "kind": kind, "payload": payload,
                "now": stamp(unit.now),
            }  # fmt: skip
            # The last moment at which dying leaves nothing: the statement is its own commit.
            reach(Point.WORK_DONE)
            if self._insert.run(row).rowcount == 1:
                unit.bells.append(Bell(new_id, EVENT_ACTOR, EVENT_QUEUE))
                return Received(new_id, True)
            return Received(self._known.run(row).fetchone()[0], False)

        return self._engine.run(work, of_one_statement=True)

    def handle(self, inbox_id: str) -> EventState | None:
        """Apply one event, or park or ignore it; None when there is no such event.

        Safe to call any number of times, from any number of workers.
        """
        row = self._read(inbox_id)
        if row is None:
            log.warning("no event %s in the inbox", inbox_id)
            return None
        if row.state not in (EventState.RECEIVED, EventState.PARKED):
            return EventState(row.state)
        reach(Point.EVENT_READ)
        try:
            return self._apply_or_park(row)
        except _Settled:
            settled = self._read(inbox_id)
            return EventState(settled.state) if settled is not None else None

    def known(self, provider: str, event_ids: Collection[str]) -> set[str]:
        """Which of these have been taken in before; a page's worth of ids, not more."""
        table = self._table
        mine = (table.provider == provider) & table.event_id.in_(list(event_ids))
        return {row.event_id for row in table.select(table.event_id).where(mine)} if event_ids else set()

    def tell(self, inbox_id: str) -> Told:
        """Handle an event, and say what became of it; see `handle`."""
        row = self._read(inbox_id)
        assert row is not None
        meant = self._reading(row)
        state = self.handle(inbox_id)
        settled = self._read(inbox_id)
        assert state is not None
        assert settled is not None
        where = (meant.workflow, meant.key) if isinstance(meant, Fire | Park) else (None, None)
        return Told(state, settled.reason or "", *where)

    def rehearse(self, provider: str, event_id: str, kind: str, payload: str) -> Told:
        """What taking in such an event would come to. Changes nothing."""
        now = self._engine.clock.now()
        row = self._table(
            id="", provider=provider, event_id=event_id, kind=kind, payload=payload, received_at=now, due_at=now
        )
        reading = self._reading(row)
        if isinstance(reading, Ignore):
            return Told(EventState.IGNORED, reading.reason)
        if isinstance(reading, Park):
            return Told(EventState.PARKED, reading.reason, reading.workflow, reading.key)
        refusals = []
        step: Fire | None = reading
        last = reading
        while step is not None:
            try:
                self._engine.fire(
                    step.workflow, step.key, step.trigger, actor=step.actor, reason=step.reason, facts=step.facts,
                    dry_run=True,
                )  # fmt: skip
                return Told(EventState.APPLIED, step.trigger, step.workflow, step.key)
            except InvalidInput as problem:
                return Told(EventState.NEEDS_PERSON, str(problem), step.workflow, step.key)
            except (GuardRefused, TransitionNotAllowed, UnknownState, UnknownSubject) as refusal:
                refusals.append(str(refusal))
                last, step = step, step.or_else
        state = EventState.IGNORED if last.otherwise == "ignore" else EventState.PARKED
        return Told(state, "; ".join(refusals), last.workflow, last.key)

    def due(self, now: datetime, limit: int) -> list[DueEvent]:
        """Events that nobody has handled although they are due, oldest first."""
        table = self._table

        def build() -> Any:
            is_open = table.state.in_((EventState.RECEIVED.value, EventState.PARKED.value))
            is_due = is_open & (table.due_at <= Slot("now"))
            return (
                table.select(table.id, table.state, table.due_at).where(is_due).order_by(table.due_at).limit(limit)
            )

        cursor = self._engine.registry.statement(("due events", limit), build).run({"now": stamp(now)})
        found = []
        for event_id, state, due_at in cursor.fetchall():
            due = read_stamp(due_at)
            assert due is not None
            found.append(DueEvent(event_id, state == EventState.RECEIVED and now - due < GRACE))
        return found

    def _reading(self, row: EventRow) -> Reading:
        translator = self._translators.get(row.provider)
        if translator is None:
            # Only a release that reads its events takes a provider's in: they are for a worker of that one.
            return Park(f"this release reads no events of {row.provider}")
        try:
            return translator(row)
        except InvalidInput as error:
            return Ignore(f"cannot be read: {error}")

    def _apply_or_park(self, row: EventRow) -> EventState:
        try:
            return self._follow(row, self._reading(row))
        except (_Settled, TransitionConflict, peewee.OperationalError, peewee.InterfaceError):
            raise
        except Exception as fault:
            # A fault of ours: parked, it is tried again ever more rarely, and after three days a person looks.
            log.exception("event %s (%s of %s) cannot be applied", row.id, row.kind, row.provider)
            return self._park(row, Park(f"{type(fault).__name__}: {fault}"))

    def _follow(self, row: EventRow, reading: Reading) -> EventState:
        if isinstance(reading, Ignore):
            return self._close(row, EventState.IGNORED, reading.reason)
        if isinstance(reading, Park):
            try:
                return self._park(row, reading, reading.version)
            except UnknownSubject as unknown:
                return self._park(row, Park(f"{reading.reason}; {unknown}"))
        refusals = []
        seen: dict[tuple[str, str], int] = {}
        step: Fire | None = reading
        last = reading
        while step is not None:
            try:
                return self._apply(row, step, seen)
            except (GuardRefused, TransitionNotAllowed) as refusal:
                refusals.append(str(refusal))
                last, step = step, step.or_else
            except UnknownState as unknown:
                # A worker of the release that knows the state takes it from the queue, now or by time.
                return self._park(row, Park(str(unknown), step.workflow, step.key))
            except UnknownSubject as unknown:
                return self._park(row, Park(str(unknown)))
            except InvalidInput as problem:
                # It means something to us, but lacks what it must tell: nobody but a person can say what.
                return self._close(row, EventState.NEEDS_PERSON, f"'{step.trigger}' cannot be fired: {problem}")
        reason = "; ".join(refusals)
        if last.otherwise == "ignore":
            return self._close(row, EventState.IGNORED, reason)
        return self._park(row, Park(reason, last.workflow, last.key), seen.get((last.workflow, last.key)))

    def _apply(self, row: EventRow, step: Fire, seen: dict[tuple[str, str], int]) -> EventState:
        def work(unit: Unit) -> EventState:
            # The subject before the event: the order every other writer takes its locks in.
            seen[(step.workflow, step.key)] = unit.lock(step.workflow, step.key).version
            self._settle(unit, row, EventState.APPLIED, step.trigger)
            unit.fire(
                step.workflow, step.key, step.trigger, actor=step.actor, reason=step.reason, facts=step.facts
            )
            return EventState.APPLIED

        return self._engine.run(work, cause=f"event:{row.id}")

    def _close(self, row: EventRow, state: EventState, reason: str) -> EventState:
        def work(unit: Unit) -> EventState:
            if row.state == EventState.PARKED and row.workflow and row.subject_id:
                with suppress(UnknownSubject):
                    unit.lock(row.workflow, row.subject_id)
            self._settle(unit, row, state, reason)
            return state

        return self._engine.run(work)

    def _park(self, row: EventRow, park: Park, refused_at: int | None = None) -> EventState:
        def work(unit: Unit) -> EventState:
            moved = False
            if park.workflow and park.key:
                moved = refused_at not in (None, unit.lock(park.workflow, park.key).version)
            if unit.now - row.received_at >= PATIENCE:
                self._settle(unit, row, EventState.NEEDS_PERSON, park.reason)
                return EventState.NEEDS_PERSON
            delay = min(RETRY_MAX_SECONDS, RETRY_FIRST_SECONDS * 2**row.attempts)
            values = {
                "state": EventState.PARKED, "reason": park.reason, "workflow": park.workflow,
                "subject_id": park.key, "attempts": row.attempts + 1,
                "due_at": unit.now + timedelta(seconds=delay),
            }  # fmt: skip
            if moved:
                # The subject went on between the refusal and now: its transition could not wake us yet.
                values["due_at"] = unit.now
                unit.bells.append(Bell(row.id, EVENT_ACTOR, EVENT_QUEUE))
            self._move(row, values)
            if row.state == EventState.PARKED:
                _count(unit, row.workflow, row.subject_id, -1)
            _count(unit, park.workflow, park.key, +1)
            return EventState.PARKED

        return self._engine.run(work)

    def _settle(self, unit: Unit, row: EventRow, state: EventState, reason: str) -> None:
        kept = self._keep(row.payload)
        self._move(row, {"state": state, "reason": reason, "settled_at": unit.now, "payload": kept})
        reach(Point.EVENT_SETTLED)
        if state == EventState.NEEDS_PERSON:
            log.error("event %s (%s of %s) needs a person: %s", row.id, row.kind, row.provider, reason)
            self._call_person(unit, row, reason)
        if row.state == EventState.PARKED:
            _count(unit, row.workflow, row.subject_id, -1)

    def _move(self, row: EventRow, values: Mapping[str, object]) -> None:
        """Compare-and-set on what was read: whoever comes second changes nothing at all."""
        table = self._table
        fields = table._meta.fields
        written = {name: fields[name].db_value(value) for name, value in values.items()}
        written["reason"] = readable(str(values["reason"]))
        names = tuple(sorted(written))

        def build() -> Any:
            unchanged = (table.state == Slot("state_read")) & (table.attempts == Slot("attempts_read"))
            return table.update({name: Slot(name) for name in names}).where((table.id == Slot("id")) & unchanged)

        read = {"id": row.id, "state_read": row.state, "attempts_read": row.attempts}
        if self._engine.registry.statement(("move event", names), build).run({**written, **read}).rowcount != 1:
            raise _Settled

    def _read(self, inbox_id: str) -> EventRow | None:
        table = self._table
        return self._engine.registry.first(
            "event", table, lambda: table.select().where(table.id == Slot("id")), {"id": inbox_id}
        )


def _count(unit: Unit, workflow: str | None, key: str | None, change: int) -> None:
    """Keep the subject's number of parked events, so that a transition looks for them only when there are some."""
    if workflow is None or key is None:
        return
    flow = unit.registry.workflow(workflow)
    model = unit.registry.bound(flow.model)
    try:
        row = unit.lock(workflow, key)
    except UnknownSubject:
        return
    row.parked_events += change
    model.update(parked_events=row.parked_events).where(getattr(model, flow.key) == key).execute()


class _Settled(EngineError):
    """Another worker was first; not an error, and never seen outside."""
