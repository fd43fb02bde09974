"""Owns Stripe's idempotency keys: one key, one outcome, replayed. Called by stripe_routes.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from smi_workflow.sandbox.stripe_errors import StripeFailure, invalid

KEPT_SECONDS = 24 * 3600
KEY_LENGTH_MAX = 255

KeyId = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, to be replayed word for word."""

    status: int
    body: bytes
    request_id: str


@dataclass(slots=True)
class _Entry:
    endpoint: str
    fingerprint: str
    began_at: float
    answer: Answer | None = None


class IdempotencyKeys:
    """The keys of the last 24 hours; after that a key is new again."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._entries: dict[KeyId, _Entry] = {}

    def begin(self, key_id: KeyId, endpoint: str, fingerprint: str) -> Answer | None:
        """Reserve a key.

        Args:
            key_id: the account's API key and the idempotency key.
            fingerprint: of all parameters.
        Returns: the answer to replay, or None when the work is to be done and `finish` called.
        Raises:
            StripeFailure: 409 while the first request still runs; 400 for another endpoint or other parameters.
        """
        key = key_id[1]
        if len(key) > KEY_LENGTH_MAX:
            raise invalid(f"Idempotency keys can be up to {KEY_LENGTH_MAX} characters long.", "Idempotency-Key")
        now = self._now()
        with self._lock:
            entry = self._entries.get(key_id)
            if entry is not None and entry.answer is not None and now - entry.began_at > KEPT_SECONDS:
                entry = None
            if entry is None:
                self._entries[key_id] = _Entry(endpoint, fingerprint, now)
                return None
        hint = f"Try using a key other than '{key}' if you meant to execute a different request."
        if entry.endpoint != endpoint:
            first = entry.endpoint.split(" ", 1)[1]
            raise _reused(f"can only be used for the same endpoint they were first used for ('{first}'). {hint}")
        if entry.fingerprint != fingerprint:
            raise _reused(f"can only be used with the same parameters they were first used with. {hint}")
        if entry.answer is None:
            message = f"There is currently another in-progress request using this Idempotent Key ({key})."
            raise StripeFailure(message, status=409, code="idempotency_key_in_use", began=False)
        return entry.answer

    def finish(self, key_id: KeyId, answer: Answer | None) -> None:
        """Keep the answer for replays; None forgets the key, for requests that never began to work."""
        with self._lock:
            if answer is None:
                self._entries.pop(key_id, None)
            elif key_id in self._entries:
                self._entries[key_id].answer = answer


def _reused(rest: str) -> StripeFailure:
    return StripeFailure(f"Keys for idempotent requests {rest}", kind="idempotency_error", began=False)
