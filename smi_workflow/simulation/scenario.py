"""Owns what a simulated world is made of besides its faults: releases, people, and what must be true at the end.

Called by simulation.py; shop.py is the sale's own, and a user's workflow brings another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peewee import Database

from smi_workflow.engine.clock import Chance, Clock
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Inbox
from smi_workflow.engine.invariants import Invariant, Violation
from smi_workflow.engine.leases import LeaseKeeper
from smi_workflow.engine.outbox import Lease
from smi_workflow.engine.perform import Performer
from smi_workflow.simulation.broker import Broker
from smi_workflow.simulation.stage import Process, Stage


@dataclass(frozen=True, slots=True)
class Release:
    """One version of the code, as every process that runs it uses it.

    Attributes:
        set_up: what a relay does once when it starts.
    """

    engine: Engine
    performer: Performer
    inbox: Inbox
    set_up: Callable[[], object] = bool

    @property
    def database(self) -> Database:
        """Its own connection to the one database."""
        return self.engine.database


@dataclass(frozen=True, slots=True)
class Props:
    """What a scenario is given to build its world with."""

    stage: Stage
    broker: Broker
    clock: Clock
    chance: Chance
    keeper: Callable[[Engine], LeaseKeeper]
    folder: Path


class Scenario(Protocol):
    """A world to simulate.

    Attributes:
        perpetual: workflows that never come to rest; when all else has, they go on until they change nothing.
    """

    releases: Mapping[str, Release]
    perpetual: frozenset[str]
    invariants: Sequence[Invariant]
    exists: Callable[[str], bool] | None

    def begin(self, count: int) -> None:
        """Let so many subjects' lives begin: spawn the agents that drive them."""

    def is_finished(self) -> bool:
        """Whether every agent of `begin` has done all it wanted to do by itself."""

    def verdict(self) -> Iterator[Violation]:
        """What is wrong at the end, when everything has come to rest; the providers' own books above all."""


Build = Callable[[Props], Scenario]


class StageKeeper(LeaseKeeper):
    """Renews leases process by process, as agents of that process: they die and freeze with it."""

    def __init__(self, engine: Engine, stage: Stage) -> None:
        super().__init__(engine, by_itself=False)
        self._stage = stage
        self._keepers: dict[tuple[Process | None, int], LeaseKeeper] = {}
        self._at_work: set[tuple[Process | None, int]] = set()

    @contextmanager
    def keeping(self, lease: Lease) -> Iterator[None]:
        agent = self._stage.agent()
        mine = (agent.process, agent.life)
        keeper = self._keepers.setdefault(mine, LeaseKeeper(self._engine, by_itself=False))
        agent.lease, agent.effect = lease, lease.effect_id
        self._stage.on_lease(lease)
        if mine not in self._at_work:
            self._at_work.add(mine)
            pause = self._engine.lease.total_seconds() / 3
            self._stage.spawn("lease keeper", lambda: self._renew(mine, pause), process=agent.process, after=pause)
        with keeper.keeping(lease):
            yield

    def _renew(self, mine: tuple[Process | None, int], pause: float) -> None:
        keeper = self._keepers[mine]
        while keeper.holds_any():
            keeper.renew_all()
            self._stage.sleep(pause)
        self._at_work.discard(mine)
