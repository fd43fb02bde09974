"""Owns a reconciliation: asks for what we missed, lets the inbox take it in, and reports. Called by periodic.py.

It writes no row of a sale: whatever it finds is an event, applied, parked or ignored as any other, and taken in
once however many runs find it. A run is cut into slices; where one has come to stands in the schedule's row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

import peewee

from smi_workflow.effects.missed import EVENTS_KEPT, QUESTIONS, Asker, Found, Step
from smi_workflow.effects.world import Arrivals, World
from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.engine.inbox import Received, Told
from smi_workflow.engine.tables import EventState
from smi_workflow.errors import ServiceUnavailable, TransitionConflict, UnknownSubject

# Clocks differ, and Stripe lists an event a little after it has happened.
OVERLAP = timedelta(hours=1)
ASKED_AGAIN = timedelta(days=3)
SLOW_DOWN = timedelta(seconds=5)
LINES_MAX = 200
BUSY_MAX = 3

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What one question came to, in numbers.

    Attributes:
        asked: objects and events that a provider told us of.
        found: those that were news to us.
        repaired, ignored, parked, for_person: what became of these.
        left: news that workers will apply: the row was held by somebody.
        unanswered: objects that could not be told; the next run asks again.
    """

    asked: int = 0
    found: int = 0
    repaired: int = 0
    ignored: int = 0
    parked: int = 0
    for_person: int = 0
    left: int = 0
    unanswered: int = 0


_COUNTED = {
    EventState.APPLIED: "repaired", EventState.IGNORED: "ignored", EventState.PARKED: "parked",
    EventState.NEEDS_PERSON: "for_person", EventState.RECEIVED: "left",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was found, and what became of it."""

    question: str
    event: str
    kind: str
    became: str
    reason: str
    workflow: str | None
    key: str | None


@dataclass(slots=True)
class Run:
    """One reconciliation, and how far it has come.

    Attributes:
        since: what happened before then is known.
        question, cursor: where to go on.
    """

    began: datetime
    since: datetime
    question: str = ""
    cursor: str = ""
    is_over: bool = False
    tallies: dict[str, Tally] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    more_lines: int = 0

    def as_json(self) -> dict[str, Any]:
        """All of it, for a row or a script."""
        return {**asdict(self), "began": self.began.isoformat(), "since": self.since.isoformat()}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        return cls(**{
            **told,
            "began": datetime.fromisoformat(told["began"]), "since": datetime.fromisoformat(told["since"]),
            "tallies": {name: Tally(**tally) for name, tally in told["tallies"].items()},
            "lines": [Line(**line) for line in told["lines"]],
        })  # fmt: skip

    @property
    def told_until(self) -> datetime:
        """Until when everything is known: what could not be told is asked of again, for a few days."""
        if not self.total().unanswered:
            return self.began
        return max(self.since + OVERLAP, self.began - ASKED_AGAIN)

    def total(self) -> Tally:
        """All questions together."""
        summed = Tally()
        for tally in self.tallies.values():
            for name, count in asdict(tally).items():
                setattr(summed, name, getattr(summed, name) + count)
        return summed

    def summary(self) -> str:
        """In one line."""
        told = {name: count for name, count in asdict(self.total()).items() if count}
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in told.items()) or "nothing to ask"


class Reconciler:
    """Takes a run further.

    Args:
        dry: say what would happen, and change nothing.
        lines_max: how many findings are told one by one.
    """

    def __init__(self, world: World, *, dry: bool = False, lines_max: int = LINES_MAX) -> None:
        self._world = world
        self._arrivals: Arrivals = world.arrivals
        self._dry = dry
        self._lines_max = lines_max
        # What a dry run has told: nothing is taken in, so that later questions find it again.
        self._rehearsed: set[tuple[str, str]] = set()

    def begin(self, memory: str | None, since: datetime | None = None) -> Run:
        """A new run: since then, or since the last finished run began, or since Stripe remembers."""
        now = self._world.clock.now()
        if since is None:
            told_until = json.loads(memory)["told_until"] if memory else None
            since = datetime.fromisoformat(told_until) - OVERLAP if told_until else now - EVENTS_KEPT
        return Run(now, min(since, now))

    def remembered(self) -> str | None:
        """What the last finished run has left."""
        try:
            memory: str | None = self._world.engine.read("schedule", "reconcile").memory
        except UnknownSubject:
            return None
        return memory

    def go_on(
        self, run: Run, *, is_time_up: Callable[[], bool] = bool, on_step: Callable[[Run], object] = bool
    ) -> bool:
        """Ask on where the run stands; True when everything has been asked.

        Raises:
            ServiceUnavailable: go on later; the run stands where it could not.
            ServiceRefused: our key is not taken.
        """
        asker = Asker(self._world, self._arrivals, run.began, run.since)
        for name in QUESTIONS[QUESTIONS.index(run.question) if run.question else 0 :]:
            if name != run.question:
                run.question, run.cursor = name, ""
            run.tallies.setdefault(name, Tally())
            for step in asker.questions[name](run.cursor):
                self._take(run, step)
                run.cursor = step.cursor
                on_step(run)
                if is_time_up():
                    return False
        run.is_over = True
        return True

    def _take(self, run: Run, step: Step) -> None:
        tally = run.tallies[run.question]
        tally.asked += step.asked
        tally.unanswered += step.unanswered
        known = self._known(step)
        fresh = [found for found in step.found if (found.provider, found.event_id) not in known]
        told = [self._tell(found) for found in fresh]
        for index, found in enumerate(fresh):
            if told[index].state is EventState.PARKED and not self._dry:
                # What it waited for may stand behind it on the same page.
                told[index] = self._tell(found)
        for found, became in zip(fresh, told, strict=True):
            self._note(run, found, became)

    def _note(self, run: Run, found: Found, became: Told) -> None:
        tally, counted = run.tallies[run.question], _COUNTED[became.state]
        tally.found += 1
        setattr(tally, counted, getattr(tally, counted) + 1)
        log.info("reconcile: %s (%s) %s: %s", found.event_id, found.kind, became.state, became.reason)
        if len(run.lines) >= self._lines_max:
            run.more_lines += 1
            return
        run.lines.append(
            Line(
                run.question, found.event_id, found.kind, became.state.value, became.reason, became.workflow,
                became.key,
            )
        )

    def _known(self, step: Step) -> set[tuple[str, str]]:
        names: dict[str, list[str]] = {}
        for found in step.found:
            names.setdefault(found.provider, []).append(found.event_id)
        inbox = self._arrivals.inbox
        known = {(provider, name) for provider in names for name in inbox.known(provider, names[provider])}
        return known | self._rehearsed

    def _tell(self, found: Found) -> Told:
        inbox, payload = self._arrivals.inbox, json.dumps(found.body)
        if self._dry:
            self._rehearsed.add((found.provider, found.event_id))
            return inbox.rehearse(found.provider, found.event_id, found.kind, payload)
        received = self._receive(found, payload)
        try:
            return inbox.tell(received.id)
        except (TransitionConflict, peewee.OperationalError) as trouble:
            # It is in the inbox, and has been rung for.
            return Told(EventState.RECEIVED, str(trouble))

    def _receive(self, found: Found, payload: str) -> Received:
        for _ in range(BUSY_MAX):
            try:
                return self._arrivals.inbox.receive(found.provider, found.event_id, found.kind, payload)
            except TransitionConflict:
                # Somebody writes without a pause; nothing is taken in yet, so that it must be tried again.
                continue
        raise ServiceUnavailable("database", "it is too busy to take events in", code="busy")


def reconcile(world: World, attempt: Attempt) -> Outcome:
    """One slice of the scheduled run: a third of a lease, so that no call outlasts it."""
    reconciler = Reconciler(world)
    kept = attempt.row.progress
    run = Run.from_json(json.loads(kept)) if kept else reconciler.begin(attempt.row.memory)
    until = world.clock.now() + world.engine.lease / 3
    stood = (run.question, run.cursor)
    try:
        is_over = reconciler.go_on(run, is_time_up=lambda: world.clock.now() >= until)
    except ServiceUnavailable as trouble:
        if (run.question, run.cursor) == stood:
            raise
        pause = max(SLOW_DOWN, timedelta(seconds=trouble.retry_after_seconds or 0.0))
        return Again(pause, str(trouble), "progressed", _progress(run), f"{run.summary()}; {trouble}")
    if not is_over:
        return Again(timedelta(0), run.question, "progressed", _progress(run), run.summary())
    facts = {
        "memory": json.dumps({"told_until": run.told_until.isoformat()}), "report": json.dumps(run.as_json()),
    }  # fmt: skip
    return Done("finish", facts, reason=run.summary())


def _progress(run: Run) -> dict[str, str]:
    return {"progress": json.dumps(run.as_json())}
