"""Owns the lives of jobs that a large database is made of: each happens once, for real, against the sandbox.

Called by million.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import requests

from tests.support.sales import Sales, open_sales, running_providers

# Live ones are dated ahead, so that nothing of theirs falls due while somebody measures.
AHEAD = timedelta(hours=2)
DAY_AND_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")


@dataclass(frozen=True, slots=True)
class Life:
    """One way that a sale may go.

    Attributes:
        share: of all jobs, in thousandths.
        live: it has not ended: every copy of it is of today.
    """

    name: str
    share: float
    happen: Callable[[Sales], object]
    live: bool = False


def _delivered(sales: Sales) -> str:
    job = sales.completed()
    sales.run_down(hours=30)
    return job.job_id


def _abandoned(sales: Sales) -> None:
    sales.order()
    sales.run_down(hours=60)


def _declined_first(sales: Sales) -> None:
    job = sales.order()
    requests.post(f"{job.checkout_url}/decline", timeout=10)
    sales.deliver()
    sales.pay(job)
    sales.deliver()
    sales.perform("submit_upscale", job.job_id)
    sales.call_back(sales.upscaled())
    sales.run_down(hours=30)


def _refunded_by_machine(sales: Sales) -> None:
    sales.failed()
    sales.run_down(hours=80)


def _refunded_in_part(sales: Sales) -> None:
    job_id = _delivered(sales)
    sales.app.jobs.fire(job_id, "refund", actor="admin:jane", reason="goodwill", facts={"amount_cents": 20})
    sales.run_down(hours=80)


def _refunded_in_full(sales: Sales) -> None:
    job_id = _delivered(sales)
    sales.app.jobs.fire(job_id, "refund", actor="admin:jane", reason="the buyer is unhappy")
    sales.run_down(hours=80)


def _refunded_at_stripe(sales: Sales) -> None:
    job = sales.job(_delivered(sales))
    sales.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id)
    sales.deliver()
    sales.run_down(hours=80)


def _charged_back(sales: Sales) -> None:
    job = sales.job(_delivered(sales))
    sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id)
    sales.deliver()
    sales.run_down(hours=80)


def _paid_wrongly(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job, amount=100)
    sales.deliver()
    sales.run_down(hours=90)


def _retried(sales: Sales) -> None:
    job = sales.failed()
    sales.work()
    sales.app.jobs.fire(job.job_id, "retry", actor="admin:jane", reason="the outage is over")
    sales.perform("submit_upscale", job.job_id)
    sales.call_back(sales.upscaled())
    sales.run_down(hours=30)


def _overridden(sales: Sales) -> None:
    job_id = _delivered(sales)
    sales.app.jobs.fire(
        job_id, "override", actor="admin:jane", reason="the file is not what was ordered",
        facts={"target": "failed", "effects": True},
    )  # fmt: skip
    sales.run_down(hours=80)


def _erased(sales: Sales) -> None:
    job_id = _delivered(sales)
    sales.app.jobs.fire(job_id, "erase", actor="admin:jane", reason="the buyer asked for it")
    sales.run_down(hours=1)


def _waits_for_payment(sales: Sales) -> None:
    sales.order()


def _is_paid(sales: Sales) -> None:
    job = sales.sold()
    effects = sales.app.tables.effects
    # Upsampler was away: the next attempt is not due yet.
    effects.update(
        due_at=sales.clock.now() + timedelta(minutes=8), attempts=5, first_attempt_at=sales.clock.now()
    ).where((effects.subject_id == job.job_id) & (effects.name == "submit_upscale")).execute()


def _is_upscaled(sales: Sales) -> None:
    sales.processing()


def _can_be_downloaded(sales: Sales) -> None:
    sales.completed()


def _waits_for_its_refund(sales: Sales) -> None:
    sales.failed()
    sales.work()


LIVES: tuple[Life, ...] = (
    Life("abandoned", 540, _abandoned),
    Life("delivered", 375, _delivered),
    Life("declined_first", 30, _declined_first),
    Life("refunded_by_machine", 20, _refunded_by_machine),
    Life("refunded_in_part", 8, _refunded_in_part),
    Life("refunded_in_full", 4, _refunded_in_full),
    Life("refunded_at_stripe", 3, _refunded_at_stripe),
    Life("charged_back", 2, _charged_back),
    Life("paid_wrongly", 1, _paid_wrongly),
    Life("retried", 5, _retried),
    Life("overridden", 1, _overridden),
    Life("erased", 5, _erased),
    Life("waits_for_payment", 3, _waits_for_payment, live=True),
    Life("is_paid", 0.5, _is_paid, live=True),
    Life("is_upscaled", 0.5, _is_upscaled, live=True),
    Life("can_be_downloaded", 1.5, _can_be_downloaded, live=True),
    Life("waits_for_its_refund", 0.5, _waits_for_its_refund, live=True),
)

Rows = Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Lived:
    """What one life left behind: the rows of each table, as the database keeps them, and the files."""

    life: Life
    rows: Rows
    folder: Path

    @cached_property
    def began(self) -> str:
        """The day of its first moment."""
        first: str = min(DAY_AND_TIME.findall(json.dumps(self.rows, default=str)))
        return first[:10]


@contextmanager
def lived(folder: Path) -> Iterator[list[Lived]]:
    """Let every life happen once; the files stay while this is open."""
    found = []
    with running_providers(folder) as providers:
        for life in LIVES:
            home = folder / life.name
            home.mkdir()
            with open_sales(f"sqlite:///{home / 'one.sqlite3'}", home, providers) as sales:
                if life.live:
                    sales.advance(seconds=AHEAD.total_seconds())
                life.happen(sales)
                found.append(Lived(life, _rows(sales), home / "files"))
    yield found


def _rows(sales: Sales) -> Rows:
    app = sales.app
    models = [*app.tables.all(), app.job_tables.jobs, app.job_tables.payments, app.job_tables.refunds]
    rows = {}
    for model in models:
        name = str(model._meta.table_name)
        cursor = app.database.execute_sql(f"SELECT * FROM {name}")  # type: ignore[no-untyped-call]
        columns = [item[0] for item in cursor.description]
        rows[name] = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
    return rows
