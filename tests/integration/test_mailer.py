"""Owns the checks of what goes over the wire to a mail server, against real ones. Called by pytest."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations import mailer as mailer_module
from smi_workflow.integrations.mailer import Letter, Mailer

SENDER = "The Shop <no-reply@shop.example>"
LETTER = Letter(
    to="jane@example.com",
    subject="Größe: 4096",
    text="Line one\n.line that starts with a dot\nhttps://shop.example/" + "x" * 200 + "\n",
    html="<p>Größe</p>\n",
    message_id="<effect-1@shop.example>",
)


class Inbox:
    """An aiosmtpd handler that keeps what it takes, and answers as it is told."""

    def __init__(self, **replies: str) -> None:
        self.replies = replies
        self.envelopes: list[Any] = []
        self.names: list[str] = []
        self.tls: list[bool] = []
        self.logged_in: list[bool] = []

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.names.append(hostname)
        return responses

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        envelope.mail_from = address
        return self.replies.get("mail", "250 OK")

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        envelope.rcpt_tos.append(address)
        return self.replies.get("rcpt", "250 OK")

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.replies.get("data") == "close":
            server.transport.abort()
            return "250 never read"
        self.envelopes.append(envelope)
        self.logged_in.append(session.authenticated)
        self.tls.append(session.ssl is not None or server.transport.get_extra_info("ssl_object") is not None)
        return self.replies.get("data", "250 OK")

    def letter(self) -> EmailMessage:
        (envelope,) = self.envelopes
        message = message_from_bytes(envelope.original_content, policy=default)
        assert isinstance(message, EmailMessage)
        return message


class Server(Controller):
    """aiosmtpd on a port that the system picks."""

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


@contextmanager
def serving(inbox: Inbox, **options: Any) -> Iterator[int]:
    server = Server(inbox, hostname="127.0.0.1", port=0, **options)
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


@contextmanager
def scripted(talk: Callable[[socket.socket], None]) -> Iterator[tuple[int, list[int]]]:
    """A server for misbehaviour that aiosmtpd is too polite for; counts its connections."""
    connections: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(1)
                with connection:
                    try:
                        talk(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield listener.getsockname()[1], connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def conversation(*replies: bytes) -> Callable[[socket.socket], None]:
    """Greets, then gives one reply for each command; the letter's text counts as one."""

    def talk(connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        connection.sendall(replies[0])
        for reply in replies[1:]:
            line = stream.readline()
            if not line:
                return
            if not line.upper().startswith((b"EHLO", b"HELO", b"MAIL", b"RCPT", b"DATA", b"QUIT", b"RSET")):
                while line not in (b".\r\n", b""):
                    line = stream.readline()
            connection.sendall(reply)

    return talk


def mailer(port: int, login: str = "", seconds: float = 20.0, scheme: str = "smtp") -> Mailer:
    return Mailer(f"{scheme}://{login}127.0.0.1:{port}", SENDER, timeout_seconds=seconds)


def test_a_letter_arrives_whole() -> None:
    inbox = Inbox()
    with serving(inbox) as port:
        mailer(port).send(LETTER)
    (envelope,) = inbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("no-reply@shop.example", ["jane@example.com"])
    assert inbox.names == ["shop.example"]
    assert envelope.original_content.isascii()
    letter = inbox.letter()
    assert letter["From"] == "The Shop <no-reply@shop.example>"
    assert letter["To"] == "jane@example.com"
    assert letter["Subject"] == "Größe: 4096"
    assert letter["Message-ID"] == "<effect-1@shop.example>"
    assert letter["Auto-Submitted"] == "auto-generated"
    assert letter["Date"].datetime.tzinfo is not None
    assert letter.get_content_type() == "multipart/alternative"
    text, html = letter.iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert text.get_content().replace("\r\n", "\n") == LETTER.text
    assert html.get_content().replace("\r\n", "\n") == LETTER.html


def test_a_sender_of_ip_and_an_international_recipient() -> None:
    inbox = Inbox()
    with serving(inbox) as port:
        sender = Mailer(f"smtp://127.0.0.1:{port}", "no-reply@127.0.0.1")
        sender.send(Letter("jane@müller.example", "s", "t\n", "h\n", "<" + "e" * 100 + "@127.0.0.1>"))
    assert inbox.names == ["[127.0.0.1]"]
    assert inbox.envelopes[0].rcpt_tos == ["jane@xn--mller-kva.example"]
    assert inbox.letter()["Message-ID"] == "<" + "e" * 100 + "@127.0.0.1>"


@pytest.mark.parametrize(
    ("replies", "code", "status"),
    [
        ({"mail": "550 not you"}, "sender_refused", 550),
        ({"rcpt": "550 no such user <jane@example.com>"}, "recipient_refused", 550),
        ({"data": "554 smells of spam"}, "message_refused", 554),
    ],
)
def test_final_refusals(replies: dict[str, str], code: str, status: int) -> None:
    inbox = Inbox(**replies)
    with serving(inbox) as port, pytest.raises(ServiceRefused) as refused:
        mailer(port).send(LETTER)
    assert (refused.value.service, refused.value.code, refused.value.status) == ("mail", code, status)
    assert "jane" not in str(refused.value)


@pytest.mark.parametrize(
    "replies", [{"mail": "451 later"}, {"rcpt": "450 greylisted"}, {"rcpt": "451 later"}, {"data": "452 full"}]
)
def test_a_busy_server_is_tried_again_later(replies: dict[str, str]) -> None:
    inbox = Inbox(**replies)
    with serving(inbox) as port, pytest.raises(ServiceUnavailable) as busy:
        mailer(port).send(LETTER)
    assert busy.value.status == int(next(iter(replies.values()))[:3])
    assert not busy.value.outcome_unknown


def test_a_connection_that_breaks_after_the_text_leaves_the_outcome_unknown() -> None:
    inbox = Inbox(data="close")
    with serving(inbox) as port, pytest.raises(ServiceUnavailable) as lost:
        mailer(port).send(LETTER)
    assert lost.value.outcome_unknown


OK = b"250 OK\r\n"
HELLO = b"220 ready\r\n"
GO = b"354 go on\r\n"


@pytest.mark.parametrize(
    ("replies", "unknown"),
    [
        ([b""], False),
        ([b"554 go away\r\n"], False),
        ([b"421 busy\r\n"], False),
        ([b"nonsense\r\n"], False),
        ([HELLO], False),
        ([HELLO, b"421 busy\r\n", b"421 busy\r\n"], False),
        ([HELLO, OK], False),
        ([HELLO, OK, OK], False),
        ([HELLO, OK, OK, b"421 busy\r\n"], False),
        ([HELLO, OK, OK, OK], True),
        ([HELLO, OK, OK, OK, b"451 later\r\n"], False),
        ([HELLO, OK, OK, OK, GO], True),
        ([HELLO, OK, OK, OK, GO, b"what?\r\n"], True),
        ([HELLO, OK, OK, OK, GO, b"x" * 10_000 + b"\r\n"], True),
    ],
)
def test_wherever_it_breaks_it_breaks_once(replies: list[bytes], unknown: bool) -> None:
    with scripted(conversation(*replies)) as (port, connections):
        with pytest.raises(ServiceUnavailable) as lost:
            mailer(port).send(LETTER)
        assert lost.value.outcome_unknown is unknown
        assert len(connections) == 1


@pytest.mark.parametrize("goodbye", [[], [b"500 what?\r\n"], [b"nonsense\r\n"]])
def test_a_bad_goodbye_does_not_undo_a_letter_that_was_taken(goodbye: list[bytes]) -> None:
    with scripted(conversation(HELLO, OK, OK, OK, GO, OK, *goodbye)) as (port, connections):
        mailer(port).send(LETTER)
        assert len(connections) == 1


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceUnavailable) as absent:
            mailer(taken.getsockname()[1]).send(LETTER)
    assert not absent.value.outcome_unknown
    with pytest.raises(ServiceUnavailable):
        Mailer("smtp://mail.invalid", SENDER).send(LETTER)


@pytest.mark.parametrize("first", [b"", b"220-"])
def test_a_silent_or_endless_server_is_given_up(first: bytes) -> None:
    over = threading.Event()
    outlasted = []

    def talk(connection: socket.socket) -> None:
        for _ in range(100):
            connection.sendall(first)
            if over.wait(0.1):
                return
        outlasted.append(True)
        conversation(b"220 at last\r\n", OK, OK, OK, GO, OK)(connection)

    with scripted(talk) as (port, connections):
        with pytest.raises(ServiceUnavailable):
            mailer(port, seconds=0.5).send(LETTER)
        # Ten seconds of trickle: whoever is still reading at its end was not cut off.
        assert outlasted == []
        over.set()
        assert len(connections) == 1


def accept_jane(server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword) -> AuthResult:
    fits = isinstance(data, LoginPassword) and (data.login, data.password) == (b"jane@x", b"p/w d")
    return AuthResult(success=fits, handled=fits, message=None if fits else "535 5.7.8 no")


def test_a_login_is_decoded_and_used() -> None:
    inbox = Inbox()
    with serving(inbox, authenticator=accept_jane, auth_require_tls=False) as port:
        mailer(port, "jane%40x:p%2Fw%20d@").send(LETTER)
        with pytest.raises(ServiceRefused) as refused:
            mailer(port, "jane%40x:hidden@").send(LETTER)
    assert inbox.logged_in == [True]
    assert refused.value.code == "login_refused"
    assert "hidden" not in str(refused.value)


def test_a_server_without_logins_is_named() -> None:
    with serving(Inbox()) as port, pytest.raises(ServiceRefused) as refused:
        mailer(port, "jane:hidden@").send(LETTER)
    assert refused.value.code == "login_refused"


def test_a_password_is_not_sent_in_the_clear_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailer_module, "_is_loopback", lambda host: False)
    inbox = Inbox()
    with serving(inbox, authenticator=accept_jane, auth_require_tls=False) as port:
        with pytest.raises(ServiceRefused) as refused:
            mailer(port, "jane%40x:p%2Fw%20d@").send(LETTER)
        assert refused.value.code == "tls_missing"
        assert inbox.envelopes == []
        mailer(port).send(LETTER)
    assert inbox.tls == [False]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    tool = shutil.which("openssl")
    if tool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("openssl makes the test's certificate, and is not here")
        pytest.skip("openssl makes the test's certificate, and is not here")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *(tool, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", os.fspath(key), "-out", os.fspath(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.fixture
def trusted(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(certificate[0]))


def test_tls_is_taken_where_it_is_offered(
    tls: ssl.SSLContext, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailer_module, "_is_loopback", lambda host: False)
    inbox = Inbox()
    with serving(inbox, tls_context=tls, authenticator=accept_jane) as port:
        mailer(port, "jane%40x:p%2Fw%20d@").send(LETTER)
    assert inbox.tls == [True]


def test_tls_is_not_asked_of_a_relay_on_this_machine(tls: ssl.SSLContext) -> None:
    inbox = Inbox()
    with serving(inbox, tls_context=tls) as port:
        mailer(port).send(LETTER)
    assert inbox.tls == [False]


def test_tls_from_the_start(tls: ssl.SSLContext, trusted: None) -> None:
    inbox = Inbox()
    with serving(inbox, ssl_context=tls) as port:
        mailer(port, scheme="smtps").send(LETTER)
    assert inbox.tls == [True]


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailer_module, "_is_loopback", lambda host: False)
    inbox = Inbox()
    with serving(inbox, tls_context=tls) as port, pytest.raises(ServiceUnavailable):
        mailer(port).send(LETTER)
    with serving(inbox, ssl_context=tls) as port, pytest.raises(ServiceUnavailable):
        mailer(port, scheme="smtps").send(LETTER)
    assert inbox.envelopes == []
