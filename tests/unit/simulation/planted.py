"""Owns workflows with one fault planted in each, and what must be found. Called by test_model_plants.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smi_workflow.engine.declaration import Case, Effect, Move, Owed, State
from smi_workflow.engine.workflow import Workflow, guard_name
from smi_workflow.jobs import changes
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.model import Job, JobStatus
from smi_workflow.jobs.refunds import REFUND


@dataclass(frozen=True)
class Plant:
    """One fault: how it is planted, where to look, what is found, and which triggers the story must name."""

    name: str
    scenario: str
    invariant: str
    story: tuple[str, ...]
    job: Callable[[], Workflow] = lambda: JOB
    refund: Callable[[], Workflow] = lambda: REFUND


def altered(
    flow: Workflow, states: Sequence[State] | None = None, moves: Sequence[Move] | None = None
) -> Workflow:
    """The same workflow with other states or moves."""
    return replace(flow, states=tuple(states or flow.states), moves=tuple(moves or flow.moves))


def unguarded(trigger: str, *guards: str) -> Workflow:
    """JOB without these guards on a trigger."""

    moves = [
        replace(move, guards=tuple(one for one in move.guards if guard_name(one) not in guards))
        if move.trigger == trigger
        else move
        for move in JOB.moves
    ]
    assert moves != list(JOB.moves)
    return altered(JOB, moves=moves)


def without_move(chosen: Callable[[Move], bool]) -> Workflow:
    """JOB without one of its moves."""
    kept = [move for move in JOB.moves if not chosen(move)]
    assert len(kept) == len(JOB.moves) - 1
    return altered(JOB, moves=kept)


def changing(flow: Workflow, trigger: str, change: Callable[[Case[Any]], None] | None) -> Workflow:
    """A workflow in which a trigger changes something else."""
    moves = [replace(move, change=change) if move.trigger == trigger else move for move in flow.moves]
    return altered(flow, moves=moves)


def owing(state: str, owes: Callable[[tuple[Owed, ...]], tuple[Owed, ...]]) -> Workflow:
    """JOB with a state that owes something else."""
    states = [replace(one, owes=owes(one.owes)) if one.name == state else one for one in JOB.states]
    return altered(JOB, states=states)


def _and_again(owes: tuple[Owed, ...]) -> tuple[Owed, ...]:
    """The first of what is owed twice, each with its own inputs."""
    return (*owes, replace(owes[0], inputs=lambda case: {"number": 2}))


def any_amount(case: Case[Job]) -> str | None:
    """A payment guard that looks at the session only."""
    given, own = case.facts["session_id"], case.row.stripe_checkout_session_id
    return None if given == own else "another session"


def refund_of_what_is_not_settled(case: Case[Job]) -> str | None:
    """A refund guard that forgets what is in flight."""
    left = case.row.paid_cents - case.row.refunded_cents
    return None if 0 < (case.facts.get("amount_cents") or left) <= left else "nothing left"


def settle_twice(case: Case[Job]) -> None:
    """Counts a settled refund of ours twice."""
    changes.settle_refund(case)
    case.set(refunded_cents=case.row.refunded_cents + case.facts["amount_cents"])


def break_down(case: Case[Any]) -> None:
    """A change with a bug."""
    raise KeyError("no such thing")


def _guarded_otherwise(trigger: str, guard: str, other: Callable[[Case[Any]], str | None]) -> Workflow:
    def swap(move: Move) -> Move:
        guards = tuple(other if guard_name(one) == guard else one for one in move.guards)
        return replace(move, guards=guards) if move.trigger == trigger else move

    return altered(JOB, moves=[swap(move) for move in JOB.moves])


def _surviving_deadline() -> Workflow:
    def survive(owes: tuple[Owed, ...]) -> tuple[Owed, ...]:
        effect = Effect("pending_deadline", "upscales", failure="fail", survives=True)
        return tuple(replace(one, effect=effect) if one.effect.name == effect.name else one for one in owes)

    return owing(JobStatus.PENDING, survive)


def _no_fetch_deadline() -> Workflow:
    moves = [
        replace(move, owes=tuple(one for one in move.owes if one.effect.name != "fetch_deadline"))
        for move in JOB.moves
    ]
    return altered(JOB, moves=moves)


def _deadline_that_gives_up() -> Workflow:
    """The payment deadline's attempts run out, and nothing else ends the wait."""
    effect = Effect("payment_deadline", "payments", failure="notice_failed", attempts=6)

    def swap(owes: tuple[Owed, ...]) -> tuple[Owed, ...]:
        return tuple(replace(one, effect=effect) if one.effect.name == effect.name else one for one in owes)

    return owing(JobStatus.AWAITING_PAYMENT, swap)


PLANTS = (
    Plant("the payment guard ignores the amount", "strange payments", "only_the_right_payment_is_taken",
          ("checkout_opened", "payment_received"),
          lambda: _guarded_otherwise("payment_received", "payment_fits_the_sale", any_amount)),
    Plant("the refund guard ignores refunds in flight", "refunds", "refunds_stay_within_the_payment",
          ("refund", "refund"),
          lambda: _guarded_otherwise("refund", "refund_is_possible", refund_of_what_is_not_settled)),
    Plant("abandon has lost its guards", "overrides at the checkout", "nobody_who_may_pay_is_given_up",
          ("checkout_opened", "abandon"),
          lambda: unguarded("abandon", "nothing_can_be_paid", "nothing_is_paid")),
    Plant("a delivered result has no deadline", "upscale", "every_wait_has_a_deadline",
          ("upscale_started", "upscale_delivered"), _no_fetch_deadline),
    Plant("pending does not cancel its timer", "refunds", "leaving_cancels_timers",
          ("payment_received",), _surviving_deadline),
    Plant("failed owes no refund", "retries", "held_money_leads_on", ("payment_received", "fail"),
          lambda: owing(JobStatus.FAILED, lambda owes: owes[1:])),
    Plant("a failed refund is not released", "refunds in trouble", "job_and_refunds_agree", ("refund", "fail"),
          refund=lambda: changing(REFUND, "fail", None)),
    Plant("a settled refund is counted twice", "refunds", "refunds_stay_within_the_payment",
          ("refund", "refund_settled"), lambda: changing(JOB, "refund_settled", settle_twice)),
    Plant("retry does not ask whether it is paid", "unpaid retries", "goods_are_paid_for",
          ("payment_failed", "retry"), lambda: unguarded("retry", "is_paid_for")),
    Plant("retry does not ask for refunds under way", "retries", "no_work_once_the_money_is_back",
          ("fail", "refund", "retry"), lambda: unguarded("retry", "no_refund_is_under_way")),
    Plant("pending owes the submission twice", "retries", "nothing_costly_is_owed_twice",
          ("payment_received",), lambda: owing(JobStatus.PENDING, _and_again)),
    Plant("a full refund does not end the work", "refunds", "a_full_refund_ends_the_work",
          ("payment_received", "refund"),
          lambda: without_move(lambda move: move.trigger == "refund" and move.to == JobStatus.FAILED)),
    Plant("a chargeback does not end the work", "chargebacks", "no_work_once_the_money_is_back",
          ("payment_received", "dispute_opened"),
          lambda: without_move(lambda move: move.trigger == "dispute_opened" and move.to == JobStatus.FAILED)),
    Plant("override asks nothing of its target", "two overrides", "completed_means_delivered",
          ("payment_received", "override"), lambda: unguarded("override", "target_is_sound")),
    Plant("the payment deadline gives up", "checkout", "no_dead_end", ("notice_failed",), _deadline_that_gives_up),
    Plant("a change breaks", "delivery", "nothing_breaks", ("complete",),
          lambda: changing(JOB, "resend", break_down)),
)  # fmt: skip
