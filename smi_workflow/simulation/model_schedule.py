"""Owns the scenario of periodic work: runs that are done, sliced, refused or cut short, and admins who step in.

Called by cli/verify.py and tests.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from smi_workflow.engine.attempt import Again, Done
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.jobs.model import ScheduleState
from smi_workflow.jobs.schedule import PERIODIC, RUN_LONGEST, SCHEDULE
from smi_workflow.simulation.model import Scenario, Scene
from smi_workflow.simulation.model_plain import fires, plain_scenario

_PROGRESS = {"progress": "as far as that"}
_RESULT = {"memory": "{}", "report": "{}"}


def schedule_scenarios(schedule: Workflow = SCHEDULE) -> tuple[Scenario, ...]:
    """One schedule, for ever; what it works on plays no part.

    Runs that are overtaken by their deadline are left lying, one more each time: they are a scenario of their own.
    """
    whole = plain_scenario(
        [schedule],
        columns={"name": PERIODIC[0].name},
        facts={"progressed": [_PROGRESS], "finish": [_RESULT]},
        outcomes={
            "schedule_due": [Done("run")],
            "run_schedule": [
                Done("finish", _RESULT),
                Again(RUN_LONGEST / 100, "a slice", "progressed", _PROGRESS),
                ServiceUnavailable("stripe", "it is away"),
                ServiceRefused("stripe", "the key is wrong"),
            ],
            "schedule_deadline": [Done("fail", {"code": "took_too_long"})],
        },
        policy=SimpleNamespace(reconcile_minutes=60.0),
        # How often it has failed running decides on one letter only.
        ignored=frozenset({"failures", "progress", "memory", "report"}),
        eager=frozenset({"tell_admin"}),
    )
    # Its only end: between two runs an admin may pause it whenever she likes.
    pause = replace(fires("schedule", "pause", ""), offered=_waits)
    whole = replace(whole, acts=(*whole.acts, pause))
    return (
        replace(whole, name="schedule", idle=frozenset({"schedule_deadline"})),
        replace(whole, name="schedule's deadline", idle=frozenset({"run_schedule"})),
    )


def _waits(scene: Scene) -> bool:
    return all(row.state == ScheduleState.WAITING for _, _, row in scene.subjects())
