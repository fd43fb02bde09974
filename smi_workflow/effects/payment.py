"""Owns what is asked of Stripe: checkouts opened and ended, refunds sent and looked up. Called by perform.py."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.stripe_api import KEY_HORIZON
from smi_workflow.integrations.stripe_objects import CheckoutSession, StripeRefund
from smi_workflow.jobs.model import UNDER_WAY, Job, JobStatus, Payment, Refund
from smi_workflow.jobs.refunds import FOREIGN_ENDS, facts_of_foreign, is_of_try, metadata_of
from smi_workflow.settings import PAYMENT_TIMEOUT_HOURS_MAX, STRIPE_EXPIRY_MARGIN_SECONDS

MARGIN = timedelta(seconds=STRIPE_EXPIRY_MARGIN_SECONDS)
ASK_AGAIN = timedelta(hours=1)
LOOK_AGAIN = timedelta(minutes=5)
ASK_SELDOM = timedelta(hours=6)
# Ever more rarely, that is for three days and a half.
FIND_ROUNDS_MAX = 20


def create_checkout(world: World, attempt: Attempt) -> Outcome:
    """Open the payment page. Its parameters depend on the rows alone, so the key fits them on every attempt."""
    job = attempt.row
    if not attempt.key_is_fresh(KEY_HORIZON):
        found = find_checkout(world, attempt)
        if found is not None:
            return found
    session = world.stripe.create_checkout_session(
        job_id=job.job_id,
        amount_cents=job.amount_due_cents,
        currency=job.currency,
        description="Image upscaled {} to {}x{} pixels".format(job.resolution, *job.expected_size),
        success_url=attempt.inputs["success_url"],
        cancel_url=attempt.inputs["cancel_url"],
        expires_at=_ends_at(attempt),
        email=job.email,
        key=attempt.id,
    )
    return _checkout_opened(session)


def find_checkout(world: World, attempt: Attempt) -> Outcome | None:
    """What an attempt of unknown outcome made, found by listing; None when it made nothing that can be paid."""
    now, end = attempt.clock.now(), _ends_at(attempt)
    if now > end + MARGIN:
        # Nobody ever knew its address, and by now it has ended by itself: so looking for it ends, too.
        return None
    session = world.stripe.find_checkout_session(
        job_id=attempt.subject_id, since=attempt.owed_at - MARGIN, until=now
    )  # fmt: skip
    return None if session is None else _checkout_opened(session)


def _ends_at(attempt: Attempt) -> datetime:
    """When the session that this effect opens ends by itself; the same on every attempt."""
    longest = timedelta(hours=PAYMENT_TIMEOUT_HOURS_MAX) - MARGIN
    return attempt.owed_at + min(timedelta(hours=attempt.inputs["open_hours"]), longest)


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
    if session.payment_status == "paid" and not _payment_is_known(world, session):
        # Somebody was quicker, and nobody has told us yet.
        waits = attempt.row.status in (JobStatus.AWAITING_PAYMENT, JobStatus.ABANDONED)
        trigger = "payment_received" if waits and _fits(attempt.row, session) else "payment_unexpected"
        facts = payment_facts(session)
        return Done(trigger, facts, actor="stripe", reason="found when it was ended", on_refusal="skip")
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
            metadata=metadata_of(refund),
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
    """What an attempt of unknown outcome did, found by listing; None when no refund of this try exists."""
    refund = attempt.row
    for made in world.stripe.list_refunds(payment_intent=refund.payment_intent_id):
        if is_of_try(refund, made.metadata):
            return _refund_outcome(made)
    return None


def check_refund(world: World, attempt: Attempt) -> Outcome:
    """Ask what became of a refund that the bank took its time with."""
    try:
        made = world.stripe.retrieve_refund(attempt.row.stripe_refund_id)
    except ServiceRefused as refusal:
        # A wrong key, another account: nobody else asks, so it must outlive it.
        return Again(ASK_SELDOM, str(refusal))
    outcome = _refund_outcome(made)
    if outcome.trigger in ("submitted", attempt.row.state):
        return Again(ASK_SELDOM, note=f"{made.status} at Stripe")
    return outcome


def find_refunds(world: World, attempt: Attempt) -> Outcome:
    """Stripe gave back more of a payment than we know of: put what is missing on record, one by one.

    Listed, and not searched; run again until nothing is missing, as each is news of its own.
    """
    payments = world.engine.bound(Payment)
    payment = payments.get_or_none(payments.payment_intent_id == attempt.inputs["payment_intent_id"])
    assert payment is not None, "payments are never removed"
    try:
        listed = world.stripe.list_refunds(payment_intent=payment.payment_intent_id)
    except ServiceRefused as refusal:
        # A wrong key, another account: the look must outlive it. The admin is told once.
        trigger = "notice_failed" if attempt.waits == 0 else None
        return Again(ASK_SELDOM, str(refusal), trigger, reason=str(refusal))
    missing = [made for made in listed if not _is_on_record(world, made)]
    ended = next((made for made in missing if made.status in FOREIGN_ENDS), None)
    if ended is not None:
        if attempt.waits > FIND_ROUNDS_MAX:
            return Done("notice_failed", reason=f"refund {ended.id} at Stripe could not be put on record")
        facts = facts_of_foreign(
            payment, stripe_refund_id=ended.id, amount_cents=ended.amount_cents, currency=ended.currency,
            status=ended.status,
        )  # fmt: skip
        wait = min(LOOK_AGAIN * 2 ** min(attempt.waits, 10), ASK_SELDOM)
        return Again(wait, f"{ended.id} was not on record", FOREIGN_ENDS[ended.status], facts, "found at Stripe")
    if missing:
        return Again(ASK_SELDOM, "a refund made at Stripe is not settled yet")
    return Done(note="every refund of this payment is on record")


def _is_on_record(world: World, made: StripeRefund) -> bool:
    """It has a row, or is on its way in one: then its own effect and events tell how it ends."""
    refunds = world.engine.bound(Refund)
    if refunds.get_or_none(refunds.stripe_refund_id == made.id) is not None:
        return True
    named = refunds.get_or_none(refunds.refund_id == made.metadata.get("refund_id", ""))
    if named is None:
        return False
    ended = made.id in (named.past_stripe_ids or "").split()
    return ended or (named.state in UNDER_WAY and is_of_try(named, made.metadata))


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
    if _payment_is_known(world, session):
        return Done(
            "abandon", {"session_status": "spent"}, reason="what was paid did not fit, and goes its own way"
        )
    facts, reason = payment_facts(session), "found at the deadline"
    if _fits(job, session):
        return Done("payment_received", facts, actor="stripe", reason=reason)
    return Again(LOOK_AGAIN, "what was paid does not fit", "payment_unexpected", facts, reason)


def _payment_is_known(world: World, session: CheckoutSession) -> bool:
    payments = world.engine.bound(Payment)
    return payments.get_or_none(payments.payment_intent_id == session.payment_intent) is not None


def _fits(job: Job, session: CheckoutSession) -> bool:
    if session.id != job.stripe_checkout_session_id:
        return False
    paid = (session.amount_total_cents, session.currency, session.livemode)
    return paid == (job.amount_due_cents, job.currency, job.livemode)


def _refund_outcome(refund: StripeRefund) -> Done:
    if refund.status == "succeeded":
        return Done("succeed", refund_facts(refund), actor="stripe", on_refusal="skip")
    if refund.status in ("pending", "requires_action"):
        trigger = "pending" if refund.status == "pending" else "submitted"
        return Done(trigger, refund_facts(refund), actor="stripe", on_refusal="skip")
    reason = f"Stripe says {refund.status}: {refund.failure_reason or 'no reason given'}"
    facts = {"code": refund.failure_reason or refund.status, "stripe_refund_id": refund.id}
    trigger = "cancel" if refund.status == "canceled" else "fail"
    return Done(trigger, facts, actor="stripe", reason=reason, on_refusal="skip")
