"""Owns the running of periodic work: what the schedule's name stands for. Called by perform.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from smi_workflow.effects.reconcile import reconcile
from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome

WORK: Mapping[str, Callable[[World, Attempt], Outcome]] = {"reconcile": reconcile}
OTHER_RELEASE = timedelta(minutes=5)


def schedule_due(world: World, attempt: Attempt) -> Outcome:
    """Its time has come."""
    return Done("run", reason="its time has come")


def run_schedule(world: World, attempt: Attempt) -> Outcome:
    """Do the work, or a slice of it."""
    work = WORK.get(attempt.subject_id)
    if work is None:
        return Again(OTHER_RELEASE, "this release knows no such work; a worker of another may")
    return work(world, attempt)


def schedule_deadline(world: World, attempt: Attempt) -> Outcome:
    """It goes on and on: give it up, so that the next one has its turn."""
    return Done("fail", {"code": "took_too_long"}, reason="it was not done within half a day")
