"""Owns what a transition changes in the row and which other subjects it starts or fires. Called by lifecycle.py.

All of it happens inside the transition's own commit. What is recorded here stays in history for good, so it
is never personal data.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import NoReturn

from smi_workflow.engine.declaration import Case
from smi_workflow.errors import GuardRefused
from smi_workflow.jobs import owing
from smi_workflow.jobs.model import Dispute, Job, JobStatus, Payment, PaymentRole, PaymentStatus
from smi_workflow.jobs.pricing import from_cents
from smi_workflow.jobs.refund_changes import room_of
from smi_workflow.jobs.tokens import download_token, token_hash

# Trying again would fail again: the money goes back at once.
FINAL_CODES = frozenset(
    {"invalid_image", "unsupported", "too_large", "not_allowed", "upsampler_failed", "wrong_dimensions",
     "refunded", "chargeback", "not_an_image", "unsupported_format", "too_many_pixels"}
)  # fmt: skip

EMAIL_LENGTH_MAX = 255

CREDITS_BELIEVED = 1_000_000


def store_checkout(case: Case[Job]) -> None:
    # A second one is ended: the buyer may be at the first.
    if case.row.stripe_checkout_session_id is None:
        case.set(stripe_checkout_session_id=case.facts["session_id"], checkout_url=case.facts["checkout_url"])
    case.record(session_id=case.facts["session_id"])


def record_payment(case: Case[Job]) -> None:
    facts = case.facts
    cents, currency, intent = facts["amount_cents"], facts["currency"], facts["payment_intent_id"]
    case.set(
        stripe_payment_intent_id=intent,
        payment_status=PaymentStatus.PAID,
        paid_at=case.now,
        paid_cents=cents,
        amount_charged=from_cents(cents, currency),
    )
    _note_address(case, instead=_has_other_payment(case))
    _insert_payment(case, PaymentRole.SALE)
    case.record(amount_cents=cents, currency=currency, payment_intent_id=intent)


def record_unexpected_payment(case: Case[Job]) -> None:
    facts = case.facts
    job = case.row
    fits = (facts["amount_cents"], facts["currency"]) == (job.amount_due_cents, job.currency)
    fits = fits and bool(facts["livemode"]) == job.livemode
    # What is paid in a strange session is a second payment only where there was a first one.
    first = job.payment_status == PaymentStatus.PAID or facts["session_id"] == job.stripe_checkout_session_id
    role = PaymentRole.SURPLUS if fits and first else PaymentRole.MISMATCH
    _note_address(case)
    _insert_payment(case, role)
    case.record(
        role=role, amount_cents=facts["amount_cents"], currency=facts["currency"],
        payment_intent_id=facts["payment_intent_id"],
    )  # fmt: skip
    if case.policy.unexpected_payment == "refund":
        _start_refund(
            case, facts["payment_intent_id"], facts["amount_cents"], facts["currency"], role, "unexpected"
        )


def expect_late_payment(case: Case[Job]) -> None:
    case.record(session_status="complete", payment="processing")


def note_declined(case: Case[Job]) -> None:
    case.set(payment_status=PaymentStatus.FAILED)
    case.record(code=case.facts.get("code", ""))


def end_unpaid(case: Case[Job]) -> None:
    case.set(payment_status=PaymentStatus.FAILED)
    set_failed(case)


def start_processing(case: Case[Job]) -> None:
    case.set(
        upsampler_job_id=case.facts["upsampler_job_id"],
        submit_effect_id=case.facts["submit_effect_id"],
        processing_started_at=case.now,
        delivered_at=None,
        upscaled_url=None,
    )
    _note_credits(case)
    case.record(upsampler_job_id=case.facts["upsampler_job_id"])


def note_delivery(case: Case[Job]) -> None:
    case.set(delivered_at=case.now, upscaled_url=case.facts["image_url"])
    _note_credits(case)
    case.record(upsampler_job_id=case.facts["upsampler_job_id"])


def store_result(case: Case[Job]) -> None:
    facts = case.facts
    case.set(upscaled_file_path=facts["file_name"], completed_at=case.now)
    _issue_link(case)
    case.record(
        file_name=facts["file_name"], width=facts["width"], height=facts["height"], format=facts["format"],
        size_bytes=facts["size_bytes"], sha256=facts["sha256"],
    )  # fmt: skip


def set_failed(case: Case[Job]) -> None:
    code = case.facts.get("code") or "unspecified"
    case.set(failed_at=case.now, failure_code=code[:64])
    case.record(code=code, effect=case.facts.get("effect", ""))


def prepare_retry(case: Case[Job]) -> None:
    override = case.facts.get("override") is True
    case.set(
        upsampler_job_id=None, submit_effect_id=None, upscaled_url=None, delivered_at=None,
        failed_at=None, failure_code=None,
        overridden=case.row.overridden or override,
    )  # fmt: skip
    case.record(override=override)


def renew_link(case: Case[Job]) -> None:
    _issue_link(case)
    case.set(email_sent=False)


def note_mail_sent(case: Case[Job]) -> None:
    case.set(email_sent=True)


def forget_file(case: Case[Job]) -> None:
    case.record(file_name=case.row.upscaled_file_path)
    case.set(upscaled_file_path=None)


def amend_fields(case: Case[Job]) -> None:
    case.set(**case.facts["fields"])
    # Names only: the values may be personal.
    case.record(fields=sorted(case.facts["fields"]))


def forget_person(case: Case[Job]) -> None:
    case.set(email=None, image_url="", checkout_url=None, upscaled_url=None, purged_at=case.now)


def request_refund(case: Case[Job]) -> None:
    job = case.row
    cents = case.facts.get("amount_cents") or job.refundable_cents
    case.set(refunding_cents=job.refunding_cents + cents, refund_reason=case.reason or case.facts.get("code", ""))
    assert job.stripe_payment_intent_id is not None
    refund_id = _start_refund(
        case, job.stripe_payment_intent_id, cents, job.currency, PaymentRole.SALE, case.facts.get("code", "")
    )
    case.record(refund_id=refund_id, amount_cents=cents, currency=job.currency)


def refund_and_fail(case: Case[Job]) -> None:
    request_refund(case)
    case.set(failed_at=case.now, failure_code="refunded")


def settle_refund(case: Case[Job]) -> None:
    job, facts = case.row, case.facts
    cents = facts["amount_cents"]
    if not facts["is_ours"]:
        _note_foreign_refund(case)
    case.record(refund_id=facts.get("refund_id", ""), amount_cents=cents, role=facts.get("role", "sale"))
    if facts.get("elsewhere"):
        case.record(elsewhere=True)
    if facts.get("role", "sale") != "sale":
        return
    refunded = job.refunded_cents + cents
    case.set(
        refunding_cents=job.refunding_cents - (cents if owing.is_counted(case) else 0),
        refunded_cents=refunded,
        refunded_at=case.now,
        refund_amount=from_cents(refunded, job.currency),
    )


def settle_refund_and_fail(case: Case[Job]) -> None:
    settle_refund(case)
    case.set(failed_at=case.now, failure_code="refunded")


def release_refund(case: Case[Job]) -> None:
    job, cents = case.row, case.facts["amount_cents"]
    case.record(refund_id=case.facts.get("refund_id", ""), amount_cents=cents)
    if case.facts.get("is_ours") is False:
        _note_foreign_refund(case)
        return
    if case.facts.get("role", "sale") != "sale":
        return
    if case.facts.get("was_settled"):
        refunded = job.refunded_cents - cents
        case.set(refunded_cents=refunded, refund_amount=from_cents(refunded, job.currency))
    else:
        case.set(refunding_cents=job.refunding_cents - cents)


def count_retried_refund(case: Case[Job]) -> None:
    """It is on its way once more, and counted as such."""
    case.set(refunding_cents=case.row.refunding_cents + case.facts["amount_cents"])
    case.record(refund_id=case.facts["refund_id"], amount_cents=case.facts["amount_cents"])


def count_retried_refund_and_fail(case: Case[Job]) -> None:
    count_retried_refund(case)
    case.set(failed_at=case.now, failure_code="refunded")


def return_payment(case: Case[Job]) -> None:
    """Give back a payment that fits no sale, where that was left to a person or has failed."""
    facts, payments = case.facts, case.unit.bound(Payment)
    intent = facts["payment_intent_id"]
    own = (payments.payment_intent_id == intent) & (payments.job_id == case.row.job_id)
    payment = payments.get_or_none(own)
    if payment is None:
        _refuse(case, "payment_is_strange", f"no payment {intent} of this job is on record")
    if payment.role == PaymentRole.SALE:
        _refuse(case, "payment_is_strange", "this payment is the sale's own: that is what `refund` is for")
    room = room_of(case, payment)
    cents = room if facts.get("amount_cents") is None else facts["amount_cents"]
    if not 0 < cents <= room:
        _refuse(case, "something_is_left", f"{cents} is not within 1 to {room} {payment.currency} (minor units)")
    refund_id = _start_refund(case, intent, cents, payment.currency, payment.role, "returned by hand")
    case.record(refund_id=refund_id, payment_intent_id=intent, amount_cents=cents, currency=payment.currency)


def note_charge(case: Case[Job]) -> None:
    """Whatever names no intent is found by its charge from now on."""
    facts, payments = case.facts, case.unit.bound(Payment)
    named = payments.payment_intent_id == facts["payment_intent_id"]
    payments.update(charge_id=facts["charge_id"]).where(named).execute()
    case.unit.wake_strays(facts["charge_id"])
    case.record(payment_intent_id=facts["payment_intent_id"], charge_id=facts["charge_id"])


def note_dispute(case: Case[Job]) -> None:
    """What one event tells is added to what others told of the same dispute: their order does not matter."""
    facts, job, disputes = case.facts, case.row, case.unit.bound(Dispute)
    told, dispute_id = facts["withdrawn_cents"], facts["dispute_id"]
    known = disputes.get_or_none(disputes.dispute_id == dispute_id)
    if known is None:
        disputes.insert(
            dispute_id=dispute_id,
            job_id=job.job_id,
            payment_intent_id=facts.get("payment_intent_id") or job.stripe_payment_intent_id or "",
            role=facts.get("role", "sale"),
            withdrawn_cents=told or 0,
            reinstated=told == 0,
            created_at=case.now,
        ).execute()
    elif told is not None:
        withdrawn, back = max(known.withdrawn_cents, told), known.reinstated or told == 0
        itself = disputes.dispute_id == dispute_id
        disputes.update(withdrawn_cents=withdrawn, reinstated=back).where(itself).execute()
    # A chargeback of a payment that was none of the sale's touches no money of the sale.
    of_sale = disputes.select().where((disputes.job_id == job.job_id) & (disputes.role == PaymentRole.SALE))
    case.set(disputed_cents=sum(one.kept_cents for one in of_sale))
    case.record(dispute_id=dispute_id, withdrawn_cents=told)


def note_dispute_and_fail(case: Case[Job]) -> None:
    note_dispute(case)
    case.set(failed_at=case.now, failure_code="chargeback")


def override_state(case: Case[Job]) -> None:
    # Only where goods may follow: elsewhere the guards against goods and money both must stay.
    if case.facts["target"] in (JobStatus.PENDING, JobStatus.PROCESSING, JobStatus.COMPLETED):
        case.set(overridden=True)
    case.record(target=case.facts["target"], effects=bool(case.facts.get("effects")))


# -- shared -------------------------------------------------------------------------------------------------------


def _note_address(case: Case[Job], *, instead: bool = False) -> None:
    """Whoever paid can be written to, whatever becomes of the payment; `instead` of whom we know so far."""
    email = case.facts.get("email") or ""
    known = bool(case.row.email) and not instead
    # Stripe takes longer addresses than any mail server, and than the column.
    if not known and case.row.purged_at is None and 0 < len(email) <= EMAIL_LENGTH_MAX:
        case.set(email=email)


def _has_other_payment(case: Case[Job]) -> bool:
    """Whether the address may be of somebody whose payment fitted no sale: the link is not for them."""
    payments = case.unit.bound(Payment)
    return bool(case.row.email) and payments.get_or_none(payments.job_id == case.row.job_id) is not None


def _insert_payment(case: Case[Job], role: PaymentRole) -> None:
    facts = case.facts
    case.unit.bound(Payment).insert(
        payment_intent_id=facts["payment_intent_id"],
        charge_id=facts.get("charge_id"),
        job_id=case.row.job_id,
        cents=facts["amount_cents"],
        currency=facts["currency"],
        livemode=bool(facts["livemode"]),
        role=role,
        created_at=case.now,
    ).execute()
    # A refund or chargeback that was told first has waited for this.
    case.unit.wake_strays(facts["payment_intent_id"])


def _note_foreign_refund(case: Case[Job]) -> None:
    """A refund made at Stripe, not by us. Its id is unique, so it counts once however many events tell of it."""
    facts = case.facts
    refund_id = _start_refund(
        case, facts["payment_intent_id"], facts["amount_cents"], facts["currency"], facts.get("role", "sale"),
        "made at Stripe", stripe_refund_id=facts["stripe_refund_id"], tries=0,
    )  # fmt: skip
    case.unit.fire("refund", refund_id, "found_at_stripe", actor=case.actor, reason=case.reason, facts=facts)


def _refuse(case: Case[Job], guard: str, why: str) -> NoReturn:
    """What only other rows of this job can tell, read under its lock."""
    raise GuardRefused("job", case.row.job_id, case.state, case.trigger, guard, why)


def _start_refund(
    case: Case[Job], intent: str, cents: int, currency: str, role: str, reason_code: str, **columns: object
) -> str:
    refund_id = str(uuid.UUID(case.unit.new_id()))
    columns |= {
        "refund_id": refund_id, "job_id": case.row.job_id, "payment_intent_id": intent, "cents": cents,
        "currency": currency, "role": role, "reason": reason_code, "created_at": case.now,
    }  # fmt: skip
    case.unit.start("refund", columns, actor=case.actor, reason=case.reason)
    return refund_id


def _issue_link(case: Case[Job]) -> None:
    generation = case.row.token_generation + 1
    token = download_token(case.policy.secret_keys[0], case.row.job_id, generation)
    case.set(
        token_generation=generation,
        download_token=token_hash(token),
        download_expires_at=case.now + timedelta(hours=case.policy.download_expiry_hours),
    )


def _note_credits(case: Case[Job]) -> None:
    credits_used = case.facts.get("credits_used")
    # What no image can cost is not worth failing a sale for: it stands in the event, and the estimate stays.
    if credits_used is not None and credits_used <= CREDITS_BELIEVED:
        case.set(credits_used=credits_used)
        case.record(credits_used=str(credits_used))
