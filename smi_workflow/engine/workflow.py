"""Owns the declaration of a workflow and its checks; `transitions` executes it.

Called by jobs/, which declares, and by fire.py, which runs.

A workflow is data: states, moves, guards, the effects they owe. `Workflow` turns it into one shared
`transitions.Machine`, refuses a declaration with holes in it, and fingerprints it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from transitions import EventData, Machine
from transitions import State as MachineState

from smi_workflow.engine.declaration import Case, Check, Effect, Move, Owed, Parent, State
from smi_workflow.engine.tables import Subject
from smi_workflow.errors import ConfigError, InvalidInput


@dataclass(slots=True)
class Workflow:
    """A declared machine, checked and ready to run.

    Args:
        name: how rows, messages and errors call the subject.
        model: the subject's table (unbound).
        key: its unique column that the outside knows it by.
        state_column: where its state is kept.
        touched_column: kept at the time of the last transition, where the table has such a column.
        started_by: trigger name written in the history's first row.
        facts: what each fact must be: name → what is wrong with a value, None where it fits.
        start_hook: name announced to listeners once a subject was started; moves have their own.
        announces: owed with every hook, by the start and by moves alike: the word to whoever is not a listener.
    Raises:
        ConfigError: every hole in the declaration, together.
    """

    name: str
    model: type[Subject]
    key: str
    state_column: str
    initial: str
    states: tuple[State, ...]
    moves: tuple[Move, ...]
    started_by: str = "create"
    start_hook: str | None = None
    announces: Owed | None = None
    parent: Parent | None = None
    touched_column: str | None = None
    facts: Mapping[str, Callable[[object], str | None]] = field(default_factory=dict)
    fingerprint: str = field(init=False)
    machine: Machine = field(init=False, repr=False)
    _by_name: dict[str, State] = field(init=False, repr=False)
    _timed: set[str] = field(init=False, repr=False)
    _allowed: dict[str, tuple[str, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.initial = str(self.initial)
        problems = self.problems()
        if problems:
            raise ConfigError(f"workflow {self.name} is not sound:", problems)
        self._by_name = {state.name: state for state in self.states}
        self._allowed = {
            state.name: tuple(
                dict.fromkeys(move.trigger for move in self.moves if state.name in move.sources(self.states))
            )
            for state in self.states
        }
        self._timed = {state for where, owed in self._owed_where() if owed.is_timer for state in where}
        self.machine = self._build()
        self.fingerprint = self._fingerprint()

    def state(self, name: str) -> State:
        """The declared state of this name."""
        return self._by_name[name]

    def knows(self, state: str) -> bool:
        """Whether this release declares the state; another one may have put a row into one of its own."""
        return state in self._by_name

    def check_facts(self, facts: Mapping[str, object]) -> None:
        """Refuse what guards and changes could not reckon with.

        Raises:
            InvalidInput: names the fact.
        """
        for name, value in facts.items():
            problem = self.facts[name](value) if name in self.facts else None
            if problem is not None:
                raise InvalidInput(str(name), f"{problem}, not {str(value)[:100]!r}")

    def allowed(self, state: str) -> tuple[str, ...]:
        """Triggers that this state knows, whatever the guards say."""
        return self._allowed.get(state, ())

    def triggers(self) -> tuple[str, ...]:
        """Every declared trigger, in the table's order."""
        return tuple(dict.fromkeys(move.trigger for move in self.moves))

    def effects(self) -> dict[str, Effect]:
        """Every effect that some state or move owes, by name."""
        return {owed.effect.name: owed.effect for _, owed in self._owed_where()}

    def owed_by(self, move: Move | None) -> tuple[Owed, ...]:
        """What a move owes beside the state it enters; None is the start, which owes only its announcement."""
        owes, hook = (move.owes, move.hook) if move is not None else ((), self.start_hook)
        return (*owes, self.announces) if hook is not None and self.announces is not None else owes

    def sets_timers(self, state: str) -> bool:
        """True when a stay in this state may own timers, which leaving it cancels."""
        return state in self._timed

    def moves_from(self, state: str, trigger: str) -> list[Move]:
        """The moves that this trigger may make from this state, in the order they are tried."""
        return [m for m in self.moves if m.trigger == trigger and state in m.sources(self.states)]

    # -- building ---------------------------------------------------------------------------------------------

    def _build(self) -> Machine:
        """One machine for all rows: its events are triggered on a Case, which is never registered as a model.

        Registering every row (`add_model`) would compare rows with == and keep them all alive; see the
        contract test on `Event.trigger`.
        """
        machine = Machine(
            model=None,
            states=[MachineState(s.name, on_enter=[_owing(s.owes, of_state=True)]) for s in self.states],
            initial=self.initial,
            auto_transitions=False,
            send_event=True,
        )
        for move in self.moves:
            for source in move.sources(self.states):
                machine.add_transition(
                    move.trigger,
                    source,
                    move.to,
                    conditions=[_selecting(move), *(_guarding(guard) for guard in move.guards)],
                    before=[_beginning(move)],
                    after=[_owing(self.owed_by(move), of_state=False)],
                )
        return machine

    def _fingerprint(self) -> str:
        described: dict[str, object] = {
            "initial": [self.initial, self.started_by, self.start_hook],
            "parent": [self.parent.workflow, self.parent.column] if self.parent else None,
            "states": [[s.name, s.waiting, [_describe(o) for o in s.owes]] for s in self.states],
            "moves": [
                [
                    m.trigger,
                    sorted(m.sources(self.states)),
                    m.to,
                    [guard_name(g) for g in m.guards],
                    [guard_name(f) if f else None for f in (m.when, m.change, m.quiet)],
                    [_describe(o) for o in m.owes],
                    [e.name for e in m.cancels],
                    m.hook,
                ]
                for m in self.moves
            ],
        }
        if self.announces is not None:
            described["announces"] = _describe(self.announces)
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    # -- checks -----------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What is wrong with the declaration; empty when it is sound."""
        names = [state.name for state in self.states]
        found = [f"state {name} is declared twice" for name in sorted(set(names)) if names.count(name) > 1]
        if self.initial not in names:
            found.append(f"the first state {self.initial} is not declared")
        for move in self.moves:
            unknown = {s for s in (*move.sources(self.states), move.to) if s is not None and s not in names}
            found += [f"{move.trigger} names the unknown state {name}" for name in sorted(unknown)]
            if not move.sources(self.states):
                found.append(f"{move.trigger} has no state to start from")
            if move.to is not None and move.cancels:
                found.append(f"{move.trigger} leaves the visit: what it cancels is cancelled anyway or survives")
        unreachable = dict.fromkeys(name for name in names if name not in self._reachable())
        found += [f"state {name} cannot be reached" for name in unreachable]
        found += [
            f"state {s.name} waits, but sets no deadline"
            for s in self.states
            if s.waiting and not any(owed.deadline and owed.is_timer and owed.when is None for owed in s.owes)
        ]
        if self.announces is not None and not any([self.start_hook, *(move.hook for move in self.moves)]):
            found.append(f"{self.announces.effect.name} is owed with every hook, and there is none")
        return found + self._effect_problems()

    def _effect_problems(self) -> list[str]:
        found = []
        effects: dict[str, Effect] = {}
        for where, owed in self._owed_where():
            effect = owed.effect
            if effects.setdefault(effect.name, effect) is not effect:
                found.append(f"two different effects are called {effect.name}")
            if effect.failure is None and not effect.harmless:
                found.append(f"effect {effect.name} has no failure trigger, and does not say why that is harmless")
            elif effect.failure is not None:
                found += [
                    f"effect {effect.name} is owed in {state}, which lacks its failure trigger {effect.failure}"
                    for state in where
                    if not self.moves_from(state, effect.failure)
                ]
        return sorted(set(found))

    def _owed_where(self) -> list[tuple[tuple[str, ...], Owed]]:
        """Each owed effect with the states the row may be in while it is owed."""
        pairs: list[tuple[tuple[str, ...], Owed]] = [
            ((state.name,), owed) for state in self.states for owed in state.owes
        ]
        pairs += [((self.initial,), owed) for owed in self.owed_by(None)]
        for move in self.moves:
            stays = move.sources(self.states) if move.to is None else (move.to,)
            pairs += [(stays, owed) for owed in self.owed_by(move)]
        return pairs

    def _reachable(self) -> set[str]:
        seen = {self.initial}
        grown = True
        while grown:
            reached = {
                move.to for move in self.moves if move.to is not None and seen & set(move.sources(self.states))
            }
            grown = not reached <= seen
            seen |= reached
        return seen


def guard_name(function: Callable[..., object]) -> str:
    """How a guard or change is called in errors, pictures and the fingerprint."""
    return getattr(function, "__name__", type(function).__name__)


def _case(event: EventData) -> Case[Any]:
    return cast("Case[Any]", event.model)


def _describe(owed: Owed) -> list[object]:
    effect = owed.effect
    names = [guard_name(f) if f else None for f in (owed.after, owed.inputs, owed.when)]
    names += [guard_name(owed.each)] if owed.each is not None else []
    tries = [effect.attempts, effect.retry_seconds, effect.retry_seconds_max]
    return [effect.name, effect.queue, effect.failure, effect.survives, tries, owed.deadline, names]


def _selecting(move: Move) -> Callable[[EventData], bool]:
    def selects(event: EventData) -> bool:
        return move.when is None or move.when(_case(event))

    return selects


def _guarding(guard: Check) -> Callable[[EventData], bool]:
    def agrees(event: EventData) -> bool:
        reason = guard(_case(event))
        if reason is None:
            return True
        # transitions only learns True or False; the reason is left on the case.
        _case(event).refusals.append((guard_name(guard), reason))
        return False

    return agrees


def _beginning(move: Move) -> Callable[[EventData], None]:
    def begin(event: EventData) -> None:
        _case(event).begin(move)

    return begin


def _owing(owes: tuple[Owed, ...], *, of_state: bool) -> Callable[[EventData], None]:
    def owe(event: EventData) -> None:
        _case(event).owe(owes, of_state=of_state)

    return owe
