"""Owns the sandbox's time: the real clock plus an offset that a test may push forward. Called by its servers."""

from __future__ import annotations

import threading
import time


class SandboxClock:
    """Seconds since 1970; `advance` makes sessions expire and links lapse without waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset_seconds = 0.0

    def __call__(self) -> float:
        with self._lock:
            return time.time() + self._offset_seconds

    def advance(self, seconds: float) -> None:
        """Move on by this much, for the provider only: signatures keep the real time, as receivers do."""
        with self._lock:
            self._offset_seconds += seconds
