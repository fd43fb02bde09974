"""Owns the load on a web process: a bounded number of connections, each sending its next request when answered.

Called by intake.py, as a process of its own: `python -m benchmarks.load`, with a JSON order on standard input.
"""

from __future__ import annotations

import hmac
import json
import selectors
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from smi_workflow.sandbox.stripe_objects import API_VERSION, checkout_session, customer_details

SECONDS_MAX = 60.0
CONNECTIONS_MAX = 64
STALLED_SECONDS = 30.0
# Then a new connection: whichever process happened to take more of them must not have more to do for long.
REQUESTS_OF_A_CONNECTION = 20


@dataclass(slots=True)
class Told:
    """What one run came to."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Requests:
    """Signed webhook requests, each with an event of its own."""

    def __init__(self, address: str, secret: str, name: str) -> None:
        self._address = address
        self._secret = secret.encode()
        self._name = name
        self._count = 0
        paid = checkout_session(
            now=int(time.time()), livemode=False, params={"success_url": "https://shop.example/thanks"},
            amount=384, currency="usd", pay_url="https://checkout.stripe.com/c/pay",
        )  # fmt: skip
        paid |= {"customer_details": customer_details("jane@example.com"), "metadata": {"job_id": "@ID@"}}
        paid |= {"payment_status": "paid", "status": "complete", "payment_intent": "pi_@ID@"}
        self._event = json.dumps({
            "id": "evt_@ID@", "object": "event", "api_version": API_VERSION, "created": int(time.time()),
            "data": {"object": paid}, "livemode": False, "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None}, "type": "checkout.session.completed",
        }, indent=2)  # fmt: skip

    def next(self) -> bytes:
        """The next request, bytes as they go over the wire."""
        self._count += 1
        body = self._event.replace("@ID@", f"{self._name}{self._count:08d}").encode()
        stamp = str(int(time.time()))
        signature = hmac.new(self._secret, f"{stamp}.".encode() + body, sha256).hexdigest()
        head = (
            f"POST /webhooks/stripe HTTP/1.1\r\nHost: {self._address}\r\nUser-Agent: Stripe/1.0\r\n"
            f"Content-Type: application/json; charset=utf-8\r\nStripe-Signature: t={stamp},v1={signature}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=STALLED_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self.sent = 0
        self._answer = b""

    def send(self, request: bytes) -> None:
        """Send a whole request."""
        self.sent_at = time.perf_counter()
        self.sent += 1
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """The answer's status line once the answer is complete; None while there is more to come."""
        piece = self.socket.recv(65536)
        if not piece:
            return b"closed by the server"
        self._answer += piece
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found:
            return None
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if len(body) < int(lengths[0].partition(b":")[2]):
            return None
        self._answer = b""
        return head.partition(b"\r\n")[0]


def drive(host: str, port: int, secret: str, name: str, *, connections: int, seconds: float) -> Told:
    """Send as fast as answers come, for so long.

    Args:
        name: makes the events' ids unique.
        connections: kept open; each has one request under way.
    """
    told = Told()
    requests = Requests(f"{host}:{port}", secret, name)
    began = time.perf_counter()
    end = began + min(seconds, SECONDS_MAX)
    with selectors.DefaultSelector() as selector:

        def connect() -> None:
            one = Connection(host, port)
            selector.register(one.socket, selectors.EVENT_READ, one)
            one.send(requests.next())

        for _ in range(min(connections, CONNECTIONS_MAX)):
            connect()
        while selector.get_map():
            ready = selector.select(STALLED_SECONDS)
            if not ready:
                told.refused.append(f"no answer within {STALLED_SECONDS:g} s")
                break
            for key, _ in ready:
                one = key.data
                status = one.receive()
                if status is None:
                    continue
                now = time.perf_counter()
                if status == b"HTTP/1.1 200 OK":
                    told.latencies_ms.append((now - one.sent_at) * 1000)
                else:
                    told.refused.append(status.decode("latin-1"))
                goes_on = now < end and not told.refused
                if goes_on and one.sent < REQUESTS_OF_A_CONNECTION:
                    one.send(requests.next())
                    continue
                selector.unregister(one.socket)
                one.socket.close()
                if goes_on:
                    connect()
    told.seconds = time.perf_counter() - began
    return told


def main() -> None:
    """Read the order, drive, report."""
    order: dict[str, Any] = json.load(sys.stdin)
    told = drive(**order)
    json.dump(asdict(told), sys.stdout)


if __name__ == "__main__":
    main()
