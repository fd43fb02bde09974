"""Owns time travel: a process started with CHAOS_AHEAD_SECONDS lives so far in the future.

Found through PYTHONPATH, which fleet.py sets.

Deadlines of half an hour and more are the product's shortest; a run that lasts minutes would never see them.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

if os.environ.get("CHAOS_AHEAD_SECONDS"):
    from smi_workflow.engine import clock

    AHEAD = timedelta(seconds=float(os.environ["CHAOS_AHEAD_SECONDS"]))

    def now(self: clock.SystemClock) -> datetime:
        """The future."""
        return datetime.now(UTC) + AHEAD

    clock.SystemClock.now = now  # type: ignore[method-assign]
