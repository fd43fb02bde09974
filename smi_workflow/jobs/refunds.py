"""Owns the life of a refund, a workflow of its own beneath its job. Called by app.py; started by the job's moves.

Its row is written before Stripe is called, and counted in the job's `refunding_cents` until it ends.
"""

from __future__ import annotations

from datetime import timedelta

from smi_workflow.engine.declaration import Case, Effect, Move, Parent, State
from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs import changes, facts, guards
from smi_workflow.jobs.model import Refund, RefundState
from smi_workflow.jobs.telling import TELL_ADMIN, what_happened

REQUESTED, SUBMITTED, SUCCEEDED, FAILED = RefundState

SUBMIT_REFUND = Effect("submit_refund", queue="payments", failure="fail", attempts=84, retry_seconds_max=3600)
CHECK_REFUND = Effect("check_refund", queue="payments", harmless="Stripe's webhook tells as well", attempts=1000)
REFUND_OVERDUE = Effect("refund_overdue", queue="payments", harmless="its history shows the wait", attempts=10)


def is_not_at_stripe(case: Case[Refund]) -> bool:
    return case.row.stripe_refund_id is None


def has_succeeded(case: Case[Refund]) -> bool:
    return bool(case.facts["status"] == "succeeded")


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
    states=(
        State(
            REQUESTED,
            "to be sent to Stripe",
            waiting=True,
            owes=(
                SUBMIT_REFUND.now(when=is_not_at_stripe),
                REFUND_OVERDUE.later(lambda case: timedelta(hours=72), deadline=True),
            ),
        ),
        State(
            SUBMITTED,
            "Stripe has it, the bank does not yet",
            waiting=True,
            owes=(
                CHECK_REFUND.later(lambda case: timedelta(hours=1)),
                REFUND_OVERDUE.later(lambda case: timedelta(hours=72), deadline=True),
            ),
        ),
        State(SUCCEEDED, "the money is back"),
        State(FAILED, "the money did not go back: a person is needed", owes=(TELL_ADMIN.now(what_happened),)),
    ),
    moves=(
        Move("submitted", REQUESTED, SUBMITTED, guards=(guards.refund_matches,), change=changes.note_submitted),
        Move(
            "succeed",
            (REQUESTED, SUBMITTED),
            SUCCEEDED,
            guards=(guards.refund_matches,),
            change=changes.finish_refund,
            by="effect, Stripe",
        ),
        Move(
            "found_at_stripe",
            REQUESTED,
            SUCCEEDED,
            guards=(guards.was_made_at_stripe, guards.refund_matches),
            when=has_succeeded,
            change=changes.note_found,
            by="Stripe",
        ),
        Move(
            "found_at_stripe",
            REQUESTED,
            FAILED,
            guards=(guards.was_made_at_stripe, guards.refund_matches),
            change=changes.note_submitted,
            by="Stripe",
        ),
        Move("fail", (REQUESTED, SUBMITTED), FAILED, change=changes.lose_refund, by="effect, Stripe"),
        Move("fail", SUCCEEDED, FAILED, change=changes.lose_settled_refund, by="Stripe"),
        Move("overdue", (REQUESTED, SUBMITTED), None, owes=(TELL_ADMIN.now(what_happened),), by="timer"),
    ),
)
