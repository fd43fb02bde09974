"""Owns what the sale's invariants read of one job: row, payments, refunds, disputes. Called by its invariants."""

from __future__ import annotations

from typing import Any, NamedTuple

from smi_workflow.engine.checking import View
from smi_workflow.engine.database import Slot
from smi_workflow.jobs.model import Dispute, Job, Payment, Refund

JOB, REFUND = "job", "refund"


class Sale(NamedTuple):
    """What is checked of a job's row."""

    status: str
    visit: int
    payment_status: str
    stripe_payment_intent_id: str | None
    paid_at: Any
    amount_charged: Any
    refund_amount: Any
    refund_reason: str | None
    currency: str
    livemode: bool
    amount_due_cents: int
    paid_cents: int
    refunding_cents: int
    refunded_cents: int
    disputed_cents: int
    overridden: bool
    source_file: str
    upscaled_file_path: str | None
    download_token: str | None
    download_expires_at: Any
    email: str | None
    image_url: str
    checkout_url: str | None
    upscaled_url: str | None
    purged_at: Any


class Paid(NamedTuple):
    """One payment of a job."""

    payment_intent_id: str
    cents: int
    currency: str
    livemode: bool
    role: str
    refunded_cents: int


class Back(NamedTuple):
    """One refund of a job."""

    refund_id: str
    job_id: str
    payment_intent_id: str
    role: str
    cents: int
    currency: str
    state: str
    stripe_refund_id: str | None


class Disputed(NamedTuple):
    """One dispute of a job's payments."""

    dispute_id: str
    role: str
    withdrawn_cents: int
    reinstated: bool


def sale_of(view: View, job_id: str) -> Sale | None:
    """The job's row, or None."""
    table = view.engine.bound(Job)

    def build() -> Any:
        return table.select(*(getattr(table, name) for name in Sale._fields)).where(table.job_id == Slot("key"))

    found: list[Sale] = view.of_subject("sale", Sale, build, JOB, job_id)
    return found[0] if found else None


def payments_of(view: View, job_id: str) -> list[Paid]:
    """The job's payments."""
    table = view.engine.bound(Payment)

    def build() -> Any:
        return table.select(*(getattr(table, name) for name in Paid._fields)).where(table.job_id == Slot("key"))

    found: list[Paid] = view.of_subject("payments", Paid, build, JOB, job_id)
    return found


def refunds_of(view: View, job_id: str) -> list[Back]:
    """The job's refunds."""
    table = view.engine.bound(Refund)

    def build() -> Any:
        return table.select(*(getattr(table, name) for name in Back._fields)).where(table.job_id == Slot("key"))

    found: list[Back] = view.of_subject("refunds", Back, build, JOB, job_id)
    return found


def disputes_of(view: View, job_id: str) -> list[Disputed]:
    """The disputes of a job's payments."""
    table = view.engine.bound(Dispute)

    def build() -> Any:
        columns = (getattr(table, name) for name in Disputed._fields)
        return table.select(*columns).where(table.job_id == Slot("key"))

    found: list[Disputed] = view.of_subject("disputes", Disputed, build, JOB, job_id)
    return found


def refund_itself(view: View, refund_id: str) -> Back | None:
    """One refund's row, or None."""
    table = view.engine.bound(Refund)

    def build() -> Any:
        return table.select(*(getattr(table, name) for name in Back._fields)).where(table.refund_id == Slot("key"))

    found: list[Back] = view.of_subject("refund", Back, build, REFUND, refund_id)
    return found[0] if found else None
