"""Owns what is asked of Stripe: checkouts opened and ended, refunds sent and looked up. Called by perform.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.stripe_api import KEY_HORIZON
from smi_workflow.integrations.stripe_objects import CheckoutSession, StripeRefund
from smi_workflow.jobs.model import Job, Payment
from smi_workflow.settings import PAYMENT_TIMEOUT_HOURS_MAX, STRIPE_EXPIRY_MARGIN_SECONDS

MARGIN = timedelta(seconds=STRIPE_EXPIRY_MARGIN_SECONDS)
ASK_AGAIN = timedelta(hours=1)
LOOK_AGAIN = timedelta(minutes=5)


def create_checkout(world: World, attempt: Attempt) -> Outcome:
    """Open the payment page. Its parameters depend on the row alone, so the key fits them on every attempt."""
    job, settings = attempt.row, world.settings
    if not attempt.key_is_fresh(KEY_HORIZON):
        found = find_checkout(world, attempt)
        if found is not None:
            return found
    longest = timedelta(hours=PAYMENT_TIMEOUT_HOURS_MAX) - MARGIN
    session = world.stripe.create_checkout_session(
        job_id=job.job_id,
        amount_cents=job.amount_due_cents,
        currency=job.currency,
        description="Image upscaled {} to {}x{} pixels".format(job.resolution, *job.expected_size),
        success_url=settings.success_url.replace("{JOB_ID}", job.job_id),
        cancel_url=settings.cancel_url.replace("{JOB_ID}", job.job_id),
        expires_at=attempt.owed_at + min(timedelta(hours=settings.payment_timeout_hours), longest),
        email=job.email,
        key=attempt.id,
    )
    return _checkout_opened(session)


def find_checkout(world: World, attempt: Attempt) -> Outcome | None:
    """What an attempt of unknown outcome made, found by listing; None when it made nothing."""
    session = world.stripe.find_checkout_session(job_id=attempt.subject_id, since=attempt.owed_at - MARGIN)
    return None if session is None else _checkout_opened(session)


def payment_deadline(world: World, attempt: Attempt) -> Outcome:
    """Nobody has paid, as far as we know: ask Stripe, and end the checkout before the job is given up."""
    session_id = attempt.row.stripe_checkout_session_id
    if session_id is None:
        # Refused when the checkout is opened this very moment: then the deadline, the job's only one, stands.
        return Again(
            LOOK_AGAIN, "no checkout yet", "abandon", {"session_status": "never_created"},
            "no checkout was ever opened",
        )  # fmt: skip
    try:
        session = world.stripe.retrieve_checkout_session(session_id)
        if session.status == "open":
            session = world.stripe.expire_checkout_session(session_id, key=attempt.id)
    except ServiceRefused as refusal:
        # A wrong key, another account: the job's only deadline must outlive it. The admin is told once.
        first = attempt.waits == 0
        return Again(ASK_AGAIN, str(refusal), trigger="notice_failed" if first else None, reason=str(refusal))
    if session.status == "expired":
        return Done("abandon", {"session_status": "expired"}, reason="nobody paid in time")
    if session.payment_status == "paid":
        return _found_payment(world, attempt.row, session)
    if attempt.inputs["delayed"]:
        return Done("payment_failed", {"code": "delayed_payment_timeout"}, reason="the bank debit never settled")
    return Done("payment_processing", actor="stripe", reason="found at the deadline: paid by a slow method")


def expire_session(world: World, attempt: Attempt) -> Outcome:
    """The job is over: end its checkout, so that nobody pays for it."""
    session_id = attempt.inputs.get("session_id") or attempt.row.stripe_checkout_session_id
    session = world.stripe.expire_checkout_session(session_id, key=attempt.id)
    return Done(note=f"the session is {session.status}")


def refund_due(world: World, attempt: Attempt) -> Outcome:
    """The time for a retry is over: the money goes back."""
    code = attempt.row.failure_code or "failed"
    return Done("refund", {"code": code}, reason=f"automatic refund: {code}", on_refusal="skip")


def submit_refund(world: World, attempt: Attempt) -> Outcome:
    """Send the money back. After a doubtful attempt, and past the horizon of Stripe's keys, look first."""
    refund = attempt.row
    if attempt.doubts or not attempt.key_is_fresh(KEY_HORIZON):
        found = find_refund(world, attempt)
        if found is not None:
            return found
    try:
        made = world.stripe.create_refund(
            payment_intent=refund.payment_intent_id,
            amount_cents=refund.cents,
            reason="requested_by_customer" if refund.role == "sale" else "duplicate",
            metadata={"refund_id": refund.refund_id, "job_id": refund.job_id},
            key=attempt.id,
        )
    except ServiceRefused as refusal:
        if refusal.status in (401, 403):
            # Our key is wrong, not the refund: it waits until the key is mended.
            raise ServiceUnavailable("stripe", str(refusal), code=refusal.code, status=refusal.status) from refusal
        # "Already refunded" may be our own earlier attempt, whose answer was lost.
        found = find_refund(world, attempt) if refusal.code == "charge_already_refunded" else None
        if found is None:
            raise
        return found
    return _refund_outcome(made)


def find_refund(world: World, attempt: Attempt) -> Outcome | None:
    """What an attempt of unknown outcome did, found by listing; None when no refund of this row exists."""
    refund = attempt.row
    for made in world.stripe.list_refunds(payment_intent=refund.payment_intent_id):
        if made.metadata.get("refund_id") == refund.refund_id:
            return _refund_outcome(made)
    return None


def check_refund(world: World, attempt: Attempt) -> Outcome:
    """Ask what became of a refund that the bank took its time with."""
    try:
        made = world.stripe.retrieve_refund(attempt.row.stripe_refund_id)
    except ServiceRefused as refusal:
        # A wrong key, another account: nobody else asks, so it must outlive it.
        return Again(timedelta(hours=6), str(refusal))
    if made.status in ("pending", "requires_action"):
        return Again(timedelta(hours=6), note=f"{made.status} at Stripe")
    if made.status == "succeeded":
        return Done("succeed", refund_facts(made), actor="stripe", on_refusal="skip")
    return _refund_failed(made)


def refund_overdue(world: World, attempt: Attempt) -> Outcome:
    """Three days: somebody should look."""
    return Done("overdue", reason="not settled within 72 hours", on_refusal="skip")


def payment_facts(session: CheckoutSession) -> dict[str, Any]:
    """The facts of a payment, as guards want them."""
    return {
        "session_id": session.id,
        "payment_intent_id": session.payment_intent,
        "amount_cents": session.amount_total_cents,
        "currency": session.currency,
        "livemode": session.livemode,
        "email": session.email,
    }


def refund_facts(refund: StripeRefund) -> dict[str, Any]:
    """The facts of a refund, as guards want them."""
    return {"stripe_refund_id": refund.id, "amount_cents": refund.amount_cents, "currency": refund.currency}


def _checkout_opened(session: CheckoutSession) -> Outcome:
    return Done("checkout_opened", {"session_id": session.id, "checkout_url": session.url})


def _found_payment(world: World, job: Job, session: CheckoutSession) -> Outcome:
    """A payment whose webhook was lost; or one that does not fit, after which nobody can pay any more."""
    payments = world.engine.bound(Payment)
    if payments.get_or_none(payments.payment_intent_id == session.payment_intent) is not None:
        return Done(
            "abandon", {"session_status": "spent"}, reason="what was paid did not fit, and goes its own way"
        )
    facts, reason = payment_facts(session), "found at the deadline"
    paid = (session.amount_total_cents, session.currency, session.livemode)
    if paid == (job.amount_due_cents, job.currency, job.livemode):
        return Done("payment_received", facts, actor="stripe", reason=reason)
    return Again(LOOK_AGAIN, "what was paid does not fit", "payment_unexpected", facts, reason)


def _refund_outcome(refund: StripeRefund) -> Outcome:
    if refund.status == "succeeded":
        return Done("succeed", refund_facts(refund), actor="stripe", on_refusal="skip")
    if refund.status in ("pending", "requires_action"):
        return Done("submitted", refund_facts(refund), actor="stripe", on_refusal="skip")
    return _refund_failed(refund)


def _refund_failed(refund: StripeRefund) -> Outcome:
    reason = f"Stripe says {refund.status}: {refund.failure_reason or 'no reason given'}"
    code = refund.failure_reason or refund.status
    return Done("fail", {"code": code}, actor="stripe", reason=reason, on_refusal="skip")
