"""Owns the reading of events: a provider's payload → (subject, trigger, facts).

Called by the inbox, through app.py.

Translators read the database and change nothing; what they say is fired, parked or ignored by the inbox. What
arrives is cut down first, so that the inbox keeps only what is read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from peewee import Model

from smi_workflow.engine.database import Slot
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Fire, Ignore, Park, Reading, Translator
from smi_workflow.engine.tables import EventRow
from smi_workflow.errors import InvalidInput
from smi_workflow.integrations.stripe_objects import identifier
from smi_workflow.integrations.upsampler_api import UpscaleStatus, failure_code, parse_upscale
from smi_workflow.jobs.model import UNDER_WAY, Dispute, Job, JobStatus, Payment, Refund
from smi_workflow.jobs.refunds import FOREIGN_ENDS, facts_of_foreign, is_of_try

M = TypeVar("M", bound=Model)

STRIPE, UPSAMPLER = "stripe", "upsampler"
NOT_OWN = "it is not the job's own session"
ON_RECORD = "what it tells is on record already"
OTHER_MODE = "test and live mode are mixed"
# A refund's status at Stripe → what its row is told; null is not known to be anything yet.
REFUND_TRIGGERS = {
    None: "submitted", "requires_action": "submitted", "pending": "pending", "succeeded": "succeed",
    "failed": "fail", "canceled": "cancel",
}  # fmt: skip

# What is kept of an event's object, beside its id.
_KEPT = (
    "amount", "amount_total", "amount_refunded", "client_reference_id", "currency", "failure_reason",
    "livemode", "payment_status", "reason", "status",
)  # fmt: skip


def reduce_stripe_event(event: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a verified event what its translator reads.

    Raises:
        InvalidInput: an event without the envelope every event has, or with an object that refers to nonsense.
    """
    data = event.get("data")
    thing = data.get("object") if isinstance(data, dict) else None
    if not isinstance(thing, dict):
        raise InvalidInput("data.object", "is missing")
    for name in ("id", "type"):
        if not isinstance(event.get(name), str) or not event[name]:
            raise InvalidInput(name, "is missing")
    kept = {name: thing[name] for name in _KEPT if isinstance(thing.get(name), str | int | float)}
    for name in ("payment_intent", "charge"):
        try:
            kept[name] = identifier(thing.get(name))
        except (KeyError, TypeError):
            raise InvalidInput(f"data.object.{name}", "is neither an id nor an object with one") from None
    metadata = _part(thing, "metadata")
    kept["metadata"] = {name: value for name, value in metadata.items() if isinstance(value, str)}
    kept["id"] = _text(thing, "id")
    kept["email"] = _text(_part(thing, "customer_details"), "email")
    kept["error_code"] = _text(_part(thing, "last_payment_error"), "code")
    if isinstance(thing.get("balance_transactions"), list):
        # What a dispute took and gave back so far: each of its events tells all of it once more.
        amounts = [_part({"it": one}, "it").get("amount") for one in thing["balance_transactions"]]
        kept["was_taken"] = any(isinstance(amount, int) and amount < 0 for amount in amounts)
        kept["was_returned"] = any(isinstance(amount, int) and amount > 0 for amount in amounts)
    return {"id": event["id"], "type": event["type"], "livemode": bool(event.get("livemode")), "object": kept}


def without_person(payload: str) -> str:
    """What is kept of an event that is settled: all but whose it was."""
    told = json.loads(payload)
    thing = told.get("object")
    if not isinstance(thing, dict) or thing.get("email") is None:
        return payload
    return json.dumps({**told, "object": {**thing, "email": None}})


def _part(thing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = thing.get(name)
    return part if isinstance(part, dict) else {}


def _text(thing: Mapping[str, Any], name: str) -> str | None:
    value = thing.get(name)
    return value if isinstance(value, str) and value else None


class StripeReader:
    """Reads Stripe's events."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._readers: dict[str, Callable[[dict[str, Any], bool], Reading]] = {
            "checkout.session.completed": self._session_completed,
            "checkout.session.async_payment_succeeded": self._session_completed,
            "checkout.session.async_payment_failed": self._session_failed,
            "checkout.session.expired": self._session_expired,
            "payment_intent.payment_failed": self._declined,
            "payment_intent.succeeded": self._intent_succeeded,
            "charge.succeeded": self._charge_succeeded,
            "charge.refunded": self._charge_refunded,
            "refund.created": self._refund,
            "refund.updated": self._refund,
            "refund.failed": self._refund,
            "charge.refund.updated": self._refund,
            "charge.dispute.created": partial(self._dispute, trigger="dispute_opened"),
            "charge.dispute.funds_withdrawn": partial(self._dispute, trigger="dispute_opened", taken=True),
            "charge.dispute.funds_reinstated": partial(self._dispute, trigger="dispute_closed", returned=True),
            "charge.dispute.closed": partial(self._dispute, trigger="dispute_closed", over=True),
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of events that it reads."""
        return tuple(self._readers)

    def __call__(self, row: EventRow) -> Reading:
        event = json.loads(row.payload)
        reader = self._readers.get(event["type"])
        if reader is None:
            return Ignore(f"{event['type']} changes nothing here")
        if event["object"]["id"] is None:
            # Compared with a column, no id would mean every row that has none yet.
            return Ignore("it is about an object without an id")
        return reader(event["object"], event["livemode"])

    def _session_completed(self, session: dict[str, Any], livemode: bool) -> Reading:
        job = self._job_of(session)
        if not isinstance(job, Job):
            return job
        if job.stripe_checkout_session_id is None:
            return Park("its checkout is not on record yet", "job", job.job_id)
        if session.get("payment_status") == "unpaid":
            if job.stripe_checkout_session_id != session["id"]:
                return Ignore(NOT_OWN)
            return Fire("job", job.job_id, "payment_processing", STRIPE, otherwise="ignore")
        if session.get("payment_status") != "paid":
            return Ignore(f"payment_status is {session.get('payment_status')!r}: no money moved")
        if not isinstance(session.get("amount_total"), int) or not session.get("currency"):
            return Park("it names no amount", "job", job.job_id)
        if session["payment_intent"] and self._payment(session["payment_intent"]) is not None:
            return Ignore(f"payment {session['payment_intent']} is on record already")
        facts = {
            "session_id": session["id"],
            "payment_intent_id": session["payment_intent"],
            "amount_cents": session.get("amount_total"),
            "currency": session.get("currency"),
            "livemode": livemode,
            "email": session.get("email"),
        }
        unexpected = Fire("job", job.job_id, "payment_unexpected", STRIPE, facts)
        return Fire("job", job.job_id, "payment_received", STRIPE, facts, or_else=unexpected)

    def _session_failed(self, session: dict[str, Any], livemode: bool) -> Reading:
        job = self._job_of(session)
        if not isinstance(job, Job):
            return job
        if job.stripe_checkout_session_id != session["id"]:
            return Ignore(NOT_OWN)
        facts = {"code": "delayed_payment_failed"}
        return Fire("job", job.job_id, "payment_failed", STRIPE, facts, otherwise="ignore")

    def _session_expired(self, session: dict[str, Any], livemode: bool) -> Reading:
        job = self._job_of(session)
        if not isinstance(job, Job):
            return job
        if job.stripe_checkout_session_id is None:
            return Park("its checkout is not on record yet", "job", job.job_id)
        if job.stripe_checkout_session_id != session["id"]:
            return Ignore(NOT_OWN)
        facts = {"session_status": "expired"}
        return Fire("job", job.job_id, "abandon", STRIPE, facts, "the checkout expired", otherwise="ignore")

    def _declined(self, intent: dict[str, Any], livemode: bool) -> Reading:
        job = self._job_of(intent)
        if not isinstance(job, Job):
            return job
        facts = {"code": intent.get("error_code") or "declined"}
        return Fire("job", job.job_id, "payment_declined", STRIPE, facts, otherwise="ignore")

    def _intent_succeeded(self, intent: dict[str, Any], livemode: bool) -> Reading:
        """Money has moved, but only its session says what for: it is on record by then, or waits for that."""
        if self._payment(intent["id"]) is not None:
            return Ignore(ON_RECORD)
        job = self._job_of(intent)
        return Park("its checkout session has not been told", "job", job.job_id) if isinstance(job, Job) else job

    def _charge_succeeded(self, charge: dict[str, Any], livemode: bool) -> Reading:
        intent = charge["payment_intent"]
        if not intent:
            return Ignore("it belongs to no payment intent")
        payment = self._payment(intent)
        if payment is None:
            job = self._job_of(charge)
            return Park("its payment is not on record yet", "job", job.job_id) if isinstance(job, Job) else job
        if payment.charge_id == charge["id"]:
            return Ignore(ON_RECORD)
        facts = {"payment_intent_id": intent, "charge_id": charge["id"]}
        return Fire("job", payment.job_id, "charge_noted", STRIPE, facts)

    def _charge_refunded(self, charge: dict[str, Any], livemode: bool) -> Reading:
        """It tells how much went back, and not by which refund: that is asked for where our rows know of less."""
        payment = self._payment_of({**charge, "charge": charge["id"]})
        if payment is None:
            return Park("the refunded payment is not on record")
        if payment.livemode != livemode:
            return Ignore(OTHER_MODE)
        refunds = self._engine.bound(Refund)
        of_payment = refunds.payment_intent_id == Slot("intent")
        rows = self._rows(refunds, lambda: refunds.select().where(of_payment), intent=payment.payment_intent_id)
        under_way = [row for row in rows if row.state in UNDER_WAY]
        known = payment.refunded_cents + sum(row.cents for row in under_way if row.stripe_refund_id is not None)
        told = charge.get("amount_refunded")
        if not isinstance(told, int) or told <= known:
            return Ignore("what it tells of refunds is on record")
        if any(row.stripe_refund_id is None for row in under_way):
            return Park("a refund of ours is on its way: it may be the one", "job", payment.job_id)
        facts = {"payment_intent_id": payment.payment_intent_id}
        return Fire("job", payment.job_id, "refunds_differ", STRIPE, facts)

    def _refund(self, refund: dict[str, Any], livemode: bool) -> Reading:
        row = self._row_of(refund)
        if not isinstance(row, Refund):
            return row or self._foreign_refund(refund, livemode)
        facts = {
            "stripe_refund_id": refund["id"], "amount_cents": refund.get("amount"),
            "currency": refund.get("currency"), "tries": row.tries,
        }  # fmt: skip
        status = refund.get("status")
        trigger = REFUND_TRIGGERS.get(status)
        if trigger is None:
            return Ignore(f"refund status {status!r} is unknown")
        if trigger not in ("fail", "cancel"):
            return Fire("refund", row.refund_id, trigger, STRIPE, facts, otherwise="ignore")
        reason = refund.get("failure_reason") or str(status)
        ended = {"code": reason, "stripe_refund_id": refund["id"], "tries": row.tries}
        return Fire("refund", row.refund_id, trigger, STRIPE, ended, reason, otherwise="ignore")

    def _row_of(self, refund: dict[str, Any]) -> Refund | Ignore | None:
        """The row of a refund at Stripe, by its id there or by ours; None: somebody made it at Stripe's own pages.

        So counts one that we took for never made, and a second one under our name: what went back is on record.
        """
        refunds, made, named = self._engine.bound(Refund), refund["id"], refund["metadata"].get("refund_id")
        known = refunds.stripe_refund_id == Slot("made")
        row = self._first(refunds, lambda: refunds.select().where(known), made=made)
        if row is not None or named is None:
            return row
        row = self._first(refunds, lambda: refunds.select().where(refunds.refund_id == Slot("named")), named=named)
        if row is None:
            return None
        if made in (row.past_stripe_ids or "").split():
            return Ignore("it came to nothing, and was tried again since")
        ours = row.state in UNDER_WAY and row.stripe_refund_id is None
        return row if ours and is_of_try(row, refund["metadata"]) else None

    def _foreign_refund(self, refund: dict[str, Any], livemode: bool) -> Reading:
        """Somebody refunded at Stripe's dashboard: it counts once the money has gone."""
        payment = self._payment_of(refund)
        if payment is None:
            return Park("the refunded payment is not on record")
        if payment.livemode != livemode:
            return Ignore(OTHER_MODE)
        status = str(refund.get("status"))
        trigger = FOREIGN_ENDS.get(status)
        if trigger is None or not isinstance(refund.get("amount"), int):
            return Ignore(f"a refund that we did not make is {status}")
        facts = facts_of_foreign(
            payment, stripe_refund_id=refund["id"], amount_cents=refund["amount"],
            currency=refund.get("currency"), status=status,
        )  # fmt: skip
        return Fire("job", payment.job_id, trigger, STRIPE, facts, "refunded at Stripe")

    def _dispute(
        self, dispute: dict[str, Any], livemode: bool, *, trigger: str,
        taken: bool = False, returned: bool = False, over: bool = False,
    ) -> Reading:  # fmt: skip
        """Each event tells a part; how it was decided says where the money is, should what moved it be lost."""
        returned = returned or dispute.get("was_returned", False) or dispute.get("status") == "won"
        taken = taken or dispute.get("was_taken", False) or dispute.get("status") == "lost"
        if dispute["payment_intent"] is None and dispute["charge"] is None:
            return Ignore("it names no charge")
        payment = self._payment_of(dispute)
        if payment is None:
            return Park("the disputed charge is not on record")
        if payment.livemode != livemode:
            return Ignore(OTHER_MODE)
        disputes = self._engine.bound(Dispute)
        itself = disputes.dispute_id == Slot("dispute")
        known = self._first(disputes, lambda: disputes.select().where(itself), dispute=dispute["id"])
        # What is new: an inquiry withdraws nothing, and told twice a withdrawal is still one.
        withdrawn: int | None = None
        if returned:
            withdrawn = None if known is not None and known.reinstated else 0
        elif taken:
            withdrawn = None if known is not None and known.withdrawn_cents else dispute.get("amount")
        if withdrawn is None and known is not None and not over:
            return Ignore(ON_RECORD)
        # Whichever event tells of a withdrawal first: work must not go on, and its history must say why.
        trigger = "dispute_opened" if withdrawn else trigger
        facts = {
            "dispute_id": dispute["id"], "withdrawn_cents": withdrawn, "role": payment.role,
            "payment_intent_id": payment.payment_intent_id,
        }  # fmt: skip
        return Fire("job", payment.job_id, trigger, STRIPE, facts, str(dispute.get("reason") or ""))

    def _payment_of(self, thing: dict[str, Any]) -> Payment | None:
        """The payment behind a refund or dispute: by its intent, or by its charge where only that is named."""
        intent, charge = thing["payment_intent"], thing["charge"]
        if intent is not None or not charge:
            return self._payment(intent) if intent else None
        payments = self._engine.bound(Payment)
        return self._first(
            payments, lambda: payments.select().where(payments.charge_id == Slot("charge")), charge=charge
        )

    def _payment(self, intent: str) -> Payment | None:
        payments = self._engine.bound(Payment)
        return self._first(
            payments, lambda: payments.select().where(payments.payment_intent_id == Slot("intent")), intent=intent
        )

    def _first(self, model: type[M], build: Callable[[], Any], **values: object) -> M | None:
        return self._engine.registry.first(("intake", model, tuple(values)), model, build, values)

    def _rows(self, model: type[M], build: Callable[[], Any], **values: object) -> list[M]:
        return self._engine.registry.select(("intake all", model, tuple(values)), model, build, values)

    def _job_of(self, thing: dict[str, Any]) -> Job | Reading:
        """The job that a session or intent belongs to: by our metadata, else by what is on record."""
        jobs = self._engine.bound(Job)
        named = thing["metadata"].get("job_id") or thing.get("client_reference_id")
        if named:
            job = self._first(jobs, lambda: jobs.select().where(jobs.job_id == Slot("job_id")), job_id=str(named))
            return job if job is not None else Park(f"there is no job {named}")
        known = (jobs.stripe_checkout_session_id == Slot("id")) | (jobs.stripe_payment_intent_id == Slot("id"))
        job = self._first(jobs, lambda: jobs.select().where(known), id=thing["id"])
        return job if job is not None else Ignore("it carries no job of ours")


class UpsamplerReader:
    """Reads Upsampler's callbacks; the route has checked our signature over the effect's id.

    Args:
        url_refusal: why a result URL must not be fetched; empty when it may.
    """

    def __init__(self, engine: Engine, url_refusal: Callable[[str | None], str]) -> None:
        self._engine = engine
        self._url_refusal = url_refusal

    def __call__(self, row: EventRow) -> Reading:
        told = json.loads(row.payload)
        upscale = parse_upscale(told)
        effects = self._engine.tables.effects
        effect = self._engine.registry.first(
            ("intake", effects), effects, lambda: effects.select().where(effects.id == Slot("id")),
            {"id": told["effect_id"]},
        )  # fmt: skip
        if effect is None:
            return Ignore("the submission it answers is not on record")
        job = self._engine.read("job", effect.subject_id)
        if not self._engine.workflows["job"].knows(job.status):
            return Park(f"{job.status} is a state that this release does not know", "job", job.job_id, job.version)
        if job.status == JobStatus.PENDING and job.visit == effect.visit:
            return Park("its submission is not on record yet", "job", job.job_id, job.version)
        if job.status != JobStatus.PROCESSING or job.submit_effect_id != effect.id:
            return Ignore("it answers a submission of an earlier visit")
        if upscale.status is UpscaleStatus.FAILED:
            # A crash may have submitted twice: one of them may still succeed, or has.
            if job.delivered_at is not None or upscale.id != job.upsampler_job_id:
                return Ignore("another submission of this visit is good, or still under way")
            reason = upscale.error or "Upsampler gives no reason"
            code = {"code": failure_code(upscale.error)}
            return Fire("job", job.job_id, "fail", UPSAMPLER, code, reason, otherwise="ignore")
        if upscale.status is not UpscaleStatus.SUCCESS:
            return Ignore(f"still {upscale.status}")
        facts = {
            "upsampler_job_id": upscale.id,
            "submit_effect_id": effect.id,
            "image_url": upscale.image_url,
            "url_refusal": self._url_refusal(upscale.image_url),
            "credits_used": upscale.credit_cost,
        }
        return Fire("job", job.job_id, "upscale_delivered", UPSAMPLER, facts, otherwise="ignore")


def translators(engine: Engine, url_refusal: Callable[[str | None], str]) -> dict[str, Translator]:
    """Every reader, by provider."""
    return {STRIPE: StripeReader(engine), UPSAMPLER: UpsamplerReader(engine, url_refusal)}
