"""Owns what the simulated Stripe has on record. Called by it, by buyers, and by the last judgement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(slots=True)
class Charge:
    """Money that was captured, and what became of it."""

    intent: str
    charge: str
    job_id: str
    session_id: str
    cents: int
    currency: str
    livemode: bool
    email: str
    settled: bool = True
    refunded_cents: int = 0
    withdrawn_cents: int = 0


@dataclass(slots=True)
class Session:
    """A visit to the payment page."""

    id: str
    job_id: str
    cents: int
    currency: str
    expires_at: datetime
    email: str | None
    status: str = "open"
    payment_status: str = "unpaid"
    intent: str | None = None
    paid_cents: int | None = None
    ours: bool = True


@dataclass(slots=True)
class Refund:
    """Money on its way back, as Stripe sees it."""

    id: str
    intent: str
    cents: int
    currency: str
    metadata: Mapping[str, str]
    created: datetime
    livemode: bool = False
    status: str = "pending"
    failure_reason: str | None = None


@dataclass(slots=True)
class Told:
    """An event, and whether our endpoint has taken it."""

    event: dict[str, Any]
    at: datetime
    is_delivered: bool = False


@dataclass(slots=True)
class Books:
    """What Stripe has on record."""

    sessions: dict[str, Session] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)
    refunds: dict[str, Refund] = field(default_factory=dict)
    disputes: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[Told] = field(default_factory=list)
