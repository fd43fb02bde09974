"""Owns ringing from a thread of its own, for processes whose answers must not wait for the broker.

Called by app.py, for the web. Many bells that wait go out in one trip, which costs a third of as many trips.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque

from smi_workflow.engine.unit import Bell
from smi_workflow.integrations.broker import Doorbell

# More waits only while the broker hangs; what finds no room is rung by the sweep.
WAITING_MAX = 10_000
TOGETHER_MAX = 64
CLOSE_SECONDS = 2.0

log = logging.getLogger(__name__)


class BellRinger:
    """Takes bells at once, and rings them in the order in which they came.

    A bell that is lost with the process is rung again by the sweep, like every other that is lost.
    """

    def __init__(self, doorbell: Doorbell) -> None:
        """Start nothing yet: the thread begins with the first bell, in the process that rings it."""
        self._doorbell = doorbell
        self._changed = threading.Condition()
        self._waiting: deque[Bell] = deque()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._is_closed = False

    def ring(self, message_id: str, actor_name: str, queue: str) -> bool:
        """Leave one bell to the thread; safe from any thread.

        Returns: False when too many wait.
        """
        with self._changed:
            if self._pid != os.getpid():
                # After a fork the thread is gone, and what waited is the parent's.
                self._waiting.clear()
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name="bell-ringer", daemon=True)
                self._thread.start()
            if len(self._waiting) >= WAITING_MAX:
                return False
            self._waiting.append(Bell(message_id, actor_name, queue))
            if len(self._waiting) == 1:
                self._changed.notify()
        return True

    def close(self) -> None:
        """Ring what still waits, for a moment, and close the doorbell."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(CLOSE_SECONDS)
        self._doorbell.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                bells = [self._waiting.popleft() for _ in range(min(TOGETHER_MAX, len(self._waiting)))]
            try:
                self._doorbell.ring_all(bells)
            except Exception:
                log.exception("%d bells could not be rung; the sweep will", len(bells))
