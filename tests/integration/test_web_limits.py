"""Owns the proof that bodies are bounded in size and time, however they are sent, under gunicorn itself.

Called by pytest. Raw sockets: no client library sends what is sent here.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from smi_workflow.app import App
from smi_workflow.web import bodies
from smi_workflow.web.site import create_app
from tests.integration.test_web_webhooks import CALLBACK, DONE, GOOD, event, rows, signed
from tests.support.apps import finished_job, gunicorn, open_test_app, picture, served
from tests.support.sandbox import wait_until

MIB = 1024 * 1024
SITE = "smi_workflow.web.site:create_app()"
PATHS = ["/webhooks/stripe", CALLBACK, "/api/v1/jobs", "/api/v1/quotes"]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = open_test_app(tmp_path_factory.mktemp("limits"))
    yield app
    app.close()


@pytest.fixture(scope="module")
def server(app: App, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """gunicorn with our configuration: two processes."""
    with gunicorn(tmp_path_factory.mktemp("log"), SITE, app.settings) as running:
        yield running


@pytest.fixture
def url(server: tuple[str, Path]) -> str:
    return server[0]


def head(path: str, *lines: str, content_type: str = "application/json") -> bytes:
    """A request's head."""
    fixed = [f"POST {path} HTTP/1.1", "Host: shop", f"Content-Type: {content_type}"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def speak(url: str, *parts: bytes, close_after: bool = False) -> tuple[int, bytes]:
    """Send bytes as they are, and read the answer: its status and everything after."""
    parsed = urlsplit(url)
    with socket.create_connection((parsed.hostname, parsed.port), timeout=30) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
        if close_after:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = connection.recv(65536)
            if not data:
                break
            answer += data
    return (int(answer.split(b" ", 2)[1]) if answer else 0), answer


@pytest.mark.parametrize("path", PATHS)
def test_a_declared_length_above_the_limit_is_refused_unread(url: str, path: str) -> None:
    assert speak(url, head(path, f"Content-Length: {MIB + 1}"))[0] == 413
    assert speak(url, head(path, "Content-Length: 99999999999999999999"))[0] == 413


@pytest.mark.parametrize("path", PATHS)
def test_chunks_above_the_limit_are_refused_while_they_come(url: str, path: str) -> None:
    many = [chunk(b" " * 65536)] * 20
    status, answer = speak(url, head(path, "Transfer-Encoding: chunked"), *many)
    assert status == 413, answer[:500]
    one = b"7fffffff\r\n" + b" " * (MIB + 70_000)
    assert speak(url, head(path, "Transfer-Encoding: chunked"), one)[0] == 413


def test_a_chunked_event_is_taken_in(app: App, url: str) -> None:
    body = json.dumps(event(id="evt_chunked")).encode()
    lines = [f"{name}: {value}" for name, value in signed(body).items() if name != "Content-Type"]
    parts = [chunk(body[at : at + 7]) for at in range(0, len(body), 7)]
    request = head("/webhooks/stripe", "Transfer-Encoding: chunked", *lines)
    assert speak(url, request, *parts, b"0\r\n\r\n")[0] == 200
    assert [row.event_id for row in rows(app)] == ["evt_chunked"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "parts",
    [
        ("Transfer-Encoding: chunked", b"xyz\r\n"),
        ("Transfer-Encoding: chunked", b"-5\r\nhello\r\n"),
        ("Transfer-Encoding: chunked", b"5\r\nhello world\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"5;a=\x01\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\nbad trailer\r\n\r\n"),
        ("Content-Length: -1", b""),
        ("Content-Length: 1e3", b""),
        ("Content-Length: 5\r\nContent-Length: 6", b"hello!"),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
        ("Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
        ("X-Nothing: \x00", b""),
    ],
)
def test_a_garbled_body(url: str, path: str, parts: tuple[str, bytes]) -> None:
    status, answer = speak(url, head(path, parts[0]), parts[1])
    assert 400 <= status < 500 or status == 501, answer[:500]
    assert b"Traceback" not in answer


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_ends_before_its_time(url: str, path: str) -> None:
    assert speak(url, head(path, "Content-Length: 1000"), b"{}", close_after=True)[0] == 400
    assert speak(url, head(path, "Transfer-Encoding: chunked"), b"ff\r\n{}", close_after=True)[0] == 400
    assert speak(url, head(path, "Transfer-Encoding: chunked"), chunk(b"{}"), close_after=True)[0] == 400


def test_a_length_that_leaves_a_rest_does_not_smuggle(app: App, url: str) -> None:
    """What follows a body is another request, and proves nothing by what went before."""
    before = len(rows(app))
    lines = [f"{name}: {value}" for name, value in signed(GOOD).items() if name != "Content-Type"]
    status, _ = speak(url, head("/webhooks/stripe", f"Content-Length: {len(GOOD) - 1}", *lines), GOOD)
    assert status == 400
    assert len(rows(app)) == before


def test_no_length_at_all_is_an_empty_body(url: str) -> None:
    for path in PATHS:
        assert 400 <= speak(url, head(path), GOOD)[0] < 500


def test_hostile_heads_never_reach_a_500(url: str) -> None:
    for request in (
        b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /%ff%00%0d%0a HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /download/%ff HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /thanks?job=%ff%00&job=x HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET //webhooks//stripe HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /api//v1//jobs/job-1 HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET http://evil.example/thanks HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /thanks HTTP/1.1\r\nHost: shop\r\nX-Request-Id: a\tb\r\nAccept: \xff;q=x, text/html;q=\r\n\r\n",
        b"GET /thanks HTTP/1.1\r\nHost: shop\r\nIf-Modified-Since: never\r\nRange: x\r\nCookie: \xff=\xfe\r\n\r\n",
        b"BREW /thanks HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /" + b"x" * 4000 + b" HTTP/1.1\r\nHost: shop\r\n\r\n",
    ):
        status, answer = speak(url, request)
        assert 200 <= status < 500, (request, answer[:300])
        assert b"Location:" not in answer


def test_a_body_that_drips_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: App) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    with served(create_app(app), app) as url:
        for path in PATHS:
            assert speak(url, head(path, "Content-Length: 1000"), b"{")[0] == 408
            assert speak(url, head(path, "Transfer-Encoding: chunked"), b"5\r\n{")[0] == 408


def test_a_body_that_drips_is_broken_off_under_gunicorn(tmp_path: Path, app: App) -> None:
    target = "tests.integration.test_web_limits:create_impatient_app()"
    with gunicorn(tmp_path, target, app.settings, WEB_CONCURRENCY="1", WEB_THREADS="2") as (url, _):
        for _ in range(4):
            assert speak(url, head("/webhooks/stripe", "Content-Length: 1000"), b"{")[0] == 408
            assert speak(url, head("/webhooks/stripe", "Transfer-Encoding: chunked"), b"5\r\n{")[0] == 408


def create_impatient_app() -> object:
    """The site, with little patience."""
    bodies.BODY_SECONDS = 0.2
    return create_app()


def test_a_large_file_is_streamed_in_constant_memory(tmp_path: Path) -> None:
    app = open_test_app(tmp_path)
    _, token = finished_job(app, picture(60, 40))
    stored = app.storage.path(app.jobs.get_job("job-1").upscaled_file_path or "")
    size = 300 * MIB
    with stored.open("r+b") as file:
        file.truncate(size)
        file.seek(200 * MIB)
        file.write(b"marker")
    with gunicorn(tmp_path, "smi_workflow.web.downloads:create_app()", app.settings, WEB_CONCURRENCY="1") as (
        url,
        log,
    ):

        def peak_bytes() -> int:
            workers = [
                child for process in psutil.Process().children()
                # A dead child of another test has no command line to ask for.
                if process.status() != psutil.STATUS_ZOMBIE and "gunicorn" in " ".join(process.cmdline())
                for child in process.children()
            ]  # fmt: skip
            assert workers
            lines = [Path(f"/proc/{worker.pid}/status").read_text() for worker in workers]
            return max(int(text.split("VmHWM:")[1].split()[0]) for text in lines) * 1024

        requests.head(f"{url}/download/{token}", timeout=10).raise_for_status()
        before = peak_bytes()
        for headers, first in (({}, 0), ({"Range": "bytes=1-"}, 1)):
            with requests.get(f"{url}/download/{token}", headers=headers, stream=True, timeout=60) as answer:
                count = sum(len(data) for data in answer.iter_content(MIB))
            assert count == size - first
        ranged = requests.get(
            f"{url}/download/{token}", headers={"Range": f"bytes={200 * MIB}-{200 * MIB + 5}"}, timeout=10
        )
        assert (ranged.status_code, ranged.content) == (206, b"marker")
        assert peak_bytes() - before < 30 * MIB
        assert token not in log.read_text()
    app.close()


def test_tokens_are_in_no_log(app: App, server: tuple[str, Path]) -> None:
    url, log = server
    paths = [f"/download/{'T0KEN' * 12}abcd", "/source/job-1/99999999999-S1GNATURE", CALLBACK, "/nowhere/S3CRET"]
    for path in paths:
        requests.get(f"{url}{path}?email=jane@example.com", timeout=10)
        requests.post(f"{url}{path}?email=jane@example.com", json=DONE, timeout=10)
    wait_until(lambda: "POST (no route) 404" in log.read_text())
    text = log.read_text()
    assert "GET /download/<token> 404" in text
    assert "POST /webhooks/upsampler/<effect_id>/<signature> 200" in text
    for secret in ("T0KEN", "S1GNATURE", "S3CRET", "jane", CALLBACK.rpartition("/")[2], "effect1"):
        assert secret not in text
    assert "Traceback" not in text
