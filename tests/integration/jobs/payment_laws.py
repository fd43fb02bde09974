"""Owns what must hold of money after each step, and the shop that it is looked up in. Called by the state machine.

Stripe's books are a model of their own; our rows are computed once more, and compared with it.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
)

from smi_workflow.app import MIGRATIONS, App, reach_outside
from smi_workflow.engine.invariants import Invariants
from smi_workflow.engine.leases import LeaseKeeper
from smi_workflow.engine.migrate import migrate
from smi_workflow.errors import SmiError
from smi_workflow.intake import reduce_stripe_event
from smi_workflow.jobs.model import UNDER_WAY, Job, JobStatus, Payment, Refund
from smi_workflow.jobs.money_invariants import MONEY_INVARIANTS
from tests.support.apps import Rung, test_settings
from tests.support.engines import CountingChance, HandClock
from tests.support.stripe_books import COUNTED, Charge, Event, StripeBooks

T = TypeVar("T")
DUE_CENTS = 384
PAYMENTS = "payments"


@dataclass
class Shop:
    """An App on a database in memory, with Stripe's books behind it; every example finds it empty."""

    app: App
    clock: HandClock
    books: StripeBooks
    template: sqlite3.Connection
    steps: int = 0
    quiet: int = 0
    met: set[str] = field(default_factory=set)  # every state of a job or refund, every trigger

    def reset(self) -> None:
        """Forget the last example."""
        self.template.backup(self.app.database.connection())  # type: ignore[no-untyped-call]
        self.clock.time = HandClock.time
        self.books.__init__(self.clock)  # type: ignore[misc]  # handlers hold this very object


@cache
def shop() -> Shop:
    """The one shop of this process."""
    folder = Path(tempfile.mkdtemp(prefix="smi-payments-"))
    chosen = test_settings(folder, database_url="sqlite:///:memory:", admin_email="owner@example.com")
    clock = HandClock()
    books = StripeBooks(clock)
    outside = replace(reach_outside(chosen), stripe=books)
    keeper = partial(LeaseKeeper, by_itself=False)
    chance = CountingChance("0" * 24)
    app = App(chosen, ring=Rung(), clock=clock, chance=chance, outside=outside, keeper=keeper)
    migrate(app.database, MIGRATIONS, prefix=chosen.table_prefix)
    template = sqlite3.connect(":memory:", check_same_thread=False)
    app.database.connection().backup(template)  # type: ignore[no-untyped-call]
    return Shop(app, clock, books, template)


def one_of(items: Sequence[T], pick: int) -> T:
    """Any of them."""
    return items[pick % len(items)]


class PaymentLaws(RuleBasedStateMachine):
    """Law 11, looked at after each step of a life."""

    def __init__(self) -> None:
        super().__init__()
        self.shop = shop()
        self.shop.reset()
        self.app, self.books = self.shop.app, self.shop.books
        self.jobs: list[str] = []
        self.lost: list[Event] = []
        self.told: list[Event] = []
        self.has_declined = False
        self.judges = Invariants(self.app.engine, MONEY_INVARIANTS)

    # -- law 11 --

    @invariant()
    def money_is_conserved(self) -> None:
        self.shop.steps += 1
        for job_id in self.jobs:
            job, payments, refunds = self._job(job_id), self._payments(job_id), self._refunds(job_id)
            self._check_payments(job, payments)
            self._check_refunds(job, payments, refunds)
            self._check_goods(job)
            if not self._unrest(job_id) and not self._needs_person(job_id):
                self.shop.quiet += 1
                self._check_books(job, payments)
            found = self.judges.of_subject("job", job_id)
            assert found == [], found

    def _check_payments(self, job: Job, payments: Sequence[Payment]) -> None:
        sales = [row for row in payments if row.role == "sale"]
        assert job.paid_cents == sum(row.cents for row in sales)
        assert len(sales) == (job.payment_status == "paid"), "paid once, or not at all"
        for row in payments:
            charge = self.books.charges[row.payment_intent_id]
            assert (row.cents, row.livemode) == (charge.cents, charge.livemode), "what Stripe has not captured"
        for row in sales:
            assert (row.cents, row.livemode) == (DUE_CENTS, False), "a payment that does not fit was taken"

    def _check_refunds(self, job: Job, payments: Sequence[Payment], refunds: Sequence[Refund]) -> None:
        for row in refunds:
            if row.state == "succeeded":
                made = self.books.refunds[row.stripe_refund_id or ""]
                assert (made.cents, made.charge.intent) == (row.cents, row.payment_intent_id)
                assert made.has_succeeded, "Stripe knows nothing of it"
        for payment in payments:
            mine = [row for row in refunds if row.payment_intent_id == payment.payment_intent_id]
            assert payment.refunded_cents == sum(row.cents for row in mine if row.state == "succeeded")
            if payment.role == "sale":
                # Of a surplus, a second refund may be told before the news that the first has failed.
                assert payment.refunded_cents <= payment.cents, "more went back than came"
        sale = [row for row in refunds if row.role == "sale"]
        assert job.refunding_cents == sum(row.cents for row in sale if row.state in UNDER_WAY)
        back = ("succeeded", "settled_elsewhere")
        assert job.refunded_cents == sum(row.cents for row in sale if row.state in back)
        named = [
            (made.metadata["refund_id"], made.metadata.get("try"))
            for made in self.books.refunds.values()
            if made.metadata and made.status in COUNTED
        ]
        assert len(named) == len(set(named)), "the same money was sent back twice"

    def _check_goods(self, job: Job) -> None:
        gone = job.refunding_cents + job.refunded_cents
        if job.status != JobStatus.COMPLETED or not job.paid_cents or gone < job.paid_cents:
            return
        history = self.app.jobs.history(job.job_id)
        by_hand = {row.trigger for row in history if row.actor.startswith("admin:")}
        at_stripe = any(row.trigger == "refund_settled" and row.actor == "stripe" for row in history)
        assert at_stripe or by_hand & {"refund", "override", "retry"}, "goods and money both, and nobody said so"

    def _check_books(self, job: Job, payments: Sequence[Payment]) -> None:
        """Nothing is on its way: captured less refunded less charged back is what the rows say."""
        charges = [charge for charge in self.books.charges.values() if charge.job_id == job.job_id]
        assert {row.payment_intent_id for row in payments} == {charge.intent for charge in charges}
        disputes = self.app.job_tables.disputes
        for row in payments:
            charge = self.books.charges[row.payment_intent_id]
            kept = [one.kept_cents for one in disputes.select().where(disputes.payment_intent_id == charge.intent)]
            ours = row.cents - row.refunded_cents - sum(kept)
            theirs = charge.cents - charge.sent_back("succeeded") - charge.charged_back
            assert ours == theirs, f"{charge.intent}: Stripe has {theirs}, our rows say {ours}"
            if row.role == "sale":
                assert job.disputed_cents == charge.charged_back

    # -- looking --

    def _unrest(self, job_id: str) -> list[str]:
        """Why this job's money is not at rest: news on its way, refunds moving, effects due, events waiting."""
        on_its_way = [event.kind for event in (*self.books.events, *self.lost) if event.job_id == job_id]
        moving = [
            f"{refund.id} is {refund.status} at Stripe" for refund in self.books.refunds.values()
            if refund.status not in ("succeeded", "failed", "canceled") and refund.charge.job_id == job_id
        ]  # fmt: skip
        refunds = self._refunds(job_id)
        under_way = [f"refund {row.refund_id} is {row.state}" for row in refunds if row.state in UNDER_WAY]
        named = {event.id for event in self.told if event.job_id == job_id}
        events = self.app.tables.events
        rows = events.select().where(events.state.in_(("received", "parked")))
        waiting = [f"{row.kind} {row.state}: {row.reason}" for row in rows if row.event_id in named]
        return [*on_its_way, *moving, *under_way, *self._due(job_id), *waiting]

    def _needs_person(self, job_id: str) -> bool:
        named = {event.id for event in self.told if event.job_id == job_id}
        events = self.app.tables.events
        rows = events.select(events.event_id).where(events.state == "needs_person")
        return any(row.event_id in named for row in rows)

    def _job(self, job_id: str) -> Job:
        return self.app.jobs.get_job(job_id)

    def _payments(self, job_id: str) -> list[Payment]:
        table = self.app.job_tables.payments
        return list(table.select().where(table.job_id == job_id))

    def _refunds(self, job_id: str) -> list[Refund]:
        table = self.app.job_tables.refunds
        return list(table.select().where(table.job_id == job_id).order_by(table.id))

    def _refund_rows(self) -> list[Refund]:
        return [row for job_id in self.jobs for row in self._refunds(job_id)]

    def _open_sessions(self) -> list[Any]:
        return [session for session in self.books.sessions.values() if session.status == "open"]

    def _refundable(self) -> list[Charge]:
        return [one for one in self.books.charges.values() if one.left > 0 and not one.charged_back]

    def _undisputed(self) -> list[Charge]:
        return [one for one in self.books.charges.values() if one.dispute is None and one.left > 0]

    def _open_disputes(self) -> list[Charge]:
        return [one for one in self.books.charges.values() if one.dispute and not one.dispute.is_closed]

    def _waiting_events(self) -> list[str]:
        events = self.app.tables.events
        rows = events.select(events.id).where(events.state.in_(("received", "parked"))).order_by(events.id)
        return [row.id for row in rows]

    def _due(self, job_id: str | None = None) -> list[str]:
        """Effects that have to do with money, and are due; of one job and its refunds if named."""
        effects, refunds = self.app.tables.effects, self.app.job_tables.refunds
        due = (effects.queue == PAYMENTS) & (effects.state == "due") & (effects.due_at <= self.shop.clock.now())
        if job_id is not None:
            mine = refunds.select(refunds.refund_id).where(refunds.job_id == job_id)
            due &= (effects.subject_id == job_id) | effects.subject_id.in_(mine)
        return [row.id for row in effects.select(effects.id).where(due).order_by(effects.id)]

    # -- doing --

    def _receive(self, event: Event, *, handled: bool) -> None:
        kept = json.dumps(reduce_stripe_event(event.body()))
        receipt = self.app.inbox.receive("stripe", event.id, event.kind, kept)
        self.told.append(event)
        if handled:
            self.app.inbox.handle(receipt.id)

    def _work(self, effect_id: str) -> None:
        self.app.performer.perform(effect_id)

    def _work_all(self) -> None:
        for _ in range(60):
            while self.books.events:
                self._receive(self.books.events.pop(0), handled=True)
            todo = self._due()
            events = [due.id for due in self.app.inbox.due(self.shop.clock.now(), 100)]
            for effect_id in todo:
                self._work(effect_id)
            for event_id in events:
                self.app.inbox.handle(event_id)
            if not (todo or events or self.books.events):
                return
        raise AssertionError("it does not end")

    def _try(self, workflow: str, key: str, trigger: str, *, actor: str, facts: dict[str, Any]) -> None:
        """Fire what may well be refused."""
        try:
            self.app.engine.fire(workflow, key, trigger, actor=actor, reason="made up", facts=facts)
        except SmiError:
            return


