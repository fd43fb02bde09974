"""The model check finds planted faults, and tells how to get there. Called by pytest."""

from __future__ import annotations

import pytest

from smi_workflow.simulation.model_report import story_of, verify
from smi_workflow.simulation.model_sale import sale_scenarios
from tests.unit.simulation.planted import PLANTS, Plant


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name.replace(" ", "-"))
def test_a_planted_fault_is_found_and_told(plant: Plant) -> None:
    scenarios = [one for one in sale_scenarios(plant.job(), plant.refund()) if one.name == plant.scenario]
    # Dead ends are only told where all was seen.
    states_max = 8000 if plant.invariant in ("no_dead_end", "every_wait_has_a_deadline") else 1500
    faults = verify(scenarios, states_max=states_max).faults
    found = [fault for fault in faults if fault.invariant == plant.invariant]
    assert found, plant.name
    story = list(story_of(found[0]))
    told = [line.strip() for step in found[0].story for line in step.came]
    place = 0
    for trigger in plant.story:
        place = next((index + 1 for index, line in enumerate(told[place:], place) if f": {trigger} (" in line), -1)
        assert place > 0, (trigger, story)
    assert story[0].startswith(f"FAULT {plant.invariant}: ")


def test_enough_is_planted() -> None:
    assert len(PLANTS) >= 8
    assert len({plant.invariant for plant in PLANTS}) >= 8
