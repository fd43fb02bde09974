"""Owns `smi verify`. Called by main.py. Needs no settings, no database and no broker."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from smi_workflow.cli.own import load_own
from smi_workflow.cli.screen import FAILED, Json, console, print_json, speaking_plainly
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import ConfigError
from smi_workflow.simulation.model import Scenario
from smi_workflow.simulation.model_plain import plain_scenario
from smi_workflow.simulation.model_report import SECONDS_MAX
from smi_workflow.simulation.model_report import verify as check
from smi_workflow.simulation.model_sale import sale_scenarios
from smi_workflow.simulation.model_schedule import schedule_scenarios


def verify(
    workflow: list[str] = typer.Option(
        [], "--workflow", "-w", metavar="MODULE:ATTRIBUTE",
        help="A workflow or scenario of your own; several that belong together: name the one that starts first.",
    ),
    depth: int = typer.Option(200, "--depth", min=1, help="Steps from the start, at most."),
    states_max: int = typer.Option(200_000, "--states-max", min=1, help="States in each scenario, at most."),
    seconds_max: float = typer.Option(SECONDS_MAX, "--seconds-max", min=0.1, help="Processor time, together."),
    as_json: bool = Json,
) -> None:  # fmt: skip
    """Try every order of events, faults, crashes and admins' acts up to a bound, and tell what can go wrong.

    Example: `smi verify --workflow shop.parcels:PARCEL`
    """
    with speaking_plainly():
        scenarios = _scenarios(workflow) if workflow else (*sale_scenarios(), *schedule_scenarios())
        verdict = check(scenarios, depth_max=depth, states_max=states_max, seconds_max=seconds_max)
    if as_json:
        print_json(verdict.as_json())
    else:
        for line in verdict.lines():
            console.print(line, markup=False, soft_wrap=True)
    if verdict.faults:
        raise typer.Exit(FAILED)


def _scenarios(names: Iterable[str]) -> tuple[Scenario, ...]:
    """What these names mean: scenarios as they are, workflows together in a plain one."""
    scenarios: list[Scenario] = []
    workflows: list[Workflow] = []
    for name in names:
        for thing in _load(name):
            if isinstance(thing, Scenario):
                scenarios.append(thing)
            elif isinstance(thing, Workflow):
                workflows.append(thing)
            else:
                raise ConfigError(f"{name} is a {type(thing).__name__}: neither a Workflow nor a Scenario")
    return (*scenarios, *([plain_scenario(workflows)] if workflows else []))


def _load(name: str) -> tuple[object, ...]:
    found = load_own(name)
    return tuple(found) if isinstance(found, tuple | list) else (found,)
