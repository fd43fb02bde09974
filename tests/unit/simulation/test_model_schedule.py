"""Periodic work holds in every state that there is. Called by pytest."""

from __future__ import annotations

from dataclasses import replace

from smi_workflow.engine.declaration import Move, State
from smi_workflow.jobs.schedule import RUN_LONGEST, SCHEDULE, SCHEDULE_DEADLINE
from smi_workflow.simulation.model_report import verify
from smi_workflow.simulation.model_schedule import schedule_scenarios


def test_every_state_is_explored_and_no_fault_found() -> None:
    verdict = verify(schedule_scenarios())
    assert not verdict.faults, "\n".join(verdict.lines())
    assert verdict.exhausted
    assert not (verdict.unfired or verdict.unsettled or verdict.unreached)


def test_a_failed_run_that_stops_everything_is_found() -> None:
    """As if nothing were due any more after a failure."""
    waiting, running, paused = SCHEDULE.states
    timer = SCHEDULE_DEADLINE.later(lambda case: RUN_LONGEST, deadline=True)
    lost = State("lost", "forgotten", waiting=True, owes=(timer,))
    moves = tuple(replace(move, to="lost") if move.trigger == "fail" else move for move in SCHEDULE.moves)
    stuck = (*moves, Move("fail", "lost", None))
    verdict = verify(schedule_scenarios(replace(SCHEDULE, states=(waiting, running, paused, lost), moves=stuck)))
    assert {fault.invariant for fault in verdict.faults} & {"no_dead_end", "an_end_stays_reachable"}
