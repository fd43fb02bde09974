"""Owns what a model check answers: figures, what was never seen, faults as stories. Called by cli/verify.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from smi_workflow.engine.workflow import Workflow
from smi_workflow.simulation.model import Scenario
from smi_workflow.simulation.model_explore import Exploration, Fault, explore

SECONDS_MAX = 300.0
# What an effect came to when it was not run at all.
_NOT_RUN = frozenset({"skipped"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of one model check.

    Attributes:
        unfired: workflow and trigger that no scenario ever applied → the last reason why not.
        unsettled: effects that were never run.
        unreached: workflow and state that nothing ever led to.
    """

    explored: tuple[Exploration, ...]
    unfired: Mapping[tuple[str, str], str]
    unsettled: tuple[str, ...]
    unreached: tuple[tuple[str, str], ...]

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Everything that must not be, each once: other scenarios tell the same story with more in it."""
        found: dict[tuple[str, str], Fault] = {}
        for exploration in self.explored:
            for fault in exploration.faults:
                key = (fault.invariant, fault.what)
                if key not in found or len(fault.story) < len(found[key].story):
                    found[key] = fault
        return tuple(found.values())

    @property
    def exhausted(self) -> bool:
        """Whether every scenario was explored to its end."""
        return all(exploration.exhausted for exploration in self.explored)

    def lines(self) -> Iterator[str]:
        """The report, for people."""
        width = max(len(exploration.scenario) for exploration in self.explored)
        for found in self.explored:
            bound = "all of it" if found.exhausted else "stopped at the bound"
            yield (
                f"{found.scenario:{width}}  {found.states:>8,} states  {found.transitions:>9,} steps  "
                f"depth {found.depth:>3}  {found.seconds:6.1f} s  {bound}"
            )
        states, steps = sum(one.states for one in self.explored), sum(one.transitions for one in self.explored)
        seconds = sum(one.seconds for one in self.explored)
        yield f"{'together':{width}}  {states:>8,} states  {steps:>9,} steps  {'':9}  {seconds:6.1f} s"
        for (workflow, trigger), why in self.unfired.items():
            yield f"never fired: {workflow}'s {trigger}" + (f" ({why})" if why else "")
        for name in self.unsettled:
            yield f"never run: {name}"
        for workflow, state in self.unreached:
            yield f"never reached: {workflow}'s {state}"
        for fault in self.faults:
            yield ""
            yield from story_of(fault)
        yield ""
        yield f"{len(self.faults)} fault(s) found." if self.faults else "No fault found."

    def as_json(self) -> dict[str, object]:
        """The report, for scripts."""
        return {
            "exhausted": self.exhausted,
            "scenarios": [
                {
                    "name": one.scenario, "states": one.states, "transitions": one.transitions,
                    "depth": one.depth, "exhausted": one.exhausted, "seconds": round(one.seconds, 2),
                }
                for one in self.explored
            ],
            "never_fired": [f"{workflow}.{trigger}" for workflow, trigger in self.unfired],
            "never_run": list(self.unsettled),
            "never_reached": [f"{workflow}.{state}" for workflow, state in self.unreached],
            "faults": [asdict(fault) for fault in self.faults],
        }  # fmt: skip


def verify(
    scenarios: Sequence[Scenario], *, depth_max: int = 200, states_max: int = 200_000,
    seconds_max: float = SECONDS_MAX,
) -> Verdict:  # fmt: skip
    """Explore scenarios of the same workflows, and say what was found.

    Args:
        depth_max: steps from the start, in each scenario.
        states_max: in each scenario.
        seconds_max: of processor time, together.
    """
    explored = tuple(explore(scenarios, depth_max=depth_max, states_max=states_max, seconds_max=seconds_max))
    flows: dict[str, Workflow] = {flow.name: flow for one in scenarios for flow in one.workflows}
    fired = {pair for one in explored for pair in one.fired}
    ran = {what for one in explored for what, how in one.settled if how not in _NOT_RUN}
    reached = {pair for one in explored for pair in one.reached}
    refusals = {pair: why for one in explored for pair, why in one.refusals.items()}
    declared = [(flow.name, trigger) for flow in flows.values() for trigger in flow.triggers()]
    effects = {name for flow in flows.values() for name in flow.effects()}
    states = [(flow.name, state.name) for flow in flows.values() for state in flow.states]
    return Verdict(
        explored,
        {pair: refusals.get(pair, "") for pair in declared if pair not in fired},
        tuple(sorted(effects - ran)),
        tuple(pair for pair in states if pair not in reached),
    )


def story_of(fault: Fault) -> Iterator[str]:
    """How it came to this, step by step."""
    yield f"FAULT {fault.invariant}: {fault.what}"
    yield f"  (scenario: {fault.scenario})"
    for number, told in enumerate(fault.story, 1):
        yield f"  {number:>2}. {told.step}"
        for line in told.came:
            yield f"        {line}"
    if fault.story:
        yield f"      now: {fault.story[-1].states}"
