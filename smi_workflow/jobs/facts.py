"""Owns what each fact must be, whoever hands it in: a person by hand, a provider's event, an effect.

Called by lifecycle.py and refunds.py; the engine refuses what does not fit, by the fact's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal

from smi_workflow.jobs.model import JobStatus

NUMBER_MAX = 2**63


def whole(value: object) -> str | None:
    """A number that every column holds; true and false are none."""
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < NUMBER_MAX
    return None if fits else "must be a whole number"


def whole_or_none(value: object) -> str | None:
    return None if value is None else whole(value)


def number_or_none(value: object) -> str | None:
    if value is None or (isinstance(value, Decimal) and value.is_finite()):
        return None
    fits = whole(value) is None or (isinstance(value, float) and math.isfinite(value))
    return None if fits else "must be a number"


def text(value: object) -> str | None:
    return None if isinstance(value, str) else "must be text"


def text_or_none(value: object) -> str | None:
    return None if value is None else text(value)


def flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def state(value: object) -> str | None:
    return None if value in tuple(JobStatus) else f"must be one of {', '.join(JobStatus)}"


def names(value: object) -> str | None:
    return None if isinstance(value, Mapping) else "must be names with their new values"


FACTS: Mapping[str, Callable[[object], str | None]] = {
    # Payments
    "session_id": text, "checkout_url": text_or_none, "session_status": text_or_none,
    "payment_intent_id": text_or_none, "charge_id": text_or_none, "amount_cents": whole,
    "currency": text, "livemode": flag, "email": text_or_none,
    # Upscaling
    "upsampler_job_id": text, "submit_effect_id": text, "image_url": text_or_none, "url_refusal": text_or_none,
    "credits_used": number_or_none, "file_name": text, "width": whole, "height": whole, "format": text,
    "size_bytes": whole, "sha256": text,
    # Money back
    "refund_id": text, "stripe_refund_id": text, "is_ours": flag, "was_settled": flag, "role": text,
    "elsewhere": flag, "tries": whole, "status": text_or_none, "dispute_id": text,
    "withdrawn_cents": whole_or_none,
    # Periodic work
    "progress": text, "memory": text, "report": text,
    # By hand, and of every kind
    "override": flag, "effects": flag, "target": state, "fields": names, "token_generation": whole,
    "code": text_or_none, "effect": text, "inputs": names, "costs": names,
}  # fmt: skip
