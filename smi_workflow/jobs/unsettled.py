"""Owns the finding of what is not at rest, page by page however many rows there are. Called by effects/missed.py.

Each page is one indexed query behind the last row of the one before: what moves meanwhile is seen once, or not
at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self, TypeVar

from peewee import Model

from smi_workflow.engine.fire import Engine
from smi_workflow.jobs.model import Dispute, Job, JobStatus, Payment, PaymentStatus, Refund, RefundState

PAGE = 200
_BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)

M = TypeVar("M", bound=Model)


class Place(NamedTuple):
    """A row's place in the order in which rows are made."""

    created_at: datetime = _BEGINNING
    number: int = 0

    @classmethod
    def of(cls, row: Any) -> Self:
        """Where a row stands."""
        return cls(row.created_at, row.id)

    @classmethod
    def read(cls, cursor: str) -> Self:
        """Read what `str()` wrote; the beginning where nothing was written."""
        moment, _, number = cursor.partition(" ")
        return cls(datetime.fromisoformat(moment), int(number)) if cursor else cls()

    def __str__(self) -> str:
        return f"{self.created_at.isoformat()} {self.number}"


def open_checkouts(engine: Engine, after: Place) -> Iterator[Job]:
    """Jobs whose buyer may have paid without our knowing."""
    jobs = engine.bound(Job)
    waits = jobs.status == JobStatus.AWAITING_PAYMENT.value
    return _pages(jobs, waits & ~jobs.stripe_checkout_session_id.is_null(), after)


def left_checkouts(engine: Engine, after: Place, since: datetime) -> Iterator[Job]:
    """Jobs begun since then that wait for no payment any more and never had one: who knows whether it came."""
    jobs = engine.bound(Job)
    unpaid = jobs.payment_status.in_((PaymentStatus.PENDING.value, PaymentStatus.FAILED.value))
    left = unpaid & (jobs.status != JobStatus.AWAITING_PAYMENT.value) & ~jobs.stripe_checkout_session_id.is_null()
    return _pages(jobs, left, max(after, Place(since, 0)))


def open_upscales(engine: Engine, after: Place) -> Iterator[Job]:
    """Jobs that Upsampler works on, or has finished without our knowing."""
    jobs = engine.bound(Job)
    works = (jobs.status == JobStatus.PROCESSING.value) & jobs.delivered_at.is_null()
    return _pages(jobs, works & ~jobs.upsampler_job_id.is_null() & ~jobs.submit_effect_id.is_null(), after)


def open_refunds(engine: Engine, after: Place, before: datetime) -> Iterator[Refund]:
    """Refunds that Stripe has had since before then, and has not settled as far as we know."""
    refunds = engine.bound(Refund)
    is_open = refunds.state.in_((RefundState.SUBMITTED.value, RefundState.PENDING.value))
    return _pages(refunds, is_open & ~refunds.stripe_refund_id.is_null() & (refunds.created_at < before), after)


def debit_is_on_record(engine: Engine, job: Job) -> bool:
    """Whether we know that this buyer pays by a slow method."""
    history = engine.tables.transitions
    mine = (history.workflow == "job") & (history.subject_id == job.job_id)
    return bool(history.select(history.id).where(mine & (history.trigger == "payment_processing")).exists())


def payments_by(engine: Engine, column: str, values: Collection[str | None]) -> Mapping[str, Payment]:
    """The payments that have one of these intents or charges, by it; a page's worth."""
    payments = engine.bound(Payment)
    return _by(payments, column, values)


def refunds_by(engine: Engine, column: str, values: Collection[str | None]) -> Mapping[str, Refund]:
    """The refunds that have one of these ids, by it; a page's worth."""
    return _by(engine.bound(Refund), column, values)


def disputes_by_id(engine: Engine, dispute_ids: Collection[str | None]) -> Mapping[str, Dispute]:
    """The chargebacks of these ids; a page's worth."""
    return _by(engine.bound(Dispute), "dispute_id", dispute_ids)


def page_of(model: Any, condition: Any, after: Place) -> Any:
    """The query of one page, in the order in which rows were made."""
    made = model.created_at
    behind = (made >= after.created_at) & ((made > after.created_at) | (model.id > after.number))
    return model.select().where(behind & condition).order_by(made, model.id).limit(PAGE)


def _pages(model: type[M], condition: Any, after: Place) -> Iterator[M]:
    while True:
        rows: list[Any] = list(page_of(model, condition, after))
        yield from rows
        if len(rows) < PAGE:
            return
        after = Place.of(rows[-1])


def _by(model: type[M], column: str, values: Collection[str | None]) -> Mapping[str, M]:
    named = [value for value in values if value]
    if not named:
        return {}
    field = getattr(model, column)
    return {str(getattr(row, column)): row for row in model.select().where(field.in_(named))}
