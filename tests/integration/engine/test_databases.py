"""What every database must keep the same way, and what happens when one goes away."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import peewee
import pytest

from smi_workflow.engine.clock import SystemChance, SystemClock
from smi_workflow.engine.database import open_database, read_stamp, stamp, transaction
from smi_workflow.errors import ConfigError, EngineError, TransitionConflict
from tests.support.engines import GOOD, Bench


def test_the_tests_were_run_on_mariadb(mariadb_url: str) -> None:
    """Skipped where there is no MariaDB, so that a run says so once; the wider CI run fails instead."""
    assert mariadb_url


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC),
        datetime(2026, 3, 1, 12, 0, 0, 0, tzinfo=UTC),
        datetime(2026, 10, 25, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=2))),
        datetime(2037, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
def test_instants_survive_to_the_microsecond(bench: Bench, moment: datetime) -> None:
    """Aware in, aware out, in UTC; what is not due yet by a microsecond is not due."""
    bench.clock.time = moment
    bench.start()
    row = bench.engine.history("loan", "l1")[0]
    assert row.created_at == moment
    assert row.created_at.utcoffset() == timedelta(0)
    effect = bench.effect("fetch_book")
    assert bench.engine.outbox.due("desk", moment - timedelta(microseconds=1), 10) == []
    assert bench.engine.outbox.claim(effect.id, "t", moment - timedelta(microseconds=1), timedelta(1)) is None
    assert [item.id for item in bench.engine.outbox.due("desk", moment, 10)] == [effect.id]


def test_naive_datetimes_are_refused(bench: Bench) -> None:
    """A time without a zone would mean another instant on each machine."""
    bench.start()
    with pytest.raises(ValueError, match="without a time zone"):
        stamp(datetime(2026, 3, 1))
    with pytest.raises(ValueError, match="without a time zone"):
        bench.engine.tables.effects.update(due_at=datetime(2026, 3, 1)).execute()
    bench.clock.time = datetime(2026, 3, 1)
    before = bench.dump()
    with pytest.raises(ValueError, match="without a time zone"):
        bench.fire("lend")
    assert bench.dump() == before


def test_stamps_are_read_as_they_were_written() -> None:
    moment = datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
    assert read_stamp(stamp(moment)) == moment
    assert read_stamp(moment.replace(tzinfo=None)) == moment
    assert read_stamp(None) is None
    with pytest.raises(TypeError):
        read_stamp(17)


TEXTS = [
    "Grüße 📕 — \u4e66 \U0001f9d1\u200d\U0001f4bb",
    "quote ' \" ` \\ % %s ? ; --",
    "line\nbreak\ttab",
    "",
    "x" * 70_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=["emoji", "quotes", "breaks", "empty", "long"])
def test_reasons_survive(bench: Bench, text: str) -> None:
    """Every letter of every language, and more than 64 KiB."""
    bench.start(reader=text[:20])
    bench.fire("lend", reason=text, facts={**GOOD, "shelf": text})
    row = bench.engine.history("loan", "l1")[-1]
    assert row.reason == text
    assert json.loads(row.metadata) == {"shelf": text}
    assert bench.loan().reader == text[:20]


def test_columns_come_back_as_they_were_set(bench: Bench) -> None:
    """The engine reads rows without peewee's model layer; types must be the same."""
    bench.start(blocked=True, renewals=3)
    row = bench.loan()
    assert row.__data__ == bench.loans.get(bench.loans.loan_id == "l1").__data__
    assert row.blocked is True


def test_a_key_that_is_taken_is_a_conflict(bench: Bench) -> None:
    """Two may try to create the same subject; one does."""
    bench.start()
    with pytest.raises(TransitionConflict):
        bench.start()
    assert len(bench.history()) == 1


def test_a_failed_transaction_leaves_the_connection_usable(bench: Bench) -> None:
    """On every database, after an error of ours and after one of the database."""
    bench.start()
    with pytest.raises(ZeroDivisionError), transaction(bench.database):
        raise ZeroDivisionError
    with pytest.raises(peewee.PeeweeException), transaction(bench.database):
        bench.database.execute_sql("SELECT nonsense FROM nowhere")  # type: ignore[no-untyped-call]
    assert bench.database.transaction_depth() == 0
    assert bench.fire("lend").to_state == "lent"


LOOKS: list[tuple[str, Callable[[Bench], object]]] = [
    ("read", lambda bench: bench.engine.read("loan", "l1")),
    ("history", lambda bench: bench.engine.history("loan", "l1")),
    ("due effects", lambda bench: bench.engine.outbox.due("desk", bench.clock.now(), 10)),
    ("due events", lambda bench: bench.inbox(lambda event: pytest.fail()).due(bench.clock.now(), 10)),
    ("handle", lambda bench: bench.inbox(lambda event: pytest.fail()).handle("none")),
    ("fire", lambda bench: bench.fire("waive")),
    ("perform", lambda bench: bench.performer().perform("none")),
]


@pytest.mark.parametrize("look", [look for _, look in LOOKS], ids=[name for name, _ in LOOKS])
def test_a_server_that_restarted_costs_an_idle_thread_nothing(
    postgres_url: str, opened: Callable[..., Bench], look: Callable[[Bench], object]
) -> None:
    """The dead connection is noticed before it is used: nobody gets an error for a restart that is over."""
    bench = opened(postgres_url)
    bench.start()
    bench.engine.read("loan", "l1")
    _end_all_others(postgres_url)
    look(bench)
    assert bench.fire("lend").to_state == "lent"


def test_a_connection_lost_in_the_middle_is_replaced(postgres_url: str, opened: Callable[..., Bench]) -> None:
    """It costs that transaction, and nothing else: the thread must not keep the dead connection for ever."""
    bench = opened(postgres_url)
    bench.start()
    with pytest.raises((peewee.OperationalError, peewee.InterfaceError)), transaction(bench.database):
        bench.engine.read("loan", "l1")
        _end_all_others(postgres_url)
        bench.engine.read("loan", "l1")
    assert bench.fire("lend").to_state == "lent"


@pytest.mark.server("mariadb")
def test_mariadb_that_restarted_costs_an_idle_thread_nothing(
    mariadb_url: str, opened: Callable[..., Bench]
) -> None:
    """The same over another driver."""
    bench = opened(mariadb_url)
    bench.start()
    bench.engine.read("loan", "l1")
    other = open_database(mariadb_url)
    mine = "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
    for (number,) in other.execute_sql(mine).fetchall():  # type: ignore[no-untyped-call]
        other.execute_sql(f"KILL {int(number)}")  # type: ignore[no-untyped-call]
    other.close()
    assert bench.fire("lend").to_state == "lent"


def _end_all_others(postgres_url: str) -> None:
    other = open_database(postgres_url)
    other.execute_sql(  # type: ignore[no-untyped-call]
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND datname = current_database()"
    )
    other.close()


def test_a_url_that_means_nothing_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="cannot use scheme 'oracle'"):
        open_database("oracle://x/y")


def test_the_engine_refuses_what_it_does_not_know(bench: Bench) -> None:
    with pytest.raises(EngineError, match="there is no workflow scroll"):
        bench.engine.explain("scroll", "s1")


def test_ids_sort_by_time_and_tokens_never_repeat() -> None:
    """Primary keys are written side by side; a lease's token cannot be guessed."""
    chance = SystemChance()
    ids = [chance.new_id() for _ in range(200)]
    assert {len(item) for item in ids} == {32}
    assert len(set(ids)) == len({chance.token() for _ in range(200)}) == 200
    assert [item[:12] for item in ids] == sorted(item[:12] for item in ids)
    assert all(0 <= chance.jitter() < 1 for _ in range(50))
    assert SystemClock().now().utcoffset() == timedelta(0)
