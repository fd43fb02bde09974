"""Owns receivers of our hooks as a shop would write them: real HTTP, signatures verified, and every bad habit.

Called by the tests of hooks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQ="


@dataclass(frozen=True, slots=True)
class Message:
    """One POST, as it came."""

    path: str
    headers: dict[str, str]
    body: str

    @property
    def id(self) -> str:
        """What tells the same message when it comes again."""
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """The content, once its signature is found right."""
        content: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return content


@dataclass(slots=True)
class Receiver:
    """A shop's server: takes messages, answering with the next of `answers` (then 204).

    An answer is a status, or a status with headers, or a word: `hang` (no answer until it is closed), `reset` (the
    connection breaks).
    """

    answers: list[Any] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def ids(self) -> list[str]:
        """The messages' ids, in the order that they came."""
        return [message.id for message in self.messages]

    def sales(self) -> dict[str, list[str]]:
        """What a receiver that verifies, dedupes and orders makes of it: job → what happened to it."""
        unique = {message.id: message.verified() for message in self.messages}
        told: dict[str, list[tuple[int, str]]] = {}
        for content in unique.values():
            data = content["data"]
            told.setdefault(data["job_id"], []).append((data["sequence"], content["type"]))
        return {job_id: [kind for _, kind in sorted(found)] for job_id, found in told.items()}


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """A Receiver in threads on a free port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.messages.append(Message(self.path, headers, body))
            answer = receiver.answers.pop(0) if receiver.answers else 204
            if answer == "hang":
                receiver.closing.wait()
            if answer in ("hang", "reset"):
                self.close_connection = True
                return
            status, more = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.send_response(405)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
