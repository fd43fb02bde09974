"""Owns the indexes that lists of jobs walk: newest first by state, by payment, by buyer. Run by engine/migrate.py.

The model is a frozen copy of what the indexes need.
"""

from __future__ import annotations

from typing import Any

from peewee import CharField, Database, Model

from smi_workflow.engine.database import UtcDateTimeField

NAME_MAX = 63  # where PostgreSQL cuts names


class Job(Model):
    status = CharField(20)
    payment_status = CharField(20)
    email = CharField(255, null=True)
    created_at = UtcDateTimeField()
    paid_at = UtcDateTimeField(null=True)
    completed_at = UtcDateTimeField(null=True)
    failed_at = UtcDateTimeField(null=True)

    class Meta:
        table_name = "smi_jobs"
        indexes = (
            (("status", "created_at"), False),
            (("payment_status", "created_at"), False),
            (("email",), False),
            (("paid_at",), False),
            (("completed_at",), False),
            (("failed_at",), False),
        )


def up(migrator: Any, db: Database) -> None:
    """Add what is missing: on MariaDB a crash leaves what was made so far, and this is run again."""
    there = _there(migrator, db)
    for name, make in _indexes(migrator, db):
        if name not in there:
            db.execute(make)  # type: ignore[no-untyped-call]


def down(migrator: Any, db: Database) -> None:
    """Take them away."""
    there = _there(migrator, db)
    for name, _ in _indexes(migrator, db):
        if name in there:
            # MariaDB wants the table's name, which peewee leaves out here; the migrator of each knows its own way.
            migrator.migrate(migrator.drop_index(_table(migrator), there[name]))


def _indexes(migrator: Any, db: Database) -> list[tuple[str, Any]]:
    """Each index by its name, as it is compared, and the statement that makes it."""
    table = _table(migrator)
    meta = {"database": db, "table_name": table, "legacy_table_names": False}
    bound = type("Job", (Job,), {"Meta": type("Meta", (), meta), "__module__": __name__})
    schema = bound._schema  # type: ignore[attr-defined]
    return [
        (index._name[:NAME_MAX], schema._create_index(index, safe=False))
        for index in bound._meta.fields_to_index()  # type: ignore[attr-defined]
    ]


def _there(migrator: Any, db: Database) -> dict[str, str]:
    """The indexes that there are: the name as it is compared, and as it is."""
    return {index.name[:NAME_MAX]: index.name for index in db.get_indexes(_table(migrator))}


def _table(migrator: Any) -> str:
    return f"{migrator.table_prefix}{Job._meta.table_name}"
