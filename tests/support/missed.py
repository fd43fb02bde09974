"""Owns a week in which no webhook arrived, and what is right once that is made up for. Called by tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import requests

from smi_workflow.effects.reconcile import Run
from smi_workflow.engine.perform import Performed
from smi_workflow.jobs.model import Job
from smi_workflow.jobs.schedule import set_up_schedules
from tests.support.sales import Sales

# What became of each sale → what its history must end with once it is known.
EXPECTED = {
    "paid": ["payment_received"],
    "declined": ["payment_declined", "abandon"],
    "debit_settled": ["payment_processing", "payment_received"],
    "debit_failed": ["payment_processing", "payment_declined", "payment_failed"],
    "debit_waits": ["payment_processing"],
    "expired": ["abandon"],
    "refunded_at_dashboard": ["refund_settled"],
    "refund_failed_late": ["refund_failed"],
    "disputed": ["dispute_opened"],
    "upscaled": ["upscale_delivered"],
    "upscale_failed": ["fail"],
}


@dataclass
class LostWeek:
    """One sale of each kind: name → job, and how much of its history was known before."""

    sales: Sales
    jobs: dict[str, str]
    known: dict[str, int]

    def keep(self, name: str, job: Job) -> Job:
        """Count this job in, as it is now."""
        self.jobs[name], self.known[name] = job.job_id, len(self.sales.triggers(job.job_id))
        return job

    def made_up_for(self) -> dict[str, list[str]]:
        """What has happened to each sale since, without what is noted of its charge whenever that is told."""
        since = {name: self.sales.triggers(job_id)[self.known[name] :] for name, job_id in self.jobs.items()}
        noted = ("charge_noted", "refunds_differ")
        return {name: [one for one in told if one not in noted] for name, told in since.items()}

    def is_right(self, but: Mapping[str, list[str]] = MappingProxyType({}), *, in_any_order: bool = False) -> None:
        """Everything that was missed is known, once; these histories are others than EXPECTED."""
        expected = {**EXPECTED, **but}
        for name, told in self.made_up_for().items():
            if name == "declined" and in_any_order:
                # That a card was declined is no news of a sale that has been given up.
                told = sorted({"payment_declined", *told})
            if name == "disputed":
                # Two events tell of it; handled at the same moment, both are on record, and the money counts once.
                told = sorted(set(told))
            assert sorted(told) == sorted(expected[name]), f"{name}: {told}, not {expected[name]}"
        jobs = {name: self.sales.job(job_id) for name, job_id in self.jobs.items()}
        assert {name: job.status for name, job in jobs.items()} == {
            "paid": "pending", "declined": "abandoned", "debit_settled": "pending", "debit_failed": "failed",
            "debit_waits": "awaiting_payment", "expired": "abandoned", "refunded_at_dashboard": "completed",
            "refund_failed_late": "failed", "disputed": "completed", "upscaled": "processing",
            "upscale_failed": "failed",
        }  # fmt: skip
        assert jobs["refunded_at_dashboard"].refunded_cents == jobs["refunded_at_dashboard"].paid_cents
        assert jobs["refund_failed_late"].refunded_cents == 0
        assert jobs["disputed"].disputed_cents == jobs["disputed"].paid_cents
        assert jobs["upscaled"].delivered_at is not None
        for job_id in self.jobs.values():
            self.sales.balances(job_id)


def live_a_lost_week(sales: Sales) -> LostWeek:
    """Let everything happen that a webhook would have told; none arrives, and then a week goes by."""
    stripe, upsampler = sales.sandbox.stripe, sales.sandbox.upsampler
    sales.sandbox.set_webhook("http://127.0.0.1:1/webhooks/stripe", "whsec_lost")
    stripe.faults.add({"webhook": "*"}, {"kind": "lost"}, times=None)
    upsampler.faults.add({"webhook": "*"}, {"kind": "lost"}, times=None)
    set_up_schedules(sales.app.engine)
    week = LostWeek(sales, {}, {})
    # What is begun while we still hear of everything.
    refunded = week.keep("refunded_at_dashboard", sales.completed())
    disputed = week.keep("disputed", sales.completed())
    failed = sales.failed()
    sales.advance_to("refund_due", failed.job_id)
    sales.work()
    sales.deliver()
    sales.work()
    week.keep("refund_failed_late", failed)
    week.keep("upscaled", sales.processing())
    sales.upscaled()
    upsampler.faults.add({"result": True}, {"kind": "fail", "text": "out of memory"})
    week.keep("upscale_failed", sales.processing())
    sales.upscaled()
    # From here on we hear of nothing.
    sales.lever("dashboard/refunds", payment_intent=refunded.stripe_payment_intent_id)
    sales.lever("dashboard/disputes", payment_intent=disputed.stripe_payment_intent_id, without_intent=True)
    sales.lever(f"refunds/{sales.refunds(failed.job_id)[0].stripe_refund_id}/settle", outcome="failed")
    sales.pay(week.keep("paid", sales.order()))
    declined = week.keep("declined", sales.order())
    page = f"{stripe.url}/pay/{declined.stripe_checkout_session_id}/decline"
    assert requests.post(page, timeout=10).status_code == 402
    for name, outcome in (("debit_settled", "succeeded"), ("debit_failed", "failed"), ("debit_waits", "")):
        job = week.keep(name, sales.order())
        sales.pay(job, delayed=True)
        if outcome:
            sales.lever(f"sessions/{job.stripe_checkout_session_id}/settle", outcome=outcome)
    week.keep("expired", sales.order())
    sales.advance(days=7)
    return week


def run_now(sales: Sales, actor: str = "admin:jane") -> Performed:
    """Let the schedule run at once, one slice of it."""
    applied = sales.app.engine.fire("schedule", "reconcile", "run", actor=actor, reason="a test")
    return sales.app.performer.perform(next(one.id for one in applied.owed if one.name == "run_schedule"))


def report_of(sales: Sales) -> Run:
    """What the last finished run says."""
    row = sales.app.engine.read("schedule", "reconcile")
    assert row.report is not None
    return Run.from_json(json.loads(row.report))
