"""Owns the renewal of leases while handlers run. Called by perform.py.

One thread a process extends every lease held there, from a third of its duration on; it dies with the process,
and so do the leases.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import peewee

from smi_workflow.engine.fire import Engine
from smi_workflow.engine.outbox import Lease

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews what is being worked on.

    Args:
        longest: a handler that runs longer is taken for stuck: its lease is left to lapse.
        by_itself: renew from a thread; without it whoever made the keeper calls `renew_all`.
    """

    def __init__(
        self, engine: Engine, longest: timedelta = timedelta(minutes=15), *, by_itself: bool = True
    ) -> None:
        self._engine = engine
        self._by_itself = by_itself
        self._longest = longest
        self._held: dict[Lease, datetime] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def keeping(self, lease: Lease) -> Iterator[None]:
        """Renew this lease for as long as the block runs."""
        with self._changed:
            self._held[lease] = self._engine.clock.now()
            if self._by_itself and self._thread is None:
                self._thread = threading.Thread(target=self._renew_for_ever, name="leases", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._held.pop(lease, None)

    def holds_any(self) -> bool:
        """Whether anything is being worked on."""
        with self._changed:
            return bool(self._held)

    def renew_all(self) -> None:
        """Extend every held lease once; forget those that are lost or held for too long."""
        now = self._engine.clock.now()
        with self._changed:
            held = list(self._held.items())
        for lease, since in held:
            stuck = now - since > self._longest
            if stuck or not self._engine.outbox.renew(lease, now, self._engine.lease):
                log.warning("effect %s: lease %s", lease.effect_id, "left to lapse: stuck" if stuck else "lost")
                with self._changed:
                    self._held.pop(lease, None)

    def _renew_for_ever(self) -> None:
        pause = self._engine.lease.total_seconds() / 3
        while True:
            with self._changed:
                while not self._held:
                    self._changed.wait()
            # Most handlers are done within the pause, and are never renewed at all.
            threading.Event().wait(pause)
            try:
                self.renew_all()
            except peewee.PeeweeException:
                log.exception("leases could not be renewed; trying again")
