"""Owns what must hold of a sale in every state of the model. Called by model_sale.py.

Each check answers with a sentence when something is wrong. What Stripe's books and our rows say of the same money
is compared once nothing is on its way any more.
"""

from __future__ import annotations

from typing import Any

from smi_workflow.jobs.model import (
    LOST,
    UNDER_WAY,
    Job,
    JobStatus,
    Payment,
    PaymentRole,
    PaymentStatus,
    Refund,
    RefundState,
)
from smi_workflow.simulation.model import Scene
from smi_workflow.simulation.model_records import Applied
from smi_workflow.simulation.model_shop import stripe_refunded
from smi_workflow.simulation.model_stripe import JOB_ID

_WORKING = (JobStatus.PENDING, JobStatus.PROCESSING)
_GIVEN_BACK = (RefundState.SUCCEEDED, RefundState.SETTLED_ELSEWHERE)
_IN_HANDS = (*LOST, RefundState.SETTLED_ELSEWHERE)
_PAYABLE = (("open", "unpaid"), ("complete", "unpaid"))
_COSTLY = ("submit_upscale", "submit_refund")


def job_of(scene: Scene) -> Any:
    """The one job of the scene."""
    return scene.tables[Job][JOB_ID]


def refunds_of(scene: Scene) -> list[Any]:
    """The sale's refunds."""
    return [row for row in scene.tables[Refund].values() if row.__dict__["role"] == PaymentRole.SALE]


def refunds_stay_within_the_payment(scene: Scene) -> str | None:
    """Nothing is refunded beyond what was captured, and no sum is below zero."""
    job = job_of(scene)
    if min(job.refunding_cents, job.refunded_cents, job.disputed_cents) < 0:
        return f"refunding {job.refunding_cents}, refunded {job.refunded_cents}, disputed {job.disputed_cents}"
    if job.refunding_cents + job.refunded_cents > job.paid_cents:
        return f"{job.refunding_cents} + {job.refunded_cents} is refunded where {job.paid_cents} was paid"
    return None


def job_and_refunds_agree(scene: Scene) -> str | None:
    """What the job counts as refunding and refunded is what the refunds' own rows say."""
    job, rows = job_of(scene), refunds_of(scene)
    under_way = sum(row.cents for row in rows if row.state in UNDER_WAY)
    settled = sum(row.cents for row in rows if row.state in _GIVEN_BACK)
    if (job.refunding_cents, job.refunded_cents) == (under_way, settled):
        return None
    return (
        f"the job counts {job.refunding_cents} under way and {job.refunded_cents} settled, "
        f"its refunds {under_way} and {settled}"
    )


def only_the_right_payment_is_taken(scene: Scene) -> str | None:
    """A sale is paid by a charge at Stripe that fits: session, amount, currency, mode."""
    job = job_of(scene)
    if job.payment_status != PaymentStatus.PAID:
        return None if not job.paid_cents else f"{job.paid_cents} count as paid, but it is {job.payment_status}"
    session = next((s for s in scene.outside["sessions"] if s.intent == job.stripe_payment_intent_id), None)
    if session is None or session.payment_status != "paid":
        return "it counts as paid, and nobody paid"
    given = (session.id, session.cents, session.currency, session.livemode, job.paid_cents)
    due = (job.stripe_checkout_session_id, job.amount_due_cents, job.currency, job.livemode, job.amount_due_cents)
    return None if given == due else f"{given} was taken for {due}"


def goods_are_paid_for(scene: Scene) -> str | None:
    """Nothing is worked on without a payment, unless an admin said so."""
    job = job_of(scene)
    if job.status not in (*_WORKING, JobStatus.COMPLETED):
        return None
    paid = job.payment_status == PaymentStatus.PAID or job.overridden
    return None if paid else f"it is {job.status}, and nobody paid"


def no_work_once_the_money_is_back(scene: Scene) -> str | None:
    """A full refund or chargeback ends the work, unless an admin said so."""
    job = job_of(scene)
    if job.status not in _WORKING or job.overridden or not job.paid_cents:
        return None
    gone = job.refunding_cents + job.refunded_cents + job.disputed_cents
    return f"it is {job.status} although {gone} of {job.paid_cents} went back" if gone >= job.paid_cents else None


def held_money_leads_on(scene: Scene) -> str | None:
    """Money held for a sale that will not be delivered has a refund ahead of it, or a person was told."""
    job = job_of(scene)
    if job.status not in (JobStatus.FAILED, JobStatus.ABANDONED) or job.refundable_cents <= 0:
        return None
    if any(item.effect.name == "refund_due" for item in scene.of_visit("job", JOB_ID, job.visit)):
        return None
    if any(row.state in LOST for row in refunds_of(scene)):
        return None
    return f"it is {job.status}, {job.refundable_cents} are held, and nothing is owed that sends them back"


def stripe_is_not_asked_for_too_much(scene: Scene) -> str | None:
    """We never ask for more than is left, unless somebody at Stripe was faster."""
    foreign = any(one.refund_id is None for one in scene.outside["refunds"])
    disputed = any(one.dispute != "none" for one in scene.outside["charges"])
    if scene.outside["overdrawn"] and not foreign and not disputed:
        return "Stripe was asked to refund more than is left of a payment"
    return None


def completed_means_delivered(scene: Scene) -> str | None:
    """Whoever enters `completed` has a file there, and the money has not gone back."""
    job = job_of(scene)
    for item in scene.log:
        if not isinstance(item, Applied) or (item.workflow, item.to_state) != ("job", JobStatus.COMPLETED):
            continue
        if item.from_state == JobStatus.COMPLETED:
            continue
        if not job.upscaled_file_path or job.upscaled_file_path not in scene.outside["files"]:
            return "it was completed without a file"
        gone = job.refunding_cents + job.refunded_cents + job.disputed_cents
        if job.paid_cents and gone >= job.paid_cents and not job.overridden:
            return f"it was completed although {gone} of {job.paid_cents} went back"
    return None


def a_full_refund_ends_the_work(scene: Scene) -> str | None:
    """`refund` and `refund_settled` of all the money lead from working to failed, unless an admin said so."""
    job = job_of(scene)
    for item in scene.log if not job.overridden else ():
        if isinstance(item, Applied) and item.trigger in ("refund", "refund_settled") and item.workflow == "job":
            full = job.refunding_cents + job.refunded_cents >= job.paid_cents > 0
            if full and item.from_state in _WORKING and item.to_state != JobStatus.FAILED:
                return f"after a full refund it is {item.to_state}"
    return None


def nobody_who_may_pay_is_given_up(scene: Scene) -> str | None:
    """`abandon` comes when the checkout is over, and not while it is open or a bank debit is on its way."""
    for item in scene.log:
        if isinstance(item, Applied) and (item.workflow, item.trigger) == ("job", "abandon"):
            own = job_of(scene).stripe_checkout_session_id
            session = next((one for one in scene.outside["sessions"] if one.id == own), None)
            if session is not None and (session.status, session.payment_status) in _PAYABLE:
                return f"it was abandoned while its checkout is {session.status}, {session.payment_status}"
    return None


def nothing_costly_is_owed_twice(scene: Scene) -> str | None:
    """What costs money or credits is owed once in a visit."""
    owed = [(e.effect.name, e.subject_id, e.visit) for e in scene.effects if e.effect.name in _COSTLY]
    twice = next((one for one in owed if owed.count(one) > 1), None)
    return f"{twice[0]} is owed twice to the same visit" if twice else None


def rows_agree_with_the_books(scene: Scene) -> str | None:
    """Law 11, once everything has been told: captured, refunded and charged back are what our rows say."""
    job = job_of(scene)
    payments = {row.__dict__["payment_intent_id"]: row for row in scene.tables[Payment].values()}
    for charge in scene.outside["charges"]:
        row: Any = payments.get(charge.intent)
        if row is None:
            return f"{charge.cents} {charge.currency} were paid, and no row of ours says so"
        refunded = stripe_refunded(scene, charge.intent)
        if row.refunded_cents != refunded:
            return f"{refunded} of {charge.intent} were refunded, our row says {row.refunded_cents}"
        if row.role == PaymentRole.SALE and job.disputed_cents != charge.withdrawn_cents:
            return f"{charge.withdrawn_cents} are charged back, the job says {job.disputed_cents}"
        elsewhere = sum(one.cents for one in refunds_of(scene) if one.state == RefundState.SETTLED_ELSEWHERE)
        if row.role == PaymentRole.SALE and job.refunded_cents != refunded + elsewhere:
            return f"{refunded} were refunded, the job says {job.refunded_cents}"
    return None


def strange_money_goes_back(scene: Scene) -> str | None:
    """A payment that fits no sale is refunded, or a person was told why not."""
    if scene.plan.scenario.policy.unexpected_payment != "refund":
        return None
    for row in scene.tables[Payment].values():
        payment: Any = row
        if payment.role == PaymentRole.SALE:
            continue
        made: list[Any] = [
            one for one in scene.tables[Refund].values()
            if one.__dict__["payment_intent_id"] == payment.payment_intent_id
        ]  # fmt: skip
        told = any(one.state in _IN_HANDS for one in made)
        charge = next(one for one in scene.outside["charges"] if one.intent == payment.payment_intent_id)
        if payment.refunded_cents + charge.withdrawn_cents < payment.cents and not told:
            return f"{payment.cents} {payment.currency} fit no sale, and were not sent back"
    return None


def sale_is_over(scene: Scene) -> bool:
    """Delivered, refunded, or in a person's hands."""
    return held_money_leads_on(scene) is None


ALWAYS = (
    refunds_stay_within_the_payment, job_and_refunds_agree, only_the_right_payment_is_taken, goods_are_paid_for,
    no_work_once_the_money_is_back, held_money_leads_on, stripe_is_not_asked_for_too_much,
    nothing_costly_is_owed_twice,
)  # fmt: skip
ON_STEP = (completed_means_delivered, a_full_refund_ends_the_work, nobody_who_may_pay_is_given_up)
AT_REST = (rows_agree_with_the_books, strange_money_goes_back)
