"""Owns work that happens later: threads that run callables once they are due. Called by the sandbox's servers."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

Job = Callable[[], None]


class Crew:
    """A few daemon threads around one heap of due times; order among jobs that are due is not promised."""

    def __init__(self, name: str, threads: int = 8) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, Job]] = []
        self._order = itertools.count()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Begin; what was handed in before waits until now."""
        for thread in self._threads:
            thread.start()

    def after(self, seconds: float, job: Job) -> None:
        """Run a job in some thread, this many seconds from now or a little later."""
        with self._condition:
            if self._stopped:
                return
            heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._order), job))
            self._condition.notify()

    def every(self, seconds: float, job: Job) -> None:
        """Run a job again and again, with this pause in between."""

        def once() -> None:
            job()
            self.after(seconds, once)

        self.after(seconds, once)

    def stop(self, wait_seconds: float = 0.3) -> None:
        """Forget what is not due yet and let go of what still runs after the wait: a daemon cannot hold us up."""
        with self._condition:
            self._stopped = True
            self._heap.clear()
            self._condition.notify_all()
        deadline = time.monotonic() + wait_seconds
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _next(self) -> Job | None:
        with self._condition:
            while not self._stopped:
                wait_seconds = self._heap[0][0] - time.monotonic() if self._heap else None
                if wait_seconds is not None and wait_seconds <= 0:
                    # Another sleeper may have been woken for a later job: it must look at the new head.
                    self._condition.notify()
                    return heapq.heappop(self._heap)[2]
                self._condition.wait(wait_seconds)
            return None

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()
