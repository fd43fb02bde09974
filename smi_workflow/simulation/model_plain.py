"""Owns a scenario for a workflow that nobody wrote one for: any trigger, no facts, effects that work or fail.

Called by cli/verify.py and tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from peewee import AutoField, BigAutoField, BooleanField, CharField, IntegerField, TextField

from smi_workflow.engine.attempt import Attempt, Done, Outcome
from smi_workflow.engine.declaration import Effect
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import ConfigError, ServiceRefused
from smi_workflow.simulation.model import START, Act, ModelHandler, Scenario, Scene
from smi_workflow.simulation.model_choices import Choices

TIMES = 3


def fires(
    workflow: str, trigger: str, kind: str, *, actor: str = "admin:jane", reason: str = "", **facts: object
) -> Act:
    """Somebody fires a trigger at the first subject of a workflow, wherever it is declared."""
    said = ", ".join(f"{name}={value}" for name, value in facts.items())
    label = f"{actor} fires {trigger} at the {workflow}" + (f" with {said}" if said else "")

    def subject(scene: Scene) -> tuple[str, Any] | None:
        rows = scene.tables[scene.plan.flow(workflow).model]
        return next(((str(key), row) for key, row in rows.items()), None)

    def offered(scene: Scene) -> bool:
        found, flow = subject(scene), scene.plan.flow(workflow)
        return found is not None and trigger in flow.allowed(scene.state_of(flow, found[1]))

    def do(scene: Scene) -> None:
        found = subject(scene)
        assert found is not None
        scene.fire(workflow, found[0], trigger, actor=actor, reason=reason, facts=facts)

    return Act(label, kind, offered, do, (workflow, trigger))


def plain_scenario(
    workflows: Sequence[Workflow],
    *,
    columns: Mapping[str, object] | None = None,
    facts: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    outcomes: Mapping[str, Sequence[Outcome | Exception]] | None = None,
    times: int = TIMES,
    **fields: Any,
) -> Scenario:
    """A scenario for any workflows: the first is started, every trigger is fired by somebody at any moment.

    Args:
        workflows: the one to start, and those that its changes start or fire.
        columns: of the first row; those that are needed and not given are filled in.
        facts: trigger → the facts to try it with, one after another; none unless given.
        outcomes: effect → what its handler may return or raise; unless given it is done or fails for good.
        times: how often triggers are fired from outside.
        fields: anything else that `Scenario` takes.
    Raises:
        ConfigError: a trigger or effect that is not declared.
    """
    given_facts, given_outcomes = dict(facts or {}), dict(outcomes or {})
    first = workflows[0]
    effects = {name: effect for flow in workflows for name, effect in flow.effects().items()}
    owed = [item for flow in workflows for state in flow.states for item in state.owes]
    owed += [item for flow in workflows for move in (None, *flow.moves) for item in flow.owed_by(move)]
    deadlines = {item.effect.name for item in owed if item.deadline}
    triggers = {trigger for flow in workflows for trigger in flow.triggers()}
    unknown = [f"there is no trigger {name}" for name in given_facts if name not in triggers]
    unknown += [f"there is no effect {name}" for name in given_outcomes if name not in effects]
    if unknown:
        raise ConfigError("the scenario does not fit the workflows:", unknown)

    def begin(scene: Scene) -> None:
        scene.start(first.name, {**_filled_in(first), **(columns or {})}, actor="system")

    scenario = Scenario(
        name=first.name,
        workflows=tuple(workflows),
        begin=begin,
        acts=tuple(
            fires(flow.name, trigger, "acts", actor="somebody", reason="the model tries it", **tried)
            for flow in workflows
            for trigger in flow.triggers()
            for tried in given_facts.get(trigger, ({},))
        ),
        budget={"acts": times},
        handlers={
            name: _handler(given_outcomes.get(name) or _usual(effect, name in deadlines))
            for name, effect in effects.items()
        },
    )
    return replace(scenario, **fields)


def _usual(effect: Effect, is_deadline: bool) -> tuple[Outcome | Exception, ...]:
    """What an effect is taken to come to: a deadline to its failure trigger, anything else to either end."""
    failed = ServiceRefused("the model", "it fails for good")
    return (failed,) if is_deadline and effect.failure is not None else (Done(), failed)


def _handler(outcomes: Sequence[Outcome | Exception]) -> ModelHandler:
    def run(scene: Scene, attempt: Attempt, choices: Choices) -> Outcome:
        chosen = choices.choose(outcomes)
        if isinstance(chosen, Exception):
            raise chosen
        return chosen

    return run


def _filled_in(flow: Workflow) -> dict[str, object]:
    """Values for the columns that a row must have; what they are should not matter."""
    meta: Any = flow.model._meta
    found: dict[str, object] = {}
    for name, field in meta.fields.items():
        if isinstance(field, AutoField | BigAutoField) or field.null or field.default is not None:
            continue
        if isinstance(field, BooleanField):
            found[name] = False
        elif isinstance(field, IntegerField):
            found[name] = 1
        elif isinstance(field, CharField | TextField):
            found[name] = f"{flow.name}-1" if name == flow.key else "x"
        else:
            found[name] = START
    return found
