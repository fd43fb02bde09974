"""Owns the rows of the effect queue: owing, claiming, leasing, settling, sweeping.

Called by unit.py, which owes, and perform.py, which runs.

Laws 3 to 5 live here: the database is the queue, a claim is a compare-and-set with a lease and a fresh token,
and the attempt is on record before the call goes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from peewee import Model, fn

from smi_workflow.engine.database import Slot, Statement, read_stamp, readable, stamp
from smi_workflow.engine.declaration import Owed
from smi_workflow.engine.tables import EffectRow, EffectState, Tables

# Whoever owed an effect has rung already: its message is given this long before the sweep rings once more.
GRACE = timedelta(seconds=1)


M = TypeVar("M", bound=Model)


class _Statements(Protocol):
    """The compiled statements that the outbox shares with its engine."""

    tables: Tables

    def statement(self, key: object, build: Any) -> Statement: ...

    def select(self, key: object, model: type[M], build: Any, values: Mapping[str, object]) -> list[M]: ...


@dataclass(frozen=True, slots=True)
class DueEffect:
    """What the sweep needs to know of an effect: how to ring for it."""

    id: str
    name: str
    queue: str
    is_fresh: bool  # owed a moment ago, and rung by whoever owed it


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run an effect, until it lapses; the token fences whoever comes back late."""

    effect_id: str
    token: str


class Outbox:
    """The queue of one engine. All of it runs inside the caller's transaction, but for `due` and `renew`."""

    def __init__(self, registry: _Statements) -> None:
        self._registry = registry
        self._table = registry.tables.effects

    def insert(
        self,
        workflow: str,
        subject_id: str,
        visit: int,
        sequence: int,
        owed: Sequence[tuple[Owed, str, datetime, str]],
        now: datetime,
    ) -> None:
        """Write what a transition owes, in one statement. Each item: what, its inputs as JSON, due at, id."""
        if not owed:
            return
        table = self._table
        values: dict[str, object] = {
            "workflow": workflow,
            "subject_id": subject_id,
            "visit": visit,
            "sequence": sequence,
            "created_at": stamp(now),
        }
        own = ("id", "name", "queue", "is_timer", "survives", "inputs", "due_at", "attempts_max")
        for index, (item, inputs, due_at, effect_id) in enumerate(owed):
            effect = item.effect
            row = (
                effect_id, effect.name, effect.queue, item.is_timer, effect.survives, inputs,
                stamp(due_at), effect.attempts,
            )  # fmt: skip
            values |= {f"{name}{index}": value for name, value in zip(own, row, strict=True)}

        def build() -> Any:
            shared = {name: Slot(name) for name in ("workflow", "subject_id", "visit", "sequence", "created_at")}
            return table.insert_many(
                [
                    {**shared, **{name: Slot(f"{name}{index}") for name in own}, "state": EffectState.DUE.value}
                    for index in range(len(owed))
                ]
            )

        self._registry.statement(("owe", len(owed)), build).run(values)

    def cancel_timers(self, workflow: str, subject_id: str, visit: int, now: datetime) -> None:
        """Cancel the timers of a visit that ends; a worker that runs one right now cannot settle it."""
        table = self._table

        def build() -> Any:
            return table.update(state=EffectState.CANCELLED.value, lease_token=None, settled_at=Slot("now")).where(
                _of_visit(table) & table.is_timer & ~table.survives & table.state.in_(_OPEN)
            )

        self._registry.statement("cancel timers", build).run(
            {"workflow": workflow, "subject_id": subject_id, "visit": visit, "now": stamp(now)}
        )

    def cancel(self, workflow: str, subject_id: str, visit: int, name: str, now: datetime) -> None:
        """Cancel one effect of the present visit by name."""
        table = self._table

        def build() -> Any:
            return table.update(state=EffectState.CANCELLED.value, lease_token=None, settled_at=Slot("now")).where(
                _of_visit(table) & (table.name == Slot("name")) & table.state.in_(_OPEN)
            )

        self._registry.statement("cancel", build).run(
            {"workflow": workflow, "subject_id": subject_id, "visit": visit, "name": name, "now": stamp(now)}
        )

    def claim(self, effect_id: str, token: str, now: datetime, lease: timedelta) -> EffectRow | None:
        """Take the effect if it is due or its lease has lapsed: the attempt and the doubt are on record with it.

        Returns: the row as claimed, or None when there is nothing to do (settled, not due, someone has it).
        """
        table = self._table

        def build() -> Any:
            waiting = (table.state == EffectState.DUE.value) & (table.due_at <= Slot("now"))
            lapsed = (table.state == EffectState.CLAIMED.value) & (table.lease_until < Slot("now"))
            return table.update(
                state=EffectState.CLAIMED.value,
                lease_token=Slot("token"),
                lease_until=Slot("until"),
                attempts=table.attempts + 1,
                doubts=table.doubts + 1,
                first_attempt_at=fn.COALESCE(table.first_attempt_at, Slot("now")),
            ).where((table.id == Slot("id")) & (waiting | lapsed))

        cursor = self._registry.statement("claim", build).run(
            {"id": effect_id, "token": token, "now": stamp(now), "until": stamp(now + lease)}
        )
        if cursor.rowcount != 1:
            return None
        return self._registry.select(
            "claimed", table, lambda: table.select().where(table.id == Slot("id")), {"id": effect_id}
        )[0]

    def renew(self, lease: Lease, now: datetime, duration: timedelta) -> bool:
        """Extend a lease that still stands; False when it was lost. One statement, its own commit."""
        table = self._table

        def build() -> Any:
            return table.update(lease_until=Slot("until")).where(_held(table) & (table.lease_until >= Slot("now")))

        cursor = self._registry.statement("renew", build).run(
            {"id": lease.effect_id, "token": lease.token, "now": stamp(now), "until": stamp(now + duration)}
        )
        return bool(cursor.rowcount == 1)

    def settle(self, lease: Lease, state: EffectState, now: datetime, *, outcome: str, error: str | None) -> bool:
        """End an effect for good; False when the lease is not ours any more."""
        return self._finish(
            lease, {"state": state.value, "settled_at": stamp(now), "outcome": outcome, "last_error": error}
        )

    def put_back(self, lease: Lease, due_at: datetime, **columns: object) -> bool:
        """Make an effect due again later; False when the lease is not ours any more."""
        return self._finish(lease, {"state": EffectState.DUE.value, "due_at": stamp(due_at), **columns})

    def _finish(self, lease: Lease, columns: Mapping[str, object]) -> bool:
        table = self._table
        names = tuple(sorted(columns))

        def build() -> Any:
            values = {name: Slot(name) for name in names}
            return table.update({**values, "lease_token": None, "lease_until": None}).where(_held(table))

        written = {name: readable(value) if isinstance(value, str) else value for name, value in columns.items()}
        cursor = self._registry.statement(("finish", names), build).run(
            {**written, "id": lease.effect_id, "token": lease.token}
        )
        return bool(cursor.rowcount == 1)

    def due(self, queue: str, now: datetime, limit: int) -> list[DueEffect]:
        """What is due on a queue, oldest first. By queue, so that none starves behind another's backlog."""
        table = self._table

        def build() -> Any:
            is_due = (
                (table.state == EffectState.DUE.value)
                & (table.queue == Slot("queue"))
                & (table.due_at <= Slot("now"))
            )
            columns = (table.id, table.name, table.queue, table.due_at, table.created_at)
            return table.select(*columns).where(is_due).order_by(table.due_at).limit(limit)

        cursor = self._registry.statement(("due", limit), build).run({"queue": queue, "now": stamp(now)})
        return [self._found(record, now) for record in cursor.fetchall()]

    def lapsed(self, now: datetime, limit: int) -> list[DueEffect]:
        """Claims whose worker has stopped renewing: free for the next one."""
        table = self._table

        def build() -> Any:
            is_lapsed = (table.state == EffectState.CLAIMED.value) & (table.lease_until < Slot("now"))
            columns = (table.id, table.name, table.queue, table.due_at, table.created_at)
            return table.select(*columns).where(is_lapsed).limit(limit)

        cursor = self._registry.statement(("lapsed", limit), build).run({"now": stamp(now)})
        return [DueEffect(record[0], record[1], record[2], is_fresh=False) for record in cursor.fetchall()]

    @staticmethod
    def _found(record: Sequence[Any], now: datetime) -> DueEffect:
        due_at, created_at = read_stamp(record[3]), read_stamp(record[4])
        assert due_at is not None
        assert created_at is not None
        return DueEffect(record[0], record[1], record[2], due_at <= created_at and now - created_at < GRACE)


_OPEN = (EffectState.DUE.value, EffectState.CLAIMED.value)


def _of_visit(table: type[EffectRow]) -> Any:
    return (
        (table.workflow == Slot("workflow"))
        & (table.subject_id == Slot("subject_id"))
        & (table.visit == Slot("visit"))
    )


def _held(table: type[EffectRow]) -> Any:
    return (
        (table.id == Slot("id"))
        & (table.state == EffectState.CLAIMED.value)
        & (table.lease_token == Slot("token"))
    )
