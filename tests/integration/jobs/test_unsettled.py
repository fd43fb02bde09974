"""What is not at rest is found page by page, by an index, however much is at rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from peewee import MySQLDatabase

from smi_workflow.app import App
from smi_workflow.engine.database import is_sqlite
from smi_workflow.jobs import unsettled
from smi_workflow.jobs.model import Job
from smi_workflow.jobs.unsettled import Place
from tests.support.apps import open_test_app
from tests.support.desks import job_columns

START = datetime(2026, 1, 1, tzinfo=UTC)
MANY = 20_000
PAGE_OF = unsettled.page_of


@pytest.fixture
def app(database_url: str, tmp_path: Path) -> Iterator[App]:
    opened = open_test_app(tmp_path, database_url=database_url)
    yield opened
    opened.close()


def fill(app: App, states: list[str]) -> None:
    """One job a minute, in these states."""
    jobs = app.job_tables.jobs
    made = [
        {
            **job_columns(f"job-{number}"), "status": state, "created_at": START + timedelta(minutes=number),
            "updated_at": START, "stripe_checkout_session_id": f"cs_{number}", "upsampler_job_id": f"up-{number}",
            "submit_effect_id": "e", "version": 1, "visit": 1,
        }
        for number, state in enumerate(states)
    ]  # fmt: skip
    with app.database.atomic():
        for start in range(0, len(made), 500):
            jobs.insert_many(made[start : start + 500]).execute()


def ids(rows: Iterator[Job]) -> list[int]:
    return [int(row.job_id.removeprefix("job-")) for row in rows]


def test_all_are_seen_once_in_order_and_gone_on_behind_any_of_them(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsettled, "PAGE", 3)
    fill(app, ["awaiting_payment", "completed", "abandoned", "processing"] * 8)
    engine = app.engine
    assert ids(unsettled.open_checkouts(engine, Place())) == list(range(0, 32, 4))
    assert ids(unsettled.open_upscales(engine, Place())) == list(range(3, 32, 4))
    since = START + timedelta(minutes=10)
    left = [number for number in range(10, 32) if number % 4]
    assert ids(unsettled.left_checkouts(engine, Place(), since)) == left
    seen = next(row for row in unsettled.open_checkouts(engine, Place()) if row.job_id == "job-12")
    behind = Place.read(str(Place.of(seen)))
    assert ids(unsettled.open_checkouts(engine, behind)) == list(range(16, 32, 4))
    # Made in the same instant, none is left out.
    app.job_tables.jobs.update(created_at=START).execute()
    assert sorted(ids(unsettled.open_checkouts(engine, Place()))) == list(range(0, 32, 4))


def test_a_job_that_moves_on_meanwhile_breaks_nothing(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsettled, "PAGE", 2)
    fill(app, ["awaiting_payment"] * 7)
    seen, jobs = [], app.job_tables.jobs
    for row in unsettled.open_checkouts(app.engine, Place()):
        seen.append(row.job_id)
        jobs.update(status="pending").where(jobs.job_id == row.job_id).execute()
    assert seen == [f"job-{number}" for number in range(7)]


@pytest.mark.parametrize("state", ["awaiting_payment", "processing", "left"])
def test_a_page_costs_what_it_holds_and_not_what_is_at_rest(app: App, state: str) -> None:
    if isinstance(app.database, MySQLDatabase):
        pytest.skip("plans are read on SQLite and PostgreSQL; MariaDB tells them in another form")
    rare = {MANY - 30: "awaiting_payment", MANY - 20: "processing", MANY - 10: "awaiting_payment"}
    fill(app, [rare.get(number, ("completed", "abandoned")[number % 2]) for number in range(MANY)])
    app.database.execute_sql("ANALYZE")  # type: ignore[no-untyped-call]
    asked: list[Any] = []

    def page_of(*arguments: Any) -> Any:
        asked.append(PAGE_OF(*arguments))
        return asked[-1]

    lately = START + timedelta(minutes=MANY - 1000)
    with patch.object(unsettled, "page_of", page_of):
        if state == "left":
            next(unsettled.left_checkouts(app.engine, Place(), lately))
        elif state == "processing":
            next(unsettled.open_upscales(app.engine, Place()))
        else:
            next(unsettled.open_checkouts(app.engine, Place()))
    plan = explained(app, asked[0])
    assert ("jobs_created_at" if state == "left" else "jobs_status") in plan, plan
    assert "SCAN" not in plan.replace("Index Scan", ""), plan
    assert "Seq Scan" not in plan, plan


def explained(app: App, query: Any) -> str:
    """How the database would go about it."""
    sql, values = query.sql()
    how = "EXPLAIN QUERY PLAN " if is_sqlite(app.database) else "EXPLAIN "
    rows = app.database.execute_sql(how + sql, values).fetchall()  # type: ignore[no-untyped-call]
    return json.dumps([list(map(str, row)) for row in rows])
