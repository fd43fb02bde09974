"""Owns what a refund's transitions change: its row, its payment's sum, and what they tell the job.

Called by refunds.py; `room_of` also by changes.py. All of it happens inside the transition's own commit, under the
job's lock, which is taken before the refund's.
"""

from __future__ import annotations

from typing import Any

from smi_workflow.engine.declaration import Case
from smi_workflow.errors import GuardRefused
from smi_workflow.jobs.model import UNDER_WAY, Dispute, Payment, PaymentRole, Refund

SYSTEM = "system"


def note_submitted(case: Case[Refund]) -> None:
    case.set(stripe_refund_id=case.facts["stripe_refund_id"])
    case.record(stripe_refund_id=case.facts["stripe_refund_id"])


def finish_refund(case: Case[Refund]) -> None:
    note_submitted(case)
    _count_refunded(case, case.row.cents)
    _tell_job(case, "refund_settled", {"is_ours": True})


def note_found(case: Case[Refund]) -> None:
    """It was made at Stripe and is settled; whoever recorded it tells the job."""
    note_submitted(case)
    _count_refunded(case, case.row.cents)


def lose_refund(case: Case[Refund]) -> None:
    _note_end(case)
    ours = {"effect": case.facts["effect"]} if "effect" in case.facts else {}
    _tell_job(case, "refund_failed", {**ours, "payment_intent_id": case.row.payment_intent_id})


def lose_settled_refund(case: Case[Refund]) -> None:
    """The bank has sent back what was taken for settled."""
    _note_end(case)
    _count_refunded(case, -case.row.cents)
    _tell_job(case, "refund_failed", {"was_settled": True})


def try_again(case: Case[Refund]) -> None:
    """The same refund under another key: Stripe would repeat its last answer under the old one."""
    refund = case.row
    _ask_for_room(case, "refund_retried")
    past = [refund.past_stripe_ids, refund.stripe_refund_id]
    case.set(
        tries=refund.tries + 1, stripe_refund_id=None, past_stripe_ids=" ".join(filter(None, past)) or None
    )  # fmt: skip
    case.record(tries=refund.tries)


def settle_elsewhere(case: Case[Refund]) -> None:
    """Stripe's books keep the money as ours, and so does the payment's row; the buyer has it all the same."""
    _ask_for_room(case, "refund_settled", is_ours=True, elsewhere=True)
    case.record(amount_cents=case.row.cents, currency=case.row.currency)


def room_of(case: Case[Any], payment: Payment) -> int:
    """What is left to give back of one payment: what went back, is on its way or with the bank counted."""
    refunds, disputes = case.unit.bound(Refund), case.unit.bound(Dispute)
    intent = payment.payment_intent_id
    made = refunds.select().where(refunds.payment_intent_id == intent)
    under_way = sum(row.cents for row in made if row.state in UNDER_WAY)
    elsewhere = sum(row.cents for row in made if row.state == "settled_elsewhere")
    disputed = sum(row.kept_cents for row in disputes.select().where(disputes.payment_intent_id == intent))
    return payment.cents - payment.refunded_cents - under_way - elsewhere - disputed


def _note_end(case: Case[Refund]) -> None:
    made = case.facts.get("stripe_refund_id")
    if made is not None and case.row.stripe_refund_id is None:
        # Late news of its success must find out that it has failed.
        case.set(stripe_refund_id=made)
    case.record(code=case.facts.get("code", ""), stripe_refund_id=case.row.stripe_refund_id)


def _ask_for_room(case: Case[Refund], trigger: str, **facts: object) -> None:
    """Never more than was captured: the job counts, or its payment where that is none of the sale's."""
    refund = case.row
    if refund.role == PaymentRole.SALE:
        # By us, whoever wanted it: by hand nobody makes a job count what no refund stands for.
        _tell_job(case, trigger, facts, actor=SYSTEM)
        return
    payments = case.unit.bound(Payment)
    payment = payments.get_or_none(payments.payment_intent_id == refund.payment_intent_id)
    assert payment is not None, "payments are never removed"
    room = room_of(case, payment)
    if refund.cents > room:
        why = f"{refund.cents} of {room} {refund.currency} (minor units) is more than is left of the payment"
        raise GuardRefused("refund", refund.refund_id, case.state, case.trigger, "something_is_left", why)


def _tell_job(case: Case[Refund], trigger: str, facts: dict[str, Any], actor: str | None = None) -> None:
    refund = case.row
    told = {
        **facts, "refund_id": refund.refund_id, "amount_cents": refund.cents, "currency": refund.currency,
        "role": refund.role,
    }  # fmt: skip
    case.unit.fire("job", refund.job_id, trigger, actor=actor or case.actor, reason=case.reason, facts=told)


def _count_refunded(case: Case[Refund], cents: int) -> None:
    payment = case.unit.bound(Payment)
    more, ours = payment.refunded_cents + cents, payment.payment_intent_id == case.row.payment_intent_id
    payment.update(refunded_cents=more).where(ours).execute()
