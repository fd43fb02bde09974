"""Owns the check that a job's money balances with Stripe's books. Called by sales.py and by tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from smi_workflow.app import App

COUNTED = ("pending", "requires_action", "succeeded")


def assert_money_balances(app: App, job_id: str, ledger: Mapping[str, Any]) -> None:
    """Law 11: what the rows say is what Stripe's books say, whatever is under way.

    Args:
        ledger: everything that the sandbox's Stripe has. Its events about disputes must have been handled.
    """
    job = app.jobs.get_job(job_id)
    tables = app.job_tables
    payments = list(tables.payments.select().where(tables.payments.job_id == job_id))
    refunds = list(tables.refunds.select().where(tables.refunds.job_id == job_id))
    books = {row["payment_intent"]: row for row in ledger["balances"]}

    sales = [payment for payment in payments if payment.role == "sale"]
    assert len(sales) == (1 if job.payment_status == "paid" else 0), "paid once, or not at all"
    assert job.paid_cents == sum(payment.cents for payment in sales)
    assert [payment.payment_intent_id for payment in sales] in ([], [job.stripe_payment_intent_id])
    for payment in sales:
        assert (payment.cents, payment.currency) == (job.amount_due_cents, job.currency)
        assert payment.livemode == job.livemode

    for payment in payments:
        book = books[payment.payment_intent_id]
        assert (book["captured"], book["currency"]) == (payment.cents, payment.currency)
        mine = [refund for refund in refunds if refund.payment_intent_id == payment.payment_intent_id]
        settled = sum(refund.cents for refund in mine if refund.state == "succeeded")
        under_way = sum(refund.cents for refund in mine if refund.state in ("requested", "submitted", "pending"))
        elsewhere = sum(refund.cents for refund in mine if refund.state == "settled_elsewhere")
        assert payment.refunded_cents == settled
        assert settled <= book["refunded"] <= settled + under_way, "Stripe has sent what we know of, and no more"
        assert settled + under_way + elsewhere <= payment.cents, "never more than was paid"
        if payment.role == "sale":
            assert (job.refunded_cents, job.refunding_cents) == (settled + elsewhere, under_way)
            assert job.disputed_cents == book["charged_back"]
            kept = job.paid_cents - settled - job.disputed_cents
            assert kept - under_way <= book["net"] <= kept
    if not sales:
        assert (job.refunded_cents, job.refunding_cents, job.disputed_cents) == (0, 0, 0)

    intents = {payment.payment_intent_id for payment in payments}
    made = [row for row in ledger["refunds"] if row["payment_intent"] in intents and row["status"] in COUNTED]
    twice = [
        key
        for key, times in Counter(row["metadata"].get("refund_id") for row in made).items()
        if key and times > 1
    ]
    assert not twice, f"refunded twice at Stripe: {twice}"
    known = {refund.stripe_refund_id for refund in refunds} | {None}
    assert {refund.stripe_refund_id for refund in refunds if refund.state == "succeeded"} <= {
        r["id"] for r in made
    }
    assert len(known) - 1 == sum(1 for refund in refunds if refund.stripe_refund_id), (
        "a refund of Stripe's, two rows"
    )

    received = [row for row in app.jobs.history(job_id) if row.trigger == "payment_received"]
    assert len(received) == len(sales)
    if job.status == "completed" and job.paid_cents and job.refunded_cents + job.refunding_cents >= job.paid_cents:
        history = app.jobs.history(job_id)
        said_so = [row for row in history if row.actor.startswith(("admin:", "stripe", "system"))]
        assert any(row.trigger in ("refund", "refund_settled", "override", "retry") for row in said_so), "both"
