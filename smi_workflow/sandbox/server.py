"""Owns the sandbox's HTTP server: loopback only, threads, quiet, able to misbehave. Called by its servers."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Response
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Request

from smi_workflow.errors import ConfigError
from smi_workflow.sandbox.faults import Channel, Fault, FaultBook

HOST = "127.0.0.1"
INSIDE = "smi_workflow.sandbox.fault"
CONTROL_PREFIX = "/_sandbox/"
LISTEN_BACKLOG = 256


def listen(port: int, option: str) -> socket.socket:
    """Open a listening socket on loopback.

    Args:
        port: 0 takes any free one.
        option: how the caller names this port, for the refusal.
    Raises:
        ConfigError: the port is taken or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(LISTEN_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(f"cannot listen on {HOST}:{port} ({option}): {reason}") from error
    return listener


class RequestLog:
    """One line per request in a file; nothing on the terminal."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8")

    def write(self, server: str, message: str) -> None:
        """Add a line; after `close` it is dropped."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            if not self._file.closed:
                self._file.write(f"{stamp} {server} {message}\n")
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


class _Handler(WSGIRequestHandler):
    server: _Server

    def log(self, type: str, message: str, *args: Any) -> None:
        self.server.log(type, message, *args)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.server.log("info", "%s %s %s", self.command, self.path, code)

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        self.close_connection = True


class _Server(ThreadedWSGIServer):
    def __init__(self, name: str, listener: socket.socket, app: Any, log: RequestLog) -> None:
        self.name = name
        self.request_log = log
        super().__init__(HOST, listener.getsockname()[1], app, _Handler, fd=listener.fileno())

    def log(self, type: str, message: str, *args: Any) -> None:
        self.request_log.write(self.name, (message % args if args else message).rstrip())

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.request_log.write(self.name, f"connection of {client_address} broke off")


class LoopbackServer:
    """A WSGI application served on a listening socket, behind the faults that the book orders."""

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        app: Any,
        faults: FaultBook,
        log: RequestLog,
        *,
        inside: bool = False,
    ) -> None:
        self.url = url_of(listener)
        self.stopping = threading.Event()
        self._listener = listener
        self._server = _Server(name, listener, FaultyApp(app, faults, self.stopping, inside=inside), log)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name=name, daemon=True
        )

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections and wake whoever hangs; returns within a fraction of a second."""
        self.stopping.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._listener.close()


def url_of(listener: socket.socket) -> str:
    """The base URL that a listening socket is reached at."""
    return f"http://{HOST}:{listener.getsockname()[1]}"


class FaultyApp:
    """A WSGI layer that commits the request faults; what must happen inside the application is handed on."""

    def __init__(self, app: Any, faults: FaultBook, stopping: threading.Event, *, inside: bool) -> None:
        self._app = app
        self._faults = faults
        self._stopping = stopping
        self._inside = inside

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        fault = None
        if not path.startswith(CONTROL_PREFIX):
            fault = self._faults.take(Channel.REQUEST, method=environ["REQUEST_METHOD"], path=path)
        if fault is None:
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        if self._inside and (fault.kind == "slow" or (fault.kind == "status" and fault.remembered)):
            environ[INSIDE] = fault
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        return self._misbehave(fault, environ, start_response)

    def _misbehave(self, fault: Fault, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        before_work = fault.kind == "reset" or (fault.kind == "status" and not fault.after)
        if before_work:
            # The client shall have sent everything: a reset while it still sends looks different to it.
            Request(environ).get_data()
        if fault.kind == "reset":
            reset(environ)
        if before_work:
            return planned_answer(fault)(environ, start_response)
        chunks, status, headers = run_wsgi_app(self._app, environ, buffered=True)
        body = b"".join(chunks)
        if fault.kind == "status":
            return planned_answer(fault)(environ, start_response)
        if fault.kind == "hang":
            self._stopping.wait(fault.seconds)
        if fault.kind in ("hang", "reset_after"):
            reset(environ)
        if fault.kind == "garbage":
            answer = Response("<html><body>502 Bad gateway</body></html>", content_type="text/html")
            return answer(environ, start_response)
        self._stopping.wait(fault.seconds)
        return Response(body, status, headers)(environ, start_response)


def planned_answer(fault: Fault) -> Response:
    """The answer that a `status` fault orders."""
    body = fault.body if fault.body is not None else {"error": f"the sandbox was told to answer {fault.status}"}
    text = body if isinstance(body, str) else json.dumps(body)
    kind = "text/plain" if isinstance(body, str) else "application/json"
    return Response(text, fault.status, headers=dict(fault.headers), content_type=kind)


def reset(environ: dict[str, Any]) -> None:
    """Break the connection with a TCP reset, and leave the request.

    Raises:
        ConnectionResetError: always; the server takes it for a client that went away.
    """
    connection: socket.socket = environ["werkzeug.socket"]
    # Lingering for 0 s turns the close into a RST; detaching keeps Python's files from closing it politely.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
    raise ConnectionResetError("the sandbox was told to reset this connection")
