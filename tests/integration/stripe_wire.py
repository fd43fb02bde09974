"""Owns a small server that records what Stripe's client sends and answers as told. Called by tests."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from smi_workflow.integrations.stripe_api import CheckoutSession, StripeApi, StripeRefund

KEY = "sk_test_wire_secret"
SOON = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
SESSION: dict[str, Any] = {
    "id": "cs_1",
    "object": "checkout.session",
    "url": "https://checkout.stripe.com/c/pay/cs_1",
    "status": "open",
    "payment_status": "unpaid",
    "payment_intent": None,
    "amount_total": 384,
    "currency": "usd",
    "livemode": False,
    "expires_at": int(SOON.timestamp()),
    "customer_details": None,
    "customer_email": None,
    "metadata": {"job_id": "job_1"},
}
INTENT: dict[str, Any] = {
    "id": "pi_1",
    "object": "payment_intent",
    "status": "succeeded",
    "amount": 384,
    "amount_received": 384,
    "currency": "usd",
    "livemode": False,
    "latest_charge": "ch_1",
    "metadata": {},
}
REFUND: dict[str, Any] = {
    "id": "re_1",
    "object": "refund",
    "status": "pending",
    "amount": 384,
    "currency": "usd",
    "payment_intent": "pi_1",
    "charge": "ch_1",
    "metadata": {"refund": "r1"},
}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    pairs: list[tuple[str, str]]
    headers: Mapping[str, str]

    @property
    def parameters(self) -> dict[str, Any]:
        """The bracketed pairs as the nested object that they stand for, values still text."""
        root: dict[str, Any] = {}
        for name, value in self.pairs:
            steps = re.findall(r"[^\[\]]+", name)
            place = root
            for step in steps[:-1]:
                place = place.setdefault(step, {})
            place[steps[-1]] = value
        return root


@dataclass
class Answer:
    """What the server does with one request; `trouble` instead of an answer if set."""

    body: object = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""


class FakeStripe(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.respond: Callable[[Request], Answer] = lambda _: self.answers.pop(0)
        self.over = threading.Event()
        self.dripped_out = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that a test breaks on purpose are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeStripe

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = urlsplit(self.path)
        pairs = parse_qsl(body or parts.query, keep_blank_values=True, strict_parsing=bool(body or parts.query))
        request = Request(self.command, parts.path, pairs, dict(self.headers.items()))
        self.server.requests.append(request)
        answer = self.server.respond(request)
        if answer.trouble:
            self.close_connection = True
            getattr(self, f"_{answer.trouble}")()
            return
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Request-Id", "req_1")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _silence(self) -> None:
        self.server.over.wait(20)

    def _truncated(self) -> None:
        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"id":')

    def _drip_head(self) -> None:
        self._drip([b"HTTP/1.1 200 OK\r\n", *[b"X-Slow: 1\r\n"] * 98, b"\r\n" + json.dumps(REFUND).encode()])

    def _drip_body(self) -> None:
        self._drip([b"HTTP/1.1 200 OK\r\n\r\n", *[b" "] * 98, json.dumps(REFUND).encode()])

    def _drip_refusal(self) -> None:
        self._drip([b"HTTP/1.1 400 Bad Request\r\n\r\n", *[b" "] * 99])

    def _drip(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.wfile.write(piece)
            if self.server.over.wait(0.1):
                return
        self.server.dripped_out = True


@contextmanager
def serving() -> Iterator[FakeStripe]:
    with FakeStripe() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def listing(*items: Mapping[str, Any], more: bool = False) -> Answer:
    # The address must not be followed: it is not ours to trust.
    return Answer({"object": "list", "data": list(items), "has_more": more, "url": "/v1/elsewhere"})


def refusal(status: int, code: str | None = None, kind: str = "invalid_request_error") -> Answer:
    return Answer({"error": {"type": kind, "message": "no", **({"code": code} if code else {})}}, status)


def create(api: StripeApi, **changes: Any) -> CheckoutSession:
    arguments: dict[str, Any] = {
        "job_id": "job_1",
        "amount_cents": 384,
        "currency": "usd",
        "description": "Upscaled image, 4096 by 4096, größer",
        "success_url": "https://shop.example/thanks?job=job_1&s={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://shop.example/cancelled?job=job_1",
        "expires_at": SOON,
        "email": "jane@example.com",
        "key": "effect-1",
    }
    return api.create_checkout_session(**{**arguments, **changes})


def refund(api: StripeApi, **changes: Any) -> StripeRefund:
    arguments: dict[str, Any] = {
        "payment_intent": "pi_1",
        "amount_cents": 384,
        "reason": "requested_by_customer",
        "metadata": {"refund": "r1"},
        "key": "effect-2",
    }
    return api.create_refund(**{**arguments, **changes})
