"""Owns the checks of which answers of Stripe may be retried. Called by pytest."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.stripe_http import error_for, retry_after

NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


def body(code: str | None = None, message: str = "no", kind: str = "invalid_request_error") -> str:
    return json.dumps({"error": {"type": kind, "message": message} | ({"code": code} if code else {})})


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "charge_already_refunded"),
        (400, None),
        (401, None),
        (402, "card_declined"),
        (403, None),
        (404, "resource_missing"),
        (422, None),
    ],
)
def test_other_4xx_are_final(status: int, code: str | None) -> None:
    error = error_for(status, {}, body(code), changes=True, now=NOW)
    assert isinstance(error, ServiceRefused)
    assert (error.service, error.status, error.code) == ("stripe", status, code)


@pytest.mark.parametrize(
    ("status", "code", "unknown"),
    [
        (429, None, False),
        (429, "lock_timeout", False),
        (409, "lock_timeout", False),
        (409, "idempotency_key_in_use", True),
        (400, "rate_limit", False),
        (400, "lock_timeout", False),
        (424, None, True),
        (500, None, True),
        (502, None, True),
        (503, None, True),
        (302, None, True),
    ],
)
def test_transient_answers(status: int, code: str | None, unknown: bool) -> None:
    error = error_for(status, {"Retry-After": "7"}, body(code), changes=True, now=NOW)
    assert isinstance(error, ServiceUnavailable)
    assert (error.status, error.code, error.retry_after_seconds) == (status, code, 7.0)
    assert error.outcome_unknown is unknown
    question = error_for(status, {}, body(code), changes=False, now=NOW)
    assert isinstance(question, ServiceUnavailable)
    assert not question.outcome_unknown


def test_a_key_reused_with_other_parameters_is_final_and_named() -> None:
    error = error_for(400, {}, body(kind="idempotency_error"), changes=True, now=NOW)
    assert isinstance(error, ServiceRefused)
    assert error.code == "idempotency_key_in_use"


def test_stripes_word_that_a_retry_helps_is_taken() -> None:
    error = error_for(400, {"Stripe-Should-Retry": "true"}, body(), changes=True, now=NOW)
    assert isinstance(error, ServiceUnavailable)


@pytest.mark.parametrize("text", ["", "<html>busy</html>", "[]", '{"error": "no"}', "null", "[" * 100_000])
def test_bodies_of_strangers_do_no_harm(text: str) -> None:
    assert isinstance(error_for(503, {}, text, changes=True, now=NOW), ServiceUnavailable)
    assert isinstance(error_for(404, {}, text, changes=True, now=NOW), ServiceRefused)
    garbled = error_for(200, {}, text, changes=True, now=NOW)
    assert isinstance(garbled, ServiceUnavailable)
    assert garbled.outcome_unknown


def test_texts_carry_the_request_but_no_key_and_no_address() -> None:
    message = "Invalid key sk_test_51abcDEF for 'jane@example.com'"
    text = str(error_for(401, {"Request-Id": "req_9"}, body(message=message), changes=True, now=NOW))
    assert "req_9" in text
    assert "51abc" not in text
    assert "jane" not in text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("Sun, 22 Nov 2026 10:01:00 GMT", 60.0),
        ("Sun, 22 Nov 2026 09:00:00 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_retry_after_is_read(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=NOW) == seconds
