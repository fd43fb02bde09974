"""Owns a complete engine over the loans workflow, on any database. Called by the engine's tests."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, cast
from unittest.mock import patch

from peewee import Database, Model

from smi_workflow.engine.attempt import Done, Handler
from smi_workflow.engine.database import bind, open_database
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Inbox, Translator
from smi_workflow.engine.leases import LeaseKeeper
from smi_workflow.engine.perform import Performer
from smi_workflow.engine.tables import EffectRow, EventRow, Subject, Tables
from smi_workflow.engine.unit import Applied
from smi_workflow.engine.workflow import Workflow
from tests.support.loans import FINE, LOAN, Fine, Loan

LEASE = timedelta(seconds=60)
GOOD = {"barcode": "ok"}


@dataclass
class HandClock:
    """A clock that moves only when told."""

    time: datetime = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def advance(self, **parts: float) -> None:
        self.time += timedelta(**parts)


@dataclass
class CountingChance:
    """Ids, tokens and jitter that a test can foresee."""

    prefix: str = ""
    numbers: count[int] = field(default_factory=lambda: count(1))

    def new_id(self) -> str:
        return f"{self.prefix}{next(self.numbers):08d}"

    def token(self) -> str:
        return f"{self.prefix}token-{next(self.numbers)}"

    def jitter(self) -> float:
        return 0.5


@dataclass
class Bells:
    """A doorbell that remembers who rang."""

    rung: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, message_id: str, actor: str, queue: str) -> None:
        self.rung.append((message_id, actor, queue))

    def names(self) -> list[str]:
        return [actor for _, actor, _ in self.rung]


@dataclass
class Bench:
    """An engine with its parts within reach."""

    engine: Engine
    database: Database
    clock: HandClock
    bells: Bells
    models: dict[type[Model], type[Model]]
    url: str
    keeper: LeaseKeeper

    def start(self, loan_id: str = "l1", **columns: object) -> Any:
        """A loan in its first state."""
        return self.engine.start("loan", {"loan_id": loan_id, **columns}, actor="system")

    def fire(self, trigger: str, loan_id: str = "l1", *, actor: str = "system", **rest: Any) -> Applied:
        """Fire a loan; the facts that `lend` needs are handed in unless others are."""
        return self.engine.fire("loan", loan_id, trigger, actor=actor, **{"facts": GOOD, **rest})

    def lent(self, loan_id: str = "l1", **columns: object) -> Any:
        """A loan that the reader has."""
        self.start(loan_id, **columns)
        self.fire("lend", loan_id)
        return self.loan(loan_id)

    def loan(self, loan_id: str = "l1") -> Any:
        """The row as it is now."""
        return self.engine.read("loan", loan_id)

    @property
    def loans(self) -> Any:
        """The loans' table, for doing what no trigger does."""
        return self.models[Loan]

    def history(self, loan_id: str = "l1") -> list[tuple[str, str, str]]:
        """What history says: trigger, from, to."""
        return [(row.trigger, row.from_state, row.to_state) for row in self.engine.history("loan", loan_id)]

    def effects(self, name: str, subject_id: str = "l1") -> list[EffectRow]:
        """Every effect of this name that was owed to a loan, oldest first."""
        table = self.engine.tables.effects
        query = table.select().where((table.name == name) & (table.subject_id == subject_id))
        return list(query.order_by(table.sequence))

    def effect(self, name: str, subject_id: str = "l1") -> EffectRow:
        """The latest effect of this name."""
        return self.effects(name, subject_id)[-1]

    def event(self, inbox_id: str) -> EventRow:
        """The event as it is now."""
        return self.engine.tables.events.get_by_id(inbox_id)

    def audits(self) -> list[tuple[str, str]]:
        """What the audit table says: act, target."""
        table = self.engine.tables.audit
        return [(row.act, row.target) for row in table.select().order_by(table.id)]

    def performer(self, **handlers: Callable[..., Any] | Handler) -> Performer:
        """A performer with these handlers; all others do nothing and are done."""
        known: set[str] = set()
        for flow in self.engine.workflows.values():
            known |= set(flow.effects())
        named = {name: item if isinstance(item, Handler) else Handler(item) for name, item in handlers.items()}
        idle = {name: Handler(lambda attempt: Done()) for name in known}
        return Performer(self.engine, {**idle, **named}, self.keeper)

    def inbox(self, translator: Translator) -> Inbox:
        """An inbox for the provider `post`."""
        return Inbox(self.engine, {"post": translator})

    def dump(self) -> dict[str, list[tuple[object, ...]]]:
        """Every row of every table, for comparing."""
        tables: list[type[Model]] = [*self.engine.tables.all(), *self.models.values()]
        return {
            str(model._meta.table_name): sorted(cast("Any", model.select().tuples()), key=repr) for model in tables
        }

    def close(self) -> None:
        """Close this thread's connection."""
        self.database.close()


def open_bench(
    url: str,
    prefix: str = "t_",
    *,
    create: bool = True,
    chance_prefix: str = "",
    workflows: Sequence[Workflow] = (LOAN, FINE),
    subjects: Sequence[type[Subject]] = (Loan, Fine),
    lease: timedelta = LEASE,
) -> Bench:
    """Open a database and run workflows on it; the loans unless others are given."""
    database = open_database(url)
    tables = Tables.bound_to(database, prefix)
    models: dict[type[Model], type[Model]] = {model: bind(model, database, prefix) for model in subjects}
    if create:
        with database.atomic():
            database.create_tables([*tables.all(), *models.values()])
    clock, bells = HandClock(), Bells()
    engine = Engine(
        database, tables, workflows, models,
        clock=clock, chance=CountingChance(chance_prefix), ring=bells, lease=lease,
    )  # fmt: skip
    return Bench(engine, database, clock, bells, models, url, LeaseKeeper(engine))


Opener = Callable[..., Bench]


def together(bench: Bench, *calls: Callable[[], Any]) -> list[Any]:
    """Run these in threads that start at once; returns what each returned or raised."""
    line = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        try:
            line.wait()
            return call()
        finally:
            bench.database.close()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(run, call) for call in calls]
        return [future.exception() or future.result() for future in futures]


@contextmanager
def taped(database: Database, then: Callable[[str], None] = lambda line: None) -> Iterator[list[str]]:
    """Record each statement, BEGIN, COMMIT and ROLLBACK; `then` is called after it ran, but before a COMMIT."""
    tape: list[str] = []

    def note(line: str) -> None:
        tape.append(re.sub(r'[`"]', "", line))
        then(tape[-1])

    execute, begin, commit, rollback = database.execute_sql, database.begin, database.commit, database.rollback

    def execute_and_note(sql: str, params: Any = None) -> Any:
        cursor = execute(sql, params)  # type: ignore[no-untyped-call]
        note(sql)
        return cursor

    def begin_and_note(*args: Any) -> None:
        begin(*args)
        note("BEGIN")

    def note_and_commit() -> None:
        note("COMMIT")
        commit()

    def rollback_and_note() -> None:
        rollback()
        note("ROLLBACK")

    with patch.multiple(
        database, execute_sql=execute_and_note, begin=begin_and_note, commit=note_and_commit,
        rollback=rollback_and_note,
    ):  # fmt: skip
        yield tape


def states(rows: Sequence[EffectRow]) -> list[str]:
    """Where these effects stand."""
    return [str(row.state) for row in rows]


def counts(dump: Mapping[str, Sequence[object]]) -> dict[str, int]:
    """How many rows each table has."""
    return {name: len(rows) for name, rows in dump.items()}
