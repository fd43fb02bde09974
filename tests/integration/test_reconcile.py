"""What was missed is found again: a week without webhooks, runs at once, crashes, rate limits."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from smi_workflow.effects.missed import QUESTIONS
from smi_workflow.effects.reconcile import Reconciler
from smi_workflow.engine import points
from smi_workflow.engine.perform import Performed
from smi_workflow.engine.points import Point
from tests.support.desks import at_once
from tests.support.engines import HandClock
from tests.support.missed import EXPECTED, live_a_lost_week, report_of, run_now
from tests.support.sales import Providers, Sales, open_sales, running_providers


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    """One sandbox for all tests of this file."""
    with running_providers(tmp_path_factory.mktemp("providers")) as running:
        yield running


@pytest.fixture
def sales_everywhere(database_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop, once on each kind of database."""
    with open_sales(database_url, tmp_path, providers) as opened:
        yield opened


@pytest.fixture
def sales(sqlite_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop on SQLite."""
    with open_sales(sqlite_url, tmp_path, providers) as opened:
        yield opened


def effect_of(sales: Sales) -> str:
    """The effect of the run that has begun."""
    return sales.effect("run_schedule", "reconcile").id


def test_an_endpoint_that_was_away_for_a_week_loses_nothing(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    week = live_a_lost_week(sales)
    assert run_now(sales) is Performed.DONE
    week.is_right()
    first = report_of(sales)
    repaired = [line for line in first.lines if line.became == "applied" and line.reason != "charge_noted"]
    assert len(repaired) == sum(len(triggers) for triggers in EXPECTED.values())
    assert (first.total().parked, first.total().for_person, first.total().unanswered) == (0, 0, 0)
    assert set(first.tallies) == set(QUESTIONS)

    sales.advance(minutes=5)
    assert run_now(sales) is Performed.DONE
    week.is_right()
    second = report_of(sales)
    assert second.total().asked > 0
    assert (second.total().found, second.lines) == (0, [])

    # And when the webhooks come after all, they change nothing.
    sales.deliver()
    week.is_right()


def test_what_stripe_has_no_events_of_any_more_is_found_by_asking_for_the_objects(sales: Sales) -> None:
    week = live_a_lost_week(sales)
    with sales.sandbox.stripe.book.turn():
        sales.sandbox.stripe.book.tables["events"].clear()
    assert run_now(sales) is Performed.DONE
    # A card that was declined, and that a debit was under way, left no trace but the event.
    week.is_right({
        "declined": ["abandon"], "debit_settled": ["payment_received"], "debit_failed": ["payment_failed"],
        "disputed": ["dispute_opened"],
    })  # fmt: skip
    tallies = report_of(sales).tallies
    found = {name: tally.repaired for name, tally in tallies.items() if tally.found}
    assert found == {"upscales": 2, "checkouts": 6, "refunds": 2, "disputes": 1}
    sales.advance(minutes=5)
    run_now(sales)
    assert report_of(sales).total().found == 0


def test_a_dry_run_tells_the_same_and_changes_nothing(sales: Sales) -> None:
    live_a_lost_week(sales)
    before = contents(sales)
    dry = Reconciler(sales.app.world, dry=True)
    foretold = dry.begin(dry.remembered())
    assert dry.go_on(foretold)
    assert contents(sales) == before
    run_now(sales)
    real = report_of(sales)
    assert {line.event for line in foretold.lines} >= {line.event for line in real.lines}
    # Told one by one, nothing builds upon anything; what comes first in each sale is foretold rightly.
    assert {(line.event, line.reason) for line in foretold.lines} >= {
        (line.event, line.reason) for line in real.lines if line.reason in ("abandon", "upscale_delivered", "fail")
    }


def test_runs_at_once_do_no_harm(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    week = live_a_lost_week(sales)
    reconciler = Reconciler(sales.app.world)

    def reconcile() -> bool:
        return reconciler.go_on(reconciler.begin(None))

    outcomes = at_once(sales.app, reconcile, reconcile, lambda: run_now(sales))
    assert outcomes[:2] == [True, True], outcomes
    assert outcomes[2] is Performed.DONE
    # What lost a race was left to the workers.
    for name, row_id in sales.due():
        if name == "handle_event":
            sales.app.inbox.handle(row_id)
    week.is_right()


# -- crashes ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """kill -9: from then on nothing that the process does comes to anything."""


class Killer:
    """Kills at a certain passing of a certain point."""

    def __init__(self, point: Point, number: int) -> None:
        self._point = point
        self._left = number
        self.passed: Counter[Point] = Counter()
        self.is_dead = False

    def __call__(self, point: Point) -> None:
        self.passed[point] += 1
        if point is self._point:
            self._left -= 1
            self.is_dead = self.is_dead or self._left == 0
        if self.is_dead:
            raise Killed


def test_a_run_that_is_killed_anywhere_is_taken_up_where_it_stood(sales: Sales, tmp_path: Path) -> None:
    week = live_a_lost_week(sales)
    kept = tmp_path / "before.sqlite3"
    with closing(sqlite3.connect(sales.app.settings.database_url.removeprefix("sqlite:///"))) as file:
        file.execute("VACUUM INTO ?", (str(kept),))
    time = sales.clock.time
    probe = Killer(Point.CALL_READY, 0)
    with points.watching(probe), patch.object(HandClock, "now", ticking(7)):
        while run_on(sales) is Performed.AGAIN:
            continue
    week.is_right()
    assert probe.passed[Point.CLAIMED] > 3, "it was to be cut into slices"
    deaths = [
        (point, number)
        for point in (
            Point.CALL_ANSWERED, Point.COMMITTED, Point.EVENT_SETTLED, Point.EVENT_READ, Point.ROW_WRITTEN,
            Point.EFFECT_SETTLED, Point.HANDLED, Point.CLAIMED,
        )
        for number in sorted({1, 2, probe.passed[point] // 2, probe.passed[point]} - {0})
    ]  # fmt: skip
    killed = 0
    for point, number in deaths:
        go_back(sales, kept)
        sales.clock.time = time
        killer = Killer(point, number)
        # How many slices it takes depends on how often the keeper of leases looks at the clock.
        with suppress(Killed), points.watching(killer), patch.object(HandClock, "now", ticking(7)):
            while run_on(sales) is Performed.AGAIN:
                continue
        killed += killer.is_dead
        sales.clock.advance(seconds=sales.app.settings.lease_seconds + 1)
        while run_on(sales) is Performed.AGAIN:
            continue
        assert sales.app.engine.read("schedule", "reconcile").succeeded_at is not None
        settle_events(sales)
        week.is_right(in_any_order=True)
    assert killed > 20


def ticking(seconds: float) -> Any:
    """A clock that goes on whenever somebody looks at it."""

    def now(self: HandClock) -> Any:
        self.time += timedelta(seconds=seconds)
        return self.time

    return now


def run_on(sales: Sales) -> Performed:
    """Begin the run, or take it up."""
    if sales.app.engine.read("schedule", "reconcile").state == "waiting":
        done = sales.effects("run_schedule", "reconcile")
        return Performed.DONE if done else run_now(sales)
    sales.clock.advance(seconds=30)
    return sales.app.performer.perform(effect_of(sales))


def settle_events(sales: Sales) -> None:
    """What was taken in, and not handled any more, is for the workers."""
    for name, row_id in sales.due():
        if name == "handle_event":
            sales.app.inbox.handle(row_id)


def go_back(sales: Sales, kept: Path) -> None:
    """The database as it was kept."""
    sales.app.database.close()
    path = Path(sales.app.settings.database_url.removeprefix("sqlite:///"))
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    path.write_bytes(kept.read_bytes())


# -- providers that do not answer ---------------------------------------------------------------------------------


def test_a_rate_limit_is_waited_for_and_the_run_goes_on_where_it_stood(sales: Sales) -> None:
    week = live_a_lost_week(sales)
    limit = {"kind": "status", "status": 429, "headers": {"Retry-After": "40"}}
    sales.sandbox.stripe.faults.add({"path": "/v1/refunds"}, limit)
    assert run_now(sales) is Performed.AGAIN
    row = sales.app.engine.read("schedule", "reconcile")
    assert json.loads(row.progress)["question"] == "refunds"
    effect = sales.effect("run_schedule", "reconcile")
    assert effect.due_at - sales.clock.now() == timedelta(seconds=40)
    assert effect.attempts == 0
    sales.advance(seconds=40)
    with patch.object(type(sales.app.stripe), "list_events", side_effect=AssertionError("told already")):
        assert sales.app.performer.perform(effect.id) is Performed.DONE
    week.is_right()
    assert report_of(sales).tallies["events"].asked > 0


def test_a_provider_that_is_away_fails_the_run_tells_the_admin_once_and_stops_no_other(sales: Sales) -> None:
    week = live_a_lost_week(sales)
    sales.sandbox.stripe.faults.add({"path": "/v1/"}, {"kind": "status", "status": 503}, times=None)
    sales.sandbox.upsampler.faults.add({"path": "/"}, {"kind": "status", "status": 503}, times=None)
    run_now(sales)
    for _ in range(2):
        while sales.app.engine.read("schedule", "reconcile").state == "running":
            effect = sales.effect("run_schedule", "reconcile")
            sales.clock.time = max(sales.clock.time, effect.due_at)
            sales.app.performer.perform(effect.id)
        assert effect.attempts == effect.attempts_max - 1, "as it was before the last one"
        due = sales.effect("schedule_due", "reconcile")
        sales.clock.time = max(sales.clock.time, due.due_at)
        assert sales.app.performer.perform(due.id) is Performed.DONE
    row = sales.app.engine.read("schedule", "reconcile")
    assert (row.state, row.failures) == ("running", 2)
    assert len(sales.effects("tell_admin", "reconcile")) == 1
    assert sales.app.performer.perform(sales.effect("tell_admin", "reconcile").id) is Performed.DONE
    assert "schedule fail" in sales.mails()[-1]["subject"]
    sales.sandbox.stripe.faults.clear()
    sales.sandbox.upsampler.faults.clear()
    assert sales.app.performer.perform(effect_of(sales)) is Performed.DONE
    week.is_right()
    assert sales.app.engine.read("schedule", "reconcile").failures == 0


def test_an_object_that_cannot_be_told_keeps_nobody_from_theirs(sales: Sales) -> None:
    week = live_a_lost_week(sales)
    with sales.sandbox.stripe.book.turn():
        sales.sandbox.stripe.book.tables["events"].clear()
    session = sales.job(week.jobs["paid"]).stripe_checkout_session_id
    fault = {"kind": "status", "status": 500}
    sales.sandbox.stripe.faults.add({"path": f"/v1/checkout/sessions/{session}"}, fault, times=None)
    assert run_now(sales) is Performed.DONE
    assert report_of(sales).tallies["checkouts"].unanswered == 1
    assert sales.job(week.jobs["paid"]).status == "awaiting_payment"
    assert sales.job(week.jobs["debit_settled"]).status == "pending"
    sales.sandbox.stripe.faults.clear()
    sales.advance(minutes=5)
    run_now(sales)
    assert sales.job(week.jobs["paid"]).status == "pending"


def test_a_wrong_key_ends_the_run_at_once(sales: Sales) -> None:
    live_a_lost_week(sales)
    sales.sandbox.stripe.faults.add({"path": "/v1/"}, {"kind": "status", "status": 401}, times=None)
    assert run_now(sales) is Performed.FAILED
    row = sales.app.engine.read("schedule", "reconcile")
    assert (row.state, row.failures, row.progress) == ("waiting", 1, None)


def contents(sales: Sales) -> dict[str, list[Any]]:
    """Every row that there is."""
    tables: list[Any] = [*sales.app.tables.all(), *sales.app.job_tables.by_declaration().values()]
    return {table._meta.table_name: list(table.select().order_by(table.id).tuples()) for table in tables}

