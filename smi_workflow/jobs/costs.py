"""Owns what a sale costs and brings: corrections of costs, profit and margin. Called by lifecycle.py, updates.py.

Corrected is only what the shop itself paid for, as Upsampler's bill says it. What the buyer was asked for stands:
it is compared, and never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from smi_workflow.engine.declaration import Case
from smi_workflow.jobs.model import Job
from smi_workflow.jobs.pricing import from_cents

HUNDREDTH = Decimal("0.01")
# The seeds' columns are DECIMAL(10,2).
COLUMN_END = Decimal(10**8)

# The seeds' names → our columns.
CORRECTED: Mapping[str, str] = {"upsampler_cost": "amount_cost", "credits_required": "credits_used"}
AGREED: Mapping[str, Callable[[Job], Decimal]] = {
    "customer_price": lambda job: from_cents(job.amount_due_cents, job.currency),
    "markup_percentage": lambda job: Decimal(job.markup_percentage),
}


def cost_problem(job: Job, name: str, value: object) -> str | None:
    """Why this cannot be a cost of the job; None where it can."""
    if name not in CORRECTED and name not in AGREED:
        return f"is no cost of a sale; there are: {', '.join((*CORRECTED, *AGREED))}"
    amount = as_decimal(value)
    if amount is None:
        return f"must be a number, not {str(value)[:50]!r}"
    if name in AGREED:
        agreed = AGREED[name](job)
        return None if amount == agreed else f"was agreed as {agreed} {_unit(job, name)}, and stands"
    if not 0 <= amount < COLUMN_END or amount != amount.quantize(HUNDREDTH):
        return f"must be 0 or more, below {COLUMN_END}, with two decimals at most"
    return None


def as_decimal(value: object) -> Decimal | None:
    """The number as it is written, without what a float adds to it; None when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    number = Decimal(str(value))
    return number if number.is_finite() else None


def correct(case: Case[Job]) -> None:
    """Keep the costs, and in the history what they were before."""
    costs: Mapping[str, object] = case.facts["costs"]
    given = {CORRECTED[name]: as_decimal(value) for name, value in costs.items() if name in CORRECTED}
    before = {column: getattr(case.row, column) for column in given}
    case.set(**given)
    case.record(before=_told(before), after=_told(given))


def profit(job: Job) -> Decimal | None:
    """What a sale left, before Stripe's fees: paid and not given back, less our cost; None while unpaid."""
    if not job.paid_cents:
        return None
    kept_cents = job.paid_cents - job.refunded_cents - job.disputed_cents
    return from_cents(kept_cents, job.currency) - Decimal(job.amount_cost or 0)


def margin_percentage(job: Job) -> Decimal | None:
    """The profit as a share of what was kept of the price; None where nothing was."""
    made = profit(job)
    kept_cents = job.paid_cents - job.refunded_cents - job.disputed_cents
    if made is None or kept_cents <= 0:
        return None
    return (made * 100 / from_cents(kept_cents, job.currency)).quantize(HUNDREDTH, rounding=ROUND_HALF_UP)


def _told(costs: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: None if value is None else str(value) for name, value in costs.items()}


def _unit(job: Job, name: str) -> str:
    return "%" if name == "markup_percentage" else job.currency
