"""Owns the steps from one state of the model to the next: acts, events, effects. Called by model_explore.py.

What perform.py and inbox.py do in several commits is done here once more, each commit on a fork. A handler's
call, the crash after it and the answer that got lost are choices; dying anywhere between claim and settle leaves
the same state as an answer that got lost, so that one choice stands for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from smi_workflow.engine.attempt import Again, Attempt, Outcome, Skip
from smi_workflow.engine.inbox import Fire, Ignore, Park, Reading
from smi_workflow.errors import (
    GuardRefused,
    InvalidInput,
    ServiceRefused,
    ServiceUnavailable,
    TransitionNotAllowed,
    UnknownSubject,
)
from smi_workflow.simulation.model import Act, Scene
from smi_workflow.simulation.model_choices import Choices, every
from smi_workflow.simulation.model_records import CLAIMED, DUE, Event, OpenEffect, Settled

# Longer than any patience of a handler's and any horizon of a provider's.
LONG = timedelta(days=30)
Refusals = dict[tuple[str, str], str]


class SceneClock:
    """The time in one scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def now(self) -> Any:
        return self._scene.now


def successors(scene: Scene, refusals: Refusals | None = None) -> Iterator[Scene]:
    """Every scene that one step leads to, in an order that is the same each time.

    Args:
        refusals: filled with the last reason why a trigger was refused.
    """
    for found in _steps(scene, refusals if refusals is not None else {}):
        if found is not None:
            yield found


def _steps(scene: Scene, refusals: Refusals) -> Iterator[Scene | None]:
    eager, idle, prompt = scene.plan.scenario.eager, scene.plan.scenario.idle, scene.plan.scenario.prompt
    for item in scene.effects:
        if item.effect.name in eager and item.state == DUE:
            yield from _performed(scene, item)
            return
    for event in scene.events:
        if event.provider in prompt and event.state == "received":
            yield _handled(scene, event)
            return
    for act in scene.plan.scenario.acts:
        if scene.may(act.kind) and act.offered(scene):
            yield _tried(scene, act.label, partial(_acted, scene, act, refusals))
    for event in scene.events:
        yield _handled(scene, event)
    for item in scene.effects:
        if item.state == DUE and item.effect.name not in idle:
            yield from _performed(scene, item)
        elif item.state == CLAIMED:
            label = f"the worker on {item.effect.name} reports"
            yield _tried(scene, label, partial(_settled_later, scene, item, label))


def _tried(scene: Scene, label: str, step: Callable[[], Scene | None]) -> Scene | None:
    """Take a step; what breaks on the way is a finding, and nothing has changed."""
    try:
        return step()
    except Exception as fault:  # noqa: BLE001 - whatever a declared function may raise
        made = _fork(scene, label)
        made.log.append(Settled("a fault of ours", f"{type(fault).__name__}: {fault}", broken=True))
        return made


def _fork(scene: Scene, label: str) -> Scene:
    made = scene.fork()
    made.label, made.log = label, []
    return made


def _acted(scene: Scene, act: Act, refusals: Refusals) -> Scene | None:
    made = _fork(scene, act.label)
    made.spend(act.kind)
    try:
        act.do(made)
    except (GuardRefused, TransitionNotAllowed, InvalidInput) as refusal:
        if act.trigger is not None:
            refusals[act.trigger] = str(refusal)
        return None
    return made


# -- events -----------------------------------------------------------------------------------------------------


def _handled(scene: Scene, event: Event) -> Scene | None:
    label = f"the event {event.kind} ({event.id}) is handled"

    def step() -> Scene | None:
        try:
            return _follow(scene, event, label, scene.plan.scenario.readers[event.provider](scene, event))
        except InvalidInput as problem:
            return _closed(scene, event, label, f"cannot be used: {problem}")

    return _tried(scene, label, step)


def _follow(scene: Scene, event: Event, label: str, reading: Reading) -> Scene | None:
    if isinstance(reading, Ignore):
        return _closed(scene, event, label, f"ignored: {reading.reason}")
    step, park = (reading, Park("")) if isinstance(reading, Fire) else (None, reading)
    while step is not None:
        made = _fork(scene, label)
        try:
            made.fire(
                step.workflow, step.key, step.trigger, actor=step.actor, reason=step.reason, facts=step.facts
            )
        except (GuardRefused, TransitionNotAllowed) as refusal:
            if step.or_else is None and step.otherwise == "ignore":
                return _closed(scene, event, label, f"ignored: {refusal}")
            park = Park(str(refusal), step.workflow, step.key)
            step = step.or_else
            continue
        except UnknownSubject as unknown:
            park, step = Park(str(unknown)), None
            continue
        _take(made, event)
        made.log.append(Settled(f"event {event.kind}", "applied"))
        return made
    return _parked(scene, event, label, park)


def _parked(scene: Scene, event: Event, label: str, park: Park) -> Scene | None:
    """It waits; only handlers that look for parked events can tell, so mostly nothing has changed."""
    if (event.state, event.workflow, event.subject_id) == ("parked", park.workflow, park.key):
        return None
    made = _fork(scene, label)
    made.events[made.events.index(event)] = event._replace(
        state="parked", workflow=park.workflow, subject_id=park.key
    )
    made.log.append(Settled(f"event {event.kind}", f"parked: {park.reason}"))
    return made


def _closed(scene: Scene, event: Event, label: str, how: str) -> Scene:
    made = _fork(scene, label)
    _take(made, event)
    made.log.append(Settled(f"event {event.kind}", how))
    return made


def _take(scene: Scene, event: Event) -> None:
    place = scene.events.index(event)
    if event.copies > 1:
        scene.events[place] = event._replace(copies=event.copies - 1, state="received")
    else:
        del scene.events[place]


# -- effects ----------------------------------------------------------------------------------------------------


def _performed(scene: Scene, item: OpenEffect) -> Iterator[Scene | None]:
    """Claim it, run its handler, and settle, in every way that this may go."""
    name = item.effect.name
    # What has waited or is in doubt may also be claimed when every patience and horizon is over.
    for late in (False, True) if item.waits or item.doubts else (False,):
        label = f"{item.workflow}'s effect {name} runs" + (", very late" if late else "")
        yield from every(partial(_run_or_break, scene, item, late, label))


def _run_or_break(scene: Scene, item: OpenEffect, late: bool, label: str, choices: Choices) -> Scene | None:
    return _tried(scene, label, partial(_run, scene, item, late, label, choices))


def _run(scene: Scene, item: OpenEffect, late: bool, label: str, choices: Choices) -> Scene | None:
    made = _fork(scene, label)
    made.now = max(made.now, item.due_at) + (LONG if late else timedelta(0))
    if made.is_over(item):
        made.settle(item)
        made.log.append(Settled(item.effect.name, "skipped: the visit it was owed to is over"))
        return made
    claimed = item._replace(first_attempt_at=item.first_attempt_at or made.now)
    made.effects[made.effects.index(item)] = claimed
    return _attempt(made, claimed, choices)


def _attempt(made: Scene, item: OpenEffect, choices: Choices) -> Scene | None:
    scenario = made.plan.scenario
    attempt = _as_attempt(made, item)
    try:
        outcome: Outcome | ServiceRefused = scenario.handlers[item.effect.name](made, attempt, choices)
    except ServiceRefused as refusal:
        if item.doubts:
            return _give_up(made, item, attempt, refusal.code or "refused", str(refusal), choices)
        outcome = refusal
    except ServiceUnavailable as trouble:
        return _retried(made, item, attempt, trouble, choices)
    claimed = sum(other.state == CLAIMED for other in made.effects)
    if claimed < scenario.in_flight and choices.choose((False, True)):
        made.replace(item, state=CLAIMED, outcome=outcome)
        made.label += ", and its worker has not reported yet"
        return made
    return _report(made, item, outcome)


def _report(made: Scene, item: OpenEffect, outcome: Outcome | ServiceRefused) -> Scene | None:
    if isinstance(outcome, ServiceRefused):
        return _failed(made, item, outcome.code or "refused", str(outcome))
    return _conclude(made, item, outcome)


def _as_attempt(scene: Scene, item: OpenEffect) -> Attempt:
    return Attempt(
        id=item.id, name=item.effect.name, workflow=item.workflow, subject_id=item.subject_id,
        row=scene.find(item.workflow, item.subject_id), inputs=json.loads(item.inputs),
        number=2 if item.doubts else 1, doubts=int(item.doubts), waits=int(item.waits), owed_at=item.owed_at,
        first_attempt_at=item.first_attempt_at or scene.now, clock=SceneClock(scene),
    )  # fmt: skip


def _retried(
    made: Scene, item: OpenEffect, attempt: Attempt, trouble: ServiceUnavailable, choices: Choices
) -> Scene | None:
    patient = item.effect.name in made.plan.scenario.patient
    if not patient and choices.choose((False, True)):
        made.label += ": the last attempt fails"
        if item.doubts or trouble.outcome_unknown:
            return _give_up(made, item, attempt, trouble.code or "unavailable", str(trouble), choices)
        return _failed(made, item, trouble.code or "unavailable", str(trouble))
    if not trouble.outcome_unknown:
        # Tried again as if nothing had happened.
        return None
    made.label += ": the worker dies or the answer is lost after the call"
    made.replace(item, doubts=True, due_at=made.now)
    return made


def _give_up(
    made: Scene, item: OpenEffect, attempt: Attempt, code: str, error: str, choices: Choices
) -> Scene | None:
    """Law 5: an unknown outcome is looked up before a failure trigger fires."""
    lookup = made.plan.scenario.lookups.get(item.effect.name)
    if lookup is None:
        return _failed(made, item, code, error)
    try:
        found = lookup(made, replace(attempt, doubts=max(1, attempt.doubts)), choices)
    except (ServiceRefused, ServiceUnavailable):
        # Looked up again later, for as long as it takes.
        return None
    return _failed(made, item, code, error) if found is None else _conclude(made, item, found)


def _conclude(made: Scene, item: OpenEffect, outcome: Outcome) -> Scene | None:
    if isinstance(outcome, Again):
        return _again(made, item, outcome)
    if isinstance(outcome, Skip):
        return _ended(made, item, f"skipped: {outcome.note}")
    name = item.effect.name
    if outcome.trigger is not None and made.is_over(item):
        return _ended(made, item, "skipped: done after its visit was over")
    settled = made.fork()
    try:
        _ran(settled, item)
        settled.settle(item)
        settled.log.append(Settled(name, "done"))
        if outcome.trigger is not None:
            settled.fire(
                item.workflow, item.subject_id, outcome.trigger,
                actor=outcome.actor, reason=outcome.reason, facts=outcome.facts,
            )  # fmt: skip
    except (GuardRefused, TransitionNotAllowed) as refusal:
        if outcome.on_refusal == "fail":
            return _failed(made, item, getattr(refusal, "guard", "not_allowed"), str(refusal))
        return _ended(made, item, f"done, but refused: {refusal}")
    return settled


def _again(made: Scene, item: OpenEffect, outcome: Again) -> Scene | None:
    if outcome.trigger is not None and made.is_over(item):
        return _ended(made, item, "skipped: its visit was over")
    put_back = made.fork()
    put_back.replace(item, waits=True, doubts=False, state=DUE, outcome=None, due_at=made.now + outcome.after)
    put_back.log.append(Settled(item.effect.name, f"again later: {outcome.note}"))
    if outcome.trigger is not None:
        try:
            put_back.fire(
                item.workflow, item.subject_id, outcome.trigger,
                actor="system", reason=outcome.reason, facts=outcome.facts,
            )  # fmt: skip
        except Exception:  # noqa: BLE001 - as the engine has it: news that does not fit must not end the waiting
            return _again(made, item, replace(outcome, trigger=None))
    return put_back


def _failed(made: Scene, item: OpenEffect, code: str, error: str) -> Scene:
    """It failed for good: its failure trigger is fired in the commit that settles it."""
    name, failure = item.effect.name, item.effect.failure
    if failure is None or made.is_over(item):
        return _ended(made, item, f"failed for good: {error}")
    settled = made.fork()
    _ran(settled, item)
    settled.settle(item)
    settled.log.append(Settled(name, f"failed for good ({code}): fires {failure}"))
    try:
        settled.fire(
            item.workflow, item.subject_id, failure,
            actor="system", reason=error,
            facts={"code": code, "effect": name, "inputs": json.loads(item.inputs)},
        )  # fmt: skip
    except (GuardRefused, TransitionNotAllowed, UnknownSubject) as refusal:
        own = made.find(item.workflow, item.subject_id).visit == item.visit
        # Only its own visit must know the trigger; a guard may have a reason to refuse.
        broken = own and isinstance(refusal, TransitionNotAllowed)
        return _ended(made, item, f"failed for good, and {failure} was refused: {refusal}", broken=broken)
    return settled


def _ended(made: Scene, item: OpenEffect, how: str, *, broken: bool = False) -> Scene:
    settled = made.fork()
    _ran(settled, item)
    settled.settle(item)
    settled.log.append(Settled(item.effect.name, how, broken))
    return settled


def _ran(scene: Scene, item: OpenEffect) -> None:
    """A deadline that has run and left its subject waiting has done its part in this visit."""
    row = scene.find(item.workflow, item.subject_id)
    if item.deadline and row is not None and row.visit == item.visit:
        scene.own(scene.plan.flow(item.workflow).model, item.subject_id).__dict__["deadline_ran"] = True


def _settled_later(scene: Scene, item: OpenEffect, label: str) -> Scene | None:
    assert item.outcome is not None
    made = _fork(scene, label)
    return _report(made, item, item.outcome)
