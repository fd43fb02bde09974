"""Periodic work: one run at a time, missed ones become one, none stops the next; admins step in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from smi_workflow.app import App
from smi_workflow.effects import periodic
from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariants
from smi_workflow.engine.perform import Performed
from smi_workflow.engine.tables import EffectRow
from smi_workflow.errors import GuardRefused, InvalidInput, ServiceRefused, TransitionNotAllowed
from smi_workflow.jobs.model import Schedule
from smi_workflow.jobs.schedule import set_up_schedules
from tests.support.apps import open_test_app
from tests.support.desks import at_once
from tests.support.engines import HandClock

HOUR = timedelta(hours=1)
FINISHED = Done("finish", {"memory": '{"told_until": "then"}', "report": "{}"}, reason="all asked")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def app(database_url: str, tmp_path: Path, clock: HandClock) -> Iterator[App]:
    opened = open_test_app(tmp_path, clock=clock, database_url=database_url)
    yield opened
    opened.close()


def row(app: App) -> Schedule:
    found: Schedule = app.engine.read("schedule", "reconcile")
    return found


def fire(app: App, trigger: str, **facts: Any) -> None:
    app.engine.fire("schedule", "reconcile", trigger, actor="admin:jane", facts=facts)


def effects(app: App, name: str) -> list[EffectRow]:
    table = app.tables.effects
    return list(table.select().where(table.name == name).order_by(table.created_at, table.id))


def open_effects(app: App) -> list[str]:
    return sorted(item.name for item in app.tables.effects.select() if item.state in ("due", "claimed"))


def perform(app: App, name: str, outcome: Outcome | Exception | None = None) -> Performed:
    """Perform the newest effect of this name; periodic work comes to this."""

    def work(world: World, attempt: Attempt) -> Outcome:
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        return outcome

    with patch.dict(periodic.WORK, {"reconcile": work}):
        return app.performer.perform(effects(app, name)[-1].id)


def is_sound(app: App) -> None:
    assert Invariants(app.engine, ENGINE_INVARIANTS).of_subject("schedule", "reconcile") == []



def test_it_is_put_on_its_schedule_once_however_many_do_it_at_once(app: App, clock: HandClock) -> None:
    outcomes = at_once(app, *[lambda: set_up_schedules(app.engine)] * 4)
    assert outcomes == [None] * 4
    set_up_schedules(app.engine)
    assert [one.name for one in app.job_tables.schedules.select()] == ["reconcile"]
    assert [one.trigger for one in app.engine.history("schedule", "reconcile")] == ["create"]
    (due,) = effects(app, "schedule_due")
    assert due.due_at == clock.now() + HOUR
    is_sound(app)


def test_a_run_begins_on_time_ends_and_the_next_is_due_an_hour_after_it_began(app: App, clock: HandClock) -> None:
    set_up_schedules(app.engine)
    clock.advance(minutes=60)
    assert perform(app, "schedule_due") is Performed.DONE
    assert (row(app).state, row(app).began_at) == ("running", clock.now())
    assert open_effects(app) == ["run_schedule", "schedule_deadline"]
    clock.advance(minutes=10)
    assert perform(app, "run_schedule", FINISHED) is Performed.DONE
    assert (row(app).state, row(app).succeeded_at) == ("waiting", clock.now())
    assert json.loads(row(app).memory or "") == {"told_until": "then"}
    assert effects(app, "schedule_due")[-1].due_at == clock.now() + timedelta(minutes=50)
    assert open_effects(app) == ["schedule_due"]
    is_sound(app)


def test_runs_that_were_missed_become_one(app: App, clock: HandClock) -> None:
    set_up_schedules(app.engine)
    clock.advance(days=7)
    assert [item.name for item in app.tables.effects.select()] == ["schedule_due"]
    perform(app, "schedule_due")
    perform(app, "run_schedule", FINISHED)
    assert effects(app, "schedule_due")[-1].due_at == clock.now() + HOUR


def test_only_one_runs_at_a_time(app: App, clock: HandClock) -> None:
    set_up_schedules(app.engine)
    outcomes = at_once(app, *[lambda: fire(app, "run")] * 3)
    refused = [one for one in outcomes if isinstance(one, TransitionNotAllowed)]
    assert (outcomes.count(None), len(refused)) == (1, 2)
    assert len(effects(app, "run_schedule")) == 1
    # The timer that would have begun it is over.
    clock.advance(minutes=60)
    assert perform(app, "schedule_due") is Performed.NOTHING
    is_sound(app)


def test_a_failed_run_is_told_once_and_stops_no_other(app: App, clock: HandClock) -> None:
    set_up_schedules(app.engine)
    for _ in range(3):
        clock.advance(minutes=60)
        perform(app, "schedule_due")
        perform(app, "run_schedule", ServiceRefused("stripe", "the key is wrong", code="key"))
        assert row(app).state == "waiting"
    assert row(app).failures == 3
    assert len(effects(app, "tell_admin")) == 1
    clock.advance(minutes=60)
    perform(app, "schedule_due")
    perform(app, "run_schedule", FINISHED)
    assert row(app).failures == 0
    is_sound(app)


def test_slices_are_kept_and_a_run_that_never_ends_is_given_up(app: App, clock: HandClock) -> None:
    set_up_schedules(app.engine)
    fire(app, "run")
    for number in range(3):
        assert perform(app, "run_schedule", Again(timedelta(0), "", "progressed", {"progress": f"{number}"}))
        assert row(app).progress == f"{number}"
    clock.advance(hours=12)
    assert perform(app, "schedule_deadline") is Performed.DONE
    assert (row(app).state, row(app).progress, row(app).failures) == ("waiting", None, 1)
    assert perform(app, "run_schedule", FINISHED) is Performed.SKIPPED
    is_sound(app)


def test_an_admin_pauses_a_run_in_the_middle_and_what_was_missed_is_made_up_for_at_once(
    app: App, clock: HandClock
) -> None:
    set_up_schedules(app.engine)
    fire(app, "run")
    perform(app, "run_schedule", Again(timedelta(0), "", "progressed", {"progress": "half"}))
    fire(app, "pause")
    assert (row(app).state, row(app).progress) == ("paused", None)
    assert perform(app, "run_schedule", FINISHED) is Performed.SKIPPED
    with pytest.raises(TransitionNotAllowed):
        fire(app, "run")
    clock.advance(days=3)
    fire(app, "resume")
    assert effects(app, "schedule_due")[-1].due_at == clock.now()
    assert perform(app, "schedule_due") is Performed.DONE
    assert row(app).state == "running"
    is_sound(app)


def test_what_a_run_reports_is_not_believed_by_hand(app: App) -> None:
    set_up_schedules(app.engine)
    fire(app, "run")
    with pytest.raises(GuardRefused):
        fire(app, "finish", memory="{}", report="{}")
    with pytest.raises(GuardRefused):
        fire(app, "fail")
    with pytest.raises(InvalidInput, match="progress"):
        fire(app, "progressed", progress=7)


def test_what_another_release_does_is_left_to_it(app: App, clock: HandClock) -> None:
    columns = {"name": "of_another_release", "created_at": clock.now()}
    app.engine.start("schedule", columns, actor="system")
    app.engine.fire("schedule", "of_another_release", "run", actor="admin:jane")
    assert app.performer.perform(effects(app, "run_schedule")[-1].id) is Performed.AGAIN
    assert app.engine.read("schedule", "of_another_release").state == "running"
