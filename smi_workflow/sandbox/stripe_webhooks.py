"""Owns Stripe's webhook endpoint: events wanted, signatures, what became of each. Called by Stripe's server."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from stripe import WebhookSignature

from smi_workflow.errors import InvalidInput
from smi_workflow.sandbox.faults import Channel, FaultBook
from smi_workflow.sandbox.postman import Letter, Postman
from smi_workflow.sandbox.stripe_objects import Payload


def signature_header(payload: str, secrets: tuple[str, ...], timestamp: int) -> str:
    """The Stripe-Signature header; one v1 per secret, as while a secret is rolled."""
    headers = [
        str(WebhookSignature.generate_signature_header(payload, secret, timestamp=timestamp)) for secret in secrets
    ]
    return ",".join([headers[0], *(header.split(",", 1)[1] for header in headers[1:])])


class StripeWebhooks:
    """One endpoint, changeable while running."""

    def __init__(
        self, postman: Postman, faults: FaultBook, *, url: str, secrets: tuple[str, ...], wanted: tuple[str, ...]
    ) -> None:
        self._lock = threading.Lock()
        self._postman = postman
        self._faults = faults
        self._letters: dict[str, Letter] = {}
        self._url = ""
        self._secrets: tuple[str, ...] = ()
        self._wanted = wanted
        self.on_delivered: Callable[[str], None] = lambda event_id: None
        self.make_twin: Callable[[str], Payload] | None = None
        if url:
            self.set_endpoint(url, secrets)

    def set_endpoint(self, url: str, secrets: tuple[str, ...]) -> None:
        """Deliver there from now on; an empty URL stops deliveries.

        Raises:
            InvalidInput: no http URL, or no secret.
        """
        if url and not url.startswith(("http://", "https://")):
            raise InvalidInput("webhook_url", f"must start with http:// or https://, not {url!r}")
        if url and not secrets:
            raise InvalidInput("webhook_secret", "is needed to sign what goes to the webhook URL")
        with self._lock:
            self._url, self._secrets = url, secrets

    def expects(self, kind: str) -> bool:
        """True when the endpoint wants events of this type."""
        with self._lock:
            return bool(self._url) and any(fnmatchcase(kind, pattern) for pattern in self._wanted)

    def publish(self, event: Payload) -> None:
        """Send a new event, or do to it what a fault orders."""
        if not self.expects(event["type"]):
            return
        fault = self._faults.take(Channel.WEBHOOK, webhook=event["type"])
        if fault is not None and fault.kind == "twin" and self.make_twin is not None:
            self._postman.send(self._letter(self.make_twin(event["id"])))
        self._postman.send(self._letter(event), fault)

    def resend(self, event: Payload) -> None:
        """Send an event once more, as the dashboard's button does."""
        self._postman.send(self._letter(event))

    def deliveries(self, event_id: str) -> list[dict[str, Any]]:
        """Every attempt to deliver an event."""
        with self._lock:
            letter = self._letters.get(event_id)
            return copy.deepcopy(letter.attempts) if letter else []

    def _letter(self, event: Payload) -> Letter:
        body = json.dumps(event, indent=2)
        event_id = event["id"]
        with self._lock:
            url, secrets = self._url, self._secrets
            known = self._letters.get(event_id)

            def render() -> tuple[bytes, dict[str, str]]:
                headers = {
                    "Content-Type": "application/json; charset=utf-8",
                    "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
                    "Stripe-Signature": signature_header(body, secrets, int(time.time())),
                }
                return body.encode(), headers

            letter = Letter(url, render, lambda: self.on_delivered(event_id), known.attempts if known else [])
            self._letters[event_id] = letter
        return letter
