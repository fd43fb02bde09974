"""Owns a shop in memory that every example finds as it was: jobs in every state, nobody outside. Called by tests.

No provider is there: whatever is fetched or asked is refused at once, so that only reading is tested.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from flask import Flask

from smi_workflow.app import MIGRATIONS, App, reach_outside
from smi_workflow.engine.migrate import migrate
from smi_workflow.errors import ServiceRefused
from smi_workflow.integrations.fetching import FetchPolicy
from smi_workflow.jobs.model import JobStatus
from smi_workflow.web.site import create_app
from tests.support.apps import Rung, finished_job, picture, test_settings
from tests.support.desks import Desk
from tests.support.engines import HandClock

REFUNDS = ("refund-1", "refund-2")
_open: list[Shop] = []


@dataclass
class Shop:
    """An App on a database in memory, its site, and the ids that lead somewhere."""

    app: App
    site: Flask
    job_ids: tuple[str, ...]
    refund_ids: tuple[str, ...]
    token: str
    folder: Path
    template: sqlite3.Connection

    def reset(self) -> None:
        """Forget what an example has left."""
        self.template.backup(self.connection)

    @property
    def connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection = self.app.database.connection()  # type: ignore[no-untyped-call]
        return found


@cache
def shop() -> Shop:
    """The one shop of this process."""
    folder = Path(tempfile.mkdtemp(prefix="smi-fuzz-"))
    settings = test_settings(folder, database_url="sqlite:///:memory:", admin_email="owner@example.com")
    real = reach_outside(settings)
    outside = replace(real, fetch=nothing_there)
    clock = HandClock()
    app = App(settings, ring=Rung(), clock=clock, outside=outside)
    migrate(app.database, MIGRATIONS, prefix=settings.table_prefix)
    desk = Desk(app, clock, Rung())
    job_ids = [desk.put(status) for status in JobStatus]
    job_ids.append(desk.start())
    _, token = finished_job(
        app, picture(8, 8), job_id="job-with-a-file", stripe_payment_intent_id="pi-job-with-a-file"
    )
    refunds = app.job_tables.refunds
    for number, job_id in enumerate(job_ids[3:5], 1):
        app.jobs.fire(job_id, "refund", actor="admin:jane", reason="asked", facts={"amount_cents": 100})
        # Its id is made up anew each time: this one can be named in advance.
        refunds.update(refund_id=f"refund-{number}").where(refunds.job_id == job_id).execute()
    template = sqlite3.connect(":memory:", check_same_thread=False)
    made = Shop(
        app,
        create_app(app),
        (*job_ids, "job-with-a-file"),
        REFUNDS,
        token,
        folder,
        template,
    )
    made.connection.backup(template)
    _open.append(made)
    return made


def close_shop() -> None:
    """Close what was opened, and remove its files."""
    while _open:
        made = _open.pop()
        made.app.close()
        made.template.close()
        shutil.rmtree(made.folder)
    shop.cache_clear()


def nothing_there(url: str, into: BinaryIO, policy: FetchPolicy, *, service: str = "source") -> Any:
    """A fetch that finds nothing, wherever it is sent."""
    raise ServiceRefused(service, "there is nothing", code="not_found")


class _Faults(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def no_faults() -> Iterator[None]:
    """Nothing inside may end as a fault of ours: those are caught where they happen, and logged with a trace."""
    handler = _Faults()
    log = logging.getLogger("smi_workflow")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
    for record in handler.records:
        if record.exc_info and record.exc_info[1] is not None:
            raise AssertionError(f"a fault of ours: {record.getMessage()}") from record.exc_info[1]
        assert "database failed" not in record.getMessage(), record.getMessage()
