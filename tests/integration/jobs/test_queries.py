"""Lists of jobs: what finds them, in which order, page by page, and what makes no sense. Called by pytest."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from smi_workflow.errors import InvalidInput
from smi_workflow.jobs.queries import JobFilter, find_jobs
from tests.support.desks import Desk


def test_jobs_are_found(desk: Desk) -> None:
    ids: list[str] = []
    for status in ("pending", "completed", "failed", "failed", "abandoned"):
        ids.append(desk.put(status))
        desk.clock.advance(minutes=1)
    desk.set(ids[0], email="joe@example.com")

    def found(**wanted: Any) -> list[str]:
        return [job.job_id for job in desk.app.jobs.get_jobs(**wanted)]

    assert found() == ids[::-1]
    assert found(descending=False) == ids
    assert found(limit=2) == [ids[4], ids[3]]
    assert found(status="failed") == [ids[3], ids[2]]
    assert found(status=["failed", "completed"], descending=False) == ids[1:4]
    assert found(status=[]) == []
    assert found(payment_status="paid") == ids[3::-1]
    assert found(payment_status="pending") == [ids[4]]
    assert found(email="joe@example.com") == [ids[0]]
    assert found(email="' OR 1=1 --") == []
    assert found(order_by="id", descending=False, limit=1) == [ids[0]]
    assert found(status="failed", payment_status="pending") == []


def pages(desk: Desk, **wanted: Any) -> list[str]:
    """Every job, found page by page; in each page at most two."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = desk.app.jobs.find_jobs(JobFilter(**{"limit": 2, **wanted}, after=cursor))
        assert len(page.jobs) <= 2
        found += [job.job_id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_jobs_are_found_page_by_page(desk: Desk) -> None:
    """Also those that were ordered in the same moment; and none twice while new ones arrive."""
    ids: list[str] = []
    for status in ("pending", "completed", "failed", "failed", "abandoned", "failed", "pending"):
        ids.append(desk.put(status))
        if len(ids) in (2, 6):
            desk.clock.advance(minutes=1)
    assert pages(desk) == ids[::-1]
    assert pages(desk, descending=False) == ids
    assert pages(desk, order_by="id") == ids[::-1]
    assert pages(desk, order_by="updated_at", descending=False) == ids
    failed, done = [ids[2], ids[3], ids[5]], [ids[1]]
    assert pages(desk, status="failed", descending=False) == failed
    assert pages(desk, status=["completed", "failed"], descending=False) == done + failed
    assert pages(desk, status=["failed", "completed"]) == (done + failed)[::-1]
    assert pages(desk, order_by="failed_at") == failed[::-1]
    assert pages(desk, order_by="failed_at", status=["failed", "pending"]) == failed[::-1]
    assert pages(desk, order_by="paid_at", descending=False) == [ids[0], ids[1], *failed[:2], ids[5], ids[6]]

    middle = desk.job(ids[2]).created_at
    assert pages(desk, created_from=middle) == ids[:1:-1]
    assert pages(desk, created_from=middle, descending=False) == ids[2:]
    assert pages(desk, created_before=middle) == ids[1::-1]
    assert pages(desk, created_before=desk.job(ids[6]).created_at, descending=False) == ids[:6]
    assert pages(desk, created_from=middle, created_before=desk.job(ids[6]).created_at) == ids[5:1:-1]

    first = desk.app.jobs.find_jobs(JobFilter(limit=2))
    new = desk.put("pending")
    second = desk.app.jobs.find_jobs(JobFilter(limit=7, after=first.next_cursor))
    assert [job.job_id for job in (*first.jobs, *second.jobs)] == ids[::-1]
    assert second.next_cursor is None
    assert pages(desk)[0] == new


def test_a_job_is_found_by_what_a_person_has_at_hand(desk: Desk) -> None:
    wanted, other = desk.put("pending", post_id=7, attachment_id=8), desk.put("pending", post_id=9)
    desk.set(wanted, email="joe@example.com", stripe_checkout_session_id="cs_7", stripe_payment_intent_id="pi_7")
    desk.clock.advance(minutes=1)
    later = desk.put("pending", post_id=8)
    start = desk.clock.now() - timedelta(minutes=1)

    def found(**by: Any) -> set[str]:
        return {job.job_id for job in desk.app.jobs.find_jobs(JobFilter(**by)).jobs}

    for name in (wanted, f" {wanted} ", "joe@example.com", "cs_7", "pi_7", "7"):
        assert found(search=name) == {wanted}
    assert found(search="8") == {wanted, later}
    assert found(search="8", attachment_id=8) == {wanted}
    assert found(search=str(2**80)) == found(search="joe") == found(search="'--") == set()
    assert found(post_id=9) == {other}
    assert found(attachment_id=8) == {wanted}
    assert found(created_from=start) == {wanted, other, later}
    assert found(created_from=start, created_before=start + timedelta(minutes=1)) == {wanted, other}
    assert found(created_from=start + timedelta(seconds=1)) == {later}


def test_no_listing_walks_the_whole_table(desk_sqlite: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plans, as SQLite tells them: each list is the walk of an index, and sorts next to nothing."""
    desk = desk_sqlite
    desk.put("pending")
    table, seen = desk.app.job_tables.jobs, []
    execute: Any = desk.app.database.execute_sql

    def spy(sql: str, params: Any = None) -> Any:
        if sql.startswith("SELECT") and "smi_jobs" in sql:
            seen.append("; ".join(str(row[3]) for row in execute(f"EXPLAIN QUERY PLAN {sql}", params).fetchall()))
        return execute(sql, params)

    monkeypatch.setattr(desk.app.database, "execute_sql", spy)
    cursor = None
    filters: list[dict[str, Any]] = [
        {}, {"status": ["failed", "pending"]}, {"payment_status": "paid"}, {"created_from": desk.clock.now()},
    ]  # fmt: skip
    for order_by in ("created_at", "paid_at", "completed_at", "failed_at"):
        for by in filters:
            cursor = find_jobs(table, JobFilter(order_by=order_by, **by)).next_cursor
    for name in ("job-1", "a@example.com", "7", "cs_1", "pi_1"):
        find_jobs(table, JobFilter(search=name))
    assert cursor is None
    assert len(seen) > 20
    for plan in seen:
        assert "USING INDEX" in plan or "USING INTEGER PRIMARY KEY" in plan, plan


def cursor_of(*place: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


NOON = "2026-01-01 12:00:00.000000"
CURSORS = [
    "", "x", "é", "AAAA", "=" * 10, "[" * 250, "x" * 301, cursor_of(), cursor_of("created_at", True, NOON),
    cursor_of("created_at", False, NOON, 1), cursor_of("id", True, 1, 1), cursor_of("created_at", True, 5, 1),
    cursor_of("created_at", True, None, 1), cursor_of("created_at", True, NOON, True),
    cursor_of("created_at", True, NOON, -1), cursor_of("created_at", True, NOON, 2**63),
    cursor_of("created_at", True, "0001-01-01 00:00:00", 1), cursor_of("created_at", True, NOON, "1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"status": "done"}, "status"),
        ({"status": ["failed", "lost"]}, "status"),
        ({"payment_status": "maybe"}, "payment_status"),
        ({"order_by": "email; DROP TABLE"}, "order_by"),
        ({"order_by": "_meta"}, "order_by"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": -1}, "limit"),
        ({"post_id": 2**63}, "post_id"),
        ({"attachment_id": -1}, "attachment_id"),
        ({"created_from": datetime(2026, 1, 1)}, "created_from"),
        ({"created_before": datetime(9999, 12, 31, tzinfo=UTC)}, "created_before"),
        ({"created_from": datetime(1, 1, 1, tzinfo=UTC)}, "created_from"),
        *(({"after": text}, "cursor") for text in CURSORS),
    ],
)
def test_a_search_that_makes_no_sense_names_its_field(desk_sqlite: Desk, wanted: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        desk_sqlite.app.jobs.find_jobs(JobFilter(**wanted))
    assert error.value.field == field
