"""Owns a shop whose clock, doorbell and providers a test holds in its hands, and the check of its money.

Called by the tests of jobs, effects and intake.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from smi_workflow.app import App
from smi_workflow.effects.registry import handlers
from smi_workflow.engine.attempt import Attempt, Handler, Outcome
from smi_workflow.engine.leases import LeaseKeeper
from smi_workflow.engine.perform import Performed, Performer
from smi_workflow.engine.tables import EffectRow, EventRow
from smi_workflow.engine.unit import EVENT_ACTOR
from smi_workflow.intake import reduce_stripe_event
from smi_workflow.jobs.model import Job, Payment, Refund
from smi_workflow.jobs.tokens import is_signed_until
from smi_workflow.sandbox import Sandbox
from tests.support.apps import Rung, picture
from tests.support.desks import open_migrated, owed_to
from tests.support.engines import HandClock
from tests.support.money import assert_money_balances
from tests.support.sandbox import Site, running_sandbox, running_site, wait_until

SIZE = (20, 10)
ROUNDS_MAX = 100


@dataclass
class Sales:
    """A shop in one thread: nothing happens but what the test does. Without a sandbox no provider answers."""

    app: App
    clock: HandClock
    rung: Rung
    sandbox: Sandbox
    site: Site

    # -- the buyer --

    def order(self, *, actor: str = "buyer", idempotency_key: str | None = None, **changes: Any) -> Job:
        """Order the upscaling of a picture that the site serves."""
        self.site.files["/p.png"] = picture(*SIZE)
        wanted = {
            "image_url": f"{self.site.url}/p.png", "resolution": "4x", "image_width": SIZE[0],
            "image_height": SIZE[1], **changes,
        }  # fmt: skip
        return self.app.jobs.create_job(wanted, actor=actor, idempotency_key=idempotency_key)

    def pay(self, job: Job, email: str = "jane@example.com", **changes: Any) -> None:
        """Pay at the job's checkout; `delayed` and `amount` as the sandbox's lever knows them."""
        url = f"{self.sandbox.stripe.url}/_sandbox/stripe/sessions/{job.stripe_checkout_session_id}/pay"
        answer = requests.post(url, json={"email": email, **changes}, timeout=10)
        assert answer.status_code == 200, answer.text

    def lever(self, path: str, **body: Any) -> dict[str, Any]:
        """Pull a lever of the sandbox's Stripe, e.g. `dashboard/disputes`."""
        answer = requests.post(f"{self.sandbox.stripe.url}/_sandbox/stripe/{path}", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    # -- what providers say --

    def ledger(self) -> dict[str, Any]:
        """Stripe's own books."""
        return self.sandbox.stripe.ledger()

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Every event that Stripe has made, oldest first; of one type if named."""
        return [event for event in self.ledger()["events"] if kind in (None, event["type"])]

    def receive(self, event: Mapping[str, Any]) -> str:
        """Take one of Stripe's events in, as the webhook's route does; returns its id in the inbox."""
        payload = json.dumps(reduce_stripe_event(event))
        return self.app.inbox.receive("stripe", event["id"], event["type"], payload).id

    def deliver(self, *kinds: str) -> None:
        """Take in and handle Stripe's events; all of them unless types are named. Old ones change nothing."""
        for event in self.events():
            if not kinds or event["type"] in kinds:
                self.app.inbox.handle(self.receive(event))

    def submissions(self) -> list[dict[str, Any]]:
        """What Upsampler was given, oldest first."""
        rows: list[dict[str, Any]] = self.sandbox.upsampler.ledger()["submissions"]
        return rows

    def upscaled(self, index: int = -1) -> dict[str, Any]:
        """Wait until Upsampler has done with a submission, and return it."""
        wait_until(lambda: self.submissions()[index]["status"] in ("SUCCESS", "FAILED"))
        return self.submissions()[index]

    def receive_callback(self, submission: Mapping[str, Any], **changes: Any) -> str:
        """Take in what Upsampler posts for a submission; returns its id in the inbox."""
        told = {name: submission[name] for name in ("id", "status", "imageUrl", "creditCost", "error")} | changes
        told["effect_id"] = urlsplit(submission["webhook"]).path.split("/")[-2]
        event_id = f"{told['id']}:{told['status']}"
        return self.app.inbox.receive("upsampler", event_id, told["status"], json.dumps(told)).id

    def call_back(self, submission: Mapping[str, Any], **changes: Any) -> EventRow:
        """Take in and handle Upsampler's callback; returns the event as it is then."""
        inbox_id = self.receive_callback(submission, **changes)
        self.app.inbox.handle(inbox_id)
        return self.app.tables.events.get_by_id(inbox_id)

    # -- our own work --

    def work(self, *, hold: Collection[str] = ()) -> list[tuple[str, str]]:
        """Handle every event and perform every effect that is due now, until nothing is.

        Args:
            hold: names of effects that nobody works on for now.
        Returns: what was done, as (name, what became of it).
        """
        done: list[tuple[str, str]] = []
        for _ in range(ROUNDS_MAX):
            rows = self.due(hold)
            if not rows:
                return done
            for name, row_id in rows:
                handle = self.app.inbox.handle if name == EVENT_ACTOR else self.app.performer.perform
                done.append((name, str(handle(row_id))))
        raise AssertionError(f"it does not end: {done[-12:]}")

    def due(self, hold: Collection[str] = ()) -> list[tuple[str, str]]:
        """What waits to be done now, as (name, id)."""
        now, tables = self.clock.now(), self.app.tables
        events, effects = tables.events, tables.effects
        fresh = events.state.in_(("received", "parked")) & (events.due_at <= now)
        waiting = (effects.state == "due") & (effects.due_at <= now)
        lapsed = (effects.state == "claimed") & (effects.lease_until < now)
        owed = effects.select().where(waiting | lapsed).order_by(effects.due_at, effects.id)
        return [(EVENT_ACTOR, row.id) for row in events.select(events.id).where(fresh)] + [
            (row.name, row.id) for row in owed if row.name not in hold
        ]

    def perform(self, name: str, job_id: str | None = None) -> Performed:
        """Perform the newest effect of this name."""
        return self.app.performer.perform(self.effect(name, job_id).id)

    def advance(self, **parts: float) -> None:
        """Let time go by, for us and for the providers."""
        self.clock.advance(**parts)
        seconds = timedelta(**parts).total_seconds()
        self.sandbox.stripe.clock.advance(seconds)
        self.sandbox.upsampler.clock.advance(seconds)

    def advance_to(self, name: str, job_id: str | None = None) -> None:
        """Let time go by until an effect of this name is due."""
        wait = self.effect(name, job_id).due_at - self.clock.now()
        self.advance(seconds=max(0.0, wait.total_seconds()))

    def run_down(self, *, hold: Collection[str] = (), **limit: float) -> list[tuple[str, str]]:
        """Work through everything that falls due within this time, each at its time, providers' news included."""
        end, done = self.clock.now() + timedelta(**limit), self.work(hold=hold)
        while True:
            self.deliver()
            done += self.work(hold=hold)
            tables, now = self.app.tables, self.clock.now()
            effects, events = tables.effects, tables.events
            coming = [row.due_at for row in effects.select().where(effects.state == "due") if row.name not in hold]
            coming += [row.due_at for row in events.select().where(events.state == "parked")]
            later = [at for at in coming if now < at <= end]
            if not later:
                self.advance(seconds=(end - now).total_seconds())
                return done + self.work(hold=hold)
            self.advance(seconds=(min(later) - now).total_seconds())
            done += self.work(hold=hold)

    def performer(self, name: str, run: Callable[[Attempt, Callable[[Attempt], Outcome]], Outcome]) -> Performer:
        """A performer one of whose handlers is wrapped: `run` gets the attempt and the real handler's code."""
        known = handlers(self.app.world)
        real = known[name]
        known[name] = Handler(lambda attempt: run(attempt, real.run), real.lookup)
        return Performer(self.app.engine, known, LeaseKeeper(self.app.engine))

    def perform_late(self, name: str) -> Performed:
        """A worker does the work and loses its lease before it can say so; another one does it again meanwhile."""

        def run(attempt: Attempt, real: Callable[[Attempt], Outcome]) -> Outcome:
            outcome = real(attempt)
            self.advance(seconds=self.app.settings.lease_seconds + 1)
            self.app.performer.perform(attempt.id)
            return outcome

        return self.performer(name, run).perform(self.effect(name).id)

    def perform_and_die(self, name: str) -> None:
        """A worker does the work, and is stopped before it can say so."""

        def run(attempt: Attempt, real: Callable[[Attempt], Outcome]) -> Outcome:
            real(attempt)
            raise SystemExit

        try:
            self.performer(name, run).perform(self.effect(name).id)
        except SystemExit:
            return
        raise AssertionError(f"{name} did not get as far as the provider")

    # -- looking --

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return self.app.jobs.get_job(job_id)

    def triggers(self, job_id: str) -> list[str]:
        """What happened to a job, oldest first."""
        return [row.trigger for row in self.app.jobs.history(job_id)]

    def effects(self, name: str, subject_id: str | None = None) -> list[EffectRow]:
        """Every effect of this name, oldest first."""
        table = self.app.tables.effects
        query = table.select().where(table.name == name)
        if subject_id is not None:
            query = query.where(table.subject_id == subject_id)
        return list(query.order_by(table.created_at, table.id))

    def effect(self, name: str, subject_id: str | None = None) -> EffectRow:
        """The newest effect of this name."""
        return self.effects(name, subject_id)[-1]

    def owed(self, subject_id: str) -> dict[str, timedelta]:
        """What is still owed to a job or refund as it is now: name → due in."""
        return owed_to(self.app, self.clock, subject_id)

    def refunds(self, job_id: str) -> list[Refund]:
        """The refunds of a job, oldest first."""
        table = self.app.job_tables.refunds
        return list(table.select().where(table.job_id == job_id).order_by(table.id))

    def payments(self, job_id: str) -> list[Payment]:
        """The payments of a job, oldest first."""
        table = self.app.job_tables.payments
        return list(table.select().where(table.job_id == job_id).order_by(table.id))

    def event_rows(self) -> dict[str, tuple[str, str]]:
        """Where each event of the inbox stands: provider's id → (state, reason)."""
        return {row.event_id: (str(row.state), row.reason or "") for row in self.app.tables.events.select()}

    def mails(self, subject: str = "") -> list[dict[str, Any]]:
        """The mails sent whose subject contains this, oldest first."""
        return [mail for mail in self.sandbox.mail.ledger()["mails"] if subject in mail["subject"]]

    def balances(self, job_id: str) -> None:
        """Assert that the job's money balances, with Stripe's books as they are now."""
        assert_money_balances(self.app, job_id, self.ledger())

    # -- short cuts --

    def sold(self, **changes: Any) -> Job:
        """Ordered, paid, the payment on record: pending."""
        job = self.order(**changes)
        self.pay(job)
        self.deliver()
        return self.job(job.job_id)

    def processing(self, **changes: Any) -> Job:
        """Handed to Upsampler."""
        job = self.sold(**changes)
        self.perform("submit_upscale", job.job_id)
        return self.job(job.job_id)

    def completed(self, **changes: Any) -> Job:
        """Stored, and the buyer told."""
        job = self.processing(**changes)
        self.call_back(self.upscaled())
        self.work()
        done = self.job(job.job_id)
        assert done.status == "completed", self.triggers(job.job_id)
        return done

    def failed(self, code: str = "outage") -> Job:
        """Paid and failed; the refund is due after the delay."""
        job = self.sold()
        self.app.jobs.fire(job.job_id, "fail", actor="system", reason="a test", facts={"code": code})
        return self.job(job.job_id)


class SignedShelf(dict[str, bytes]):
    """The site's files, and behind the signed links our copies of sources, as the downloads process has them."""

    def __init__(self, app: App, clock: HandClock) -> None:
        super().__init__()
        self._app = app
        self._clock = clock

    def get(self, path: str, default: Any = None) -> Any:
        """A file by its path."""
        parts = path.split("/")
        if len(parts) != 4 or parts[1] != "source":
            return super().get(path, default)
        keys = self._app.settings.secret_keys
        if not is_signed_until(keys, parts[3], self._clock.now(), "source", parts[2]):
            return default
        try:
            return self._app.storage.path(self._app.jobs.get_job(parts[2]).source_file).read_bytes()
        finally:
            self._app.database.close()


@dataclass
class Providers:
    """A sandbox and a site that several tests use one after the other."""

    sandbox: Sandbox
    site: Site

    def forget(self) -> None:
        """Be as new: no object, no mail, no fault, and the time is the machine's."""
        stripe, upsampler, mail = self.sandbox.stripe, self.sandbox.upsampler, self.sandbox.mail
        for server in (stripe, upsampler, mail):
            server.faults.clear()
        for clock in (stripe.clock, upsampler.clock):
            clock._offset_seconds = 0.0
        with stripe.book.turn():
            for table in stripe.book.tables.values():
                table.clear()
            stripe.book.extras.clear()
            stripe.book._due.clear()
        with upsampler.workshop.lock:
            upsampler.workshop.submissions.clear()
        mail.mails._mails.clear()
        self.site.received.clear()


@contextmanager
def running_providers(folder: Path) -> Iterator[Providers]:
    """Start them once for many tests: that takes as long as a sale."""
    with running_sandbox(folder) as sandbox, running_site() as site:
        yield Providers(sandbox, site)


@contextmanager
def open_sales(database_url: str, folder: Path, providers: Providers, **settings: Any) -> Iterator[Sales]:
    """A shop with providers that know nothing yet.

    Args:
        settings: fields of Settings.
    """
    providers.forget()
    sandbox, site = providers.sandbox, providers.site
    clock, rung = HandClock(datetime.now(UTC)), Rung()
    fields = {"downloads_url": site.url, "admin_email": "owner@example.com", **settings}
    app = open_migrated(folder, sandbox, rung, clock, database_url, fields)
    site.files = SignedShelf(app, clock)
    try:
        yield Sales(app, clock, rung, sandbox, site)
    finally:
        app.close()
