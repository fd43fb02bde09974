"""Owns the damage: kills, stops, freezes and floods, at random from the seed. Called by run.py."""

from __future__ import annotations

import heapq
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import psutil

from tests.chaos.fleet import WORKERS, Fleet
from tests.chaos.servers import Broker, Postgres

# How often each act is chosen, against the others.
WEIGHTS = {
    "worker: kill -9": 6,
    "worker: kill -9 of its child": 2,
    "worker: SIGTERM": 2,
    "worker: frozen past its leases": 4,
    "relay: kill -9": 2,
    "relay: frozen": 1,
    "web: kill -9": 3,
    "web: kill -9 of a child": 2,
    "web: SIGTERM": 1,
    "web: frozen": 1,
    "downloads: kill -9": 1,
    "broker: kill -9, back empty": 3,
    "broker: flushed": 2,
    "broker: frozen": 1,
    "database: kill -9": 2,
    "database: shut down at once": 1,
    "database: kill -9 of one backend": 1,
    "database: connections cut": 2,
    "database: frozen": 1,
}
# A slow machine takes its time to start a process; most of them may do some work before they are hit again.
GROWN_UP_SECONDS = 20.0
SPARED = 0.8


class Monkey:
    """Does one act after the other; `tick` is called often, from the thread that starts processes.

    Args:
        pause_seconds: between two acts, on average.
        lease_seconds: a frozen worker sleeps longer than that.
    """

    def __init__(
        self,
        fleet: Fleet,
        broker: Broker,
        database: Postgres,
        chance: random.Random,
        *,
        pause_seconds: float,
        lease_seconds: float,
    ) -> None:
        self.acts: Counter[str] = Counter()
        self.log: list[tuple[float, str]] = []
        self._fleet = fleet
        self._broker = broker
        self._database = database
        self._chance = chance
        self._pause_seconds = pause_seconds
        self._lease_seconds = lease_seconds
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._next = time.monotonic() + pause_seconds

    def tick(self) -> None:
        """Undo what is to be undone, and do the next act once its time has come."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        self.mend_servers()
        if now >= self._next:
            self._next = now + self._chance.expovariate(1 / self._pause_seconds)
            act = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            if self._do(act):
                self.acts[act] += 1
                self.log.append((time.time(), act))

    def rest(self) -> None:
        """Undo everything, at once."""
        while self._later:
            heapq.heappop(self._later)[2]()
        self.mend_servers()

    def mend_servers(self) -> None:
        """Start a server that is dead and that nobody is going to start."""
        for server in (self._broker, self._database):
            if server.is_dead() and not self._later:
                server.start()

    def _do(self, act: str) -> bool:
        whom, _, how = act.partition(": ")
        if whom in ("broker", "database"):
            if self._later:
                # One outage of a server at a time: two at once only hide each other.
                return False
            return self._hurt_server(self._broker if whom == "broker" else self._database, how)
        name = self._chance.choice(WORKERS) if whom == "worker" else whom
        if self._fleet.age_seconds(name) < GROWN_UP_SECONDS and self._chance.random() < SPARED:
            return False
        if how == "kill -9":
            return self._fleet.kill(name, self._chance.uniform(0, 1.5))
        if how.startswith("kill -9 of"):
            return self._fleet.kill_child(name, self._chance)
        if how == "SIGTERM":
            return self._fleet.terminate(name)
        if not self._fleet.signal(name, signal.SIGSTOP):
            return False
        self._after(
            self._lease_seconds + self._chance.uniform(0.5, 4), lambda: self._fleet.signal(name, signal.SIGCONT)
        )
        return True

    def _hurt_server(self, server: Broker | Postgres, how: str) -> bool:
        if server.is_dead():
            return False
        if how == "frozen":
            server.freeze()
            self._after(self._chance.uniform(1, 6), server.thaw)
        elif how == "flushed":
            self._broker.flush()
        elif how == "connections cut":
            self._database.cut()
        elif how == "kill -9 of one backend":
            with suppress(IndexError, psutil.Error):
                self._chance.choice(server.family()[1:]).kill()
        else:
            if how == "shut down at once":
                self._database.shut_down_at_once()
            else:
                server.kill()
            self._after(self._chance.uniform(0, 2), server.start)
        return True

    def _after(self, seconds: float, undo: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), undo))
