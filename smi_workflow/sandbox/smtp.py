"""Owns the mail sink: a real SMTP server that keeps messages as files, or misbehaves. Called by sandbox.py."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import socket
import struct
import threading
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from flask import Blueprint, Flask, Response, jsonify, send_file

from smi_workflow.sandbox.clock import SandboxClock
from smi_workflow.sandbox.control import control_routes, plain_errors
from smi_workflow.sandbox.faults import HANG_SECONDS, Channel, Fault, FaultBook
from smi_workflow.sandbox.server import HOST, LoopbackServer, RequestLog, url_of

_LINK = re.compile(r"https?://[^\s<>\"']+")
# aiosmtpd logs through the logging module; without a handler its warnings would reach the terminal.
logging.getLogger("mail.log").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class KeptMail:
    """One accepted message."""

    number: int
    path: Path
    sender: str
    recipients: tuple[str, ...]
    subject: str
    message_id: str
    links: tuple[str, ...]


class MailFolder:
    """Accepted messages as .eml files, numbered in the order of their arrival."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._folder = folder
        self._mails: list[KeptMail] = []

    def keep(self, sender: str, recipients: list[str], content: bytes) -> KeptMail:
        """Write a message down."""
        message = message_from_bytes(content, policy=default_policy)
        text = _text_part(message)
        digest = hashlib.sha256(",".join(recipients).lower().encode()).hexdigest()[:12]
        with self._lock:
            number = len(self._mails) + 1
            path = self._folder / f"{number:06d}-{digest}.eml"
            path.write_bytes(content)
            mail = KeptMail(
                number,
                path,
                sender,
                tuple(recipients),
                str(message.get("Subject", "")),
                str(message.get("Message-ID", "")),
                tuple(link.rstrip(".,;:!?)") for link in _LINK.findall(text)),
            )
            self._mails.append(mail)
        return mail

    def all(self) -> list[KeptMail]:
        """Every message so far, oldest first."""
        with self._lock:
            return list(self._mails)


def _text_part(message: EmailMessage) -> str:
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        return ""
    try:
        return str(part.get_content())
    except (LookupError, UnicodeError):
        return ""


class _Sink:
    """aiosmtpd's hooks."""

    def __init__(self, mails: MailFolder, faults: FaultBook, refused: tuple[str, ...], log: RequestLog) -> None:
        self._mails = mails
        self._faults = faults
        self._refused = refused
        self._log = log

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        fault = self._faults.take(Channel.SMTP, smtp="rcpt", address=address)
        answer = await self._misbehave(server, fault) if fault is not None else None
        if answer is None and any(fnmatchcase(address.lower(), pattern.lower()) for pattern in self._refused):
            answer = "550 5.1.1 No such mailbox here"
        if answer is not None:
            self._log.write("smtp", f"RCPT {answer.split(' ', 1)[0]}")
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        fault = self._faults.take(Channel.SMTP, smtp="data", address=envelope.rcpt_tos[0])
        if fault is not None and fault.kind in ("refuse", "reset"):
            answer = await self._misbehave(server, fault)
            if answer is not None:
                self._log.write("smtp", f"DATA {answer.split(' ', 1)[0]}")
                return answer
        content = envelope.original_content or b""
        mail = self._mails.keep(envelope.mail_from or "", list(envelope.rcpt_tos), content)
        self._log.write("smtp", f"DATA 250 {mail.path.name}")
        # Late answers and broken connections come after the mail is kept: the sender cannot know.
        if fault is not None and await self._misbehave(server, fault) is not None:
            return "421 4.3.0 connection broken off"
        return f"250 2.0.0 OK kept as {mail.path.name}"

    async def _misbehave(self, server: SMTP, fault: Fault) -> str | None:
        if fault.kind == "slow":
            await asyncio.sleep(min(fault.seconds, HANG_SECONDS))
            return None
        if fault.kind == "refuse":
            permanent = fault.status >= 500
            text = fault.text or ("5.1.1 No such mailbox here" if permanent else "4.3.0 Try again later")
            return f"{fault.status} {text}"
        return _break_off(server)


def _break_off(server: SMTP) -> str:
    transport = server.transport
    if isinstance(transport, asyncio.Transport):
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return "421 4.3.0 connection broken off"


def _anyone(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=True)


class _Controller(Controller):
    """Listens on a socket that is open already: the ports of all servers are taken before any starts."""

    def __init__(self, listener: socket.socket, handler: _Sink) -> None:
        self._listener = listener
        super().__init__(
            handler,
            hostname=HOST,
            port=listener.getsockname()[1],
            server_hostname="sandbox.localhost",
            authenticator=_anyone,
            auth_require_tls=False,
        )

    def _create_server(self) -> Any:
        return self.loop.create_server(self._factory_invoker, sock=self._listener)


class MailServer:
    """An SMTP server on loopback and a small HTTP server to look at it; `url` and `http_url` lead there."""

    def __init__(
        self,
        listener: socket.socket,
        http_listener: socket.socket,
        log: RequestLog,
        folder: Path,
        *,
        refused: tuple[str, ...] = ("bounce@*",),
        seed: int | None = None,
    ) -> None:
        self.url = f"smtp://{HOST}:{listener.getsockname()[1]}"
        self.http_url = url_of(http_listener)
        self.faults = FaultBook(None if seed is None else f"smtp:{seed}")
        self.mails = MailFolder(folder)
        self._controller = _Controller(listener, _Sink(self.mails, self.faults, refused, log))
        app = Flask(__name__)
        app.register_blueprint(control_routes(self.faults, self.ledger, SandboxClock()))
        app.register_blueprint(_mail_routes(self.mails))
        plain_errors(app, log)
        self._server = LoopbackServer("mail", http_listener, app, self.faults, log)

    def start(self) -> None:
        """Take mail."""
        self._controller.start()
        self._server.start()

    def stop(self) -> None:
        """Stop at once."""
        self._server.stop()
        self._controller.stop(no_assert=True)

    def ledger(self) -> dict[str, Any]:
        """Every accepted message."""
        return {
            "mails": [
                {
                    "number": mail.number,
                    "path": str(mail.path),
                    "from": mail.sender,
                    "to": list(mail.recipients),
                    "subject": mail.subject,
                    "message_id": mail.message_id,
                    "links": list(mail.links),
                }
                for mail in self.mails.all()
            ]
        }


def _mail_routes(mails: MailFolder) -> Blueprint:
    routes = Blueprint("mails", __name__)

    @routes.get("/mails/<int:number>.eml")
    def show(number: int) -> Response | tuple[Response, int]:
        for mail in mails.all():
            if mail.number == number:
                return send_file(mail.path, mimetype="message/rfc822", max_age=0)
        return jsonify({"error": "no such mail"}), 404

    return routes
