"""Owns small declarations and cases for the engine's unit tests."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from peewee import CharField

from smi_workflow.engine.declaration import Case, Effect, Facts, Move, State, UnitOfWork
from smi_workflow.engine.tables import Subject
from smi_workflow.engine.workflow import Workflow

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Door(Subject):
    door_id = CharField(20, unique=True)
    state = CharField(20)


KNOCK = Effect("knock", queue="hall", failure="slam", attempts=4)
SIT = KNOCK.later(lambda case: timedelta(hours=1), deadline=True)
STATES = (State("open", "one may pass"), State("shut", "one may not", owes=(KNOCK.now(), SIT), waiting=True))
MOVES = (Move("close", "open", "shut"), Move("push", "shut", "open"), Move("slam", "shut", None))


def declare(**changes: Any) -> Workflow:
    """A small sound workflow, with something about it changed."""
    parts: dict[str, Any] = {
        "name": "door",
        "model": Door,
        "key": "door_id",
        "state_column": "state",
        "initial": "open",
        "states": STATES,
        "moves": MOVES,
    }
    return Workflow(**{**parts, **changes})


def case_of(trigger: str, state: str = "open", facts: Mapping[str, Any] | None = None) -> Case[Door]:
    """A case that touches no database."""
    return Case(
        row=Door(door_id="d", state=state), state=state, trigger=trigger, facts=Facts(facts), now=NOW,
        actor="system", reason="", unit=cast("UnitOfWork", None),
    )  # fmt: skip
