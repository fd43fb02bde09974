"""The life of a refund as data: how long it is tried, and who is told. Called by pytest."""

from __future__ import annotations

from datetime import timedelta

from smi_workflow.integrations.stripe_api import KEY_HORIZON
from smi_workflow.jobs.refunds import REFUND, SUBMIT_REFUND
from tests.unit.jobs.cases import refund_case


def test_a_refund_waits_for_nobody_for_ever() -> None:
    for state in REFUND.states:
        deadlines = [owed for owed in state.owes if owed.deadline]
        assert state.waiting == bool(deadlines), state.name
        for owed in deadlines:
            assert owed.after is not None
            assert owed.after(refund_case(state.name)) == timedelta(hours=72)


def test_a_refund_that_is_lost_is_told() -> None:
    (owed,) = REFUND.state("failed").owes
    assert owed.effect.name == "tell_admin"
    assert REFUND.state("succeeded").owes == ()


def test_a_refund_rides_out_a_day_and_a_half_of_outage() -> None:
    """Each wait doubled up to an hour, the jitter at its shortest; past the life of the key it looks first."""
    waits = [
        min(SUBMIT_REFUND.retry_seconds_max, SUBMIT_REFUND.retry_seconds * 2**number) * 0.5
        for number in range(SUBMIT_REFUND.attempts - 1)
    ]
    assert timedelta(seconds=sum(waits)) > timedelta(hours=36) > KEY_HORIZON
    assert SUBMIT_REFUND.failure == "fail"


def test_its_parent_is_the_job() -> None:
    assert REFUND.parent is not None
    assert (REFUND.parent.workflow, REFUND.parent.column) == ("job", "job_id")
