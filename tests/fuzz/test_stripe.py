"""What Stripe sends, or whoever says to be Stripe: signatures, events, objects, answers.

Called by pytest, atheris.
"""

from __future__ import annotations

import hmac
import json
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from hypothesis import strategies as st

from smi_workflow.errors import BadSignature, InvalidInput, ServiceError
from smi_workflow.intake import reduce_stripe_event
from smi_workflow.integrations.stripe_api import _parse
from smi_workflow.integrations.stripe_events import verify_event
from smi_workflow.integrations.stripe_http import error_for, retry_after
from smi_workflow.integrations.stripe_objects import CheckoutSession, PaymentIntent, StripeRefund
from tests.fuzz.fuzzed import fuzzed
from tests.fuzz.made_up import (
    cents,
    currencies,
    header_values,
    ids,
    json_objects,
    json_values,
    objects,
    texts,
)

SECRET = "whsec_fuzz"
NOW = 1_770_000_000
KINDS = (
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "payment_intent.payment_failed",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.refund.updated",
    "charge.dispute.created",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "charge.dispute.closed",
    "charge.succeeded",
)
JOBS = tuple(f"job-{number}" for number in range(1, 9))
THINGS: dict[str, st.SearchStrategy[Any]] = {
    "id": ids("cs_1", "re_1", "du_1", "pi_1"),
    "amount": cents,
    "amount_total": cents,
    "amount_refunded": cents,
    "amount_received": cents,
    "currency": currencies,
    "client_reference_id": ids(*JOBS),
    "livemode": st.booleans(),
    "status": st.sampled_from(
        ["open", "complete", "expired", "succeeded", "pending", "failed", "canceled", "won"]
    ),
    "payment_status": st.sampled_from(["paid", "unpaid", "no_payment_required"]),
    "payment_intent": ids(*(f"pi-{job}" for job in JOBS)) | st.fixed_dictionaries({"id": texts}),
    "charge": ids("ch_1") | st.fixed_dictionaries({"id": texts}),
    "latest_charge": ids("ch_1"),
    "reason": texts,
    "failure_reason": texts,
    "url": texts,
    "metadata": st.fixed_dictionaries(
        {}, optional={"job_id": ids(*JOBS), "refund_id": ids("refund-1", "refund-2")}
    ),
    "customer_details": st.fixed_dictionaries({}, optional={"email": texts}),
    "last_payment_error": st.fixed_dictionaries({}, optional={"code": texts}),
    "expires_at": st.integers() | st.just(NOW),
    "customer_email": texts,
}
things = objects(THINGS)
events = st.fixed_dictionaries(
    {
        "object": st.just("event"),
        "id": st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
        "type": st.sampled_from(KINDS) | texts,
        "data": st.fixed_dictionaries({"object": things}) | json_values,
    },
    optional={"livemode": st.booleans() | json_values},
)


def signed(body: bytes, stamp: int = NOW) -> str:
    """What Stripe puts in the header."""
    signature = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, sha256).hexdigest()
    return f"t={stamp},v1={signature}"


@fuzzed(150, body=st.binary(max_size=300), header=st.none() | header_values | texts)
def test_nobody_else_signs(body: bytes, header: str | None) -> None:
    try:
        verify_event(body, header, [SECRET, ""], now=NOW)
    except BadSignature:
        return
    raise AssertionError("it was taken for Stripe's")


@fuzzed(
    200,
    body=st.binary(max_size=300)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.integers(0, 3000).map(lambda depth: b"[" * depth)
    | st.integers(1, 6000).map(lambda digits: b'{"object":"event","id":' + b"9" * digits + b"}"),
)
def test_what_is_signed_is_an_event_or_refused(body: bytes) -> None:
    try:
        event = verify_event(body, signed(body), [SECRET], now=NOW)
    except (InvalidInput, BadSignature):
        return
    assert isinstance(event["data"]["object"], dict)
    assert event["id"] and event["type"]


@fuzzed(300, event=events | json_objects)
def test_an_event_is_cut_down_or_refused(event: dict[str, Any]) -> None:
    try:
        kept = reduce_stripe_event(event)
    except InvalidInput:
        return
    assert set(kept) == {"id", "type", "livemode", "object"}
    # What is kept of it is plain: the inbox's column takes it.
    assert json.loads(json.dumps(kept))["object"].keys() == kept["object"].keys()


@fuzzed(200, payload=things | json_objects, kind=st.sampled_from([CheckoutSession, PaymentIntent, StripeRefund]))
def test_an_object_is_read_or_the_answer_is_odd(payload: dict[str, Any], kind: Any) -> None:
    with suppress(ServiceError):
        _parse(kind.from_payload, payload)


@fuzzed(
    200,
    status=st.sampled_from([200, 301, 400, 401, 402, 403, 404, 408, 409, 424, 429, 500, 503, 600]) | st.integers(),
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "Stripe-Should-Retry", "Request-Id"]) | header_values, header_values
    ),
    text=st.text(max_size=200) | json_values.map(json.dumps) | objects({"error": things}).map(json.dumps),
    changes=st.booleans(),
)
def test_every_answer_has_a_meaning(status: int, headers: dict[str, str], text: str, changes: bool) -> None:
    error = error_for(status, headers, text, changes=changes, now=datetime.fromtimestamp(NOW, UTC))
    assert isinstance(error, ServiceError)
    assert len(str(error)) < 2000


@fuzzed(300, value=st.none() | header_values | texts | st.floats().map(str) | st.integers().map(str))
def test_a_time_that_stripe_names_is_read_or_absent(value: str | None) -> None:
    found = retry_after(value, now=datetime.fromtimestamp(NOW, UTC))
    assert found is None or found >= 0
