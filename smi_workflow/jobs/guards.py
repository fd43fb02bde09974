"""Owns the guards of job and refund: named conditions over the locked row and the facts.

Called by lifecycle.py and refunds.py.

A guard returns None when it agrees, or the reason why not, in words that an admin understands. No guard does I/O:
what must be asked of Stripe, Upsampler or the disk is asked before and handed in as a fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smi_workflow.engine.declaration import Case
from smi_workflow.jobs.amendments import AMENDABLE, amendment_problem
from smi_workflow.jobs.costs import CORRECTED, cost_problem
from smi_workflow.jobs.model import Job, JobStatus, PaymentStatus, Refund


def not_by_hand(case: Case[Any]) -> str | None:
    """It reports what an effect or a provider did: nobody can make it true by saying so."""
    if case.actor.startswith("admin:") or case.actor == "buyer":
        return "this follows from what an effect or a provider reports, and is not fired by hand"
    return None


def payment_fits_the_sale(case: Case[Job]) -> str | None:
    """Session, intent, amount, currency and mode match what we asked for."""
    job, facts = case.row, case.facts
    if job.stripe_checkout_session_id is None:
        return "its checkout session is not on record yet"
    if facts["session_id"] != job.stripe_checkout_session_id:
        return f"it was made in session {facts['session_id']}, not in the job's own"
    if not facts["payment_intent_id"]:
        return "Stripe names no payment intent"
    if facts["amount_cents"] != job.amount_due_cents or facts["currency"] != job.currency:
        paid, due = (f"{facts['amount_cents']} {facts['currency']}", f"{job.amount_due_cents} {job.currency}")
        return f"{paid} was paid where {due} is due (minor units)"
    if bool(facts["livemode"]) != job.livemode:
        return "test and live mode are mixed"
    return None


def payment_is_not_recorded(case: Case[Job]) -> str | None:
    """The sale has been paid for once, and not more."""
    job = case.row
    return f"it is paid already, by {job.stripe_payment_intent_id}" if is_paid(case) else None


def payment_fits_no_sale(case: Case[Job]) -> str | None:
    """The opposite of an expected payment: a second one, a wrong amount, a dead job."""
    if case.row.stripe_checkout_session_id is None:
        return "the job's checkout session is not on record yet"
    if case.facts["payment_intent_id"] == case.row.stripe_payment_intent_id:
        return "this payment is the sale's own"
    expected = case.row.status in (JobStatus.AWAITING_PAYMENT, JobStatus.ABANDONED)
    if expected and payment_fits_the_sale(case) is None and payment_is_not_recorded(case) is None:
        return "this payment is the one we wait for"
    return None


def nothing_is_paid(case: Case[Job]) -> str | None:
    """No money has been captured for this job."""
    return "it is paid" if is_paid(case) else None


def nothing_can_be_paid(case: Case[Job]) -> str | None:
    """No checkout is open at Stripe: it expired, was never made, or took a payment that did not fit ("spent")."""
    if case.row.stripe_checkout_session_id is None:
        return None
    # A checkout that could not be opened says nothing of one that is open.
    status = case.facts.get("session_status", "not known to be over")
    return None if status in ("expired", "spent") else f"its checkout session is {status} at Stripe"


def is_paid_or_overridden(case: Case[Job]) -> str | None:
    """Goods go out for money, or because an admin said so."""
    return None if is_paid(case) or case.row.overridden else "it is not paid, and no admin has overridden that"


def no_refund_is_under_way(case: Case[Job]) -> str | None:
    """Nobody gets the goods and the money, unless an admin said so."""
    job = case.row
    if job.overridden or not (job.refunding_cents or job.refunded_cents):
        return None
    return "a refund is under way or done"


def money_is_kept(case: Case[Job]) -> str | None:
    """Neither a full refund nor a chargeback has taken the money back."""
    job = case.row
    if job.overridden or not job.paid_cents:
        return None
    gone = job.refunding_cents + job.refunded_cents + job.disputed_cents
    return "the money went back (refund or chargeback)" if gone >= job.paid_cents else None


def is_paid_for(case: Case[Job]) -> str | None:
    """A payment of the sale is on record."""
    return None if is_paid(case) else "it is not paid"


def override_is_given(case: Case[Job]) -> str | None:
    """An admin takes it upon herself, with a reason."""
    if case.facts.get("override") is not True:
        return "this needs the fact override=true"
    return reason_is_given(case)


def reason_is_given(case: Case[Job]) -> str | None:
    """Whoever overrides says why."""
    return None if case.reason.strip() else "a reason is needed"


def submission_is_ours(case: Case[Job]) -> str | None:
    """The result belongs to the submission of this visit: a crash may have submitted twice, for the same image."""
    given, ours = case.facts["submit_effect_id"], case.row.submit_effect_id
    return None if given == ours else f"it is the result of submission {given}; this visit waits for {ours}"


def is_not_delivered_yet(case: Case[Job]) -> str | None:
    """The result has been announced once."""
    return "its result was announced already" if case.row.delivered_at is not None else None


def result_url_is_allowed(case: Case[Job]) -> str | None:
    """The result lies where results may lie."""
    refusal = case.facts["url_refusal"]
    return None if not refusal else f"its result cannot be fetched: {refusal}"


def file_is_the_result(case: Case[Job]) -> str | None:
    """The stored file is an image of exactly the promised size."""
    size = (case.facts["width"], case.facts["height"])
    if size == case.row.expected_size:
        return None
    wanted = "{}x{}".format(*case.row.expected_size)
    return f"the file is {size[0]}x{size[1]} pixels, not {wanted}"


def file_can_be_served(case: Case[Job]) -> str | None:
    """There is a file, or somewhere to fetch it from again."""
    return None if case.row.upscaled_file_path else "its file has been removed"


def link_is_over(case: Case[Job]) -> str | None:
    """The download link of this generation has expired."""
    if case.facts["token_generation"] != case.row.token_generation:
        return "the link was renewed meanwhile"
    expires_at = case.row.download_expires_at
    if expires_at is None or case.now < expires_at:
        return "the link has not expired"
    return None


def refund_is_possible(case: Case[Job]) -> str | None:
    """Something is left to give back, refunds in flight counted, and Stripe would let us."""
    job = case.row
    amount = case.facts.get("amount_cents")
    if job.disputed_cents:
        return "a chargeback has withdrawn the money"
    if job.refundable_cents <= 0:
        return "nothing is left to refund"
    if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int)):
        return f"{amount!r} is not a whole number of minor units"
    if amount is not None and not 0 < amount <= job.refundable_cents:
        return f"{amount} is not within 1 to {job.refundable_cents} {job.currency} (minor units)"
    return None


def refund_was_under_way(case: Case[Job]) -> str | None:
    """The settled refund was counted as being in flight, or Stripe made it on its own."""
    job, amount = case.row, case.facts["amount_cents"]
    if case.facts.get("role", "sale") != "sale":
        return None
    counted = case.facts["is_ours"] and not case.facts.get("elsewhere")
    room = job.refunding_cents if counted else job.refundable_cents
    return None if amount <= room else f"{amount} was settled where {room} was expected (minor units)"


def only_listed_fields(case: Case[Job]) -> str | None:
    """An amendment touches contact and reference data, never money or state."""
    fields = case.facts["fields"]
    if not isinstance(fields, Mapping):
        return "fields must be names with their new values"
    wrong = sorted(str(name) for name in set(fields) - AMENDABLE)
    if wrong:
        return f"cannot be amended: {', '.join(wrong)} (can: {', '.join(sorted(AMENDABLE))})"
    if "email" in fields and _checkout_is_being_opened(case.row):
        return "the checkout is being opened with the address as it is: amend it once that is done"
    problem = amendment_problem(fields)
    return None if problem is None else " ".join(problem)


def _checkout_is_being_opened(job: Job) -> bool:
    """Stripe is asked with the address; other parameters under the same key it refuses."""
    unpaid = job.status in (JobStatus.AWAITING_PAYMENT, JobStatus.ABANDONED)
    return unpaid and job.stripe_checkout_session_id is None


def only_costs_are_corrected(case: Case[Job]) -> str | None:
    """Our own costs may turn out otherwise; the price was agreed with the buyer."""
    given: Mapping[str, object] = case.facts["costs"]
    found = ((name, cost_problem(case.row, str(name), value)) for name, value in given.items())
    wrong = next((f"{name} {problem}" for name, problem in found if problem is not None), None)
    return wrong if wrong is not None or set(given) & set(CORRECTED) else "no cost is given"


def nothing_is_owed(case: Case[Job]) -> str | None:
    """No money of the buyer's is held without goods: the row may be cleared of personal data."""
    if case.row.status not in (JobStatus.ABANDONED, JobStatus.FAILED, JobStatus.COMPLETED):
        return f"it is {case.row.status}"
    if case.row.status == JobStatus.FAILED and case.row.refundable_cents > 0:
        return "its refund is still owed"
    return "a refund is under way" if case.row.refunding_cents else None


def target_is_sound(case: Case[Job]) -> str | None:
    """The state that an admin names can be true of this row."""
    target = case.facts["target"]
    if target == JobStatus.COMPLETED and not case.row.upscaled_file_path:
        return "there is no file, so it cannot be completed"
    if target == JobStatus.AWAITING_PAYMENT and is_paid(case):
        return "it is paid, so it does not await payment"
    if target == JobStatus.ABANDONED and is_paid(case):
        return "it is paid; fail it instead, and the money goes back"
    return None


def was_made_at_stripe(case: Case[Refund]) -> str | None:
    """It was put on record because Stripe told of it, and not asked for by us."""
    return None if case.row.stripe_refund_id is not None else "it is ours, and Stripe has not got it yet"


def was_made_by_us(case: Case[Refund]) -> str | None:
    """It was sent by us, so it can be sent again."""
    return None if case.row.tries else "it was made at Stripe's own pages: ask for a `refund` of the job instead"


def is_of_this_try(case: Case[Refund]) -> str | None:
    """Late news of a try that came to nothing says nothing about the one that is under way."""
    given, ours = case.facts.get("tries", case.row.tries), case.row.tries
    return None if given == ours else f"it is about try {given} of {ours}"


def refund_matches(case: Case[Refund]) -> str | None:
    """Stripe's refund is this one: amount, currency and payment."""
    facts, refund = case.facts, case.row
    given = (facts["amount_cents"], facts["currency"])
    if given != (refund.cents, refund.currency):
        return f"Stripe refunded {given[0]} {given[1]}, not {refund.cents} {refund.currency} (minor units)"
    if refund.stripe_refund_id not in (None, facts["stripe_refund_id"]):
        return f"it is {refund.stripe_refund_id} at Stripe, not {facts['stripe_refund_id']}"
    return None


def is_paid(case: Case[Job]) -> bool:
    """Whether the sale's payment is on record."""
    return case.row.payment_status == PaymentStatus.PAID
