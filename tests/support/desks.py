"""Owns an App of which no provider is called, and threads that start together.

Called by sales.py and the tests of jobs, effects and intake.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from peewee import SqliteDatabase

from smi_workflow.app import App
from smi_workflow.jobs.model import Job
from smi_workflow.sandbox import Sandbox
from tests.support.apps import Rung, open_test_app
from tests.support.engines import HandClock

_numbers = count(1)


@dataclass
class Desk:
    """An App of which no provider is ever called: rows, triggers and what they owe."""

    app: App
    clock: HandClock
    rung: Rung

    def start(self, **columns: Any) -> str:
        """A job in its first state; returns its id."""
        job_id = f"job-{next(_numbers)}"
        self.app.engine.start(
            "job", {**job_columns(job_id), "created_at": self.clock.now(), **columns}, actor="buyer"
        )
        return job_id

    def put(self, status: str, **columns: Any) -> str:
        """A job that is already somewhere in its life, with what is usual there; returns its id."""
        job_id = self.start()
        values = {**usual(status, self.clock.now()), **columns, "status": status}
        with_intent = values.get("stripe_payment_intent_id")
        if with_intent:
            values["stripe_payment_intent_id"] = f"{with_intent}-{job_id}"
            self.app.job_tables.payments.insert(
                payment_intent_id=values["stripe_payment_intent_id"], job_id=job_id, cents=384, currency="usd",
                livemode=False, role="sale", created_at=self.clock.now(),
            ).execute()  # fmt: skip
        self.set(job_id, **values)
        effects = self.app.tables.effects
        effects.delete().where(effects.subject_id == job_id).execute()
        return job_id

    def set(self, job_id: str, **columns: Any) -> None:
        """Change a row behind the machine's back."""
        table = self.app.job_tables.jobs
        table.update(**columns).where(table.job_id == job_id).execute()

    def fire(self, job_id: str, trigger: str, actor: str = "system", reason: str = "", **facts: Any) -> Any:
        """Fire a job; facts as keyword arguments."""
        return self.app.engine.fire("job", job_id, trigger, actor=actor, reason=reason, facts=facts)

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return self.app.jobs.get_job(job_id)

    def owed(self, subject_id: str) -> dict[str, timedelta]:
        """What is still owed to a job or refund as it is now: name → due in."""
        return owed_to(self.app, self.clock, subject_id)


def owed_to(app: App, clock: HandClock, subject_id: str) -> dict[str, timedelta]:
    """What is owed, not settled, and not owed to a visit that is over."""
    jobs, refunds, effects = app.job_tables.jobs, app.job_tables.refunds, app.tables.effects
    subject = jobs.get_or_none(jobs.job_id == subject_id) or refunds.get(refunds.refund_id == subject_id)
    live = (effects.visit == subject.visit) | effects.survives
    rows = effects.select().where(
        (effects.subject_id == subject_id) & effects.state.in_(("due", "claimed")) & live
    )
    return {row.name: row.due_at - clock.now() for row in rows}


def job_columns(job_id: str) -> dict[str, Any]:
    """What every new job has."""
    return {
        "job_id": job_id, "image_url": "https://example.com/p.png", "image_width": 20, "image_height": 10,
        "resolution": "4x", "currency": "usd", "markup_percentage": 500, "livemode": False,
        "amount_due_cents": 384, "source_file": f"sources/{job_id}.png", "email": "jane@example.com",
    }  # fmt: skip


def usual(status: str, now: datetime) -> dict[str, Any]:
    """What a row in this state usually says."""
    session = {"stripe_checkout_session_id": "cs_1", "checkout_url": "https://pay.example/cs_1"}
    paid = {
        **session, "stripe_payment_intent_id": "pi", "payment_status": "paid", "paid_cents": 384, "paid_at": now,
    }  # fmt: skip
    submitted = {"upsampler_job_id": "up-1", "submit_effect_id": "e1", "processing_started_at": now}
    stored = {
        "upscaled_file_path": "results/r.png", "completed_at": now, "token_generation": 1,
        "download_token": "0" * 64, "download_expires_at": now + timedelta(hours=24),
    }  # fmt: skip
    values: dict[str, dict[str, Any]] = {
        "awaiting_payment": session,
        "pending": paid,
        "processing": {**paid, **submitted},
        "completed": {**paid, **submitted, **stored},
        "failed": {**paid, "failed_at": now, "failure_code": "outage"},
        "abandoned": session,
    }
    return values[status]


@contextmanager
def open_desk(database_url: str, folder: Path, **settings: Any) -> Iterator[Desk]:
    """A migrated App without providers."""
    clock, rung = HandClock(), Rung()
    app = open_migrated(folder, None, rung, clock, database_url, settings)
    try:
        yield Desk(app, clock, rung)
    finally:
        app.close()


_migrated: list[bytes] = []


def open_migrated(
    folder: Path, sandbox: Sandbox | None, rung: Rung, clock: HandClock, url: str, fields: Mapping[str, Any]
) -> App:
    """A migrated App; a SQLite file is migrated once and copied from then on."""
    file = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    if file is not None and _migrated:
        file.write_bytes(_migrated[0])
    migrated = file is None or not _migrated
    app = open_test_app(folder, sandbox, ring=rung, clock=clock, migrated=migrated, database_url=url, **fields)
    if file is not None and not _migrated:
        app.database.close()
        _migrated.append(file.read_bytes())
        app.check_schema()
    if file is not None:
        # No power is cut here.
        assert isinstance(app.database, SqliteDatabase)
        app.database.pragma("synchronous", 0, permanent=True)
    return app


class Threads:
    """Threads that stay, each with its connection to the database."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool = pool
        self._count = count

    def together(self, *calls: Callable[[], Any]) -> list[Any]:
        """Run these, one in each thread, started together; returns what each returned or raised."""
        assert len(calls) == self._count
        line = threading.Barrier(self._count)

        def run(call: Callable[[], Any]) -> Any:
            line.wait()
            return call()

        futures = [self._pool.submit(run, call) for call in calls]
        return [future.exception() or future.result() for future in futures]


@contextmanager
def running_threads(app: App, count: int) -> Iterator[Threads]:
    """So many threads; their connections are closed at the end."""

    def close() -> None:
        app.stripe.close()
        app.database.close()

    with ThreadPoolExecutor(count) as pool:
        threads = Threads(pool, count)
        try:
            yield threads
        finally:
            threads.together(*[close] * count)


def at_once(app: App, *calls: Callable[[], Any]) -> list[Any]:
    """Run these in threads that start together; returns what each returned or raised."""
    with running_threads(app, len(calls)) as threads:
        return threads.together(*calls)
