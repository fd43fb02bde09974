"""Owns periodic work as a workflow: one run at a time, missed runs become one, a failed one stops none.

Called by app.py and the relay. One more kind of work is a line in PERIODIC, and its code in effects/periodic.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from smi_workflow.engine.declaration import Case, Effect, Move, State
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import TransitionConflict, UnknownSubject
from smi_workflow.jobs import facts
from smi_workflow.jobs.guards import not_by_hand
from smi_workflow.jobs.model import Schedule, ScheduleState
from smi_workflow.jobs.telling import TELL_ADMIN, what_happened

# A run that still asks after half a day is not stuck at one call, but something is wrong with it.
RUN_LONGEST = timedelta(hours=12)
OTHER_RELEASE_EVERY = timedelta(hours=1)


WAITING, RUNNING, PAUSED = ScheduleState


@dataclass(frozen=True, slots=True)
class Periodic:
    """What is done again and again, and how often."""

    name: str
    meaning: str
    every: Callable[[Any], timedelta]


PERIODIC: tuple[Periodic, ...] = (
    Periodic(
        "reconcile",
        "asks Stripe and Upsampler for what we missed",
        lambda policy: timedelta(minutes=policy.reconcile_minutes),
    ),
)


def every(name: str, policy: Any) -> timedelta:
    """How often this work is done."""
    known = {item.name: item for item in PERIODIC}
    return known[name].every(policy) if name in known else OTHER_RELEASE_EVERY


def set_up_schedules(engine: Engine) -> None:
    """Put every kind of work on its schedule, once. Safe at any time, for any number of processes at once.

    Raises:
        TransitionConflict: the database was too busy; try again.
    """
    for item in PERIODIC:
        if _is_set_up(engine, item):
            continue
        columns = {"name": item.name, "created_at": engine.clock.now()}
        try:
            engine.start("schedule", columns, actor="system", reason=item.meaning)
        except TransitionConflict:
            # Mostly another process was faster.
            if not _is_set_up(engine, item):
                raise


def _is_set_up(engine: Engine, item: Periodic) -> bool:
    try:
        engine.read("schedule", item.name)
    except UnknownSubject:
        return False
    return True


# -- the effects --------------------------------------------------------------------------------------------------

SCHEDULE_DUE = Effect("schedule_due", "upscales", failure="run")
RUN_SCHEDULE = Effect("run_schedule", "upscales", failure="fail", attempts=12, retry_seconds=15.0)
SCHEDULE_DEADLINE = Effect("schedule_deadline", "upscales", failure="fail")


def until_next_run(case: Case[Schedule]) -> timedelta:
    """From the beginning of the last run to the next; however many were missed meanwhile, one is made up for."""
    pause = every(case.row.name, case.policy)
    if case.row.began_at is None:
        return pause
    return max(timedelta(0), case.row.began_at + pause - case.now)


def is_first_failure(case: Case[Schedule]) -> bool:
    """An outage of days is told once."""
    return bool(case.row.failures == 1)


# -- the changes --------------------------------------------------------------------------------------------------


def begin_run(case: Case[Schedule]) -> None:
    case.set(began_at=case.now, progress=None)


def note_progress(case: Case[Schedule]) -> None:
    case.set(progress=case.facts["progress"])


def finish_run(case: Case[Schedule]) -> None:
    case.set(
        succeeded_at=case.now, failures=0, progress=None, memory=case.facts["memory"], report=case.facts["report"]
    )


def lose_run(case: Case[Schedule]) -> None:
    """What it was at may be what it failed by: the next one begins anew."""
    case.set(failures=case.row.failures + 1, progress=None)
    case.record(code=case.facts.get("code", ""), effect=case.facts.get("effect", ""))


def stop_run(case: Case[Schedule]) -> None:
    case.set(progress=None)


SCHEDULE = Workflow(
    name="schedule",
    model=Schedule,
    key="name",
    state_column="state",
    initial=WAITING,
    touched_column="updated_at",
    facts=facts.FACTS,
    states=(
        State(WAITING, "until its time comes", waiting=True, owes=(
            SCHEDULE_DUE.later(until_next_run, deadline=True),
        )),
        State(RUNNING, "it is being done", waiting=True, owes=(
            RUN_SCHEDULE.now(),
            SCHEDULE_DEADLINE.later(lambda case: RUN_LONGEST, deadline=True),
        )),
        State(PAUSED, "an admin wants none of it for now"),
    ),
    moves=(
        Move("run", WAITING, RUNNING, change=begin_run, by="timer, admin"),
        Move("progressed", RUNNING, None, (not_by_hand,), change=note_progress, by="effect"),
        Move("finish", RUNNING, WAITING, (not_by_hand,), change=finish_run, by="effect"),
        Move("fail", RUNNING, WAITING, (not_by_hand,), change=lose_run,
             owes=(TELL_ADMIN.now(what_happened, when=is_first_failure),), by="effect, timer"),
        Move("pause", (WAITING, RUNNING), PAUSED, change=stop_run, by="admin"),
        Move("resume", PAUSED, WAITING, by="admin"),
    ),
)  # fmt: skip
