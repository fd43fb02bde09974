"""Owns the simulated world's time and turns: processes, agents, and who goes on next. Called by simulation.py.

Everything runs in one thread. An agent is a greenlet that executes the real code until it reaches a Point or
calls a provider; there it may die, be frozen, or wait while others go on. The seed chooses, and nothing else.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

from greenlet import getcurrent, greenlet

from smi_workflow.engine.outbox import Lease
from smi_workflow.engine.points import Point, inside_transaction
from smi_workflow.simulation.faults import Faults

LEASE_SECONDS = 60.0
START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)


class Died(BaseException):
    """The simulated process is dead: nothing may catch this, and nothing it touches answers any more."""


class Interrupted(BaseException):
    """The simulated process was told to stop, and still may tidy up."""


class Unreachable(Exception):
    """The process that somebody outside was talking to is not there, or died before it answered."""


class Violated(BaseException):
    """Something happened that must never happen."""

    def __init__(self, name: str, text: str, subject: tuple[str, str] | None = None) -> None:
        self.name = name
        self.text = text
        self.subject = subject
        super().__init__(f"{name}: {text}")

    def __reduce__(self) -> tuple[type[Violated], tuple[str, str, tuple[str, str] | None]]:
        return Violated, (self.name, self.text, self.subject)


@dataclass(eq=False, slots=True)
class Process:
    """One simulated process: alive or not, on some release, with a clock of its own."""

    name: str
    release: str = "present"
    alive: bool = True
    frozen_until: datetime | None = None
    skew: timedelta = timedelta()
    life: int = 1
    leases: dict[Lease, datetime] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Agent:
    """One thread of work. `process` is None while it acts for somebody outside: a buyer, a provider."""

    name: str
    number: int
    work: greenlet
    process: Process | None
    life: int = 0
    effect: str | None = None
    subject: tuple[str, str] | None = None
    lease: Lease | None = None


class Stage:
    """Runs agents one turn at a time.

    Args:
        seed: decides everything: turns, faults, ids, tokens, jitter.
    """

    def __init__(self, seed: int, rates: dict[str, float]) -> None:
        self.seed = seed
        self.random = Random(f"turns {seed}")
        self.faults = Faults(dict(rates), Random(f"faults {seed}"))
        self.time = START
        self.processes: list[Process] = []
        self.ready: list[Agent] = []
        self.asleep: list[tuple[datetime, int, Agent]] = []
        self.current: Agent | None = None
        self.steps = 0
        self.lines: list[str] = []
        self.digest = hashlib.sha256()
        self.on_death: Callable[[Process], None] = lambda process: None
        self.check_call: Callable[[str], None] = lambda name: None
        self.on_lease: Callable[[Lease], None] = lambda lease: None
        self.closing = False
        self._numbers = 0
        self._hub = getcurrent()

    # -- processes ----------------------------------------------------------------------------------------------

    def add(self, name: str) -> Process:
        """Start a process."""
        process = Process(name)
        self.processes.append(process)
        return process

    def kill(self, process: Process, why: str) -> None:
        """kill -9: its agents end where they are, its leases are nobody's, its memory is gone."""
        self.tell(f"{process.name} dies: {why}")
        process.alive = False
        process.life += 1
        process.leases.clear()
        # They find out when it is their turn; until then they change nothing.
        for _, _, agent in self.asleep:
            if agent.process is process:
                self.ready.append(agent)
        self.asleep = [entry for entry in self.asleep if entry[2].process is not process]
        heapq.heapify(self.asleep)
        self.on_death(process)

    def revive(self, process: Process) -> None:
        """Start it again, on whatever release and with whatever clock."""
        process.alive, process.frozen_until = True, None
        process.release = "older" if self.faults.strikes("deploy") else "present"
        off = self.random.uniform(-20, 20) if self.faults.strikes("skew") else 0.0
        process.skew = timedelta(seconds=off)
        self.tell(f"{process.name} starts, release {process.release}, clock off by {off:.0f} s")

    def is_up(self, process: Process) -> bool:
        """Whether it takes on work."""
        return process.alive and (process.frozen_until is None or process.frozen_until <= self.time)

    @contextmanager
    def inside(self, process: Process) -> Iterator[None]:
        """Let the running agent act within a process; when that dies, so does what it is doing there."""
        agent = self.agent()
        before = agent.process, agent.life
        agent.process, agent.life = process, process.life
        try:
            yield
        except Died:
            if self.closing:
                raise
            raise Unreachable(process.name) from None
        finally:
            agent.process, agent.life = before

    # -- agents ---------------------------------------------------------------------------------------------------

    def agent(self) -> Agent:
        """The agent whose turn it is."""
        assert self.current is not None
        return self.current

    def spawn(
        self, name: str, work: Callable[[], None], *, process: Process | None = None, after: float = 0.0
    ) -> Agent:
        """Begin a piece of work, now or after some seconds."""
        self._numbers += 1

        def run() -> None:
            with suppress(Died, Interrupted):
                self.check_alive()
                work()

        agent = Agent(name, self._numbers, greenlet(run, parent=self._hub), process)
        agent.life = process.life if process is not None else 0
        if after > 0:
            heapq.heappush(self.asleep, (self.time + timedelta(seconds=after), agent.number, agent))
        else:
            self.ready.append(agent)
        return agent

    def go_on(self, agent: Agent) -> None:
        """Give one agent its turn, until it reaches the next point, sleeps or ends."""
        self.steps += 1
        self.current = agent
        try:
            agent.work.switch()
        finally:
            self.current = None
        if agent.work.dead:
            self.ready.remove(agent)

    def wake(self) -> None:
        """Make those ready whose time has come."""
        while self.asleep and self.asleep[0][0] <= self.time:
            self.ready.append(heapq.heappop(self.asleep)[2])

    def sleep(self, seconds: float) -> None:
        """Let time pass for the running agent only."""
        agent = self.agent()
        self.check_alive()
        self.ready.remove(agent)
        heapq.heappush(self.asleep, (self.time + timedelta(seconds=seconds), agent.number, agent))
        self._hub.switch()
        self.check_alive()

    def turn(self, where: str) -> None:
        """Let others go on; the running agent's process may die right here."""
        agent = self.agent()
        self.check_alive()
        self.tell(f"{agent.name} at {where}")
        if agent.process is not None and self.faults.strikes("crash"):
            self.kill(agent.process, f"at {where}, doing {agent.name}")
            raise Died
        if agent.process is not None and self.faults.strikes("freeze"):
            self._freeze(agent.process)
        self._hub.switch()
        self.check_alive()

    def reach(self, point: Point) -> None:
        """What the engine's points call."""
        agent = self.current
        if agent is None:
            return
        self.check_alive()
        if not inside_transaction(point):
            self.turn(point.value)
        elif agent.process is not None and self.faults.strikes("crash_inside"):
            self.kill(agent.process, f"at {point.value}, doing {agent.name}")
            raise Died

    def _freeze(self, process: Process) -> None:
        """It stands still, long enough for its leases to lapse, and then goes on as if nothing had been."""
        # Half of them wake just when somebody else has claimed what they were at.
        just_past = self.random.random() < 0.5
        shortest, longest = (LEASE_SECONDS - 0.05, LEASE_SECONDS + 0.2) if just_past else (70.0, 900.0)
        seconds = self.random.uniform(shortest, longest)
        process.frozen_until = self.time + timedelta(seconds=seconds)
        self.spawn(f"thaw {process.name}", lambda: None, after=seconds)
        self.tell(f"{process.name} stands still for {seconds:.0f} s")

    def check_alive(self) -> None:
        """What a dead process touches does not answer."""
        agent = self.current
        if self.closing or (agent is not None and agent.process is not None and agent.life != agent.process.life):
            raise Died

    # -- the story ------------------------------------------------------------------------------------------------

    def tell(self, line: str) -> None:
        """Write a line of the story."""
        line = f"{(self.time - START).total_seconds():.3f} {line}"
        self.lines.append(line)
        self.digest.update(line.encode())

    def close(self) -> None:
        """End every agent that is left, so that none outlives its world."""
        self.closing = True
        for agent in [*self.ready, *(agent for _, _, agent in self.asleep)]:
            self.current = agent
            with suppress(Died):
                agent.work.throw(Died)
        self.current = None
        self.ready, self.asleep = [], []


class StageClock:
    """The stage's time, as the running agent's process sees it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def now(self) -> datetime:
        self._stage.check_alive()
        agent = self._stage.current
        skew = agent.process.skew if agent is not None and agent.process is not None else timedelta()
        return self._stage.time + skew


class StageChance:
    """Ids, tokens and jitter from the seed."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._random = Random(f"ids {stage.seed}")
        self._count = 0

    def new_id(self) -> str:
        self._stage.check_alive()
        self._count += 1
        return f"{self._count:012x}{self._random.getrandbits(80):020x}"

    def token(self) -> str:
        self._stage.check_alive()
        return f"{self._random.getrandbits(128):032x}"

    def jitter(self) -> float:
        return self._random.random()
