"""Owns the tables of the sale: jobs (the seeds' `wp_smi_jobs`), payments, refunds, disputes, alerts.

Called by jobs/ and app.py.

The job's columns up to `updated_at` are the seeds' own; those after it are ours, each with the reason in its
`help_text`. Money columns in cents are minor units of the job's currency, integers; the seeds' decimal columns
show the same amounts to people and reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from peewee import (
    BigAutoField,
    BigIntegerField,
    BooleanField,
    CharField,
    Check,
    Database,
    DecimalField,
    IntegerField,
    Model,
    TextField,
)

from smi_workflow.engine.database import LongTextField, UtcDateTimeField, bind
from smi_workflow.engine.tables import Subject


class JobStatus(StrEnum):
    """The six states of a job."""

    AWAITING_PAYMENT = "awaiting_payment"
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"


class PaymentStatus(StrEnum):
    """What the job knows of its buyer's payment."""

    PENDING = "pending"
    PAID = "paid"
    FAILED = "failed"


class Resolution(StrEnum):
    """What the shop sells."""

    X4 = "4x"
    X8 = "8x"

    @property
    def factor(self) -> int:
        """How many times larger each side becomes."""
        return int(self.value[:-1])


def _one_of(column: str, values: type[StrEnum]) -> Any:
    return Check(f"{column} IN ({', '.join(repr(str(value)) for value in values)})")


class Job(Subject):
    """One sale."""

    # Core identification
    id = BigAutoField()
    job_id = CharField(255, unique=True)
    post_id = BigIntegerField(null=True, help_text="WordPress post where the image appears; opaque elsewhere.")
    attachment_id = BigIntegerField(null=True, help_text="WordPress media library reference; opaque elsewhere.")
    # Image information
    image_url = TextField()
    image_width = IntegerField()
    image_height = IntegerField()
    resolution = CharField(10, constraints=[_one_of("resolution", Resolution)])
    # Processing status
    status = CharField(20, default=JobStatus.AWAITING_PAYMENT, constraints=[_one_of("status", JobStatus)])
    # Payment integration
    stripe_payment_intent_id = CharField(255, null=True)
    stripe_checkout_session_id = CharField(255, null=True)
    payment_status = CharField(
        20, default=PaymentStatus.PENDING, constraints=[_one_of("payment_status", PaymentStatus)]
    )
    paid_at = UtcDateTimeField(null=True)
    # Cost analysis
    amount_charged = DecimalField(10, 2, null=True)
    amount_cost = DecimalField(10, 2, null=True)
    credits_used = DecimalField(10, 2, null=True)
    refunded_at = UtcDateTimeField(null=True)
    refund_amount = DecimalField(10, 2, null=True)
    refund_reason = TextField(null=True)
    # External service integration
    upsampler_job_id = CharField(255, null=True)
    upscaled_url = TextField(null=True)
    upscaled_file_path = TextField(null=True)
    # Download management
    download_token = CharField(64, null=True, help_text="SHA-256 of the token: a leaked table opens nothing.")
    download_expires_at = UtcDateTimeField(null=True)
    email_sent = BooleanField(default=False)
    # Customer communication
    email = CharField(255, null=True, help_text="May be unknown until Stripe supplies it.")
    # Lifecycle timestamps
    processing_started_at = UtcDateTimeField(null=True)
    completed_at = UtcDateTimeField(null=True)
    failed_at = UtcDateTimeField(null=True)
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()

    # Ours.
    currency = CharField(3, help_text="Amounts mean nothing without it.")
    markup_percentage = DecimalField(10, 2, help_text="As it was when the price was quoted.")
    livemode = BooleanField(help_text="Test payments must never buy real goods, nor the other way round.")
    amount_due_cents = BigIntegerField(help_text="What the checkout asks for; a payment must match it exactly.")
    paid_cents = BigIntegerField(default=0, help_text="Captured for the sale.")
    refunding_cents = BigIntegerField(default=0, help_text="Refunds requested or at Stripe: never refunded twice.")
    refunded_cents = BigIntegerField(default=0, help_text="Refunds settled, by Stripe or by a person elsewhere.")
    disputed_cents = BigIntegerField(default=0, help_text="Withdrawn by chargebacks, and not given back.")
    checkout_url = TextField(null=True, help_text="Where the buyer pays, for whoever asks again.")
    source_file = CharField(255, help_text="Our copy of the image as it was when it was measured.")
    submit_effect_id = CharField(32, null=True, help_text="The submission whose result this visit waits for.")
    delivered_at = UtcDateTimeField(null=True, help_text="When Upsampler said that the result is ready.")
    token_generation = IntegerField(default=0, help_text="Raised by each renewal: old links die.")
    overridden = BooleanField(default=False, help_text="An admin let it pass the payment guards, on record.")
    failure_code = CharField(64, null=True, help_text="Stable word for reports; the text is in the history.")
    purged_at = UtcDateTimeField(null=True, help_text="When personal data and files were removed.")

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
            # What lists of jobs walk.
            (("status", "created_at"), False),
            (("payment_status", "created_at"), False),
            (("email",), False),
            (("paid_at",), False),
            (("completed_at",), False),
            (("failed_at",), False),
        )

    @property
    def factor(self) -> int:
        """How many times larger each side becomes."""
        return Resolution(self.resolution).factor

    @property
    def expected_size(self) -> tuple[int, int]:
        """Width and height that the result must have, in pixels."""
        return self.image_width * self.factor, self.image_height * self.factor

    @property
    def refundable_cents(self) -> int:
        """What is left to give back, refunds in flight counted."""
        return self.paid_cents - self.refunding_cents - self.refunded_cents - self.disputed_cents


class PaymentRole(StrEnum):
    """What a payment turned out to be."""

    SALE = "sale"
    SURPLUS = "surplus"
    MISMATCH = "mismatch"


class Payment(Model):
    """One payment that Stripe captured, whether we wanted it or not."""

    id = BigAutoField()
    payment_intent_id = CharField(255, unique=True)
    charge_id = CharField(255, null=True, index=True)
    job_id = CharField(255, index=True)
    cents = BigIntegerField()
    currency = CharField(3)
    livemode = BooleanField()
    role = CharField(16, constraints=[_one_of("role", PaymentRole)])
    refunded_cents = BigIntegerField(default=0)
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_payments"


class RefundState(StrEnum):
    """The states of a refund."""

    REQUESTED = "requested"
    SUBMITTED = "submitted"
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    SETTLED_ELSEWHERE = "settled_elsewhere"


# Counted in the job's `refunding_cents`; and what has come to nothing, so that the money is still with us.
UNDER_WAY = (RefundState.REQUESTED, RefundState.SUBMITTED, RefundState.PENDING)
LOST = (RefundState.FAILED, RefundState.CANCELED)


class Refund(Subject):
    """Money on its way back; written before Stripe is called."""

    id = BigAutoField()
    refund_id = CharField(64, unique=True)
    job_id = CharField(255, index=True)
    payment_intent_id = CharField(255, index=True)
    role = CharField(16, constraints=[_one_of("role", PaymentRole)])
    cents = BigIntegerField()
    currency = CharField(3)
    state = CharField(20, default=RefundState.REQUESTED, constraints=[_one_of("state", RefundState)])
    stripe_refund_id = CharField(255, null=True, unique=True)
    reason = TextField(default="")
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()
    tries = IntegerField(default=1, help_text="How often it was set on its way; 0: somebody made it at Stripe.")
    past_stripe_ids = TextField(null=True, help_text="Stripe's ids of earlier tries: late news of them is stale.")

    class Meta:
        table_name = "smi_refunds"
        indexes = ((("state", "created_at"), False),)


class ScheduleState(StrEnum):
    """The states of a schedule."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"


class Schedule(Subject):
    """One kind of periodic work."""

    id = BigAutoField()
    name = CharField(64, unique=True)
    state = CharField(20, default=ScheduleState.WAITING)
    began_at = UtcDateTimeField(null=True, help_text="When the present run began, or the last one.")
    succeeded_at = UtcDateTimeField(null=True, help_text="When a run was last finished.")
    failures = IntegerField(default=0, help_text="Failed runs since then.")
    progress = LongTextField(null=True, help_text="How far the present run has come, in its work's own words.")
    memory = LongTextField(null=True, help_text="What the last finished run has left for the next.")
    report = LongTextField(null=True, help_text="What the last finished run did.")
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_schedules"


class Dispute(Model):
    """What a buyer's bank disputes of a payment, put together from events in whatever order they come."""

    id = BigAutoField()
    dispute_id = CharField(255, unique=True)
    job_id = CharField(255, index=True)
    payment_intent_id = CharField(255, index=True)
    role = CharField(16, constraints=[_one_of("role", PaymentRole)])
    withdrawn_cents = BigIntegerField(default=0, help_text="What the bank took when it opened the dispute.")
    reinstated = BooleanField(default=False, help_text="The bank has given it back.")
    created_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_disputes"

    @property
    def kept_cents(self) -> int:
        """What is with the bank."""
        return 0 if self.reinstated else self.withdrawn_cents


class AlertState(StrEnum):
    """The states of an alert."""

    OPEN = "open"
    CLOSED = "closed"


class Alert(Subject):
    """Something that waits for a person, and may belong to no sale."""

    id = BigAutoField()
    alert_id = CharField(64, unique=True, help_text="What it is about: an event's id in the inbox.")
    job_id = CharField(255, null=True, index=True, help_text="The sale, where one is known.")
    state = CharField(16, default=AlertState.OPEN, constraints=[_one_of("state", AlertState)])
    text = LongTextField()
    created_at = UtcDateTimeField()
    updated_at = UtcDateTimeField()

    class Meta:
        table_name = "smi_alerts"
        indexes = ((("state",), False),)


@dataclass(frozen=True, slots=True)
class JobTables:
    """The tables of the sale, bound to one database."""

    jobs: type[Job]
    payments: type[Payment]
    refunds: type[Refund]
    disputes: type[Dispute]
    alerts: type[Alert]
    schedules: type[Schedule]

    @classmethod
    def bound_to(cls, database: Database, prefix: str) -> Self:
        """Bind all of them."""
        return cls(
            jobs=bind(Job, database, prefix),
            payments=bind(Payment, database, prefix),
            refunds=bind(Refund, database, prefix),
            disputes=bind(Dispute, database, prefix),
            alerts=bind(Alert, database, prefix),
            schedules=bind(Schedule, database, prefix),
        )

    def by_declaration(self) -> Mapping[type[Model], type[Model]]:
        """Declared model → bound model, as the engine wants it."""
        return {
            Job: self.jobs, Payment: self.payments, Refund: self.refunds, Dispute: self.disputes,
            Alert: self.alerts, Schedule: self.schedules,
        }  # fmt: skip

    def all(self) -> tuple[type[Model], ...]:
        """Every bound model."""
        return tuple(self.by_declaration().values())
