"""Owns one state of the model, and what firing a trigger does to it. Called by model_steps.py and scenarios.

The declared guards, changes, conditions and inputs run for real; rows, effects and events lie in memory. What
unit.py and workflow.py make of a declaration is done here once more in few lines, and a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast

from peewee import Model

from smi_workflow.engine.attempt import Attempt, Outcome
from smi_workflow.engine.declaration import Case, Facts, MissingFact, Move, Owed
from smi_workflow.engine.inbox import Reading
from smi_workflow.engine.unit import to_json
from smi_workflow.engine.workflow import Workflow, guard_name
from smi_workflow.errors import (
    EngineError,
    GuardRefused,
    InvalidInput,
    TransitionNotAllowed,
    UnknownSubject,
    UnknownTrigger,
)
from smi_workflow.simulation.model_choices import Choices
from smi_workflow.simulation.model_records import KEPT, Applied, Event, OpenEffect, Settled
from smi_workflow.simulation.model_rows import MemoryTable, Row, Shape, check_unique

M = TypeVar("M", bound=Model)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Act:
    """Something that the outside may do: a person, a provider.

    Attributes:
        kind: the budget it is counted against; empty for what ends by itself.
        offered: whether it can be done in this scene.
        do: does it; may raise what `Scene.fire` raises, and then nothing has happened.
        trigger: workflow and trigger that it tries, for telling which were never possible.
    """

    label: str
    kind: str
    offered: Callable[[Scene], bool]
    do: Callable[[Scene], None]
    trigger: tuple[str, str] | None = None


ModelHandler = Callable[["Scene", Attempt, Choices], Outcome]
ModelLookup = Callable[["Scene", Attempt, Choices], "Outcome | None"]
Invariant = Callable[["Scene"], "str | None"]


@dataclass(frozen=True)
class Scenario:
    """A part of the world to explore: where it starts, what may happen, and what must hold.

    Attributes:
        begin: starts the first subjects.
        budget: how often acts of a kind may happen; `faults` for what goes wrong in calls. Unnamed kinds: never.
        handlers, lookups: effect → code that says what an attempt may come to, by asking `choices`.
        readers: provider → what its events mean.
        invariants: a sentence when something is wrong in a scene, else None.
        on_step: the same, asked of each step: what it came to is in `scene.log`.
        at_rest: the same, asked where nothing is owed and nothing is waited for.
        ended: whether such a scene counts as an end.
        eager: effects that are run as soon as they are owed, before anything else: they touch nothing else.
        idle: effects that nobody gets to here: owed, but never run, and no reason for two scenes to differ.
        prompt: providers whose events are handled as soon as they are told.
        patient: effects that are taken to be tried for ever (their attempts span days).
        kept: effects whose ids are remembered after they are settled.
        in_flight: how many handlers may be between their call and their commit while other things happen.
    """

    name: str
    workflows: tuple[Workflow, ...]
    begin: Callable[[Scene], None]
    acts: tuple[Act, ...] = ()
    budget: Mapping[str, int] = field(default_factory=dict)
    handlers: Mapping[str, ModelHandler] = field(default_factory=dict)
    lookups: Mapping[str, ModelLookup] = field(default_factory=dict)
    readers: Mapping[str, Callable[[Scene, Event], Reading]] = field(default_factory=dict)
    tables: tuple[type[Model], ...] = ()
    policy: Any = None
    outside: Mapping[str, object] = field(default_factory=dict)
    invariants: tuple[Invariant, ...] = ()
    on_step: tuple[Invariant, ...] = ()
    at_rest: tuple[Invariant, ...] = ()
    ended: Callable[[Scene], bool] = lambda scene: True
    eager: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    prompt: frozenset[str] = frozenset()
    patient: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    clocks: frozenset[str] = frozenset()
    in_flight: int = 0


class Plan:
    """A scenario, with what is looked up again and again worked out once."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.flows = {flow.name: flow for flow in scenario.workflows}
        models = [*(flow.model for flow in scenario.workflows), *scenario.tables]
        self.shapes = {model: Shape(model, scenario.ignored, scenario.clocks) for model in dict.fromkeys(models)}
        self.keys: dict[type[Model], str] = {flow.model: flow.key for flow in scenario.workflows}
        self.order = {flow.name: index for index, flow in enumerate(scenario.workflows)}
        self.moves = cache(lambda workflow, state, trigger: self.flows[workflow].moves_from(state, trigger))

    def flow(self, name: str) -> Workflow:
        """The workflow of this name."""
        if name not in self.flows:
            raise EngineError(f"the scenario has no workflow {name}; it has: {', '.join(self.flows)}")
        return self.flows[name]


class Scene:
    """One state of the model; also the unit of work that changes see."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = START
        self.tables: dict[type[Model], dict[object, Row]] = {model: {} for model in plan.shapes}
        self.effects: list[OpenEffect] = []
        self.events: list[Event] = []
        self.outside: dict[str, Any] = dict(plan.scenario.outside)
        self.spent: dict[str, int] = {}
        self.ids: dict[str, int] = {}
        self.log: list[Applied | Settled] = []
        self.label = ""
        self._owned: set[tuple[type[Model], object]] = set()
        self._moving: set[tuple[str, str]] = set()

    def fork(self) -> Scene:
        """A scene to go on from; this one stays as it is."""
        made = object.__new__(Scene)
        made.plan, made.now, made.label = self.plan, self.now, self.label
        made.tables = {model: dict(rows) for model, rows in self.tables.items()}
        made.effects, made.events, made.log = self.effects[:], self.events[:], self.log[:]
        made.outside = self.outside.copy()
        made.spent, made.ids = self.spent.copy(), self.ids.copy()
        made._owned, made._moving = set(), set()
        return made

    # -- rows ---------------------------------------------------------------------------------------------------

    def shape(self, model: type[Model]) -> Shape:
        """What this model's rows look like."""
        return self.plan.shapes[model]

    def row_key(self, model: type[Model], row: Row) -> object:
        """What a row is found by: a subject's key, or its place."""
        key = self.plan.keys.get(model)
        return str(getattr(row, key)) if key is not None else len(self.tables[model])

    def own(self, model: type[Model], key: object) -> Row:
        """The row, as a copy that this scene may write to."""
        rows = self.tables[model]
        if (model, key) not in self._owned:
            rows[key] = rows[key].copy()
            self._owned.add((model, key))
        return rows[key]

    def find(self, workflow: str, key: str) -> Any:
        """A subject's row, to be read, or None."""
        return self.rows(workflow).get(key)

    def rows(self, workflow: str) -> dict[object, Row]:
        """A workflow's subjects by their keys."""
        return self.tables[self.plan.flow(workflow).model]

    def subjects(self) -> Iterator[tuple[Workflow, str, Any]]:
        """Every subject: its workflow, key and row."""
        for flow in self.plan.scenario.workflows:
            for key, row in self.tables[flow.model].items():
                yield flow, str(key), row

    def state_of(self, flow: Workflow, row: Any) -> str:
        """The state a row is in."""
        return str(row.__dict__[flow.state_column])

    # -- what changes may do: the UnitOfWork ----------------------------------------------------------------------

    def new_id(self) -> str:
        """An id that depends on how many were made before."""
        return f"{self._count('rows'):032x}"

    def bound(self, model: type[M]) -> type[M]:
        """The model's table in this scene."""
        return cast("type[M]", MemoryTable(self, model))

    def wake_strays(self, name: str) -> None:
        """Events are tried at any time here."""

    def start(self, workflow: str, columns: Mapping[str, object], *, actor: str, reason: str = "") -> Any:
        """Create a subject in its first state."""
        flow = self.plan.flow(workflow)
        if flow.parent is not None and self.find(flow.parent.workflow, str(columns[flow.parent.column])) is None:
            raise UnknownSubject(flow.parent.workflow, columns[flow.parent.column])
        stamps = {flow.touched_column: self.now} if flow.touched_column is not None else {}
        row = self.shape(flow.model).make(
            {**stamps, **columns, flow.state_column: flow.initial, "version": 1, "visit": 1}
        )
        check_unique(self, flow.model, row)
        key = str(self.row_key(flow.model, row))
        self.tables[flow.model][key] = row
        self._owned.add((flow.model, key))
        case = self._case(flow, row, flow.started_by, {}, actor, reason)
        case.hook = flow.start_hook
        case.owe((*flow.state(flow.initial).owes, *flow.owed_by(None)))
        owed = self._owe(flow, case, key, 1)
        self.log.append(Applied(workflow, key, flow.started_by, "", flow.initial, actor, owed))
        return row

    def fire(
        self,
        workflow: str,
        key: str,
        trigger: str,
        *,
        actor: str,
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Applied:
        """Apply one trigger. On a refusal this scene is spoilt: fork before.

        Raises:
            UnknownSubject, TransitionNotAllowed, GuardRefused, InvalidInput, TransitionConflict: as the engine.
        """
        flow = self.plan.flow(workflow)
        if key not in self.tables[flow.model]:
            raise UnknownSubject(workflow, key)
        row = self.own(flow.model, key)
        state = self.state_of(flow, row)
        allowed = flow.allowed(state)
        if trigger not in allowed:
            kind = TransitionNotAllowed if trigger in flow.triggers() else UnknownTrigger
            raise kind(workflow, key, state, trigger, allowed)
        if (workflow, key) in self._moving:
            raise EngineError(f"{workflow} {key} is in the middle of a trigger: its changes cannot fire it")
        self._moving.add((workflow, key))
        try:
            case = self._case(flow, row, trigger, facts or {}, actor, reason)
            move = self._choose(flow, case, key)
            return self._write(flow, case, move, key, state)
        finally:
            self._moving.discard((workflow, key))

    def _choose(self, flow: Workflow, case: Case[Any], key: str) -> Move:
        """The first move whose condition and guards agree, with its change made and its effects noted."""
        try:
            for move in self.plan.moves(flow.name, case.state, case.trigger):
                if move.when is not None and not move.when(case):
                    continue
                if not _agrees(move, case):
                    continue
                case.begin(move)
                if move.to is not None:
                    case.state = move.to
                    case.owe(flow.state(move.to).owes, of_state=True)
                case.owe(flow.owed_by(move), of_state=False)
                return move
        except MissingFact as missing:
            problem = f"'{case.trigger}' needs this fact, and it was not given"
            raise InvalidInput(missing.name, problem) from missing
        if case.refusals:
            guard, why = case.refusals[0]
            raise GuardRefused(flow.name, key, case.state, case.trigger, guard, why)
        raise TransitionNotAllowed(flow.name, key, case.state, case.trigger, flow.allowed(case.state))

    def _write(self, flow: Workflow, case: Case[Any], move: Move, key: str, from_state: str) -> Applied:
        row = case.row
        moved, old_visit = move.to is not None, row.visit
        visit = row.version + 1 if moved else old_visit
        case.set(version=row.version + 1, visit=visit, **{flow.state_column: case.state})
        if flow.touched_column is not None:
            case.set(**{flow.touched_column: self.now})
        check_unique(self, flow.model, cast("Row", row))
        if moved:
            row.deadline_ran = False
            if flow.sets_timers(from_state):
                self._cancel(flow.name, key, old_visit, None)
        for effect in move.cancels:
            self._cancel(flow.name, key, old_visit, effect.name)
        owed = self._owe(flow, case, key, visit)
        applied = Applied(flow.name, key, case.trigger, from_state, case.state, case.actor, owed)
        self.log.append(applied)
        return applied

    # -- effects ------------------------------------------------------------------------------------------------

    def _owe(self, flow: Workflow, case: Case[Any], key: str, visit: int) -> tuple[str, ...]:
        made = [
            self._owed(flow, case, key, visit, item, inputs)
            for item in case.owed
            for inputs in item.inputs_of(case)
        ]
        self.effects += made
        return tuple(one.effect.name for one in made)

    def _owed(
        self, flow: Workflow, case: Case[Any], key: str, visit: int, item: Owed, inputs: Mapping[str, object]
    ) -> OpenEffect:
        return OpenEffect(
            id=f"{item.effect.name}-{self._count(item.effect.name)}", effect=item.effect, workflow=flow.name,
            subject_id=key, visit=visit, is_timer=item.is_timer, deadline=item.deadline,
            inputs=to_json(inputs),
            due_at=self.now + item.after(case) if item.after is not None else self.now, owed_at=self.now,
        )  # fmt: skip

    def _cancel(self, workflow: str, key: str, visit: int, name: str | None) -> None:
        """Cancel a visit's timers, or what it owes by one name."""
        cancelled = [
            item
            for item in self.effects
            if (item.workflow, item.subject_id, item.visit) == (workflow, key, visit)
            and item.state != KEPT
            and ((item.is_timer and not item.effect.survives) if name is None else item.effect.name == name)
        ]
        for item in cancelled:
            self.settle(item)

    def settle(self, item: OpenEffect) -> None:
        """It is not owed any more."""
        self.effects.remove(item)
        if item.effect.name in self.plan.scenario.kept:
            self.effects.append(item._replace(state=KEPT, outcome=None))

    def replace(self, item: OpenEffect, **fields: Any) -> None:
        """It is owed otherwise."""
        self.effects[self.effects.index(item)] = item._replace(**fields)

    def is_over(self, item: OpenEffect) -> bool:
        """Law 9: whether the visit that it was owed to has ended."""
        row = self.find(item.workflow, item.subject_id)
        return row is None or bool(row.visit != item.visit and not item.effect.survives)

    def of_visit(self, workflow: str, key: str, visit: int) -> list[OpenEffect]:
        """What is open of one visit."""
        named = (workflow, key, visit)
        return [e for e in self.effects if e.state != KEPT and (e.workflow, e.subject_id, e.visit) == named]

    # -- small parts ----------------------------------------------------------------------------------------------

    def may(self, kind: str) -> bool:
        """Whether the budget allows one more of this kind."""
        return not kind or self.spent.get(kind, 0) < self.plan.scenario.budget.get(kind, 0)

    def spend(self, kind: str) -> int:
        """Count one of this kind; returns how many that makes."""
        if kind:
            self.spent[kind] = self.spent.get(kind, 0) + 1
        return self.spent.get(kind, 0)

    def _count(self, name: str) -> int:
        self.ids[name] = self.ids.get(name, 0) + 1
        return self.ids[name]

    def _case(
        self, flow: Workflow, row: Any, trigger: str, facts: Mapping[str, Any], actor: str, reason: str
    ) -> Case[Any]:
        return Case(
            row=row, state=self.state_of(flow, row), trigger=trigger, facts=Facts(facts), now=self.now,
            actor=actor, reason=reason, unit=self, policy=self.plan.scenario.policy,
        )  # fmt: skip


def _agrees(move: Move, case: Case[Any]) -> bool:
    for guard in move.guards:
        reason = guard(case)
        if reason is not None:
            case.refusals.append((guard_name(guard), reason))
            return False
    return True
