"""Owns the looking into a database from outside the models: its tables' shape, its rows. Called by tests."""

from __future__ import annotations

from typing import Any

import peewee
from peewee import Database, PostgresqlDatabase

from smi_workflow.engine.database import is_sqlite
from smi_workflow.engine.tables import Tables
from smi_workflow.jobs.model import JobTables


def rows(database: Database, sql: str) -> list[tuple[Any, ...]]:
    return list(database.execute_sql(sql).fetchall())  # type: ignore[no-untyped-call]


def models(database: Database, prefix: str) -> list[type[peewee.Model]]:
    return [*Tables.bound_to(database, prefix).all(), *JobTables.bound_to(database, prefix).all()]


def schema(database: Database, prefix: str) -> list[tuple[Any, ...]]:
    """All that the database itself tells about the tables of this prefix, the migrations' own left out."""
    if is_sqlite(database):
        found = rows(database, "SELECT tbl_name, type, name, sql FROM sqlite_master")
    elif isinstance(database, PostgresqlDatabase):
        found = rows(
            database,
            "SELECT table_name, ordinal_position, column_name, data_type, character_maximum_length,"
            " numeric_precision, numeric_scale, datetime_precision, is_nullable, column_default"
            " FROM information_schema.columns WHERE table_schema = 'public'",
        )
        found += rows(
            database, "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        )
        found += rows(
            database,
            "SELECT r.relname, c.conname, pg_get_constraintdef(c.oid) FROM pg_constraint c"
            " JOIN pg_class r ON r.oid = c.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace"
            " WHERE n.nspname = 'public'",
        )
    else:
        found = rows(
            database,
            "SELECT table_name, ordinal_position, column_name, column_type, is_nullable, column_default"
            " FROM information_schema.columns WHERE table_schema = DATABASE()",
        )
        found += rows(
            database,
            "SELECT table_name, index_name, seq_in_index, column_name, non_unique"
            " FROM information_schema.statistics WHERE table_schema = DATABASE()",
        )
        found += rows(
            database,
            "SELECT table_name, constraint_name, check_clause FROM information_schema.check_constraints"
            " WHERE constraint_schema = DATABASE()",
        )
    own = f"{prefix}smi_migrations"
    return sorted((row for row in found if row[0].startswith(prefix) and row[0] != own), key=repr)
