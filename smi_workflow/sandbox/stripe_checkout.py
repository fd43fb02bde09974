"""Owns the life of a checkout session: created, paid, declined, settled, expired. Called by Stripe's routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from smi_workflow.sandbox import stripe_objects as objects
from smi_workflow.sandbox.stripe_book import SessionExtras, StripeBook
from smi_workflow.sandbox.stripe_errors import StripeFailure, invalid
from smi_workflow.sandbox.stripe_objects import Payload

EXPIRES_SECONDS_MIN = 30 * 60
EXPIRES_SECONDS_MAX = 24 * 3600
AMOUNT_MAX = 99_999_999
# The smallest charges that Stripe takes; a currency that is not listed takes the dollar's.
AMOUNT_MIN: Mapping[str, int] = {
    "aed": 200, "brl": 50, "czk": 1500, "dkk": 250, "gbp": 30, "hkd": 400, "huf": 17500, "jpy": 50, "mxn": 1000,
    "myr": 200, "nok": 300, "pln": 200, "ron": 200, "sek": 300, "thb": 1000,
}  # fmt: skip
AMOUNT_MIN_DEFAULT = 50
BUYER_DEFAULT = "buyer@example.com"


class SessionClosed(StripeFailure):
    """The buyer came too late; `session_status` says whether it is complete or expired."""

    def __init__(self, status: str) -> None:
        self.session_status = status
        super().__init__(f"This Checkout Session is {status}.", code="resource_already_exists")


def create_session(book: StripeBook, params: Payload, livemode: bool, pay_url: str) -> Payload:
    """Open a checkout for one payment.

    Raises:
        StripeFailure: whatever Stripe would refuse: dates, URLs, amounts, modes.
    """
    if params["mode"] != "payment":
        raise invalid("The sandbox imitates mode=payment only.", "mode")
    for name in ("success_url", "cancel_url"):
        if name in params and not _is_url(params[name]):
            raise invalid(f"Not a valid URL: {params[name]}", name, "url_invalid")
    email = params.get("customer_email")
    if email is not None and not is_email(email):
        raise invalid(f"Invalid email address: {email}", "customer_email", "email_invalid")
    _check_expiry(book.now(), params.get("expires_at"))
    items, currency = _line_items(params["line_items"])
    amount = sum(item["amount_total"] for item in items)
    _check_amount(amount, currency)
    session = objects.checkout_session(
        now=book.now(), livemode=livemode, params=params, amount=amount, currency=currency, pay_url=pay_url
    )
    title = ", ".join(item["description"] for item in items)
    book.extras[session["id"]] = SessionExtras(params.get("payment_intent_data", {}), title, items)
    return book.add("sessions", session, livemode)


def expire_session(book: StripeBook, session: Payload) -> None:
    """Close it on the seller's word.

    Raises:
        StripeFailure: it is not open any more.
    """
    if session["status"] != "open":
        message = (
            f'Only Checkout Sessions with a status in ["open"] can be expired. '
            f"This Checkout Session has a status of `{session['status']}`."
        )
        raise StripeFailure(message)
    book.expire(session)


def pay(
    book: StripeBook,
    session: Payload,
    *,
    email: str | None = None,
    delayed: bool = False,
    amount: int | None = None,
) -> None:
    """The buyer pays; with `delayed` the bank says later whether there is money.

    Args:
        amount: what is really taken, when it differs from the session's total.
    Raises:
        SessionClosed: complete or expired.
    """
    if session["status"] != "open":
        raise SessionClosed(session["status"])
    email = email or session["customer_email"] or BUYER_DEFAULT
    intent = _intent(book, session)
    if amount is not None:
        intent["amount"] = session["amount_total"] = session["amount_subtotal"] = amount
    charge = objects.charge(
        now=book.now(),
        intent=intent,
        email=email,
        status="pending" if delayed else "succeeded",
        method="delayed" if delayed else "card",
    )
    _attach(book, intent, charge)
    session["status"] = "complete"
    session["url"] = None
    session["customer_details"] = objects.customer_details(email)
    if delayed:
        intent["status"] = "processing"
        book.record("payment_intent.processing", intent)
        book.record("charge.pending", charge)
    else:
        session["payment_status"] = "paid"
        _succeed(book, intent, charge)
    book.record("checkout.session.completed", session)


def decline(book: StripeBook, session: Payload, *, email: str | None = None) -> None:
    """The buyer's card is declined; the session stays open for another try.

    Raises:
        SessionClosed: complete or expired.
    """
    if session["status"] != "open":
        raise SessionClosed(session["status"])
    intent = _intent(book, session)
    buyer = email or session["customer_email"] or BUYER_DEFAULT
    charge = objects.charge(now=book.now(), intent=intent, email=buyer, status="failed", method="card")
    _attach(book, intent, charge)
    _fail(book, intent, charge)


def settle(book: StripeBook, session: Payload, outcome: str) -> None:
    """The bank has decided on a delayed payment.

    Args:
        outcome: succeeded or failed.
    Raises:
        StripeFailure: nothing waits to be settled.
    """
    if session["status"] != "complete" or session["payment_status"] != "unpaid":
        raise StripeFailure("This session has no delayed payment that waits.")
    intent = book.tables["intents"][session["payment_intent"]]
    if intent["status"] != "processing":
        raise StripeFailure("This session's delayed payment has been settled already.")
    charge = book.tables["charges"][intent["latest_charge"]]
    if outcome == "succeeded":
        charge.update(status="succeeded", paid=True, captured=True, amount_captured=charge["amount"])
        charge["balance_transaction"] = objects.new_id("txn")
        session["payment_status"] = "paid"
        _succeed(book, intent, charge)
        book.record("checkout.session.async_payment_succeeded", session)
    elif outcome == "failed":
        message = "The bank account has insufficient funds."
        charge.update(status="failed", failure_code="insufficient_funds", failure_message=message)
        _fail(book, intent, charge)
        book.record("checkout.session.async_payment_failed", session)
    else:
        raise invalid("outcome must be succeeded or failed", "outcome")


def is_email(text: str) -> bool:
    """A plausible address, as Stripe's own first check."""
    return re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s.]+", text) is not None


def _intent(book: StripeBook, session: Payload) -> Payload:
    if session["payment_intent"] is not None:
        return book.tables["intents"][session["payment_intent"]]
    livemode = session["livemode"]
    intent = objects.payment_intent(
        now=book.now(),
        livemode=livemode,
        amount=session["amount_total"],
        currency=session["currency"],
        data=book.extras[session["id"]].intent_data,
        method_types=session["payment_method_types"],
    )
    book.add("intents", intent, livemode)
    session["payment_intent"] = intent["id"]
    return intent


def _attach(book: StripeBook, intent: Payload, charge: Payload) -> None:
    book.add("charges", charge, intent["livemode"])
    intent["latest_charge"] = charge["id"]
    intent["payment_method"] = charge["payment_method"]


def _succeed(book: StripeBook, intent: Payload, charge: Payload) -> None:
    intent.update(status="succeeded", amount_received=intent["amount"], last_payment_error=None)
    book.record("payment_intent.succeeded", intent)
    book.record("charge.succeeded", charge)


def _fail(book: StripeBook, intent: Payload, charge: Payload) -> None:
    intent.update(
        status="requires_payment_method", payment_method=None, last_payment_error=objects.decline_error(charge)
    )
    book.record("payment_intent.payment_failed", intent)
    book.record("charge.failed", charge)


def _is_url(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _check_expiry(now: int, expires_at: int | None) -> None:
    if expires_at is None:
        return
    if expires_at < now + EXPIRES_SECONDS_MIN:
        message = "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation."
        raise invalid(message, "expires_at")
    if expires_at > now + EXPIRES_SECONDS_MAX:
        message = "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation."
        raise invalid(message, "expires_at")


def _line_items(params: list[Payload]) -> tuple[list[Payload], str]:
    items: list[Payload] = []
    currencies = set()
    for index, line in enumerate(params):
        path = f"line_items[{index}]"
        price = line.get("price_data")
        if price is None:
            raise invalid(f"The sandbox knows no stored prices: pass {path}[price_data].", f"{path}[price_data]")
        for name in ("unit_amount", "product_data"):
            if name not in price:
                full = f"{path}[price_data][{name}]"
                raise invalid(f"Missing required param: {full}.", full, "parameter_missing")
        if "quantity" not in line:
            raise invalid("Quantity is required. Add `quantity` to `" + path + "`", path, "parameter_missing")
        currency = price["currency"].lower()
        if not re.fullmatch(r"[a-z]{3}", currency):
            raise invalid(f"Invalid currency: {currency}", f"{path}[price_data][currency]")
        if price["unit_amount"] < 0 or line["quantity"] < 1:
            raise invalid(
                "Invalid non-negative integer", f"{path}[price_data][unit_amount]", "parameter_invalid_integer"
            )
        currencies.add(currency)
        total = price["unit_amount"] * line["quantity"]
        items.append(
            {
                "id": objects.new_id("li"),
                "object": "item",
                "amount_discount": 0,
                "amount_subtotal": total,
                "amount_tax": 0,
                "amount_total": total,
                "currency": currency,
                "description": price["product_data"]["name"],
                "metadata": line.get("metadata", {}),
                "price": None,
                "quantity": line["quantity"],
            }
        )
    if len(currencies) != 1:
        raise invalid("All line items must have one and the same currency.", "line_items")
    return items, currencies.pop()


def _check_amount(amount: int, currency: str) -> None:
    smallest = AMOUNT_MIN.get(currency, AMOUNT_MIN_DEFAULT)
    if amount < smallest:
        text = objects.money_text(smallest, currency)
        message = f"The Checkout Session's total amount due must add up to at least {text}"
        raise StripeFailure(message, code="amount_too_small")
    if amount > AMOUNT_MAX:
        text = objects.money_text(AMOUNT_MAX, currency)
        raise StripeFailure(
            f"The Checkout Session's total amount due must be no more than {text}", code="amount_too_large"
        )
