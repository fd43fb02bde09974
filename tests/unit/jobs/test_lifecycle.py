"""Delays and conditions of what a job owes: every setting is honoured. Called by pytest."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.engine.declaration import Case, Owed
from smi_workflow.jobs import owing
from smi_workflow.jobs.changes import FINAL_CODES
from smi_workflow.jobs.lifecycle import JOB
from tests.unit.jobs.cases import job_case


def state_owes(state: str, effect: str) -> Owed:
    """How a state owes an effect."""
    return next(owed for owed in JOB.state(state).owes if owed.effect.name == effect)


def move_owes(trigger: str, effect: str) -> Owed:
    """How a move owes an effect."""
    return next(o for move in JOB.moves if move.trigger == trigger for o in move.owes if o.effect.name == effect)


def delay(owed: Owed, case: Case[Any], **policy: float) -> timedelta:
    """The delay under other settings."""
    assert owed.after is not None
    for name in policy:
        assert hasattr(case.policy, name)
    other = type(case.policy)(**{**vars(case.policy), **policy})
    return owed.after(dataclasses.replace(case, policy=other))


SETTINGS = [
    (
        state_owes("awaiting_payment", "payment_deadline"),
        "payment_timeout_hours",
        2,
        timedelta(hours=2, minutes=5),
    ),
    (state_owes("pending", "pending_deadline"), "pending_timeout_hours", 3, timedelta(hours=3)),
    (state_owes("processing", "poll_upscale"), "poll_seconds", 7, timedelta(seconds=7)),
    (state_owes("processing", "upscale_deadline"), "processing_timeout_minutes", 4, timedelta(minutes=4)),
    (move_owes("upscale_delivered", "fetch_deadline"), "processing_timeout_minutes", 4, timedelta(minutes=4)),
    (state_owes("completed", "warn_expiry"), "download_expiry_hours", 8, timedelta(hours=6)),
    (state_owes("completed", "expire_download"), "download_expiry_hours", 8, timedelta(hours=8)),
    (move_owes("renew_download", "expire_download"), "download_expiry_hours", 8, timedelta(hours=8)),
    (state_owes("failed", "refund_due"), "refund_delay_minutes", 5, timedelta(minutes=5)),
    (state_owes("failed", "refund_due"), "refund_delay_minutes", 0, timedelta(0)),
]


@pytest.mark.parametrize(("owed", "setting", "value", "expected"), SETTINGS)
def test_each_setting_is_honoured(owed: Owed, setting: str, value: float, expected: timedelta) -> None:
    assert delay(owed, job_case("failed", failure_code="outage"), **{setting: value}) == expected


def test_a_bank_debit_has_its_own_deadline() -> None:
    owed = state_owes("awaiting_payment", "payment_deadline")
    case = job_case("awaiting_payment", trigger="payment_processing")
    assert delay(owed, case) == timedelta(days=14)
    assert delay(owed, case, delayed_payment_days=3) == timedelta(days=3)
    assert owed.inputs is not None
    assert owed.inputs(case) == {"delayed": True}
    assert owed.inputs(job_case("awaiting_payment", trigger="create")) == {"delayed": False}


@pytest.mark.parametrize("code", sorted(FINAL_CODES))
def test_the_money_goes_back_at_once_where_trying_again_is_pointless(code: str) -> None:
    assert delay(state_owes("failed", "refund_due"), job_case("failed", failure_code=code)) == timedelta(0)


@pytest.mark.parametrize("code", ["upsampler_timeout", "pending_timeout", "http_503", "unavailable", None])
def test_after_an_outage_an_admin_has_time_to_retry(code: str | None) -> None:
    assert delay(state_owes("failed", "refund_due"), job_case("failed", failure_code=code)) == timedelta(
        minutes=30
    )


@pytest.mark.parametrize(
    ("columns", "held"),
    [
        ({}, True),
        ({"refunded_cents": 100}, True),
        ({"refunded_cents": 384}, False),
        ({"refunding_cents": 384}, False),
        ({"disputed_cents": 384}, False),
        ({"paid_cents": 0, "payment_status": "failed"}, False),
    ],
)
def test_a_refund_is_due_only_of_money_that_is_held(columns: dict[str, Any], held: bool) -> None:
    owed = state_owes("failed", "refund_due")
    assert owed.when is not None
    assert owed.when(job_case("failed", **columns)) is held


@pytest.mark.parametrize(
    ("facts", "columns", "opened"),
    [
        ({}, {}, True),
        ({"session_status": "spent"}, {}, True),
        ({"session_status": "expired"}, {}, False),
        ({}, {"stripe_checkout_session_id": None}, False),
        ({}, {"payment_status": "paid"}, False),
    ],
)
def test_a_session_is_ended_only_where_one_may_be_open(
    facts: dict[str, Any], columns: dict[str, Any], opened: bool
) -> None:
    owed = state_owes("abandoned", "expire_session")
    assert owed.when is not None
    assert owed.when(job_case("abandoned", facts, **columns)) is opened


def test_no_second_checkout_is_opened_where_there_is_one() -> None:
    owed = state_owes("awaiting_payment", "create_checkout")
    assert owed.when is not None
    assert owed.when(job_case("awaiting_payment")) is False
    assert owed.when(job_case("awaiting_payment", stripe_checkout_session_id=None)) is True


def test_every_waiting_state_ends_by_itself() -> None:
    for state in JOB.states:
        deadlines = [owed for owed in state.owes if owed.deadline]
        assert state.waiting == bool(deadlines), state.name
        assert state.waiting == (state.name in ("awaiting_payment", "pending", "processing"))


def test_a_file_that_is_forgotten_is_named_to_whoever_removes_it() -> None:
    case = job_case("completed")
    case.record(file_name="results/r.png")
    assert owing.removed_file(case) == {"file_name": "results/r.png"}
    assert owing.kept_source(case) == {"file_name": "sources/job-1.png"}
    assert owing.link_generation(case) == {"token_generation": 1}


def test_nothing_personal_is_recorded_or_queued() -> None:
    """The values of an amendment and what the admin is told hold no address."""
    case = job_case("completed", {"fields": {"email": "secret@example.com"}}, "amend")
    move = next(move for move in JOB.moves if move.trigger == "amend")
    assert move.change is not None
    move.change(case)
    assert case.metadata == {"fields": ["email"]}
    tell = next(owed for owed in JOB.state("failed").owes if owed.effect.name == "tell_admin")
    assert tell.inputs is not None
    assert "example.com" not in str(tell.inputs(case))
