"""Owns the questions of a reconciliation: what Stripe and Upsampler know, and we should. Called by reconcile.py.

What they tell is put into the words of their own events, so that the inbox takes it in as it takes a webhook. An
object that was asked for becomes an event of ours, named after the object and its status: found again, it is the
same event. Nothing is changed here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from smi_workflow.effects.world import Arrivals, World
from smi_workflow.errors import InvalidInput, ServiceError, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.stripe_api import EVENT_TYPES_MAX, PAGE_SIZE
from smi_workflow.integrations.stripe_objects import identifier
from smi_workflow.integrations.upsampler_api import UpscaleStatus, callback_name, kept_callback
from smi_workflow.jobs import unsettled
from smi_workflow.jobs.model import UNDER_WAY, Job, JobStatus, Payment, Refund, RefundState
from smi_workflow.jobs.unsettled import Place

T = TypeVar("T")
# Stripe lists events for so long; refunds and disputes may turn for longer.
EVENTS_KEPT, REFUNDS_TURN, DISPUTES_TURN = timedelta(days=30), timedelta(days=30), timedelta(days=120)
# One object that cannot be told is left for the next run; so many one after the other, and nobody is there.
SILENT_MAX = 3
TOO_MANY_REQUESTS = 429
_WRONG_KEY = (401, 403)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """Something that may be news to us, as an event."""

    provider: str
    event_id: str
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One call to a provider.

    Attributes:
        cursor: what it came to; an asker goes on behind it.
        asked: how many objects were told.
        unanswered: how many were not.
    """

    cursor: str
    asked: int
    found: Sequence[Found] = ()
    unanswered: int = 0


Question = Callable[[str], Iterator[Step]]
# In this order: what somebody waits for first; events before objects, which then mostly are no news any more.
QUESTIONS = (
    "upscales", "undelivered", "events", "checkouts", "left", "refunds", "slow_refunds", "disputes"
)  # fmt: skip


class Asker:
    """Asks, one call a step. Every question takes the cursor that an earlier step left, or an empty one.

    Args:
        since: what happened before then is known.
    Raises:
        ServiceUnavailable: Stripe is away, or somebody wants us to slow down; go on later behind the last step.
        ServiceRefused: our key is not taken.
    """

    def __init__(self, world: World, arrivals: Arrivals, now: datetime, since: datetime) -> None:
        self._world = world
        self._engine = world.engine
        self._arrivals = arrivals
        self._now = now
        self._since = since
        self._silent = 0
        self.questions: Mapping[str, Question] = {
            "upscales": self._upscales,
            "undelivered": self._undelivered,
            "events": self._events,
            "checkouts": self._open_checkouts,
            "left": self._left_checkouts,
            "refunds": self._refunds,
            "slow_refunds": self._slow_refunds,
            "disputes": self._disputes,
        }

    # -- Upsampler ------------------------------------------------------------------------------------------------

    def _upscales(self, cursor: str) -> Iterator[Step]:
        for job in unsettled.open_upscales(self._engine, Place.read(cursor)):
            try:
                upscale = self._ask(self._world.upsampler.status, str(job.upsampler_job_id))
            except ServiceError as trouble:
                if trouble.status == TOO_MANY_REQUESTS:
                    raise
                # That Upsampler is away is no reason not to ask Stripe; jobs go on asking by themselves.
                log.warning("reconcile: %s", trouble)
                self._silent = 0
                yield Step(str(Place.of(job)), 0, unanswered=1)
                return
            if upscale is None:
                yield Step(str(Place.of(job)), 0, unanswered=1)
                continue
            over = upscale.status in (UpscaleStatus.SUCCESS, UpscaleStatus.FAILED)
            body = kept_callback(str(job.submit_effect_id), upscale)
            news = [Found("upsampler", callback_name(upscale), upscale.status, body)] if over else []
            yield Step(str(Place.of(job)), 1, news)

    # -- Stripe's events ------------------------------------------------------------------------------------------

    def _undelivered(self, cursor: str) -> Iterator[Step]:
        return self._list_events(cursor, self._now - EVENTS_KEPT, undelivered_only=True)

    def _events(self, cursor: str) -> Iterator[Step]:
        return self._list_events(cursor, max(self._since, self._now - EVENTS_KEPT), undelivered_only=False)

    def _list_events(self, cursor: str, since: datetime, *, undelivered_only: bool) -> Iterator[Step]:
        kinds = self._arrivals.kinds
        listed = self._world.stripe.list_events(
            since=since, types=kinds if len(kinds) <= EVENT_TYPES_MAX else (), undelivered_only=undelivered_only,
            after=cursor,
        )  # fmt: skip
        for page in _paged(listed):
            news = []
            # Stripe tells the newest first; in the order in which it happened, less is too late to be applied.
            for event in reversed(page):
                try:
                    body = self._arrivals.reduce(event)
                except InvalidInput:
                    continue
                if body["type"] in kinds:
                    news.append(Found("stripe", body["id"], body["type"], body))
            yield Step(str(page[-1]["id"]), len(page), news)

    # -- checkouts ------------------------------------------------------------------------------------------------

    def _open_checkouts(self, cursor: str) -> Iterator[Step]:
        return self._checkouts(unsettled.open_checkouts(self._engine, Place.read(cursor)))

    def _left_checkouts(self, cursor: str) -> Iterator[Step]:
        # Nobody can pay in a session that is older than a day, whenever its job was given up.
        begun = self._since - timedelta(days=1)
        return self._checkouts(unsettled.left_checkouts(self._engine, Place.read(cursor), begun))

    def _checkouts(self, jobs: Iterator[Job]) -> Iterator[Step]:
        for job in jobs:
            session = self._body("session", str(job.stripe_checkout_session_id))
            if session is None:
                yield Step(str(Place.of(job)), 0, unanswered=1)
                continue
            yield Step(str(Place.of(job)), 1, self._news_of_session(job, session))

    def _news_of_session(self, job: Job, session: Mapping[str, Any]) -> list[Found]:
        waits = job.status == JobStatus.AWAITING_PAYMENT
        status, paid = session.get("status"), session.get("payment_status")
        if status == "expired":
            return self._object("checkout.session.expired", session, "expired") if waits else []
        if status != "complete":
            return []
        intent = identifier(session.get("payment_intent"))
        if paid == "paid":
            known = unsettled.payments_by(self._engine, "payment_intent_id", [intent])
            return [] if known else self._object("checkout.session.completed", session, "paid")
        if paid != "unpaid" or intent is None:
            return []
        # A slow method: only the payment itself tells whether the bank still thinks about it.
        payment = self._body("intent", intent)
        state = payment.get("status") if payment is not None else None
        if state == "processing" and not (waits and unsettled.debit_is_on_record(self._engine, job)):
            return self._object("checkout.session.completed", session, "unpaid")
        if state in ("requires_payment_method", "canceled") and waits:
            return self._object("checkout.session.async_payment_failed", session, "failed")
        return []

    # -- refunds --------------------------------------------------------------------------------------------------

    def _refunds(self, cursor: str) -> Iterator[Step]:
        """All of late, our own and those made at Stripe: one that had succeeded may have failed since."""
        for page in _paged(self._world.stripe.list_bodies("refund", since=self._turning_since(), after=cursor)):
            yield Step(str(page[-1]["id"]), len(page), self._news_of_refunds(page))

    def _slow_refunds(self, cursor: str) -> Iterator[Step]:
        for row in unsettled.open_refunds(self._engine, Place.read(cursor), self._turning_since()):
            refund = self._body("refund", str(row.stripe_refund_id))
            if refund is None:
                yield Step(str(Place.of(row)), 0, unanswered=1)
                continue
            yield Step(str(Place.of(row)), 1, self._news_of_refunds([refund]))

    def _turning_since(self) -> datetime:
        return min(self._since, self._now - REFUNDS_TURN)

    def _news_of_refunds(self, refunds: Sequence[Mapping[str, Any]]) -> list[Found]:
        names = [str((refund.get("metadata") or {}).get("refund_id") or "") for refund in refunds]
        by_name = unsettled.refunds_by(self._engine, "refund_id", names)
        by_id = unsettled.refunds_by(self._engine, "stripe_refund_id", [str(refund["id"]) for refund in refunds])
        payments = self._payments_of(refunds)
        news = []
        for name, refund, payment in zip(names, refunds, payments, strict=True):
            status = str(refund.get("status") or "pending")
            row = by_id.get(str(refund["id"]))
            state = str(row.state) if row is not None else _state_by_name(refund, by_name.get(name))
            if state is None:
                state = "unknown" if payment is not None else "not ours"
            kind = _REFUND_NEWS.get((status, state))
            if kind is not None:
                news += self._object(kind, _named(refund, payment), status)
        return news

    # -- chargebacks ----------------------------------------------------------------------------------------------

    def _disputes(self, cursor: str) -> Iterator[Step]:
        since = min(self._since, self._now - DISPUTES_TURN)
        for page in _paged(self._world.stripe.list_bodies("dispute", since=since, after=cursor)):
            yield Step(str(page[-1]["id"]), len(page), self._news_of_disputes(page))

    def _news_of_disputes(self, disputes: Sequence[Mapping[str, Any]]) -> list[Found]:
        payments = self._payments_of(disputes)
        known = unsettled.disputes_by_id(self._engine, [str(dispute["id"]) for dispute in disputes])
        news = []
        for dispute, payment in zip(disputes, payments, strict=True):
            if payment is None:
                continue
            row, status = known.get(str(dispute["id"])), dispute.get("status")
            if status == "won":
                kind = None if row is not None and row.reinstated else "funds_reinstated"
            elif status == "lost" or _is_withdrawn(dispute):
                kind = None if row is not None and row.withdrawn_cents else "funds_withdrawn"
            else:
                kind = None if row is not None else "created"
            if kind is not None:
                news += self._object(f"charge.dispute.{kind}", _named(dispute, payment), kind)
        return news

    # -- shared ---------------------------------------------------------------------------------------------------

    def _payments_of(self, things: Sequence[Mapping[str, Any]]) -> list[Payment | None]:
        """The payment on record behind each refund or dispute; one that names its charge alone is asked about."""
        intents = [identifier(thing.get("payment_intent")) for thing in things]
        charges = [identifier(thing.get("charge")) for thing in things]
        by_charge = unsettled.payments_by(self._engine, "charge_id", charges)
        for index, charge in enumerate(charges):
            if intents[index] is None and charge is not None and charge not in by_charge:
                intents[index] = self._ask(self._world.stripe.retrieve_charge_intent, charge)
        by_intent = unsettled.payments_by(self._engine, "payment_intent_id", intents)
        return [
            by_intent.get(intent or "") or by_charge.get(charge or "")
            for intent, charge in zip(intents, charges, strict=True)
        ]

    def _body(self, kind: Any, object_id: str) -> dict[str, Any] | None:
        return self._ask(lambda name: self._world.stripe.retrieve_body(kind, name), object_id)

    def _ask(self, call: Callable[[str], T], name: str) -> T | None:
        try:
            answer = call(name)
        except ServiceRefused as refusal:
            if refusal.status in _WRONG_KEY:
                raise
            return None
        except ServiceUnavailable as trouble:
            self._silent += 1
            if trouble.status == TOO_MANY_REQUESTS or self._silent >= SILENT_MAX:
                raise
            return None
        self._silent = 0
        return answer

    def _object(self, kind: str, thing: Mapping[str, Any], status: str) -> list[Found]:
        event = {
            "id": f"found:{thing['id']}:{status}", "type": kind,
            # A refund does not say; whatever our key shows us is of its mode.
            "livemode": thing.get("livemode", self._world.settings.livemode), "data": {"object": thing},
        }  # fmt: skip
        try:
            return [Found("stripe", str(event["id"]), kind, self._arrivals.reduce(event))]
        except InvalidInput:
            return []


# What Stripe says of a refund, and what we do → the event that was missed. Of one that Stripe calls settled and we
# call failed there is none: it can never apply, and a person has been told.
_REFUND_NEWS: Mapping[tuple[str, str], str] = {
    **{("succeeded", state): "refund.updated" for state in (*UNDER_WAY, "unknown")},
    **{("failed", state): "refund.failed" for state in (*UNDER_WAY, RefundState.SUCCEEDED, "unknown")},
    **{("canceled", state): "refund.updated" for state in (*UNDER_WAY, "unknown")},
    **{("pending", state): "refund.created" for state in (RefundState.REQUESTED, RefundState.SUBMITTED)},
    ("requires_action", RefundState.REQUESTED): "refund.created",
}


def _state_by_name(refund: Mapping[str, Any], row: Refund | None) -> str | None:
    """The state of the refund that Stripe's carries the name of; None where it is not that one, but one more."""
    if row is None:
        return None
    if refund["id"] in (row.past_stripe_ids or "").split():
        return "an earlier try"
    return str(row.state) if row.stripe_refund_id is None else None


def _is_withdrawn(dispute: Mapping[str, Any]) -> bool:
    """The account's own currency may be another than the charge's: only which way the money went is told by it."""
    entries = dispute.get("balance_transactions") or []
    return sum(int(entry["amount"]) for entry in entries if isinstance(entry, Mapping)) < 0


def _named(thing: Mapping[str, Any], payment: Payment | None) -> Mapping[str, Any]:
    """With the payment that we found out it belongs to."""
    return {**thing, "payment_intent": payment.payment_intent_id} if payment is not None else thing


def _paged(things: Iterable[T]) -> Iterator[list[T]]:
    """Page by page, as Stripe hands them out: one call each."""
    rest = iter(things)
    while page := list(islice(rest, PAGE_SIZE)):
        yield page
