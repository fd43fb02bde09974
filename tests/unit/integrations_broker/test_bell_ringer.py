"""Owns the proof that nobody waits for the bell, and that no bell is forgotten. Called by pytest."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from dramatiq.brokers.stub import StubBroker

from smi_workflow.engine.unit import Bell
from smi_workflow.integrations import bell_ringer
from smi_workflow.integrations.bell_ringer import BellRinger
from smi_workflow.integrations.broker import Doorbell

PATIENCE_SECONDS = 20.0


class SlowDoorbell(Doorbell):
    """Hangs with the first trip until it is let go, and notes every trip."""

    def __init__(self) -> None:
        super().__init__(StubBroker(middleware=[]))
        self.trips: list[list[str]] = []
        self.entered, self.leave = threading.Event(), threading.Event()

    def ring_all(self, bells: Sequence[Bell]) -> bool:
        self.trips.append([bell.message_id for bell in bells])
        self.entered.set()
        assert self.leave.wait(PATIENCE_SECONDS)
        return True


def test_nobody_waits_and_what_waits_goes_out_together_in_order() -> None:
    doorbell = SlowDoorbell()
    ringer = BellRinger(doorbell)
    assert ringer.ring("0", "handle_event", "events")
    assert doorbell.entered.wait(PATIENCE_SECONDS)
    for number in range(1, 100):
        assert ringer.ring(str(number), "handle_event", "events")
    assert doorbell.trips == [["0"]]
    doorbell.leave.set()
    ringer.close()
    assert [len(trip) for trip in doorbell.trips] == [1, 64, 35]
    assert [name for trip in doorbell.trips for name in trip] == [str(number) for number in range(100)]


def test_what_finds_no_room_is_left_to_the_sweep(monkeypatch: Any) -> None:
    monkeypatch.setattr(bell_ringer, "WAITING_MAX", 2)
    doorbell = SlowDoorbell()
    ringer = BellRinger(doorbell)
    ringer.ring("0", "handle_event", "events")
    assert doorbell.entered.wait(PATIENCE_SECONDS)
    assert [ringer.ring(name, "handle_event", "events") for name in "123"] == [True, True, False]
    doorbell.leave.set()
    ringer.close()
    assert doorbell.trips == [["0"], ["1", "2"]]


def test_a_fault_of_one_trip_is_not_the_end(caplog: Any) -> None:
    doorbell = SlowDoorbell()
    doorbell.leave.set()
    broken = iter([TypeError("not the broker's fault")])

    def ring_all(bells: Sequence[Bell]) -> bool:
        for error in broken:
            raise error
        return SlowDoorbell.ring_all(doorbell, bells)

    doorbell.ring_all = ring_all  # type: ignore[method-assign]
    ringer = BellRinger(doorbell)
    ringer.ring("0", "handle_event", "events")
    while not caplog.records:
        threading.Event().wait(0.001)
    ringer.ring("1", "handle_event", "events")
    assert doorbell.entered.wait(PATIENCE_SECONDS)
    ringer.close()
    assert doorbell.trips == [["1"]]


def test_closing_without_a_bell_starts_nothing() -> None:
    before = threading.active_count()
    BellRinger(SlowDoorbell()).close()
    assert threading.active_count() == before
