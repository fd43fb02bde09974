"""The rows of the sale: sizes, money left, names. Called by pytest."""

from __future__ import annotations

import pytest

from smi_workflow.jobs.model import Job, JobStatus, PaymentStatus, Resolution
from tests.support.desks import job_columns


@pytest.mark.parametrize(("resolution", "factor", "size"), [("4x", 4, (80, 40)), ("8x", 8, (160, 80))])
def test_the_size_that_was_sold(resolution: str, factor: int, size: tuple[int, int]) -> None:
    job = Job(**{**job_columns("j"), "resolution": resolution})
    assert job.factor == Resolution(resolution).factor == factor
    assert job.expected_size == size


@pytest.mark.parametrize(
    ("paid", "refunding", "refunded", "disputed", "left"),
    [(0, 0, 0, 0, 0), (384, 0, 0, 0, 384), (384, 100, 84, 0, 200), (384, 0, 0, 384, 0), (384, 100, 0, 284, 0)],
)
def test_what_is_left_to_give_back(paid: int, refunding: int, refunded: int, disputed: int, left: int) -> None:
    job = Job(paid_cents=paid, refunding_cents=refunding, refunded_cents=refunded, disputed_cents=disputed)
    assert job.refundable_cents == left


def test_the_seeds_words() -> None:
    assert list(JobStatus) == ["awaiting_payment", "pending", "processing", "completed", "failed", "abandoned"]
    assert list(PaymentStatus) == ["pending", "paid", "failed"]
    assert list(Resolution) == ["4x", "8x"]


def test_a_new_row_owes_and_has_nothing() -> None:
    job = Job(**job_columns("j"))
    assert (job.status, job.payment_status) == ("awaiting_payment", "pending")
    assert (job.paid_cents, job.refunding_cents, job.refunded_cents, job.disputed_cents) == (0, 0, 0, 0)
    assert (job.email_sent, job.overridden, job.token_generation) == (False, False, 0)
