"""Owns the checks of what money does in the imitated Stripe, without any server. Called by pytest."""

from __future__ import annotations

import pytest

from smi_workflow.sandbox.stripe_book import StripeBook
from smi_workflow.sandbox.stripe_checkout import SessionClosed, create_session, decline, pay, settle
from smi_workflow.sandbox.stripe_errors import StripeFailure
from smi_workflow.sandbox.stripe_objects import Payload, money_text
from smi_workflow.sandbox.stripe_refunds import (
    balances,
    close_dispute,
    create_refund,
    find_charge,
    open_dispute,
    settle_refund,
)


class Shop:
    """A book with a clock in the hand and a list instead of webhooks."""

    def __init__(self) -> None:
        self.now = 1_800_000_000
        self.events: list[Payload] = []
        self.book = StripeBook(lambda: float(self.now), lambda kind: True, self.events.append)

    def session(self, **changes: object) -> Payload:
        item = {
            "price_data": {"currency": "usd", "unit_amount": 384, "product_data": {"name": "4x"}},
            "quantity": 1,
        }
        params: Payload = {"mode": "payment", "success_url": "https://shop.example/", "line_items": [item]}
        params.update(metadata={"of": "session"}, payment_intent_data={"metadata": {"of": "intent"}}, **changes)
        with self.book.turn():
            return create_session(self.book, params, False, "http://pay")

    def paid_intent(self) -> str:
        session = self.session()
        with self.book.turn():
            pay(self.book, session)
        return str(session["payment_intent"])

    def kinds(self) -> list[str]:
        kinds = [event["type"] for event in self.events]
        self.events.clear()
        return kinds

    def net(self) -> int:
        return sum(int(row["net"]) for row in balances(self.book))


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_paying_completes_the_session_and_keeps_the_metadata_apart(shop: Shop) -> None:
    session = shop.session()
    assert session.get("payment_intent") is None
    with shop.book.turn():
        pay(shop.book, session, email="jane@example.org")
    intent = shop.book.tables["intents"][session["payment_intent"]]
    assert (session["status"], session["payment_status"], session["url"]) == ("complete", "paid", None)
    assert session["customer_details"]["email"] == "jane@example.org"
    assert (session["metadata"], intent["metadata"]) == ({"of": "session"}, {"of": "intent"})
    assert shop.kinds() == ["payment_intent.succeeded", "charge.succeeded", "checkout.session.completed"]


def test_a_declined_card_leaves_the_session_open_for_another_try(shop: Shop) -> None:
    session = shop.session()
    with shop.book.turn():
        decline(shop.book, session)
    first = session["payment_intent"]
    assert (session["status"], session["payment_status"]) == ("open", "unpaid")
    assert shop.kinds() == ["payment_intent.payment_failed", "charge.failed"]
    with shop.book.turn():
        pay(shop.book, session)
    assert session["payment_intent"] == first
    assert shop.book.tables["intents"][first]["last_payment_error"] is None


def test_an_expired_session_cannot_be_paid(shop: Shop) -> None:
    session = shop.session(expires_at=shop.now + 1800)
    shop.now += 1800
    with pytest.raises(SessionClosed), shop.book.turn():
        pay(shop.book, session)
    assert session["status"] == "expired"
    assert shop.kinds() == ["checkout.session.expired"]
    assert shop.net() == 0


@pytest.mark.parametrize(
    ("outcome", "payment_status", "last"),
    [
        ("succeeded", "paid", "checkout.session.async_payment_succeeded"),
        ("failed", "unpaid", "checkout.session.async_payment_failed"),
    ],
)
def test_a_bank_debit_completes_unpaid_and_settles_once(
    shop: Shop, outcome: str, payment_status: str, last: str
) -> None:
    session = shop.session()
    with shop.book.turn():
        pay(shop.book, session, delayed=True)
    assert (session["status"], session["payment_status"]) == ("complete", "unpaid")
    assert shop.net() == 0
    with shop.book.turn():
        settle(shop.book, session, outcome)
    assert session["payment_status"] == payment_status
    assert shop.kinds()[-1] == last
    with pytest.raises(StripeFailure), shop.book.turn():
        settle(shop.book, session, outcome)


@pytest.mark.parametrize("seconds", [30 * 60 - 1, 24 * 3600 + 1])
def test_expiry_outside_half_an_hour_to_a_day_is_refused(shop: Shop, seconds: int) -> None:
    with pytest.raises(StripeFailure) as caught:
        shop.session(expires_at=shop.now + seconds)
    assert caught.value.param == "expires_at"


def test_partial_refunds_add_up_and_no_more_than_everything_goes_back(shop: Shop) -> None:
    intent = shop.paid_intent()
    with shop.book.turn():
        create_refund(shop.book, {"payment_intent": intent, "amount": 100}, False)
    assert shop.kinds()[-3:] == ["refund.created", "charge.refunded", "refund.updated"]
    with pytest.raises(StripeFailure) as too_much, shop.book.turn():
        create_refund(shop.book, {"payment_intent": intent, "amount": 285}, False)
    assert (too_much.value.code, too_much.value.param) == (None, "amount")
    with shop.book.turn():
        create_refund(shop.book, {"payment_intent": intent}, False)
    assert shop.net() == 0
    with pytest.raises(StripeFailure) as again, shop.book.turn():
        create_refund(shop.book, {"payment_intent": intent}, False)
    assert again.value.code == "charge_already_refunded"


def test_a_refund_that_fails_late_gives_the_money_back_to_the_seller(shop: Shop) -> None:
    intent = shop.paid_intent()
    with shop.book.turn():
        refund = create_refund(shop.book, {"payment_intent": intent}, False, "pending")
    assert shop.net() == 0
    with shop.book.turn():
        settle_refund(shop.book, refund, "succeeded")
    with shop.book.turn():
        settle_refund(shop.book, refund, "failed")
    assert shop.kinds()[-1] == "refund.failed"
    assert shop.net() == 384
    with pytest.raises(StripeFailure), shop.book.turn():
        settle_refund(shop.book, refund, "succeeded")


def test_a_dispute_takes_the_money_blocks_refunds_and_gives_it_back_when_won(shop: Shop) -> None:
    intent = shop.paid_intent()
    shop.kinds()
    with shop.book.turn():
        charge = find_charge(shop.book, {"payment_intent": intent}, False)
        dispute = open_dispute(shop.book, charge)
    assert shop.kinds() == ["charge.dispute.created", "charge.dispute.funds_withdrawn"]
    assert shop.net() == 0
    with pytest.raises(StripeFailure) as caught, shop.book.turn():
        create_refund(shop.book, {"payment_intent": intent}, False)
    assert caught.value.code == "charge_disputed"
    with shop.book.turn():
        close_dispute(shop.book, dispute, "won")
    assert shop.kinds() == ["charge.dispute.closed", "charge.dispute.funds_reinstated"]
    assert shop.net() == 384


def test_an_inquiry_withdraws_nothing(shop: Shop) -> None:
    intent = shop.paid_intent()
    shop.kinds()
    with shop.book.turn():
        charge = find_charge(shop.book, {"payment_intent": intent}, False)
        dispute = open_dispute(shop.book, charge, inquiry=True, without_intent=True)
    assert shop.kinds() == ["charge.dispute.created"]
    assert (shop.net(), dispute["payment_intent"]) == (384, None)
    with shop.book.turn():
        close_dispute(shop.book, dispute, "warning_closed")
    assert shop.net() == 384


def test_an_event_keeps_the_object_as_it_was_then(shop: Shop) -> None:
    session = shop.session()
    with shop.book.turn():
        pay(shop.book, session)
    completed = shop.events[-1]
    session["metadata"]["of"] = "changed"
    assert completed["data"]["object"]["metadata"] == {"of": "session"}
    assert completed["pending_webhooks"] == 1
    shop.book.mark_delivered(completed["id"])
    assert shop.book.tables["events"][completed["id"]]["pending_webhooks"] == 0


def test_other_modes_see_nothing(shop: Shop) -> None:
    session = shop.session()
    with pytest.raises(StripeFailure) as caught:
        shop.book.get("sessions", session["id"], True)
    assert (caught.value.status, caught.value.code) == (404, "resource_missing")
    assert "test mode" in caught.value.message


def test_amounts_read_like_money() -> None:
    assert money_text(384, "usd") == "3.84 USD"
    assert money_text(123456, "jpy") == "123,456 JPY"
