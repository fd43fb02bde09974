"""Owns the checks of idempotency keys. Called by pytest."""

from __future__ import annotations

import pytest

from smi_workflow.sandbox.stripe_errors import StripeFailure
from smi_workflow.sandbox.stripe_idempotency import Answer, IdempotencyKeys

KEY = ("sk_test_1", "effect-1")
ANSWER = Answer(500, b"{}", "req_1")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_replays_its_answer_for_a_day_and_is_new_after() -> None:
    clock = Clock()
    keys = IdempotencyKeys(clock)
    assert keys.begin(KEY, "POST /v1/refunds", "a") is None
    keys.finish(KEY, ANSWER)
    clock.now += 24 * 3600
    assert keys.begin(KEY, "POST /v1/refunds", "a") is ANSWER
    clock.now += 1
    assert keys.begin(KEY, "POST /v1/refunds", "a") is None


def test_the_same_key_at_the_same_time_is_a_conflict() -> None:
    keys = IdempotencyKeys(Clock())
    keys.begin(KEY, "POST /v1/refunds", "a")
    with pytest.raises(StripeFailure) as caught:
        keys.begin(KEY, "POST /v1/refunds", "a")
    assert (caught.value.status, caught.value.code) == (409, "idempotency_key_in_use")


@pytest.mark.parametrize(("endpoint", "fingerprint"), [("POST /v1/refunds", "b"), ("POST /v1/other", "a")])
def test_a_key_belongs_to_one_endpoint_and_its_parameters(endpoint: str, fingerprint: str) -> None:
    keys = IdempotencyKeys(Clock())
    keys.begin(KEY, "POST /v1/refunds", "a")
    keys.finish(KEY, ANSWER)
    with pytest.raises(StripeFailure) as caught:
        keys.begin(KEY, endpoint, fingerprint)
    assert (caught.value.status, caught.value.kind) == (400, "idempotency_error")


def test_a_request_that_never_began_leaves_the_key_free() -> None:
    keys = IdempotencyKeys(Clock())
    keys.begin(KEY, "POST /v1/refunds", "a")
    keys.finish(KEY, None)
    assert keys.begin(KEY, "POST /v1/refunds", "b") is None


def test_another_account_has_its_own_keys() -> None:
    keys = IdempotencyKeys(Clock())
    keys.begin(KEY, "POST /v1/refunds", "a")
    assert keys.begin(("sk_test_2", KEY[1]), "POST /v1/refunds", "a") is None
