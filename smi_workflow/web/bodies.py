"""Owns the reading of what strangers send: bounded in size and time, strict JSON, nothing a database chokes on.

Called by webhooks.py and api.py.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flask import request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

from smi_workflow.errors import InvalidInput
from smi_workflow.web.problems import Problem

JSON_TYPE = "application/json"
# For the whole body: providers send a few kilobytes; whoever drips would hold a thread.
BODY_SECONDS = 20.0
NUMBER_MAX = 2**63 - 1
# Whole surrogate pairs have become one character when this is asked.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def require_json() -> None:
    """Refuse any other content type; parameters such as the charset may follow.

    Raises:
        Problem: 415.
    """
    if request.mimetype != JSON_TYPE:
        raise Problem(415)


def read_body(limit_bytes: int) -> bytes:
    """The whole body, however it is sent.

    Raises:
        Problem: 413 above the limit, by what is declared or by what arrives; 400 for one that is cut short or
            garbled on its way; 408 when it takes too long.
    """
    if (request.content_length or 0) > limit_bytes:
        raise Problem(413)
    # One more than the limit: Werkzeug cuts a chunked body off there, and says nothing.
    request.max_content_length = limit_bytes + 1
    with _bounded_in_time() as is_over:
        try:
            body = request.get_data(cache=False)
        except (ClientDisconnected, ParseException):
            body = None
    if is_over.is_set():
        raise Problem(408)
    if body is not None and len(body) > limit_bytes:
        raise Problem(413)
    if body is None or (request.content_length is not None and len(body) != request.content_length):
        raise Problem(400, "The body ended before its time.")
    return body


def parse_json(body: bytes) -> Any:
    """Read JSON as the standard has it: UTF-8, no NaN.

    Raises:
        InvalidInput: it is something else, or nested without end.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidInput("body", "is not JSON") from None


def check_storable(value: object) -> None:
    """Refuse what parses and yet cannot be kept: NUL, halves of characters, numbers beyond 64 bits.

    Raises:
        InvalidInput: the body holds such a value.
    """
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            left += item
        elif isinstance(item, str):
            if _UNSTORABLE.search(item):
                raise InvalidInput("body", "holds characters that cannot be kept")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise InvalidInput("body", "holds a number that is too large")
        elif isinstance(item, int) and abs(item) > NUMBER_MAX:
            raise InvalidInput("body", "holds a number that is too large")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


@contextmanager
def _bounded_in_time() -> Iterator[threading.Event]:
    """Break off the reading side of the connection when the time is over; the answer still goes out."""
    is_over = threading.Event()
    connection = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
    if not isinstance(connection, socket.socket):
        yield is_over
        return

    def break_off() -> None:
        is_over.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)

    with _watch.over(break_off):
        yield is_over


class _Watch:
    """Ends what takes too long, from one thread for the whole process: one for each body costs more than the body.

    While there is something to watch it looks about once a second; nothing wakes it in between.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._begun: dict[object, tuple[float, Callable[[], None]]] = {}
        self._is_asleep = False
        self._pid = 0

    @contextmanager
    def over(self, end: Callable[[], None]) -> Iterator[None]:
        """Call `end` if the block takes longer than BODY_SECONDS; never once the block is over."""
        ticket = object()
        with self._changed:
            self._begun[ticket] = (time.monotonic(), end)
            if self._pid != os.getpid():
                # The first of this process; a thread does not survive a fork.
                self._pid = os.getpid()
                threading.Thread(target=self._look, name="body-watch", daemon=True).start()
            elif self._is_asleep:
                self._is_asleep = False
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._begun.pop(ticket, None)

    def _look(self) -> None:
        with self._changed:
            while True:
                self._is_asleep = not self._begun
                self._changed.wait(None if self._is_asleep else min(1.0, BODY_SECONDS))
                late = time.monotonic() - BODY_SECONDS
                for ticket in [ticket for ticket, (since, _) in self._begun.items() if since <= late]:
                    self._begun.pop(ticket)[1]()


_watch = _Watch()
