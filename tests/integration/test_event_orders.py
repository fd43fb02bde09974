"""Events in every order, each three times at once: one payment, one upscale, no refund. Called by pytest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from smi_workflow.errors import TransitionConflict
from smi_workflow.web.site import create_app
from tests.support.desks import Threads, at_once, job_columns, running_threads
from tests.support.money import assert_money_balances
from tests.support.sales import Providers, Sales, open_sales, running_providers

COMPLETED = "checkout.session.completed"


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    """One sandbox for all tests of this file."""
    with running_providers(tmp_path_factory.mktemp("providers")) as running:
        yield running


@pytest.fixture
def sales(sqlite_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop on SQLite."""
    with open_sales(sqlite_url, tmp_path, providers) as opened:
        yield opened


@pytest.fixture
def sales_everywhere(database_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop, once on each kind of database."""
    with open_sales(database_url, tmp_path, providers) as opened:
        yield opened


def take_in(sales: Sales, *events: dict[str, Any], threads: Threads | None = None) -> None:
    """Deliver each event three times at once; whoever takes one in handles it as well."""
    together = threads.together if threads is not None else partial(at_once, sales.app)

    def deliver(event: dict[str, Any]) -> Any:
        return sales.app.inbox.handle(sales.receive(event))

    outcomes = together(*[lambda event=event: deliver(event) for event in events for _ in range(3)])
    # Whoever loses a race is tried again by the relay; anything else would be a fault.
    faults = [
        one for one in outcomes if isinstance(one, BaseException) and not isinstance(one, TransitionConflict)
    ]
    assert not faults, faults


def settle(sales: Sales) -> None:
    """Let whatever is parked or lost a race come to its end; nobody works on effects."""
    for _ in range(3):
        for name, row_id in sales.due():
            if name == "handle_event":
                sales.app.inbox.handle(row_id)
        sales.clock.advance(seconds=20)


def open_ends(sales: Sales) -> dict[str, tuple[str, str]]:
    """Events that are neither applied nor ignored."""
    return {name: row for name, row in sales.event_rows().items() if row[0] not in ("applied", "ignored")}


class Sale:
    """One real sale, and any number of copies of it: the same events and books under other names."""

    def __init__(self, sales: Sales) -> None:
        self._sales = sales
        job = sales.order()
        page = f"{sales.sandbox.stripe.url}/pay/{job.stripe_checkout_session_id}"
        assert requests.post(f"{page}/decline", timeout=10).status_code == 402
        sales.pay(job)
        ledger = sales.ledger()
        by_type = {event["type"]: event for event in ledger["events"]}
        completed = by_type[COMPLETED]
        over = {**completed["data"]["object"], "status": "expired", "payment_status": "unpaid"}
        events = [
            by_type["payment_intent.payment_failed"],
            completed,
            {**completed, "id": "evt_twin"},
            {**completed, "id": "evt_over", "type": "checkout.session.expired", "data": {"object": over}},
            by_type["payment_intent.succeeded"],
            by_type["charge.succeeded"],
        ]
        self._job = job
        self._text = json.dumps({"events": events, "ledger": {**ledger, "events": []}})
        session, intent = job.stripe_checkout_session_id, completed["data"]["object"]["payment_intent"]
        self._names = [job.job_id, session, intent, *(event["id"] for event in events)]

    def copy(self, number: int) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
        """Another job at its checkout, the six events of its sale, and Stripe's books about it."""
        text = self._text
        for name in self._names:
            text = text.replace(str(name), f"{name}-{number}")
        told = json.loads(text)
        job_id, job = f"{self._job.job_id}-{number}", self._job
        amounts = {"amount_due_cents": job.amount_due_cents, "created_at": self._sales.clock.now()}
        self._sales.app.engine.start("job", {**job_columns(job_id), **amounts}, actor="buyer")
        facts = {
            "session_id": f"{job.stripe_checkout_session_id}-{number}",
            "checkout_url": "https://pay.example/",
        }
        self._sales.app.jobs.fire(job_id, "checkout_opened", actor="system", facts=facts)
        return job_id, told["events"], told["ledger"]


def assert_sold_once(sales: Sales, job_id: str, ledger: dict[str, Any]) -> None:
    """One payment, one way to pending, no refund, and the books agree."""
    job, triggers = sales.job(job_id), sales.triggers(job_id)
    assert (job.status, job.payment_status, job.paid_cents) == ("pending", "paid", 50), triggers
    assert triggers.count("payment_received") == len(sales.payments(job_id)) == 1, triggers
    assert "payment_unexpected" not in triggers
    assert sales.refunds(job_id) == []
    assert_money_balances(sales.app, job_id, ledger)


def test_every_order_of_a_sales_events_three_at_once(sales_everywhere: Sales) -> None:
    """All orders of those that mean something; those that mean nothing go in between."""
    sales = sales_everywhere
    sale = Sale(sales)
    with running_threads(sales.app, 3) as threads:
        for number, order in enumerate(itertools.permutations(range(4))):
            job_id, events, ledger = sale.copy(number)
            told = [events[position] for position in order]
            told.insert(number % 5, events[4])
            told.insert(number % 6, events[5])
            for event in told:
                take_in(sales, event, threads=threads)
            settle(sales)
            assert not open_ends(sales), f"order {order}"
            assert_sold_once(sales, job_id, ledger)


def test_every_order_one_by_one(sales: Sales) -> None:
    """Some orders have a way of their own: given up first, and revived by the payment."""
    sale = Sale(sales)
    ways: set[tuple[str, ...]] = set()
    for number, order in enumerate(itertools.permutations(range(4))):
        job_id, events, ledger = sale.copy(number)
        for position in order:
            sales.app.inbox.handle(sales.receive(events[position]))
        settle(sales)
        assert_sold_once(sales, job_id, ledger)
        ways.add(tuple(sales.triggers(job_id)[2:]))
    assert ways == {
        ("payment_received",),
        ("payment_declined", "payment_received"),
        ("abandon", "payment_received"),
        ("payment_declined", "abandon", "payment_received"),
    }
    assert not open_ends(sales)


def test_all_events_of_a_sale_at_the_same_moment(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    sale = Sale(sales)
    for number in range(3):
        job_id, events, ledger = sale.copy(number)
        take_in(sales, *events)
        settle(sales)
        assert not open_ends(sales)
        assert_sold_once(sales, job_id, ledger)


def test_three_identical_webhooks_make_one_row(sales_everywhere: Sales) -> None:
    """pay #371."""
    sales = sales_everywhere
    sales.pay(sales.order())
    (event,) = sales.events(COMPLETED)
    rows = at_once(sales.app, *[lambda: sales.receive(event)] * 3)
    assert len(set(rows)) == 1
    assert sales.app.tables.events.select().count() == 1
    assert sales.rung.names().count("handle_event") == 1


def test_an_event_before_its_checkout_is_on_record_completes_nothing(sales_everywhere: Sales) -> None:
    """medusa #14205."""
    sales = sales_everywhere
    job = sales.order()
    sales.pay(job)
    table = sales.app.job_tables.jobs
    table.update(stripe_checkout_session_id=None, checkout_url=None).where(table.job_id == job.job_id).execute()
    (event,) = sales.events(COMPLETED)
    take_in(sales, event)
    assert sales.event_rows()[event["id"]] == ("parked", "its checkout is not on record yet")
    assert sales.job(job.job_id).status == "awaiting_payment"
    # The transition itself wakes it; no timer is waited for.
    sales.app.jobs.fire(
        job.job_id, "checkout_opened", actor="system",
        facts={"session_id": job.stripe_checkout_session_id, "checkout_url": job.checkout_url},
    )  # fmt: skip
    sales.work(hold=("submit_upscale",))
    assert_sold_once(sales, job.job_id, sales.ledger())


def test_the_browsers_return_changes_nothing(sales: Sales) -> None:
    """medusa #13301."""
    job = sales.order()
    page = f"{sales.sandbox.stripe.url}/pay/{job.stripe_checkout_session_id}"
    back = requests.post(f"{page}/pay", data={"email": "jane@example.com"}, allow_redirects=False, timeout=10)
    assert back.status_code == 303
    browser = create_app(sales.app).test_client()
    (event,) = sales.events(COMPLETED)

    def return_to_the_shop() -> int:
        answers = [browser.get(f"/{page}?job={job.job_id}").status_code for page in ("thanks", "cancelled")]
        return max(answers)

    assert return_to_the_shop() == 200
    assert (sales.job(job.job_id).status, sales.job(job.job_id).version) == ("awaiting_payment", 2)
    page = f"/jobs/{job.job_id}?from=checkout"
    browsers = [lambda: create_app(sales.app).test_client().get(page).status_code] * 2
    webhooks = [lambda: sales.app.inbox.handle(sales.receive(event))] * 2
    outcomes = at_once(sales.app, *browsers, *webhooks)
    assert outcomes[:2] == [200, 200]
    settle(sales)
    assert_sold_once(sales, job.job_id, sales.ledger())


def test_the_deadline_and_the_webhook_find_one_payment_between_them(sales_everywhere: Sales) -> None:
    """saleor #14648."""
    sales = sales_everywhere
    job = sales.order()
    sales.pay(job)
    sales.advance_to("payment_deadline")
    deadline, (event,) = sales.effect("payment_deadline").id, sales.events(COMPLETED)
    at_once(
        sales.app,
        *[lambda: sales.app.performer.perform(deadline)] * 2,
        *[lambda: sales.app.inbox.handle(sales.receive(event))] * 2,
    )
    sales.advance(seconds=70)
    sales.work(hold=("submit_upscale",))
    assert not open_ends(sales)
    assert_sold_once(sales, job.job_id, sales.ledger())


def test_an_event_about_nobody_needs_a_person_in_the_end(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    (event,) = sales.events(COMPLETED)
    told = json.loads(json.dumps(event).replace(job.job_id, "no-such-job"))
    sales.app.inbox.handle(sales.receive(told))
    assert sales.event_rows()[event["id"]] == ("parked", "there is no job no-such-job")
    began = sales.clock.now()
    row = sales.app.tables.events.get()
    while row.state == "parked":
        sales.clock.time = row.due_at
        sales.app.inbox.handle(row.id)
        row = sales.app.tables.events.get()
    assert row.state == "needs_person"
    assert timedelta(days=3) <= sales.clock.now() - began < timedelta(days=3, hours=2)
    for other in ("account.updated", "customer.created"):
        sales.app.inbox.handle(sales.receive({**event, "id": f"evt_{other}", "type": other}))
        assert sales.event_rows()[f"evt_{other}"] == ("ignored", f"{other} changes nothing here")


def test_a_paid_session_that_names_no_amount_waits_for_a_person(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    (event,) = sales.events(COMPLETED)
    event["data"]["object"]["amount_total"] = None
    take_in(sales, event)
    assert sales.event_rows()[event["id"]] == ("parked", "it names no amount")
    assert sales.job(job.job_id).status == "awaiting_payment"


def test_an_address_too_long_for_the_column_keeps_no_payment_out(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.order()
    sales.pay(job)
    (event,) = sales.events(COMPLETED)
    event["data"]["object"]["customer_details"]["email"] = f"{'x' * 300}@example.com"
    take_in(sales, event)
    settle(sales)
    assert_sold_once(sales, job.job_id, sales.ledger())
    assert sales.job(job.job_id).email is None
