"""Owns what refunds, disputes and alerts need beyond the first tables. Run by engine/migrate.py.

Refunds may be `pending`, `canceled` or `settled_elsewhere`, and count their tries; disputes and alerts get tables.
What the rows so far know of charges and chargebacks is filled in. The models are frozen copies.
"""

from __future__ import annotations

import json
from typing import Any

from peewee import (
    BigAutoField,
    BigIntegerField,
    BooleanField,
    CharField,
    Check,
    Database,
    IntegerField,
    Model,
    MySQLDatabase,
    PostgresqlDatabase,
    TextField,
    Value,
)

from smi_workflow.engine.database import LongTextField, UtcDateTimeField, is_sqlite, table_settings
from smi_workflow.errors import ConfigError

PAGE = 1000
BEFORE = ("requested", "submitted", "succeeded", "failed")
AFTER = ("requested", "submitted", "pending", "succeeded", "failed", "canceled", "settled_elsewhere")
_ROLES = "role IN ('sale', 'surplus', 'mismatch')"


def _states(names: tuple[str, ...]) -> str:
    return f"state IN ({', '.join(repr(name) for name in names)})"


class RefundBefore(Model):
    id = BigAutoField()
    version = IntegerField()
    visit = IntegerField()
    parked_events = IntegerField()
    refund_id = CharField(64, unique=True)
    job_id = CharField(255, index=True)
    payment_intent_id = CharField(255, index=True)
    role = CharField(16, constraints=[Check(_ROLES)])
    cents = BigIntegerField()
    currency = CharField(3)
    state = CharField(20, constraints=[Check(_states(BEFORE))])
    stripe_refund_id = CharField(255, null=True, unique=True)
    reason = TextField()
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_refunds"


class RefundAfter(RefundBefore):
    state = CharField(20, constraints=[Check(_states(AFTER))])
    stripe_refund_id = CharField(255, null=True, unique=True)
    reason = TextField()
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()
    tries = IntegerField()
    past_stripe_ids = TextField(null=True)

    class Meta:
        table_name = "smi_refunds"


class Dispute(Model):
    id = BigAutoField()
    dispute_id = CharField(255, unique=True)
    job_id = CharField(255, index=True)
    payment_intent_id = CharField(255, index=True)
    role = CharField(16, constraints=[Check(_ROLES)])
    withdrawn_cents = BigIntegerField()
    reinstated = BooleanField()
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_disputes"


class Alert(Model):
    id = BigAutoField()
    version = IntegerField()
    visit = IntegerField()
    parked_events = IntegerField()
    alert_id = CharField(64, unique=True)
    job_id = CharField(255, null=True, index=True)
    state = CharField(16, constraints=[Check("state IN ('open', 'closed')")])
    text = LongTextField()
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_alerts"
        indexes = ((("state",), False),)


class Event(Model):
    id = CharField(32, primary_key=True)
    provider = CharField(32)
    kind = CharField(100)
    payload = LongTextField()

    class Meta:
        table_name = "smi_inbox"


class Payment(Model):
    id = BigAutoField()
    payment_intent_id = CharField(255)
    charge_id = CharField(255, null=True)

    class Meta:
        table_name = "smi_payments"


class Job(Model):
    id = BigAutoField()
    job_id = CharField(255)
    stripe_payment_intent_id = CharField(255, null=True)
    disputed_cents = BigIntegerField()
    updated_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_jobs"


class Transition(Model):
    id = BigAutoField()
    workflow = CharField(32)
    subject_id = CharField(64)
    sequence = IntegerField()
    trigger = CharField(64)
    metadata = LongTextField()

    class Meta:
        table_name = "smi_transitions"


def up(migrator: Any, db: Database) -> None:
    """Add what is missing: on MariaDB a crash leaves what was made so far, and this is run again."""
    for model in (Dispute, Alert):
        _create(_bound(model, migrator, db))
    refund = _bound(RefundAfter, migrator, db)
    if is_sqlite(db):
        _rebuild(_bound(RefundBefore, migrator, db), refund)
    else:
        refunds = str(refund._meta.table_name)
        present = {column.name for column in db.get_columns(refunds)}
        if "tries" not in present:
            _run(db, f"ALTER TABLE {refunds} ADD COLUMN tries INTEGER NOT NULL DEFAULT 1")
        _run(db, f"ALTER TABLE {refunds} ALTER COLUMN tries DROP DEFAULT")
        if "past_stripe_ids" not in present:
            _run(db, f"ALTER TABLE {refunds} ADD COLUMN past_stripe_ids TEXT")
        _allow(db, refunds, AFTER)
    refund.update(tries=0).where(refund.reason == "made at Stripe").execute()
    _fill_charges(_bound(Event, migrator, db), _bound(Payment, migrator, db))
    _fill_disputes(migrator, db)


def down(migrator: Any, db: Database) -> None:
    """Take it away again, unless a refund would be left in a state that the database then refuses."""
    refund, new = _bound(RefundAfter, migrator, db), [name for name in AFTER if name not in BEFORE]
    left = refund.select().where(refund.state.in_(new)).count()
    if left:
        raise ConfigError(
            f"{left} refunds are {', '.join(new)}, which the earlier release does not know:"
            " let it run on the later tables"
        )
    if is_sqlite(db):
        _rebuild(refund, _bound(RefundBefore, migrator, db))
    else:
        refunds = str(refund._meta.table_name)
        present = {column.name for column in db.get_columns(refunds)}
        for column in ("tries", "past_stripe_ids"):
            if column in present:
                _run(db, f"ALTER TABLE {refunds} DROP COLUMN {column}")
        _allow(db, refunds, BEFORE)
    db.drop_tables([_bound(model, migrator, db) for model in (Dispute, Alert)], safe=True)


def _allow(db: Database, refunds: str, states: tuple[str, ...]) -> None:
    """Put another check in the place of the one on the state."""
    if isinstance(db, PostgresqlDatabase):
        _run(db, f"ALTER TABLE {refunds} DROP CONSTRAINT IF EXISTS {refunds}_state_check")
        _run(db, f"ALTER TABLE {refunds} ADD CONSTRAINT {refunds}_state_check CHECK ({_states(states)})")
    else:
        assert isinstance(db, MySQLDatabase)
        _run(db, f"ALTER TABLE {refunds} MODIFY state VARCHAR(20) NOT NULL CHECK ({_states(states)})")


def _rebuild(old: Any, new: Any) -> None:
    """SQLite cannot change a check in place: the rows move to a table made anew, within this transaction."""
    db, table, kept = new._meta.database, new._meta.table_name, f"{new._meta.table_name}_before"
    _run(db, f"ALTER TABLE {table} RENAME TO {kept}")
    for index in db.get_indexes(kept):
        # The renamed table keeps its indexes, and their names are wanted for the new one.
        _run(db, f'DROP INDEX "{index.name}"')
    _create(new)
    old._meta.set_table_name(kept)
    shared = [name for name in new._meta.columns if name in old._meta.columns]
    columns, values = [getattr(new, name) for name in shared], [getattr(old, name) for name in shared]
    if "tries" not in shared and "tries" in new._meta.columns:
        columns, values = [*columns, new.tries], [*values, Value(1)]
    new.insert_from(old.select(*values), columns).execute()
    _run(db, f"DROP TABLE {kept}")


def _fill_charges(event: Any, payment: Any) -> None:
    """Which payment a charge belongs to was looked for in the events until now."""
    of_charges, last = (event.provider == "stripe") & (event.kind == "charge.succeeded"), ""
    page = event.select(event.id, event.payload).where(of_charges).order_by(event.id).limit(PAGE)
    while rows := list(page.where(event.id > last).tuples()):
        last = rows[-1][0]
        for _, payload in rows:
            charge = _object(payload)
            if charge.get("payment_intent") and charge.get("id"):
                its = (payment.payment_intent_id == charge["payment_intent"]) & payment.charge_id.is_null()
                payment.update(charge_id=charge["id"]).where(its).execute()


def _fill_disputes(migrator: Any, db: Database) -> None:
    """One dispute for each job that a bank has taken money from: until now only their sum was kept."""
    models: tuple[Any, ...] = (Dispute, Job, Transition)
    dispute, job, history = (_bound(model, migrator, db) for model in models)
    for row in list(job.select().where(job.disputed_cents > 0)):
        if dispute.select().where(dispute.job_id == row.job_id).exists():
            continue
        own = (history.workflow == "job") & (history.subject_id == row.job_id)
        opened = own & (history.trigger == "dispute_opened")
        told = history.select().where(opened).order_by(history.sequence.desc())
        named = [json.loads(one.metadata) for one in told]
        dispute_id = next((one["dispute_id"] for one in named if one.get("withdrawn_cents")), "")
        if not dispute_id or dispute.select().where(dispute.dispute_id == dispute_id).exists():
            dispute_id = f"unknown-{row.job_id}"
        dispute.insert(
            dispute_id=dispute_id, job_id=row.job_id, payment_intent_id=row.stripe_payment_intent_id or "",
            role="sale", withdrawn_cents=row.disputed_cents, reinstated=False, created_at=row.updated_at,
        ).execute()  # fmt: skip


def _object(payload: str) -> dict[str, Any]:
    try:
        thing = json.loads(payload).get("object")
    except (ValueError, AttributeError):
        return {}
    return thing if isinstance(thing, dict) else {}


def _create(model: type[Model]) -> None:
    model._meta.table_settings = table_settings(model._meta.database)
    schema, database = model._schema, model._meta.database  # type: ignore[attr-defined]
    schema.create_table(safe=True)
    there = {index.name for index in database.get_indexes(model._meta.table_name)}
    for index in model._meta.fields_to_index():
        # PostgreSQL cuts names to 63 characters.
        if not {index._name, index._name[:63]} & there:
            database.execute(schema._create_index(index, safe=False))


def _run(db: Database, sql: str, *values: object) -> Any:
    return db.execute_sql(sql, values)  # type: ignore[no-untyped-call]


def _bound(model: type[Model], migrator: Any, db: Database) -> Any:
    meta = {
        "database": db,
        "table_name": f"{migrator.table_prefix}{model._meta.table_name}",
        "legacy_table_names": False,
    }
    return type(model.__name__, (model,), {"Meta": type("Meta", (), meta), "__module__": __name__})
