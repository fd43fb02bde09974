"""Owns the outgoing webhook: signed, posted, and its answer read. Called by effects/hook.py.

Receivers are the shop's own, so private addresses are as good as others; a redirect is not followed, because where
it leads was chosen by somebody else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import requests
from standardwebhooks.webhooks import Webhook

from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.fetching import Call, retry_after_seconds

SERVICE = "hook"
CONNECT_SECONDS, TOTAL_SECONDS = 5.0, 15.0
GONE = 410
# What tells of a receiver that takes time and gives nothing.
SILENT_CODES = frozenset({"timed_out", "connect_failed", "dns_failed"})


class Silences:
    """Knows which URLs gave no answer a moment ago, so that one that hangs takes one thread of many.

    Args:
        seconds: a moment; after it, one caller finds out whether there are answers again.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def may_call(self, url: str) -> bool:
        """Whether it is worth a call; the first to ask after a silence makes it, and the others hear of it."""
        with self._lock:
            until = self._until.get(url)
            if until is not None and self._now() < until:
                return False
            if until is not None:
                self._until[url] = self._now() + self._seconds
            return True

    def heard(self, url: str, *, anything: bool) -> None:
        """Note how a call ended."""
        with self._lock:
            if anything:
                self._until.pop(url, None)
            else:
                self._until[url] = self._now() + self._seconds


class HookPoster:
    """Posts messages to receivers; may be shared by threads.

    Args:
        secrets: `whsec_…`; while they roll, each message carries a signature by each.
        total_seconds: of one call, names and connecting included.
    """

    def __init__(self, secrets: Sequence[str], total_seconds: float = TOTAL_SECONDS) -> None:
        self._signers = [Webhook(secret) for secret in secrets]
        self._total_seconds = total_seconds
        self._silences = Silences(2 * total_seconds)

    def __repr__(self) -> str:
        return f"HookPoster({len(self._signers)} secrets)"

    def post(self, url: str, body: str, *, receiver: str, message_id: str, now: datetime) -> None:
        """Give one message to one receiver; any 2xx says that it was taken, whatever the body.

        Args:
            receiver: what the URL is called in errors, which never name the URL itself.
            message_id: the same each time this message is posted.
            now: of this attempt; receivers refuse what was signed long ago.
        Raises:
            ServiceUnavailable: not taken, or nobody knows; post it again with the same id.
            ServiceRefused: the receiver is gone for good (410).
        Source: Standard Webhooks specification, 1.0.0: signature scheme, operational considerations.
        """
        name = f"{SERVICE} {receiver}"
        if not self._silences.may_call(url):
            raise ServiceUnavailable(name, "gave no answer a moment ago, and was not asked", code="silent")
        signatures = " ".join(one.sign(message_id, now, body) for one in self._signers)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "smi-workflow",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signatures,
        }
        call = Call(name, total_seconds=self._total_seconds, connect_seconds=CONNECT_SECONDS)
        reach(Point.CALL_READY)
        request = requests.Request("POST", url, headers=headers, data=body.encode())
        try:
            with call.running(), call.send(request) as response:
                status, waits = response.status_code, retry_after_seconds(response.headers, datetime.now(UTC))
        except ServiceUnavailable as trouble:
            self._silences.heard(url, anything=trouble.code not in SILENT_CODES)
            raise
        self._silences.heard(url, anything=True)
        reach(Point.CALL_ANSWERED)
        if 200 <= status < 300:
            return
        if status == GONE:
            raise ServiceRefused(name, "answered HTTP 410: it wants nothing any more", code="gone", status=GONE)
        raise ServiceUnavailable(
            name, f"answered HTTP {status}", code=f"http_{status}", status=status, retry_after_seconds=waits
        )
