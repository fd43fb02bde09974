"""Owns the replaying of recorded lives against the present definitions. Called by the test of histories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from smi_workflow.app import App
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import SmiError
from tests.histories.tape import Act, Life, Row, recording
from tests.support.engines import HandClock


def unreadable(life: Life, workflows: Mapping[str, Workflow]) -> list[str]:
    """What the present definitions could not even take up of a life, wherever in it a deploy had come.

    A row in a state that is not declared, a state that lacks a trigger it once took, an effect that nobody runs.
    """
    found: list[str] = []
    for row in life.rows():
        flow = workflows[row.workflow]
        for state in {row.from_state, row.to_state} - {""}:
            if state not in [one.name for one in flow.states]:
                found.append(f"{row.workflow}: the state {state} is not declared any more")
        if row.from_state and row.trigger not in flow.allowed(row.from_state):
            found.append(f"{row.workflow}: {row.from_state} does not take '{row.trigger}' any more")
        found += [
            f"{row.workflow}: nobody runs the effect {name} any more" for name in row.owed if not _runs(flow, name)
        ]
    for end in life.ends:
        flow = workflows[end.workflow]
        if end.state not in [one.name for one in flow.states]:
            found.append(f"{end.workflow}: one lives in {end.state}, which is not declared any more")
        found += [
            f"{end.workflow}: {name} is still owed, and nobody runs it"
            for name in end.owed
            if not _runs(flow, name)
        ]
    return sorted(set(found))


def replay(life: Life, app: App, clock: HandClock) -> list[str]:
    """Live it again, act by act with the recorded facts, on the real engine; returns what went another way.

    Nothing is performed: what the effects once found out stands in the recorded facts. Ids that the engine makes
    are others now, and are put in the place of the recorded ones.
    """
    differences: list[str] = []
    ids: dict[str, str] = {}
    for act in life.acts:
        clock.time = datetime.fromisoformat(act.at)
        try:
            rows = _again(_renamed(act, ids), app)
        except SmiError as refusal:
            return [*differences, f"'{act.trigger or 'start'}' of {act.workflow}: {refusal}"]
        pairs = list(zip(act.rows, rows, strict=False))
        ids |= {
            old.subject: new.subject for old, new in pairs if old.subject != new.subject and not old.from_state
        }
        if len(rows) != len(act.rows):
            differences.append(f"'{act.trigger}' wrote {_told(rows)}, and not {_told(act.rows)}")
        differences += [
            f"{_told([new])}, and not {_told([old])}" for old, new in pairs if _path(old, ids) != _path(new, ids)
        ]
        differences += [
            f"{_told([new])} owes {', '.join(new.owed) or 'nothing'}, and not {', '.join(old.owed) or 'nothing'}"
            for old, new in pairs
            if old.owed != new.owed
        ]
    return differences


def _again(act: Act, app: App) -> list[Row]:
    with recording() as tape:
        if act.subject is None:
            app.engine.start(act.workflow, act.given, actor=act.actor, reason=act.reason)
        else:
            app.engine.fire(
                act.workflow, act.subject, act.trigger, actor=act.actor, reason=act.reason, facts=act.given
            )
    return [row for one in tape for row in one.rows]


def _renamed(act: Act, ids: Mapping[str, str]) -> Act:
    """The act with today's ids in the place of the recorded ones, in its facts too."""
    if not ids:
        return act
    line = Life("", (replace(act, rows=()),), ()).line()
    for old, new in ids.items():
        line = line.replace(json.dumps(old), json.dumps(new))
    return Life.read(line).acts[0]


def _path(row: Row, ids: Mapping[str, str]) -> tuple[object, ...]:
    subject = ids.get(row.subject, row.subject)
    return row.workflow, subject, row.sequence, row.trigger, row.from_state, row.to_state


def _told(rows: list[Row] | tuple[Row, ...]) -> str:
    return ", ".join(f"{row.workflow} {row.trigger}: {row.from_state or '-'} → {row.to_state}" for row in rows)


def _runs(flow: Workflow, name: str) -> bool:
    return name in flow.effects()
