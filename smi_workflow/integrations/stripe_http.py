"""Owns the wire under the stripe library: total time, error classes, no telemetry. Called by stripe_api.py."""

from __future__ import annotations

import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
import stripe
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import ServiceError, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.deadline import Deadline

# The library has no other switch; left on, it writes an id into the user's home and sends the platform.
stripe.enable_telemetry = False

CONNECT_SECONDS = 5.0
ANSWER_BYTES_MAX = 32 * 1024 * 1024
TRANSIENT_STATUSES = frozenset({408, 409, 424, 425, 429})
TRANSIENT_CODES = frozenset({"lock_timeout", "rate_limit"})
_DROPPED_HEADERS = frozenset({"x-stripe-client-telemetry", "x-stripe-client-user-agent", "user-agent"})
_SECRET = re.compile(r"\b[sr]k_[A-Za-z0-9_*]+")
_ADDRESS = re.compile(r"[^\s@'\"<>]+@[^\s@'\"<>]+")

_deadline: ContextVar[Deadline] = ContextVar("stripe_deadline")


class _GuardedConnection(HTTPConnection):
    """A connection whose socket, new or reused, stands under the running call's deadline."""

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _deadline.get().guard(sock)
        return sock

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            _deadline.get().guard(self.sock)
        super().request(*args, **kwargs)


class _TlsConnection(_GuardedConnection, HTTPSConnection):
    """The same over TLS."""


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _GuardedConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._use_guarded_pools(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        self._use_guarded_pools(manager)
        return manager

    @staticmethod
    def _use_guarded_pools(manager: PoolManager) -> None:
        manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class Transport(stripe.HTTPClient):
    """An HTTP client for the library that answers with JSON objects or raises our errors; safe in threads.

    Args:
        timeout_seconds: total time of one request, connecting and reading included (name resolution is
            bounded by the system's resolver).
    """

    name = "requests"

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__()
        self._timeout_seconds = timeout_seconds
        self._local = threading.local()

    @contextmanager
    def budget(self, seconds: float) -> Iterator[None]:
        """Bound all requests that this thread makes inside, together."""
        self._local.until = time.monotonic() + seconds
        try:
            yield
        finally:
            self._local.until = None

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, **_: Any
    ) -> tuple[str, int, Mapping[str, str]]:
        """Make one request, once.

        Returns: the JSON object's text, the status, and the headers that concern the library.
        Raises:
            ServiceUnavailable: transient, or the outcome is unknown.
            ServiceRefused: a final 4xx.
        """
        changes = method.lower() != "get"
        sent = {key: value for key, value in (headers or {}).items() if key.lower() not in _DROPPED_HEADERS}
        sent["User-Agent"] = f"smi-workflow stripe-python/{stripe.VERSION}"
        try:
            with Deadline(self._seconds_left()) as deadline:
                _deadline.set(deadline)
                reach(Point.CALL_READY)
                status, answer_headers, text = self._send(method, url, sent, post_data, deadline.seconds)
                if deadline.expired:
                    raise TimeoutError("the call's total time is up")
                reach(Point.CALL_ANSWERED)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            # ValueError: requests reads a Location that it is told not to follow, and chokes on a garbled one.
            raise ServiceUnavailable(
                "stripe",
                f"no answer ({_kind(error)})",
                code="no_answer",
                outcome_unknown=changes and not _never_sent(error),
            ) from error
        if status // 100 == 2 and _is_object(text):
            # Any other header, Stripe-Notice above all, would only make the library warn.
            request_id = answer_headers.get("Request-Id")
            return text, status, {"Request-Id": request_id} if request_id else {}
        raise error_for(status, answer_headers, text, changes=changes, now=datetime.now(UTC))

    def close(self) -> None:
        """Close this thread's connections."""
        if getattr(self._local, "session", None) is not None:
            self._local.session.close()
            self._local.session = None

    def _seconds_left(self) -> float:
        until = getattr(self._local, "until", None)
        if until is None:
            return self._timeout_seconds
        left = min(self._timeout_seconds, until - time.monotonic())
        if left <= 0:
            raise ServiceUnavailable("stripe", "the list is longer than one call may take", code="no_answer")
        return float(left)

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], data: Any, seconds: float
    ) -> tuple[int, Mapping[str, str], str]:
        session = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            # Without an auth of its own, requests lets a ~/.netrc entry replace the Authorization header.
            session.auth = _unchanged
            for scheme in ("http://", "https://"):
                session.mount(scheme, _Adapter())
            self._local.session = session
        response: requests.Response = session.request(
            method,
            url,
            headers=headers,
            data=data,
            timeout=(min(CONNECT_SECONDS, seconds), seconds),
            allow_redirects=False,
            stream=True,
        )
        content = bytearray()
        with response:
            for chunk in response.iter_content(65_536):
                content += chunk
                if len(content) > ANSWER_BYTES_MAX:
                    raise requests.exceptions.ContentDecodingError("the answer is too large")
        return response.status_code, response.headers, content.decode("utf-8", errors="replace")


def error_for(status: int, headers: Mapping[str, str], text: str, *, changes: bool, now: datetime) -> ServiceError:
    """Say what an answer other than a 2xx JSON object means for a retry.

    Args:
        changes: the request may have changed something at Stripe (a POST).
        now: for a Retry-After given as a date.
    Source: Stripe API reference, errors and idempotent requests.
    """
    details = _error_object(text)
    code = details.get("code") if isinstance(details.get("code"), str) else None
    message = str(details.get("message") or f"answered {status}")
    message = _ADDRESS.sub("<address>", _SECRET.sub("<key>", message))[:500]
    if request_id := headers.get("Request-Id"):
        message = f"{message} ({request_id})"
    # Stripe names the type, without a code, when a key comes again with other parameters; its own
    # code of this name stands for 409, where the first request is still being worked on.
    if details.get("type") == "idempotency_error" and code is None:
        code = "idempotency_key_in_use"
    asked_to_retry = headers.get("Stripe-Should-Retry") == "true"
    final = 400 <= status < 500 and status not in TRANSIENT_STATUSES and code not in TRANSIENT_CODES
    if final and not asked_to_retry:
        return ServiceRefused("stripe", message, code=code, status=status)
    in_progress = status == 409 and code != "lock_timeout"
    return ServiceUnavailable(
        "stripe",
        message,
        code=code,
        status=status,
        retry_after_seconds=retry_after(headers.get("Retry-After"), now=now),
        outcome_unknown=changes and (in_progress or status in (408, 424) or not 400 <= status < 500),
    )


def retry_after(value: str | None, *, now: datetime) -> float | None:
    """Read a Retry-After header: seconds or an HTTP date; None when absent or unreadable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            then = parsedate_to_datetime(value)
            seconds = (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _error_object(text: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    details = answer.get("error") if isinstance(answer, dict) else None
    return details if isinstance(details, dict) else {}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _kind(error: BaseException) -> str:
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return type(reason if isinstance(reason, BaseException) else error).__name__


def _never_sent(error: BaseException) -> bool:
    if isinstance(error, requests.ConnectTimeout):
        return True
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)
