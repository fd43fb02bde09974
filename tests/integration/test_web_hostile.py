"""Owns the table of hostile messages: each is answered with a 4xx, and nothing of it is kept. Called by pytest."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from smi_workflow.app import App
from smi_workflow.jobs.tokens import sign
from smi_workflow.web.problems import MEDIA_TYPE
from smi_workflow.web.site import create_app
from tests.integration.test_web_webhooks import (
    CALLBACK,
    DONE,
    GOOD,
    JSON,
    KEY,
    PATHS,
    about,
    event,
    post,
    rows,
    signed,
)  # fmt: skip
from tests.support.apps import open_test_app
from tests.support.sandbox import WEBHOOK_SECRET

NOW = int(time.time())


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


# -- Upsampler -----------------------------------------------------------------------------------------------


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


# -- both ----------------------------------------------------------------------------------------------------


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
