"""The relay: rings whatever is due and nobody works on, once, for every queue, for ever. Called by pytest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peewee
import pytest

from smi_workflow.engine import relay as relay_module
from smi_workflow.engine.relay import Relay
from tests.support.desks import Desk, open_desk
from workers.relay import run

AGAIN = timedelta(seconds=5)


@pytest.fixture
def desk(database_url: str, tmp_path: Path) -> Iterator[Desk]:
    """Rows without providers, once on each kind of database."""
    with open_desk(database_url, tmp_path) as opened:
        yield opened


def quiet(desk: Desk) -> Relay:
    """A relay that has just started; what was rung by whoever fired is forgotten."""
    desk.rung.take()
    return Relay(desk.app.engine, desk.app.inbox, AGAIN)


def rings(desk: Desk, relay: Relay) -> list[tuple[str, str]]:
    """Sweep once; what was rung for, as (Dramatiq's actor, queue)."""
    count = relay.sweep()
    bells = desk.rung.take()
    assert count == len(bells)
    return sorted((name, queue) for _, name, queue in bells)


def effect_id(desk: Desk, name: str) -> str:
    """The id of the only effect of this name."""
    table = desk.app.tables.effects
    return str(table.get(table.name == name).id)


def test_what_was_just_owed_was_just_rung(desk: Desk) -> None:
    desk.start()
    relay = quiet(desk)
    assert rings(desk, relay) == []
    desk.clock.advance(seconds=1)
    assert rings(desk, relay) == [("create_checkout", "payments")]


def test_it_rings_again_only_after_a_while(desk: Desk) -> None:
    desk.start()
    relay = quiet(desk)
    desk.clock.advance(seconds=2)
    assert len(rings(desk, relay)) == 1
    desk.clock.advance(seconds=4.9)
    assert rings(desk, relay) == []
    desk.clock.advance(seconds=0.1)
    assert len(rings(desk, relay)) == 1
    desk.clock.advance(seconds=4.9)
    assert rings(desk, relay) == []
    # Another relay, or this one started again, knows nothing of it: two rings do no harm.
    assert len(rings(desk, Relay(desk.app.engine, desk.app.inbox, AGAIN))) == 1


def test_a_timer_rings_when_its_time_has_come(desk: Desk) -> None:
    desk.put("awaiting_payment")
    desk.fire(desk.put("awaiting_payment"), "payment_processing")
    relay = quiet(desk)
    desk.clock.advance(days=13, hours=23, minutes=59)
    assert rings(desk, relay) == []
    desk.clock.advance(minutes=1)
    assert rings(desk, relay) == [("payment_deadline", "payments")]


def test_what_is_settled_cancelled_or_claimed_is_left_alone(desk: Desk) -> None:
    job_id = desk.put("failed")
    desk.fire(job_id, "retry", "admin:jane", "go on")
    relay = quiet(desk)
    desk.clock.advance(seconds=2)
    assert rings(desk, relay) == [("submit_upscale", "upscales")]
    table = desk.app.tables.effects
    leased = {"state": "claimed", "lease_token": "t", "lease_until": desk.clock.now() + timedelta(seconds=60)}
    table.update(**leased).where(table.name == "submit_upscale").execute()
    desk.clock.advance(seconds=60)
    assert rings(desk, relay) == []
    # Its worker has died: the next one may have it.
    desk.clock.advance(seconds=1)
    assert rings(desk, relay) == [("submit_upscale", "upscales")]
    table.update(state="done").where(table.name == "submit_upscale").execute()
    desk.clock.advance(days=2)
    assert rings(desk, relay) == [("pending_deadline", "upscales")]
    desk.fire(job_id, "fail", code="outage")
    desk.rung.take()
    desk.clock.advance(seconds=10)
    assert "pending_deadline" not in [name for name, _ in rings(desk, relay)]


def test_a_retry_rings_when_it_is_due(desk: Desk) -> None:
    desk.start()
    relay = quiet(desk)
    table = desk.app.tables.effects
    later = desk.clock.now() + timedelta(seconds=30)
    table.update(due_at=later, attempts=1).where(table.name == "create_checkout").execute()
    desk.clock.advance(seconds=29)
    assert rings(desk, relay) == []
    desk.clock.advance(seconds=1)
    assert rings(desk, relay) == [("create_checkout", "payments")]


def test_events_are_rung_for_as_well(desk: Desk) -> None:
    relay = quiet(desk)
    desk.app.inbox.receive("stripe", "evt_1", "x", "{}")
    assert desk.rung.names() == ["handle_event"]
    desk.rung.take()
    assert rings(desk, relay) == []
    desk.clock.advance(seconds=1)
    assert rings(desk, relay) == [("handle_event", "events")]
    table = desk.app.tables.events
    table.update(state="parked", due_at=desk.clock.now() + timedelta(hours=1)).execute()
    desk.clock.advance(minutes=59)
    assert rings(desk, relay) == []
    desk.clock.advance(minutes=1)
    assert rings(desk, relay) == [("handle_event", "events")]
    for state in ("applied", "ignored", "needs_person"):
        table.update(state=state).execute()
        desk.clock.advance(days=1)
        assert rings(desk, relay) == []


def test_a_backlog_keeps_no_other_queue_waiting(desk: Desk) -> None:
    with patch.object(relay_module, "PAGE", 10):
        for _ in range(25):
            desk.start()
        desk.fire(desk.put("failed"), "retry", "admin:jane", "go on")
        desk.fire(desk.put("completed"), "resend", "admin:jane", "lost")
        desk.app.inbox.receive("stripe", "evt_1", "x", "{}")
        relay = quiet(desk)
        desk.clock.advance(seconds=2)
        found = rings(desk, relay)
    assert found.count(("create_checkout", "payments")) == 10
    assert {queue for _, queue in found} == {"payments", "upscales", "notices", "events"}


def test_a_backlog_is_worked_off_page_by_page(desk: Desk) -> None:
    with patch.object(relay_module, "PAGE", 10):
        for _ in range(25):
            desk.start()
        relay = quiet(desk)
        desk.clock.advance(seconds=2)
        seen: set[str] = set()
        table = desk.app.tables.effects
        for _ in range(3):
            relay.sweep()
            rung = {message_id for message_id, _, _ in desk.rung.take()}
            assert not rung & seen
            seen |= rung
            table.update(state="done").where(table.id.in_(list(rung))).execute()
        assert len(seen) == 25


def test_it_remembers_only_what_is_still_due(desk: Desk) -> None:
    relay = quiet(desk)
    for _ in range(5):
        for _ in range(20):
            desk.start()
        desk.clock.advance(seconds=2)
        relay.sweep()
        assert len(relay._rung) == 20
        desk.app.tables.effects.update(state="done").execute()
    relay.sweep()
    assert relay._rung == {}


def test_a_doorbell_that_is_broken_does_not_stop_it(desk: Desk) -> None:
    desk.start()
    relay = quiet(desk)
    desk.clock.advance(seconds=2)

    def broken(*bell: Any) -> None:
        raise ConnectionError("the broker is away")

    with patch.object(desk.app.engine, "_ring", broken):
        assert relay.sweep() == 1
    desk.clock.advance(seconds=5)
    assert rings(desk, relay) == [("create_checkout", "payments")]


@pytest.mark.parametrize("closing_fails", [False, True])
def test_it_survives_a_database_that_is_away(desk: Desk, closing_fails: bool) -> None:
    """Away for three sweeps, then back; what is due is rung for then."""
    desk.start()
    relay = quiet(desk)
    desk.clock.advance(seconds=2)
    stop, real, tries = threading.Event(), relay.sweep, 0

    def sweep() -> int:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise peewee.OperationalError("server closed the connection unexpectedly")
        stop.set()
        return real()

    def close() -> None:
        raise peewee.InterfaceError("connection already closed")

    pauses: list[float | None] = []
    with patch.object(relay, "sweep", sweep), patch.object(stop, "wait", pauses.append):
        if closing_fails:
            with patch.object(desk.app.database, "close", close):
                run(relay, desk.app.database, stop, 0.5)
        else:
            run(relay, desk.app.database, stop, 0.5)
    assert desk.rung.names() == ["create_checkout"]
    assert pauses == [2.0, 0.5, 2.0, 0.5, 2.0, 0.5, 0.5]


def test_it_reads_a_real_database_that_comes_back(postgres_url: str, tmp_path: Path) -> None:
    """PostgreSQL ends our connection under us; the sweep after the next one is as before."""
    with open_desk(postgres_url, tmp_path) as desk:
        desk.start()
        relay = quiet(desk)
        desk.clock.advance(seconds=2)
        with open_desk(postgres_url, tmp_path) as other:
            other.app.database.execute_sql(  # type: ignore[no-untyped-call]
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        stop, real = threading.Event(), relay.sweep

        def sweep() -> int:
            count = real()
            stop.set()
            return count

        with patch.object(relay, "sweep", sweep), patch.object(stop, "wait", lambda seconds: None):
            run(relay, desk.app.database, stop, 0.0)
        assert desk.rung.names() == ["create_checkout"]
