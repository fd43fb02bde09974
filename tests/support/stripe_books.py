"""Owns a model of Stripe's books: what was captured, sent back and charged back, and the events that tell of it.

Called by the state machine of payments. It shares nothing with our rows, so that it can say what they must say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from smi_workflow.engine.clock import Clock
from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.stripe_api import KEY_HORIZON, StripeApi
from smi_workflow.integrations.stripe_objects import CheckoutSession, StripeRefund

T = TypeVar("T")
COUNTED = ("pending", "requires_action", "succeeded")


@dataclass
class Session:
    """A visit to the payment page."""

    id: str
    job_id: str
    cents: int
    expires_at: datetime
    status: str = "open"
    payment_status: str = "unpaid"
    intent: str | None = None


@dataclass
class Refund:
    """Money on its way back."""

    id: str
    charge: Charge
    cents: int
    metadata: Mapping[str, str]
    status: str
    has_succeeded: bool = False


@dataclass
class Dispute:
    """What a bank took, if it did."""

    id: str
    charge: Charge
    taken_cents: int
    is_reinstated: bool = False
    is_closed: bool = False


@dataclass
class Charge:
    """Money that was captured, and what became of it."""

    intent: str
    id: str
    job_id: str
    cents: int
    livemode: bool
    is_settled: bool
    refunds: list[Refund] = field(default_factory=list)
    dispute: Dispute | None = None

    def sent_back(self, *statuses: str) -> int:
        """Refunds in these states."""
        return sum(refund.cents for refund in self.refunds if refund.status in statuses)

    @property
    def charged_back(self) -> int:
        """What is with the buyer's bank."""
        taken = self.dispute is not None and not self.dispute.is_reinstated
        return self.dispute.taken_cents if taken and self.dispute is not None else 0

    @property
    def left(self) -> int:
        """What can still be sent back."""
        return self.cents - self.sent_back(*COUNTED) - self.charged_back


@dataclass(frozen=True)
class Event:
    """One event, and whose it is."""

    id: str
    kind: str
    thing: Mapping[str, Any]
    livemode: bool
    job_id: str

    def body(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "id": self.id, "object": "event", "type": self.kind, "livemode": self.livemode,
            "data": {"object": dict(self.thing)},
        }  # fmt: skip


class StripeBooks(StripeApi):
    """Stripe in this thread: the client that handlers call, and the levers that buyers and banks pull.

    `fault` strikes the next call: "away" before it is made, "unanswered" after it, "refused" instead.
    """

    def __init__(self, clock: Clock) -> None:
        self.sessions: dict[str, Session] = {}
        self.charges: dict[str, Charge] = {}
        self.refunds: dict[str, Refund] = {}
        self.events: list[Event] = []
        self._delayed: dict[str, Charge] = {}
        self.fault = ""
        self.refunds_become = "succeeded"
        self._clock = clock
        self._answers: dict[str, tuple[datetime, object, Any]] = {}
        self._count = 0

    def close(self) -> None:
        """There is nothing to close."""

    # -- what handlers ask --------------------------------------------------------------------------------------

    def create_checkout_session(self, **asked: Any) -> CheckoutSession:
        def create() -> CheckoutSession:
            if not timedelta(minutes=30) <= asked["expires_at"] - self._clock.now() <= timedelta(hours=24):
                raise ServiceRefused("stripe", "expires_at", code="parameter_invalid", status=400)
            session = Session(self._id("cs"), asked["job_id"], asked["amount_cents"], asked["expires_at"])
            self.sessions[session.id] = session
            return self._session(session)

        return self._keyed(asked.pop("key"), asked, create)

    def retrieve_checkout_session(self, session_id: str) -> CheckoutSession:
        return self._called(lambda: self._session(self.sessions[session_id]), changes=False)

    def expire_checkout_session(self, session_id: str, *, key: str) -> CheckoutSession:
        def expire() -> CheckoutSession:
            self.expire(self.sessions[session_id])
            return self._session(self.sessions[session_id])

        return self._keyed(key, session_id, expire)

    def find_checkout_session(self, *, job_id: str, **window: Any) -> CheckoutSession | None:
        def find() -> CheckoutSession | None:
            found = [one for one in self.sessions.values() if one.job_id == job_id]
            return self._session(found[-1]) if found else None

        return self._called(find, changes=False)

    def create_refund(self, **asked: Any) -> StripeRefund:
        def create() -> StripeRefund:
            charge = self.charges[asked["payment_intent"]]
            if charge.charged_back:
                raise ServiceRefused("stripe", "disputed", code="charge_disputed", status=400)
            if charge.left <= 0:
                raise ServiceRefused("stripe", "nothing left", code="charge_already_refunded", status=400)
            if asked["amount_cents"] > charge.left:
                raise ServiceRefused("stripe", "too much", code="amount_too_large", status=400)
            return self._refund(self.refund(charge, asked["amount_cents"], asked["metadata"]))

        return self._keyed(asked.pop("key"), asked, create)

    def retrieve_refund(self, refund_id: str) -> StripeRefund:
        return self._called(lambda: self._refund(self.refunds[refund_id]), changes=False)

    def list_refunds(self, *, payment_intent: str) -> list[StripeRefund]:
        made = self.charges[payment_intent].refunds
        return self._called(lambda: [self._refund(one) for one in reversed(made)], changes=False)

    def list_events(self, **filters: Any) -> Iterator[dict[str, Any]]:
        raise AssertionError("nobody reconciles here")

    # -- what buyers and banks do -------------------------------------------------------------------------------

    def pay(self, session: Session, *, cents: int, livemode: bool = False, delayed: bool = False) -> None:
        """Press Pay."""
        session.status, session.intent = "complete", self._id("pi")
        session.payment_status = "unpaid" if delayed else "paid"
        session.cents = cents
        charge = Charge(session.intent, self._id("ch"), session.job_id, cents, livemode, is_settled=not delayed)
        if not delayed:
            self.charges[charge.intent] = charge
        else:
            self._delayed[charge.intent] = charge
        self._tell("checkout.session.completed", charge, self._session_body(session, livemode))
        if not delayed:
            self._tell_charged(charge)

    def pay_elsewhere(self, job_id: str, cents: int) -> None:
        """Pay for a job once more, in a session that somebody opened by hand."""
        session = Session(self._id("cs"), job_id, cents, self._clock.now())
        # Not among ours: looking for the job's own must not find it.
        self.pay(session, cents=cents)

    def settle_delayed(self, session: Session, *, succeeded: bool) -> None:
        """The bank has decided about a debit."""
        assert session.intent is not None
        charge = self._delayed.pop(session.intent)
        if succeeded:
            charge.is_settled, session.payment_status = True, "paid"
            self.charges[charge.intent] = charge
        kind = "checkout.session.async_payment_" + ("succeeded" if succeeded else "failed")
        self._tell(kind, charge, self._session_body(session, charge.livemode))
        if succeeded:
            self._tell_charged(charge)

    def delayed(self) -> list[Session]:
        """Sessions whose bank has not decided."""
        return [one for one in self.sessions.values() if one.intent in self._delayed]

    def decline(self, session: Session) -> None:
        """A card that does not work."""
        charge = Charge(self._id("pi"), "", session.job_id, 0, False, is_settled=False)
        metadata = {"job_id": session.job_id}
        error = {"code": "card_declined"}
        body = {"id": charge.intent, "metadata": metadata, "last_payment_error": error}
        self._tell("payment_intent.payment_failed", charge, body)

    def expire(self, session: Session) -> None:
        """Its time is over, or somebody asked for it."""
        if session.status == "open":
            session.status = "expired"
            nobody = Charge("", "", session.job_id, 0, False, is_settled=False)
            self._tell("checkout.session.expired", nobody, self._session_body(session, False))

    def refund(self, charge: Charge, cents: int, metadata: Mapping[str, str]) -> Refund:
        """Send money back, by our call or from the dashboard."""
        refund = Refund(self._id("re"), charge, cents, metadata, self.refunds_become)
        refund.has_succeeded = refund.status == "succeeded"
        charge.refunds.append(refund)
        self.refunds[refund.id] = refund
        self._tell("refund.created", charge, self._refund_body(refund))
        self._tell_refunded(charge)
        return refund

    def move_refund(self, refund: Refund, status: str) -> None:
        """The bank has done with it, or has sent it back."""
        refund.status = status
        refund.has_succeeded = refund.has_succeeded or status == "succeeded"
        for kind in ("refund.failed" if status == "failed" else "refund.updated", "charge.refund.updated"):
            self._tell(kind, refund.charge, self._refund_body(refund))

    def open_dispute(self, charge: Charge, *, withdraws: bool) -> None:
        """The buyer has gone to the bank; an inquiry withdraws nothing."""
        taken = charge.left if withdraws else 0
        charge.dispute = Dispute(self._id("dp"), charge, taken)
        status = "needs_response" if taken else "warning_needs_response"
        self._tell_dispute("created", charge.dispute, status)
        if taken:
            self._tell_dispute("funds_withdrawn", charge.dispute, status)

    def close_dispute(self, dispute: Dispute, *, won: bool) -> None:
        """The bank has decided."""
        dispute.is_closed = True
        if dispute.taken_cents and won:
            dispute.is_reinstated = True
            self._tell_dispute("funds_reinstated", dispute, "won")
        ended = ("won" if won else "lost") if dispute.taken_cents else "warning_closed"
        self._tell_dispute("closed", dispute, ended)

    # -- small parts --------------------------------------------------------------------------------------------

    def _keyed(self, key: str, asked: object, act: Callable[[], T]) -> T:
        def once() -> T:
            kept = self._answers.get(key)
            if kept is not None and self._clock.now() - kept[0] < KEY_HORIZON:
                assert kept[1] == asked, "one key, two requests"
                answer: T = kept[2]
                return answer
            answer = act()
            self._answers[key] = (self._clock.now(), asked, answer)
            return answer

        return self._called(once, changes=True)

    def _called(self, act: Callable[[], T], *, changes: bool) -> T:
        fault, self.fault = self.fault, ""
        if fault == "away":
            raise ServiceUnavailable("stripe", "HTTP 503", code="http_503", status=503)
        if fault == "refused" and changes:
            raise ServiceRefused("stripe", "no", code="account_invalid", status=400)
        answer = act()
        if fault == "unanswered":
            raise ServiceUnavailable("stripe", "no answer", code="no_answer", outcome_unknown=changes)
        return answer

    def _id(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}_{self._count:06d}"

    def _tell(self, kind: str, charge: Charge, thing: Mapping[str, Any]) -> None:
        self.events.append(Event(self._id("evt"), kind, thing, charge.livemode, charge.job_id))

    def _tell_charged(self, charge: Charge) -> None:
        about = {"metadata": {"job_id": charge.job_id}, "livemode": charge.livemode}
        self._tell("payment_intent.succeeded", charge, {"id": charge.intent, **about})
        self._tell("charge.succeeded", charge, {"id": charge.id, "payment_intent": charge.intent, **about})

    def _tell_refunded(self, charge: Charge) -> None:
        body = {"id": charge.id, "payment_intent": charge.intent, "amount_refunded": charge.sent_back(*COUNTED)}
        self._tell("charge.refunded", charge, body)

    def _tell_dispute(self, what: str, dispute: Dispute, status: str) -> None:
        charge = dispute.charge
        body = {
            "id": dispute.id, "charge": charge.id, "payment_intent": charge.intent, "currency": "usd",
            "amount": dispute.taken_cents or charge.cents, "reason": "fraudulent", "status": status,
        }  # fmt: skip
        self._tell(f"charge.dispute.{what}", charge, body)

    def _session(self, session: Session) -> CheckoutSession:
        charge = self.charges.get(session.intent or "") or self._delayed.get(session.intent or "")
        return CheckoutSession(
            id=session.id, url="https://pay.example/" + session.id if session.status == "open" else None,
            status=session.status, payment_status=session.payment_status, payment_intent=session.intent,
            amount_total_cents=session.cents, currency="usd",
            livemode=charge.livemode if charge is not None else False,
            expires_at=session.expires_at.astimezone(UTC), email=None, metadata={"job_id": session.job_id},
        )  # fmt: skip

    @staticmethod
    def _session_body(session: Session, livemode: bool) -> dict[str, Any]:
        return {
            "id": session.id, "payment_intent": session.intent, "payment_status": session.payment_status,
            "amount_total": session.cents, "currency": "usd", "livemode": livemode,
            "metadata": {"job_id": session.job_id}, "status": session.status,
        }  # fmt: skip

    @staticmethod
    def _refund(refund: Refund) -> StripeRefund:
        why = "expired_or_canceled_card" if refund.status == "failed" else None
        intent = refund.charge.intent
        return StripeRefund(
            refund.id, refund.status, refund.cents, "usd", intent, refund.charge.id, why, refund.metadata
        )

    @staticmethod
    def _refund_body(refund: Refund) -> dict[str, Any]:
        return {
            "id": refund.id, "payment_intent": refund.charge.intent, "charge": refund.charge.id,
            "amount": refund.cents, "currency": "usd", "status": refund.status, "metadata": dict(refund.metadata),
        }  # fmt: skip
