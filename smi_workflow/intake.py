"""Owns the reading of events: a provider's payload → (subject, trigger, facts).

Called by the inbox, through app.py.

Translators read the database and change nothing; what they say is fired, parked or ignored by the inbox. What
arrives is cut down first, so that the inbox keeps only what is read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from peewee import Model

from smi_workflow.engine.database import Slot
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Fire, Ignore, Park, Reading, Translator
from smi_workflow.engine.tables import EventRow
from smi_workflow.errors import InvalidInput
from smi_workflow.integrations.stripe_objects import identifier
from smi_workflow.integrations.upsampler_api import UpscaleStatus, failure_code, parse_upscale
from smi_workflow.jobs.model import Job, JobStatus, Payment, Refund

M = TypeVar("M", bound=Model)

STRIPE, UPSAMPLER = "stripe", "upsampler"
NOT_OWN = "it is not the job's own session"

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
            "refund.created": self._refund,
            "refund.updated": self._refund,
            "refund.failed": self._refund,
            "charge.refund.updated": self._refund,
            "charge.dispute.created": self._dispute_created,
            "charge.dispute.funds_withdrawn": self._funds_withdrawn,
            "charge.dispute.funds_reinstated": self._funds_reinstated,
            "charge.dispute.closed": self._dispute_closed,
        }

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

    def _refund(self, refund: dict[str, Any], livemode: bool) -> Reading:
        refunds = self._engine.bound(Refund)
        named = refund["metadata"].get("refund_id")
        of_either = (refunds.refund_id == Slot("named")) | (refunds.stripe_refund_id == Slot("made"))
        row = self._first(refunds, lambda: refunds.select().where(of_either), named=named, made=refund["id"])
        if row is None:
            return self._foreign_refund(refund)
        facts = {
            "stripe_refund_id": refund["id"],
            "amount_cents": refund.get("amount"),
            "currency": refund.get("currency"),
        }
        status = refund.get("status")
        if status == "succeeded":
            return Fire("refund", row.refund_id, "succeed", STRIPE, facts, otherwise="ignore")
        if status in ("pending", "requires_action"):
            return Fire("refund", row.refund_id, "submitted", STRIPE, facts, otherwise="ignore")
        if status in ("failed", "canceled"):
            reason = refund.get("failure_reason") or str(status)
            return Fire("refund", row.refund_id, "fail", STRIPE, {"code": reason}, reason, otherwise="ignore")
        return Ignore(f"refund status {status!r} is unknown")

    def _foreign_refund(self, refund: dict[str, Any]) -> Reading:
        """Somebody refunded at Stripe's dashboard: it counts once the money has gone."""
        payment = self._payment_of(refund)
        if payment is None:
            return Park("the refunded payment is not on record")
        status = refund.get("status")
        ends = {"succeeded": "refund_settled", "failed": "refund_failed", "canceled": "refund_failed"}
        trigger = ends.get(str(status))
        if trigger is None or not isinstance(refund.get("amount"), int):
            return Ignore(f"a refund that we did not make is {status}")
        # One that failed is put on record as well: the news of its success may still be on its way.
        facts = {
            "is_ours": False, "status": status, "stripe_refund_id": refund["id"],
            "payment_intent_id": payment.payment_intent_id, "amount_cents": refund["amount"],
            "currency": refund.get("currency"), "role": payment.role,
        }  # fmt: skip
        return Fire("job", payment.job_id, trigger, STRIPE, facts, "refunded at Stripe")

    def _dispute_created(self, dispute: dict[str, Any], livemode: bool) -> Reading:
        # An inquiry withdraws nothing, and what a dispute withdraws has an event of its own.
        return self._dispute(dispute, "dispute_opened", None)

    def _funds_withdrawn(self, dispute: dict[str, Any], livemode: bool) -> Reading:
        return self._dispute(dispute, "dispute_opened", dispute.get("amount"))

    def _funds_reinstated(self, dispute: dict[str, Any], livemode: bool) -> Reading:
        return self._dispute(dispute, "dispute_closed", 0)

    def _dispute_closed(self, dispute: dict[str, Any], livemode: bool) -> Reading:
        return self._dispute(dispute, "dispute_closed", None)

    def _dispute(self, dispute: dict[str, Any], trigger: str, withdrawn: int | None) -> Reading:
        if dispute["payment_intent"] is None and dispute["charge"] is None:
            return Ignore("it names no charge")
        payment = self._payment_of(dispute)
        if payment is None:
            return Park("the disputed charge is not on record")
        facts = {"dispute_id": dispute["id"], "withdrawn_cents": withdrawn, "role": payment.role}
        return Fire("job", payment.job_id, trigger, STRIPE, facts, str(dispute.get("reason") or ""))

    def _payment_of(self, thing: dict[str, Any]) -> Payment | None:
        """The payment behind a refund or dispute: by its intent, or by its charge where only that is named."""
        events = self._engine.tables.events
        intent, charge = thing["payment_intent"], thing["charge"]
        if intent is None and charge:
            # Which payment a charge belongs to, its own event has told us.
            of_charges = (events.provider == STRIPE) & (events.kind == "charge.succeeded")
            told = events.select(events.payload).where(of_charges & events.payload.contains(charge))
            found = [json.loads(event.payload)["object"] for event in told]
            intent = next((one["payment_intent"] for one in found if one["id"] == charge), None)
        return self._payment(intent) if intent else None

    def _payment(self, intent: str) -> Payment | None:
        payments = self._engine.bound(Payment)
        return self._first(
            payments, lambda: payments.select().where(payments.payment_intent_id == Slot("intent")), intent=intent
        )

    def _first(self, model: type[M], build: Callable[[], Any], **values: object) -> M | None:
        return self._engine.registry.first(("intake", model, tuple(values)), model, build, values)

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
