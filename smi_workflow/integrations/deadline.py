"""Owns the total time of one call over a socket. Called by stripe_http.py and mailer.py."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Deadline:
    """Cuts the guarded socket when the time is up, so that a blocked or trickling read ends too.

    A socket's own time-out counts from byte to byte: a peer that sends one byte now and then holds a
    worker for ever, past its lease. Use as a context manager around the call.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def guard(self, sock: socket.socket) -> None:
        """Put the socket that the call uses from now on under the deadline, TLS added later included.

        Raises:
            TimeoutError: the time is up already.
        """
        # A second handle on the same connection: wrapping a socket in TLS detaches the first, and
        # SSLSocket.shutdown would pull the TLS state from under the reading thread.
        handle = socket.fromfd(sock.fileno(), sock.family, sock.type)
        with self._lock:
            old, self._socket = self._socket, handle
            expired = self.expired
        if old is not None:
            old.close()
        if expired:
            raise TimeoutError("the call's total time is up")

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
