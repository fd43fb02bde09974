"""The races of payments that other shops have lost, each with what must happen here. Called by pytest.

Over real HTTP where the race is about that, on every kind of database where it is about locks. Each test names the
public report of the shop where it happened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from smi_workflow.engine.attempt import Attempt, Outcome
from smi_workflow.engine.tables import EventRow
from smi_workflow.errors import SmiError
from smi_workflow.jobs.model import Job
from smi_workflow.web.site import create_app
from tests.integration.jobs.test_strange_payments import second_session
from tests.integration.test_web_webhooks import signed
from tests.support.apps import gunicorn, served
from tests.support.desks import at_once
from tests.support.sales import Providers, Sales, open_sales

COMPLETED = "checkout.session.completed"


@dataclass
class Shop:
    """A shop whose site is served, so that news comes to it as it does from Stripe."""

    sales: Sales
    url: str

    def post(self, event: Mapping[str, Any]) -> None:
        """Deliver one of Stripe's events to the webhook."""
        body = json.dumps(event).encode()
        answer = requests.post(f"{self.url}/webhooks/stripe", data=body, headers=signed(body), timeout=30)
        assert answer.status_code == 200, answer.text

    def handle(self) -> None:
        """Apply what has come in, as a worker does."""
        for row in self.open_events():
            self.sales.app.inbox.handle(row.id)

    def open_events(self) -> list[EventRow]:
        """What waits to be applied."""
        events = self.sales.app.tables.events
        return list(events.select().where(events.state.in_(("received", "parked"))).order_by(events.id))

    def together(self, *calls: Callable[[], object]) -> list[object]:
        """In threads that start together."""
        return at_once(self.sales.app, *calls)


@pytest.fixture
def shop(database_url: str, tmp_path: Path, providers: Providers) -> Iterator[Shop]:
    """Once on each kind of database."""
    with open_sales(database_url, tmp_path, providers) as sales:
        app = sales.app
        with served(create_app(app), app) as url:
            yield Shop(sales, url)


def count(sales: Sales, job: Job, trigger: str) -> int:
    """How often this happened to a job."""
    return sales.triggers(job.job_id).count(trigger)


def test_three_identical_webhooks_at_once(database_url: str, tmp_path: Path, providers: Providers) -> None:
    """pay #371: the same webhook came three times at once, each found no row yet, and three rows were made.

    Here two processes of eight threads take it in: one row, one bell; three workers handle it: one payment.
    """
    with open_sales(database_url, tmp_path, providers) as sales:
        job = sales.order()
        sales.pay(job)
        (event,) = sales.events(COMPLETED)
        body = json.dumps(event).encode()
        with gunicorn(tmp_path, "smi_workflow.web.site:create_app()", sales.app.settings) as (url, _):

            def deliver() -> int:
                headers = signed(body)
                return requests.post(f"{url}/webhooks/stripe", data=body, headers=headers, timeout=30).status_code

            assert at_once(sales.app, deliver, deliver, deliver) == [200, 200, 200]
        (row,) = sales.app.tables.events.select()
        states = at_once(sales.app, *[lambda: sales.app.inbox.handle(row.id)] * 3)
        assert states == ["applied"] * 3
        assert count(sales, job, "payment_received") == len(sales.payments(job.job_id)) == 1
        sales.balances(job.job_id)


@pytest.mark.parametrize("dies", [False, True], ids=["the answer comes", "the answer is lost"])
def test_the_refunds_webhook_beats_the_apis_answer(shop: Shop, dies: bool) -> None:
    """woocommerce-gateway-stripe #838: the webhook of a refund that the shop had just asked for came before the
    API's answer, was taken for another one made at the dashboard, and the order was refunded twice.

    Here the webhook finds the row that was written before Stripe was called: one refund there, one row here; also
    where the worker dies before it has read the answer, and another one asks again.
    """
    sales = shop.sales
    job = sales.completed()
    sales.app.jobs.fire(job.job_id, "refund", actor="admin:jane", reason="asked")

    def run(attempt: Attempt, real: Callable[[Attempt], Outcome]) -> Outcome:
        outcome = real(attempt)
        for event in sales.events():
            shop.post(event)
        shop.handle()
        if dies:
            raise SystemExit
        return outcome

    worker = sales.performer("submit_refund", run)
    if dies:
        with pytest.raises(SystemExit):
            worker.perform(sales.effect("submit_refund").id)
    else:
        worker.perform(sales.effect("submit_refund").id)
    sales.run_down(hours=2)
    (row,) = sales.refunds(job.job_id)
    (made,) = sales.ledger()["refunds"]
    assert (row.state, row.stripe_refund_id) == ("succeeded", made["id"])
    assert count(sales, job, "refund_settled") == 1
    sales.balances(job.job_id)


def test_webhook_and_answer_of_a_refund_at_the_very_same_moment(shop: Shop) -> None:
    """woocommerce-gateway-stripe #2724: answer and webhook of one refund, handled at once, each wrote a refund of
    its own: money counted as given back twice.

    Here both want to settle the same row under its lock: one does, the other finds it settled.
    """
    sales = shop.sales
    job = sales.completed()
    sales.app.jobs.fire(job.job_id, "refund", actor="admin:jane", reason="asked")

    def run(attempt: Attempt, real: Callable[[Attempt], Outcome]) -> Outcome:
        outcome = real(attempt)
        for event in sales.events():
            shop.post(event)
        return outcome

    worker, effect = sales.performer("submit_refund", run), sales.effect("submit_refund")
    settled: list[object] = []

    def answer() -> None:
        settled.append(worker.perform(effect.id))

    def webhooks() -> None:
        while not settled:
            shop.handle()

    shop.together(answer, webhooks)
    shop.handle()
    (row,) = sales.refunds(job.job_id)
    assert (row.state, len(sales.ledger()["refunds"])) == ("succeeded", 1)
    assert count(sales, job, "refund_settled") == 1
    assert sales.job(job.job_id).refunded_cents == job.paid_cents
    sales.balances(job.job_id)


def test_the_browsers_return_races_the_webhook(shop: Shop) -> None:
    """medusa #13301: the buyer's return completed the order while the webhook did, and there were two of it.

    Here the return changes nothing at all; whoever asks Stripe about the payment (the deadline, a script with
    `mark_payment_completed`) passes the same guards as the webhook, under the same lock: one payment.
    """
    sales = shop.sales
    job = sales.order()
    sales.pay(job)
    (session,) = sales.ledger()["sessions"]
    (event,) = sales.events(COMPLETED)
    page = f"{shop.url}/jobs/{job.job_id}?from=checkout"

    def ask() -> object:
        try:
            return sales.app.jobs.mark_payment_completed(job.job_id, session["payment_intent"]).trigger
        except SmiError as refusal:
            return refusal

    def webhook() -> None:
        shop.post(event)
        shop.handle()

    def come_back() -> None:
        assert requests.get(page, timeout=30).status_code == 200
        assert requests.get(f"{shop.url}/api/v1/jobs/{job.job_id}", timeout=30).status_code == 200

    done = shop.together(come_back, webhook, ask, ask)
    assert not [one for one in done if isinstance(one, AssertionError)], done
    shop.handle()
    assert count(sales, job, "payment_received") == len(sales.payments(job.job_id)) == 1
    assert sales.job(job.job_id).status == "pending"
    assert len(sales.effects("submit_upscale", job.job_id)) == 1
    sales.balances(job.job_id)


def test_an_early_event_completes_nothing(shop: Shop) -> None:
    """medusa #14205: an event that came earlier than expected completed an order which was not paid.

    Here nothing goes out on an intent that succeeded, on a session that is complete and unpaid, or before the
    session itself is on record; what comes too early waits, and counts once its time has come.
    """
    sales = shop.sales
    sales.sandbox.stripe.faults.add({"method": "POST", "path": "/v1/checkout/sessions"}, {"kind": "reset_after"})
    job = sales.order()
    assert job.stripe_checkout_session_id is None
    (session,) = sales.ledger()["sessions"]
    url = f"{sales.sandbox.stripe.url}/_sandbox/stripe/sessions/{session['id']}/pay"
    assert requests.post(url, json={"email": "jane@example.com"}, timeout=10).ok
    for event in reversed(sales.events()):
        shop.post(event)
    shop.handle()
    assert (sales.job(job.job_id).status, sales.payments(job.job_id)) == ("awaiting_payment", [])
    assert {row.state for row in shop.open_events()} == {"parked"}
    # Its time comes with the answer that was lost.
    sales.run_down(minutes=5, hold=("submit_upscale",))
    assert sales.job(job.job_id).status == "pending"
    assert count(sales, job, "payment_received") == len(sales.payments(job.job_id)) == 1

    debit = sales.order()
    sales.pay(debit, delayed=True)
    for event in sales.events():
        shop.post(event)
    shop.handle()
    assert sales.job(debit.job_id).status == "awaiting_payment"
    assert sales.effects("submit_upscale", debit.job_id) == []


def test_a_double_capture_is_counted_once_and_sent_back_once(shop: Shop) -> None:
    """saleor #14648: two captures at once were both counted, and the order was paid for twice.

    Here two events of one payment, with ids of their own, handled at once are one payment; a second payment,
    handled at the same moment, is none of the sale's whichever comes first, and goes back once.
    """
    sales = shop.sales
    job = sales.order()
    other = second_session(sales, job)
    sales.pay(job)
    sales.pay(other)
    own, second = sales.events(COMPLETED)
    for event in (own, {**own, "id": f"{own['id']}_twin"}, second):
        shop.post(event)
    handle = sales.app.inbox.handle
    shop.together(*[partial(handle, row.id) for row in shop.open_events()])
    shop.handle()
    sales.run_down(minutes=5, hold=("submit_upscale",))
    assert count(sales, job, "payment_received") == 1
    sale, extra = sorted(sales.payments(job.job_id), key=lambda payment: payment.role != "sale")
    assert (sale.payment_intent_id, sale.refunded_cents) == (own["data"]["object"]["payment_intent"], 0)
    assert (extra.role in ("surplus", "mismatch"), extra.refunded_cents) == (True, extra.cents)
    assert len(sales.refunds(job.job_id)) == len(sales.ledger()["refunds"]) == 1
    assert (sales.job(job.job_id).status, sales.job(job.job_id).paid_cents) == ("pending", 50)
    sales.balances(job.job_id)
