"""Owns the checks of the imitated Stripe over real HTTP, with the official client. Called by pytest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import stripe

from smi_workflow.sandbox import Sandbox
from tests.support.sandbox import (
    AUTH,
    WEBHOOK_SECRET,
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


def test_the_official_client_creates_retrieves_lists_and_expires(client: stripe.StripeClient) -> None:
    first = client.v1.checkout.sessions.create(session_params())
    second = client.v1.checkout.sessions.create(session_params())
    assert client.v1.checkout.sessions.retrieve(first.id).amount_total == 384
    listed = client.v1.checkout.sessions.list({"created": {"gte": first.created}, "limit": 1})
    assert [one.id for one in listed.data] == [second.id]
    assert listed.has_more
    assert [one.id for one in listed.auto_paging_iter()] == [second.id, first.id]
    assert client.v1.checkout.sessions.expire(first.id).status == "expired"
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.checkout.sessions.expire(first.id)


def test_a_buyer_pays_on_the_page_and_every_webhook_carries_a_good_signature(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site
) -> None:
    session = client.v1.checkout.sessions.create(session_params(customer_email="jane@example.org"))
    page = requests.get(str(session.url), timeout=10)
    assert "3.84 USD" in page.text
    assert "jane@example.org" in page.text
    assert "<cat>" not in page.text
    assert "&lt;cat&gt;" in page.text
    answer = requests.post(f"{session.url}/pay", allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.headers["Location"]) == (
        303,
        f"https://shop.example/thanks?session={session.id}",
    )
    wait_until(lambda: len(site.posts()) == 3)
    kinds = set()
    for request in site.posts():
        event = stripe.Webhook.construct_event(
            request.body.decode(), request.headers["Stripe-Signature"], WEBHOOK_SECRET
        )
        kinds.add(event.type)
        assert event.api_version == "2026-10-28.endive"
    assert kinds == {"payment_intent.succeeded", "charge.succeeded", "checkout.session.completed"}
    paid = client.v1.checkout.sessions.retrieve(session.id, {"expand": ["payment_intent.latest_charge"]})
    assert isinstance(paid.payment_intent, stripe.PaymentIntent)
    assert paid.payment_intent.metadata["job"] == "intent"
    assert isinstance(paid.payment_intent.latest_charge, stripe.Charge)


def test_declining_shows_it_and_leaving_goes_back_to_the_shop(client: stripe.StripeClient) -> None:
    session = client.v1.checkout.sessions.create(session_params())
    declined = requests.post(f"{session.url}/decline", timeout=10)
    assert declined.status_code == 402
    assert "declined" in declined.text
    assert client.v1.checkout.sessions.retrieve(session.id).status == "open"
    left = requests.post(f"{session.url}/leave", allow_redirects=False, timeout=10)
    assert left.headers["Location"] == "https://shop.example/cancelled"


def test_an_expired_page_takes_no_money_and_an_unknown_one_says_so(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site
) -> None:
    session = client.v1.checkout.sessions.create(session_params())
    lever(sandbox, "clock", {"advance_seconds": 24 * 3600})
    late = requests.post(f"{session.url}/pay", allow_redirects=False, timeout=10)
    assert late.status_code == 410
    assert "expired" in late.text
    wait_until(lambda: len(site.events("checkout.session.expired")) == 1)
    assert requests.get(f"{sandbox.stripe.url}/pay/cs_nothing", timeout=10).status_code == 404


def test_time_alone_expires_a_session(sandbox: Sandbox, client: stripe.StripeClient, site: Site) -> None:
    client.v1.checkout.sessions.create(session_params())
    sandbox.stripe.clock.advance(24 * 3600)
    wait_until(lambda: len(site.events("checkout.session.expired")) == 1)


def test_a_delayed_payment_settles_later(sandbox: Sandbox, client: stripe.StripeClient, site: Site) -> None:
    session = client.v1.checkout.sessions.create(session_params())
    requests.post(f"{session.url}/pay?method=delayed", allow_redirects=False, timeout=10)
    unpaid = client.v1.checkout.sessions.retrieve(session.id)
    assert (unpaid.status, unpaid.payment_status) == ("complete", "unpaid")
    lever(sandbox, f"stripe/sessions/{session.id}/settle", {"outcome": "succeeded"})
    assert client.v1.checkout.sessions.retrieve(session.id).payment_status == "paid"
    wait_until(lambda: len(site.events("checkout.session.async_payment_succeeded")) == 1)


def test_refunds_through_the_client_the_dashboard_and_the_bank(
    sandbox: Sandbox, client: stripe.StripeClient
) -> None:
    intent = sell(sandbox, client)
    refund = client.v1.refunds.create({"payment_intent": intent, "amount": 84, "reason": "requested_by_customer"})
    assert refund.status == "succeeded"
    pending = lever(sandbox, "stripe/dashboard/refunds", {"payment_intent": intent, "status": "pending"})
    lever(sandbox, f"stripe/refunds/{pending['id']}/settle", {"outcome": "failed"})
    assert client.v1.refunds.retrieve(pending["id"]).status == "failed"
    client.v1.refunds.create({"payment_intent": intent})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.refunds.create({"payment_intent": intent})
    assert caught.value.code == "charge_already_refunded"
    assert len(client.v1.refunds.list({"payment_intent": intent}).data) == 3
    ledger = requests.get(f"{sandbox.stripe.url}/_sandbox/ledger", timeout=10).json()
    assert [(row["captured"], row["refunded"], row["net"]) for row in ledger["balances"]] == [(384, 384, 0)]


def test_a_dispute_is_opened_and_lost(sandbox: Sandbox, client: stripe.StripeClient, site: Site) -> None:
    intent = sell(sandbox, client)
    dispute = lever(sandbox, "stripe/dashboard/disputes", {"payment_intent": intent})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.refunds.create({"payment_intent": intent})
    assert caught.value.code == "charge_disputed"
    lever(sandbox, f"stripe/dashboard/disputes/{dispute['id']}/close", {"outcome": "lost"})
    wait_until(lambda: len(site.events("charge.dispute.closed")) == 1)
    assert sandbox.stripe.ledger()["balances"][0]["net"] == 0


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"payment_method_types[0]": "card"}, "parameter_unknown", "payment_method_types"),
        ({"line_items[0][price_data][unit_amount]": "49"}, "amount_too_small", None),
        ({"expires_at": "1"}, None, "expires_at"),
        ({"success_url": "shop"}, "url_invalid", "success_url"),
        ({"customer_email": "nobody"}, "email_invalid", "customer_email"),
    ],
)
def test_a_bad_session_is_refused_as_stripe_does(
    sandbox: Sandbox, changes: dict[str, str], code: str | None, param: str | None
) -> None:
    answer = post(sandbox, "/v1/checkout/sessions", form(**changes))
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error.get("code"), error.get("param")) == (code, param)


def test_a_missing_parameter_an_unknown_id_and_no_key_are_refused(sandbox: Sandbox) -> None:
    missing = form()
    del missing["success_url"]
    assert post(sandbox, "/v1/checkout/sessions", missing).json()["error"]["code"] == "parameter_missing"
    unknown = requests.get(f"{sandbox.stripe.url}/v1/refunds/re_1", headers=AUTH, timeout=10)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "resource_missing")
    bare = requests.get(f"{sandbox.stripe.url}/v1/events", timeout=10)
    assert (bare.status_code, bare.json()["error"]["type"]) == (401, "invalid_request_error")
    reason = post(sandbox, "/v1/refunds", {"charge": "ch_1", "reason": "upscale failed"})
    assert reason.json()["error"]["param"] == "reason"


def test_live_and_test_mode_are_apart(sandbox: Sandbox, client: stripe.StripeClient) -> None:
    live = stripe_client(sandbox.stripe.url, "sk_live_1")
    session = live.v1.checkout.sessions.create(session_params())
    assert session.livemode
    assert session.id.startswith("cs_live_")
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.checkout.sessions.retrieve(session.id)
    assert client.v1.checkout.sessions.list().data == []


def test_eight_buyers_at_once_each_get_what_they_asked_for(sandbox: Sandbox, client: stripe.StripeClient) -> None:
    intents: list[str] = []
    threads = [threading.Thread(target=lambda: intents.append(sell(sandbox, client))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(intents)) == 8
    assert sum(row["net"] for row in sandbox.stripe.ledger()["balances"]) == 8 * 384


def test_several_secrets_sign_while_one_is_rolled(
    sandbox: Sandbox, client: stripe.StripeClient, site: Site
) -> None:
    sandbox.set_webhook(f"{site.url}/hook", "whsec_new", WEBHOOK_SECRET)
    session = client.v1.checkout.sessions.create(session_params())
    client.v1.checkout.sessions.expire(session.id)
    wait_until(lambda: len(site.posts()) == 1)
    request = site.posts()[0]
    for secret in ("whsec_new", WEBHOOK_SECRET):
        stripe.Webhook.construct_event(request.body.decode(), request.headers["Stripe-Signature"], secret)
