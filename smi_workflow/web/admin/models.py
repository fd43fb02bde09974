"""Owns what goes in and out of the admins' API: a model for every query, body and answer. Called by api.py."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field

from smi_workflow.jobs.model import JobStatus, PaymentStatus
from smi_workflow.jobs.queries import CURSOR_LENGTH_MAX
from smi_workflow.web.models import EXAMPLE_JOB, REFERENCE_MAX, Amount, Currency, Status, Taken, Told

PAGE_MAX = 200
# Later ones of one job are left out of its detail; the newest stay.
ROWS_MAX = 500
# Source: RFC 3339.
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


def _at_most_one(value: object) -> object:
    """A query names a parameter as often as it likes; most are meant once."""
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError("is given more than once")
        return value[0]
    return value


def _written_out(value: object) -> object:
    """Refuse numbers, which would be taken for seconds since 1970."""
    if isinstance(value, str) and not _MOMENT.fullmatch(value):
        raise ValueError("must be a moment with its time zone, e.g. 2026-01-31T00:00:00Z")
    return value


Once = BeforeValidator(_at_most_one)
# The last one named is asked first.
Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), Once]
Reference = Annotated[int, Once, Field(ge=0, le=REFERENCE_MAX)]


class JobQuery(Taken):
    """Which jobs to list."""

    # What a query holds is text.
    model_config = ConfigDict(extra="forbid", strict=False)

    status: list[JobStatus] | None = Field(None, description="Only these; repeat the parameter for several.")
    payment_status: Annotated[PaymentStatus, Once] | None = Field(None, description="Only these.")
    email: Annotated[str, Once, Field(max_length=254)] | None = Field(None, description="Only this buyer's.")
    post_id: Reference | None = Field(None, description="Only this post's.")
    attachment_id: Reference | None = Field(None, description="Only this attachment's.")
    created_from: Moment | None = Field(
        None, description="Ordered at this moment or later; with a time zone.", examples=["2026-01-31T00:00:00Z"]
    )
    created_before: Moment | None = Field(
        None, description="Ordered before this moment; with a time zone.", examples=["2026-02-01T00:00:00Z"]
    )
    search: Annotated[str, Once, Field(min_length=1, max_length=255)] | None = Field(
        None,
        description="One whole name at hand: a job's id, an e-mail address, the number of a post or an "
        "attachment, a checkout session (cs_…) or a payment intent (pi_…).",
        examples=["jane@example.com"],
    )
    order: Annotated[
        Literal[
            "-created_at",
            "created_at",
            "-paid_at",
            "paid_at",
            "-completed_at",
            "completed_at",
            "-failed_at",
            "failed_at",
        ],
        Once,
    ] = Field("-created_at", description="By this moment; - is newest first. Jobs without it are left out.")
    limit: Annotated[int, Once, Field(ge=1, le=PAGE_MAX)] = Field(50, description="How many at most.")
    cursor: Annotated[str, Once, Field(max_length=CURSOR_LENGTH_MAX)] | None = Field(
        None, description="`next_cursor` of the page before, with everything else as it was."
    )


class JobRow(Told):
    """A job as its row has it. Amounts are in the currency's own unit; `_cents` are minor units."""

    model_config = ConfigDict(from_attributes=True, json_schema_serialization_defaults_required=True)

    job_id: str = Field(examples=[EXAMPLE_JOB])
    status: Status
    payment_status: str = Field(description=f"One of {', '.join(PaymentStatus)}.")
    post_id: int | None
    attachment_id: int | None
    email: str | None = Field(description="The buyer's; personal data, and gone once the job is purged.")
    image_url: str
    image_width: int
    image_height: int
    resolution: str
    currency: Currency
    amount_due: Amount
    amount_due_cents: int
    paid_cents: int
    refunding_cents: int = Field(description="On its way back.")
    refunded_cents: int
    disputed_cents: int = Field(description="Withdrawn by chargebacks.")
    paid_at: datetime | None
    processing_started_at: datetime | None
    delivered_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    failure_code: str | None
    refund_reason: str | None
    stripe_checkout_session_id: str | None
    stripe_payment_intent_id: str | None
    upsampler_job_id: str | None
    download_expires_at: datetime | None
    email_sent: bool
    overridden: bool
    parked_events: int = Field(description="Events that wait for a later state.")
    purged_at: datetime | None
    created_at: datetime
    updated_at: datetime


class JobList(Told):
    """One page of jobs."""

    jobs: list[JobRow]
    next_cursor: str | None = Field(description="Ask with it for the next page; null after the last.")


class HistoryRow(Told):
    """One applied trigger."""

    sequence: int
    at: datetime
    trigger: str
    from_status: str = Field(description="Empty for the first.")
    to_status: str
    actor: str = Field(examples=["admin:jane"])
    reason: str
    metadata: dict[str, Any]


class OwedRow(Told):
    """One effect: something owed because of a transition."""

    id: str
    name: str
    state: str = Field(description="due, claimed, done, failed, skipped or cancelled.")
    sequence: int = Field(description="Of the transition that owed it.")
    attempts: int
    attempts_max: int
    due_at: datetime
    settled_at: datetime | None
    last_error: str | None


class EventRow(Told):
    """Something a provider told us about this job."""

    id: str
    provider: str
    event_id: str
    kind: str
    state: str = Field(description="received, parked, applied, ignored or needs_person.")
    reason: str | None
    received_at: datetime
    settled_at: datetime | None


class PaymentRow(Told):
    """One payment that Stripe captured for this job."""

    payment_intent_id: str
    cents: int = Field(description="Minor units, as all `cents`.")
    currency: str
    role: str = Field(description="sale, surplus or mismatch: only the first is the job's own.")
    refunded_cents: int
    created_at: datetime


class RefundRow(Told):
    """Money on its way back, or there."""

    refund_id: str
    payment_intent_id: str
    stripe_refund_id: str | None = Field(description="Null until Stripe has taken it.")
    cents: int
    currency: str
    state: str
    reason: str
    created_at: datetime
    updated_at: datetime


class DisputeRow(Told):
    """What a buyer's bank disputes."""

    dispute_id: str
    payment_intent_id: str
    withdrawn_cents: int = Field(description="What the bank took when it opened the dispute.")
    reinstated: bool = Field(description="The bank has given it back.")
    created_at: datetime


class Block(Told):
    """A guard that says no."""

    guard: str
    reason: str


class OptionTold(Told):
    """What may happen next, or why not."""

    trigger: str
    to_status: str
    allowed: bool
    blocked_by: list[Block]
    needs: list[str] = Field(description="What `data` has to hold for an answer.")
    caused_by: str = Field(description="Who usually causes it.")


class JobDetail(Told):
    """A job and everything about it; of very many rows the newest."""

    job: JobRow
    options: list[OptionTold]
    history: list[HistoryRow]
    effects: list[OwedRow]
    events: list[EventRow]
    payments: list[PaymentRow]
    refunds: list[RefundRow]
    disputes: list[DisputeRow]


class Wish(Taken):
    """A trigger that an admin fires."""

    trigger: str = Field(
        min_length=1, max_length=64, examples=["retry"], description="One of those that the job's detail lists."
    )
    reason: str = Field(
        min_length=1, max_length=1000, pattern=r"\S", examples=["The outage is over"],
        description="Why; kept in the history for good, so it may hold no e-mail address.",
    )  # fmt: skip
    expected_status: str | None = Field(
        None, max_length=32, examples=["failed"], description="Refuse if the job has moved on from it."
    )
    dry_run: bool = Field(False, description="Tell what would happen, and change nothing.")
    data: dict[str, Any] = Field(
        default_factory=dict,
        description="What the trigger needs to know: `amount_cents` of a refund (left out: all), `target` of an "
        "override, `fields` of an amendment, `override`: true.",
        examples=[{}],
    )


class EffectOwed(Told):
    """An effect that the transition owes."""

    name: str
    due_at: datetime
    is_timer: bool


class Moved(Told):
    """What happened, or would happen."""

    job_id: str = Field(examples=[EXAMPLE_JOB])
    trigger: str
    from_status: str
    to_status: str
    sequence: int
    actor: str
    reason: str
    at: datetime
    owed: list[EffectOwed]
    dry_run: bool
    replayed: bool = Field(description="True: this Idempotency-Key had been used; nothing happened again.")
