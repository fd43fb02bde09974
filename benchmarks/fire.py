"""Transitions per second through `Engine.fire`, beside the same statements sent by the raw driver in the same run.

    python -m benchmarks.fire                                  # SQLite, durable (synchronous=FULL)
    python -m benchmarks.fire --url postgresql://user@host/db  # PostgreSQL
    python -m benchmarks.fire --embedded-postgres

Each transition has one guard, one history row and two effects. Both sides run the statements one after another in
one process; rounds alternate, so that a noisy machine is noisy for both. The figure that counts is the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from peewee import BigAutoField, CharField, Database

from smi_workflow.engine.clock import SystemChance, SystemClock
from smi_workflow.engine.database import bind, is_sqlite, open_database
from smi_workflow.engine.declaration import Case, Effect, Move, State
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.tables import Subject, Tables
from smi_workflow.engine.workflow import Workflow
from tests.support.postgres import PostgresServer


class Lamp(Subject):
    """The smallest subject there is."""

    id = BigAutoField()
    lamp_id = CharField(64, unique=True)
    state = CharField(20)

    class Meta:
        table_name = "lamps"


SHINE = Effect("shine", "light", harmless="a lamp may stay dark")
REST = Effect("rest", "light", harmless="a lamp may stay lit")
BOTH = (SHINE.now(), REST.now())


def plugged_in(case: Case[Lamp]) -> str | None:
    """The guard."""
    return None if case.row.lamp_id else "it is not plugged in"


LAMP = Workflow(
    name="lamp", model=Lamp, key="lamp_id", state_column="state", initial="off",
    states=(State("off", "dark", owes=BOTH), State("on", "lit", owes=BOTH)),
    moves=(Move("switch", "off", "on", guards=(plugged_in,)), Move("switch", "on", "off", guards=(plugged_in,))),
)  # fmt: skip


def engine_side(engine: Engine) -> Callable[[str], object]:
    """One transition through the engine."""
    return lambda key: engine.fire("lamp", key, "switch", actor="system", reason="benchmark")


def raw_side(database: Database, prefix: str) -> Callable[[str], object]:
    """The same six statements, written by hand, through the driver alone: nothing checked, nothing built."""
    cursor: Any = database.connection().cursor()  # type: ignore[no-untyped-call]
    sqlite = is_sqlite(database)
    new_id = SystemChance().new_id

    def sql(text: str) -> str:
        return text.replace("P_", prefix) if sqlite else text.replace("P_", prefix).replace("?", "%s")

    begin = "BEGIN IMMEDIATE" if sqlite else "BEGIN"
    select = sql(
        f"SELECT id, version, visit, state FROM P_lamps WHERE lamp_id = ?{'' if sqlite else ' FOR UPDATE'}"
    )
    update = sql("UPDATE P_lamps SET state = ?, version = ?, visit = ? WHERE lamp_id = ? AND version = ?")
    history = sql(
        "INSERT INTO P_smi_transitions (workflow, subject_id, sequence, trigger, from_state, to_state, actor,"
        " reason, metadata, fingerprint, idempotency_key, caused_by, created_at)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
    )
    row = "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
    effects = sql(
        "INSERT INTO P_smi_effects (id, workflow, subject_id, visit, sequence, name, queue, is_timer, survives,"
        f" inputs, state, due_at, attempts, attempts_max, doubts, waits, created_at) VALUES {row}, {row}"
    )

    def transition(key: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        cursor.execute(begin)
        cursor.execute(select, (key,))
        _, version, _, old = cursor.fetchone()
        new, sequence = ("on" if old == "off" else "off"), version + 1
        cursor.execute(update, (new, sequence, sequence, key, version))
        cursor.execute(history, ("lamp", key, sequence, "switch", old, new, "system", "benchmark", "{}", "f" * 16,
                                 None, None, now))  # fmt: skip
        owed: list[object] = []
        for name in ("shine", "rest"):
            owed += [new_id(), "lamp", key, sequence, sequence, name, "light", False, False, "{}", "due", now, 0,
                     6, 0, 0, now]  # fmt: skip
        cursor.execute(effects, owed)
        cursor.execute("COMMIT")

    return transition


def measure(url: str, jobs: int, rounds: int) -> tuple[list[float], list[float]]:
    """Transitions per second of both sides, one figure a round."""
    database = open_database(url)
    tables = Tables.bound_to(database, "bench_")
    lamp = bind(Lamp, database, "bench_")
    database.drop_tables([*tables.all(), lamp])
    database.create_tables([*tables.all(), lamp])
    engine = Engine(
        database, tables, (LAMP,), {Lamp: lamp}, clock=SystemClock(), chance=SystemChance(),
        ring=lambda *bell: None, lease=timedelta(seconds=60),
    )  # fmt: skip
    for number in range(jobs):
        engine.start("lamp", {"lamp_id": f"lamp-{number}"}, actor="system")
    sides = [engine_side(engine), raw_side(database, "bench_")]
    figures: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side, found in zip(sides, figures, strict=True):
            began = time.perf_counter()
            for key in range(jobs):
                side(f"lamp-{key}")
            rate = jobs / (time.perf_counter() - began)
            if number:  # the first round warms up
                found.append(rate)
    database.close()
    return figures


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a database; default a SQLite file in a temporary folder")
    parser.add_argument("--embedded-postgres", action="store_true", help="start the PostgreSQL of the tests")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with ExitStack() as held:
        url = options.url
        if options.embedded_postgres:
            url = held.enter_context(closing(PostgresServer())).url("postgres")
        if url is None:
            folder = held.enter_context(tempfile.TemporaryDirectory())
            url = f"sqlite:///{Path(folder) / 'bench.sqlite3'}"
        engine, raw = measure(url, options.jobs, options.rounds)
    ratios = [ours / theirs for ours, theirs in zip(engine, raw, strict=True)]
    print(
        f"{url.split(':')[0]:12} fire {statistics.median(engine):8.0f}/s   raw {statistics.median(raw):8.0f}/s"
        f"   ratio {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})"
    )


if __name__ == "__main__":
    main()
