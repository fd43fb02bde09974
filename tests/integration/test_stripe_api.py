"""Owns the checks of what goes over the wire to Stripe, against a real server. Called by pytest."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import stripe

from smi_workflow.errors import InvalidInput, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.stripe_api import CheckoutSession, StripeApi
from tests.integration.stripe_wire import (
    INTENT,
    KEY,
    REFUND,
    SESSION,
    SOON,
    Answer,
    FakeStripe,
    Request,
    create,
    listing,
    refund,
    refusal,
    serving,
)
from tests.support.contracts import contracts_dir


@pytest.fixture
def server() -> Iterator[FakeStripe]:
    with serving() as server:
        yield server


@pytest.fixture
def api(server: FakeStripe) -> Iterator[StripeApi]:
    api = StripeApi(KEY, server.url)
    yield api
    api.close()


def test_a_checkout_session_is_asked_for_in_full(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [Answer(SESSION)]
    session = create(api)
    assert session == CheckoutSession(
        id="cs_1",
        url="https://checkout.stripe.com/c/pay/cs_1",
        status="open",
        payment_status="unpaid",
        payment_intent=None,
        amount_total_cents=384,
        currency="usd",
        livemode=False,
        expires_at=SOON,
        email=None,
        metadata={"job_id": "job_1"},
    )
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/checkout/sessions")
    assert request.headers["Idempotency-Key"] == "effect-1"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.parameters == {
        "mode": "payment",
        "client_reference_id": "job_1",
        "metadata": {"job_id": "job_1"},
        "payment_intent_data": {"metadata": {"job_id": "job_1"}},
        "line_items": {
            "0": {
                "quantity": "1",
                "price_data": {
                    "currency": "usd",
                    "unit_amount": "384",
                    "product_data": {"name": "Upscaled image, 4096 by 4096, größer"},
                },
            }
        },
        "success_url": "https://shop.example/thanks?job=job_1&s={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://shop.example/cancelled?job=job_1",
        "expires_at": str(int(SOON.timestamp())),
        "adaptive_pricing": {"enabled": "false"},
        "allow_promotion_codes": "false",
        "automatic_tax": {"enabled": "false"},
        "customer_email": "jane@example.com",
    }


@pytest.mark.parametrize("email", [None, ""])
def test_no_address_is_sent_when_none_is_known(server: FakeStripe, api: StripeApi, email: str | None) -> None:
    server.answers = [Answer(SESSION)]
    create(api, email=email)
    assert "customer_email" not in server.requests[0].parameters


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at": datetime(2026, 11, 23)},
        {"amount_cents": 0},
        {"amount_cents": 3.84},
        {"key": ""},
        {"key": "a\nb"},
        {"key": "x" * 256},
    ],
)
def test_what_cannot_be_asked_for_is_not_sent(server: FakeStripe, api: StripeApi, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        create(api, **changes)
    assert server.requests == []


def test_an_empty_id_never_becomes_a_list(server: FakeStripe, api: StripeApi) -> None:
    for look_up in (
        api.retrieve_checkout_session,
        api.retrieve_payment_intent,
        api.retrieve_charge_intent,
        api.retrieve_refund,
    ):
        with pytest.raises(InvalidInput):
            look_up("")
    assert server.requests == []


def test_look_ups(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [
        Answer({**SESSION, "payment_intent": INTENT, "status": "complete", "payment_status": "paid"}),
        Answer(INTENT),
        Answer({"id": "ch_1", "object": "charge", "payment_intent": "pi_1"}),
        Answer({"id": "ch_2", "object": "charge", "payment_intent": None}),
        Answer(REFUND),
    ]
    assert api.retrieve_checkout_session("cs_1").payment_intent == "pi_1"
    assert api.retrieve_payment_intent("pi_1").amount_received_cents == 384
    assert api.retrieve_charge_intent("ch_1") == "pi_1"
    assert api.retrieve_charge_intent("ch_2") is None
    assert api.retrieve_refund("re/../1").status == "pending"
    assert [request.path for request in server.requests] == [
        "/v1/checkout/sessions/cs_1",
        "/v1/payment_intents/pi_1",
        "/v1/charges/ch_1",
        "/v1/charges/ch_2",
        "/v1/refunds/re%2F..%2F1",
    ]


def test_an_open_session_is_expired(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [Answer({**SESSION, "status": "expired"})]
    assert api.expire_checkout_session("cs_1", key="effect-3").status == "expired"
    (request,) = server.requests
    assert (request.path, request.headers["Idempotency-Key"]) == ("/v1/checkout/sessions/cs_1/expire", "effect-3")


@pytest.mark.parametrize("status", ["expired", "complete"])
def test_a_closed_session_is_returned_as_it_is(server: FakeStripe, api: StripeApi, status: str) -> None:
    server.answers = [refusal(400), Answer({**SESSION, "status": status})]
    assert api.expire_checkout_session("cs_1", key="effect-3").status == status


def test_a_session_that_cannot_be_expired_is_not_called_closed(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [refusal(400), Answer(SESSION), refusal(404, "resource_missing")]
    with pytest.raises(ServiceRefused):
        api.expire_checkout_session("cs_1", key="effect-3")
    with pytest.raises(ServiceRefused) as unknown:
        api.expire_checkout_session("cs_1", key="effect-4")
    assert unknown.value.code == "resource_missing"
    assert server.answers == []


def test_a_session_is_found_on_a_later_page(server: FakeStripe, api: StripeApi) -> None:
    others = [{**SESSION, "id": f"cs_{number}", "metadata": {"job_id": "other"}} for number in (5, 4)]
    server.answers = [listing(*others, more=True), listing({**SESSION, "metadata": None}, SESSION)]
    found = api.find_checkout_session(job_id="job_1", since=SOON, until=SOON)
    assert found is not None
    assert found.id == "cs_1"
    first, second = server.requests
    start = int((SOON - timedelta(minutes=5)).timestamp())
    created = {"gte": str(start), "lt": str(start + 601)}
    assert first.path == second.path == "/v1/checkout/sessions"
    assert first.parameters == {"created": created, "limit": "100"}
    assert second.parameters == {"created": created, "limit": "100", "starting_after": "cs_4"}


def test_no_session_is_found(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [listing()]
    assert api.find_checkout_session(job_id="job_1", since=SOON, until=SOON) is None


def test_a_long_time_is_looked_through_in_parts(server: FakeStripe, api: StripeApi) -> None:
    """The whole of it without a gap, each second once, and no further once it is found."""
    server.respond = lambda _: listing()
    assert api.find_checkout_session(job_id="job_1", since=SOON, until=SOON + timedelta(hours=5)) is None
    spans: list[Any] = [request.parameters["created"] for request in server.requests]
    assert len(spans) == 11
    assert spans[0]["gte"] == str(int((SOON - timedelta(minutes=5)).timestamp()))
    assert [span["lt"] for span in spans[:-1]] == [span["gte"] for span in spans[1:]]
    assert spans[-1]["lt"] == str(int((SOON + timedelta(hours=5, minutes=5)).timestamp()) + 1)
    server.requests.clear()
    server.respond = lambda _: listing(SESSION if len(server.requests) == 3 else {**SESSION, "metadata": None})
    assert api.find_checkout_session(job_id="job_1", since=SOON, until=SOON + timedelta(hours=5)) is not None
    assert len(server.requests) == 3


def test_a_list_that_does_not_move_on_ends(server: FakeStripe, api: StripeApi) -> None:
    server.respond = lambda _: listing({**REFUND, "id": "re_9"}, more=True)
    with pytest.raises(ServiceUnavailable, match="move on"):
        api.list_refunds(payment_intent="pi_1")
    server.respond = lambda _: listing(more=True)
    with pytest.raises(ServiceUnavailable):
        api.list_refunds(payment_intent="pi_1")


def test_money_goes_back(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [Answer(REFUND), Answer(REFUND)]
    made = refund(api)
    assert (made.id, made.status, made.amount_cents, made.failure_reason) == ("re_1", "pending", 384, None)
    refund(api, reason=None)
    first, second = server.requests
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"] == "effect-2"
    assert first.parameters == {
        "payment_intent": "pi_1",
        "amount": "384",
        "reason": "requested_by_customer",
        "metadata": {"refund": "r1"},
    }
    assert "reason" not in second.parameters


def test_all_refunds_of_a_payment_are_listed(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [listing(REFUND, more=True), listing({**REFUND, "id": "re_0", "status": "failed"})]
    assert [(found.id, found.status) for found in api.list_refunds(payment_intent="pi_1")] == [
        ("re_1", "pending"),
        ("re_0", "failed"),
    ]
    assert server.requests[1].parameters["starting_after"] == "re_1"


def test_events_come_as_a_webhook_would_bring_them(server: FakeStripe, api: StripeApi) -> None:
    events = [
        json.loads(path.read_text()) | {"id": f"evt_{number}"}
        for number, path in enumerate(sorted((contracts_dir() / "stripe-events").glob("*.json")))
    ]
    server.answers = [listing(*events[:4], more=True), listing(*events[4:])]
    got = list(api.list_events(since=SOON, types=["charge.refunded", "refund.failed"], undelivered_only=True))
    assert got == events
    assert server.requests[0].parameters == {
        "created": {"gte": str(int(SOON.timestamp()))},
        "types": {"0": "charge.refunded", "1": "refund.failed"},
        "delivery_success": "false",
        "limit": "100",
    }


def test_at_most_twenty_types_may_be_asked_for(api: StripeApi) -> None:
    with pytest.raises(InvalidInput):
        api.list_events(since=SOON, types=["refund.failed"] * 21)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refusal(400, "charge_already_refunded"), "charge_already_refunded"),
        (refusal(404, "resource_missing"), "resource_missing"),
        (refusal(401), None),
        (refusal(402, "card_declined"), "card_declined"),
        (refusal(403), None),
        (refusal(400, kind="idempotency_error"), "idempotency_key_in_use"),
    ],
)
def test_final_answers(server: FakeStripe, api: StripeApi, answer: Answer, code: str | None) -> None:
    server.answers = [answer]
    with pytest.raises(ServiceRefused) as refused:
        refund(api)
    assert (refused.value.code, refused.value.status) == (code, answer.status)
    assert KEY not in str(refused.value) + repr(refused.value)


@pytest.mark.parametrize("status", [429, 409, 500, 503])
def test_transient_answers_are_not_tried_again_here(server: FakeStripe, api: StripeApi, status: int) -> None:
    answer = refusal(status)
    answer.headers = {"Retry-After": "12"}
    server.answers = [answer]
    with pytest.raises(ServiceUnavailable) as busy:
        refund(api)
    assert busy.value.retry_after_seconds == 12.0
    assert busy.value.outcome_unknown is (status != 429)
    assert len(server.requests) == 1


def test_a_proxys_page_keeps_its_retry_after(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [Answer(b"<html>busy</html>", 503, {"Retry-After": "3"})]
    with pytest.raises(ServiceUnavailable) as busy:
        refund(api)
    assert (busy.value.status, busy.value.retry_after_seconds) == (503, 3.0)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b"\xff", b"{}", b'{"id": 3}', b""])
def test_a_garbled_success_leaves_the_outcome_unknown(server: FakeStripe, api: StripeApi, body: bytes) -> None:
    server.answers = [Answer(body), Answer(body)]
    with pytest.raises(ServiceUnavailable) as odd:
        refund(api)
    assert odd.value.outcome_unknown
    with pytest.raises(ServiceUnavailable) as question:
        api.retrieve_refund("re_1")
    assert not question.value.outcome_unknown


@pytest.mark.parametrize("trouble", ["reset", "truncated", "silence", "drip_head", "drip_body", "drip_refusal"])
def test_broken_and_endless_answers_leave_the_outcome_unknown(server: FakeStripe, trouble: str) -> None:
    api = StripeApi(KEY, server.url, timeout_seconds=0.5)
    server.answers = [Answer(REFUND), Answer(trouble=trouble), Answer(trouble=trouble), Answer(REFUND)]
    refund(api)
    with pytest.raises(ServiceUnavailable) as lost:
        refund(api)
    assert lost.value.outcome_unknown
    with pytest.raises(ServiceUnavailable) as question:
        api.retrieve_refund("re_1")
    assert not question.value.outcome_unknown
    assert refund(api).id == "re_1"
    keys = [request.headers.get("Idempotency-Key") for request in server.requests]
    assert keys == ["effect-2", "effect-2", None, "effect-2"]
    # Ten seconds of trickle: whoever is still reading at its end was not cut off.
    assert not server.dripped_out
    api.close()


def test_nobody_listening_means_nothing_was_done() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        api = StripeApi(KEY, f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ServiceUnavailable) as refused:
            refund(api)
    assert not refused.value.outcome_unknown
    assert KEY not in str(refused.value)


def test_an_unknown_host_means_nothing_was_done() -> None:
    api = StripeApi(KEY, "http://stripe.invalid")
    with pytest.raises(ServiceUnavailable) as refused:
        refund(api)
    assert not refused.value.outcome_unknown


def test_a_redirect_is_not_followed_with_the_key(server: FakeStripe, api: StripeApi) -> None:
    server.answers = [Answer({}, 302, {"Location": f"{server.url}/elsewhere"})]
    with pytest.raises(ServiceUnavailable):
        refund(api)
    assert len(server.requests) == 1


def test_no_telemetry_no_agent_and_no_notice(
    server: FakeStripe, api: StripeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CODEX_CI", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("stripe._telemetry_id._loaded", False)
    server.answers = [Answer(REFUND, headers={"Stripe-Notice": "Try our new thing!"}) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refund(api)
        refund(api)
    for request in server.requests:
        assert not [name for name in request.headers if name.lower().startswith("x-stripe-client")]
        assert request.headers["User-Agent"] == f"smi-workflow stripe-python/{stripe.VERSION}"
    assert list(tmp_path.iterdir()) == []
    assert stripe.api_key is None


def test_a_netrc_entry_does_not_replace_the_key(
    server: FakeStripe, api: StripeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", os.fspath(tmp_path / "netrc"))
    server.answers = [Answer(REFUND)]
    refund(api)
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_two_clients_do_not_share_their_keys(server: FakeStripe, api: StripeApi) -> None:
    server.respond = lambda _: Answer(REFUND)
    other = StripeApi("sk_test_other", server.url)
    refund(other)
    refund(api)
    refund(other)
    sent = [request.headers["Authorization"] for request in server.requests]
    assert sent == ["Bearer sk_test_other", f"Bearer {KEY}", "Bearer sk_test_other"]
    other.close()


def test_threads_share_a_client(server: FakeStripe, api: StripeApi) -> None:
    def echo(request: Request) -> Answer:
        return Answer({**SESSION, "metadata": request.parameters["metadata"]})

    server.respond = echo

    def work(number: int) -> bool:
        job_id = f"job_{number}"
        session = create(api, job_id=job_id, key=f"effect-{number}")
        return session.metadata == {"job_id": job_id}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))
    pairs = {
        (request.parameters["client_reference_id"], request.headers["Idempotency-Key"])
        for request in server.requests
    }
    assert pairs == {(f"job_{number}", f"effect-{number}") for number in range(64)}
