"""Upgrades: every life that was ever recorded can go on under today's definitions, and goes the same way.

Called by pytest. The files in tests/histories are kept for good; a change to a workflow adds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.engine.migrate import migrate
from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs.lifecycle import JOB, MOVES, STATES
from smi_workflow.jobs.refunds import REFUND
from tests.histories.lives import TOLD
from tests.histories.replay import replay, unreadable
from tests.histories.tape import COMMAND, FOLDER, Life, path_of_today, recorded_lives
from tests.support.apps import Rung, test_settings
from tests.support.engines import HandClock

TODAY: Mapping[str, Workflow] = {"job": JOB, "refund": REFUND}
FILES = sorted(FOLDER.glob("*.jsonl"))
# Lives that were meant to go another way since they were recorded: "<file's stem>:<life>" → why.
# They must still be readable; that they do go another way is checked too.
INTENDED: dict[str, str] = {
    "83dcbae8f6da8994-73e7fdddcb6a6fc4:refunded_at_the_dashboard": (
        "a refund made at Stripe has a life of its own now; its events are read anew, so none is stuck"
    ),
}


def every_life() -> list[Any]:
    return [
        pytest.param(f"{path.stem}:{life.name}", life, id=f"{path.stem[:8]}:{life.name}")
        for path in FILES
        for life in recorded_lives(path)
    ]


def lived_again(life: Life, folder: Path, job: Workflow = JOB) -> list[str]:
    clock = HandClock()
    is_told = any("send_hook" in row.owed for row in life.rows())
    settings = test_settings(folder, database_url="sqlite:///:memory:", **(TOLD if is_told else {}))
    app = App(settings, ring=Rung(), clock=clock, workflows=(job, REFUND))
    try:
        migrate(app.database, MIGRATIONS, prefix=settings.table_prefix)
        return replay(life, app, clock)
    finally:
        app.close()


def test_todays_definitions_have_a_recorded_file() -> None:
    path = path_of_today()
    assert path.exists(), (
        f"the workflows have changed: record their lives with `{COMMAND}`, and add {path.name} to the repository."
        " Leave the other files where they are."
    )


def test_the_lives_of_today_leave_nothing_out() -> None:
    rows = [row for life in recorded_lives(path_of_today()) for row in life.rows()]
    for flow in TODAY.values():
        own = [row for row in rows if row.workflow == flow.name]
        assert {row.trigger for row in own} == {*flow.triggers(), flow.started_by}
        assert {row.to_state for row in own} == {state.name for state in flow.states}
        assert {name for row in own for name in row.owed} == set(flow.effects())


@pytest.mark.parametrize(("name", "life"), every_life())
def test_a_recorded_life_can_be_taken_up_anywhere(name: str, life: Life) -> None:
    assert unreadable(life, TODAY) == []


@pytest.mark.parametrize(("name", "life"), every_life())
def test_a_recorded_life_goes_the_same_way_again(name: str, life: Life, tmp_path: Path) -> None:
    differences = lived_again(life, tmp_path)
    if name in INTENDED:
        assert differences, f"{name} goes the recorded way again: take it off the list of intended changes"
    else:
        assert differences == []


def test_nothing_is_excused_that_is_not_there() -> None:
    assert set(INTENDED) <= {f"{path.stem}:{life.name}" for path in FILES for life in recorded_lives(path)}


# -- what these tests would catch ------------------------------------------------------------------------------


def recorded(name: str) -> Life:
    return next(life for life in recorded_lives(path_of_today()) if life.name == name)


def without(trigger: str) -> Workflow:
    return replace(JOB, moves=tuple(move for move in MOVES if move.trigger != trigger))


@pytest.mark.parametrize(
    ("changed", "name", "found"),
    [
        (lambda: without("payment_declined"), "declined_and_paid", "awaiting_payment does not take 'payment_decl"),
        (lambda: without("amend"), "renewed_resent_amended_erased", "completed does not take 'amend' any more"),
        (lambda: without("resend"), "renewed_resent_amended_erased", "completed does not take 'resend' any more"),
    ],
)
def test_a_trigger_that_is_taken_away_is_found(changed: Any, name: str, found: str) -> None:
    assert any(found in one for one in unreadable(recorded(name), {**TODAY, "job": changed()}))


def test_a_state_and_an_effect_that_are_taken_away_are_found() -> None:
    kept = [state for state in STATES if state.name != "abandoned"]
    moves = []
    for move in MOVES:
        source = tuple(name for name in move.sources(STATES) if name != "abandoned")
        if source and move.to != "abandoned" and move.trigger != "abandon":
            moves.append(replace(move, source=source))
    deadlines = {state.name: state for state in kept}
    awaiting = deadlines["awaiting_payment"]
    kept[kept.index(awaiting)] = replace(awaiting, owes=awaiting.owes[1:])
    fewer = replace(JOB, states=tuple(kept), moves=tuple(moves))
    found = unreadable(recorded("abandoned_and_purged"), {**TODAY, "job": fewer})
    assert "job: one lives in abandoned, which is not declared any more" in found
    assert "job: nobody runs the effect create_checkout any more" in found
    assert "job: nobody runs the effect purge_job any more" in found
    assert any("purge_job is still owed" in one for one in unreadable(recorded("no_checkout"), {"job": fewer}))


@pytest.mark.parametrize(
    ("changed", "name", "found"),
    [
        # A retry that goes elsewhere; a guard more; an effect less.
        (lambda: moved("retry", to="processing"), "retried_after_an_outage", "failed → processing, and not"),
        (lambda: moved("complete", guards=(refuses,)), "sold_and_polled", "refused by refuses"),
        (lambda: moved("renew_download", owes=()), "renewed_resent_amended_erased", "owes nothing, and not"),
    ],
)
def test_a_definition_that_goes_another_way_is_found(changed: Any, name: str, found: str, tmp_path: Path) -> None:
    differences = lived_again(recorded(name), tmp_path, changed())
    assert any(found in one for one in differences), differences


def moved(trigger: str, **changes: Any) -> Workflow:
    return replace(
        JOB, moves=tuple(replace(move, **changes) if move.trigger == trigger else move for move in MOVES)
    )


def refuses(case: Any) -> str:
    return "no"
