"""Owns the proof that each of Stripe's published bodies is taken in over HTTP and understood. Called by pytest.

Captured bodies go in as they are; published objects are wrapped as each event that tells of such an object, in the
envelope of today's API version. One table says what must come of each, for a shop that has never heard of it and
for a shop with a job that fits, and why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from smi_workflow.engine.tables import EventState
from smi_workflow.intake import StripeReader
from smi_workflow.sandbox.stripe_objects import API_VERSION
from smi_workflow.web.site import create_app
from tests.integration.test_web_webhooks import signed
from tests.support.apps import served
from tests.support.contracts import contracts_dir
from tests.support.desks import Desk, open_desk, usual

NOBODY, UNPAID, PAID, WORKING = "nobody's", "awaiting_payment", "completed", "processing"
APPLIED, IGNORED, PARKED = EventState.APPLIED, EventState.IGNORED, EventState.PARKED
SESSION, INTENT, CHARGE, REFUND, DISPUTE = (
    f"stripe-objects/{name}.json" for name in ("checkout.session", "payment_intent", "charge", "refund", "dispute")
)
OURS = "job-of-ours"


@dataclass(frozen=True, slots=True)
class Case:
    """One body, whose it is, and what must come of it.

    Args:
        file: below the contracts' folder; objects are wrapped, events sent as they are.
        kind: the event's type; of captured events, their own.
        whose: nobody's, or the state of the job of ours that it fits.
        state: of the event in the end.
        told: the trigger that it fired where it was applied, a part of the reason where it was not.
        why: in words.
        to: the job's state afterwards, where it is another one.
        changes: what differs from the published object, as the event would have it.
        due: what the job's sale costs, where that is not what was paid.
    """

    file: str
    kind: str
    whose: str
    state: EventState
    told: str
    why: str
    to: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    due: int | None = None

    def __str__(self) -> str:
        return f"{Path(self.file).stem}-as-{self.kind}-{self.whose}"


COMPLETED, EXPIRED = "checkout.session.completed", "checkout.session.expired"
LATE_OK, LATE_NO = "checkout.session.async_payment_succeeded", "checkout.session.async_payment_failed"
DECLINED, CAPTURED = "payment_intent.payment_failed", "payment_intent.succeeded"
CHARGED, SENT_BACK, UPDATED = "charge.succeeded", "charge.refunded", "charge.refund.updated"
OPENED, CLOSED = "charge.dispute.created", "charge.dispute.closed"
TAKEN, RETURNED = "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated"
paid = {"status": "complete", "payment_status": "paid", "amount_total": 384, "currency": "usd"}
cents = {"amount": 384}

CAPTURED_BODIES = (
    Case(f"stripe-events/{COMPLETED}.json", COMPLETED, NOBODY, IGNORED, "no job of ours",
         "it names no job and its session is none of ours: another shop on the same account"),
    Case(f"stripe-events/{COMPLETED}.json", COMPLETED, UNPAID, APPLIED, "payment_received",
         "session, amount, currency and mode fit", to="pending"),
    Case(f"stripe-events/{COMPLETED}.json", COMPLETED, UNPAID, APPLIED, "payment_unexpected",
         "250 dollars for what costs 3.84 is no payment of it", due=384),
    Case(f"stripe-events/{DECLINED}.json", DECLINED, NOBODY, IGNORED, "no job of ours", "as above"),
    Case(f"stripe-events/{DECLINED}.json", DECLINED, UNPAID, APPLIED, "payment_declined",
         "the session is open still: the buyer may try another card"),
    Case(f"stripe-events/{CAPTURED}.json", CAPTURED, NOBODY, IGNORED, "no job of ours", "as above"),
    Case(f"stripe-events/{CAPTURED}.json", CAPTURED, UNPAID, PARKED, "has not been told",
         "only the session says what it is for and what was agreed: it comes, or is looked for"),
    Case(f"stripe-events/{CAPTURED}.json", CAPTURED, PAID, IGNORED, "on record", "the session's event was first"),
    Case(f"stripe-events/{SENT_BACK}.json", SENT_BACK, NOBODY, PARKED, "payment is not on record",
         "the payment's own event may still be on its way"),
    Case(f"stripe-events/{SENT_BACK}.json", SENT_BACK, PAID, APPLIED, "refunds_differ",
         "more went back than our rows know of: the refunds themselves are asked for"),
    Case(f"stripe-events/{UPDATED}.json", UPDATED, NOBODY, PARKED, "payment is not on record", "as above"),
    Case(f"stripe-events/{UPDATED}.json", UPDATED, PAID, APPLIED, "refund_settled",
         "refunded at Stripe's own pages; found by its charge, as it names no intent"),
    Case(f"stripe-events/{OPENED}.json", OPENED, NOBODY, PARKED, "charge is not on record", "as above"),
    Case(f"stripe-events/{OPENED}.json", OPENED, WORKING, APPLIED, "dispute_opened",
         "an inquiry withdraws nothing, so the work goes on"),
)  # fmt: skip

OBJECTS = (
    Case("stripe-objects/event.json", "plan.created", NOBODY, IGNORED, "changes nothing here",
         "a type that means nothing here is put on record, and answered like any other"),
    # -- sessions: the published one is open and unpaid
    *(Case(SESSION, kind, NOBODY, IGNORED, "no job of ours", "it names no job, and its session is none of ours")
      for kind in (COMPLETED, LATE_OK, LATE_NO, EXPIRED)),
    Case(SESSION, COMPLETED, UNPAID, APPLIED, "payment_processing",
         "completed and unpaid: a bank debit, whose money comes in days"),
    Case(SESSION, COMPLETED, UNPAID, APPLIED, "payment_received", "completed and paid", "pending", paid),
    Case(SESSION, COMPLETED, "abandoned", APPLIED, "payment_received", "a late payment revives the sale",
         "pending", paid),
    Case(SESSION, COMPLETED, UNPAID, APPLIED, "payment_unexpected", "euros are not dollars",
         changes={**paid, "currency": "eur"}),
    Case(SESSION, COMPLETED, PAID, IGNORED, "on record", "the same payment told once more", changes=paid),
    Case(SESSION, COMPLETED, UNPAID, IGNORED, "no money moved", "a coupon of 100 % captured nothing",
         changes={**paid, "payment_status": "no_payment_required"}),
    Case(SESSION, LATE_OK, UNPAID, APPLIED, "payment_received", "the bank debit has arrived", "pending", paid),
    Case(SESSION, LATE_NO, UNPAID, APPLIED, "payment_failed", "the bank debit has failed", "failed",
         {"status": "complete"}),
    Case(SESSION, LATE_NO, PAID, IGNORED, "not possible there", "it is paid all the same, by another attempt",
         changes={"status": "complete"}),
    Case(SESSION, EXPIRED, UNPAID, APPLIED, "abandon", "nobody paid in time", "abandoned", {"status": "expired"}),
    Case(SESSION, EXPIRED, PAID, IGNORED, "not possible there", "out of order: it is paid",
         changes={"status": "expired"}),
    # -- intents
    *(Case(INTENT, kind, NOBODY, IGNORED, "no job of ours", "another shop's") for kind in (DECLINED, CAPTURED)),
    Case(INTENT, DECLINED, UNPAID, APPLIED, "payment_declined", "the buyer may try another card"),
    Case(INTENT, DECLINED, PAID, IGNORED, "not possible there", "an earlier attempt, told late"),
    Case(INTENT, CAPTURED, UNPAID, PARKED, "has not been told", "the session's event says what it is for",
         changes={"status": "succeeded"}),
    Case(INTENT, CAPTURED, PAID, IGNORED, "on record", "the session's event was first",
         changes={"status": "succeeded"}),
    # -- charges
    Case(CHARGE, CHARGED, NOBODY, IGNORED, "no payment intent", "a charge of the old kind is none of ours"),
    Case(CHARGE, CHARGED, PAID, APPLIED, "charge_noted", "now refunds and disputes that name only it are found",
         changes={"payment_intent": "pi_of_ours", **cents}),
    Case(CHARGE, SENT_BACK, NOBODY, PARKED, "payment is not on record", "the payment may still be on its way"),
    Case(CHARGE, SENT_BACK, PAID, IGNORED, "on record", "it tells of no cent that our rows do not know of"),
    Case(CHARGE, SENT_BACK, PAID, APPLIED, "refunds_differ", "a part went back, at Stripe's pages",
         changes={**cents, "amount_refunded": 100}),
    # -- refunds: the published one has succeeded, and names only its charge
    *(Case(REFUND, kind, NOBODY, PARKED, "payment is not on record", "the payment may still be on its way")
      for kind in ("refund.created", "refund.updated", "refund.failed", UPDATED)),
    *(Case(REFUND, kind, PAID, APPLIED, "refund_settled", "made at Stripe's pages, and settled")
      for kind in ("refund.created", "refund.updated", UPDATED)),
    Case(REFUND, "refund.created", PAID, IGNORED, "did not make is pending", "it counts once the money has gone",
         changes={"status": "pending"}),
    Case(REFUND, "refund.failed", PAID, APPLIED, "refund_failed", "on record: news of its success may be late",
         changes={"status": "failed", "failure_reason": "expired_or_canceled_card"}),
    Case(REFUND, "refund.updated", WORKING, APPLIED, "refund_settled", "all of it went back: no goods", "failed",
         cents),
    # -- disputes: the published one is an inquiry
    *(Case(DISPUTE, kind, NOBODY, PARKED, "charge is not on record", "the payment may still be on its way")
      for kind in (OPENED, CLOSED, TAKEN, RETURNED)),
    Case(DISPUTE, OPENED, WORKING, APPLIED, "dispute_opened", "an inquiry withdraws nothing: the work goes on"),
    Case(DISPUTE, TAKEN, WORKING, APPLIED, "dispute_opened", "the bank took the money: no goods", "failed",
         {**cents, "status": "needs_response"}),
    Case(DISPUTE, TAKEN, PAID, APPLIED, "dispute_opened", "the goods are out; an admin is told",
         changes={**cents, "status": "needs_response"}),
    Case(DISPUTE, CLOSED, PAID, APPLIED, "dispute_closed", "the inquiry came to nothing",
         changes={"status": "warning_closed"}),
    Case(DISPUTE, RETURNED, PAID, APPLIED, "dispute_closed", "told before its withdrawal, which counts nothing",
         changes={**cents, "status": "won"}),
)  # fmt: skip


@pytest.fixture
def shop(sqlite_url: str, tmp_path: Path) -> Iterator[tuple[Desk, str]]:
    """A desk, and the URL where its site is served."""
    with open_desk(sqlite_url, tmp_path) as desk, served(create_app(desk.app), desk.app) as url:
        yield desk, url


def wrapped(case: Case) -> dict[str, Any]:
    """The event as it is sent; one of ours carries our metadata, as what we open at Stripe does."""
    body: dict[str, Any] = json.loads((contracts_dir() / case.file).read_text())
    if body["object"] != "event":
        body = {
            "id": "evt_1", "object": "event", "api_version": API_VERSION, "created": 1234567890,
            "data": {"object": {**body, **case.changes}}, "livemode": False, "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None}, "type": case.kind,
        }  # fmt: skip
    thing = body["data"]["object"]
    if case.whose != NOBODY and thing["object"] in ("checkout.session", "payment_intent"):
        thing["metadata"] = {"job_id": OURS}
    return body


def put_job(desk: Desk, case: Case, thing: Mapping[str, Any]) -> None:
    """A job in the case's state, whose session, intent, charge and money are those of the object."""
    told = thing.get("amount_total") or thing.get("amount") or 384
    due = case.due if case.due is not None else told
    is_session, is_intent = thing["object"] == "checkout.session", thing["object"] == "payment_intent"
    intent = thing["id"] if is_intent else thing.get("payment_intent") or "pi_of_ours"
    charge = thing["id"] if thing["object"] == "charge" else thing.get("charge")
    desk.start(job_id=OURS, amount_due_cents=due, email=None)
    values = usual(case.whose, desk.clock.now()) | {"status": case.whose}
    if is_session:
        values["stripe_checkout_session_id"] = thing["id"]
    if "paid_cents" in values:
        values |= {"stripe_payment_intent_id": intent, "paid_cents": due}
        desk.app.job_tables.payments.insert(
            payment_intent_id=intent, charge_id=None if case.kind == CHARGED else charge, job_id=OURS, cents=due,
            currency="usd", livemode=False, role="sale", created_at=desk.clock.now(),
        ).execute()  # fmt: skip
    desk.set(OURS, **values)


@pytest.mark.parametrize("case", [*CAPTURED_BODIES, *OBJECTS], ids=str)
def test_what_becomes_of_each_body(shop: tuple[Desk, str], case: Case) -> None:
    desk, url = shop
    event = wrapped(case)
    if case.whose != NOBODY:
        put_job(desk, case, event["data"]["object"])
    body = json.dumps(event, indent=2).encode()
    for _ in range(2):
        answer = requests.post(f"{url}/webhooks/stripe", data=body, headers=signed(body), timeout=30)
        assert (answer.status_code, answer.json()) == (200, {"received": True})
    (row,) = desk.app.tables.events.select()
    assert (row.kind, row.event_id) == (case.kind, event["id"])
    assert desk.app.inbox.handle(row.id) == case.state, case.why
    row = desk.app.tables.events.get_by_id(row.id)
    if case.state == APPLIED:
        history = desk.app.jobs.history(OURS)
        assert [item.trigger for item in history[1:]] == [case.told], case.why
        assert history[-1].caused_by == f"event:{row.id}"
    else:
        assert case.told in (row.reason or ""), case.why
    if case.whose != NOBODY:
        assert desk.job(OURS).status == (case.to or case.whose), case.why


def test_whoever_pays_can_be_written_to(shop: tuple[Desk, str]) -> None:
    """The address that was unknown when the job was made comes with the captured payment."""
    desk, url = shop
    case = CAPTURED_BODIES[1]
    event = wrapped(case)
    put_job(desk, case, event["data"]["object"])
    body = json.dumps(event).encode()
    assert requests.post(f"{url}/webhooks/stripe", data=body, headers=signed(body), timeout=30).ok
    (row,) = desk.app.tables.events.select()
    desk.app.inbox.handle(row.id)
    job = desk.job(OURS)
    assert (job.email, job.paid_cents, job.payment_status) == ("example@example.com", 25000, "paid")


@pytest.mark.parametrize("kind", ["stripe-events", "stripe-objects"])
def test_the_table_has_every_published_body(kind: str) -> None:
    files = {f"{kind}/{path.name}" for path in (contracts_dir() / kind).glob("*.json")}
    assert files
    for file in files:
        whose = {case.whose == NOBODY for case in (*CAPTURED_BODIES, *OBJECTS) if case.file == file}
        assert whose == ({True} if file.endswith("/event.json") else {True, False}), file


def test_the_table_has_every_type_that_is_read(shop: tuple[Desk, str]) -> None:
    """A type that somebody teaches the shop to read has its line here."""
    read = set(StripeReader(shop[0].app.engine)._readers)
    assert {case.kind for case in (*CAPTURED_BODIES, *OBJECTS)} == read | {"plan.created"}
