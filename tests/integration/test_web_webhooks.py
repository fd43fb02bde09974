"""Owns the proof that the webhook routes take in what is genuine, once, and nothing else. Called by pytest."""

from __future__ import annotations

import hmac
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from smi_workflow.app import App
from smi_workflow.engine.tables import EventRow
from smi_workflow.jobs.tokens import sign
from smi_workflow.web.problems import MEDIA_TYPE
from smi_workflow.web.site import create_app
from tests.support.apps import SECRET_KEY, Rung, finished_job, open_test_app, picture, served
from tests.support.contracts import contracts_dir
from tests.support.sandbox import WEBHOOK_SECRET

JSON = "application/json"
KEY = SECRET_KEY.encode()
CALLBACK = f"/webhooks/upsampler/effect1/{sign(KEY, 'upsampler', 'effect1')}"
DONE = {"id": "up-1", "status": "SUCCESS", "imageUrl": "https://cdn.example/1.png", "creditCost": 16.5}


def event(**changes: Any) -> dict[str, Any]:
    """A Stripe event as it comes in."""
    session = {
        "id": "cs_test_1", "object": "checkout.session", "amount_total": 384, "currency": "usd",
        "payment_intent": "pi_1", "payment_status": "paid", "status": "complete", "metadata": {"job_id": "job-1"},
        "customer_details": {"email": "jane@example.com", "name": "Jane Doe", "address": {"city": "Ghent"}},
    }  # fmt: skip
    return {
        "id": "evt_1", "object": "event", "type": "checkout.session.completed", "livemode": False,
        "data": {"object": session}, **changes,
    }  # fmt: skip


def about(**fields: Any) -> dict[str, Any]:
    """An event about an object with these fields."""
    return event(data={"object": {"id": "cs_test_1", **fields}})


def signed(body: bytes, secret: str = WEBHOOK_SECRET, at: float | None = None) -> dict[str, str]:
    """The headers that Stripe would send with a body, whatever its bytes are."""
    stamp = int(time.time() if at is None else at)
    signature = hmac.new(secret.encode(), f"{stamp}.".encode() + body, sha256).hexdigest()
    return {"Stripe-Signature": f"t={stamp},v1={signature}", "Content-Type": JSON}


GOOD = json.dumps(event()).encode()
PATHS = ["/webhooks/stripe", CALLBACK]


@pytest.fixture
def rung() -> Rung:
    return Rung()


@pytest.fixture
def app(tmp_path: Path, rung: Rung) -> Iterator[App]:
    app = open_test_app(tmp_path, ring=rung)
    yield app
    app.close()


@pytest.fixture
def client(app: App) -> FlaskClient:
    return create_app(app).test_client()


def rows(app: App) -> list[EventRow]:
    """The inbox, oldest first."""
    table = app.tables.events
    return list(table.select().order_by(table.id))


def post(client: FlaskClient, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    answer = client.post(path, data=body, headers=headers)
    if answer.status_code != 200:
        assert answer.content_type == MEDIA_TYPE, answer.text
    return answer.status_code, answer.get_json(force=True)


# -- Stripe ----------------------------------------------------------------------------------------------------


def test_a_signed_event_is_kept_cut_down_and_rung_for(app: App, client: FlaskClient, rung: Rung) -> None:
    body = json.dumps(event(), indent=2).encode()
    assert post(client, "/webhooks/stripe", body, signed(body)) == (200, {"received": True})
    (row,) = rows(app)
    assert (row.provider, row.event_id, row.kind, row.state) == (
        "stripe", "evt_1", "checkout.session.completed", "received"
    )  # fmt: skip
    kept = json.loads(row.payload)
    assert kept["object"]["payment_intent"] == "pi_1"
    assert kept["object"]["metadata"] == {"job_id": "job-1"}
    assert "Jane Doe" not in row.payload
    assert "Ghent" not in row.payload
    assert rung.bells == [(row.id, "handle_event", "events")]


def test_a_duplicate_is_answered_alike_and_not_rung_for(app: App, client: FlaskClient, rung: Rung) -> None:
    body = json.dumps(event()).encode()
    first = post(client, "/webhooks/stripe", body, signed(body))
    assert post(client, "/webhooks/stripe", body, signed(body)) == first
    assert len(rows(app)) == 1
    assert len(rung.bells) == 1


@pytest.mark.parametrize(
    "taken",
    [
        event(livemode=True),
        event(type="customer.created"),
        event(id="e" * 150, type="t" * 100),
        about(metadata={"note": "Grüße 😀 \n"}),
        about(payment_intent={"id": "pi_1", "object": "payment_intent"}, charge=None),
        # Cut away before it could do harm.
        about(lines={"note": "\0 \ud800", "depth": [[[[]]]], "big": 10**300}),
        about(amount=[1], metadata={"job_id": ["\0"], "x": "y"}, customer_details=5, last_payment_error="?"),
        event(data={"object": {"object": "balance"}}),
    ],
)
def test_what_is_taken_in(app: App, client: FlaskClient, taken: dict[str, Any]) -> None:
    body = json.dumps(taken).encode()
    assert post(client, "/webhooks/stripe", body, signed(body))[0] == 200
    (row,) = rows(app)
    kept = json.loads(row.payload)["object"]
    assert all(isinstance(text, str) for text in kept.pop("metadata").values())
    assert all(value is None or isinstance(value, str | int) for value in kept.values())
    assert app.inbox.handle(row.id) is not None


def test_an_event_about_nothing_is_about_no_job_in_particular(app: App, client: FlaskClient) -> None:
    """No id must not match the rows that have none yet."""
    finished_job(app, picture(60, 40), status="awaiting_payment", payment_status="pending", paid_cents=0)
    payment = {"payment_intent_id": "pi_9", "job_id": "job-1", "cents": 50, "currency": "usd", "livemode": False}
    app.job_tables.payments.insert(**payment, role="sale", created_at=app.clock.now()).execute()
    paid = {"payment_status": "paid", "payment_intent": "pi_1", "amount_total": 50, "currency": "usd"}
    for number, (kind, thing) in enumerate(
        {
            "checkout.session.completed": paid,
            "payment_intent.payment_failed": {},
            "refund.failed": {"status": "failed"},
            "charge.dispute.funds_withdrawn": {"id": "dp_1", "amount": 50},
        }.items()
    ):
        body = json.dumps(event(id=f"evt_{number}", type=kind, data={"object": thing})).encode()
        assert post(client, "/webhooks/stripe", body, signed(body))[0] == 200
    before = app.jobs.get_job("job-1").version
    assert [app.inbox.handle(row.id) for row in rows(app)] == ["ignored"] * 4
    assert app.jobs.get_job("job-1").version == before


def test_every_captured_event_is_taken_in(app: App, client: FlaskClient) -> None:
    files = sorted((contracts_dir() / "stripe-events").glob("*.json"))
    assert files
    for file in files:
        body = file.read_bytes()
        assert post(client, "/webhooks/stripe", body, signed(body))[0] == 200, file.name
    for row in rows(app):
        assert app.inbox.handle(row.id) is not None


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;x=y"]
)
def test_parameters_of_the_content_type(client: FlaskClient, content_type: str) -> None:
    body = json.dumps(event()).encode()
    assert post(client, "/webhooks/stripe", body, {**signed(body), "Content-Type": content_type})[0] == 200


def test_secrets_may_be_rolled(tmp_path: Path) -> None:
    app = open_test_app(tmp_path, stripe_webhook_secret=f"whsec_new,{WEBHOOK_SECRET}")
    client = create_app(app).test_client()
    assert post(client, "/webhooks/stripe", GOOD, signed(GOOD, "whsec_new"))[0] == 200
    assert post(client, "/webhooks/stripe", GOOD, signed(GOOD))[0] == 200
    app.close()


# -- Upsampler -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "event_id"),
    [
        (DONE, "up-1:SUCCESS"),
        ({"id": "up-1", "status": "IN_QUEUE"}, "up-1:IN_QUEUE"),
        ({"id": "up-1", "status": "IN_PROGRESS", "extra": {"a": ["\0"]}}, "up-1:IN_PROGRESS"),
        ({"id": "up-1", "status": "FAILED", "error": ["no", "GPU"]}, "up-1:FAILED"),
        ({"id": 7, "status": "IN_QUEUE", "creditCost": "0.125"}, "7:IN_QUEUE"),
        ({"id": "ü", "status": "IN_QUEUE", "creditCost": 1e-300}, "ü:IN_QUEUE"),
    ],
)
def test_a_callback_is_kept(
    app: App, client: FlaskClient, rung: Rung, told: dict[str, Any], event_id: str
) -> None:
    body = json.dumps(told).encode()
    assert post(client, CALLBACK, body, {"Content-Type": JSON}) == (200, {"received": True})
    (row,) = rows(app)
    assert (row.provider, row.event_id, row.kind) == ("upsampler", event_id, told["status"])
    kept = json.loads(row.payload)
    assert (kept["effect_id"], kept["id"], kept["status"]) == ("effect1", str(told["id"]), told["status"])
    assert set(kept) == {"effect_id", "id", "status", "imageUrl", "creditCost", "error"}
    assert kept["creditCost"] is None or re.fullmatch(r"\d+\.\d{6}", kept["creditCost"])
    assert rung.names() == ["handle_event"]
    assert app.inbox.handle(row.id) == "ignored"


def test_a_long_id_keeps_its_identity(app: App, client: FlaskClient) -> None:
    for last in "ab":
        for _ in range(2):
            body = json.dumps({"id": "x" * 199 + last, "status": "IN_QUEUE"}).encode()
            assert post(client, CALLBACK, body, {"Content-Type": JSON})[0] == 200
    assert [len(row.event_id) <= 150 for row in rows(app)] == [True, True]
    assert [json.loads(row.payload)["id"][-1] for row in rows(app)] == ["a", "b"]


def test_keys_may_be_rolled(tmp_path: Path) -> None:
    app = open_test_app(tmp_path, secret_key=f"{'n' * 32},{SECRET_KEY}")
    client = create_app(app).test_client()
    assert post(client, CALLBACK, json.dumps(DONE).encode(), {"Content-Type": JSON})[0] == 200
    app.close()


# -- both ------------------------------------------------------------------------------------------------------


def test_a_body_of_just_the_limit(client: FlaskClient) -> None:
    body = GOOD + b" " * (1024 * 1024 - len(GOOD))
    assert post(client, "/webhooks/stripe", body, signed(body))[0] == 200


@pytest.mark.parametrize("path", PATHS)
def test_three_identical_ones_at_once_make_one_row(tmp_path: Path, path: str) -> None:
    rung = Rung()
    app = open_test_app(tmp_path, ring=rung)
    gate = threading.Barrier(3)
    with served(create_app(app), app) as url:

        def deliver(body: bytes) -> int:
            gate.wait()
            return requests.post(f"{url}{path}", data=body, headers=signed(body), timeout=30).status_code

        for number in range(5):
            told = event(id=f"evt_{number}") if path == PATHS[0] else {**DONE, "id": f"up-{number}"}
            with ThreadPoolExecutor(3) as pool:
                assert list(pool.map(deliver, [json.dumps(told).encode()] * 3)) == [200, 200, 200]
    assert len(rows(app)) == 5
    assert sorted(rung.bells) == [(row.id, "handle_event", "events") for row in rows(app)]
    app.close()


@pytest.mark.parametrize("path", PATHS)
def test_a_database_that_is_away(tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    url = "postgresql://nobody:hunter2@127.0.0.1:1/shop"
    app = open_test_app(tmp_path, migrated=False, database_url=url)
    body = GOOD if path == PATHS[0] else json.dumps(DONE).encode()
    answer = create_app(app).test_client().post(path, data=body, headers=signed(body))
    assert (answer.status_code, answer.content_type) == (503, MEDIA_TYPE)
    assert int(answer.headers["Retry-After"]) > 0
    for secret in ("127.0.0.1", "psycopg", "Traceback", "refused"):
        assert secret not in answer.text
    assert "the database failed: OperationalError" in caplog.text
    assert "hunter2" not in caplog.text
    app.close()
