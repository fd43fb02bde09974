"""Owns bringing a database's tables up to date, one process at a time. Called by app.py and the cli.

The scripts are numbered files in a folder, run by `playhouse.migrations`; beside it stand the table prefix, a lock
against two runners at once, and errors that a person can act on. A script defines `up(migrator, db)` and
`down(migrator, db)` and reads `migrator.table_prefix` and `migrator.wordpress_tables`.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peewee import Database, InterfaceError, MySQLDatabase, OperationalError, PeeweeException, SqliteDatabase
from playhouse.migrations import MigrationError, Runner

from smi_workflow.errors import ConfigError, DatabaseAway, EngineError, TransitionConflict

LOCK_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """Where a database stands against a folder of migrations, each in their order.

    Attributes:
        applied: in the database and in the folder.
        pending: only in the folder.
        unknown: only in the database: a newer release was here.
    """

    applied: tuple[str, ...]
    pending: tuple[str, ...]
    unknown: tuple[str, ...]


def migrate(
    database: Database,
    folder: Path,
    *,
    prefix: str,
    wordpress_tables: bool = False,
    wait_seconds: float = LOCK_WAIT_SECONDS,
) -> tuple[str, ...]:
    """Apply every pending migration; nothing happens when there is none.

    Args:
        prefix: of every table, the history's included.
        wordpress_tables: the database is WordPress's own (MariaDB): posts are referred to by foreign keys.
        wait_seconds: how long another process may go on migrating before this one gives up.
    Returns: the names applied now, in order.
    Raises:
        TransitionConflict: another process is still migrating.
        ConfigError: a script or the database refused; those applied before it stay, and it may be run again.
    """
    with _locked(database, prefix, wait_seconds), _explained("cannot migrate the database"):
        return tuple(_runner(database, folder, prefix, wordpress_tables).up())


def roll_back(
    database: Database,
    folder: Path,
    *,
    prefix: str,
    to: str | None,
    wordpress_tables: bool = False,
    wait_seconds: float = LOCK_WAIT_SECONDS,
) -> tuple[str, ...]:
    """Undo migrations, newest first. What their tables and columns held is gone.

    Args:
        to: the last migration that stays; None undoes the latest only.
        wordpress_tables: as for `migrate`.
    Returns: the names undone now, in order.
    Raises:
        TransitionConflict: another process is still migrating.
        ConfigError: `to` is not applied, or the file of one that is to be undone is missing.
    """
    with _locked(database, prefix, wait_seconds), _explained("cannot roll the database back"):
        runner = _runner(database, folder, prefix, wordpress_tables)
        newer = _newer(runner, to)
        return tuple(runner.down(newer[-1])) if newer else ()


def would_roll_back(database: Database, folder: Path, *, prefix: str, to: str | None) -> tuple[str, ...]:
    """What `roll_back` would undo, newest first; changes nothing.

    Raises:
        ConfigError: `to` is not applied, or the database cannot be read.
    """
    with _explained("cannot roll the database back"):
        return _newer(_runner(database, folder, prefix), to)


def status(database: Database, folder: Path, *, prefix: str) -> MigrationStatus:
    """Compare a database with a folder of migrations; changes nothing.

    Raises:
        ConfigError: the database cannot be read.
        DatabaseAway: its server is the reason.
    """
    what_failed = "cannot read the state of the database"
    try:
        with _explained(what_failed):
            entries = _runner(database, folder, prefix).status()
    except ConfigError as error:
        is_away = isinstance(error.__cause__, OperationalError | InterfaceError)
        if is_away and not isinstance(database, SqliteDatabase):
            raise DatabaseAway(f"{what_failed}: {error.__cause__}") from error
        raise
    return MigrationStatus(
        applied=tuple(entry.name for entry in entries if entry.applied and entry.path is not None),
        pending=tuple(entry.name for entry in entries if not entry.applied),
        unknown=tuple(entry.name for entry in entries if entry.path is None),
    )


def check_current(database: Database, folder: Path, *, prefix: str) -> None:
    """Refuse to work on tables that lack something; called by every process when it starts.

    A newer schema is tolerated, on record: while a release is rolled out, old workers run beside it.

    Raises:
        ConfigError: migrations are pending, or the database cannot be read.
    """
    found = status(database, folder, prefix=prefix)
    if found.pending:
        fault = "current" if found.applied or found.unknown else "set up"
        raise ConfigError(f"the database is not {fault}: run `smi migrate`", found.pending)
    if found.unknown:
        logger.warning("the database was migrated by a newer release: %s", ", ".join(found.unknown))


def _runner(database: Database, folder: Path, prefix: str, wordpress_tables: bool = False) -> Any:
    if not folder.is_dir():
        raise ConfigError(f"there is no folder of migrations at {folder}")
    runner = Runner(database, str(folder), table_name=f"{prefix}smi_migrations")
    # The runner hands scripts its migrator and nothing else.
    runner.migrator.table_prefix = prefix
    runner.migrator.wordpress_tables = wordpress_tables
    return runner


def _newer(runner: Any, to: str | None) -> tuple[str, ...]:
    """The applied migrations after this one, newest first; the latest alone where none is named."""
    applied = [entry.name for entry in runner.status() if entry.applied]
    if to is not None and to not in applied:
        names = ", ".join(applied) if applied else "nothing"
        raise MigrationError(f"{to} is not applied (applied: {names})")
    newer = applied[applied.index(to) + 1 :] if to is not None else applied[-1:]
    return tuple(reversed(newer))


@contextmanager
def _explained(what_failed: str) -> Iterator[None]:
    """Turn the libraries' errors into one that names the cause."""
    try:
        yield
    except (MigrationError, PeeweeException) as error:
        raise ConfigError(f"{what_failed}: {error}") from error


@contextmanager
def _locked(database: Database, prefix: str, wait_seconds: float) -> Iterator[None]:
    """Be the only one who migrates these tables; the lock dies with its process, or with its connection."""
    if database.transaction_depth():
        raise EngineError("migrating was called inside an open transaction; commit first")
    with ExitStack() as held:
        with _explained("cannot lock the database"):
            try_lock, unlock = _lock_of(database, prefix, held)
            deadline = time.monotonic() + wait_seconds
            while not try_lock():
                if time.monotonic() >= deadline:
                    raise TransitionConflict(
                        f"another process is migrating the database, and was not done in {wait_seconds:g} s"
                    )
                time.sleep(_POLL_SECONDS)
        held.callback(unlock)
        yield


def _lock_of(database: Database, prefix: str, held: ExitStack) -> tuple[Callable[[], bool], Callable[[], object]]:
    """How to try for the lock, and how to give it back, on this kind of database."""
    if isinstance(database, SqliteDatabase):
        return _file_lock(str(database.database), held)
    name = hashlib.sha256(f"smi_migrations {database.database} {prefix}".encode())

    def ask(sql: str, key: object) -> Any:
        return database.execute_sql(sql, (key,)).fetchone()[0]  # type: ignore[no-untyped-call]

    if isinstance(database, MySQLDatabase):
        word = f"smi_migrations_{name.hexdigest()[:40]}"
        return (
            lambda: ask("SELECT GET_LOCK(%s, 0)", word) == 1,
            lambda: _quietly(lambda: ask("SELECT RELEASE_LOCK(%s)", word)),
        )
    number = int.from_bytes(name.digest()[:8], "big", signed=True)
    return (
        lambda: bool(ask("SELECT pg_try_advisory_lock(%s)", number)),
        lambda: _quietly(lambda: ask("SELECT pg_advisory_unlock(%s)", number)),
    )


def _file_lock(path: str, held: ExitStack) -> tuple[Callable[[], bool], Callable[[], object]]:
    if path == ":memory:":
        return lambda: True, lambda: None
    try:
        # Never removed: whoever waits for it holds the same file open.
        file = os.open(f"{path}.migrate.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot lock the database: {error}") from error
    held.callback(os.close, file)

    def try_lock() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    return try_lock, lambda: fcntl.flock(file, fcntl.LOCK_UN)


def _quietly(give_back: Callable[[], object]) -> None:
    """The lock of a lost connection is gone already; saying so would hide why the connection was lost."""
    try:
        give_back()
    except PeeweeException as error:
        logger.debug("the lock was gone already: %s", error)
