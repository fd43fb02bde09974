"""Owns a later release's migration, for tests: a state more, a column, an index. Run by engine/migrate.py."""

from __future__ import annotations

from typing import Any

from peewee import Database, MySQLDatabase, PostgresqlDatabase, TextField

from smi_workflow.errors import ConfigError

BEFORE = ("awaiting_payment", "pending", "processing", "completed", "failed", "abandoned")
AFTER = (*BEFORE, "reviewing")
COLUMN, INDEX = "review_note", ("currency", "status")


def up(migrator: Any, db: Database) -> None:
    """Add what is missing: on MariaDB a crash leaves what was made so far, and this is run again."""
    jobs = f"{migrator.table_prefix}smi_jobs"
    if COLUMN not in _columns(db, jobs):
        migrator.migrate(migrator.add_column(jobs, COLUMN, TextField(null=True)))
    if INDEX not in _indexes(db, jobs):
        migrator.migrate(migrator.add_index(jobs, INDEX, False))
    _allow(db, jobs, BEFORE, AFTER)


def down(migrator: Any, db: Database) -> None:
    """Take it away again, unless a job would be left in a state that the database then refuses."""
    jobs = f"{migrator.table_prefix}smi_jobs"
    left = _ask(db, f"SELECT COUNT(*) FROM {jobs} WHERE status = 'reviewing'")
    if left:
        raise ConfigError(f"{left} jobs are reviewing, which the earlier release does not know: move them first")
    _allow(db, jobs, AFTER, BEFORE)
    if INDEX in _indexes(db, jobs):
        migrator.migrate(migrator.drop_index(jobs, _indexes(db, jobs)[INDEX]))
    if COLUMN in _columns(db, jobs):
        migrator.migrate(migrator.drop_column(jobs, COLUMN))


def _allow(db: Database, jobs: str, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """Put another check in the place of the one on the state."""
    old, new = (f"status IN ({', '.join(repr(name) for name in names)})" for names in (before, after))
    if isinstance(db, PostgresqlDatabase):
        _run(db, f"ALTER TABLE {jobs} DROP CONSTRAINT {jobs}_status_check")
        _run(db, f"ALTER TABLE {jobs} ADD CONSTRAINT {jobs}_status_check CHECK ({new})")
    elif isinstance(db, MySQLDatabase):
        _run(db, f"ALTER TABLE {jobs} MODIFY status VARCHAR(20) NOT NULL CHECK ({new})")
    else:
        # SQLite's own way for changes that move no data; the alternative copies the whole table.
        # Source: sqlite.org/lang_altertable.html, "Making Other Kinds Of Table Schema Changes".
        version = _ask(db, "PRAGMA schema_version")
        _run(db, "PRAGMA writable_schema=ON")
        found = _ask(db, "SELECT sql FROM sqlite_master WHERE type='table' AND name=?", jobs)
        assert old in found or new in found, found
        _run(db, "UPDATE sqlite_master SET sql=? WHERE type='table' AND name=?", found.replace(old, new), jobs)
        _run(db, f"PRAGMA schema_version={version + 1}")
        _run(db, "PRAGMA writable_schema=RESET")


def _columns(db: Database, table: str) -> set[str]:
    return {column.name for column in db.get_columns(table)}


def _indexes(db: Database, table: str) -> dict[tuple[str, ...], str]:
    return {tuple(index.columns): index.name for index in db.get_indexes(table)}


def _run(db: Database, sql: str, *values: object) -> Any:
    return db.execute_sql(sql, values)  # type: ignore[no-untyped-call]


def _ask(db: Database, sql: str, *values: object) -> Any:
    return _run(db, sql, *values).fetchone()[0]
