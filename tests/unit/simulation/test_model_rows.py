"""The model's rows and queries: what guards, changes and readers take for a database. Called by pytest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from peewee import CharField, IntegerField, Model

from smi_workflow.engine.database import Slot
from smi_workflow.engine.declaration import Case, Move
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import GuardRefused, TransitionConflict
from smi_workflow.jobs.model import Job
from smi_workflow.simulation.model import Plan, Scenario, Scene
from smi_workflow.simulation.model_key import key_of
from smi_workflow.simulation.model_rows import select
from smi_workflow.simulation.model_sale import order, paid, sale_scenarios
from tests.support.loans import LOAN


class Note(Model):
    name = CharField(20, unique=True)
    number = IntegerField(default=1)


def scene(flow: Workflow = LOAN) -> Scene:
    """One loan, and an empty table of notes."""
    made = Scene(Plan(Scenario("rows", (flow,), lambda scene: None, tables=(Note,))))
    made.start("loan", {"loan_id": "l1"}, actor="system")
    return made


def numbers(made: Scene) -> dict[str, int]:
    notes: Any = made.bound(Note)
    return {row.name: row.number for row in notes.select()}


def test_rows_are_written_read_and_changed_as_peewee_writes_it() -> None:
    made = scene()
    notes: Any = made.bound(Note)
    notes.insert(name="one").execute()
    notes.insert(name="two", number=2).execute()
    assert notes.update(number=notes.number + 10).where((notes.name == "two") | (notes.number == 7)).execute() == 1
    assert numbers(made) == {"one": 1, "two": 12}
    assert notes.get_or_none((notes.name == "one") & (notes.number != 12)).name == "one"
    assert notes.get_or_none(notes.name.in_(("three", "four"))) is None
    assert [row.name for row in notes.select().where(~notes.name.contains("w"))] == ["one"]
    assert notes.select().where(notes.number - 2 == 10).exists()


def test_a_query_with_slots_is_filled_in() -> None:
    made = scene()
    notes: Any = made.bound(Note)
    notes.insert(name="one").execute()
    assert [row.name for row in select(lambda: notes.select().where(notes.name == Slot("n")), {"n": "one"})] == [
        "one"
    ]
    assert select(lambda: notes.select().where(notes.name == Slot("n")), {"n": "two"}) == []


def test_what_a_fork_writes_the_first_scene_does_not_see() -> None:
    made = scene()
    fork = made.fork()
    notes: Any = fork.bound(Note)
    notes.insert(name="one").execute()
    fork.fire("loan", "l1", "cancel", actor="system")
    assert numbers(made) == {}
    assert (made.find("loan", "l1").state, fork.find("loan", "l1").state) == ("reserved", "returned")
    assert key_of(made) != key_of(fork)


def test_unique_keys_hold() -> None:
    made = scene()
    notes: Any = made.bound(Note)
    notes.insert(name="one").execute()
    with pytest.raises(TransitionConflict, match="same name"):
        made.fork().bound(Note).insert(name="one").execute()
    with pytest.raises(TransitionConflict, match="same loan_id"):
        made.fork().start("loan", {"loan_id": "l1"}, actor="system")


def test_a_row_has_its_models_own_properties_and_passes_for_one() -> None:
    made = Scene(Plan(sale_scenarios()[0]))
    order(made)
    job = made.find("job", "job-1")
    assert job.expected_size == (80, 40)
    assert isinstance(job, Job)
    paid_scene = Scene(Plan(sale_scenarios()[0]))
    paid(paid_scene)
    assert paid_scene.find("job", "job-1").refundable_cents == 384


def test_two_ways_to_the_same_rows_are_one_state() -> None:
    first, second = scene(), scene()
    first.fire("loan", "l1", "waive", actor="system")
    first.fire("loan", "l1", "waive", actor="somebody else")
    second.fire("loan", "l1", "waive", actor="system")
    assert key_of(first) == key_of(second)


def test_the_next_move_is_tried_where_a_guard_refuses_the_first() -> None:
    def never(case: Case[Any]) -> str | None:
        return "never"

    cancel = next(move for move in LOAN.moves if move.trigger == "cancel")
    first = Move("cancel", "reserved", "lent", guards=(never,))
    flow = replace(LOAN, moves=(first, *LOAN.moves))
    made = scene(flow)
    assert made.fire("loan", "l1", "cancel", actor="system").to_state == cancel.to
    alone = replace(LOAN, moves=(first, *(move for move in LOAN.moves if move is not cancel)))
    with pytest.raises(GuardRefused, match="never"):
        scene(alone).fire("loan", "l1", "cancel", actor="system")
