"""Owns the words that invariants are written in: Invariant, Violation, and the View that a check may look at.

Called by the modules of invariants, in the engine and above it.

An invariant is judged for one subject at a time; over whole tables a sieve in SQL names the suspects, and the same
judge decides. So there is one definition of each truth, and a row that changed meanwhile accuses nobody.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

from peewee import SQL, NodeList, fn

from smi_workflow.engine.database import Slot, is_sqlite, read_stamp
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.rules import Rules
from smi_workflow.engine.tables import EffectState

T = TypeVar("T")

_PAGE = 500
OPEN = (EffectState.DUE.value, EffectState.CLAIMED.value)


@dataclass(frozen=True, slots=True)
class Violation:
    """One place where an invariant does not hold; `text` says what is wrong there, without personal data."""

    invariant: str
    workflow: str | None
    subject_id: str | None
    text: str


class Row(NamedTuple):
    """Where a subject stands."""

    version: int
    visit: int
    parked_events: int
    state: str


class Past(NamedTuple):
    """One row of a subject's history."""

    sequence: int
    trigger: str
    from_state: str
    to_state: str
    actor: str
    reason: str
    metadata: str
    fingerprint: str
    caused_by: str | None
    created_at: Any


class Owing(NamedTuple):
    """One effect of a subject."""

    id: str
    name: str
    visit: int
    sequence: int
    is_timer: bool
    survives: bool
    state: str
    due_at: Any
    attempts: int
    attempts_max: int
    doubts: int
    lease_token: str | None
    lease_until: Any
    first_attempt_at: Any
    settled_at: Any
    inputs: str
    outcome: str | None
    last_error: str | None


class Told(NamedTuple):
    """An event that is parked at a subject, or that caused one of its transitions."""

    state: str
    payload: str
    reason: str | None


Suspects = Iterable[tuple[str, str]]
OfSubject = Callable[["View", str, str], Iterator[str]]
Everywhere = Callable[["View"], Iterator[Violation]]


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that is always true.

    Attributes:
        name: stable, for scripts.
        sentence: what is true.
        remedy: what an admin can do where it is not.
        of_subject: what is wrong with one subject, by look-ups in indexes only.
        everywhere: every violation in the whole database, found by statements over whole tables.
    """

    name: str
    sentence: str
    remedy: str
    of_subject: OfSubject | None = None
    everywhere: Everywhere | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What a check may look at. What it has read of a subject, it keeps: all checks of one subject share it.

    Attributes:
        exists: whether a file of this name is in the storage; None when nobody can tell.
        at_rest: nothing is under way and everything due has been worked on: nothing may be left over.
        limit: as many violations of one invariant are told.
    """

    engine: Engine
    now: datetime
    exists: Callable[[str], bool] | None = None
    at_rest: bool = False
    limit: int = 100
    rules: Mapping[str, Rules] = field(default_factory=dict, repr=False)
    _read: dict[tuple[str, str, str], list[Any]] = field(default_factory=dict, repr=False)

    def anew(self) -> View:
        """The same view, with nothing read yet."""
        return replace(self, _read={})

    def row(self, workflow: str, key: str) -> Row | None:
        """Where the subject stands; None when there is no such row."""
        flow = self.rules[workflow].flow
        model: Any = self.engine.bound(flow.model)

        def build() -> Any:
            columns = (model.version, model.visit, model.parked_events, getattr(model, flow.state_column))
            return model.select(*columns).where(getattr(model, flow.key) == Slot("key"))

        found: list[Row] = self.of_subject("row", Row, build, workflow, key)
        return found[0] if found else None

    def history(self, workflow: str, key: str) -> list[Past]:
        """Its history, oldest first."""
        table = self.engine.tables.transitions

        def build() -> Any:
            columns = [getattr(table, name) for name in Past._fields]
            mine = (table.workflow == Slot("workflow")) & (table.subject_id == Slot("key"))
            return table.select(*columns).where(mine).order_by(table.sequence)

        found: list[Past] = self.of_subject("history", Past, build, workflow, key)
        return found

    def effects(self, workflow: str, key: str) -> list[Owing]:
        """Its effects, in no particular order."""
        table = self.engine.tables.effects

        def build() -> Any:
            columns = [getattr(table, name) for name in Owing._fields]
            return table.select(*columns).where(
                (table.workflow == Slot("workflow")) & (table.subject_id == Slot("key"))
            )

        found: list[Owing] = self.of_subject("effects", Owing, build, workflow, key)
        return found

    def parked(self, workflow: str, key: str) -> list[Told]:
        """The events parked at it."""
        table = self.engine.tables.events

        def build() -> Any:
            mine = (table.workflow == Slot("workflow")) & (table.subject_id == Slot("key"))
            return table.select(table.state, table.payload, table.reason).where(mine & (table.state == "parked"))

        found: list[Told] = self.of_subject("parked", Told, build, workflow, key)
        return found

    def event(self, event_id: str) -> Told | None:
        """One event of the inbox, or None."""
        table = self.engine.tables.events

        def build() -> Any:
            return table.select(table.state, table.payload, table.reason).where(table.id == Slot("key"))

        found: list[Told] = self.of_subject("event", Told, build, "", event_id)
        return found[0] if found else None

    def once(self, name: str, find: Callable[[], list[T]]) -> list[T]:
        """What was found for this view before, or is found now."""
        key = ("once", "", name)
        if key not in self._read:
            self._read[key] = find()
        return self._read[key]

    def statement(self, name: object, build: Callable[[], Any], **values: object) -> list[tuple[Any, ...]]:
        """The rows of a statement that is compiled once."""
        rows: list[tuple[Any, ...]] = self.engine.registry.statement(("check", name), build).run(values).fetchall()
        return rows

    def rows(self, query: Any) -> list[tuple[Any, ...]]:
        """The rows of a query over whole tables; no more than can be told of."""
        # Not by LIMIT: PostgreSQL would look for a plan that soon finds a few, and there are none to be found.
        return list(islice(self.each(query), self.limit + 1))

    def of_subject(self, kind: str, made: Any, build: Callable[[], Any], workflow: str, key: str) -> list[Any]:
        """The rows of one kind that belong to a subject, read once; `build` has slots for `workflow` and `key`.

        Args:
            made: a NamedTuple of the statement's columns.
        """
        name = (kind, workflow, key)
        found = self._read.get(name)
        if found is None:
            rows = self.statement((kind, workflow), build, workflow=workflow, key=key)
            found = self._read[name] = [made._make(row) for row in rows]
        return found

    def of(self, workflow: str, column: Any) -> Any:
        """Whether a row of history or queue is of this workflow, where all such rows are read.

        SQLite follows the index whose first column this is, even to nearly all rows, with a jump for each: where
        a workflow has most of the subjects, its rows are read from end to end.
        """
        if not is_sqlite(self.engine.database) or workflow not in self.once("large", self._large):
            return column == workflow
        return NodeList((SQL("+"), column, SQL("="), workflow), parens=True)

    def _large(self) -> list[str]:
        counts = {}
        for name, rules in self.rules.items():
            model: Any = self.engine.bound(rules.flow.model)
            ((counts[name],),) = self.each(model.select(fn.COUNT(model._meta.primary_key)))
        return [name for name, count in counts.items() if count * 5 >= max(counts.values())]

    def each(self, query: Any) -> Iterator[tuple[Any, ...]]:
        """All rows of a query that is known to give few."""
        return iter(query.tuples().iterator())


def unique(found: Iterable[T]) -> Iterator[T]:
    """Each once, in order, and no sooner than asked for."""
    seen: set[T] = set()
    for item in found:
        if item not in seen:
            seen.add(item)
            yield item


def sieved(name: str, judge: OfSubject, sieve: Callable[[View], Suspects]) -> Everywhere:
    """Everywhere is: judge each suspect that the sieve lets through."""

    def everywhere(view: View) -> Iterator[Violation]:
        for workflow, key in unique(sieve(view)):
            for text in judge(view.anew(), workflow, key):
                yield Violation(name, workflow, key, text)

    return everywhere


def invariant(
    name: str,
    sentence: str,
    remedy: str,
    judge: OfSubject,
    sieve: Callable[[View], Suspects],
    *,
    beside: Everywhere | None = None,
) -> Invariant:
    """An invariant that is judged subject by subject.

    Args:
        sieve: names every subject that breaks it, and few others.
        beside: finds what belongs to no subject.
    """
    found = sieved(name, judge, sieve)

    def everywhere(view: View) -> Iterator[Violation]:
        return found(view) if beside is None else chain(found(view), beside(view))

    return Invariant(name, sentence, remedy, judge, everywhere)


def alone(name: str, sentence: str, remedy: str, everywhere: Everywhere) -> Invariant:
    """An invariant that is no single subject's."""
    return Invariant(name, sentence, remedy, None, everywhere)


def instant(value: Any) -> datetime:
    """A moment as the driver gave it; it must be there."""
    found = read_stamp(value)
    assert found is not None
    return found


def some_keys(view: View, workflow: str, count: int) -> list[str]:
    """Keys of subjects chosen at random; the same ones at the same moment."""
    flow = view.rules[workflow].flow
    model: Any = view.engine.bound(flow.model)
    key, number = getattr(model, flow.key), model._meta.primary_key
    ((low, high),) = view.each(model.select(fn.MIN(number), fn.MAX(number)))
    if isinstance(low, int) and high - low >= count:
        chosen = random.Random(view.now.isoformat()).sample(range(low, high + 1), count)
        pages = [chosen[start : start + _PAGE] for start in range(0, count, _PAGE)]
        return [row[0] for page in pages for row in view.each(model.select(key).where(number.in_(page)))]
    return [row[0] for row in view.each(model.select(key).limit(count))]
