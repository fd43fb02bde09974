"""Owns the checks of how the imitated Stripe replays, delivers and misbehaves. Called by pytest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

from smi_workflow.errors import InvalidInput
from smi_workflow.sandbox import Sandbox
from tests.support.sandbox import (
    AUTH,
    WEBHOOK_SECRET,
    Received,
    Site,
    form,
    lever,
    post,
    running_sandbox,
    running_site,
    sell,
    session_params,
    stripe_client,
    wait_until,
)


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@pytest.fixture
def sandbox(tmp_path: Path, site: Site) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path, webhook_url=f"{site.url}/hook", webhook_secrets=(WEBHOOK_SECRET,)) as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> stripe.StripeClient:
    return stripe_client(sandbox.stripe.url)


def test_a_key_is_replayed_and_belongs_to_its_parameters(sandbox: Sandbox) -> None:
    first = post(sandbox, "/v1/checkout/sessions", form(), key="k1")
    again = post(sandbox, "/v1/checkout/sessions", form(), key="k1")
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    other = post(sandbox, "/v1/checkout/sessions", form(customer_email="a@b.example"), key="k1")
    assert (other.status_code, other.json()["error"]["type"]) == (400, "idempotency_error")
    assert len(sandbox.stripe.ledger()["sessions"]) == 1


def test_a_500_is_replayed_with_its_key_and_a_503_is_not(sandbox: Sandbox) -> None:
    for status, replayed in ((500, 500), (503, 200)):
        sandbox.stripe.faults.add({"path": "/v1/checkout"}, {"kind": "status", "status": status})
        assert post(sandbox, "/v1/checkout/sessions", form(), key=f"k{status}").status_code == status
        assert post(sandbox, "/v1/checkout/sessions", form(), key=f"k{status}").status_code == replayed


def test_a_refused_parameter_leaves_the_key_free(sandbox: Sandbox) -> None:
    assert post(sandbox, "/v1/checkout/sessions", form(colour="red"), key="k").status_code == 400
    assert post(sandbox, "/v1/checkout/sessions", form(), key="k").status_code == 200


def test_the_same_key_twice_at_once_is_a_conflict(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site
) -> None:
    session = client.v1.checkout.sessions.create(session_params())
    arrived, released = threading.Event(), threading.Event()

    def hold(request: Received) -> None:
        arrived.set()
        released.wait(30)

    site.on_post = hold
    # The first request stays under way for as long as its own webhook is being taken in.
    sandbox.stripe.faults.add({"webhook": "*"}, {"kind": "early"})
    first: list[int] = []
    path = f"/v1/checkout/sessions/{session.id}/expire"
    thread = threading.Thread(target=lambda: first.append(post(sandbox, path, key="k").status_code))
    thread.start()
    arrived.wait(30)
    second = post(sandbox, path, key="k")
    released.set()
    thread.join()
    assert (first, second.status_code) == ([200], 409)
    assert second.json()["error"]["code"] == "idempotency_key_in_use"


@pytest.mark.parametrize(
    ("fault", "work_done"),
    [
        ({"kind": "reset"}, False),
        ({"kind": "reset_after"}, True),
        ({"kind": "hang"}, True),
        ({"kind": "garbage"}, True),
        ({"kind": "status", "status": 502}, False),
        ({"kind": "status", "status": 502, "after": True}, True),
    ],
)
def test_a_request_fault_strikes_once_and_a_retry_with_the_key_makes_no_second_session(
    sandbox: Sandbox, fault: dict[str, Any], work_done: bool
) -> None:
    control = f"{sandbox.stripe.url}/_sandbox/faults"
    rule = {"match": {"method": "POST", "path": "/v1/checkout/sessions"}, "fault": fault}
    assert requests.post(control, json=rule, timeout=10).status_code == 201
    headers = {**AUTH, "Idempotency-Key": "k"}
    url = f"{sandbox.stripe.url}/v1/checkout/sessions"
    if fault["kind"] in ("reset", "reset_after"):
        with pytest.raises(requests.ConnectionError) as caught:
            requests.post(url, data=form(), headers=headers, timeout=10)
        assert "ConnectionResetError" in str(caught.value)
    elif fault["kind"] == "hang":
        with pytest.raises(requests.ReadTimeout):
            requests.post(url, data=form(), headers=headers, timeout=0.5)
    elif fault["kind"] == "garbage":
        answer = requests.post(url, data=form(), headers=headers, timeout=10)
        assert answer.status_code == 200
        with pytest.raises(requests.JSONDecodeError):
            answer.json()
    else:
        assert requests.post(url, data=form(), headers=headers, timeout=10).status_code == 502
    if work_done:
        wait_until(lambda: len(sandbox.stripe.ledger()["sessions"]) == 1)
    else:
        assert sandbox.stripe.ledger()["sessions"] == []
    assert requests.get(control, timeout=10).json() == {"faults": []}
    retried = post(sandbox, "/v1/checkout/sessions", form(), key="k")
    assert retried.status_code == 200
    assert ("Idempotent-Replayed" in retried.headers) is work_done
    assert len(sandbox.stripe.ledger()["sessions"]) == 1


def test_a_slow_answer_comes_late_but_right(sandbox: Sandbox) -> None:
    sandbox.stripe.faults.add({"path": "/v1/checkout"}, {"kind": "slow", "seconds": 0.7})
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{sandbox.stripe.url}/v1/checkout/sessions", data=form(), headers=AUTH, timeout=0.2)
    wait_until(lambda: len(sandbox.stripe.ledger()["sessions"]) == 1)


def test_faults_and_levers_explain_what_they_refuse(sandbox: Sandbox) -> None:
    base = f"{sandbox.stripe.url}/_sandbox"
    for path, data in (
        ("faults", {"match": {}, "fault": {"kind": "reset"}}),
        ("faults", {"match": {"path": "/"}, "fault": {"kind": "explode"}}),
        ("faults", [1]),
        ("clock", {"advance_seconds": "soon"}),
        ("stripe/webhook", {"url": "ftp://x", "secrets": ["s"]}),
        ("stripe/dashboard/refunds", {"charge": "ch_1", "amount": -1}),
    ):
        answer = requests.post(f"{base}/{path}", json=data, timeout=10)
        assert answer.status_code == 400
        assert "error" in answer.json()
    with pytest.raises(InvalidInput):
        sandbox.set_webhook("http://127.0.0.1:1/", *())


def test_a_webhook_is_sent_again_until_it_is_taken_each_time_freshly_signed(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site
) -> None:
    site.statuses = [500, 404]
    session = client.v1.checkout.sessions.create(session_params())
    client.v1.checkout.sessions.expire(session.id)
    wait_until(lambda: len(site.posts()) == 3)
    assert len({request.json()["id"] for request in site.posts()}) == 1
    wait_until(lambda: client.v1.events.list({"delivery_success": False}).data == [])
    event = client.v1.events.list({"type": "checkout.session.*"}).data[0]
    assert event.pending_webhooks == 0
    row = sandbox.stripe.ledger()["events"][0]
    assert [attempt["status"] for attempt in row["deliveries"]] == [500, 404, 200]


def test_a_lost_webhook_can_still_be_listed_and_sent_again(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site
) -> None:
    sandbox.stripe.faults.add({"webhook": "checkout.session.*"}, {"kind": "lost"})
    session = client.v1.checkout.sessions.create(session_params())
    client.v1.checkout.sessions.expire(session.id)
    lost = client.v1.events.list({"delivery_success": False, "types": ["checkout.session.expired"]}).data
    assert len(lost) == 1
    assert site.posts() == []
    lever(sandbox, f"stripe/events/{lost[0].id}/resend", {})
    wait_until(lambda: [event["id"] for event in site.events()] == [lost[0].id])


@pytest.mark.parametrize(("fault", "ids"), [({"kind": "duplicate", "copies": 3}, 1), ({"kind": "twin"}, 2)])
def test_a_webhook_comes_more_than_once(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site, fault: dict[str, Any], ids: int
) -> None:
    sandbox.stripe.faults.add({"webhook": "checkout.session.expired"}, fault)
    session = client.v1.checkout.sessions.create(session_params())
    client.v1.checkout.sessions.expire(session.id)
    wait_until(lambda: len(site.posts()) == (3 if ids == 1 else 2))
    assert len({event["id"] for event in site.events()}) == ids
    assert {event["data"]["object"]["id"] for event in site.events()} == {session.id}


def test_an_early_webhook_is_there_before_the_answer(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site
) -> None:
    sandbox.stripe.faults.add({"webhook": "refund.created"}, {"kind": "early"})
    client.v1.refunds.create({"payment_intent": sell(sandbox, client)})
    assert len(site.events("refund.created")) == 1


def test_a_delayed_webhook_waits_while_the_others_go(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site
) -> None:
    sandbox.stripe.faults.add({"webhook": "payment_intent.succeeded"}, {"kind": "delay", "seconds": 600})
    sell(sandbox, client)
    wait_until(lambda: len(site.posts()) == 2)
    wait_until(lambda: len(client.v1.events.list({"delivery_success": False}).data) == 1)
    assert client.v1.events.list({"delivery_success": False}).data[0].type == "payment_intent.succeeded"


def test_a_refund_can_be_told_to_stay_pending(sandbox: Sandbox, client: stripe.StripeClient) -> None:
    sandbox.stripe.faults.add({"refund": True}, {"kind": "pending"})
    assert client.v1.refunds.create({"payment_intent": sell(sandbox, client)}).status == "pending"


def test_stopping_does_not_wait_for_a_hanging_request(tmp_path: Path) -> None:
    with running_sandbox(tmp_path) as sandbox:
        sandbox.stripe.faults.add({"path": "/v1/events"}, {"kind": "hang"})
        broken: list[BaseException] = []

        def ask() -> None:
            try:
                requests.get(f"{sandbox.stripe.url}/v1/events", headers=AUTH, timeout=60)
            except requests.ConnectionError as error:
                broken.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: sandbox.stripe.faults.listing() == [])
    thread.join(timeout=10)
    assert len(broken) == 1
