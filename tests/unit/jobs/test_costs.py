"""What a sale costs and brings: the seeds' cost structure, profit and margin. Called by pytest."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from smi_workflow.jobs.costs import correct, cost_problem, margin_percentage, profit
from smi_workflow.jobs.guards import only_costs_are_corrected
from smi_workflow.jobs.model import Job
from tests.unit.jobs.cases import job_case

SEEDS: dict[str, Any] = {
    "upsampler_cost": 0.64, "customer_price": 3.84, "credits_required": 16.0, "markup_percentage": 500
}  # fmt: skip


def sold(**columns: Any) -> Job:
    """A delivered job of the seeds' example."""
    return job_case("completed", **{"amount_cost": Decimal("0.64"), "credits_used": Decimal(16), **columns}).row


def test_the_seeds_example_leaves_3_20() -> None:
    job = sold()
    assert profit(job) == Decimal("3.20")
    assert margin_percentage(job) == Decimal("83.33")


@pytest.mark.parametrize(
    ("columns", "made", "margin"),
    [
        ({"paid_cents": 0}, None, None),
        ({"refunded_cents": 384}, "-0.64", None),
        ({"refunded_cents": 100}, "2.20", "77.46"),
        ({"disputed_cents": 384}, "-0.64", None),
        ({"amount_cost": None}, "3.84", "100.00"),
        ({"amount_cost": Decimal("5.00")}, "-1.16", "-30.21"),
        # A refund on its way is still ours, and may come to nothing.
        ({"refunding_cents": 384}, "3.20", "83.33"),
        ({"currency": "jpy", "paid_cents": 100, "amount_cost": Decimal(40)}, "60.00", "60.00"),
        ({"currency": "kwd", "paid_cents": 3840}, "3.20", "83.33"),
    ],
)
def test_profit_is_what_was_kept_less_the_cost(
    columns: dict[str, Any], made: str | None, margin: str | None
) -> None:
    job = sold(**columns)
    assert profit(job) == (None if made is None else Decimal(made))
    assert margin_percentage(job) == (None if margin is None else Decimal(margin))


def test_costs_are_kept_and_history_tells_what_they_were() -> None:
    case = job_case("completed", {"costs": {**SEEDS, "upsampler_cost": 0.1, "credits_required": 2}},
                    amount_cost=Decimal("0.64"), credits_used=None)  # fmt: skip
    assert only_costs_are_corrected(case) is None
    correct(case)
    # 0.1 is what was meant, and not 0.1000000000000000055511151231257827.
    assert case.changes == {"amount_cost": Decimal("0.1"), "credits_used": Decimal(2)}
    assert case.metadata == {
        "before": {"amount_cost": "0.64", "credits_used": None},
        "after": {"amount_cost": "0.1", "credits_used": "2"},
    }


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("upsampler_cost", "0.64", "must be a number"),
        ("upsampler_cost", None, "must be a number"),
        ("upsampler_cost", True, "must be a number"),
        ("upsampler_cost", float("nan"), "must be a number"),
        ("upsampler_cost", float("inf"), "must be a number"),
        ("upsampler_cost", -0.01, "must be 0 or more"),
        ("upsampler_cost", 0.641, "two decimals at most"),
        ("upsampler_cost", 1e8, "below 100000000"),
        ("credits_required", 10**30, "below 100000000"),
        ("customer_price", 3.85, "was agreed as 3.84 usd, and stands"),
        ("markup_percentage", 400, "was agreed as 500 %, and stands"),
        ("paid_cents", 1, "is no cost of a sale"),
        ("status", "completed", "is no cost of a sale"),
    ],
)
def test_what_cannot_be_a_cost_is_refused(name: str, value: Any, problem: str) -> None:
    job = sold()
    assert problem in (cost_problem(job, name, value) or "")
    refusal = only_costs_are_corrected(job_case("completed", {"costs": {"credits_required": 1, name: value}}))
    assert problem in (refusal or "") and name in (refusal or "")


def test_agreeing_with_what_stands_corrects_nothing() -> None:
    case = job_case("completed", {"costs": {"customer_price": 3.84, "markup_percentage": 500}})
    assert only_costs_are_corrected(case) == "no cost is given"
