"""Owns what a definition says about finished history: which moves it knows, what each of them owes for certain.

Called by the engine's invariants, which read rows and not Cases: conditions cannot be asked any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from smi_workflow.engine.declaration import Move, Owed, State
from smi_workflow.engine.workflow import Workflow

# Trigger, from, to.
Step = tuple[str, str, str]


@dataclass(slots=True)
class Rules:
    """One definition, turned into tables.

    Attributes:
        steps: every step that it allows; the first one comes from "".
        enters, stays: the steps that begin another visit, and those that do not; a step may be in both.
        owed: what each step owes whatever the facts are.
        may_owe: everything that it may owe.
        several: effects that one step may owe more than once, with other inputs each time.
        deadlines: state → the timers that end the wait in it, for each state that may not be stayed in for ever.
        timed: the states whose timers are cancelled when they are left.
    """

    flow: Workflow
    steps: frozenset[Step] = field(init=False)
    enters: frozenset[Step] = field(init=False)
    stays: frozenset[Step] = field(init=False)
    owed: dict[Step, frozenset[str]] = field(init=False)
    may_owe: dict[Step, frozenset[str]] = field(init=False)
    deadlines: dict[str, frozenset[str]] = field(init=False)
    timed: frozenset[str] = field(init=False)
    several: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        flow = self.flow
        entering: list[tuple[Step, Move | None]] = [((flow.started_by, "", flow.initial), None)]
        staying: list[tuple[Step, Move | None]] = []
        for move in flow.moves:
            for source in move.sources(flow.states):
                if move.to is None:
                    staying.append(((move.trigger, source, source), move))
                else:
                    entering.append(((move.trigger, source, move.to), move))
        self.enters = frozenset(step for step, _ in entering)
        self.stays = frozenset(step for step, _ in staying)
        self.steps = self.enters | self.stays
        certain: dict[Step, frozenset[str]] = {}
        possible: dict[Step, frozenset[str]] = {}
        for step, how in [*entering, *staying]:
            of_state = () if how is not None and how.to is None else flow.state(step[2]).owes
            of_move = flow.owed_by(how)
            hushed = how is not None and how.quiet is not None
            always = _unconditional(item for item in of_state if item.is_timer or not hushed)
            always |= _unconditional(of_move)
            certain[step] = certain.get(step, frozenset(always)) & always
            possible[step] = possible.get(step, frozenset()) | {item.effect.name for item in (*of_state, *of_move)}
        owes = [item for state in flow.states for item in state.owes]
        owes += [item for move in (None, *flow.moves) for item in flow.owed_by(move)]
        self.several = frozenset(item.effect.name for item in owes if item.each is not None)
        self.owed = {step: names for step, names in certain.items() if names}
        self.may_owe = possible
        self.deadlines = {state.name: self._deadlines(state) for state in flow.states if state.waiting}
        self.timed = frozenset(state.name for state in flow.states if flow.sets_timers(state.name))

    def _deadlines(self, state: State) -> frozenset[str]:
        inside = [
            item for move in self.flow.moves if move.to is None and state.name in move.sources(self.flow.states)
            for item in move.owes
        ]  # fmt: skip
        return frozenset(item.effect.name for item in (*state.owes, *inside) if item.deadline)


def _unconditional(owes: Iterable[Owed]) -> set[str]:
    return {item.effect.name for item in owes if item.when is None and item.each is None}
