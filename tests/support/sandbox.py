"""Owns sandboxes for tests: in threads or as a process, and a small site that plays the shop. Called by tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
import stripe

from smi_workflow.sandbox import Sandbox, SandboxConfig

API_KEY = "sk_test_sandbox"
WEBHOOK_SECRET = "whsec_sandbox"
AUTH = {"Authorization": f"Bearer {API_KEY}"}


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 10.0) -> None:
    """Look again every few milliseconds until it is true; fails when it never is."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not true after {timeout_seconds} s")
        time.sleep(0.01)


@contextmanager
def running_sandbox(folder: Path, **changes: Any) -> Iterator[Sandbox]:
    """A sandbox in threads on free ports, fast enough for tests.

    Args:
        changes: fields of SandboxConfig.
    """
    defaults: dict[str, Any] = {"upsampler_work_seconds": 0.02, "retry_first_seconds": 0.05}
    with Sandbox(SandboxConfig(folder, **{**defaults, **changes})) as sandbox:
        yield sandbox


def stripe_client(base_url: str, key: str = API_KEY) -> stripe.StripeClient:
    """The official client, without retries of its own."""
    return stripe.StripeClient(key, base_addresses={"api": base_url}, max_network_retries=0)


@dataclass(frozen=True, slots=True)
class Received:
    """One request that the site got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(slots=True)
class Site:
    """A real HTTP server on loopback: serves `files`, takes POSTs with the next of `statuses` (then 200)."""

    files: dict[str, bytes] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    on_post: Callable[[Received], None] | None = None
    url: str = ""

    def posts(self) -> list[Received]:
        """The POSTs so far."""
        return [one for one in list(self.received) if one.method == "POST"]

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The Stripe events so far, of one type if named."""
        bodies = [one.json() for one in self.posts()]
        return [body for body in bodies if kind is None or body.get("type") == kind]


@contextmanager
def running_site() -> Iterator[Site]:
    """A Site in threads on a free port."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.received.append(Received("GET", self.path, dict(self.headers.items()), b""))
            content = site.files.get(self.path)
            self._answer(404 if content is None else 200, content or b"not here")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            request = Received("POST", self.path, dict(self.headers.items()), body)
            if site.on_post is not None:
                site.on_post(request)
            status = site.statuses.pop(0) if site.statuses else 200
            site.received.append(request)
            self._answer(status, b"")

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(slots=True)
class SandboxProcess:
    """`python -m smi_workflow.sandbox` as a child; `addresses` is what its ready file says."""

    process: subprocess.Popen[str]
    addresses: dict[str, Any]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Signal it and wait: the exit status and all that it printed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output


def start_sandbox_process(folder: Path, arguments: Sequence[str] = ()) -> SandboxProcess:
    """Start it and wait until it listens; the caller stops it."""
    ready = folder / "ready.json"
    process = subprocess.Popen(
        sandbox_command(folder, ["--ready-file", str(ready), *arguments]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    wait_until(lambda: ready.exists() or process.poll() is not None, 30)
    if not ready.exists():
        raise AssertionError(f"the sandbox did not start: {process.communicate()[0]}")
    return SandboxProcess(process, json.loads(ready.read_text()))


def sandbox_command(folder: Path, arguments: Sequence[str]) -> list[str]:
    """The command line of a sandbox."""
    return [sys.executable, "-m", "smi_workflow.sandbox", "--folder", str(folder), *arguments]


def session_params(**changes: Any) -> Any:
    """What a shop opens a checkout with, for the official client."""
    product = {"name": "4x of a <cat>"}
    return {
        "mode": "payment",
        "success_url": "https://shop.example/thanks?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://shop.example/cancelled",
        "metadata": {"job": "1"},
        "payment_intent_data": {"metadata": {"job": "intent"}},
        "adaptive_pricing": {"enabled": False},
        "line_items": [
            {"quantity": 1, "price_data": {"currency": "usd", "unit_amount": 384, "product_data": product}}
        ],
        **changes,
    }


def form(**changes: str) -> dict[str, str]:
    """A session's parameters as they go over the wire."""
    return {
        "mode": "payment",
        "success_url": "https://shop.example/thanks",
        "line_items[0][quantity]": "1",
        "line_items[0][price_data][currency]": "usd",
        "line_items[0][price_data][unit_amount]": "384",
        "line_items[0][price_data][product_data][name]": "4x",
        **changes,
    }


def post(
    sandbox: Sandbox, path: str, data: Any = None, key: str | None = None, **kwargs: Any
) -> requests.Response:
    """POST a form to the imitated API, with the key of the tests."""
    headers = {**AUTH, **({"Idempotency-Key": key} if key else {})}
    return requests.post(f"{sandbox.stripe.url}{path}", data=data, headers=headers, timeout=10, **kwargs)


def lever(sandbox: Sandbox, path: str, data: Any) -> Any:
    """Pull one of the levers that no API has, and return what it says."""
    answer = requests.post(f"{sandbox.stripe.url}/_sandbox/{path}", json=data, timeout=10)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def sell(sandbox: Sandbox, client: stripe.StripeClient) -> str:
    """Sell one upscale; returns the payment intent."""
    session = client.v1.checkout.sessions.create(session_params())
    requests.post(f"{session.url}/pay", allow_redirects=False, timeout=10)
    return str(client.v1.checkout.sessions.retrieve(session.id).payment_intent)
