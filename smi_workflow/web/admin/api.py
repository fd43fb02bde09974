"""Owns the admins' API: find jobs, look into one, make something happen. Called by site.py."""

from __future__ import annotations

import json
import re
from typing import Any

from flask import Blueprint, Response, g, request

from smi_workflow.app import App
from smi_workflow.engine.unit import Applied
from smi_workflow.errors import InvalidInput, UnknownTrigger
from smi_workflow.jobs.model import Dispute, Job, Payment, Refund
from smi_workflow.jobs.pricing import from_cents
from smi_workflow.jobs.queries import JobFilter
from smi_workflow.web.admin.access import Access
from smi_workflow.web.admin.models import (
    ROWS_MAX,
    Block,
    DisputeRow,
    EffectOwed,
    EventRow,
    HistoryRow,
    JobDetail,
    JobList,
    JobQuery,
    JobRow,
    Moved,
    OptionTold,
    OwedRow,
    PaymentRow,
    RefundRow,
    Wish,
)
from smi_workflow.web.api import checked_id
from smi_workflow.web.limits import Limits
from smi_workflow.web.operations import Header, described
from smi_workflow.web.reading import M, read_json, read_query, told

KEY_LENGTH_MAX = 90
_ADDRESS = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]")

TAG = "Admins"
IDEMPOTENCY_KEY = Header(
    "Idempotency-Key", "The same key for the same job happens once; again, the first is told.", KEY_LENGTH_MAX
)


def admin_routes(app: App, limits: Limits) -> Blueprint:
    """What admins may do, each under the name of its token."""
    routes = Blueprint("admin_api", __name__, url_prefix="/api/v1/admin")
    access = Access(app.settings.admin_tokens, limits)

    @routes.before_request
    def who() -> None:
        g.actor = access.actor()

    @routes.get("/jobs")
    @described(TAG, "Find jobs", query=JobQuery, answers={200: JobList}, problems=(401, 422, 429, 503))
    def list_jobs() -> Response:
        """Newest first unless told. Every filter narrows; a page ends with the cursor of the next."""
        query = read_query(JobQuery)
        page = app.jobs.find_jobs(
            JobFilter(
                **query.model_dump(exclude={"order", "cursor"}),
                order_by=query.order.removeprefix("-"), descending=query.order.startswith("-"), after=query.cursor,
            )
        )  # fmt: skip
        return told(JobList(jobs=[_row(job) for job in page.jobs], next_cursor=page.next_cursor))

    @routes.get("/jobs/<job_id>")
    @described(TAG, "Look into one job", answers={200: JobDetail}, problems=(401, 404, 422, 429, 503))
    def show_job(job_id: str) -> Response:
        """Its row, history, what it owes, what providers told, its money, what may happen next and why not."""
        _no_query()
        job = app.jobs.get_job(checked_id(job_id))
        return told(
            JobDetail(
                job=_row(job),
                options=_options(app, job),
                history=_history(app, job_id),
                effects=_effects(app, job_id),
                events=_events(app, job_id),
                payments=_money(app.job_tables.payments, PaymentRow, job_id),
                refunds=_money(app.job_tables.refunds, RefundRow, job_id),
                disputes=_money(app.job_tables.disputes, DisputeRow, job_id),
            )
        )

    @routes.post("/jobs/<job_id>/transitions")
    @described(
        TAG, "Make something happen", body=Wish, headers=(IDEMPOTENCY_KEY,), answers={200: Moved},
        problems=(400, 401, 404, 408, 409, 413, 415, 422, 429, 503),
    )  # fmt: skip
    def fire(job_id: str) -> Response:
        """Fires a trigger of the job, guards and all, under the token's name; `dry_run` tells what would happen.

        A refusal (409) names the `state` and the `trigger`; `not_possible` also what is `allowed` instead,
        `guard_refused` the `guard` and its `reason`, `stale_state` what was `expected`. `conflict` means that
        another process held the job too long: try again.
        """
        checked_id(job_id)
        wish = read_json(Wish)
        if _ADDRESS.search(wish.reason):
            raise InvalidInput("reason", "is kept for good, and so may hold no e-mail address")
        applied = _fire(app, job_id, wish)
        if applied.replayed and (applied.actor, applied.reason) != (g.actor, wish.reason):
            raise InvalidInput("Idempotency-Key", "was used for another wish")
        return told(
            Moved(
                job_id=job_id, trigger=applied.trigger, from_status=applied.from_state, to_status=applied.to_state,
                sequence=applied.sequence, actor=applied.actor, reason=applied.reason, at=applied.at,
                owed=[
                    EffectOwed(name=one.name, due_at=one.due_at, is_timer=one.is_timer) for one in applied.owed
                ],
                dry_run=wish.dry_run, replayed=applied.replayed,
            )
        )  # fmt: skip

    return routes


def _fire(app: App, job_id: str, wish: Wish) -> Applied:
    key = _key()
    try:
        return app.jobs.fire(
            job_id, wish.trigger, actor=g.actor, reason=wish.reason, facts=wish.data,
            expected_status=wish.expected_status, idempotency_key=key, dry_run=wish.dry_run,
        )  # fmt: skip
    except UnknownTrigger as unknown:
        raise InvalidInput("trigger", f"is none of a job's: {wish.trigger}") from unknown
    except InvalidInput as wrong:
        name = "Idempotency-Key" if wrong.field == "idempotency_key" else f"data.{wrong.field}"
        raise InvalidInput(name, wrong.problem) from wrong


def _key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 1 <= len(key) <= KEY_LENGTH_MAX:
        raise InvalidInput("Idempotency-Key", f"must have 1 to {KEY_LENGTH_MAX} characters")
    # Apart from those of programs that fire in the process.
    return f"api:{key}"


def _no_query() -> None:
    for name in request.args:
        raise InvalidInput(name[:100], "is no parameter of this")


def _row(job: Job) -> JobRow:
    names = set(JobRow.model_fields) - {"amount_due"}
    return JobRow(
        **{name: getattr(job, name) for name in names},
        amount_due=str(from_cents(job.amount_due_cents, job.currency)),
    )


def _options(app: App, job: Job) -> list[OptionTold]:
    # Whoever fires by HTTP gives a reason.
    found = app.jobs.explain(job.job_id, actor=g.actor, reason="given when it is fired")
    return [
        OptionTold(
            trigger=option.trigger, to_status=option.to or job.status, allowed=option.allowed,
            blocked_by=[Block(guard=guard, reason=reason) for guard, reason in option.blocked_by],
            needs=list(option.needs), caused_by=option.by,
        )
        for option in found
    ]  # fmt: skip


def _history(app: App, job_id: str) -> list[HistoryRow]:
    return [
        HistoryRow(
            sequence=row.sequence, at=row.created_at, trigger=row.trigger, from_status=row.from_state,
            to_status=row.to_state, actor=row.actor, reason=row.reason, metadata=_object(row.metadata),
        )
        for row in app.jobs.history(job_id)[-ROWS_MAX:]
    ]  # fmt: skip


def _effects(app: App, job_id: str) -> list[OwedRow]:
    table = app.tables.effects
    query = table.select().where((table.workflow == "job") & (table.subject_id == job_id))
    rows = list(query.order_by(table.sequence.desc(), table.id).limit(ROWS_MAX))
    return [OwedRow(**{name: getattr(row, name) for name in OwedRow.model_fields}) for row in reversed(rows)]


def _events(app: App, job_id: str) -> list[EventRow]:
    table = app.tables.events
    query = table.select().where((table.workflow == "job") & (table.subject_id == job_id))
    rows = list(query.order_by(table.received_at.desc(), table.id).limit(ROWS_MAX))
    return [EventRow(**{name: getattr(row, name) for name in EventRow.model_fields}) for row in reversed(rows)]


def _money(table: type[Payment | Refund | Dispute], model: type[M], job_id: str) -> list[M]:
    rows = list(table.select().where(table.job_id == job_id).order_by(table.id.desc()).limit(ROWS_MAX))
    return [model(**{name: getattr(row, name) for name in model.model_fields}) for row in reversed(rows)]


def _object(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found
