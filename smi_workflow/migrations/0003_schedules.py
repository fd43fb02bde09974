"""Owns the table of periodic work, and the index by which slow refunds are found. Called by migrate.py."""

from __future__ import annotations

from typing import Any

from peewee import BigAutoField, CharField, Database, IntegerField, Model

from smi_workflow.engine.database import LongTextField, UtcDateTimeField, table_settings


class Schedule(Model):
    id = BigAutoField()
    version = IntegerField()
    visit = IntegerField()
    parked_events = IntegerField()
    name = CharField(64, unique=True)
    state = CharField(20)
    began_at = UtcDateTimeField(null=True)
    succeeded_at = UtcDateTimeField(null=True)
    failures = IntegerField()
    progress = LongTextField(null=True)
    memory = LongTextField(null=True)
    report = LongTextField(null=True)
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_schedules"


class Refund(Model):
    state = CharField(20)
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_refunds"
        indexes = ((("state", "created_at"), False),)


def up(migrator: Any, db: Database) -> None:
    """Create what is missing: on MariaDB a crash leaves what was made so far, and this is run again."""
    _bound(Schedule, migrator, db)._schema.create_table(safe=True)  # type: ignore[attr-defined]
    for model in (Schedule, Refund):
        bound = _bound(model, migrator, db)
        schema = bound._schema  # type: ignore[attr-defined]
        there = {index.name for index in db.get_indexes(bound._meta.table_name)}
        for index in bound._meta.fields_to_index():
            # PostgreSQL cuts names to 63 characters.
            if not {index._name, index._name[:63]} & there:
                db.execute(schema._create_index(index, safe=False))  # type: ignore[no-untyped-call]


def down(migrator: Any, db: Database) -> None:
    """Drop them, and with them what the runs remember: the next ones begin anew."""
    refunds = _bound(Refund, migrator, db)
    table = refunds._meta.table_name
    there = {index.name for index in db.get_indexes(table)}
    for index in refunds._meta.fields_to_index():
        for name in {index._name, index._name[:63]} & there:
            # The migrator knows how each database names it: MariaDB wants the table as well.
            migrator.migrate(migrator.drop_index(table, name))
    db.drop_tables([_bound(Schedule, migrator, db)], safe=True)


def _bound(model: type[Model], migrator: Any, db: Database) -> type[Model]:
    meta = {
        "database": db,
        "table_name": f"{migrator.table_prefix}{model._meta.table_name}",
        "table_settings": table_settings(db),
        "legacy_table_names": False,
    }
    return type(model.__name__, (model,), {"Meta": type("Meta", (), meta), "__module__": __name__})
