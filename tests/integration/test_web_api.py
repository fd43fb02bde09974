"""Owns the proof of the shop's API: orders, prices, progress, and all ways to get them wrong. Called by pytest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from smi_workflow.app import App
from smi_workflow.web.problems import MEDIA_TYPE
from smi_workflow.web.site import create_app
from tests.support.apps import Rung, finished_job, open_test_app, picture
from tests.support.sandbox import Site, running_sandbox, running_site

ORDER: dict[str, Any] = {"resolution": "4x", "image_width": 60, "image_height": 40, "email": "jane@example.com"}


@pytest.fixture(scope="module")
def shop_site() -> Iterator[Site]:
    """Where the images are."""
    with running_site() as site:
        site.files |= {
            "/photo.png": picture(60, 40), "/photo.jpg": picture(60, 40, "JPEG"), "/text.png": b"not an image",
            "/cut.png": picture(60, 40)[:-40], "/animation.gif": picture(60, 40, "GIF"),
        }  # fmt: skip
        yield site


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("api")
    with running_sandbox(folder / "sandbox") as sandbox:
        app = open_test_app(folder, sandbox, source_bytes_max=100_000)
        yield app
        app.close()


@pytest.fixture
def client(app: App) -> FlaskClient:
    return create_app(app).test_client()


def order(
    client: FlaskClient, site: Site, path: str = "/photo.png", key: str | None = None, **changes: Any
) -> TestResponse:
    body = {"image_url": f"{site.url}{path}", **ORDER, **changes}
    return client.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": key} if key is not None else {})


def job_count(app: App) -> int:
    return int(app.job_tables.jobs.select().count())


def test_an_order(app: App, client: FlaskClient, shop_site: Site) -> None:
    answer = order(client, shop_site, post_id=7, attachment_id=8)
    assert answer.status_code == 201
    told = answer.get_json()
    assert set(told) == {"job_id", "status", "checkout_url", "amount", "currency"}
    assert (told["status"], told["amount"], told["currency"]) == ("awaiting_payment", "0.50", "usd")
    assert told["checkout_url"].startswith(app.settings.stripe_api_base)
    job = app.jobs.get_job(told["job_id"])
    assert (job.post_id, job.attachment_id, job.email, job.image_width) == (7, 8, "jane@example.com", 60)
    assert app.storage.path(job.source_file).read_bytes() == shop_site.files["/photo.png"]


def test_the_email_may_be_left_to_stripe(client: FlaskClient, shop_site: Site) -> None:
    assert order(client, shop_site, email=None).status_code == 201


def test_one_key_is_one_job(app: App, client: FlaskClient, shop_site: Site) -> None:
    first, second = (order(client, shop_site, key="cart-17") for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.get_json() == second.get_json()
    assert order(client, shop_site, key="cart-18").get_json()["job_id"] != first.get_json()["job_id"]
    other = order(client, shop_site, key="cart-17", resolution="8x")
    assert (other.status_code, other.get_json(force=True)["field"]) == (422, "Idempotency-Key")


def test_two_orders_at_once_with_one_key(
    app: App, client: FlaskClient, shop_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second must not slip its own image under the first one's price."""
    keep = app.jobs._keep_source
    winners: list[TestResponse] = []

    def keep_late(*args: Any) -> Any:
        monkeypatch.undo()
        winners.append(order(client, shop_site, key="cart-race"))
        return keep(*args)

    monkeypatch.setattr(app.jobs, "_keep_source", keep_late)
    loser = order(client, shop_site, "/photo.jpg", key="cart-race")
    assert (loser.status_code, loser.get_json(force=True)["field"]) == (422, "Idempotency-Key")
    job = app.jobs.get_job(winners[0].get_json()["job_id"])
    assert app.storage.path(job.source_file).read_bytes() == shop_site.files["/photo.png"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image_url": None}, "image_url"),
        ({"image_url": ""}, "image_url"),
        ({"image_url": 5}, "image_url"),
        ({"image_url": "x" * 5000}, "image_url"),
        ({"resolution": "16x"}, "resolution"),
        ({"resolution": 4}, "resolution"),
        ({"resolution": "4x" * 100}, "resolution"),
        ({"image_width": 0}, "image_width"),
        ({"image_width": -1}, "image_width"),
        ({"image_width": 60.0}, "image_width"),
        ({"image_width": "60"}, "image_width"),
        ({"image_width": True}, "image_width"),
        ({"image_width": 100_001}, "image_width"),
        ({"image_height": 2**62}, "image_height"),
        ({"image_height": None}, "image_height"),
        ({"image_width": 5000, "image_height": 5000}, "resolution"),
        ({"post_id": "7"}, "post_id"),
        ({"post_id": -7}, "post_id"),
        ({"attachment_id": 1.5}, "attachment_id"),
        ({"attachment_id": False}, "attachment_id"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@b\r\nBcc: c@d.example"}, "email"),
        ({"email": ""}, "email"),
        ({"email": "x" * 300 + "@example.com"}, "email"),
        ({"email": ["jane@example.com"]}, "email"),
        ({"amount": 1}, "amount"),
        ({"status": "completed"}, "status"),
        ({"x" * 5000: 1}, "x" * 100),
    ],
)
def test_an_order_that_names_what_is_wrong(
    app: App, client: FlaskClient, shop_site: Site, changes: dict[str, Any], field: str
) -> None:
    before = job_count(app)
    answer = order(client, shop_site, **changes)
    assert (answer.status_code, answer.content_type) == (422, MEDIA_TYPE), answer.text
    assert answer.get_json(force=True)["field"] == field
    assert len(answer.text) < 1000
    assert job_count(app) == before


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_odd_key(client: FlaskClient, shop_site: Site, key: str) -> None:
    answer = order(client, shop_site, key=key)
    assert (answer.status_code, answer.get_json(force=True)["field"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/quotes"])
@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b'"text"', "application/json", 422),
        (b"{", "application/json", 422),
        (b"{}", "application/json", 422),
        (b"[" * 30_000, "application/json", 422),
        (b'{"a":' * 10_000, "application/json", 422),
        (b'{"image_width": NaN}', "application/json", 422),
        (b'{"image_width": 1e999}', "application/json", 422),
        (b'{"image_width": ' + b"1" * 5000 + b"}", "application/json", 422),
        (rb'{"image_url": "https://x/\u0000"}', "application/json", 422),
        (rb'{"image_url": "https://x/\ud800"}', "application/json", 422),
        (rb'{"\ud800": 1}', "application/json", 422),
        (b"\xff", "application/json", 422),
        (b"{}", "text/plain", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"{}" + b" " * 65536, "application/json", 413),
    ],
)
def test_a_body_that_is_no_order(
    client: FlaskClient, path: str, body: bytes, content_type: str, status: int
) -> None:
    answer = client.post(path, data=body, content_type=content_type)
    assert (answer.status_code, answer.content_type) == (status, MEDIA_TYPE), answer.text
    assert answer.get_json(force=True)["status"] == status


@pytest.mark.parametrize(
    ("path", "changes", "code"),
    [
        ("/nothing.png", {}, "not_found"),
        ("/text.png", {}, "not_an_image"),
        ("/cut.png", {}, "not_an_image"),
        ("/animation.gif", {}, "unsupported_format"),
        ("/photo.png", {"image_width": 61}, "wrong_dimensions"),
        ("/photo.png", {"image_url": "ftp://shop.example/a.png"}, "url_not_allowed"),
        ("/photo.png", {"image_url": "https://user:pw@shop.example/a.png"}, "url_not_allowed"),
        ("/photo.png", {"image_url": "no url at all"}, "url_not_allowed"),
        ("/photo.png", {"image_url": "https://[::1"}, "url_not_allowed"),
    ],
)
def test_an_image_that_cannot_be_used(
    app: App, client: FlaskClient, shop_site: Site, path: str, changes: dict[str, Any], code: str
) -> None:
    before = job_count(app)
    answer = order(client, shop_site, path, **changes)
    assert (answer.status_code, answer.content_type) == (422, MEDIA_TYPE), answer.text
    told = answer.get_json(force=True)
    assert (told["code"], told["field"]) == (code, "image_url")
    assert "127.0.0.1" not in answer.text
    assert job_count(app) == before


def test_private_addresses_are_not_looked_into(tmp_path: Path, shop_site: Site) -> None:
    app = open_test_app(tmp_path, allow_private_addresses=False)
    client = create_app(app).test_client()
    seen = len(shop_site.received)
    for url in (
        f"{shop_site.url}/photo.png",
        "https://127.0.0.1/a.png",
        "https://169.254.169.254/",
        "https://[::1]/",
    ):
        answer = order(client, shop_site, image_url=url)
        assert (answer.status_code, answer.get_json(force=True)["code"]) == (422, "url_not_allowed")
    assert len(shop_site.received) == seen
    app.close()


def test_an_image_whose_host_is_away(client: FlaskClient, shop_site: Site) -> None:
    answer = order(client, shop_site, image_url="http://127.0.0.1:1/photo.png")
    assert (answer.status_code, answer.content_type) == (503, MEDIA_TYPE)
    assert int(answer.headers["Retry-After"]) > 0
    assert "127.0.0.1" not in answer.text


def test_stripe_away_then_back(tmp_path: Path, shop_site: Site) -> None:
    rung = Rung()
    with running_sandbox(tmp_path / "sandbox") as sandbox:
        app = open_test_app(tmp_path, sandbox, ring=rung)
        client = create_app(app).test_client()
        match = {"method": "POST", "path": "/v1/checkout/sessions"}
        sandbox.stripe.faults.add(match, {"kind": "status", "status": 503}, times=None)
        away = order(client, shop_site, key="cart-1")
        told = away.get_json(force=True)
        assert (away.status_code, away.content_type, told["job_status"]) == (503, MEDIA_TYPE, "awaiting_payment")
        assert int(away.headers["Retry-After"]) > 0
        assert "same Idempotency-Key" in told["detail"]
        sandbox.stripe.faults.clear()

        # The workers go on trying; the buyer gets what they got.
        effects = app.tables.effects
        effects.update(due_at=app.clock.now()).where(effects.name == "create_checkout").execute()
        back = order(client, shop_site, key="cart-1")
        assert (back.status_code, back.get_json()["job_id"]) == (201, told["job_id"])
        assert back.get_json()["checkout_url"]
        assert job_count(app) == 1
        app.close()


def test_an_order_that_stripe_refuses_is_over(tmp_path: Path, shop_site: Site) -> None:
    with running_sandbox(tmp_path / "sandbox") as sandbox:
        app = open_test_app(tmp_path, sandbox)
        client = create_app(app).test_client()
        body = {"error": {"type": "invalid_request_error", "code": "amount_too_large", "message": "No."}}
        match = {"method": "POST", "path": "/v1/checkout/sessions"}
        sandbox.stripe.faults.add(match, {"kind": "status", "status": 400, "body": body}, times=None)
        answer = order(client, shop_site, key="cart-1")
        told = answer.get_json(force=True)
        assert (answer.status_code, told["job_status"]) == (409, "abandoned"), answer.text
        assert app.jobs.get_job(told["job_id"]).status == "abandoned"
        app.close()


# -- quotes and progress ------------------------------------------------------------------------------------------


def quotes(client: FlaskClient, width: int, height: int) -> dict[str, Any]:
    answer = client.post("/api/v1/quotes", json={"image_width": width, "image_height": height})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.get_json()
    return told


def test_quotes(client: FlaskClient) -> None:
    told = quotes(client, 2000, 2000)
    assert told["quotes"] == [
        {"resolution": "4x", "output_width": 8000, "output_height": 8000, "amount": "3.84", "currency": "usd"}
    ]
    assert [(one["resolution"], "256.0 megapixels" in one["reason"]) for one in told["refused"]] == [("8x", True)]
    assert [one["resolution"] for one in quotes(client, 100, 100)["quotes"]] == ["4x", "8x"]
    assert quotes(client, 100_000, 100_000)["quotes"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"image_width": 0, "image_height": 1}, "image_width"),
        ({"image_width": 1, "image_height": 100_001}, "image_height"),
        ({"image_width": 1}, "image_height"),
        ({"image_width": 1, "image_height": 1, "markup_percentage": 0}, "markup_percentage"),
    ],
)
def test_a_quote_for_an_impossible_size(client: FlaskClient, body: dict[str, Any], field: str) -> None:
    answer = client.post("/api/v1/quotes", data=json.dumps(body), content_type="application/json")
    assert (answer.status_code, answer.get_json(force=True)["field"]) == (422, field)


def test_how_far_an_order_is(tmp_path: Path) -> None:
    app = open_test_app(tmp_path)
    job, token = finished_job(app, picture(60, 40))
    answer = create_app(app).test_client().get(f"/api/v1/jobs/{job.job_id}")
    told = answer.get_json()
    assert set(told) == {"job_id", "status", "progress", "next", "final", "amount", "currency", "created_at"}
    assert (told["status"], told["amount"]) == ("completed", "0.50")
    assert datetime.fromisoformat(told["created_at"]) == job.created_at
    for secret in (token, "jane@example.com", "download/", "shop.example", job.download_token or "?"):
        assert secret not in answer.text
    app.close()


@pytest.mark.parametrize("job_id", ["unknown", "%00", "x" * 65, "'--", "é", "%ff", "job-1%0a", ".."])
def test_an_order_that_is_not_there(client: FlaskClient, job_id: str) -> None:
    answer = client.get(f"/api/v1/jobs/{job_id}", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.content_type) == (404, MEDIA_TYPE)
