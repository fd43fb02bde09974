"""Owns the first tables: the engine's history, effects, inbox, audit; the sale's jobs, payments, refunds.

Called by engine/migrate.py. The models are frozen copies: the application's models may change, with a migration
of their own each time; these stay as they are.
"""

from __future__ import annotations

from typing import Any

from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    BooleanField,
    CharField,
    Check,
    Database,
    DecimalField,
    IntegerField,
    Model,
    MySQLDatabase,
    TextField,
)

from smi_workflow.engine.database import LongTextField, UtcDateTimeField, table_settings
from smi_workflow.errors import ConfigError


class Transition(Model):
    id = BigAutoField()
    workflow = CharField(32)
    subject_id = CharField(64)
    sequence = IntegerField()
    trigger = CharField(64)
    from_state = CharField(32)
    to_state = CharField(32)
    actor = CharField(100)
    reason = LongTextField()
    metadata = LongTextField()
    fingerprint = CharField(16)
    idempotency_key = CharField(100, null=True)
    caused_by = CharField(80, null=True)
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_transitions"
        indexes = (
            (("workflow", "subject_id", "sequence"), True),
            (("workflow", "subject_id", "idempotency_key"), True),
        )


class Effect(Model):
    id = CharField(32, primary_key=True)
    workflow = CharField(32)
    subject_id = CharField(64)
    visit = IntegerField()
    sequence = IntegerField()
    name = CharField(64)
    queue = CharField(32)
    is_timer = BooleanField()
    survives = BooleanField()
    inputs = LongTextField()
    state = CharField(16)
    due_at = UtcDateTimeField()
    attempts = IntegerField()
    attempts_max = IntegerField()
    doubts = IntegerField()
    waits = IntegerField()
    lease_token = CharField(40, null=True)
    lease_until = UtcDateTimeField(null=True)
    first_attempt_at = UtcDateTimeField(null=True)
    last_error = LongTextField(null=True)
    outcome = LongTextField(null=True)
    created_at = UtcDateTimeField()
    settled_at = UtcDateTimeField(null=True)

    class Meta:
        table_name = "smi_effects"
        indexes = (
            (("workflow", "subject_id", "visit"), False),
            (("state", "queue", "due_at"), False),
            (("state", "lease_until"), False),
        )


class Event(Model):
    id = CharField(32, primary_key=True)
    provider = CharField(32)
    event_id = CharField(150)
    kind = CharField(100)
    payload = LongTextField()
    workflow = CharField(32, null=True)
    subject_id = CharField(64, null=True)
    state = CharField(16)
    reason = LongTextField(null=True)
    attempts = IntegerField()
    due_at = UtcDateTimeField()
    received_at = UtcDateTimeField()
    settled_at = UtcDateTimeField(null=True)

    class Meta:
        table_name = "smi_inbox"
        indexes = (
            (("provider", "event_id"), True),
            (("state", "due_at"), False),
            (("workflow", "subject_id", "state"), False),
        )


class Audit(Model):
    id = BigAutoField()
    actor = CharField(100)
    act = CharField(64)
    target = CharField(100)
    reason = LongTextField()
    details = LongTextField()
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_audit"
        indexes = ((("target",), False), (("created_at",), False))


_ROLES = "role IN ('sale', 'surplus', 'mismatch')"


class Job(Model):
    id = BigAutoField()
    version = IntegerField()
    visit = IntegerField()
    parked_events = IntegerField()
    job_id = CharField(255, unique=True)
    post_id = BigIntegerField(null=True)
    attachment_id = BigIntegerField(null=True)
    image_url = TextField()
    image_width = IntegerField()
    image_height = IntegerField()
    resolution = CharField(10, constraints=[Check("resolution IN ('4x', '8x')")])
    status = CharField(
        20,
        constraints=[
            Check("status IN ('awaiting_payment', 'pending', 'processing', 'completed', 'failed', 'abandoned')")
        ],
    )
    stripe_payment_intent_id = CharField(255, null=True)
    stripe_checkout_session_id = CharField(255, null=True)
    payment_status = CharField(20, constraints=[Check("payment_status IN ('pending', 'paid', 'failed')")])
    paid_at = UtcDateTimeField(null=True)
    amount_charged = DecimalField(10, 2, null=True)
    amount_cost = DecimalField(10, 2, null=True)
    credits_used = DecimalField(10, 2, null=True)
    refunded_at = UtcDateTimeField(null=True)
    refund_amount = DecimalField(10, 2, null=True)
    refund_reason = TextField(null=True)
    upsampler_job_id = CharField(255, null=True)
    upscaled_url = TextField(null=True)
    upscaled_file_path = TextField(null=True)
    download_token = CharField(64, null=True)
    download_expires_at = UtcDateTimeField(null=True)
    email_sent = BooleanField()
    email = CharField(255, null=True)
    processing_started_at = UtcDateTimeField(null=True)
    completed_at = UtcDateTimeField(null=True)
    failed_at = UtcDateTimeField(null=True)
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()
    currency = CharField(3)
    markup_percentage = DecimalField(10, 2)
    livemode = BooleanField()
    amount_due_cents = BigIntegerField()
    paid_cents = BigIntegerField()
    refunding_cents = BigIntegerField()
    refunded_cents = BigIntegerField()
    disputed_cents = BigIntegerField()
    checkout_url = TextField(null=True)
    source_file = CharField(255)
    submit_effect_id = CharField(32, null=True)
    delivered_at = UtcDateTimeField(null=True)
    token_generation = IntegerField()
    overridden = BooleanField()
    failure_code = CharField(64, null=True)
    purged_at = UtcDateTimeField(null=True)

    class Meta:
        table_name = "smi_jobs"
        indexes = (
            (("post_id",), False),
            (("attachment_id",), False),
            (("post_id", "attachment_id"), False),
            (("status",), False),
            (("payment_status",), False),
            (("download_token",), False),
            (("created_at",), False),
            (("download_expires_at",), False),
            (("stripe_checkout_session_id",), False),
            (("stripe_payment_intent_id",), False),
        )


class PostIdField(BigIntegerField):
    """A WordPress id: a foreign key must have the very type of the column it refers to."""

    field_type = "BIGINT UNSIGNED"


class WordPressJob(Job):
    post_id = PostIdField(null=True)
    attachment_id = PostIdField(null=True)

    class Meta:
        table_name = "smi_jobs"


class Payment(Model):
    id = BigAutoField()
    payment_intent_id = CharField(255, unique=True)
    charge_id = CharField(255, null=True, index=True)
    job_id = CharField(255, index=True)
    cents = BigIntegerField()
    currency = CharField(3)
    livemode = BooleanField()
    role = CharField(16, constraints=[Check(_ROLES)])
    refunded_cents = BigIntegerField()
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_payments"


class Refund(Model):
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
    state = CharField(20, constraints=[Check("state IN ('requested', 'submitted', 'succeeded', 'failed')")])
    stripe_refund_id = CharField(255, null=True, unique=True)
    reason = TextField()
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_refunds"


def up(migrator: Any, db: Database) -> None:
    """Create what is missing: on MariaDB a crash leaves what was made so far, and this is run again."""
    models = _tables(migrator, db)
    _refuse_foreign_tables(models, db)
    for model in models:
        model._meta.table_settings = table_settings(db)
        schema = model._schema  # type: ignore[attr-defined]
        schema.create_table(safe=True)
        there = {index.name for index in db.get_indexes(model._meta.table_name)}
        for index in model._meta.fields_to_index():
            # PostgreSQL cuts names to 63 characters.
            if not {index._name, index._name[:63]} & there:
                db.execute(schema._create_index(index, safe=False))  # type: ignore[no-untyped-call]


def _refuse_foreign_tables(models: list[type[Model]], db: Database) -> None:
    """Refuse tables of the same name that are not ours: the WordPress plugin has a wp_smi_jobs of its own."""
    there = set(db.get_tables())
    problems = []
    for model in models:
        table = model._meta.table_name
        if table in there:
            lacking = set(model._meta.columns) - {column.name for column in db.get_columns(table)}
            if lacking:
                problems.append(f"{table} exists already and lacks {', '.join(sorted(lacking))}")
    if problems:
        raise ConfigError("another program's tables are in the way: set another SMI_TABLE_PREFIX", problems)


def down(migrator: Any, db: Database) -> None:
    """Drop everything, and with it every sale on record."""
    db.drop_tables(_tables(migrator, db), safe=True)


def _tables(migrator: Any, db: Database) -> list[type[Model]]:
    job, constraints = Job, []
    if migrator.wordpress_tables and isinstance(db, MySQLDatabase):
        job = WordPressJob
        posts = f"{migrator.table_prefix}posts"
        constraints = [
            SQL(f"FOREIGN KEY (`{column}`) REFERENCES `{posts}` (`ID`) ON DELETE SET NULL")
            for column in ("post_id", "attachment_id")
        ]
    return [
        _bound(model, migrator, db, constraints if model is job else [])
        for model in (Transition, Effect, Event, Audit, job, Payment, Refund)
    ]


def _bound(model: type[Model], migrator: Any, db: Database, constraints: list[SQL]) -> type[Model]:
    meta = {
        "database": db,
        "table_name": f"{migrator.table_prefix}{model._meta.table_name}",
        "legacy_table_names": False,
        "constraints": constraints,
    }
    return type(model.__name__, (model,), {"Meta": type("Meta", (), meta), "__module__": __name__})
