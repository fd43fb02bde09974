"""Owns the named points between which a process may die. Called wherever something has just become true.

A point costs one call of a function that does nothing. Tests install a probe: to kill the process right there,
or to let the simulation choose who goes on. Nothing in a running shop ever does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Point(StrEnum):
    """Where a process may die, in the order a sale comes past; each names what has just happened."""

    # inside a transaction
    ROW_WRITTEN = "transaction.row_written"
    HISTORY_WRITTEN = "transaction.history_written"
    TIMERS_CANCELLED = "transaction.timers_cancelled"
    EFFECTS_OWED = "transaction.effects_owed"
    EVENT_SETTLED = "transaction.event_settled"
    EFFECT_SETTLED = "transaction.effect_settled"
    WORK_DONE = "transaction.work_done"
    # around it
    COMMITTED = "commit.committed"
    BELL_RUNG = "commit.bell_rung"
    # an effect
    MESSAGE_TAKEN = "effect.message_taken"
    CLAIMED = "effect.claimed"
    HANDLED = "effect.handled"
    MESSAGE_HANDLED = "effect.message_handled"
    # a call to a provider
    CALL_READY = "call.ready"
    CALL_ANSWERED = "call.answered"
    # files
    FILE_WRITTEN = "file.written"
    FILE_PLACED = "file.placed"
    FILE_REMOVED = "file.removed"
    # orders and webhooks
    SOURCE_KEPT = "order.source_kept"
    ORDER_WRITTEN = "order.written"
    CHECKOUT_OPENED = "order.checkout_opened"
    EVENT_KEPT = "event.kept"
    EVENT_READ = "event.read"
    # the relay
    SWEPT = "relay.swept"
    RUNG = "relay.rung"


Probe = Callable[[Point], None]


def _pass(point: Point) -> None:
    """Nobody watches."""


_probe: Probe = _pass


def reach(point: Point) -> None:
    """Say that a point has been reached."""
    _probe(point)


def inside_transaction(point: Point) -> bool:
    """Whether a transaction is open at this point: what dies there leaves nothing behind."""
    return point.startswith("transaction.")


def watch(probe: Probe) -> None:
    """Let a probe see every point from now on, for the life of the process."""
    global _probe
    _probe = probe


@contextmanager
def watching(probe: Probe) -> Iterator[None]:
    """Let a probe see every point within the block."""
    before = _probe
    watch(probe)
    try:
        yield
    finally:
        watch(before)
