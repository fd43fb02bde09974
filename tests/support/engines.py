"""Owns a complete engine over the loans workflow, on any database. Called by the engine's tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

from peewee import Database, Model

from smi_workflow.engine.database import bind, open_database
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.tables import Tables
from tests.support.loans import FINE, LOAN, Fine, Loan


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


def open_bench(url: str, prefix: str = "t_", *, create: bool = True, chance_prefix: str = "") -> Bench:
    """Open a database and run the loans workflow on it."""
    database = open_database(url)
    tables = Tables.bound_to(database, prefix)
    models: dict[type[Model], type[Model]] = {
        Loan: bind(Loan, database, prefix),
        Fine: bind(Fine, database, prefix),
    }
    if create:
        database.create_tables([*tables.all(), *models.values()])
    clock, bells = HandClock(), Bells()
    engine = Engine(
        database, tables, (LOAN, FINE), models, clock=clock, chance=CountingChance(chance_prefix), ring=bells
    )
    return Bench(engine, database, clock, bells, models)
