"""Owns the form of a recorded life: the acts that moved its subjects, with all that replaying them needs.

Called by record.py, which writes, and replay.py, which reads. A file holds one life a line, as JSON; it is named
after the fingerprints of the definitions that it was recorded under, and is kept for good.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from smi_workflow.engine.fire import Engine
from smi_workflow.engine.unit import Applied, Unit
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.refunds import REFUND

FOLDER = Path(__file__).parent
COMMAND = "python -m tests.histories.record"


def path_of_today() -> Path:
    """Where the lives of today's definitions are, or would be."""
    return FOLDER / f"{JOB.fingerprint}-{REFUND.fingerprint}.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """One applied trigger: the act's own, or one that it caused in the same commit."""

    workflow: str
    subject: str
    sequence: int
    trigger: str
    from_state: str
    to_state: str
    owed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Act:
    """One start or fire from outside, with what it was handed, and every row that it wrote."""

    workflow: str
    subject: str | None  # None: it starts one
    trigger: str
    actor: str
    reason: str
    at: str
    given: Mapping[str, Any]  # the columns of a start, the facts of a fire
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class End:
    """Where a subject stood when the recording stopped, and what was still owed to it."""

    workflow: str
    subject: str
    state: str
    owed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Life:
    """One sale with all its subjects, from the first act to the last recorded one."""

    name: str
    acts: tuple[Act, ...]
    ends: tuple[End, ...]

    def line(self) -> str:
        """The life as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), default=_written)

    @classmethod
    def read(cls, line: str) -> Self:
        """The opposite of `line`."""
        told = json.loads(line, object_hook=_read)
        acts = [Act(**{**act, "rows": tuple(_row(row) for row in act["rows"])}) for act in told["acts"]]
        ends = [End(**{**end, "owed": tuple(end["owed"])}) for end in told["ends"]]
        return cls(told["name"], tuple(acts), tuple(ends))

    def rows(self) -> list[Row]:
        """Every row of every subject, in the order of writing."""
        return [row for act in self.acts for row in act.rows]


def recorded_lives(path: Path) -> list[Life]:
    """The lives of a file."""
    return [Life.read(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def recording() -> Iterator[list[Act]]:
    """Take down every commit of every engine: what was fired from outside, and all that it wrote."""
    tape: list[Act] = []
    depth: dict[int, int] = {}
    acts: dict[int, list[tuple[Act, int]]] = {}
    fire, start, after_commit = Unit.fire, Unit.start, Engine._after_commit

    def watched(unit: Unit, act: Act, call: Any) -> Any:
        outermost = depth.get(id(unit), 0) == 0
        before = len(unit.applied)
        depth[id(unit)] = depth.get(id(unit), 0) + 1
        try:
            result = call()
        finally:
            depth[id(unit)] -= 1
        if outermost and len(unit.applied) > before:
            acts.setdefault(id(unit), []).append((act, len(unit.applied)))
        return result

    def watched_fire(unit: Unit, workflow: str, key: str, trigger: str, **rest: Any) -> Applied:
        facts = dict(rest.get("facts") or {})
        act = Act(workflow, key, trigger, rest["actor"], rest.get("reason", ""), unit.now.isoformat(), facts, ())
        applied: Applied = watched(unit, act, lambda: fire(unit, workflow, key, trigger, **rest))
        return applied

    def watched_start(unit: Unit, workflow: str, columns: Mapping[str, object], **rest: Any) -> Any:
        act = Act(
            workflow, None, "", rest["actor"], rest.get("reason", ""), unit.now.isoformat(), dict(columns), ()
        )
        return watched(unit, act, lambda: start(unit, workflow, columns, **rest))

    def watched_commit(engine: Engine, unit: Unit) -> None:
        written = 0
        for act, end in acts.pop(id(unit), []):
            rows = tuple(row_of(one) for one in unit.applied[written:end])
            written = end
            tape.append(
                Act(act.workflow, act.subject, act.trigger, act.actor, act.reason, act.at, act.given, rows)
            )
        depth.pop(id(unit), None)
        after_commit(engine, unit)

    with (
        patch.object(Unit, "fire", watched_fire),
        patch.object(Unit, "start", watched_start),
        patch.object(Engine, "_after_commit", watched_commit),
    ):
        yield tape


def row_of(applied: Applied) -> Row:
    """What is recorded of an applied trigger."""
    owed = tuple(sorted(item.name for item in applied.owed))
    return Row(
        applied.workflow, applied.subject_id, applied.sequence, applied.trigger, applied.from_state,
        applied.to_state, owed,
    )  # fmt: skip


def _row(told: Mapping[str, Any]) -> Row:
    return Row(**{**told, "owed": tuple(told["owed"])})


def _written(value: object) -> object:
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    raise TypeError(f"a life cannot hold {value!r}")


def _read(told: dict[str, Any]) -> Any:
    if "$datetime" in told:
        return datetime.fromisoformat(told["$datetime"])
    return Decimal(told["$decimal"]) if "$decimal" in told else told
