"""Owns time, ids, tokens and jitter, so that they can be handed in. Called by every room of the engine."""

from __future__ import annotations

import random
import secrets
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """The time, aware, in UTC."""


class Chance(Protocol):
    """Where ids, tokens and jitter come from."""

    def new_id(self) -> str:
        """A unique id of 32 hexadecimal digits that sorts by time of creation."""

    def token(self) -> str:
        """A value nobody can guess or repeat: fences a lease."""

    def jitter(self) -> float:
        """A number in [0, 1) that spreads retries."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class SystemChance:
    """The machine's randomness."""

    def new_id(self) -> str:
        # Time first, so that primary keys are written side by side and not all over the index.
        return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"

    def token(self) -> str:
        return secrets.token_hex(16)

    def jitter(self) -> float:
        return random.random()
