"""Owns Stripe as the model has it: books, answers, events. Called by model_sale.py and model_shop.py.

The books lie in `scene.outside` as tuples, so that scenes share them. A call may go through, be carried out
without the answer arriving, never arrive, be refused, or find the key invalid: each is a choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

from smi_workflow.engine.unit import to_json
from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.intake import reduce_stripe_event
from smi_workflow.integrations.stripe_objects import CheckoutSession, StripeRefund
from smi_workflow.jobs.refunds import TRY
from smi_workflow.simulation.model import START, Scene
from smi_workflow.simulation.model_choices import Choices
from smi_workflow.simulation.model_records import Event

T = TypeVar("T")
JOB_ID = "job-1"
PRICE = 384
COUNTED = ("requires_action", "pending", "succeeded")


class Session(NamedTuple):
    """A payment page."""

    id: str
    key: str
    status: str = "open"
    payment_status: str = "unpaid"
    intent: str | None = None
    cents: int = PRICE
    currency: str = "usd"
    livemode: bool = False


class Charge(NamedTuple):
    """Money that a buyer has paid."""

    intent: str
    cents: int
    currency: str = "usd"
    livemode: bool = False
    dispute: str = "none"  # then: opened, withdrawn, reinstated, closed
    withdrawn_cents: int = 0


class MadeRefund(NamedTuple):
    """A refund in Stripe's books; without a `refund_id` somebody made it at Stripe's own pages."""

    id: str
    intent: str
    cents: int
    status: str
    refund_id: str | None
    tried: str = "1"

    def metadata(self) -> dict[str, str]:
        """What it was given to keep."""
        if self.refund_id is None:
            return {}
        return {"refund_id": self.refund_id, **({TRY: self.tried} if self.tried != "1" else {})}


class Desk:
    """The providers' answers to one attempt: the scene they act on, and who chooses."""

    def __init__(self) -> None:
        self.scene: Scene = None  # type: ignore[assignment]  # set before each attempt
        self.choices = Choices()

    def call(self, service: str, do: Callable[[], T], *, changes: bool = True) -> T:
        """One call, in every way that it may go; what goes wrong is counted against the budget."""
        scene = self.scene
        if not scene.may("faults"):
            return do()
        ways = ("goes through", "is lost", "never arrives", "is refused", "finds the key invalid")
        way = self.choices.choose(ways if changes else ("goes through", *ways[2:]))
        if way == "goes through":
            return do()
        scene.spend("faults")
        scene.label += f": a call to {service} {way}"
        if way == "is lost":
            do()
            raise ServiceUnavailable(service, "the answer never came", code="timeout", outcome_unknown=True)
        if way == "never arrives":
            raise ServiceUnavailable(service, "cannot be reached", code="unreachable")
        status = 401 if way == "finds the key invalid" else 400
        raise ServiceRefused(service, way, code="refused", status=status)


class ModelStripe:
    """Answers as Stripe does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def create_checkout_session(self, *, job_id: str, key: str, amount_cents: int, **rest: Any) -> CheckoutSession:
        """Open a payment page; the same key gives the same page."""

        def do() -> CheckoutSession:
            sessions = self._books("sessions")
            made = next((one for one in sessions if one.key == key), None)
            if made is None:
                made = Session(f"cs_{len(sessions) + 1}", key, cents=amount_cents)
                self._desk.scene.outside["sessions"] = (*sessions, made)
            return _session(made)

        return self._desk.call("stripe", do)

    def find_checkout_session(self, *, job_id: str, since: object, until: object) -> CheckoutSession | None:
        """The newest page that was ever opened."""
        sessions = self._books("sessions")
        return self._desk.call("stripe", lambda: _session(sessions[-1]) if sessions else None, changes=False)

    def retrieve_checkout_session(self, session_id: str) -> CheckoutSession:
        """The page as it is."""
        found = next(one for one in self._books("sessions") if one.id == session_id)
        return self._desk.call("stripe", lambda: _session(found), changes=False)

    def expire_checkout_session(self, session_id: str, *, key: str) -> CheckoutSession:
        """End the page, unless the buyer was faster."""

        def do() -> CheckoutSession:
            found = next(one for one in self._books("sessions") if one.id == session_id)
            return _session(expire(self._desk.scene, found) if found.status == "open" else found)

        return self._desk.call("stripe", do)

    def create_refund(
        self, *, payment_intent: str, amount_cents: int, reason: str, metadata: dict[str, str], key: str
    ) -> StripeRefund:
        """Send money back, as far as there is any."""

        def do() -> StripeRefund:
            scene = self._desk.scene
            given = {name: value for name, value in metadata.items() if name != "job_id"}
            made = next((one for one in self._books("refunds") if one.metadata() == given), None)
            if made is not None:
                return _refund(scene, made)
            charge = next((one for one in self._books("charges") if one.intent == payment_intent), None)
            if charge is None or amount_cents > left(scene, charge):
                scene.outside["overdrawn"] = True
                raise ServiceRefused("stripe", "more than is left", code="charge_already_refunded", status=400)
            ways = ("succeeded", "pending", *(("requires_action",) if "buyers" in _budget(scene) else ()))
            status = self._desk.choices.choose(ways)
            return _refund(scene, add_refund(scene, payment_intent, amount_cents, status, metadata))

        return self._desk.call("stripe", do)

    def retrieve_refund(self, refund_id: str) -> StripeRefund:
        """One refund as it is."""
        found = next(one for one in self._books("refunds") if one.id == refund_id)
        return self._desk.call("stripe", lambda: _refund(self._desk.scene, found), changes=False)

    def list_refunds(self, *, payment_intent: str) -> list[StripeRefund]:
        """All refunds of a payment."""
        found = [_refund(self._desk.scene, one) for one in self._books("refunds") if one.intent == payment_intent]
        return self._desk.call("stripe", lambda: found, changes=False)

    def _books(self, name: str) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self._desk.scene.outside[name]
        return found


# -- what happens at Stripe, and the events that tell of it -------------------------------------------------------


def left(scene: Scene, charge: Charge) -> int:
    """What Stripe would still send back of a payment."""
    gone: int = sum(
        one.cents for one in scene.outside["refunds"] if one.intent == charge.intent and one.status in COUNTED
    )
    return charge.cents - gone - charge.withdrawn_cents


def change(scene: Scene, book: str, old: Any, **fields: Any) -> Any:
    """Another version of one entry."""
    new = old._replace(**fields)
    scene.outside[book] = tuple(new if one == old else one for one in scene.outside[book])
    return new


def tell(scene: Scene, kind: str, copies: int = 1, **thing: Any) -> None:
    """An event is on its way; `copies` of it tell the same under other ids."""
    payload, event_id = _payload(kind, to_json(thing)), f"{kind}:{thing['id']}:{thing.get('status')}"
    if all(event.id != event_id for event in scene.events):
        scene.events.append(Event("stripe", event_id, kind, payload, copies))


@cache
def _payload(kind: str, thing: str) -> str:
    told = json.loads(thing)
    livemode = bool(told.pop("livemode", False))
    event = {"id": f"evt_{kind}", "type": kind, "livemode": livemode, "data": {"object": told}}
    return to_json(reduce_stripe_event(event))


def tell_session(scene: Scene, kind: str, one: Session) -> None:
    """What the events of a payment page carry."""
    tell(
        scene, f"checkout.session.{kind}", id=one.id, status=one.status, payment_status=one.payment_status,
        payment_intent=one.intent, amount_total=one.cents, currency=one.currency, livemode=one.livemode,
        metadata={"job_id": JOB_ID},
    )  # fmt: skip


def expire(scene: Scene, one: Session) -> Session:
    """The page ends."""
    ended: Session = change(scene, "sessions", one, status="expired")
    tell_session(scene, "expired", ended)
    return ended


def pay(scene: Scene, one: Session, **strange: Any) -> None:
    """The buyer pays at a page; `strange` is what Stripe then says otherwise than was asked for."""
    intent = f"pi_{len(scene.outside['charges']) + 1}"
    paid = one._replace(status="complete", payment_status="paid", intent=intent, **strange)
    scene.outside["sessions"] = tuple(paid if other.id == one.id else other for other in scene.outside["sessions"])
    charge = Charge(intent, paid.cents, paid.currency, paid.livemode)
    scene.outside["charges"] = (*scene.outside["charges"], charge)
    kind = "async_payment_succeeded" if one.status == "complete" else "completed"
    tell_session(scene, kind, paid)
    tell_charged(scene, charge)


def add_refund(
    scene: Scene, intent: str, cents: int, status: str, metadata: dict[str, str], *, mute: bool = False
) -> MadeRefund:
    """A refund is in the books, and an event tells of it; where it is mute, only the charge's does."""
    made = MadeRefund(
        f"re_{len(scene.outside['refunds']) + 1}", intent, cents, status, metadata.get("refund_id"),
        metadata.get(TRY, "1"),
    )  # fmt: skip
    scene.outside["refunds"] = (*scene.outside["refunds"], made)
    if not mute:
        tell_refund(scene, "created", made)
    if "mute" in _budget(scene):
        charge = next(charge for charge in scene.outside["charges"] if charge.intent == intent)
        gone = sum(one.cents for one in scene.outside["refunds"] if one.intent == intent and one.status in COUNTED)
        tell(
            scene, "charge.refunded", id=f"ch_{intent}", payment_intent=intent, amount_refunded=gone,
            status=f"{gone} refunded", livemode=charge.livemode,
        )  # fmt: skip
    return made


def tell_charged(scene: Scene, charge: Charge) -> None:
    """What Stripe tells beside the session's own event."""
    about: dict[str, Any] = {"metadata": {"job_id": JOB_ID}, "livemode": charge.livemode, "status": "succeeded"}
    if "charges" in _budget(scene):
        tell(scene, "charge.succeeded", id=f"ch_{charge.intent}", payment_intent=charge.intent, **about)
        tell(scene, "payment_intent.succeeded", id=charge.intent, **about)


def _budget(scene: Scene) -> Mapping[str, int]:
    return scene.plan.scenario.budget


def tell_refund(scene: Scene, kind: str, one: MadeRefund) -> None:
    """Stripe tells of a refund under more than one event type."""
    charge = next(charge for charge in scene.outside["charges"] if charge.intent == one.intent)
    tell(
        scene, f"refund.{kind}", copies=scene.plan.scenario.budget.get("copies", 1), id=one.id, amount=one.cents,
        currency=charge.currency, payment_intent=one.intent, status=one.status, livemode=charge.livemode,
        metadata=one.metadata(),
    )  # fmt: skip


def tell_dispute(scene: Scene, kind: str, charge: Charge, status: str) -> None:
    """What the events of a chargeback carry."""
    tell(
        scene, f"charge.dispute.{kind}", id=f"dp_{charge.intent}", amount=charge.cents, currency=charge.currency,
        payment_intent=charge.intent, charge=None, status=status, reason="fraudulent", livemode=charge.livemode,
    )  # fmt: skip


def _session(one: Session) -> CheckoutSession:
    return CheckoutSession(
        id=one.id, url=f"https://pay.example/{one.id}", status=one.status, payment_status=one.payment_status,
        payment_intent=one.intent, amount_total_cents=one.cents, currency=one.currency, livemode=one.livemode,
        expires_at=START, email=None, metadata={"job_id": JOB_ID},
    )  # fmt: skip


def _refund(scene: Scene, one: MadeRefund) -> StripeRefund:
    charge = next(charge for charge in scene.outside["charges"] if charge.intent == one.intent)
    return StripeRefund(
        id=one.id, status=one.status, amount_cents=one.cents, currency=charge.currency, payment_intent=one.intent,
        charge=None, failure_reason=None, metadata=one.metadata(),
    )  # fmt: skip
