"""The Upsampler client against a real HTTP server that answers well, badly, slowly and not at all."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from smi_workflow.errors import InvalidInput, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.upsampler_api import UpsamplerClient, Upscale, UpscaleStatus

KEY = "key-0123456789"
SUBMIT: dict[str, Any] = {
    "image_url": "https://shop.test/source/1/sig",
    "factor": 4,
    "webhook_url": "https://shop.test/webhooks/upsampler/1/sig",
}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers.items()), body))
        self.server.behaviour(self)

    do_POST = do_GET

    def answer(self, status: int, body: object, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def drip(self, start: bytes, end: bytes) -> None:
        """Send slower than the client's total time allows."""
        self.wfile.write(start)
        for _ in range(20):
            self.server.stopping.wait(1.0)
            self.wfile.write(b" ")
        self.wfile.write(end)
        self.server.dripped.set()

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            self.rfile.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour: Callable[[Handler], None] = lambda to: to.answer(200, {"id": "up_1"})
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.stopping = threading.Event()
        self.dripped = threading.Event()

    def answers(self, status: int, body: object, **headers: str) -> None:
        self.behaviour = lambda to: to.answer(status, body, **headers)

    def client(self, **options: Any) -> UpsamplerClient:
        options = {"image_type": "realism", "extra_inputs": {}, **options}
        return UpsamplerClient(KEY, f"http://127.0.0.1:{self.server_port}/api/v1/", **options)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what these tests are about."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    server.server_close()
    thread.join()


def unavailable(act: Callable[[], object]) -> ServiceUnavailable:
    with pytest.raises(ServiceUnavailable) as caught:
        act()
    assert caught.value.service == "upsampler"
    assert KEY not in str(caught.value)
    return caught.value


def test_a_submission_is_what_the_contract_says(server: Server) -> None:
    server.answers(200, {"id": "up_1", "status": "IN_QUEUE", "creditCost": 15.75})
    upscale = server.client(extra_inputs={"detail": 8, "imageUrl": "https://evil.test/"}).submit(**SUBMIT)
    assert upscale == Upscale("up_1", UpscaleStatus.IN_QUEUE, None, Decimal("15.75"), None)
    ((method, path, headers, body),) = server.requests
    assert (method, path) == ("POST", "/api/v1/precise-upscale")
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "webhook": SUBMIT["webhook_url"],
        "input": {
            "imageUrl": SUBMIT["image_url"],
            "inputImageType": "realism",
            "upscaleFactor": 4,
            "detail": 8,
        },
    }


def test_nothing_extra_is_sent_by_default(server: Server) -> None:
    server.client().submit(**SUBMIT)
    assert set(json.loads(server.requests[0][3])["input"]) == {"imageUrl", "inputImageType", "upscaleFactor"}


@pytest.mark.parametrize("factor", [0, 17, -4])
def test_a_factor_that_upsampler_lacks_is_not_sent(server: Server, factor: int) -> None:
    with pytest.raises(InvalidInput):
        server.client().submit(**{**SUBMIT, "factor": factor})
    assert server.requests == []


def test_a_submission_that_failed_at_once_is_returned(server: Server) -> None:
    server.answers(200, {"id": "up_1", "status": "FAILED", "error": f"Invalid API key {KEY}"})
    upscale = server.client().submit(**SUBMIT)
    assert (upscale.status, upscale.error) == (UpscaleStatus.FAILED, "Invalid API key ***")


@pytest.mark.parametrize(
    "rest", [{}, {"status": "ENQUEUED"}, {"status": "IN_QUEUE", "creditCost": "?"}, {"status": "SUCCESS"}]
)
def test_an_id_is_never_lost_over_the_rest_of_the_answer(server: Server, rest: dict[str, object]) -> None:
    server.answers(200, {"id": "up_1", **rest})
    assert server.client().submit(**SUBMIT) == Upscale("up_1", UpscaleStatus.IN_QUEUE, None, None, None)


def test_the_status_is_asked_for(server: Server) -> None:
    server.answers(200, {"id": "a/../b?c", "status": "SUCCESS", "imageUrl": "https://x.test/1.png"})
    upscale = server.client().status("a/../b?c")
    assert (upscale.status, upscale.image_url) == (UpscaleStatus.SUCCESS, "https://x.test/1.png")
    assert server.requests[0][:2] == ("GET", "/api/v1/status/a%2F..%2Fb%3Fc")


@pytest.mark.parametrize("upscale_id", ["", "..", "a b", "a\r\nX: y"])
def test_an_impossible_id_is_not_asked_for(server: Server, upscale_id: str) -> None:
    with pytest.raises(InvalidInput):
        server.client().status(upscale_id)
    assert server.requests == []


@pytest.mark.parametrize("answer", [{"id": "up_2", "status": "IN_QUEUE"}, {"id": "up_1", "status": "LOST"}])
def test_a_status_that_makes_no_sense_is_asked_again(server: Server, answer: object) -> None:
    server.answers(200, answer)
    assert unavailable(lambda: server.client().status("up_1")).code == "unusable_answer"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[1]", b'"up_1"', b"{", b"\xff\xfe", b'{"id": null}', b'{"id": ""}',
     b'{"status": "IN_QUEUE"}', b"[" * 100_000,
     b'{"id": "up_1", "x": "' + b"x" * 1_100_000 + b'"}', b'{"id": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 201, 202])
def test_a_good_answer_without_an_id_leaves_the_outcome_unknown(server: Server, body: bytes, status: int) -> None:
    server.answers(status, body)
    error = unavailable(lambda: server.client().submit(**SUBMIT))
    assert (error.code, error.outcome_unknown) == ("unusable_answer", True)


@pytest.mark.parametrize(
    ("status", "code", "unknown"),
    [(429, "rate_limited", False), (408, "http_408", False), (425, "http_425", False),
     (500, "http_500", True), (502, "http_502", True), (503, "http_503", True), (599, "http_599", True)],
)  # fmt: skip
def test_transient_answers(server: Server, status: int, code: str, unknown: bool) -> None:
    server.answers(status, {"error": "try later"}, Retry_After="30")
    error = unavailable(lambda: server.client().submit(**SUBMIT))
    assert (error.status, error.code, error.outcome_unknown) == (status, code, unknown)
    assert error.retry_after_seconds == 30.0
    assert "try later" in str(error)


def test_a_garbled_retry_after_is_ignored(server: Server) -> None:
    server.answers(503, b"<html>down</html>", Retry_After="-3")
    error = unavailable(lambda: server.client().status("up_1"))
    assert error.retry_after_seconds is None
    assert "html" not in str(error)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, {"error": "Factor is unsupported"}, "unsupported"),
        (400, {"error": ["Image", "image TOO LARGE"]}, "too_large"),
        (401, {"error": f"Invalid API key: {KEY}"}, "invalid_api_key"),
        (401, b"", "unauthorized"),
        (402, {"error": "Insufficient credits"}, "insufficient_credit"),
        (402, {}, "payment_required"),
        (403, {"message": "no"}, "forbidden"),
        (404, {"error": "no such upscale"}, "not_found"),
        (413, b"<html>", "too_large"),
        (422, {"error": None}, "rejected"),
        (418, {"error": "teapot"}, "http_418"),
    ],
)
def test_final_answers(server: Server, status: int, body: object, code: str) -> None:
    server.answers(status, body)
    with pytest.raises(ServiceRefused) as caught:
        server.client().submit(**SUBMIT)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_never_followed(server: Server, status: int) -> None:
    server.answers(status, {"id": "up_1"}, Location="/elsewhere")
    with pytest.raises(ServiceRefused) as caught:
        server.client().submit(**SUBMIT)
    assert caught.value.code == f"http_{status}"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (b"", b'HTTP/1.0 200 OK\r\n\r\n{"id": "up_1"}'),
        (b"HTTP/1.0 200 OK\r\nX: ", b'\r\n\r\n{"id": "up_1"}'),
        (b'HTTP/1.0 200 OK\r\n\r\n{"id": "up_1"}', b" "),
    ],
)
def test_a_slow_answer_meets_the_total_time(server: Server, start: bytes, end: bytes) -> None:
    server.behaviour = lambda to: to.drip(start, end)
    hasty = server.client(connect_timeout_seconds=0.15, read_timeout_seconds=0.15)
    error = unavailable(lambda: hasty.submit(**SUBMIT))
    assert (error.code, error.outcome_unknown) == ("timed_out", True)
    assert not server.dripped.is_set()


def test_a_reset_leaves_the_outcome_unknown(server: Server) -> None:
    server.behaviour = Handler.reset
    error = unavailable(lambda: server.client().submit(**SUBMIT))
    assert (error.code, error.outcome_unknown) == ("connection_lost", True)
    assert not unavailable(lambda: server.client().status("up_1")).outcome_unknown


def test_a_cut_answer_leaves_the_outcome_unknown(server: Server) -> None:
    def cut(to: Handler) -> None:
        to.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"id"')

    server.behaviour = cut
    error = unavailable(lambda: server.client().submit(**SUBMIT))
    assert (error.code, error.outcome_unknown) == ("connection_lost", True)


def test_without_a_connection_nothing_was_submitted() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{bound.getsockname()[1]}"
        client = UpsamplerClient(KEY, base, image_type="anime", extra_inputs={})
        error = unavailable(lambda: client.submit(**SUBMIT))
    assert (error.code, error.outcome_unknown) == ("connect_failed", False)


def test_threads_may_share_a_client(server: Server) -> None:
    together = threading.Barrier(8, timeout=20)

    def mirror(to: Handler) -> None:
        together.wait()
        to.answer(200, {"id": to.path.rpartition("/")[2], "status": "IN_PROGRESS"})

    server.behaviour = mirror
    client = server.client()
    ids = [f"up_{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert [upscale.id for upscale in pool.map(client.status, ids)] == ids
