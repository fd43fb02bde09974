"""Owns a database with some hundred jobs in every state, with all that hangs on them. Called by tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peewee import Database, Model

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.engine.migrate import migrate
from tests.histories.replay import replay
from tests.histories.tape import path_of_today, recorded_lives
from tests.support.apps import Rung, test_settings
from tests.support.engines import HandClock

# What must differ in a copy of a job, by table; ids of effects and events are digests, to keep their length.
_NAMES = {
    "smi_jobs": ("job_id", "stripe_payment_intent_id", "stripe_checkout_session_id"),
    "smi_payments": ("payment_intent_id", "charge_id", "job_id"),
    "smi_refunds": ("refund_id", "job_id", "payment_intent_id", "stripe_refund_id"),
    "smi_disputes": ("dispute_id", "job_id", "payment_intent_id"),
    "smi_alerts": ("alert_id", "job_id"),
    "smi_transitions": ("subject_id",),
    "smi_effects": ("subject_id",),
    "smi_inbox": ("subject_id", "event_id"),
    "smi_audit": (),
    "smi_schedules": ("name",),
}
ODD = "ünï \"quoted\" 'text' \\ % 🜁 \n" + "long " * 20_000


_lived: list[dict[str, list[dict[str, Any]]]] = []


def fill(url: str, folder: Path, copies: int = 8) -> App:
    """Migrate a database and put in it what the recorded lives leave behind, many times; returns the open App."""
    if not _lived:
        _lived.append(_live(folder))
    app = App(test_settings(folder, database_url=url), ring=Rung(), clock=HandClock())
    prefix = app.settings.table_prefix
    migrate(app.database, MIGRATIONS, prefix=prefix)
    with app.database.atomic():
        for model in _models(app):
            table = str(model._meta.table_name).removeprefix(prefix)
            made = [_renamed(row, table, number) for number in range(copies) for row in _lived[0][table]]
            for start in range(0, len(made), 100):
                model.insert_many(made[start : start + 100]).execute()
    return app


def _live(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Let every recorded life happen, in memory; returns the rows of each table."""
    clock = HandClock()
    app = App(test_settings(folder, database_url="sqlite:///:memory:"), ring=Rung(), clock=clock)
    prefix = app.settings.table_prefix
    migrate(app.database, MIGRATIONS, prefix=prefix)
    for life in recorded_lives(path_of_today()):
        # Nobody is told here, so no hook is owed.
        assert [found for found in replay(life, app, clock) if "send_hook" not in found] == []
        app.engine.audit(actor="admin:jane", act="look", target="somewhere", reason=ODD, details="[]")
        told = app.inbox.receive("stripe", f"evt_{life.name}", "charge.succeeded", f'{{"life": "{life.name}"}}')
        events = app.tables.events
        odd = {"reason": ODD, "subject_id": life.ends[0].subject, "workflow": "job"}
        events.update(odd).where(events.id == told.id).execute()
        about = {"alert_id": told.id, "job_id": odd["subject_id"], "text": ODD, "created_at": clock.now()}
        app.engine.start("alert", about, actor="system", reason="given up")
    for number in range(10):
        work = {"name": f"work {number}", "created_at": clock.now(), "report": ODD}
        app.engine.start("schedule", work, actor="system")
    rows: dict[str, list[dict[str, Any]]] = {}
    for model in _models(app):
        found: Any = model.select().dicts()
        rows[str(model._meta.table_name).removeprefix(prefix)] = list(found)
    app.close()
    return rows


def _models(app: App) -> list[type[Model]]:
    return [*app.tables.all(), *app.job_tables.all()]


def contents(database: Database, prefix: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of our tables, as the driver gives it, by column."""
    found = {}
    for table in sorted(name for name in database.get_tables() if name.startswith(f"{prefix}smi_")):
        if not table.endswith("_migrations"):
            cursor = database.execute_sql(f"SELECT * FROM {table} ORDER BY id")  # type: ignore[no-untyped-call]
            names = [column[0] for column in cursor.description]
            found[table] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return found


def _renamed(row: Mapping[str, Any], table: str, number: int) -> dict[str, Any]:
    made = dict(row)
    for name in _NAMES[table]:
        if made[name] is not None:
            made[name] = f"{made[name]}-{number}"
    if isinstance(made["id"], str):
        made["id"] = hashlib.sha256(f"{made['id']}-{number}".encode()).hexdigest()[:32]
    else:
        del made["id"]
    return made
