"""Owns the model's memory: rows that guards and changes take for real ones, and the few queries made on them.

Called by model.py. A row carries its declared model's defaults, properties and methods, and no database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Protocol, Self

from peewee import AutoField, BigAutoField, Model

from smi_workflow.engine.database import Slot
from smi_workflow.engine.tables import Subject
from smi_workflow.errors import TransitionConflict

# What every subject has for the engine's own sake; two states that differ in nothing else are the same.
_BOOKKEEPING = frozenset({"version", "visit", "parked_events"})


class Row:
    """One row in memory."""

    shape: Shape

    def copy(self) -> Self:
        """A copy to write to; rows are shared between states until then."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.__dict__.pop("_frozen", None)
        return made

    def frozen(self) -> tuple[tuple[object, ...], tuple[datetime, ...]]:
        """Everything that tells this row from another, and the instants in it that may still lie ahead."""
        kept: tuple[tuple[object, ...], tuple[datetime, ...]] | None = self.__dict__.get("_frozen")
        if kept is None:
            plain: list[object] = []
            instants = []
            for name in self.shape.telling:
                value = self.__dict__[name]
                if isinstance(value, datetime):
                    plain.append(True)
                    if name in self.shape.clocks:
                        instants.append(value)
                else:
                    plain.append(value)
            kept = self.__dict__["_frozen"] = (tuple(plain), tuple(instants))
        return kept


class Shape:
    """What the rows of one model look like.

    Args:
        ignored: columns that nothing decides on (texts for people).
        clocks: columns whose instants are compared with the time.
    """

    def __init__(self, model: type[Model], ignored: frozenset[str], clocks: frozenset[str]) -> None:
        meta: Any = model._meta
        fields: dict[str, Any] = meta.fields
        # An AutoField orders rows in a table; nothing of ours decides on it.
        own_ids = {name for name, item in fields.items() if isinstance(item, AutoField | BigAutoField)}
        self.model = model
        self.names = tuple(fields)
        self.clocks = clocks
        self.unique = tuple(name for name, item in fields.items() if item.unique and name not in own_ids)
        self.telling = (*sorted(set(fields) - own_ids - ignored - _BOOKKEEPING), "deadline_ran")
        self._defaults: Callable[[], dict[str, Any]] = meta.get_default_dict
        # Readers tell a row from a refusal by isinstance.
        named: dict[str, Any] = {"shape": self, "__class__": property(lambda row: model)}
        for kind in reversed(model.__mro__):
            if kind not in (object, Model, Subject) and issubclass(kind, Model):
                named |= {
                    name: value
                    for name, value in vars(kind).items()
                    if not name.startswith("_") and name not in fields and name != "DoesNotExist"
                }
        self._kind: type[Row] = type(model.__name__, (Row,), named)

    def make(self, columns: dict[str, Any]) -> Row:
        """A new row with the model's defaults."""
        row = self._kind()
        row.__dict__.update(dict.fromkeys(self.names), deadline_ran=False, **self._defaults())
        row.__dict__.update(columns)
        return row


class Holder(Protocol):
    """What a table needs of the scene that it is part of."""

    tables: dict[type[Model], dict[object, Row]]

    def shape(self, model: type[Model]) -> Shape: ...

    def own(self, model: type[Model], key: object) -> Row: ...

    def row_key(self, model: type[Model], row: Row) -> object: ...


class Term:
    """A column or a condition, as peewee's expressions are written."""

    __slots__ = ("of",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, of: Callable[[Any], Any]) -> None:
        self.of = of

    def __eq__(self, other: object) -> Term:  # type: ignore[override]
        return Term(lambda row: self.of(row) == _value(other, row))

    def __ne__(self, other: object) -> Term:  # type: ignore[override]
        return Term(lambda row: self.of(row) != _value(other, row))

    def __gt__(self, other: object) -> Term:
        return Term(lambda row: self.of(row) > _value(other, row))

    def __add__(self, other: object) -> Term:
        return Term(lambda row: self.of(row) + _value(other, row))

    def __sub__(self, other: object) -> Term:
        return Term(lambda row: self.of(row) - _value(other, row))

    def __and__(self, other: object) -> Term:
        return Term(lambda row: bool(self.of(row) and _value(other, row)))

    def __or__(self, other: object) -> Term:
        return Term(lambda row: bool(self.of(row) or _value(other, row)))

    def __invert__(self) -> Term:
        return Term(lambda row: not self.of(row))

    def in_(self, values: object) -> Term:
        """Whether it is one of these."""
        return Term(lambda row: self.of(row) in values)  # type: ignore[operator]

    def contains(self, part: str) -> Term:
        """Whether the text has this part."""
        return Term(lambda row: part in (self.of(row) or ""))


# What the slots of the query that runs right now stand for.
_filled: dict[str, object] = {}


def _value(term: object, row: Any) -> Any:
    if isinstance(term, Term):
        return term.of(row)
    return _filled[str(term.value)] if isinstance(term, Slot) else term


def select(build: Callable[[], Query], values: Mapping[str, object]) -> list[Any]:
    """Run a query with slots, as `Registry.select` does."""
    _filled.clear()
    _filled.update(values)
    found: list[Any] = build().execute()
    return found


class Query:
    """An insert, update or select that has not run yet."""

    def __init__(self, run: Callable[[Callable[[Any], bool]], Any]) -> None:
        self._run = run
        self._chosen: Callable[[Any], bool] = lambda row: True

    def where(self, *terms: Term) -> Query:
        """Only the rows that all of these are true of."""
        self._chosen = lambda row: all(term.of(row) for term in terms)
        return self

    def execute(self) -> Any:
        """Run it."""
        return self._run(self._chosen)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.execute())

    def first(self) -> Any:
        """The first row, or None."""
        return next(iter(self), None)

    def exists(self) -> bool:
        """Whether there is one."""
        return self.first() is not None


class ReadTable:
    """Rows that may be asked for by condition, as a bound model's are."""

    def __init__(self, rows: Callable[[], Any]) -> None:
        self._rows = rows

    def __getattr__(self, name: str) -> Term:
        return Term(lambda row: getattr(row, name))

    def select(self, *columns: Term) -> Query:
        """The rows; whole, whatever columns are named."""
        return Query(lambda chosen: [row for row in self._rows() if chosen(row)])

    def get_or_none(self, *terms: Term) -> Any:
        """The first row that all of these are true of."""
        return self.select().where(*terms).first()


class MemoryTable(ReadTable):
    """One model's rows in one scene, with the writes that changes make."""

    def __init__(self, holder: Holder, model: type[Model]) -> None:
        super().__init__(lambda: list(holder.tables[model].values()))
        self._holder = holder
        self._model = model

    def insert(self, **columns: Any) -> Query:
        """One more row."""

        def run(chosen: Callable[[Any], bool]) -> int:
            row = self._holder.shape(self._model).make(columns)
            check_unique(self._holder, self._model, row)
            rows = self._holder.tables[self._model]
            rows[self._holder.row_key(self._model, row)] = row
            return 1

        return Query(run)

    def update(self, **columns: Any) -> Query:
        """New values in the rows chosen."""

        def run(chosen: Callable[[Any], bool]) -> int:
            found = [key for key, row in self._holder.tables[self._model].items() if chosen(row)]
            for key in found:
                row = self._holder.own(self._model, key)
                row.__dict__.update({name: _value(value, row) for name, value in columns.items()})
                check_unique(self._holder, self._model, row)
            return len(found)

        return Query(run)


def check_unique(holder: Holder, model: type[Model], row: Row) -> None:
    """Refuse what the database's unique keys refuse.

    Raises:
        TransitionConflict: as the engine says it.
    """
    for name in holder.shape(model).unique:
        value = row.__dict__[name]
        if value is None:
            continue
        for other in holder.tables[model].values():
            if other is not row and other.__dict__[name] == value:
                raise TransitionConflict(f"two rows of {model.__name__} have the same {name}")
