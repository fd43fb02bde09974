"""Owns the listing of jobs: filters, order, pages; and of the money of one. Called by manager.py and the cli.

Every listing walks an index from where the page before ended, so that the last page of a million jobs costs what
the first does. Several states are several walks, merged: no index has two states in one order.
"""

from __future__ import annotations

import base64
import heapq
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any

from smi_workflow.engine.database import stamp
from smi_workflow.engine.fire import Engine
from smi_workflow.errors import InvalidInput
from smi_workflow.jobs.model import Job, JobStatus, Payment, PaymentStatus, Refund

ORDERABLE = ("created_at", "updated_at", "paid_at", "completed_at", "failed_at", "id")
LIMIT_MAX = 1000
REFERENCE_MAX = 2**63
CURSOR_LENGTH_MAX = 300


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs, and in which order.

    Attributes:
        status: one state or several; none named, none found.
        created_from, created_before: aware; the first is within, the second is not.
        search: one whole name that a person may have at hand: a job's id, an e-mail address, a post or attachment,
            a checkout session or a payment intent at Stripe.
        order_by: jobs that have not got this time are left out.
        after: the cursor of the page before, asked for with the same order.
    """

    status: str | Sequence[str] | None = None
    payment_status: str | None = None
    email: str | None = None
    post_id: int | None = None
    attachment_id: int | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    search: str | None = None
    order_by: str = "created_at"
    descending: bool = True
    limit: int = 20
    after: str | None = None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, and where to go on: None after the last."""

    jobs: list[Job]
    next_cursor: str | None


def find_jobs(table: type[Job], wanted: JobFilter) -> JobPage:
    """One page of jobs.

    Raises:
        InvalidInput: names the field.
    """
    if wanted.order_by not in ORDERABLE:
        raise InvalidInput("order_by", f"must be one of {', '.join(ORDERABLE)}, not {wanted.order_by!r}")
    if not 1 <= wanted.limit <= LIMIT_MAX:
        raise InvalidInput("limit", f"must be 1 to {LIMIT_MAX}, not {wanted.limit}")
    column: Any = getattr(table, wanted.order_by)
    query = table.select()
    for condition in _conditions(table, column, wanted):
        query = query.where(condition)
    keys = (column, table.id) if wanted.order_by != "id" else (column,)
    query = query.order_by(*(key.desc() if wanted.descending else key.asc() for key in keys))
    # One more than asked for tells whether there is another page.
    count = wanted.limit + 1
    statuses = _statuses(wanted.status)
    walks: Iterable[list[Job]]
    if statuses is None:
        walks = [list(query.limit(count))]
    else:
        walks = [list(query.where(table.status == status).limit(count)) for status in statuses]
    merged = heapq.merge(
        *walks, key=lambda job: (getattr(job, wanted.order_by), job.id), reverse=wanted.descending
    )
    found = list(islice(merged, count))
    jobs = found[: wanted.limit]
    return JobPage(jobs, _cursor(wanted, jobs[-1]) if len(found) > wanted.limit else None)


def _statuses(given: str | Sequence[str] | None) -> list[str] | None:
    if given is None:
        return None
    statuses = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    unknown = [name for name in statuses if name not in list(JobStatus)]
    if unknown:
        raise InvalidInput("status", f"there is no {', '.join(unknown)}; there are {', '.join(JobStatus)}")
    return statuses


def _conditions(table: type[Job], column: Any, wanted: JobFilter) -> list[Any]:
    given: list[Any] = []
    if wanted.payment_status is not None:
        given.append(table.payment_status == _one_of("payment_status", wanted.payment_status, PaymentStatus))
    if wanted.email is not None:
        given.append(table.email == wanted.email)
    for name in ("post_id", "attachment_id"):
        number = getattr(wanted, name)
        if number is not None:
            if not 0 <= number < REFERENCE_MAX:
                raise InvalidInput(name, "is out of range")
            given.append(getattr(table, name) == number)
    given += _dates(table, wanted)
    if wanted.search is not None:
        given.append(_named(table, wanted.search.strip()))
    if column.null:
        given.append(column.is_null(False))
    if wanted.after is not None:
        given.append(_beyond(table, column, wanted))
    return given


def _dates(table: type[Job], wanted: JobFilter) -> list[Any]:
    start, end = (_aware(name, getattr(wanted, name)) for name in ("created_from", "created_before"))
    if wanted.after is not None and wanted.order_by == "created_at":
        # A walk starts at one bound, and not at the closest: those that the page before has passed are left out.
        reached: Any = _place(wanted)[0]
        if wanted.descending:
            end = None if end is not None and reached < end else end
        else:
            start = None if start is not None and reached > start else start
    return [*([table.created_at >= start] if start else []), *([table.created_at < end] if end else [])]


def _one_of(field: str, given: str, names: type[StrEnum]) -> str:
    if given not in list(names):
        raise InvalidInput(field, f"there is no {given}; there are {', '.join(names)}")
    return given


def _aware(field: str, moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidInput(field, "needs a time zone, e.g. 2026-01-31T00:00:00Z")
    # Outside of these the databases, or a time zone, leave the calendar.
    if not 1970 <= moment.year < 9999:
        raise InvalidInput(field, "must lie between 1970 and 9998")
    return moment


def _named(table: type[Job], name: str) -> Any:
    """The one column that such a name can stand in: each has an index."""
    if "@" in name:
        return table.email == name
    if name.startswith("cs_"):
        return table.stripe_checkout_session_id == name
    if name.startswith("pi_"):
        return table.stripe_payment_intent_id == name
    if name.isascii() and name.isdigit() and int(name[:30]) < REFERENCE_MAX:
        return (table.post_id == int(name)) | (table.attachment_id == int(name)) | (table.job_id == name)
    return table.job_id == name


# -- pages -------------------------------------------------------------------------------------------------------


def _cursor(wanted: JobFilter, last: Job) -> str:
    value = getattr(last, wanted.order_by)
    place = [wanted.order_by, wanted.descending, stamp(value) if isinstance(value, datetime) else value, last.id]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _beyond(table: type[Job], column: Any, wanted: JobFilter) -> Any:
    value, row_id = _place(wanted)
    # The first comparison alone is what an index can start at.
    if wanted.descending:
        return (column <= value) & ((column < value) | (table.id < row_id))
    return (column >= value) & ((column > value) | (table.id > row_id))


def _place(wanted: JobFilter) -> tuple[object, int]:
    text = wanted.after or ""
    try:
        if len(text) > CURSOR_LENGTH_MAX:
            raise ValueError
        order_by, descending, value, row_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if type(row_id) is not int or not 0 <= row_id < REFERENCE_MAX:
            raise ValueError
        if order_by != "id":
            value = _aware("cursor", datetime.fromisoformat(value).replace(tzinfo=UTC))
        elif value != row_id:
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise InvalidInput("cursor", "is not one that a page of jobs gave") from None
    if (order_by, descending) != (wanted.order_by, wanted.descending):
        raise InvalidInput("cursor", "belongs to a listing in another order")
    return value, row_id


def refunds_of(engine: Engine, job_id: str) -> list[Refund]:
    """Every refund of a job, oldest first."""
    table = engine.bound(Refund)
    return list(table.select().where(table.job_id == job_id).order_by(table.id))


def payments_of(engine: Engine, job_id: str) -> list[Payment]:
    """Every payment on record for a job, oldest first, those that fit no sale included."""
    table = engine.bound(Payment)
    return list(table.select().where(table.job_id == job_id).order_by(table.id))
