"""Strangers: how often they may ask, how many orders they may hold, which pages may call us. Called by pytest."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from smi_workflow.app import App
from smi_workflow.integrations.embedded_broker import ensure_embedded_broker
from smi_workflow.web.limits import Doorway
from smi_workflow.web.problems import MEDIA_TYPE, Problem
from smi_workflow.web.site import create_app
from tests.support.apps import finished_job, free_listener, gunicorn, open_test_app, picture
from tests.support.sandbox import running_sandbox, wait_until

SIZE = {"image_width": 60, "image_height": 40}
ORIGIN = "https://shop.example"


@contextmanager
def site_of(tmp_path: Path, **settings: Any) -> Iterator[tuple[App, FlaskClient]]:
    app = open_test_app(tmp_path, **{"limit_exempt": (), **settings})
    yield app, create_app(app).test_client()
    app.close()


def quote_from(client: FlaskClient, address: str, **headers: str) -> int:
    environ = {"REMOTE_ADDR": address}
    return client.post("/api/v1/quotes", json=SIZE, headers=headers, environ_base=environ).status_code


# -- limits ------------------------------------------------------------------------------------------------------


def test_each_address_may_ask_so_often(tmp_path: Path) -> None:
    with site_of(tmp_path, limit_reads="3/hour", limit_orders="2/hour") as (app, client):
        finished_job(app, picture(60, 40))
        assert [quote_from(client, "192.0.2.1") for _ in range(5)] == [200] * 3 + [429] * 2
        assert quote_from(client, "192.0.2.2") == 200
        # Every public route counts, whatever it answers; orders count for themselves.
        first = {"REMOTE_ADDR": "192.0.2.1"}
        for path in ("/api/v1/jobs/job-1", "/jobs/job-1", "/download/x", "/thanks", "/docs", "/openapi.json"):
            answer = client.get(path, environ_base=first)
            assert (answer.status_code, answer.content_type) == (429, MEDIA_TYPE), path
            assert 1 <= int(answer.headers["Retry-After"]) <= 3600
            assert answer.get_json(force=True)["request_id"] == answer.headers["X-Request-Id"]
        orders = [client.post("/api/v1/jobs", json={}, environ_base=first).status_code for _ in range(3)]
        assert orders == [422, 422, 429]
        # A person gets a page.
        page = client.get("/thanks", environ_base=first, headers={"Accept": "text/html"})
        assert (page.status_code, page.mimetype) == (429, "text/html")


def test_whoever_proves_itself_or_watches_is_not_limited(tmp_path: Path) -> None:
    with site_of(tmp_path, limit_reads="1/hour", limit_orders="1/hour") as (_, client):
        for path, method, status in (
            ("/webhooks/stripe", "POST", 415), ("/webhooks/upsampler/x/y", "POST", 404), ("/healthz", "GET", 200),
            ("/readyz", "GET", 200), ("/source/job-1/x", "GET", 404), ("/nowhere", "GET", 404),
            ("/api/v1/quotes", "OPTIONS", 200),
        ):  # fmt: skip
            answers = {client.open(path, method=method).status_code for _ in range(4)}
            assert answers == {status}, path


def test_limits_may_be_off_and_networks_without(tmp_path: Path) -> None:
    with site_of(tmp_path, limit_reads="off") as (_, client):
        assert {quote_from(client, "192.0.2.1") for _ in range(400)} == {200}
    exempt = ("192.0.2.0/24", "2001:db8::/32")
    with site_of(tmp_path, limit_reads="1/hour", limit_exempt=exempt) as (_, client):
        assert {quote_from(client, "192.0.2.1") for _ in range(3)} == {200}
        assert {quote_from(client, "::ffff:192.0.2.1") for _ in range(3)} == {200}
        assert {quote_from(client, "2001:db8::1") for _ in range(3)} == {200}
        assert [quote_from(client, "192.0.3.1") for _ in range(2)] == [200, 429]


def test_one_subscriber_of_ipv6_is_one_address(tmp_path: Path) -> None:
    with site_of(tmp_path, limit_reads="2/hour") as (_, client):
        addresses = ("2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1:ffff::3", "2001:db8:0:2::1")
        assert [quote_from(client, address) for address in addresses] == [200, 200, 429, 200]


def test_an_address_is_believed_from_our_own_proxies_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def asked(client: FlaskClient, forwarded: str) -> int:
        return quote_from(client, "10.0.0.1", **{"X-Forwarded-For": forwarded})

    with site_of(tmp_path, limit_reads="2/hour", limit_exempt=("10.0.0.0/8",)) as (_, client):
        # Nobody is limited rather than everybody together; and that is said, once.
        assert {asked(client, f"192.0.2.{number}") for number in range(5)} == {200}
        assert caplog.text.count("without SMI_TRUSTED_PROXIES nobody behind it is limited") == 1
    with site_of(tmp_path, limit_reads="2/hour", trusted_proxies=1, limit_exempt=("10.0.0.0/8",)) as (_, client):
        assert [asked(client, "192.0.2.1") for _ in range(3)] == [200, 200, 429]
        # Whatever a stranger writes there himself stands before what the proxy adds.
        assert asked(client, "192.0.2.9, 192.0.2.1") == 429
        assert asked(client, "10.0.0.5, 192.0.2.1") == 429
        assert asked(client, "192.0.2.2") == 200
    with site_of(tmp_path, limit_reads="2/hour", trusted_proxies=2, limit_exempt=()) as (_, client):
        assert [asked(client, "192.0.2.1, 10.0.0.2") for _ in range(3)] == [200, 200, 429]
        assert asked(client, "192.0.2.2, 10.0.0.2") == 200


def test_processes_share_a_limit_through_redis_which_sees_no_address(tmp_path: Path) -> None:
    broker = ensure_embedded_broker(tmp_path / "var")
    try:
        shared: dict[str, Any] = {"limit_reads": "3/hour", "broker_url": broker.url}
        with site_of(tmp_path, **shared) as (_, one), site_of(tmp_path, **shared) as (_, two):
            asked = [quote_from(client, "192.0.2.1") for client in (one, two, one, two, one)]
        assert asked == [200] * 3 + [429] * 2
        sent = _say(broker.url, b"KEYS *\r\n")
        assert sent.count(b"smi:limits") == 1
        assert b"192.0.2" not in sent
    finally:
        broker.release()


def test_a_limit_never_stops_the_shop_when_redis_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "smi_workflow.web"),
        site_of(tmp_path, limit_reads="2/hour", broker_url="redis://:hunter2@127.0.0.1:1/0") as (_, client),
    ):
        assert [quote_from(client, "192.0.2.1") for _ in range(3)] == [200, 200, 429]
    assert caplog.text.count("limits are counted in memory, as Redis is away") == 1
    assert "hunter2" not in caplog.text


def _say(url: str, command: bytes) -> bytes:
    path = url.removeprefix("unix://").partition("?")[0]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(command)
        connection.settimeout(5)
        return connection.recv(65536)


# -- orders at once ----------------------------------------------------------------------------------------------


def test_a_doorway_is_bounded_for_all_and_for_each() -> None:
    doorway = Doorway(4)

    def entered(caller: str | None) -> Any:
        way = doorway.passed(caller)
        way.__enter__()
        return way

    first, second = entered("a"), entered("a")
    with pytest.raises(Problem) as refused, doorway.passed("a"):
        pass
    assert (refused.value.code, refused.value.more_headers["Retry-After"]) == (503, "5")
    third, fourth = entered("b"), entered(None)
    for caller in ("c", None):
        with pytest.raises(Problem), doorway.passed(caller):
            pass
    for way in (first, second, third, fourth):
        way.__exit__(None, None, None)
    # One without limits may have every place.
    for way in [entered(None) for _ in range(4)]:
        way.__exit__(None, None, None)
    assert not doorway._inside
    with pytest.raises(ZeroDivisionError), doorway.passed("a"):
        raise ZeroDivisionError
    assert not doorway._inside


def test_slow_images_never_starve_webhooks(tmp_path: Path) -> None:
    """Every thread could be held by a stranger's server that never answers; some always are left for Stripe."""
    with running_sandbox(tmp_path / "sandbox") as sandbox, free_listener() as slow:
        app = open_test_app(tmp_path, sandbox, orders_at_once=3, fetch_timeout_seconds=20)
        held: list[socket.socket] = []
        stop = threading.Event()

        def accept() -> None:
            slow.settimeout(0.1)
            while not stop.is_set():
                try:
                    held.append(slow.accept()[0])
                except TimeoutError:
                    continue

        accepting = threading.Thread(target=accept)
        accepting.start()
        order = {"image_url": f"http://127.0.0.1:{slow.getsockname()[1]}/photo.png", "resolution": "4x", **SIZE}
        answers: list[int] = []
        environment = {"WEB_CONCURRENCY": "1", "WEB_THREADS": "4", "SMI_ORDERS_AT_ONCE": "3"}
        with gunicorn(tmp_path, "smi_workflow.web.site:create_app()", app.settings, **environment) as (url, _):

            def buy() -> None:
                answers.append(requests.post(f"{url}/api/v1/jobs", json=order, timeout=60).status_code)

            buyers = [threading.Thread(target=buy) for _ in range(8)]
            for buyer in buyers:
                buyer.start()
            # Three are held, the others are sent away at once, and webhooks are answered meanwhile.
            wait_until(lambda: len(held) == 3 and len(answers) == 5, 30)
            for _ in range(5):
                assert requests.post(f"{url}/webhooks/stripe", data=b"{}", timeout=5).status_code == 415
                assert requests.get(f"{url}/readyz", timeout=5).status_code == 200
            refused = requests.post(f"{url}/api/v1/jobs", json=order, timeout=5)
            assert (refused.status_code, refused.headers["Content-Type"]) == (503, MEDIA_TYPE)
            assert int(refused.headers["Retry-After"]) > 0
            assert len(held) == 3
            for connection in held:
                connection.close()
            for buyer in buyers:
                buyer.join()
        stop.set()
        accepting.join()
        app.close()
    assert answers == [503] * 8


# -- other sites' pages ------------------------------------------------------------------------------------------


def test_pages_of_named_origins_may_call_the_public_api(tmp_path: Path) -> None:
    origins = (ORIGIN, "http://localhost:3000")
    with site_of(tmp_path, cors_origins=origins, limit_reads="2/hour") as (app, client):
        finished_job(app, picture(60, 40))
        for origin in origins:
            answer = client.get("/api/v1/jobs/job-1", headers={"Origin": origin})
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert answer.headers["Vary"] == "Origin"
            assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
        # Refusals too: a page must be able to read why.
        refused = client.get("/api/v1/jobs/job-1", headers={"Origin": ORIGIN})
        assert refused.status_code == 429
        assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
        asked = {
            "Origin": ORIGIN, "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,idempotency-key",
        }  # fmt: skip
        preflight = client.options("/api/v1/jobs", headers=asked)
        assert preflight.status_code == 200
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        assert "Idempotency-Key" in preflight.headers["Access-Control-Allow-Headers"]
        assert preflight.headers["Access-Control-Max-Age"] == "600"


def test_nobody_else_may_and_nothing_else(tmp_path: Path) -> None:
    with site_of(tmp_path, cors_origins=(ORIGIN,), admin_tokens=f"jane:{'t' * 40}") as (_, client):
        for origin in (
            "https://shop.example.evil",
            "http://shop.example",
            "null",
            "*",
            "https://SHOP.example",
            "",
        ):
            for method in ("GET", "OPTIONS"):
                answer = client.open("/api/v1/jobs/job-1", method=method, headers={"Origin": origin})
                assert not [name for name in answer.headers.keys() if name.startswith("Access-Control")]  # noqa: SIM118
        for path in ("/api/v1/admin/jobs", "/webhooks/stripe", "/download/x", "/jobs/job-1", "/openapi.json"):
            for method in ("GET", "OPTIONS", "POST"):
                headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
                answer = client.open(path, method=method, headers=headers)
                assert "Access-Control-Allow-Origin" not in answer.headers, (method, path)
    with site_of(tmp_path) as (_, client):
        answer = client.get("/api/v1/jobs/job-1", headers={"Origin": ORIGIN})
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_an_https_site_says_to_stay_with_it(tmp_path: Path) -> None:
    for public_url, said in (("https://shop.example", "max-age=31536000"), ("http://127.0.0.1:8000", None)):
        with site_of(tmp_path, public_url=public_url) as (_, client):
            for path in ("/healthz", "/nowhere", "/webhooks/stripe", "/api/v1/admin/jobs", "/jobs/nobody"):
                assert client.get(path).headers.get("Strict-Transport-Security") == said
