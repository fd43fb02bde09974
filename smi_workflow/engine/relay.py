"""Owns the sweep that rings whatever is due and nobody works on. Called by workers/relay.py.

It decides nothing: it reads ids and rings. Any number of relays may run; none may run for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Inbox
from smi_workflow.engine.points import Point, reach
from smi_workflow.engine.unit import EVENT_ACTOR, EVENT_QUEUE, Bell

PAGE = 500
AGAIN_MAX = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class _Rung:
    """When an id was rung last, and how long that ring is given."""

    at: datetime
    given: timedelta


class Relay:
    """Sweeps the database, and rings.

    Args:
        again: how long a ring is given to have its effect before the next one for the same id; doubled each
            time, up to five minutes, so that a broker does not fill up while nobody listens.
    """

    def __init__(self, engine: Engine, inbox: Inbox, again: timedelta) -> None:
        self._engine = engine
        self._inbox = inbox
        self._again = again
        self._rung: dict[str, _Rung] = {}
        effects = [effect for flow in engine.workflows.values() for effect in flow.effects().values()]
        self._queues = sorted({effect.queue for effect in effects})

    def sweep(self) -> int:
        """Ring everything that is due and was not rung of late; returns how many."""
        now = self._engine.clock.now()
        bells = [*self._due_effects(now), *self._due_events(now)]
        reach(Point.SWEPT)
        # Only what is still due is remembered: the rest has been worked on.
        due = {bell.message_id for bell in bells}
        self._rung = {message_id: rung for message_id, rung in self._rung.items() if message_id in due}
        fresh = [bell for bell in bells if self._is_time(bell, now)]
        for bell in fresh:
            self._engine.ring(bell)
            earlier = self._rung.get(bell.message_id)
            given = self._again if earlier is None else min(max(AGAIN_MAX, self._again), earlier.given * 2)
            self._rung[bell.message_id] = _Rung(now, given)
            reach(Point.RUNG)
        return len(fresh)

    def _is_time(self, bell: Bell, now: datetime) -> bool:
        earlier = self._rung.get(bell.message_id)
        return earlier is None or now - earlier.at >= earlier.given

    def _due_effects(self, now: datetime) -> Iterable[Bell]:
        outbox = self._engine.outbox
        for queue in self._queues:
            yield from (
                Bell(due.id, due.name, due.queue) for due in outbox.due(queue, now, PAGE) if not due.is_fresh
            )
        yield from (Bell(due.id, due.name, due.queue) for due in outbox.lapsed(now, PAGE))

    def _due_events(self, now: datetime) -> Iterable[Bell]:
        due = self._inbox.due(now, PAGE)
        return (Bell(event.id, EVENT_ACTOR, EVENT_QUEUE) for event in due if not event.is_fresh)
