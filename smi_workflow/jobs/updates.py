"""Owns the seeds' update calls: each finds the declared trigger that makes it so, or refuses and says why.

Called by manager.py. None of them writes a row; what only Stripe can know is asked of Stripe first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from smi_workflow.engine.tables import Transition
from smi_workflow.engine.unit import Applied
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import GuardRefused, InvalidInput, StatusNotReachable
from smi_workflow.jobs.amendments import AMENDABLE, amendment_problem
from smi_workflow.jobs.costs import cost_problem
from smi_workflow.jobs.model import Job, JobStatus, PaymentStatus
from smi_workflow.jobs.tokens import token_that_opens
from smi_workflow.settings import Settings

PAID = "paid"
# Columns that a caller may want to set, and the trigger whose facts they are.
WRITTEN_BY: Mapping[str, str] = {
    "status": "update_status", "stripe_checkout_session_id": "update_checkout_session",
    "checkout_url": "update_checkout_session", "stripe_payment_intent_id": "mark_payment_completed",
    "payment_status": "mark_payment_completed", "paid_at": "mark_payment_completed",
    "amount_charged": "mark_payment_completed", "amount_cost": "update_cost_data",
    "credits_used": "update_cost_data", "download_token": "generate_download_token",
    "download_expires_at": "generate_download_token", "upsampler_job_id": "the trigger 'upscale_started'",
    "processing_started_at": "the trigger 'upscale_started'", "upscaled_url": "the trigger 'upscale_delivered'",
    "upscaled_file_path": "the trigger 'complete'", "completed_at": "the trigger 'complete'",
    "failed_at": "mark_failed", "refunded_at": "the trigger 'refund'", "refund_amount": "the trigger 'refund'",
    "refund_reason": "the trigger 'refund'", "email_sent": "the trigger 'notice_sent'",
}  # fmt: skip


class SeenSession(Protocol):
    """What Stripe says of a checkout session."""

    @property
    def id(self) -> str: ...
    @property
    def url(self) -> str | None: ...
    @property
    def payment_status(self) -> str: ...
    @property
    def payment_intent(self) -> str | None: ...
    @property
    def amount_total_cents(self) -> int | None: ...
    @property
    def currency(self) -> str | None: ...
    @property
    def livemode(self) -> bool: ...
    @property
    def email(self) -> str | None: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...


AskSession = Callable[[str], SeenSession]


class Jobs(Protocol):
    """What the calls need of the JobManager."""

    def get_job(self, job_id: str) -> Job: ...

    def history(self, job_id: str) -> list[Transition]: ...

    def fire(
        self, job_id: str, trigger: str, *, actor: str, reason: str = "", facts: Mapping[str, Any] | None = None,
        expected_status: str | None = None,
    ) -> Applied: ...  # fmt: skip


def to_status(
    jobs: Jobs, flow: Workflow, job_id: str, wanted: str, *, actor: str, reason: str, facts: Mapping[str, Any]
) -> Applied:
    """Fire the first trigger that leads there and agrees; none is an override."""
    if wanted not in tuple(JobStatus):
        raise InvalidInput("status", f"must be one of {', '.join(JobStatus)}, not {str(wanted)[:50]!r}")
    job = jobs.get_job(job_id)
    if job.status == wanted:
        return _earlier(jobs, job_id, lambda row: row.sequence == job.visit)
    moves = (move for move in flow.moves if move.to == wanted and job.status in move.sources(flow.states))
    refusals: dict[str, str] = {}
    for trigger in dict.fromkeys(move.trigger for move in moves if move.trigger != "override"):
        try:
            return jobs.fire(
                job_id, trigger, actor=actor, reason=reason, facts=facts, expected_status=str(job.status)
            )
        except (GuardRefused, InvalidInput) as refusal:
            refusals[trigger] = str(refusal)
    raise StatusNotReachable(job_id, str(job.status), wanted, refusals)


def with_fields(jobs: Jobs, job_id: str, fields: Mapping[str, Any], *, actor: str, reason: str) -> Applied:
    """Amend what may be amended; name for every other field the call that it belongs to."""
    for name in fields:
        if name in WRITTEN_BY:
            raise InvalidInput(str(name), f"is not written by hand: use {WRITTEN_BY[name]}")
        if name not in AMENDABLE:
            raise InvalidInput(str(name), f"cannot be amended (can: {', '.join(sorted(AMENDABLE))})")
    problem = amendment_problem(fields)
    if problem is not None:
        raise InvalidInput(*problem)
    return jobs.fire(job_id, "amend", actor=actor, reason=reason, facts={"fields": dict(fields)})


def with_session(jobs: Jobs, ask: AskSession, is_opening: bool, job_id: str, session_id: str) -> Applied:
    """Put a session of ours on record that we did not know of: Stripe must know it as this job's."""
    job = jobs.get_job(job_id)
    if job.stripe_checkout_session_id == session_id:
        return _earlier(jobs, job_id, lambda row: row.trigger == "checkout_opened")
    if job.stripe_checkout_session_id is not None:
        known = job.stripe_checkout_session_id
        raise InvalidInput("session_id", f"{known} is on record already, and a job has one checkout")
    if is_opening:
        raise InvalidInput("session_id", "the job's own checkout is being opened right now")
    session = ask(session_id)
    if session.metadata.get("job_id") != job_id:
        raise InvalidInput("session_id", "is not a session of this job at Stripe")
    asked = (session.amount_total_cents, session.currency, session.livemode)
    if asked != (job.amount_due_cents, job.currency, job.livemode):
        raise InvalidInput("session_id", "asks for another amount, currency or mode than the job")
    return jobs.fire(
        job_id, "checkout_opened", actor="stripe", reason="asked of Stripe",
        facts={"session_id": session.id, "checkout_url": session.url},
    )  # fmt: skip


def with_payment(jobs: Jobs, ask: AskSession, job_id: str, payment_intent_id: str) -> Applied:
    """Record a payment that Stripe confirms, under the guards of its webhook."""
    job = jobs.get_job(job_id)
    if job.stripe_payment_intent_id == payment_intent_id and job.payment_status == PaymentStatus.PAID:
        return _earlier(jobs, job_id, lambda row: row.trigger == "payment_received")
    if job.stripe_checkout_session_id is None:
        raise InvalidInput("payment_intent_id", "the job has no checkout session that it could have been paid in")
    session = ask(job.stripe_checkout_session_id)
    if session.payment_intent != payment_intent_id:
        raise InvalidInput("payment_intent_id", f"is not the payment of the job's checkout session {session.id}")
    if session.payment_status != PAID:
        raise InvalidInput("payment_intent_id", f"is {session.payment_status} at Stripe")
    return jobs.fire(
        job_id, "payment_received", actor="stripe", reason="asked of Stripe",
        facts={
            "session_id": session.id, "payment_intent_id": session.payment_intent,
            "amount_cents": session.amount_total_cents, "currency": session.currency,
            "livemode": session.livemode, "email": session.email,
        },
    )  # fmt: skip


def with_costs(jobs: Jobs, job_id: str, costs: Mapping[str, Any], *, actor: str, reason: str) -> Applied:
    """Correct what the sale cost us."""
    job = jobs.get_job(job_id)
    for name, value in costs.items():
        problem = cost_problem(job, str(name), value)
        if problem is not None:
            raise InvalidInput(str(name), problem)
    return jobs.fire(job_id, "correct_costs", actor=actor, reason=reason, facts={"costs": dict(costs)})


def with_new_link(jobs: Jobs, settings: Settings, job_id: str, *, actor: str, reason: str) -> str:
    """Renew the link, and give its token: derived again, because only its hash is kept."""
    jobs.fire(job_id, "renew_download", actor=actor, reason=reason)
    job = jobs.get_job(job_id)
    token = token_that_opens(settings.secret_keys, job_id, job.token_generation, job.download_token or "")
    assert token is not None, "a key of ours has just made it"
    return token


def _earlier(jobs: Jobs, job_id: str, is_it: Callable[[Transition], bool]) -> Applied:
    """The latest transition of this kind, for whoever asks for what has happened already."""
    row = [row for row in jobs.history(job_id) if is_it(row)][-1]
    return Applied(
        row.workflow, job_id, row.trigger, row.sequence, row.from_state, row.to_state, row.actor, row.reason,
        row.created_at, json.loads(row.metadata), replayed=True,
    )  # fmt: skip
