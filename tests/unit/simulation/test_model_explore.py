"""The exploration itself: what it finds in small workflows, and how it tells it. Called by pytest."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from peewee import CharField, IntegerField

from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.engine.declaration import Case, Effect, Move, State
from smi_workflow.engine.tables import Subject
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import ConfigError, ServiceRefused, ServiceUnavailable
from smi_workflow.simulation.model import Scenario, Scene
from smi_workflow.simulation.model_choices import Choices, every
from smi_workflow.simulation.model_explore import explore
from smi_workflow.simulation.model_plain import plain_scenario
from smi_workflow.simulation.model_report import verify
from tests.support.loans import FINE, LOAN


class Parcel(Subject):
    parcel_id = CharField(64, unique=True)
    state = CharField(20)
    weight = IntegerField()
    calls = IntegerField(default=0)


CALL = Effect("call_courier", "shipping", failure="give_up", attempts=3)
CHASE = Effect("chase", "shipping", failure="give_up")


def count(case: Case[Parcel]) -> None:
    case.set(calls=min(2, case.row.calls + 1))


def parcels(**fields: Any) -> Workflow:
    """A parcel waits for a courier; fields replace those of the declaration."""
    deadline = CHASE.later(lambda case: timedelta(days=3), deadline=True)
    flow = Workflow(
        name="parcel", model=Parcel, key="parcel_id", state_column="state", initial="packed",
        states=(
            State("packed", "waits for a courier", waiting=True, owes=(CALL.now(), deadline)),
            State("sent", "on its way"),
            State("returned", "came back"),
        ),
        moves=(
            Move("send", "packed", "sent", change=count),
            Move("give_up", "packed", "returned"),
        ),
    )  # fmt: skip
    return replace(flow, **fields)


def names(scenario: Scenario, **bounds: Any) -> set[str]:
    """The invariants that do not hold."""
    return {fault.invariant for fault in verify([scenario], **bounds).faults}


def sending(scene: Scene, attempt: Attempt, choices: Choices) -> Outcome:
    """A courier who comes, never comes, says so later, or loses the answer."""
    way = choices.choose(("comes", "refuses", "asks again", "is silent", "is away"))
    if way == "refuses":
        raise ServiceRefused("courier", "too heavy", code="too_heavy")
    if way in ("is silent", "is away"):
        raise ServiceUnavailable("courier", way, outcome_unknown=way == "is silent")
    return Again(timedelta(hours=1), "tomorrow") if way == "asks again" else Done("send")


def courier(flow: Workflow, **fields: Any) -> Scenario:
    """A scenario in which the courier may do anything."""
    plain = plain_scenario([flow], **fields)
    return replace(plain, handlers={**plain.handlers, "call_courier": sending})


def test_a_sound_workflow_is_sound_and_all_of_it_is_seen() -> None:
    verdict = verify([courier(parcels())])
    assert not verdict.faults
    assert verdict.exhausted
    assert not verdict.unfired
    assert not verdict.unsettled
    assert not verdict.unreached
    settled = {how for what, how in verdict.explored[0].settled if what == "call_courier"}
    assert settled == {"done", "failed for good", "skipped", "again later"}


def test_the_second_workflow_is_sound_once_its_facts_are_told() -> None:
    facts = {"lend": [{"barcode": "ok"}, {"barcode": "smudged"}]}
    outcomes = {"call_back": [Done("lose"), Done("renew")]}
    verdict = verify([plain_scenario([LOAN, FINE], facts=facts, outcomes=outcomes)])
    assert not verdict.faults
    assert not verdict.unfired
    # COLLECT is owed under a condition that is never true.
    assert verdict.unsettled == ("collect",)


def test_without_facts_it_says_what_is_missing() -> None:
    verdict = verify([plain_scenario([LOAN, FINE])])
    assert "barcode" in verdict.unfired[("loan", "lend")]
    assert ("loan", "lent") in verdict.unreached


def test_a_wait_that_nothing_ends_is_found_with_the_shortest_story() -> None:
    stays = Effect("chase", "shipping", failure="grumble")
    states = (
        State("packed", "waits", waiting=True,
              owes=(CALL.now(), stays.later(lambda case: timedelta(days=3), deadline=True))),
        *parcels().states[1:],
    )  # fmt: skip
    flow = parcels(states=states, moves=(*parcels().moves, Move("grumble", "packed", None)))
    outcomes = {"call_courier": [Done("send"), Done()]}
    verdict = verify([plain_scenario([flow], outcomes=outcomes, times=0)])
    found = {fault.invariant: fault for fault in verdict.faults}
    assert set(found) == {"no_dead_end", "an_end_stays_reachable"}
    told = [line for step in found["an_end_stays_reachable"].story for line in step.came]
    assert told == [
        "parcel: create (system):  → packed; owes call_courier, chase",
        "call_courier: done",
    ]
    whats = [fault.what for fault in verdict.faults if fault.invariant == "no_dead_end"]
    stuck = "parcel waits in packed, and nothing open can move it"
    assert whats == [f"{stuck} (open: chase)", f"{stuck} (open: nothing)"]


def test_a_failure_trigger_that_its_own_state_lacks_is_found() -> None:
    """The declaration's own check is stepped over here: the model does not rely on it."""
    scenario = courier(parcels())
    flow = scenario.workflows[0]
    flow.moves = tuple(move for move in flow.moves if move.trigger != "give_up")
    flow._allowed = {state: tuple(t for t in known if t != "give_up") for state, known in flow._allowed.items()}
    assert "nothing_breaks" in names(scenario)


@pytest.mark.parametrize("part", ["guards", "change"])
def test_a_guard_or_change_that_breaks_is_found(part: str) -> None:
    def breaks(case: Case[Parcel]) -> None:
        raise KeyError("weight")

    altered: dict[str, Any] = {part: (breaks,) if part == "guards" else breaks}
    send, give_up = parcels().moves
    verdict = verify([courier(parcels(moves=(replace(send, **altered), give_up)))])
    broken = [fault.what for fault in verdict.faults if fault.invariant == "nothing_breaks"]
    assert broken
    assert "weight" in broken[0]


def test_an_invariant_of_ones_own_is_asked_everywhere() -> None:
    def nobody_is_called(scene: Scene) -> str | None:
        return next((f"{key} was called" for _, key, row in scene.subjects() if row.calls), None)

    assert names(courier(parcels(), invariants=(nobody_is_called,))) == {"nobody_is_called"}
    assert names(courier(parcels(), on_step=(nobody_is_called,))) == {"nobody_is_called"}
    assert names(courier(parcels(), at_rest=(nobody_is_called,))) == {"nobody_is_called"}


def test_bounds_are_told_and_nothing_is_claimed_beyond_them() -> None:
    verdict = verify([courier(parcels())], depth_max=1)
    assert not verdict.exhausted
    assert not verdict.faults
    assert "stopped at the bound" in "\n".join(verdict.lines())
    assert not verify([courier(parcels())], states_max=2).exhausted
    assert not verify([courier(parcels())], seconds_max=0.0).exhausted


def test_two_runs_are_the_same() -> None:
    one, other = (explore([courier(parcels())])[0] for _ in range(2))
    assert (one.states, one.transitions, one.depth) == (other.states, other.transitions, other.depth)


def test_a_worker_that_reports_late_is_a_case_of_its_own() -> None:
    flows = (courier(parcels()), courier(parcels(), in_flight=1))
    states = [explore([one])[0].states for one in flows]
    assert states[1] > states[0]


def test_a_scenario_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trigger fly"):
        plain_scenario([parcels()], facts={"fly": [{}]})
    with pytest.raises(ConfigError, match="no effect dance"):
        plain_scenario([parcels()], outcomes={"dance": [Done()]})


def test_every_way_to_choose_is_taken_once() -> None:
    def run(choices: Choices) -> tuple[str, int]:
        letter = choices.choose("abc")
        return letter, choices.choose((1, 2)) if letter == "b" else 0

    assert sorted(every(run)) == [("a", 0), ("b", 1), ("b", 2), ("c", 0)]
