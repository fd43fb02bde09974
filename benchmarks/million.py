"""A million jobs, and how long `smi doctor` takes with them.

    python -m benchmarks.million --url sqlite:////tmp/million.sqlite3      # fill, then run the doctor
    python -m benchmarks.million --embedded-postgres
    python -m benchmarks.million --url … --jobs 100000 --fill-only         # for other measurements

Each life of benchmarks/lives.py happens once, for real; its rows are then copied under other names and dates, in
bulk, spread over two years. The same seed makes the same database, but for today's date. Indexes are
taken away while it is filled, and made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from peewee import BooleanField, Database, Model

from benchmarks.lives import DAY_AND_TIME, Lived, lived
from smi_workflow.app import MIGRATIONS
from smi_workflow.cli.doctor import INVARIANTS
from smi_workflow.engine.database import is_sqlite, open_database
from smi_workflow.engine.migrate import migrate
from smi_workflow.engine.tables import Tables
from smi_workflow.integrations.storage import FileStorage
from smi_workflow.jobs.attention import ATTENTION
from smi_workflow.jobs.model import JobTables
from tests.support.apps import settings_environment, test_settings
from tests.support.postgres import PostgresServer

PREFIX = "wp_"
DAYS = 730
BATCH = 5_000
# The ids of a life: a job's or refund's (which is random), our rows' (which sort by time), the providers'.
UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
OURS = re.compile(r"\b[0-9a-f]{32}\b")
THEIRS = re.compile(r"\b(?:(?:cs|pi|re|ch|evt|dp|up|pyr)_[A-Za-z0-9_]+|[0-9a-f]{24})\b")
ODD = 0x9E3779B97F4A7C15

Make = Callable[[int, str, Sequence[str]], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Copier:
    """Makes the rows of one table for one copy of a life: number, number in hexadecimal, dates."""

    table: str
    make: Make


def main() -> None:
    """Parse, fill, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", help="an empty database; SQLite or PostgreSQL")
    parser.add_argument("--embedded-postgres", action="store_true", help="a PostgreSQL server for this run")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--storage", type=Path, help="the folder for the files of live jobs")
    parser.add_argument("--fill-only", action="store_true")
    parser.add_argument("--doctor-only", action="store_true", help="the database is filled already")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = given.url or f"sqlite:///{folder / 'million.sqlite3'}"
        if given.embedded_postgres:
            server = PostgresServer()
            stack.callback(server.close)
            url = server.url("postgres")
        storage = given.storage or folder / "files"
        if not given.doctor_only:
            begun = time.monotonic()
            counts = fill(url, storage, given.jobs, given.seed)
            print(
                f"filled in {time.monotonic() - begun:.0f} s: {', '.join(f'{n:,} {t}' for t, n in counts.items())}"
            )
        if not given.fill_only:
            report(url, storage, folder)


def fill(url: str, storage: Path, jobs: int, seed: int) -> dict[str, int]:
    """Fill an empty database.

    Args:
        storage: where the files of live jobs go.
        jobs: how many.
    Returns: the rows of each table.
    """
    database = open_database(url)
    migrate(database, MIGRATIONS, prefix=PREFIX)
    tables, sale = Tables.bound_to(database, PREFIX), JobTables.bound_to(database, PREFIX)
    models = {str(m._meta.table_name): m for m in (*tables.all(), sale.jobs, sale.payments, sale.refunds)}
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, lived(Path(folder)) as lives, _without_indexes(database):
        copiers = [[_copier(one, name, model) for name, model in models.items()] for one in lives]
        for numbers in _batches(jobs):
            made: dict[str, list[tuple[Any, ...]]] = {name: [] for name in models}
            for index, number, dates in _drawn(numbers, jobs, seed, lives):
                for copier in copiers[index]:
                    made[copier.table] += copier.make(number, f"{number:012x}", dates)
                if lives[index].life.live:
                    _copy_files(lives[index], number, storage)
            for name, rows in made.items():
                _insert(database, models[name], rows)
                counts[name] += len(rows)
    _tidy(database)
    database.close()
    return {name.removeprefix(f"{PREFIX}smi_"): count for name, count in counts.items()}


def report(url: str, storage: Path, folder: Path) -> None:
    """Run the doctor as a person would, and print what took how long."""
    settings = test_settings(folder, database_url=url, storage_url=storage.absolute().as_uri())
    names = [item.name for item in (*INVARIANTS, *ATTENTION)]
    command = [str(Path(sys.executable).parent / "smi"), "doctor", "--json"]
    command += [word for name in names for word in ("--only", name)]
    begun, used = time.monotonic(), _cpu_seconds()
    done = subprocess.run(
        command, env={**os.environ, **settings_environment(settings)}, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - begun
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout)
    for check in sorted(told["checks"], key=lambda item: -item["seconds"]):
        print(f"  {check['seconds']:6.1f} s  {check['name']:24} {check['status']}")
        for found in check["found"][:3]:
            print(f"            {found['workflow']} {found['subject_id']}: {found['text']}")
    print(f"smi doctor: {seconds:.1f} s, {_cpu_seconds() - used:.1f} s of CPU in it, exit code {done.returncode}")
    print(f"machine: {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")


def _cpu_seconds() -> float:
    """What ended children have used; a database server's use is not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# -- copies -------------------------------------------------------------------------------------------------------


def _batches(jobs: int) -> Iterator[range]:
    for start in range(1, jobs + 1, BATCH):
        yield range(start, min(start + BATCH, jobs + 1))


def _drawn(
    numbers: range, jobs: int, seed: int, lives: Sequence[Lived]
) -> Iterator[tuple[int, int, Sequence[str]]]:
    """Which life each job has, and when: (index of the life, number, dates from its first day on)."""
    dice = random.Random(f"{seed} {numbers.start}")
    shares = [one.life.share for one in lives]
    indexes = dice.choices(range(len(lives)), shares, k=len(numbers))
    for index, number in zip(indexes, numbers, strict=True):
        ago = 0 if lives[index].life.live else 15 + DAYS - DAYS * number // jobs
        yield index, number, _dates(lives[index].began, ago)


@cache
def _dates(began: str, ago: int) -> Sequence[str]:
    first = date.fromisoformat(began) - timedelta(days=ago)
    return [(first + timedelta(days=day)).isoformat() for day in range(40)]


def _copier(one: Lived, table: str, model: type[Model]) -> Copier:
    """Compile the rows of a life into a function: as fast as Python makes tuples."""
    rows = one.rows[table]
    fields = {field.column_name: field for field in model._meta.sorted_fields}
    names = [name for name in fields if name != "id" or table.endswith(("effects", "inbox"))]
    texts = [
        "(" + ", ".join(_expression(row[name], one.began, fields[name]) for name in names) + ",)" for row in rows
    ]
    code = f"lambda n, h, d: [{', '.join(texts)}]"
    return Copier(table, eval(code, {"uuid": _uuid, "float": float}))


def _expression(value: Any, began: str, field: Any) -> str:
    if isinstance(field, BooleanField):
        return repr(bool(value))
    if not isinstance(value, str):
        return repr(value)
    if DAY_AND_TIME.fullmatch(value):
        return f"d[{_day(value, began)}] + {value[10:]!r}"
    pieces, last = [], 0
    found = sorted(
        [(m.start(), m.end(), _uuid_expression(m[0])) for m in UUID.finditer(value)]
        + [(m.start(), m.end(), f"h + {m[0][12:]!r}") for m in OURS.finditer(value)]
        + [(m.start(), m.end(), f"{m[0]!r} + h") for m in THEIRS.finditer(value)]
    )
    for start, end, expression in found:
        if start >= last:
            pieces += [repr(value[last:start]), expression]
            last = end
    return " + ".join([*pieces, repr(value[last:])])


def _uuid_expression(text: str) -> str:
    return f"uuid(n, {int(text[:8], 16)})"


def _uuid(number: int, salt: int) -> str:
    """Random to look at, as a job's id is: the index gets no help from the order."""
    mixed = (number * ODD) & 0xFFFFFFFFFFFFFFFF
    text = f"{mixed:016x}{salt:08x}{number:08x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"


def _day(moment: str, began: str) -> int:
    return (date.fromisoformat(moment[:10]) - date.fromisoformat(began)).days


def _copy_files(one: Lived, number: int, storage: Path) -> None:
    """The files of a live job, under its copy's names."""
    store = FileStorage(storage.absolute().as_uri())
    renames = {"n": number, "h": f"{number:012x}", "d": [], "uuid": _uuid}
    for file in (path for path in one.folder.rglob("*") if path.is_file()):
        name = file.relative_to(one.folder).as_posix()
        target = store.path(eval(_expression(name, "2000-01-01", None), renames))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())


# -- databases ----------------------------------------------------------------------------------------------------


def _insert(database: Database, model: type[Model], rows: list[tuple[Any, ...]]) -> None:
    if not rows:
        return
    table = str(model._meta.table_name)
    fields = [field.column_name for field in model._meta.sorted_fields]
    columns = [name for name in fields if name != "id" or table.endswith(("effects", "inbox"))]
    names = ", ".join(f'"{name}"' for name in columns)
    connection: Any = database.connection()  # type: ignore[no-untyped-call]
    with database.atomic():
        if is_sqlite(database):
            places = ", ".join("?" for _ in columns)
            connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({places})", rows)
            return
        with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


@contextmanager
def _without_indexes(database: Database) -> Iterator[None]:
    """Take the indexes away, and make them again: many times faster than keeping them."""
    if is_sqlite(database):
        for pragma, value in {"synchronous": 0, "journal_mode": "off", "cache_size": -400_000}.items():
            database.execute_sql(f"PRAGMA {pragma} = {value}")  # type: ignore[no-untyped-call]
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    else:
        query = (
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()"
            " AND indexname NOT LIKE '%%_pkey' AND tablename NOT LIKE '%%migrations'"
        )
    indexes = list(database.execute_sql(query).fetchall())  # type: ignore[no-untyped-call]
    for name, _ in indexes:
        database.execute_sql(f'DROP INDEX "{name}"')  # type: ignore[no-untyped-call]
    yield
    if not is_sqlite(database):
        database.execute_sql("SET maintenance_work_mem = '1GB'")  # type: ignore[no-untyped-call]
    for _, sql in indexes:
        database.execute_sql(sql)  # type: ignore[no-untyped-call]


def _tidy(database: Database) -> None:
    """As a database is that has been there for a while: with statistics."""
    if is_sqlite(database):
        database.execute_sql("PRAGMA journal_mode = wal")  # type: ignore[no-untyped-call]
    else:
        database.connection().autocommit = True  # type: ignore[no-untyped-call]
        database.execute_sql("VACUUM ANALYZE")  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
