"""Owns the simulation of a workflow that is not the shop's: any declared one. Called by cli/simulate.py.

Example:
    SCENARIO = OwnWorkflow(
        workflows=(PARCEL,), models=(Parcel,), handlers=handlers, live=live,
    )
    # handlers(world) → effect's name → Handler; live(world, number) begins one life and pushes it on.
    $ smi simulate --workflow parcels:SCENARIO --jobs 100
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, TypeVar

from peewee import Model

from smi_workflow.engine.attempt import Handler
from smi_workflow.engine.database import bind, open_database
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Inbox, Translator
from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariant, Violation
from smi_workflow.engine.perform import Performer
from smi_workflow.engine.tables import Tables
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import SmiError, TransitionConflict
from smi_workflow.simulation.calls import Caller
from smi_workflow.simulation.scenario import Props, Release
from smi_workflow.simulation.stage import LEASE_SECONDS, Process, Unreachable

T = TypeVar("T")
BETWEEN_SECONDS = 30.0


class OwnWorld:
    """What a life and its handlers may do."""

    def __init__(self, props: Props, scenario: OwnWorkflow) -> None:
        self._stage = props.stage
        self._caller = Caller(props.stage, LEASE_SECONDS)
        self._scenario = scenario
        self.invariants: Sequence[Invariant] = (*ENGINE_INVARIANTS, *scenario.invariants)
        database = open_database(f"sqlite:///{props.folder / 'simulation.sqlite3'}")
        models = {model: bind(model, database, "") for model in scenario.models}
        tables = Tables.bound_to(database, "")
        database.create_tables([*tables.all(), *models.values()])
        database.execute_sql("PRAGMA synchronous = OFF")  # type: ignore[no-untyped-call]
        self.engine = Engine(
            database, tables, scenario.workflows, models, clock=props.clock, chance=props.chance,
            ring=props.broker.ring, policy=scenario.policy,
        )  # fmt: skip
        performer = Performer(self.engine, scenario.handlers(self), props.keeper(self.engine))
        self.inbox = Inbox(self.engine, scenario.translators or {})
        release = Release(self.engine, performer, self.inbox)
        self.perpetual: frozenset[str] = frozenset()
        self.releases: Mapping[str, Release] = {"present": release, "older": release}
        self.exists: Callable[[str], bool] | None = None
        self._busy = 0

    @property
    def random(self) -> Random:
        """The only source of chance that a life may use."""
        return self._stage.random

    def start(self, workflow: str, columns: Mapping[str, object], *, actor: str = "system") -> Any:
        """Begin a subject, from a process that may die over it; tried again until it stands or is refused."""
        key = str(columns[self.engine.workflows[workflow].key])

        def begin() -> Any:
            try:
                return self.engine.start(workflow, columns, actor=actor)
            except TransitionConflict:
                # It stands: an earlier try was committed, and its process died before it could say so.
                return self.engine.read(workflow, key)

        return self._ask(begin)

    def fire(self, workflow: str, key: str, trigger: str, *, actor: str = "system", **facts: Any) -> bool:
        """Fire a trigger the same way; False when it is refused."""
        try:
            self._ask(
                lambda: self.engine.fire(workflow, key, trigger, actor=actor, reason="simulated", facts=facts)
            )
        except SmiError as refusal:
            self._stage.tell(f"{trigger} for {key}: {refusal}")
            return False
        return True

    def tell(self, provider: str, event_id: str, kind: str, payload: str) -> None:
        """Let a provider report an event: it may be lost on the way, or arrive twice."""
        for _ in range(2 if self._stage.faults.strikes("webhook_twice") else 1):
            self._ask(lambda: self.inbox.receive(provider, event_id, kind, payload))

    def call(self, service: str, name: str, act: Callable[[], T], *, changes: bool = True) -> T:
        """Call a provider, from a handler: it may be away, refuse, be slow, or not answer although it did."""
        return self._caller.call(service, name, act, changes=changes, may_refuse=True)

    def sleep(self, seconds: float) -> None:
        """Let time pass for this life."""
        self._stage.sleep(seconds)

    def begin(self, count: int) -> None:
        """Let so many lives begin."""
        for number in range(count):
            self._busy += 1
            after = self._stage.random.uniform(0.001, BETWEEN_SECONDS * count)
            self._stage.spawn(f"life {number}", partial(self._live, number), after=after)

    def is_finished(self) -> bool:
        """Whether every life has been pushed on as far as its script goes."""
        return self._busy == 0

    def verdict(self) -> Iterator[Violation]:
        """Nothing but the invariants: the scenario's own are among them."""
        return iter(())

    def _live(self, number: int) -> None:
        try:
            self._scenario.live(self, number)
        finally:
            self._busy -= 1

    def _ask(self, act: Callable[[], T]) -> T:
        while True:
            try:
                with self._stage.inside(self._web()):
                    return act()
            except Unreachable:
                self._stage.sleep(5.0)

    def _web(self) -> Process:
        webs = [one for one in self._stage.processes if one.name.startswith("web") and self._stage.is_up(one)]
        if not webs:
            raise Unreachable("web")
        return webs[self._stage.random.randrange(len(webs))]


@dataclass(frozen=True, slots=True)
class OwnWorkflow:
    """A workflow to be simulated, as `--workflow module:NAME` finds it.

    Attributes:
        workflows, models: as the Engine takes them; models unbound.
        handlers: the world → effect's name → Handler. What a handler does outside goes through `world.call`.
        live: the world and a number → one life: `world.start`, then `world.fire`, `world.sleep`, `world.tell`.
        translators: provider → what its events mean.
        invariants: more truths than the engine's own.
    """

    workflows: Sequence[Workflow]
    models: Sequence[type[Model]]
    handlers: Callable[[OwnWorld], Mapping[str, Handler]]
    live: Callable[[OwnWorld, int], None]
    translators: Mapping[str, Translator] | None = None
    invariants: Sequence[Invariant] = ()
    policy: object = None

    def __call__(self, props: Props) -> OwnWorld:
        """Build its world."""
        return OwnWorld(props, self)
