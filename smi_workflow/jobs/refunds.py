"""Owns the life of a refund, a workflow of its own beneath its job. Called by app.py; started by the job's moves.

Its row is written before Stripe is called, and counted in the job's `refunding_cents` until it ends. One that
came to nothing waits for a person: `retry` sends it once more, `settle_elsewhere` says that the buyer has the
money in another way. Both ask the job, under its lock, whether there is still anything to give back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from smi_workflow.engine.declaration import Case, Effect, Move, Parent, State
from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs import facts, guards, refund_changes
from smi_workflow.jobs import model as rows
from smi_workflow.jobs.model import Payment, Refund, RefundState
from smi_workflow.jobs.telling import TELL_ADMIN, what_happened

REQUESTED, SUBMITTED, PENDING, SUCCEEDED, FAILED, CANCELED, SETTLED_ELSEWHERE = RefundState

SUBMIT_REFUND = Effect("submit_refund", queue="payments", failure="fail", attempts=84, retry_seconds_max=3600)
CHECK_REFUND = Effect("check_refund", queue="payments", harmless="Stripe's webhook tells as well", attempts=1000)
OVERDUE_AFTER = timedelta(hours=72)
REFUND_OVERDUE = Effect("refund_overdue", queue="payments", harmless="its history shows the wait", attempts=10)
# What tells the tries of one refund apart at Stripe; the first goes without.
TRY = "try"
# How a refund made at Stripe's own pages ends → what the job is told. What failed is put on record as well: the
# news of its success may still be on its way.
FOREIGN_ENDS = {"succeeded": "refund_settled", "failed": "refund_failed", "canceled": "refund_failed"}


def is_not_at_stripe(case: Case[Refund]) -> bool:
    return case.row.stripe_refund_id is None


def has_succeeded(case: Case[Refund]) -> bool:
    return bool(case.facts["status"] == "succeeded")


def was_canceled(case: Case[Refund]) -> bool:
    return bool(case.facts["status"] == "canceled")



def until_overdue(case: Case[Refund]) -> timedelta:
    """72 hours from the start, whatever it goes through meanwhile; anew when it is tried again after that."""
    left = case.row.created_at + OVERDUE_AFTER - case.now
    return left if left > timedelta(0) else OVERDUE_AFTER


_told = TELL_ADMIN.now(what_happened)
_check = CHECK_REFUND.later(lambda case: timedelta(hours=1))
_overdue = REFUND_OVERDUE.later(until_overdue, deadline=True)

STATES = (
    State(REQUESTED, "to be sent to Stripe", waiting=True,
          owes=(SUBMIT_REFUND.now(when=is_not_at_stripe), _overdue)),
    State(SUBMITTED, "Stripe has it, and waits for the buyer", waiting=True, owes=(_check, _overdue)),
    State(PENDING, "on its way through the bank", waiting=True, owes=(_check, _overdue)),
    State(SUCCEEDED, "the money is back"),
    State(SETTLED_ELSEWHERE, "a person has given the money back in another way"),
    State(FAILED, "the money did not go back: a person is needed", owes=(_told,)),
    State(CANCELED, "it was called off at Stripe: a person is needed", owes=(_told,)),
)  # fmt: skip

_by_report = (guards.not_by_hand, guards.is_of_this_try)
_fits = (*_by_report, guards.refund_matches)
_found = (guards.not_by_hand, guards.was_made_at_stripe, guards.refund_matches)
_lost = tuple(map(str, rows.LOST))

MOVES = (
    Move("submitted", REQUESTED, SUBMITTED, _fits, change=refund_changes.note_submitted, by="effect, Stripe"),
    Move("pending", (REQUESTED, SUBMITTED), PENDING, _fits, change=refund_changes.note_submitted,
         by="effect, Stripe"),
    Move("succeed", tuple(map(str, rows.UNDER_WAY)), SUCCEEDED, _fits, change=refund_changes.finish_refund,
         by="effect, Stripe"),
    Move("found_at_stripe", REQUESTED, SUCCEEDED, _found, when=has_succeeded, change=refund_changes.note_found,
         by="Stripe"),
    Move("found_at_stripe", REQUESTED, CANCELED, _found, when=was_canceled, change=refund_changes.note_submitted,
         by="Stripe"),
    Move("found_at_stripe", REQUESTED, FAILED, _found, change=refund_changes.note_submitted, by="Stripe"),
    Move("fail", tuple(map(str, rows.UNDER_WAY)), FAILED, _by_report, change=refund_changes.lose_refund,
         by="effect, Stripe"),
    Move("fail", SUCCEEDED, FAILED, _by_report, change=refund_changes.lose_settled_refund, by="Stripe"),
    Move("cancel", tuple(map(str, rows.UNDER_WAY)), CANCELED, _by_report, change=refund_changes.lose_refund,
         by="effect, Stripe"),
    Move("overdue", tuple(map(str, rows.UNDER_WAY)), None, (guards.not_by_hand,), owes=(_told,), by="timer"),
    Move("retry", _lost, REQUESTED, (guards.was_made_by_us,), change=refund_changes.try_again, by="admin"),
    Move("settle_elsewhere", _lost, SETTLED_ELSEWHERE, (guards.reason_is_given,),
         change=refund_changes.settle_elsewhere, by="admin"),
)  # fmt: skip


def metadata_of(refund: Refund) -> dict[str, str]:
    """What Stripe is given to keep with a refund, so that it can be found again; the same on every attempt."""
    named = {"refund_id": refund.refund_id, "job_id": refund.job_id}
    return named if refund.tries == 1 else {**named, TRY: str(refund.tries)}


def is_of_try(refund: Refund, metadata: Mapping[str, str]) -> bool:
    """Whether a refund at Stripe is what the row's present try made there."""
    ours = metadata.get("refund_id") == refund.refund_id
    return ours and metadata.get(TRY, "1") == str(refund.tries)


def facts_of_foreign(
    payment: Payment, *, stripe_refund_id: str, amount_cents: int, currency: str | None, status: str
) -> dict[str, Any]:
    """What a job is told of a refund that was made at Stripe's own pages, and has ended."""
    return {
        "is_ours": False, "status": status, "stripe_refund_id": stripe_refund_id,
        "payment_intent_id": payment.payment_intent_id, "amount_cents": amount_cents, "currency": currency,
        "role": payment.role,
    }  # fmt: skip


REFUND = Workflow(
    name="refund",
    model=Refund,
    key="refund_id",
    state_column="state",
    initial=REQUESTED,
    parent=Parent("job", "job_id"),
    touched_column="updated_at",
    started_by="request",
    facts=facts.FACTS,
    states=STATES,
    moves=MOVES,
)
