"""Owns a small, blameless chaos run for tests of the checker: one job of each kind. Called by test_checker.py."""

from __future__ import annotations

from typing import Any

from tests.chaos.checker import LINK_SUBJECT
from tests.chaos.evidence import Evidence, Mail, Opened, Promise, Row

SIZE, RED = (96, 64), (255, 0, 0)
GOOD, OVER = Opened(200, SIZE, RED), Opened(410)
DELIVERED, REFUNDED, LEFT = "delivered", "refunded", "left"
LIVES = {
    DELIVERED: (
        "create",
        "checkout_opened",
        "payment_received",
        "upscale_started",
        "upscale_delivered",
        "complete",
    ),
    REFUNDED: ("create", "checkout_opened", "payment_received", "upscale_started", "fail", "refund_settled"),
    LEFT: ("create", "checkout_opened", "abandon"),
}
STATES = {
    "create": "awaiting_payment", "payment_received": "pending", "upscale_started": "processing",
    "complete": "completed", "fail": "failed", "abandon": "abandoned",
}  # fmt: skip


def link(job_id: str, generation: int = 1) -> str:
    """The link of a job."""
    return f"http://shop/download/{job_id}-{generation}"


def charge(job_id: str, number: int = 1, cents: int = 50) -> dict[str, Any]:
    """A payment that Stripe captured."""
    return {
        "id": f"ch_{job_id}_{number}", "payment_intent": f"pi_{job_id}_{number}", "status": "succeeded",
        "amount_captured": cents, "metadata": {"job_id": job_id},
    }  # fmt: skip


def refund(job_id: str, refund_id: str = "r1", cents: int = 50, number: int = 1) -> dict[str, Any]:
    """Money that went back."""
    return {
        "id": f"re_{refund_id}", "charge": f"ch_{job_id}_{number}", "status": "succeeded", "amount": cents,
        "metadata": {"refund_id": refund_id},
    }  # fmt: skip


def dispute(job_id: str, *moved_cents: int) -> dict[str, Any]:
    """What the bank took, and gave back."""
    return {"charge": f"ch_{job_id}_1", "balance_transactions": [{"amount": cents} for cents in moved_cents]}


def submission(job_id: str, status: str = "SUCCESS") -> dict[str, Any]:
    """One upscale at Upsampler."""
    return {"source_url": f"http://shop/source/{job_id}/signature", "status": status}


def mail(job_id: str, generation: int = 1, to: str | None = None, subject: str = LINK_SUBJECT) -> Mail:
    """The mail with the link."""
    return Mail(
        (to or f"{job_id}@example.com",), subject, f"<{job_id}-{generation}>", job_id, (link(job_id, generation),)
    )


def life(job_id: str, *triggers: str, workflow: str = "job", actor: str = "system") -> list[Row]:
    """The history of one subject."""
    rows: list[Row] = []
    for trigger in triggers:
        before = rows[-1].to_state if rows else ""
        told = {"payment_intent_id": f"pi_{job_id}_1"} if trigger == "payment_received" else {}
        rows.append(
            Row(workflow, job_id, len(rows) + 1, trigger, before, STATES.get(trigger, before), actor, told)
        )
    return rows


def act(evidence: Evidence, job_id: str, trigger: str, actor: str = "admin:jane", **metadata: str) -> None:
    """One more row in a job's history that leaves its state."""
    last = max((row for row in evidence.history if row.subject_id == job_id), key=lambda row: row.sequence)
    evidence.history.append(
        Row("job", job_id, last.sequence + 1, trigger, last.to_state, last.to_state, actor, metadata)
    )


def blameless() -> Evidence:
    """Three buyers: one has the image, one the money back, one never paid."""
    return Evidence(
        promises={job_id: Promise(f"{job_id}@example.com", SIZE, RED) for job_id in LIVES},
        stripe={
            "charges": [charge(DELIVERED), charge(REFUNDED), {**charge(LEFT), "status": "failed"}],
            "refunds": [refund(REFUNDED), {**refund(REFUNDED, "r0"), "status": "failed"}],
            "disputes": [],
        },
        upsampler=[submission(DELIVERED), submission(REFUNDED, "FAILED")],
        mails=[mail(DELIVERED), Mail((f"{REFUNDED}@example.com",), "No image", "<1>", REFUNDED, ())],
        history=[row for job_id, triggers in LIVES.items() for row in life(job_id, *triggers)],
        openings={link(DELIVERED): [GOOD, OVER]},
    )
