"""Owns what passes between perform.py and a handler: the Attempt it is given, the outcome it returns.

Called by every handler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from smi_workflow.engine.clock import Clock


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a handler is given: the effect, its frozen inputs, and the subject as it was when claimed.

    Attributes:
        id: the effect's id; the idempotency key of every call it makes.
        number: 1 for the first attempt.
        doubts: earlier attempts that nobody knows the outcome of (a crash, a time-out).
        first_attempt_at: when its key was first used.
    """

    id: str
    name: str
    workflow: str
    subject_id: str
    row: Any
    inputs: Mapping[str, Any]
    number: int
    doubts: int
    waits: int
    owed_at: datetime
    first_attempt_at: datetime
    clock: Clock

    def key_is_fresh(self, horizon: timedelta) -> bool:
        """Whether the provider still honours this effect's key; past that, look up before acting again."""
        return self.clock.now() - self.first_attempt_at < horizon


@dataclass(frozen=True, slots=True)
class Done:
    """It worked; fire this trigger in the commit that settles it.

    on_refusal: "fail" fires the effect's failure trigger when the trigger is refused; "skip" records the refusal.
    """

    trigger: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    actor: str = "system"
    reason: str = ""
    note: str = ""
    on_refusal: Literal["fail", "skip"] = "fail"


@dataclass(frozen=True, slots=True)
class Again:
    """Nothing went wrong, but it is not over: run it again later. Does not count as a failed attempt."""

    after: timedelta
    note: str = ""
    trigger: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Skip:
    """Nobody wants it any more: nothing was done, nothing is fired, and the row says why."""

    note: str


Outcome = Done | Again | Skip


@dataclass(frozen=True, slots=True)
class Handler:
    """The code of one effect.

    Attributes:
        run: does it; raises ServiceUnavailable to be tried again, ServiceRefused to fail for good.
        lookup: finds out what an attempt of unknown outcome really did; None when it did nothing.
    """

    run: Callable[[Attempt], Outcome]
    lookup: Callable[[Attempt], Outcome | None] | None = None
