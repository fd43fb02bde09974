"""The sale holds in every state that the model check reaches within a small bound. Called by pytest.

`smi verify` explores all of it; the wider CI run calls that.
"""

from __future__ import annotations

from functools import cache

import pytest

from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.refunds import REFUND
from smi_workflow.simulation.model import Plan, Scene
from smi_workflow.simulation.model_report import Verdict, verify
from smi_workflow.simulation.model_sale import ACTS, sale_scenarios

STATES_MAX = 1600


@cache
def verdict() -> Verdict:
    """One exploration for all tests of this file."""
    return verify(sale_scenarios(), states_max=STATES_MAX)


def test_no_fault_is_found() -> None:
    assert not verdict().faults, "\n".join(verdict().lines())


def test_every_trigger_is_fired_every_effect_run_every_state_reached() -> None:
    """Whoever declares a trigger or effect teaches the model to produce it."""
    assert not verdict().unfired
    assert not verdict().unsettled
    assert not verdict().unreached


def test_every_effect_and_event_came_to_more_than_one_end() -> None:
    ends: dict[str, set[str]] = {}
    for exploration in verdict().explored:
        for what, how in exploration.settled:
            ends.setdefault(what, set()).add(how)
    assert set(JOB.effects()) | set(REFUND.effects()) <= set(ends)
    for name in ("create_checkout", "submit_upscale", "submit_refund", "fetch_result", "send_download_link"):
        assert {"done", "failed for good"} <= ends[name]
    assert {"done", "skipped"} <= ends["submit_upscale"]
    for kind in ("refund.created", "charge.dispute.funds_withdrawn", "checkout.session.completed"):
        assert "applied" in ends[f"event {kind}"]


def test_every_act_of_the_outside_is_allowed_somewhere() -> None:
    spendable = {kind for scenario in sale_scenarios() for kind, times in scenario.budget.items() if times}
    assert {act.kind for act in ACTS} - {""} <= spendable


@pytest.mark.parametrize("scenario", sale_scenarios(), ids=lambda scenario: scenario.name)
def test_a_scenario_begins_the_same_way_each_time(scenario: object) -> None:
    named = next(one for one in sale_scenarios() if one is scenario or one.name == getattr(scenario, "name", ""))
    scenes = [Scene(Plan(named)) for _ in range(2)]
    for scene in scenes:
        named.begin(scene)
    assert scenes[0].log == scenes[1].log
