"""Owns money that goes back: refunds by the seller, disputes by the bank. Called by the sandbox's Stripe."""

from __future__ import annotations

from smi_workflow.sandbox import stripe_objects as objects
from smi_workflow.sandbox.stripe_book import StripeBook
from smi_workflow.sandbox.stripe_errors import StripeFailure, invalid
from smi_workflow.sandbox.stripe_objects import Payload

# Money under way counts as gone; money that came back does not.
COUNTED = ("pending", "requires_action", "succeeded")
OPEN_DISPUTE = ("needs_response", "under_review", "warning_needs_response", "warning_under_review")


def find_charge(book: StripeBook, params: Payload, livemode: bool | None) -> Payload:
    """The charge that `charge` or `payment_intent` names.

    Raises:
        StripeFailure: neither, both, unknown, or never paid.
    """
    if "charge" in params and "payment_intent" in params:
        raise invalid("You may only specify one of these parameters: charge, payment_intent.", "charge")
    if "charge" in params:
        return book.get("charges", params["charge"], livemode, "charge")
    if "payment_intent" not in params:
        message = "One of the following params should be provided for this request: payment_intent or charge."
        raise invalid(message, None, "parameter_missing")
    intent = book.get("intents", params["payment_intent"], livemode, "payment_intent")
    if intent["status"] != "succeeded":
        message = f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund."
        raise StripeFailure(message, param="payment_intent")
    return book.tables["charges"][intent["latest_charge"]]


def refunded(book: StripeBook, charge: Payload) -> int:
    """What has gone back or is on its way."""
    return sum(r["amount"] for r in book.find("refunds", charge=charge["id"]) if r["status"] in COUNTED)


def create_refund(book: StripeBook, params: Payload, livemode: bool | None, status: str = "succeeded") -> Payload:
    """Send money back, all that is left unless an amount is named.

    Args:
        status: where it starts: succeeded, pending, requires_action or failed.
    Raises:
        StripeFailure: charge_already_refunded, charge_disputed, more than is left, or nothing to refund.
    """
    charge = find_charge(book, params, livemode)
    if charge["status"] != "succeeded":
        raise StripeFailure(f"Charge {charge['id']} has not succeeded and cannot be refunded.", param="charge")
    left = charge["amount"] - refunded(book, charge)
    if left <= 0:
        message = f"Charge {charge['id']} has already been refunded."
        raise StripeFailure(message, code="charge_already_refunded")
    if any(not dispute["is_charge_refundable"] for dispute in book.find("disputes", charge=charge["id"])):
        message = f"Charge {charge['id']} has been charged back; cannot issue a refund."
        raise StripeFailure(message, code="charge_disputed")
    amount = params.get("amount", left)
    if amount < 1:
        raise invalid("Invalid positive integer", "amount", "parameter_invalid_integer")
    if amount > left:
        have, want = (objects.money_text(value, charge["currency"]) for value in (left, amount))
        raise StripeFailure(
            f"Refund amount ({want}) is greater than unrefunded amount on charge ({have})", param="amount"
        )
    refund = objects.refund(
        now=book.now(),
        charge_payload=charge,
        amount=amount,
        reason=params.get("reason"),
        metadata=params.get("metadata", {}),
    )
    refund["status"] = status
    if status == "pending":
        refund["pending_reason"] = "processing"
    if status == "failed":
        refund["failure_reason"] = "unknown"
    book.add("refunds", refund, book.livemode_of(charge["id"]))
    _count(book, charge)
    book.record("refund.created", refund)
    if status == "failed":
        book.record("refund.failed", refund)
    else:
        book.record("charge.refunded", charge)
    book.record("refund.updated", refund)
    return refund


def settle_refund(
    book: StripeBook, refund: Payload, outcome: str, failure_reason: str = "lost_or_stolen_card"
) -> None:
    """The bank has taken the refund, or sent it back: even one that had succeeded.

    Args:
        outcome: succeeded, failed or canceled.
    Raises:
        StripeFailure: it cannot become that any more.
    """
    before = refund["status"]
    steps = {
        "pending": ("succeeded", "failed", "canceled"),
        "requires_action": ("succeeded", "failed", "canceled"),
        "succeeded": ("failed",),
    }
    if outcome not in steps.get(before, ()):
        raise StripeFailure(f"A refund that is {before} cannot become {outcome}.", param="outcome")
    refund["status"] = outcome
    refund.pop("pending_reason", None)
    if outcome == "failed":
        refund["failure_reason"] = failure_reason
        refund["failure_balance_transaction"] = objects.new_id("txn")
    _count(book, book.tables["charges"][refund["charge"]])
    for kind in ("refund.updated", "charge.refund.updated"):
        book.record(kind, refund, {"status": before})
    if outcome == "failed":
        book.record("refund.failed", refund)


def open_dispute(
    book: StripeBook,
    charge: Payload,
    *,
    amount: int | None = None,
    reason: str = "fraudulent",
    inquiry: bool = False,
    without_intent: bool = False,
) -> Payload:
    """The buyer's bank disputes a charge and takes the money at once; an inquiry takes nothing.

    Args:
        without_intent: leave `payment_intent` null, as in bodies seen in the field.
    Raises:
        StripeFailure: nothing to dispute.
    """
    amount = charge["amount"] if amount is None else amount
    if charge["status"] != "succeeded" or not 0 < amount <= charge["amount"]:
        raise StripeFailure("There is no such money to dispute.", param="amount")
    dispute = objects.dispute(now=book.now(), charge_payload=charge, amount=amount, reason=reason, inquiry=inquiry)
    if without_intent:
        dispute["payment_intent"] = None
    book.add("disputes", dispute, charge["livemode"])
    charge["disputed"] = True
    if not inquiry:
        _move(book, dispute, -amount)
    book.record("charge.dispute.created", dispute)
    if not inquiry:
        book.record("charge.dispute.funds_withdrawn", dispute)
    return dispute


def close_dispute(book: StripeBook, dispute: Payload, outcome: str) -> None:
    """The bank has decided.

    Args:
        outcome: won (the money comes back), lost, or warning_closed for an inquiry.
    Raises:
        StripeFailure: it is closed already, or cannot end like that.
    """
    inquiry = dispute["status"].startswith("warning_")
    if dispute["status"] not in OPEN_DISPUTE:
        raise StripeFailure(f"This dispute is {dispute['status']} already.", param="outcome")
    if outcome not in (("warning_closed",) if inquiry else ("won", "lost")):
        raise StripeFailure(f"This dispute cannot become {outcome!r}.", param="outcome")
    before, dispute["status"] = dispute["status"], outcome
    if outcome == "won":
        dispute["is_charge_refundable"] = True
        _move(book, dispute, dispute["amount"])
    book.record("charge.dispute.closed", dispute, {"status": before})
    if outcome == "won":
        book.record("charge.dispute.funds_reinstated", dispute)


def balances(book: StripeBook) -> list[dict[str, int | str]]:
    """Per paid charge: captured, refunded, charged back, and what is left; in minor units."""
    with book.turn():
        rows: list[dict[str, int | str]] = []
        for charge in book.tables["charges"].values():
            if charge["status"] != "succeeded":
                continue
            moved = [
                entry["amount"]
                for dispute in book.find("disputes", charge=charge["id"])
                for entry in dispute["balance_transactions"]
            ]
            back = refunded(book, charge)
            rows.append(
                {
                    "payment_intent": charge["payment_intent"],
                    "charge": charge["id"],
                    "currency": charge["currency"],
                    "captured": charge["amount_captured"],
                    "refunded": back,
                    "charged_back": -sum(moved),
                    "net": charge["amount_captured"] - back + sum(moved),
                }
            )
        return rows


def _count(book: StripeBook, charge: Payload) -> None:
    charge["amount_refunded"] = refunded(book, charge)
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]


def _move(book: StripeBook, dispute: Payload, amount: int) -> None:
    dispute["balance_transactions"].append(
        objects.dispute_adjustment(now=book.now(), dispute_payload=dispute, amount=amount)
    )
