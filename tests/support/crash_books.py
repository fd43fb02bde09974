"""Owns the books of one sale after its end: everybody's, in words without ids and times.

Called by crash_sales.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default as default_policy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from smi_workflow.app import App
from smi_workflow.engine.tables import EventState
from smi_workflow.jobs.model import Job
from smi_workflow.sandbox import Sandbox
from smi_workflow.sandbox.smtp import KeptMail
from smi_workflow.sandbox.upsampler_work import Submission
from tests.support.receivers import Receiver

# What a job's row must say in the end, word for word; of all its other columns, whether they say anything.
SAME_COLUMNS = (
    "status", "payment_status", "amount_charged", "amount_cost", "credits_used", "refund_amount", "email_sent",
    "email", "amount_due_cents", "paid_cents", "refunding_cents", "refunded_cents", "disputed_cents",
    "token_generation", "overridden", "failure_code", "parked_events", "version", "visit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mark:
    """How much there was of everything before a sale began: what came later is the sale's."""

    at: datetime
    counts: Mapping[str, int]
    files: frozenset[Path]
    events: frozenset[str]

    @classmethod
    def of(cls, app: App, sandbox: Sandbox) -> Mark:
        """Now."""
        counts = {name: len(rows) for name, rows in sandbox.stripe.book.tables.items()}
        counts["submissions"] = len(sandbox.upsampler.workshop.submissions)
        counts["mails"] = len(sandbox.mail.mails.all())
        known = app.tables.events.select(app.tables.events.id)
        return cls(datetime.now(UTC), counts, frozenset(_files(app)), frozenset(row.id for row in known))

    def stripe(self, sandbox: Sandbox, table: str) -> list[dict[str, Any]]:
        """Stripe's new objects of one kind."""
        return list(sandbox.stripe.book.tables[table].values())[self.counts[table] :]

    def submissions(self, sandbox: Sandbox) -> list[Submission]:
        """Upsampler's new ones."""
        return list(sandbox.upsampler.workshop.submissions.values())[self.counts["submissions"] :]

    def mails(self, sandbox: Sandbox) -> list[KeptMail]:
        """The new mails."""
        return sandbox.mail.mails.all()[self.counts["mails"] :]


def plain_session() -> requests.Session:
    """A client that does not look at the environment, which pytest changes between tests under our threads."""
    session = requests.Session()
    session.trust_env = False
    return session


def books_of(app: App, sandbox: Sandbox, receiver: Receiver, job_id: str, mark: Mark) -> Counter[str]:
    """One line for each thing that there is, counted."""
    job = app.jobs.get_job(job_id)
    lines = [
        *_stripe(sandbox, mark), *_upsampler(sandbox, mark), *_mails(app, sandbox, job, mark), *_rows(app, job),
        *_history(app, job), *_queue(app, mark), *_kept_files(app, job, mark),
        *_hooks(app, receiver, job_id),
    ]  # fmt: skip
    return Counter(line.replace(job_id, "<job>") for line in lines)


def _stripe(sandbox: Sandbox, mark: Mark) -> Iterator[str]:
    for table, columns in {
        "sessions": ("status", "payment_status", "amount_total", "currency", "client_reference_id"),
        "intents": ("status", "amount", "amount_received", "currency"),
        "charges": ("status", "amount", "amount_refunded", "refunded", "disputed"),
        "refunds": ("status", "amount", "currency"),
    }.items():
        for thing in mark.stripe(sandbox, table):
            yield f"stripe {table}: " + ", ".join(f"{name} {thing.get(name)}" for name in columns)


def _upsampler(sandbox: Sandbox, mark: Mark) -> Iterator[str]:
    for one in mark.submissions(sandbox):
        yield f"upsampler submission: {one.status}, factor {one.factor:g}, size {one.output_size}"


def _mails(app: App, sandbox: Sandbox, job: Job, mark: Mark) -> Iterator[str]:
    letters: set[tuple[str, str]] = set()
    links: set[str] = set()
    for mail in mark.mails(sandbox):
        yield f"mail to {', '.join(mail.recipients)}: {mail.subject}"
        letters.add((mail.message_id, f"letter to {', '.join(mail.recipients)}: {mail.subject}"))
        links |= {link for link in mail.links if "/download/" in urlsplit(link).path}
        if job.job_id not in _text_of(mail.path):
            yield f"mail about another job: {mail.subject}"
    # However often a mail goes out: it is the same letter, with the same link in it.
    yield from (letter for _, letter in letters)
    for link in links:
        with plain_session() as http:
            answer = http.get(link, timeout=30)
        is_stored = job.upscaled_file_path is not None and answer.content == _content(app, job.upscaled_file_path)
        yield f"link: answers {answer.status_code}{', the stored file' if is_stored else ''}"


def _places(app: App, job_id: str) -> dict[int, int]:
    """Sequence → place among the transitions that come in one order; a charge is told of at any moment."""
    places: dict[int, int] = {}
    for row in app.jobs.history(job_id):
        places[row.sequence] = max(places.values(), default=0) + (row.trigger != "charge_noted")
    return places


def _hooks(app: App, receiver: Receiver, job_id: str) -> Iterator[str]:
    """What a receiver that dedupes by id has heard; each message must be signed, and the same each time."""
    places = _places(app, job_id)
    heard = {(message.id, message.body): message.verified() for message in receiver.messages}
    for content in heard.values():
        if content["data"]["job_id"] == job_id:
            place = places[content["data"]["sequence"]]
            yield f"hook: {content['type']}, transition {place}, {content['data']['status']}"


def _rows(app: App, job: Job) -> Iterator[str]:
    for name, value in sorted(job.__data__.items()):
        if name == "visit":
            yield f"job: visit {_places(app, job.job_id)[value]}"
        elif name in SAME_COLUMNS:
            yield f"job: {name} {value}"
        else:
            yield f"job: {name} {'is unset' if value in (None, '') else 'is set'}"
    refunds, payments = app.job_tables.refunds, app.job_tables.payments
    for refund in refunds.select().where(refunds.job_id == job.job_id):
        known = "on record" if refund.stripe_refund_id else "unknown"
        yield f"refund: {refund.state} {refund.cents} {refund.role}, its id at Stripe {known}"
    for payment in payments.select().where(payments.job_id == job.job_id):
        yield f"payment: {payment.cents} {payment.currency} {payment.role}, refunded {payment.refunded_cents}"


def _subjects(app: App, job: Job) -> Iterator[tuple[str, str]]:
    yield "job", job.job_id
    refunds = app.job_tables.refunds
    for refund in refunds.select().where(refunds.job_id == job.job_id):
        yield "refund", refund.refund_id


def _history(app: App, job: Job) -> Iterator[str]:
    effects = app.tables.effects
    for workflow, key in _subjects(app, job):
        rows = app.engine.history(workflow, key)
        for row in rows:
            # Which state the charge's news finds the job in is a matter of milliseconds, and all the same.
            way = "anywhere" if row.trigger == "charge_noted" else f"{row.from_state} > {row.to_state}"
            yield f"history of {workflow}: {row.trigger} {way} by {row.actor}"
        if [row.sequence for row in rows] != list(range(1, len(rows) + 1)):
            yield f"history of {workflow}: has gaps"
        for effect in effects.select().where((effects.workflow == workflow) & (effects.subject_id == key)):
            yield f"effect of {workflow}: {effect.name} {effect.state}"


def _queue(app: App, mark: Mark) -> Iterator[str]:
    for event in app.tables.events.select():
        if event.id not in mark.events:
            # Several may tell the same; which of them is first is chance, and history shows what was applied.
            is_settled = event.state in (EventState.APPLIED, EventState.IGNORED)
            yield f"event: {event.provider} {event.kind} {'settled' if is_settled else event.state}"


def _kept_files(app: App, job: Job, mark: Mark) -> Iterator[str]:
    owned = {app.storage.path(job.source_file): "the source"}
    if job.upscaled_file_path:
        owned[app.storage.path(job.upscaled_file_path)] = "the result"
    for path in owned:
        if not path.exists():
            yield f"file: {owned[path]} is missing"
    for path in _files(app) - mark.files:
        what = "unfinished" if ".incoming" in path.parts else "of nobody"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path in owned else ""
        yield f"file: {owned.get(path, what)} {digest}".rstrip()


def _files(app: App) -> set[Path]:
    root = app.storage.path("any").parent
    return {path for path in root.rglob("*") if path.is_file()}


def _content(app: App, name: str) -> bytes:
    return app.storage.path(name).read_bytes()


def _text_of(path: Path) -> str:
    body = message_from_bytes(path.read_bytes(), policy=default_policy).get_body(("plain",))
    return str(body.get_content()) if body is not None else ""
