"""Owns the lives that are recorded: what a shop goes through, acted out with the sandbox's providers.

Called by record.py. Together they take every trigger, enter every state and owe every effect.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import requests

from smi_workflow.jobs.model import Job
from tests.support.apps import NOWHERE
from tests.support.sales import Sales

JANE = "admin:jane"
LIVES: dict[str, Callable[[Sales], object]] = {}
# Receivers of hooks that are not there. Lives of before there were any, and most of today's, are told to nobody.
TOLD: dict[str, Any] = {
    "hook_urls": f"{NOWHERE}/hook", "hook_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
}  # fmt: skip


def life(act: Callable[[Sales], object]) -> Callable[[Sales], object]:
    """Put a life on the list."""
    LIVES[act.__name__] = act
    return act


def fire(sales: Sales, job: Job, trigger: str, reason: str = "a recorded life", **facts: Any) -> None:
    """An admin acts."""
    sales.app.jobs.fire(job.job_id, trigger, actor=JANE, reason=reason, facts=facts)


def settle(sales: Sales) -> None:
    """Take in what Stripe says and do what is due, until it comes to rest."""
    for _ in range(3):
        sales.deliver()
        sales.work(hold=("poll_upscale",))


@life
def sold_delivered_expired(sales: Sales) -> None:
    sales.completed()
    sales.run_down(hours=25)


@life
def sold_and_polled(sales: Sales) -> None:
    sales.processing()
    sales.upscaled()
    sales.advance(minutes=1)
    sales.work()


@life
def failed_and_refunded(sales: Sales) -> None:
    sales.failed()
    sales.run_down(hours=1)


@life
def told_to_receivers_that_are_away(sales: Sales) -> None:
    sales.completed()
    sales.failed()
    sales.run_down(days=5)


@life
def failed_by_upsampler(sales: Sales) -> None:
    sales.sandbox.upsampler.faults.add({"result": True}, {"kind": "fail", "text": "No GPU is free"})
    sales.processing()
    sales.call_back(sales.upscaled())
    settle(sales)


@life
def never_upscaled(sales: Sales) -> None:
    sales.sandbox.upsampler.faults.add({"result": True}, {"kind": "never"})
    sales.processing()
    sales.run_down(hours=1)


@life
def never_submitted(sales: Sales) -> None:
    sales.sold()
    sales.run_down(hold=("submit_upscale",), hours=25)


@life
def damaged_result(sales: Sales) -> None:
    sales.sandbox.upsampler.faults.add({"result": True}, {"kind": "wrong_dimensions"})
    sales.processing()
    sales.call_back(sales.upscaled())
    settle(sales)


@life
def result_never_fetched(sales: Sales) -> None:
    sales.processing()
    sales.call_back(sales.upscaled())
    sales.run_down(hold=("fetch_result",), minutes=20)


@life
def retried_after_an_outage(sales: Sales) -> None:
    job = sales.failed()
    fire(sales, job, "retry")
    sales.perform("submit_upscale", job.job_id)
    sales.call_back(sales.upscaled())
    settle(sales)


@life
def retried_by_override_after_the_refund(sales: Sales) -> None:
    job = sales.failed()
    sales.run_down(hours=1)
    fire(sales, job, "retry", override=True)
    sales.perform("submit_upscale", job.job_id)
    sales.call_back(sales.upscaled())
    settle(sales)


@life
def overridden_everywhere(sales: Sales) -> None:
    job = sales.order()
    for target in ("abandoned", "awaiting_payment", "failed", "processing", "pending"):
        fire(sales, job, "override", target=target)
    fire(sales, job, "override", target="failed", effects=True)


@life
def overridden_with_its_goods(sales: Sales) -> None:
    job = sales.completed()
    for target in ("pending", "completed", "processing", "failed", "completed"):
        fire(sales, job, "override", target=target)
    settle(sales)


@life
def abandoned_and_purged(sales: Sales) -> None:
    sales.order()
    sales.run_down(hours=50)


@life
def abandoned_and_erased(sales: Sales) -> None:
    job = sales.order()
    sales.run_down(hours=25)
    fire(sales, job, "erase")
    settle(sales)


@life
def paid_after_all(sales: Sales) -> None:
    job = sales.order()
    fire(sales, job, "override", target="abandoned")
    sales.pay(job)
    sales.deliver()


@life
def no_checkout(sales: Sales) -> None:
    sales.sandbox.stripe.faults.add({"path": "/v1/checkout"}, {"kind": "status", "status": 402}, times=99)
    sales.order()
    settle(sales)


@life
def declined_and_paid(sales: Sales) -> None:
    job = sales.order()
    requests.post(f"{job.checkout_url}/decline", timeout=10)
    sales.deliver()
    sales.pay(job)
    sales.deliver()


@life
def bank_debit_that_settles(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job, delayed=True)
    sales.deliver()
    sales.advance(days=3)
    sales.lever(f"sessions/{job.stripe_checkout_session_id}/settle", outcome="succeeded")
    sales.deliver()


@life
def bank_debit_that_fails(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job, delayed=True)
    sales.deliver()
    sales.lever(f"sessions/{job.stripe_checkout_session_id}/settle", outcome="failed")
    settle(sales)


@life
def bank_debit_that_comes_too_late(sales: Sales) -> None:
    job = sales.order(email="jane@example.com")
    sales.pay(job, delayed=True)
    sales.deliver()
    sales.advance_to("payment_deadline")
    sales.work()
    sales.lever(f"sessions/{job.stripe_checkout_session_id}/settle", outcome="succeeded")
    settle(sales)


@life
def webhook_lost_and_found_at_the_deadline(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    sales.advance_to("payment_deadline")
    sales.perform("payment_deadline", job.job_id)


@life
def wrong_amount(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job, amount=40)
    settle(sales)
    sales.advance_to("payment_deadline")
    sales.work()


@life
def paid_twice(sales: Sales) -> None:
    job = sales.order()
    session = sales.app.stripe.create_checkout_session(
        job_id=job.job_id, amount_cents=50, currency="usd", description="again", email=None,
        key=f"second-{job.job_id}", success_url="https://x.example/", cancel_url="https://x.example/",
        expires_at=sales.clock.now() + timedelta(hours=12),
    )  # fmt: skip
    sales.pay(job)
    sales.deliver()
    job.stripe_checkout_session_id = session.id
    sales.pay(job)
    settle(sales)


@life
def refunded_in_parts(sales: Sales) -> None:
    job = sales.completed()
    for cents in (10, 15):
        fire(sales, job, "refund", amount_cents=cents)
        settle(sales)
    fire(sales, job, "refund")
    settle(sales)


@life
def refunded_in_the_middle(sales: Sales) -> None:
    job = sales.processing()
    fire(sales, job, "refund")
    settle(sales)


@life
def refund_lost_and_repeated(sales: Sales) -> None:
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "failed"})
    job = sales.completed()
    fire(sales, job, "refund")
    settle(sales)
    fire(sales, job, "refund")
    settle(sales)


@life
def refund_that_takes_days_and_comes_back(sales: Sales) -> None:
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "pending"})
    job = sales.completed()
    fire(sales, job, "refund")
    sales.run_down(hours=80)
    (row,) = sales.refunds(job.job_id)
    for outcome in ("succeeded", "failed"):
        sales.lever(f"refunds/{row.stripe_refund_id}/settle", outcome=outcome)
        settle(sales)


@life
def refunded_at_the_dashboard(sales: Sales) -> None:
    job = sales.processing()
    for amount in (20, 30):
        sales.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id, amount=amount)
        settle(sales)


@life
def refund_called_off_and_settled_elsewhere(sales: Sales) -> None:
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "requires_action"})
    job = sales.completed()
    fire(sales, job, "refund")
    settle(sales)
    (row,) = sales.refunds(job.job_id)
    sales.lever(f"refunds/{row.stripe_refund_id}/settle", outcome="canceled")
    settle(sales)
    sales.app.jobs.fire_refund(row.refund_id, "settle_elsewhere", actor=JANE, reason="by bank transfer")


@life
def refund_failed_and_tried_again(sales: Sales) -> None:
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "failed"})
    job = sales.completed()
    fire(sales, job, "refund")
    settle(sales)
    (row,) = sales.refunds(job.job_id)
    sales.app.jobs.fire_refund(row.refund_id, "retry", actor=JANE, reason="the account is topped up")
    settle(sales)


@life
def refunded_at_the_dashboard_and_told_by_the_charge(sales: Sales) -> None:
    job = sales.processing()
    sales.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id, amount=20)
    sales.deliver("charge.refunded")
    sales.run_down(hold=("poll_upscale",), minutes=10)


@life
def wrong_amount_given_back_by_hand(sales: Sales) -> None:
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "failed"})
    job = sales.order()
    sales.pay(job, amount=40)
    settle(sales)
    (payment,) = sales.payments(job.job_id)
    fire(sales, job, "return_payment", payment_intent_id=payment.payment_intent_id)
    settle(sales)


@life
def charged_back_and_won(sales: Sales) -> None:
    job = sales.processing()
    dispute = sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id)
    settle(sales)
    sales.lever(f"dashboard/disputes/{dispute['id']}/close", outcome="won")
    sales.run_down(hours=1)


@life
def charged_back_after_delivery(sales: Sales) -> None:
    job = sales.completed()
    sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id, amount=30)
    settle(sales)


@life
def renewed_resent_amended_erased(sales: Sales) -> None:
    job = sales.completed()
    sales.advance(hours=20)
    fire(sales, job, "renew_download")
    settle(sales)
    fire(sales, job, "resend")
    settle(sales)
    fire(sales, job, "amend", fields={"email": "joe@example.com", "post_id": 7})
    fire(sales, job, "correct_costs", costs={"credits_required": 2})
    fire(sales, job, "erase")
    settle(sales)


@life
def nobody_to_write_to(sales: Sales) -> None:
    sales.sandbox.mail.faults.add({"smtp": "data"}, {"kind": "refuse", "status": 550}, times=99)
    sales.completed()
