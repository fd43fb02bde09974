"""Owns the proof that the webhook routes take in what is genuine, once, and nothing else. Called by pytest."""

from __future__ import annotations

import hmac
import json
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
from tests.support.apps import SECRET_KEY, Rung, open_test_app, served
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


@pytest.fixture(scope="module")
def closed_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One for all that must be refused: nothing ever gets in."""
    app = open_test_app(tmp_path_factory.mktemp("closed"))
    yield app
    app.close()


@pytest.fixture
def closed(closed_app: App) -> Iterator[FlaskClient]:
    """A client whose requests must leave nothing behind."""
    yield create_app(closed_app).test_client()
    assert rows(closed_app) == []


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
    assert app.inbox.handle(row.id) is not None


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


GOOD = json.dumps(event()).encode()
NOW = int(time.time())

# What nobody signed, or what is signed and no event: 400 and nothing kept.
HOSTILE_BODIES: dict[str, bytes] = {
    "empty": b"",
    "nothing": b"null",
    "list": b"[]",
    "empty object": b"{}",
    "number": b"1",
    "text": b'"event"',
    "not json": b"<xml/>",
    "cut short": GOOD[:-5],
    "two documents": GOOD + GOOD,
    "not utf-8": b"\xff\xfe" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "thin event": b'{"id": "evt_1", "object": "v2.core.event", "type": "v1.billing.meter.error"}',
    "no data": json.dumps({**event(), "data": None}).encode(),
    "data is a list": json.dumps({**event(), "data": []}).encode(),
    "object is text": json.dumps({**event(), "data": {"object": "cs_1"}}).encode(),
    "no id": json.dumps(event(id=None)).encode(),
    "id is a number": json.dumps(event(id=5)).encode(),
    "id is empty": json.dumps(event(id="")).encode(),
    "id is too long": json.dumps(event(id="e" * 151)).encode(),
    "id has a space": json.dumps(event(id="evt 1")).encode(),
    "id has NUL": json.dumps(event(id="evt\0")).encode(),
    "id has a line break": json.dumps(event(id="evt_1\n")).encode(),
    "id is half a character": json.dumps(event(id="evt_\ud800")).encode(),
    "id is not ASCII": json.dumps(event(id="évt")).encode(),
    "type is too long": json.dumps(event(type="t" * 101)).encode(),
    "type is a list": json.dumps(event(type=["a"])).encode(),
    "NUL": json.dumps(about(status="\0")).encode(),
    "NUL in metadata": json.dumps(about(metadata={"job_id": "a\0"})).encode(),
    "NUL in a key": json.dumps(about(metadata={"\0": "a"})).encode(),
    "NUL as it is": GOOD.replace(b"paid", b"pa\0id"),
    "half a character": json.dumps(about(metadata={"job_id": "\ud800"})).encode(),
    "half a character in a key": json.dumps(about(metadata={"\udfff": "a"})).encode(),
    "half a character, id": json.dumps(about(payment_intent="\ud800")).encode(),
    "half a character, email": json.dumps(about(customer_details={"email": "\udc00@x"})).encode(),
    "number beyond 64 bits": json.dumps(about(amount_total=2**63)).encode(),
    "number of 5000 digits": b'{"object": "event", "id": ' + b"1" * 5000 + b"}",
    "not a number": GOOD.replace(b"384", b"NaN"),
    "infinity": GOOD.replace(b"384", b"-Infinity"),
    "infinite exponent": GOOD.replace(b"384", b"1e999"),
    "deep list": b"[" * 500_000,
    "deep object": b'{"a":' * 150_000,
    "deep inside": GOOD.replace(b"384", b"[" * 100_000 + b"]" * 100_000),
    "intent is a number": json.dumps(about(payment_intent=5)).encode(),
    "intent without id": json.dumps(about(payment_intent={})).encode(),
    "charge is a list": json.dumps(about(charge=["ch_1"])).encode(),
    "charge is empty": json.dumps(about(charge="")).encode(),
}


@pytest.mark.parametrize("name", HOSTILE_BODIES)
def test_a_signed_body_that_is_no_event(closed: FlaskClient, name: str) -> None:
    body = HOSTILE_BODIES[name]
    assert post(closed, "/webhooks/stripe", body, signed(body))[0] == 400


@pytest.mark.parametrize("name", HOSTILE_BODIES)
def test_a_body_that_nobody_signed(closed: FlaskClient, name: str) -> None:
    body = HOSTILE_BODIES[name]
    assert post(closed, "/webhooks/stripe", body, signed(body, "whsec_other"))[0] == 400


def _signature(at: int = NOW, secret: str = WEBHOOK_SECRET) -> str:
    return signed(GOOD, secret, at)["Stripe-Signature"]


HOSTILE_HEADERS: dict[str, dict[str, str]] = {
    "no signature": {},
    "empty": {"Stripe-Signature": ""},
    "nonsense": {"Stripe-Signature": "nonsense"},
    "commas": {"Stripe-Signature": "," * 1000},
    "no stamp": {"Stripe-Signature": _signature().partition(",")[2]},
    "two stamps": {"Stripe-Signature": f"t=1,{_signature()}"},
    "stamp in words": {"Stripe-Signature": "t=now,v1=" + "0" * 64},
    "negative stamp": {"Stripe-Signature": "t=-1,v1=" + "0" * 64},
    "huge stamp": {"Stripe-Signature": "t=" + "9" * 5000 + ",v1=" + "0" * 64},
    "other digits": {"Stripe-Signature": "t=\xb2,v1=" + "0" * 64},
    "no v1": {"Stripe-Signature": f"t={NOW},v0=" + "0" * 64},
    "v0 alone": {"Stripe-Signature": _signature().replace("v1", "v0")},
    "empty v1": {"Stripe-Signature": f"t={NOW},v1="},
    "v1 not ASCII": {"Stripe-Signature": f"t={NOW},v1=\xe9\xff"},
    "upper case": {"Stripe-Signature": _signature().upper()},
    "other secret": {"Stripe-Signature": _signature(secret="whsec_other")},
    "empty secret": {"Stripe-Signature": _signature(secret="")},
    "too old": {"Stripe-Signature": _signature(NOW - 3600)},
    "from the future": {"Stripe-Signature": _signature(NOW + 3600)},
    "a thousand wrong ones": {"Stripe-Signature": f"t={NOW}" + (",v1=" + "0" * 64) * 100},
}


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_header_that_proves_nothing(closed: FlaskClient, name: str) -> None:
    assert post(closed, "/webhooks/stripe", GOOD, {"Content-Type": JSON, **HOSTILE_HEADERS[name]})[0] == 400


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
    assert rung.names() == ["handle_event"]
    assert app.inbox.handle(row.id) == "ignored"


def test_a_long_id_keeps_its_identity(app: App, client: FlaskClient) -> None:
    for last in "ab":
        for _ in range(2):
            body = json.dumps({"id": "x" * 199 + last, "status": "IN_QUEUE"}).encode()
            assert post(client, CALLBACK, body, {"Content-Type": JSON})[0] == 200
    assert [len(row.event_id) <= 150 for row in rows(app)] == [True, True]
    assert [json.loads(row.payload)["id"][-1] for row in rows(app)] == ["a", "b"]


@pytest.mark.parametrize(
    "path",
    [
        "/webhooks/upsampler/effect1/",
        f"/webhooks/upsampler/effect1/{'0' * 64}",
        f"/webhooks/upsampler/effect2/{sign(KEY, 'upsampler', 'effect1')}",
        f"/webhooks/upsampler/effect1/{sign(KEY, 'source', 'effect1')}",
        f"/webhooks/upsampler/effect1/{sign(b'other key', 'upsampler', 'effect1')}",
        f"/webhooks/upsampler//{sign(KEY, 'upsampler', '')}",
        f"/webhooks/upsampler/effect1/{sign(KEY, 'upsampler', 'effect1').upper()}",
        "/webhooks/upsampler/%00/%ff%fe",
        f"/webhooks/upsampler/{'x' * 3000}/{'é' * 64}",
        "/webhooks/upsampler/../stripe",
    ],
)
def test_a_callback_url_that_is_not_ours(closed: FlaskClient, path: str) -> None:
    assert post(closed, path, json.dumps(DONE).encode(), {"Content-Type": JSON})[0] == 404


def test_keys_may_be_rolled(tmp_path: Path) -> None:
    app = open_test_app(tmp_path, secret_key=f"{'n' * 32},{SECRET_KEY}")
    client = create_app(app).test_client()
    assert post(client, CALLBACK, json.dumps(DONE).encode(), {"Content-Type": JSON})[0] == 200
    app.close()


HOSTILE_CALLBACKS: dict[str, bytes] = {
    "empty": b"",
    "nothing": b"null",
    "list": b"[]",
    "empty object": b"{}",
    "not json": b"id=up-1&status=SUCCESS",
    "not utf-8": b'{"id": "\xff", "status": "IN_QUEUE"}',
    "deep": b"[" * 500_000,
    "deep inside": b'{"id": "up-1", "status": "IN_QUEUE", "error": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "number of 5000 digits": b'{"id": ' + b"1" * 5000 + b', "status": "IN_QUEUE"}',
    "no id": json.dumps({"status": "SUCCESS"}).encode(),
    "id is a list": json.dumps({**DONE, "id": ["up-1"]}).encode(),
    "id is true": json.dumps({**DONE, "id": True}).encode(),
    "id is too long": json.dumps({**DONE, "id": "x" * 201}).encode(),
    "id has NUL": json.dumps({**DONE, "id": "a\0"}).encode(),
    "id is half a character": json.dumps({**DONE, "id": "\ud800"}).encode(),
    "id climbs": json.dumps({**DONE, "id": ".."}).encode(),
    "status is unknown": json.dumps({**DONE, "status": "DONE"}).encode(),
    "status is a list": json.dumps({**DONE, "status": ["SUCCESS"]}).encode(),
    "status is missing": json.dumps({"id": "up-1"}).encode(),
    "success without image": json.dumps({**DONE, "imageUrl": None}).encode(),
    "image is a list": json.dumps({**DONE, "imageUrl": ["https://x"]}).encode(),
    "image has NUL": json.dumps({**DONE, "imageUrl": "https://x/\0"}).encode(),
    "image is half a character": json.dumps({**DONE, "imageUrl": "https://x/\ud800"}).encode(),
    "image is a novel": json.dumps({**DONE, "imageUrl": "https://x/" + "y" * 9000}).encode(),
    "error has NUL": json.dumps({"id": "up-1", "status": "FAILED", "error": "a\0b"}).encode(),
    "error is half a character": json.dumps({"id": "up-1", "status": "FAILED", "error": "\ud800"}).encode(),
    "cost is text": json.dumps({**DONE, "creditCost": "much"}).encode(),
    "cost is negative": json.dumps({**DONE, "creditCost": -1}).encode(),
    "cost is endless": b'{"id": "up-1", "status": "IN_QUEUE", "creditCost": 1e999}',
    "cost is no number": b'{"id": "up-1", "status": "IN_QUEUE", "creditCost": NaN}',
    "cost is NaN in words": json.dumps({**DONE, "creditCost": "NaN"}).encode(),
    "cost is a bool": json.dumps({**DONE, "creditCost": True}).encode(),
}


@pytest.mark.parametrize("name", HOSTILE_CALLBACKS)
def test_a_callback_that_makes_no_sense(closed: FlaskClient, name: str) -> None:
    assert post(closed, CALLBACK, HOSTILE_CALLBACKS[name], {"Content-Type": JSON})[0] == 400


# -- both ------------------------------------------------------------------------------------------------------

PATHS = ["/webhooks/stripe", CALLBACK]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "text/json",
     "application/json, x", "multipart/form-data; boundary=x", "application/\xff", "application/json/json"],
)  # fmt: skip
def test_another_content_type(closed: FlaskClient, path: str, content_type: str) -> None:
    headers = {**signed(GOOD), "Content-Type": content_type}
    if not content_type:
        del headers["Content-Type"]
    assert post(closed, path, GOOD, headers)[0] == 415


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method(closed: FlaskClient, path: str, method: str) -> None:
    answer = closed.open(path, method=method)
    assert (answer.status_code, answer.content_type) == (405, MEDIA_TYPE)
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_is_too_large(closed: FlaskClient, path: str) -> None:
    body = GOOD[:-1] + b" " * (1024 * 1024) + b"}"
    assert post(closed, path, body, signed(body))[0] == 413


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
