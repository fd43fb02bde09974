"""Owns one simulated run: who goes on, what breaks, when time passes, when it is over. Called by cli/simulate.py.

A run has two parts. While there is trouble, everything that can break does; then calm comes, every process is
up, and all that was begun must come to rest: no effect due, no event open, and every book balanced.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import peewee
from peewee import fn

from smi_workflow.engine import points
from smi_workflow.engine.database import Slot, read_stamp
from smi_workflow.engine.invariants import Invariants
from smi_workflow.engine.points import Point
from smi_workflow.engine.relay import Relay
from smi_workflow.engine.tables import EffectState, EventState
from smi_workflow.engine.unit import EVENT_ACTOR
from smi_workflow.errors import SmiError
from smi_workflow.simulation.broker import Broker, Message
from smi_workflow.simulation.scenario import Build, Props, Release, Scenario, StageKeeper
from smi_workflow.simulation.stage import START, Agent, Died, Process, Stage, StageChance, StageClock, Violated
from smi_workflow.simulation.watch import Alarm, Watch

WORKERS = ("worker-1", "worker-2", "worker-3")
WEBS = ("web-1", "web-2")
THREADS = 8
RING_AGAIN = timedelta(seconds=5)
CALM_LIMIT, LIES_LIMIT = timedelta(days=90), timedelta(hours=6)
STEPS_PER_SUBJECT_MAX = 20_000
STORY_LINES = 400
IN_CALM_ONLY = ("nothing_overdue",)
# After so many turns of what goes on for ever, without a change to anything else, nothing is left to be found.
QUIET_ROUNDS = 2


@dataclass(slots=True)
class Report:
    """What one run did."""

    seed: int
    count: int
    steps: int = 0
    checked: int = 0
    seconds: float = 0.0
    simulated: timedelta = timedelta()
    digest: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    triggers: dict[str, int] = field(default_factory=dict)
    effects: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    failure: Violated | None = None
    story: list[str] = field(default_factory=list)


class Simulation:
    """Runs one seed.

    Args:
        build: makes the world.
        count: how many subjects' lives begin.
        rates: kind of fault → how often.
    """

    def __init__(
        self,
        build: Build,
        *,
        seed: int,
        count: int,
        rates: Mapping[str, float],
        folder: Path,
        keep_story: bool = False,
    ) -> None:
        self.stage = Stage(seed, dict(rates))
        self.broker = Broker(self.stage)
        self.count = count
        self.seed = seed
        self.keep_story = keep_story
        props = Props(
            self.stage, self.broker, StageClock(self.stage), StageChance(self.stage),
            lambda engine: StageKeeper(engine, self.stage), folder,
        )  # fmt: skip
        self.workers = [self.stage.add(name) for name in WORKERS]
        self.webs = [self.stage.add(name) for name in WEBS]
        self.relay = self.stage.add("relay")
        self.scenario: Scenario = build(props)
        self.present: Release = self.scenario.releases["present"]
        # While every worker may be down, what is due may lie: that it does not is asked when calm has come.
        always = [item for item in self.scenario.invariants if item.name not in IN_CALM_ONLY]
        invariants = Invariants(self.present.engine, always, exists=self.scenario.exists)
        self.watch = Watch(self.stage, self.scenario.releases, invariants)
        self.stage.on_death = self._restart_later
        self._relays: dict[tuple[str, int], Relay] = {}
        flows = [flow for one in self.scenario.releases.values() for flow in one.engine.workflows.values()]
        self._queues = sorted({effect.queue for flow in flows for effect in flow.effects().values()})
        self._swept = False
        self._calm_since: datetime | None = None
        self._rounds = 0
        self._at_last_round: tuple[int, int] | None = None

    def run(self) -> Report:
        """Run it to its end, or to the first violation."""
        began = time.perf_counter()
        report = Report(self.seed, self.count)
        with _listening(), points.watching(self.stage.reach):
            try:
                self.scenario.begin(self.count)
                self._go()
                for violation in self.scenario.verdict():
                    subject = (violation.workflow or "", violation.subject_id or "")
                    raise Violated(violation.invariant, violation.text, subject)
                self._judge_at_rest()
            except Violated as violated:
                report.failure = violated
            except Exception as fault:  # noqa: BLE001 - whatever it is, it is a find
                text = "".join(traceback.format_exception(fault)[-4:])
                report.failure = Violated("no fault of our own", text)
            finally:
                self._describe(report)
                self.stage.close()
        for release in self.scenario.releases.values():
            release.database.close()
        report.seconds = time.perf_counter() - began
        return report

    def _judge_at_rest(self) -> None:
        engine, exists = self.present.engine, self.scenario.exists
        for found in Invariants(engine, self.scenario.invariants, exists=exists, at_rest=True).everywhere():
            raise Violated(found.invariant, found.text, (found.workflow or "", found.subject_id or ""))

    # -- the loop -------------------------------------------------------------------------------------------------

    def _go(self) -> None:
        stage = self.stage
        while True:
            stage.wake()
            self._mishaps()
            agent = self._next()
            if agent is None:
                if not self._let_time_pass():
                    return
                continue
            stage.go_on(agent)
            stage.time += timedelta(microseconds=stage.random.randrange(20_000))
            self.watch.after(agent)
            if stage.steps > STEPS_PER_SUBJECT_MAX * max(self.count, 10):
                raise Violated("everything comes to rest", f"not after {stage.steps} steps")

    def _next(self) -> Agent | None:
        """Who goes on: any agent that can, or one that takes up a message."""
        stage = self.stage
        ready = [agent for agent in stage.ready if agent.process is None or stage.is_up(agent.process)]
        if len(ready) < len(stage.ready):
            # Of a dead process: it has to find out; of a frozen one: it stands still.
            ready += [a for a in stage.ready if a.process is not None and not a.process.alive]
        waiting = min(len(self.broker.waiting), THREADS)
        choice = stage.random.randrange(len(ready) + waiting) if ready or waiting else -1
        if 0 <= choice < len(ready):
            return ready[choice]
        workers = [process for process in self.workers if stage.is_up(process)]
        if waiting and workers:
            return self._deliver(self.broker.take(), workers[stage.random.randrange(len(workers))])
        return ready[0] if ready else None

    def _deliver(self, message: Message, process: Process) -> Agent:
        agent = self.stage.spawn(message.actor, lambda: self._take(message, process), process=process)
        if message.actor != EVENT_ACTOR:
            agent.effect = message.id
        agent.name = f"{process.name} {message.actor} {message.id[:12]}"
        return agent

    def _take(self, message: Message, process: Process) -> None:
        release = self.scenario.releases[process.release]
        try:
            points.reach(Point.MESSAGE_TAKEN)
            try:
                if message.actor == EVENT_ACTOR:
                    release.inbox.handle(message.id)
                else:
                    release.performer.perform(message.id)
            except (peewee.PeeweeException, SmiError) as trouble:
                self.stage.tell(f"{message.actor} {message.id}: {trouble}")
            points.reach(Point.MESSAGE_HANDLED)
        except Died:
            self.broker.give_back(message)
            raise

    def _mishaps(self) -> None:
        stage, faults = self.stage, self.stage.faults
        if faults.over:
            return
        if faults.strikes("flush"):
            self.broker.flush()
        if faults.strikes("kill"):
            process = stage.processes[stage.random.randrange(len(stage.processes))]
            if process.alive:
                stage.kill(process, "killed")
        if stage.random.random() < 0.005:
            self._sweep()

    def _restart_later(self, process: Process) -> None:
        wait = self.stage.random.choice((1.0, 3.0, 10.0, 60.0, 600.0))
        self.stage.spawn(f"restart {process.name}", lambda: self.stage.revive(process), after=wait)

    # -- the relay and the time -----------------------------------------------------------------------------------

    def _sweep(self) -> bool:
        if not self.stage.is_up(self.relay):
            return False
        release = self.scenario.releases[self.relay.release]
        mine = (self.relay.release, self.relay.life)
        if mine not in self._relays:
            # A relay remembers nothing of its earlier lives.
            self._relays = {mine: Relay(release.engine, release.inbox, RING_AGAIN)}
            self.stage.spawn("relay sets up", lambda: _ignore(release.set_up()), process=self.relay)
        relay = self._relays[mine]
        self.stage.spawn("relay", lambda: _ignore(relay.sweep()), process=self.relay)
        return True

    def _let_time_pass(self) -> bool:
        """Nobody can go on: let the relay look, then let time pass until something can; False at rest."""
        stage = self.stage
        if not self._swept and self._sweep():
            self._swept = True
            return True
        self._swept = False
        if self._calm_since is None and self.scenario.is_finished():
            self._calm_down()
            return True
        due, always = self._next_due(perpetual=False), self._next_due(perpetual=True)
        wakes = [stage.asleep[0][0]] if stage.asleep else []
        if always is not None and (wakes or due is not None or always <= stage.time or self._goes_round()):
            due = always if due is None else min(due, always)
        if due is not None:
            # What is due already has been rung for: the ring is given its time, or was lost.
            if self._calm_since is not None and stage.time - max(due, self._calm_since) > LIES_LIMIT:
                raise Violated("everything comes to rest", f"what was due at {due:%d %H:%M:%S} is left lying")
            wakes.append(due if due > stage.time else stage.time + RING_AGAIN)
        if not wakes:
            return False
        stage.time = max(stage.time, min(wakes))
        if self._calm_since is not None and stage.time - self._calm_since > CALM_LIMIT:
            raise Violated("everything comes to rest", f"something is still owed {CALM_LIMIT.days} days later")
        return True

    def _goes_round(self) -> bool:
        """All that ends has ended: whether what goes on for ever must have another turn before it is over.

        It may find something yet; two turns that changed nothing else have found all there was.
        """
        tables = self.present.engine.tables
        others = tables.transitions.workflow.not_in(sorted(self.scenario.perpetual))
        seen = (
            tables.transitions.select().where(others).count(),
            tables.events.select().count(),
        )
        self._rounds = self._rounds + 1 if seen == self._at_last_round else 0
        self._at_last_round = seen
        return self._rounds < QUIET_ROUNDS

    def _calm_down(self) -> None:
        """The time of faults is over: every process is up, and on the present release."""
        stage = self.stage
        stage.tell("calm")
        stage.faults.over = True
        self._calm_since = stage.time
        for process in stage.processes:
            process.frozen_until = None
            if process.alive and (process.release != "present" or process.skew):
                stage.kill(process, "deploy")
            if not process.alive:
                stage.revive(process)

    def _next_due(self, *, perpetual: bool) -> datetime | None:
        """When something falls due next: of what comes to an end, or of what goes on for ever."""
        engine = self.present.engine
        forever = sorted(self.scenario.perpetual) or [""]
        effects, events = engine.tables.effects, engine.tables.events
        statement = engine.registry.statement
        mine = effects.workflow.in_(forever) if perpetual else effects.workflow.not_in(forever)
        found = []
        of_queue = lambda: effects.select(fn.MIN(effects.due_at)).where(  # noqa: E731
            (effects.state == EffectState.DUE.value) & (effects.queue == Slot("queue")) & mine
        )
        of_leases = lambda: effects.select(fn.MIN(effects.lease_until)).where(  # noqa: E731
            (effects.state == EffectState.CLAIMED.value) & mine
        )
        of_events = lambda: events.select(fn.MIN(events.due_at)).where(events.state == Slot("state"))  # noqa: E731
        cursors = [
            statement(("next of queue", perpetual), of_queue).run({"queue": queue}) for queue in self._queues
        ]
        cursors.append(statement(("next lease", perpetual), of_leases).run({}))
        for state in () if perpetual else (EventState.RECEIVED, EventState.PARKED):
            cursors.append(statement("next event", of_events).run({"state": state.value}))
        for cursor in cursors:
            moment = read_stamp(cursor.fetchone()[0])
            if moment is not None:
                found.append(moment + timedelta(milliseconds=1))
        return min(found, default=None)

    # -- the report -----------------------------------------------------------------------------------------------

    def _describe(self, report: Report) -> None:
        stage = self.stage
        report.steps, report.checked = stage.steps, self.watch.checked
        report.simulated = stage.time - START
        report.faults = dict(sorted(stage.faults.struck.items()))
        tables = self.present.engine.tables
        report.triggers = _count(tables.transitions, "workflow", "trigger")
        report.effects = _count(tables.effects, "name", "state")
        report.events = _count(tables.events, "kind", "state")
        report.digest = stage.digest.hexdigest()
        if self.keep_story:
            report.story = stage.lines
        elif report.failure is not None:
            report.story = self._story_of(report.failure)

    def _story_of(self, failure: Violated) -> list[str]:
        """What happened to the subject that it went wrong with, and to the processes meanwhile."""
        if failure.subject is None:
            return self.stage.lines[-STORY_LINES:]
        tables, (workflow, key) = self.present.engine.tables, failure.subject
        effects, events = tables.effects, tables.events
        mine = effects.select(effects.id).where((effects.workflow == workflow) & (effects.subject_id == key))
        about = events.select(events.id).where(events.payload.contains(key))
        names = [key, *(row.id[:12] for row in mine), *(row.id[:12] for row in about)]
        told = [
            line for line in self.stage.lines
            if any(word in line for word in (*names, " dies: ", " starts, ", " calm"))
        ]  # fmt: skip
        return told[-STORY_LINES:]


def _count(model: Any, *what: str) -> dict[str, int]:
    first, second = (getattr(model, name) for name in what)
    query = model.select(first, second, fn.COUNT(model.id)).group_by(first, second).order_by(first, second)
    return {f"{one} {other}": count for one, other, count in query.tuples()}


def _ignore(value: object) -> None:
    """Agents return nothing."""


@contextmanager
def _listening() -> Iterator[None]:
    """Hear every fault that is only logged, and keep the rest of the log quiet."""
    logger = logging.getLogger("smi_workflow")
    before = logger.propagate, logger.level
    alarm = Alarm()
    logger.addHandler(alarm)
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(alarm)
        logger.propagate = before[0]
        logger.setLevel(before[1])


def simulate(
    build: Build, *, seed: int, count: int, rates: Mapping[str, float], keep_story: bool = False
) -> Report:
    """Run one seed in a folder of its own, which is removed afterwards.

    Args:
        keep_story: keep every line of it; otherwise only those that explain a failure.
    """
    folder = Path(tempfile.mkdtemp(prefix="smi-simulation-"))
    try:
        return Simulation(build, seed=seed, count=count, rates=rates, folder=folder, keep_story=keep_story).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
