"""Owns the way of a letter to the mail server. Called by effects/notice.py and app.py."""

from __future__ import annotations

import ipaddress
import re
import smtplib
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from urllib.parse import unquote, urlsplit

from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import ConfigError, InvalidInput, ServiceError, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.deadline import Deadline
from smi_workflow.integrations.letters import (
    Letter,
    LetterWriter,
    check_address,
    check_sender,
    make_message_id,
    one_line,
)

__all__ = ["Letter", "LetterWriter", "Mailer", "make_message_id"]

SERVICE = "mail"
# 7bit: no server on the way needs 8BITMIME.
POLICY = SMTP.clone(cte_type="7bit")
_MESSAGE_ID = re.compile(r"<[!-;=?A-~]+@[!-;=?A-~]+>", re.ASCII)
_MAIL_ADDRESS = re.compile(r"[^\s@'\"<>:]+@[^\s@'\"<>:]+")


class _Connection(smtplib.SMTP):
    """smtplib's client under a deadline, with TLS from the start if asked."""

    def __init__(
        self, host: str, port: int, deadline: Deadline, tls: ssl.SSLContext | None, own_name: str
    ) -> None:
        self._deadline = deadline
        self._tls = tls
        super().__init__(host, port, local_hostname=own_name, timeout=deadline.seconds)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        plain = socket.create_connection((host, port), timeout)
        try:
            self._deadline.guard(plain)
            return plain if self._tls is None else self._tls.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise


class Mailer:
    """Sends letters, one connection each; safe in threads.

    Args:
        smtp_url: `smtp://[user:password@]host[:port]` (STARTTLS where the server offers it, loopback
            excepted; port 25) or `smtps://…` (TLS from the start; port 465). User and password
            percent-encoded; they are never sent in the clear to another host.
        mail_from: the sender's address, bare or as `Name <address>`.
        timeout_seconds: total time of one `send`.
    Raises:
        ConfigError: a URL or address that cannot be used; the password is not repeated.
    """

    def __init__(self, smtp_url: str, mail_from: str, *, timeout_seconds: float = 20.0) -> None:
        problems = []
        try:
            self._read_url(smtp_url)
        except ValueError as error:
            problems.append(f"the SMTP URL {error}")
        try:
            name, local, host = check_sender(mail_from)
            self._sender = Address(display_name=name, username=local, domain=host)
        except InvalidInput as error:
            problems.append(f"the sender {error.problem}")
        if timeout_seconds <= 0:
            problems.append("the mail time-out must be above 0 seconds")
        if problems:
            raise ConfigError("Mail cannot be sent with these settings:", problems)
        self._timeout_seconds = timeout_seconds

    def __repr__(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"Mailer({'smtps' if self._tls else 'smtp'}://{host}:{self._port})"

    def send(self, letter: Letter) -> None:
        """Hand one letter to the mail server, once.

        There are no keys in SMTP: after an unknown outcome a second try may give a second copy, with the
        same Message-ID, and with the same link in it.

        Raises:
            InvalidInput: an address, subject or Message-ID that cannot stand in a header.
            ServiceUnavailable: no connection, a busy server, a 4xx reply; `outcome_unknown` when the
                connection broke after DATA.
            ServiceRefused: final; code `recipient_refused`, `sender_refused`, `message_refused`,
                `login_refused` or `tls_missing`.
        """
        try:
            to, data = self._compose(letter)
        except UnicodeError as error:
            raise InvalidInput("letter", "holds characters that cannot be written as UTF-8") from error
        under_way = False
        with Deadline(self._timeout_seconds) as deadline:
            connection: smtplib.SMTP | None = None
            try:
                reach(Point.CALL_READY)
                connection = self._open(deadline)
                _expect(connection.mail(self._sender.addr_spec), "sender_refused")
                _expect(connection.rcpt(to), "recipient_refused")
                under_way = True
                _expect(connection.data(data), "message_refused")
                reach(Point.CALL_ANSWERED)
            except smtplib.SMTPDataError as error:
                raise _failure(error.smtp_code, error.smtp_error, "message_refused") from error
            except smtplib.SMTPResponseException as error:
                raise ServiceUnavailable(
                    SERVICE,
                    _quoted(error.smtp_code, error.smtp_error),
                    code="not_ready",
                    status=error.smtp_code,
                    outcome_unknown=under_way,
                ) from error
            except (smtplib.SMTPException, OSError, ValueError) as error:
                raise ServiceUnavailable(
                    SERVICE,
                    f"no proper answer ({type(error).__name__})",
                    code="no_answer",
                    outcome_unknown=under_way,
                ) from error
            finally:
                # The letter is accepted or not by now: a bad goodbye must not cause a second copy.
                if connection is not None:
                    with suppress(smtplib.SMTPException, OSError):
                        connection.quit()
                    connection.close()

    def _open(self, deadline: Deadline) -> smtplib.SMTP:
        host = self._sender.domain
        own_name = f"[{host}]" if _is_ip(host) else host
        tls = ssl.create_default_context() if self._tls else None
        connection = _Connection(self._host, self._port, deadline, tls, own_name)
        try:
            connection.ehlo_or_helo_if_needed()
            secure = self._tls or _is_loopback(self._host)
            if not secure and connection.has_extn("starttls"):
                connection.starttls(context=ssl.create_default_context())
                connection.ehlo_or_helo_if_needed()
                secure = True
            if self._user is not None:
                if not secure:
                    raise ServiceRefused(
                        SERVICE, "the server offers no TLS: the password stays here", code="tls_missing"
                    )
                self._log_in(connection, self._user)
        except BaseException:
            connection.close()
            raise
        return connection

    def _log_in(self, connection: smtplib.SMTP, user: str) -> None:
        try:
            connection.login(user, self._password)
        except smtplib.SMTPAuthenticationError as error:
            raise _failure(error.smtp_code, error.smtp_error, "login_refused") from error
        except (smtplib.SMTPResponseException, smtplib.SMTPServerDisconnected):
            raise
        except smtplib.SMTPException as error:
            raise ServiceRefused(
                SERVICE, "the server offers no login that we know", code="login_refused"
            ) from error

    def _compose(self, letter: Letter) -> tuple[str, bytes]:
        local, host = check_address("to", letter.to)
        if one_line(letter.subject) != letter.subject:
            raise InvalidInput("subject", "must be one line without control characters")
        if not _MESSAGE_ID.fullmatch(letter.message_id) or len(letter.message_id) > 400:
            raise InvalidInput("message_id", "must be <left@right>")
        message = EmailMessage(policy=POLICY)
        message["From"] = self._sender
        message["To"] = Address(username=local, domain=host)
        message["Subject"] = letter.subject
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Message-ID"] = letter.message_id
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(letter.text)
        message.add_alternative(letter.html, subtype="html")
        return f"{local}@{host}", message.as_bytes()

    def _read_url(self, url: str) -> None:
        # Each text must hold nothing of the URL: it may carry a password anywhere.
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtps"):
            raise ValueError("must start with smtp:// or smtps://")
        try:
            port = parts.port
        except ValueError:
            raise ValueError("has no usable port; percent-encode what is special in the password") from None
        if not parts.hostname or re.search(r"[\s\x00-\x1f]", parts.hostname) or port == 0:
            raise ValueError("names no host")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("goes on after the host; percent-encode what is special in the password")
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password or "")
        if not f"{user}{password}".isascii() or not f"{user}{password}".isprintable():
            raise ValueError("has a user or password that is not printable ASCII")
        if (user is None) != (password == ""):
            raise ValueError("needs both user and password, or neither")
        self._tls = parts.scheme == "smtps"
        self._host = parts.hostname
        self._port = port or (465 if self._tls else 25)
        self._user = user
        self._password = password


def _expect(reply: tuple[int, bytes], code: str) -> None:
    if not 200 <= reply[0] < 300:
        raise _failure(*reply, code)


def _failure(status: int, answer: bytes | str, code: str) -> ServiceError:
    message = _quoted(status, answer)
    if 500 <= status < 600:
        return ServiceRefused(SERVICE, message, code=code, status=status)
    # A 4xx says that nothing was taken on; what is no SMTP reply at all says nothing.
    unknown = code == "message_refused" and not 400 <= status < 500
    return ServiceUnavailable(SERVICE, message, code=code, status=status, outcome_unknown=unknown)


def _quoted(status: int, answer: bytes | str) -> str:
    # Servers repeat the recipient; error texts are kept longer than personal data may be.
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    return f"{status} {_MAIL_ADDRESS.sub('<address>', one_line(text))[:300]}"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)
