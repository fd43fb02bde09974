"""Owns the check of what a waiting buyer is told. Called by pytest."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from smi_workflow.jobs.model import Job, JobStatus
from smi_workflow.web.news import news_of

PAID: dict[str, Any] = {"paid_cents": 384, "payment_status": "paid"}


@pytest.mark.parametrize(
    ("status", "columns", "told"),
    [
        ("awaiting_payment", {"payment_status": "pending"}, "waiting for your payment"),
        ("awaiting_payment", {"payment_status": "failed"}, "another card"),
        ("pending", PAID, "next in line"),
        ("processing", PAID, "is being upscaled"),
        ("processing", {**PAID, "delivered_at": datetime(2026, 1, 1, tzinfo=UTC)}, "is being checked"),
        ("completed", {**PAID, "email_sent": False}, "We are sending you"),
        ("completed", {**PAID, "email_sent": True}, "We have sent you"),
        ("failed", {"paid_cents": 0}, "Nothing was charged"),
        ("failed", PAID, "will be sent back"),
        ("failed", {**PAID, "refunded_cents": 383}, "will be sent back"),
        ("failed", {**PAID, "refunded_cents": 384}, "was sent back"),
        ("abandoned", {}, "Nothing was charged"),
    ],
)
def test_progress(status: str, columns: dict[str, Any], told: str) -> None:
    assert told in news_of(Job(status=status, **columns)).progress


def test_every_status_has_its_sentence() -> None:
    assert len({news_of(Job(status=status, **PAID)).progress for status in JobStatus}) == len(JobStatus)
