"""Owns the words a workflow is declared in, and the Case that guards and changes see.

Called by workflow.py, fire.py and every declared workflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from peewee import Model

from smi_workflow.engine.tables import Subject

R = TypeVar("R", bound=Subject)
M = TypeVar("M", bound=Model)

ANYWHERE = "*"


class MissingFact(KeyError):
    """A guard or change asked for a fact that the caller did not hand in."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)


class Facts(Mapping[str, Any]):
    """What the caller found out before firing; asking for what is not there names it."""

    __slots__ = ("_given",)

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self._given = dict(given or {})

    def __getitem__(self, name: str) -> Any:
        if name not in self._given:
            raise MissingFact(name)
        return self._given[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The fact, or the default."""
        return self._given.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


class UnitOfWork(Protocol):
    """What a change may do to other rows, all in the same commit."""

    def wake_strays(self, name: str) -> None:
        """Try again the events that name this and were parked while nobody knew whose they are."""

    def new_id(self) -> str:
        """A fresh id from the engine's source, for a new subject."""

    def bound(self, model: type[M]) -> type[M]:
        """The declared model, bound to the database of this transaction."""

    def start(self, workflow: str, columns: Mapping[str, object], *, actor: str, reason: str = "") -> Any:
        """Create another subject in its first state; returns its row."""

    def fire(
        self,
        workflow: str,
        key: str,
        trigger: str,
        *,
        actor: str,
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Any:
        """Fire another subject."""


@dataclass(slots=True, eq=False)
class Case(Generic[R]):
    """One attempt to apply one trigger to one locked row. It is the object that `transitions` drives.

    Guards read `row`, `facts` and `now`; a change calls `set`, `record`, and `unit` for other subjects.
    `policy` is whatever the engine was given for the shop's settings: deadlines, limits, keys. `hook` is the name
    that the move is announced by, once one is made.
    """

    row: R
    state: str
    trigger: str
    facts: Facts
    now: datetime
    actor: str
    reason: str
    unit: UnitOfWork
    policy: Any = None
    refusals: list[tuple[str, str]] = field(default_factory=list)
    changes: dict[str, object] = field(default_factory=dict)
    metadata: dict[str, object] = field(default_factory=dict)
    owed: list[Owed] = field(default_factory=list)
    move: Move | None = None
    hook: str | None = None

    def set(self, **columns: object) -> None:
        """Change columns of the row, written with the transition."""
        for name, value in columns.items():
            setattr(self.row, name, value)
        self.changes.update(columns)

    def record(self, **values: object) -> None:
        """Add to the history row's metadata. Never personal data: history is kept for good."""
        self.metadata.update(values)

    def begin(self, move: Move) -> None:
        """Called by the machine once every guard has agreed."""
        self.move, self.hook = move, move.hook
        if move.change is not None:
            move.change(self)

    def owe(self, owes: Sequence[Owed], *, of_state: bool = True) -> None:
        """Called by the machine on entering a state and after a move, which hushes the state's only.

        What the state owes already, the move does not owe again.
        """
        quiet = self.move.quiet if self.move is not None and of_state else None
        only_timers = quiet is not None and quiet(self)
        for item in owes:
            due = (item.is_timer or not only_timers) and (item.when is None or item.when(self))
            if due and item not in self.owed:
                self.owed.append(item)


Check = Callable[[Case[Any]], str | None]
Change = Callable[[Case[Any]], None]
Condition = Callable[[Case[Any]], bool]
Delay = Callable[[Case[Any]], timedelta]
Inputs = Callable[[Case[Any]], Mapping[str, object]]
Several = Callable[[Case[Any]], Sequence[Mapping[str, object]]]


@dataclass(frozen=True, slots=True)
class Effect:
    """A side effect that transitions may owe; the handler of the same name runs it.

    Attributes:
        queue: which worker process consumes it.
        failure: trigger fired after the last attempt, on the same subject; None only where `harmless` says why.
        attempts: how often it is tried before that.
        harmless: why nothing needs to be fired when it fails for good.
        survives: still owed when the visit that owed it is over.
        retry_seconds: first wait after a failed attempt; doubled each time up to `retry_seconds_max`.
    """

    name: str
    queue: str
    failure: str | None = None
    attempts: int = 6
    harmless: str = ""
    survives: bool = False
    retry_seconds: float = 2.0
    retry_seconds_max: float = 600.0

    def now(self, inputs: Inputs | None = None, when: Condition | None = None) -> Owed:
        """Owe it at once."""
        return Owed(self, None, inputs, when)

    def later(
        self, after: Delay, inputs: Inputs | None = None, when: Condition | None = None, *, deadline: bool = False
    ) -> Owed:
        """Owe it as a timer; `deadline` marks the one that ends an endless wait."""
        return Owed(self, after, inputs, when, deadline)

    def for_each(self, of: Several) -> Owed:
        """Owe it at once, one for each of several inputs, which all differ; none where there are none."""
        return Owed(self, each=of)


@dataclass(frozen=True, slots=True)
class Owed:
    """An effect as one state or one move owes it: when, with which inputs, under which condition."""

    effect: Effect
    after: Delay | None = None
    inputs: Inputs | None = None
    when: Condition | None = None
    deadline: bool = False
    each: Several | None = None

    def inputs_of(self, case: Case[Any]) -> Sequence[Mapping[str, object]]:
        """The inputs of every effect that is owed: of one, unless it is owed `for_each`."""
        if self.each is not None:
            return self.each(case)
        return (self.inputs(case) if self.inputs is not None else {},)

    @property
    def is_timer(self) -> bool:
        """True when it has a due time in the future."""
        return self.after is not None


@dataclass(frozen=True, slots=True)
class State:
    """One state. A `waiting` one must set a deadline when it is entered; others may be stayed in for ever."""

    name: str
    meaning: str
    owes: tuple[Owed, ...] = ()
    waiting: bool = False

    def __post_init__(self) -> None:
        # Members of a StrEnum become plain text: transitions looks up members of an Enum by another name.
        object.__setattr__(self, "name", str(self.name))


@dataclass(frozen=True, slots=True)
class Move:
    """One row of a workflow's table: from some states, by a trigger, to a state (or `to=None`: it stays).

    Attributes:
        guards: all must agree; the first that refuses gives the reason.
        when: chooses between moves of the same trigger and state; not a refusal.
        change: sets columns and starts or fires other subjects, in the same commit.
        owes: effects of this move, beside those of the state it enters.
        cancels: effects of the present visit that are no longer owed.
        by: who usually causes it, for the reader.
        quiet: where it is true, the state entered owes only its timers: deadlines without side effects.
        hook: name announced to listeners after the commit; the workflow's `announces` is owed with it.
    """

    trigger: str
    source: str | tuple[str, ...]
    to: str | None
    guards: tuple[Check, ...] = ()
    when: Condition | None = None
    change: Change | None = None
    owes: tuple[Owed, ...] = ()
    cancels: tuple[Effect, ...] = ()
    quiet: Condition | None = None
    by: str = ""
    hook: str | None = None

    def __post_init__(self) -> None:
        source = self.source
        object.__setattr__(self, "source", str(source) if isinstance(source, str) else tuple(map(str, source)))
        object.__setattr__(self, "to", str(self.to) if self.to is not None else None)

    def sources(self, states: Sequence[State]) -> tuple[str, ...]:
        """The states it starts from, `ANYWHERE` spelled out."""
        if self.source == ANYWHERE:
            return tuple(state.name for state in states)
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True, slots=True)
class Parent:
    """The subject whose lock is taken before this one's."""

    workflow: str
    column: str
