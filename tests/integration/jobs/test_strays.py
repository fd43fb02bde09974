"""What is told of a payment before the payment itself is on record is tried again as soon as it is."""

from __future__ import annotations

from smi_workflow.jobs.model import JobStatus
from tests.support.sales import Sales


def test_a_chargeback_known_before_the_payment_stops_the_sale_once_the_payment_is_known(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    intent = sales.ledger()["intents"][-1]["id"]
    sales.lever("dashboard/disputes", payment_intent=intent)
    sales.deliver("charge.dispute.funds_withdrawn")
    for name, row_id in sales.due():
        if name == "handle_event":
            sales.app.inbox.handle(row_id)
    for _ in range(9):
        # Nobody knows whose it is, so it is tried ever more rarely.
        sales.clock.advance(seconds=2000)
        for name, row_id in sales.due():
            if name == "handle_event":
                sales.app.inbox.handle(row_id)
    sales.deliver("checkout.session.completed")
    sales.work(hold={"submit_upscale"})
    found = sales.job(job.job_id)
    assert (found.disputed_cents, found.status) == (found.paid_cents, JobStatus.FAILED)
