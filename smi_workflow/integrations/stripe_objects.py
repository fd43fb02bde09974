"""Owns Stripe's objects as we read them: sessions, payments, refunds. Called by stripe_api.py and intake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class CheckoutSession:
    """One visit of a buyer to Stripe's payment page."""

    id: str
    url: str | None
    status: str | None
    payment_status: str
    payment_intent: str | None
    amount_total_cents: int | None
    currency: str | None
    livemode: bool
    expires_at: datetime
    email: str | None
    metadata: Mapping[str, str]

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Read Stripe's JSON; KeyError, TypeError or ValueError when a field is missing or odd."""
        customer = payload.get("customer_details") or {}
        return cls(
            id=text(payload["id"]),
            url=payload.get("url"),
            status=payload["status"],
            payment_status=text(payload["payment_status"]),
            payment_intent=identifier(payload.get("payment_intent")),
            amount_total_cents=None if payload["amount_total"] is None else integer(payload["amount_total"]),
            currency=payload["currency"],
            livemode=flag(payload["livemode"]),
            expires_at=datetime.fromtimestamp(integer(payload["expires_at"]), UTC),
            email=customer.get("email") or payload.get("customer_email"),
            metadata=dict(payload.get("metadata") or {}),
        )


@dataclass(frozen=True, slots=True)
class PaymentIntent:
    """One payment, as Stripe sees it."""

    id: str
    status: str
    amount_cents: int
    amount_received_cents: int
    currency: str
    livemode: bool
    charge: str | None
    metadata: Mapping[str, str]

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Read Stripe's JSON; KeyError, TypeError or ValueError when a field is missing or odd."""
        return cls(
            id=text(payload["id"]),
            status=text(payload["status"]),
            amount_cents=integer(payload["amount"]),
            amount_received_cents=integer(payload["amount_received"]),
            currency=text(payload["currency"]),
            livemode=flag(payload["livemode"]),
            charge=identifier(payload.get("latest_charge")),
            metadata=dict(payload.get("metadata") or {}),
        )


@dataclass(frozen=True, slots=True)
class StripeRefund:
    """One refund, as Stripe sees it: created is not settled."""

    id: str
    status: str
    amount_cents: int
    currency: str
    payment_intent: str | None
    charge: str | None
    failure_reason: str | None
    metadata: Mapping[str, str]

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Read Stripe's JSON; KeyError, TypeError or ValueError when a field is missing or odd."""
        return cls(
            id=text(payload["id"]),
            # Stripe's schema lets the status be null: not known to be settled.
            status=text(payload["status"] or "pending"),
            amount_cents=integer(payload["amount"]),
            currency=text(payload["currency"]),
            payment_intent=identifier(payload.get("payment_intent")),
            charge=identifier(payload.get("charge")),
            failure_reason=payload.get("failure_reason"),
            metadata=dict(payload.get("metadata") or {}),
        )


def identifier(value: object) -> str | None:
    """Read an expandable field: an id, the whole object, or null."""
    if isinstance(value, Mapping):
        value = value["id"]
    return None if value is None else text(value)


def text(value: object) -> str:
    """Read a text that is there; TypeError otherwise."""
    if not isinstance(value, str) or not value:
        raise TypeError("expected text")
    return value


def integer(value: object) -> int:
    """Read a whole number; TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("expected a whole number")
    return value


def flag(value: object) -> bool:
    """Read true or false; TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError("expected true or false")
    return value
