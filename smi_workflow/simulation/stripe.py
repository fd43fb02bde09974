"""Owns the simulated Stripe: its books, its keys, its slowness and its faults. Called by the real handlers.

It keeps books of its own, which the verdict compares with ours, and tells of every change by events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from smi_workflow.errors import ServiceRefused
from smi_workflow.integrations.stripe_api import KEY_HORIZON, PAGE_SIZE, ListedKind, RetrievedKind, StripeApi
from smi_workflow.integrations.stripe_objects import CheckoutSession, PaymentIntent, StripeRefund
from smi_workflow.simulation.calls import Caller
from smi_workflow.simulation.stage import Violated
from smi_workflow.simulation.stripe_books import Books, Charge, Refund, Session

T = TypeVar("T")
Tell = Callable[[str, dict[str, Any]], None]
# Stripe lists no events that are older.
EVENTS_KEPT = timedelta(days=30)


class SimulatedStripe(StripeApi):
    """Stripe, in this thread. Nothing of the real client is used but its signatures."""

    def __init__(self, caller: Caller, tell: Tell) -> None:
        self.books = Books()
        self._caller = caller
        self._stage = caller.stage
        self._tell = tell
        self._keys: dict[str, tuple[datetime, object, object]] = {}
        self._count = 0

    def close(self) -> None:
        """There is nothing to close."""

    # -- what our code asks ---------------------------------------------------------------------------------------

    def create_checkout_session(
        self, *, job_id: str, amount_cents: int, currency: str, description: str, success_url: str,
        cancel_url: str, expires_at: datetime, email: str | None, key: str,
    ) -> CheckoutSession:  # fmt: skip
        def create() -> CheckoutSession:
            ahead = expires_at - self._stage.time
            if not timedelta(minutes=29) <= ahead <= timedelta(hours=24, minutes=1):
                raise ServiceRefused("stripe", "expires_at is out of range", code="parameter_invalid", status=400)
            session = Session(self._id("cs"), job_id, amount_cents, currency, expires_at, email)
            self.books.sessions[session.id] = session
            self._stage.spawn(
                f"stripe expires {session.id}", lambda: self.expire(session), after=ahead.total_seconds()
            )
            return self._session(session)

        return self._keyed("create session", key, (job_id, amount_cents, currency, expires_at, email), create)

    def retrieve_checkout_session(self, session_id: str) -> CheckoutSession:
        return self._ask("retrieve session", lambda: self._session(self._known(session_id)))

    def expire_checkout_session(self, session_id: str, *, key: str) -> CheckoutSession:
        def expire() -> CheckoutSession:
            session = self._known(session_id)
            self.expire(session)
            return self._session(session)

        return self._keyed("expire session", key, (session_id,), expire)

    def find_checkout_session(self, *, job_id: str, since: datetime, until: datetime) -> CheckoutSession | None:
        def find() -> CheckoutSession | None:
            found = [session for session in self.books.sessions.values() if session.job_id == job_id]
            return self._session(found[-1]) if found else None

        return self._ask("list sessions", find)

    def retrieve_payment_intent(self, intent_id: str) -> PaymentIntent:
        raise Violated("the simulation knows every call", "retrieve_payment_intent is not simulated")

    def retrieve_charge_intent(self, charge_id: str) -> str | None:
        def named() -> str | None:
            return next((one.intent for one in self.books.charges.values() if one.charge == charge_id), None)

        return self._ask("retrieve charge", named)

    def list_events(
        self, *, since: datetime, types: Sequence[str] = (), undelivered_only: bool = False, after: str = ""
    ) -> Iterator[dict[str, Any]]:
        def listed() -> list[dict[str, Any]]:
            oldest = max(since, self._stage.time - EVENTS_KEPT)
            return [
                told.event for told in reversed(self.books.events)
                if told.at >= oldest and (not types or told.event["type"] in types)
                and not (undelivered_only and told.is_delivered)
            ]  # fmt: skip

        return self._pages("list events", listed, after)

    def list_bodies(self, kind: ListedKind, *, since: datetime, after: str = "") -> Iterator[dict[str, Any]]:
        def listed() -> list[dict[str, Any]]:
            if kind == "dispute":
                return [dict(body) for body in reversed(self.books.disputes.values()) if body["created"] >= since]
            made = [refund for refund in self.books.refunds.values() if refund.created >= since]
            return [self._refund_body(refund) for refund in reversed(made)]

        return self._pages(f"list {kind}s", listed, after)

    def retrieve_body(self, kind: RetrievedKind, object_id: str) -> dict[str, Any]:
        def body() -> dict[str, Any]:
            if kind == "session":
                session = self._known(object_id)
                return self._session_body(session, self._livemode(session))
            if kind == "refund":
                return self._refund_body(self.books.refunds[object_id])
            charge = self.books.charges.get(object_id)
            decided = "succeeded" if charge is not None and charge.settled else "processing"
            return {"id": object_id, "status": decided if charge is not None else "requires_payment_method"}

        return self._ask(f"retrieve {kind}", body)

    def _pages(
        self, name: str, listed: Callable[[], list[dict[str, Any]]], after: str
    ) -> Iterator[dict[str, Any]]:
        """Page by page: others go on in between, and what has come in since stands before the cursor."""

        def page() -> list[dict[str, Any]]:
            found = listed()
            names = [str(one["id"]) for one in found]
            if after and after not in names:
                raise ServiceRefused("stripe", f"no such object {after}", code="resource_missing", status=400)
            start = names.index(after) + 1 if after else 0
            return found[start : start + PAGE_SIZE]

        while found := self._caller.call("stripe", name, page, may_refuse=True):
            yield from found
            if len(found) < PAGE_SIZE:
                return
            after = str(found[-1]["id"])

    def create_refund(
        self, *, payment_intent: str, amount_cents: int,
        reason: Literal["duplicate", "requested_by_customer"] | None, metadata: Mapping[str, str], key: str,
    ) -> StripeRefund:  # fmt: skip
        def create() -> StripeRefund:
            charge = self.books.charges[payment_intent]
            if charge.refunded_cents >= charge.cents:
                raise ServiceRefused("stripe", "nothing is left", code="charge_already_refunded", status=400)
            if charge.withdrawn_cents:
                raise ServiceRefused("stripe", "it is disputed", code="charge_disputed", status=400)
            if charge.refunded_cents + amount_cents > charge.cents:
                raise ServiceRefused("stripe", "more than is left", code="amount_too_large", status=400)
            return self._refund(self.refund(charge, amount_cents, metadata))

        return self._keyed("create refund", key, (payment_intent, amount_cents, dict(metadata)), create)

    def retrieve_refund(self, refund_id: str) -> StripeRefund:
        return self._ask("retrieve refund", lambda: self._refund(self.books.refunds[refund_id]))

    def list_refunds(self, *, payment_intent: str) -> list[StripeRefund]:
        def listed() -> list[StripeRefund]:
            made = [refund for refund in self.books.refunds.values() if refund.intent == payment_intent]
            return [self._refund(refund) for refund in reversed(made)]

        return self._ask("list refunds", listed)

    # -- what buyers and banks do ---------------------------------------------------------------------------------

    def pay(
        self,
        session: Session,
        *,
        email: str,
        cents: int | None = None,
        livemode: bool = False,
        delayed: bool = False,
    ) -> Charge | None:
        """Press Pay; None when the page is closed."""
        if session.status != "open":
            return None
        session.status, session.intent = "complete", self._id("pi")
        session.payment_status = "unpaid" if delayed else "paid"
        session.paid_cents = session.cents if cents is None else cents
        session.email = email
        charge = Charge(
            session.intent, self._id("ch"), session.job_id, session.id, session.paid_cents, session.currency,
            livemode, email, settled=not delayed,
        )  # fmt: skip
        self.books.charges[charge.intent] = charge
        self._tell("checkout.session.completed", self._session_body(session, livemode))
        if not delayed:
            self._tell_charged(charge)
        return charge

    def settle_delayed(self, session: Session, *, succeeded: bool) -> None:
        """The bank has decided about a debit."""
        assert session.intent is not None
        charge = self.books.charges[session.intent]
        if succeeded:
            charge.settled, session.payment_status = True, "paid"
            self._tell("checkout.session.async_payment_succeeded", self._session_body(session, charge.livemode))
            self._tell_charged(charge)
        else:
            del self.books.charges[session.intent]
            self._tell("checkout.session.async_payment_failed", self._session_body(session, charge.livemode))

    def decline(self, session: Session) -> None:
        """A card that does not work."""
        body = {"id": self._id("pi"), "metadata": {"job_id": session.job_id}}
        self._tell("payment_intent.payment_failed", {**body, "last_payment_error": {"code": "card_declined"}})

    def pay_elsewhere(self, session: Session, *, email: str, cents: int) -> Charge:
        """A second payment for the same job, in a session that somebody else opened."""
        other = replace(
            session, id=self._id("cs"), cents=cents, email=email, ours=False, status="open", intent=None
        )
        self.books.sessions[other.id] = other
        charge = self.pay(other, email=email)
        assert charge is not None
        return charge

    def expire(self, session: Session) -> None:
        """Its time is over, or we asked for it."""
        if session.status == "open":
            session.status = "expired"
            self._tell("checkout.session.expired", self._session_body(session, False))

    def refund(self, charge: Charge, cents: int, metadata: Mapping[str, str]) -> Refund:
        """Send money back, by our call or from the dashboard."""
        refund = Refund(
            self._id("re"), charge.intent, cents, charge.currency, metadata, self._stage.time, charge.livemode
        )
        self.books.refunds[refund.id] = refund
        charge.refunded_cents += cents
        faults = self._stage.faults
        if faults.strikes("refund"):
            wait = self._stage.random.choice((600.0, 90_000.0, 300_000.0))
            status = self._stage.random.choice(("failed", "succeeded", "succeeded", "canceled"))
            if self._stage.random.random() < 0.3:
                # The buyer must say where the money goes; then the bank takes its time.
                refund.status = "requires_action"
                self._stage.spawn(f"buyer of {refund.id}", lambda: self._move(refund, "pending"), after=wait / 2)
            self._stage.spawn(f"stripe {refund.id}", lambda: self._move(refund, status), after=wait)
        else:
            refund.status = "succeeded"
            if faults.strikes("refund"):
                self._stage.spawn(f"bank {refund.id}", lambda: self._move(refund, "failed"), after=86_400.0)
        self._tell("refund.created", self._refund_body(refund))
        body = {"id": charge.charge, "payment_intent": charge.intent, "livemode": charge.livemode}
        self._tell("charge.refunded", {**body, "amount_refunded": charge.refunded_cents})
        return refund

    def dispute(self, charge: Charge, *, withdraws: bool, won: bool) -> None:
        """The buyer has gone to the bank."""
        taken = charge.cents - charge.refunded_cents if withdraws else 0
        # Some of them name the charge alone.
        intent = charge.intent if self._stage.random.random() < 0.5 else None
        status = "needs_response" if taken else "warning_needs_response"
        body: dict[str, Any] = {
            "id": self._id("dp"), "charge": charge.charge, "payment_intent": intent, "amount": taken,
            "currency": charge.currency, "reason": "fraudulent", "livemode": charge.livemode,
        }  # fmt: skip
        moved = [{"amount": -taken}] if taken else []
        known = self.books.disputes[body["id"]] = {
            **body, "status": status, "created": self._stage.time, "balance_transactions": moved,
        }  # fmt: skip
        told = moved if self._stage.random.random() < 0.5 else []
        charge.withdrawn_cents = taken
        self._tell("charge.dispute.created", {**body, "status": status, "balance_transactions": [*told]})
        if taken:
            self._tell("charge.dispute.funds_withdrawn", {**body, "status": status})
        self._stage.sleep(self._stage.random.choice((0.0, 3_600.0, 864_000.0)))
        known["status"] = ended = ("won" if won else "lost") if taken else "warning_closed"
        if won and taken:
            charge.withdrawn_cents = 0
            moved.append({"amount": taken})
            self._tell("charge.dispute.funds_reinstated", {**body, "status": "won"})
        self._tell("charge.dispute.closed", {**body, "status": ended})

    # -- small parts ----------------------------------------------------------------------------------------------

    def _move(self, refund: Refund, status: str) -> None:
        refund.status = status
        if status in ("failed", "canceled"):
            self.books.charges[refund.intent].refunded_cents -= refund.cents
            refund.failure_reason = "expired_or_canceled_card" if status == "failed" else None
        self._tell("refund.failed" if status == "failed" else "refund.updated", self._refund_body(refund))
        self._tell("charge.refund.updated", self._refund_body(refund))

    def _keyed(self, name: str, key: str, parameters: object, act: Callable[[], T]) -> T:
        """Stripe gives the first answer again while it honours the key."""

        def once() -> T:
            kept = self._keys.get(key)
            if kept is not None and self._stage.time - kept[0] < KEY_HORIZON:
                if kept[1] != (name, parameters):
                    raise Violated("a key comes with the same parameters", f"{name} with key {key}")
                return kept[2]  # type: ignore[return-value]  # what `act` returned under this key
            answer = act()
            self._keys[key] = (self._stage.time, (name, parameters), answer)
            return answer

        return self._ask(name, once, changes=True)

    def _ask(self, name: str, act: Callable[[], T], *, changes: bool = False) -> T:
        return self._caller.call("stripe", name, act, changes=changes)

    def _known(self, session_id: str) -> Session:
        session = self.books.sessions.get(session_id)
        if session is None:
            raise ServiceRefused("stripe", f"no such session {session_id}", code="resource_missing", status=404)
        return session

    def _session(self, session: Session) -> CheckoutSession:
        return CheckoutSession(
            id=session.id, url=f"https://pay.example/{session.id}" if session.status == "open" else None,
            status=session.status, payment_status=session.payment_status, payment_intent=session.intent,
            amount_total_cents=session.cents if session.paid_cents is None else session.paid_cents,
            currency=session.currency, livemode=self._livemode(session),
            expires_at=session.expires_at.astimezone(UTC), email=session.email,
            metadata={"job_id": session.job_id},
        )  # fmt: skip

    def _livemode(self, session: Session) -> bool:
        charge = self.books.charges.get(session.intent or "")
        return charge.livemode if charge is not None else False

    @staticmethod
    def _refund(refund: Refund) -> StripeRefund:
        return StripeRefund(
            refund.id, refund.status, refund.cents, refund.currency, refund.intent, None, refund.failure_reason,
            refund.metadata,
        )  # fmt: skip

    def _tell_charged(self, charge: Charge) -> None:
        metadata = {"job_id": charge.job_id}
        about = {"metadata": metadata, "livemode": charge.livemode}
        self._tell("payment_intent.succeeded", {"id": charge.intent, **about})
        self._tell("charge.succeeded", {"id": charge.charge, "payment_intent": charge.intent, **about})

    @staticmethod
    def _session_body(session: Session, livemode: bool) -> dict[str, Any]:
        return {
            "id": session.id, "payment_intent": session.intent, "payment_status": session.payment_status,
            "amount_total": session.cents if session.paid_cents is None else session.paid_cents,
            "currency": session.currency, "livemode": livemode, "metadata": {"job_id": session.job_id},
            "customer_details": {"email": session.email}, "status": session.status,
        }  # fmt: skip

    @staticmethod
    def _refund_body(refund: Refund) -> dict[str, Any]:
        return {
            "id": refund.id, "payment_intent": refund.intent, "amount": refund.cents, "currency": refund.currency,
            "status": refund.status, "failure_reason": refund.failure_reason, "metadata": dict(refund.metadata),
            "livemode": refund.livemode,
        }  # fmt: skip

    def _id(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}_{self._count:08d}"
