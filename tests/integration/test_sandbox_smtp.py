"""Owns the checks of the mail sink, and of the sandbox as a process. Called by pytest."""

from __future__ import annotations

import signal
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from smi_workflow.errors import ConfigError
from smi_workflow.sandbox import Sandbox, SandboxConfig
from tests.support.sandbox import running_sandbox, sandbox_command, start_sandbox_process, wait_until

JANE = "jane@example.org"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path) as running:
        yield running


def mail(to: str = JANE) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "shop@example.org"
    message["To"] = to
    message["Subject"] = "Your image is ready, Jörg"
    message["Message-ID"] = "<1@shop.example.org>"
    message.set_content("Here: https://shop.example/download/abc123?x=1.\nUntil tomorrow.\n.\nA lone dot above.\n")
    message.add_alternative('<a href="https://shop.example/other">here</a>', subtype="html")
    return message


def connect(sandbox: Sandbox) -> smtplib.SMTP:
    address = urlsplit(sandbox.mail.url)
    return smtplib.SMTP(address.hostname or "", address.port or 0, timeout=10)


def send(sandbox: Sandbox, message: EmailMessage) -> None:
    with connect(sandbox) as connection:
        connection.send_message(message)


def order(sandbox: Sandbox, match: dict[str, Any], fault: dict[str, Any], times: int = 1) -> None:
    rule = {"match": match, "fault": fault, "times": times}
    assert requests.post(f"{sandbox.mail.http_url}/_sandbox/faults", json=rule, timeout=10).status_code == 201


def mails(sandbox: Sandbox) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = requests.get(f"{sandbox.mail.http_url}/_sandbox/ledger", timeout=10).json()[
        "mails"
    ]
    return listed


def test_a_mail_is_kept_as_a_file_and_listed(sandbox: Sandbox) -> None:
    send(sandbox, mail())
    send(sandbox, mail("joe@example.org"))
    first, second = mails(sandbox)
    assert (first["to"], first["message_id"]) == ([JANE], "<1@shop.example.org>")
    assert first["subject"] == "Your image is ready, Jörg"
    assert first["links"] == ["https://shop.example/download/abc123?x=1"]
    names = [Path(row["path"]).name for row in (first, second)]
    assert [name[:7] for name in names] == ["000001-", "000002-"]
    assert names[0][7:] != names[1][7:]
    kept = message_from_bytes(Path(first["path"]).read_bytes(), policy=default_policy)
    body = kept.get_body(("plain",))
    assert body is not None
    assert "\n.\nA lone dot above." in body.get_content().replace("\r\n", "\n")
    assert (
        requests.get(f"{sandbox.mail.http_url}/mails/1.eml", timeout=10).content
        == Path(first["path"]).read_bytes()
    )
    assert requests.get(f"{sandbox.mail.http_url}/mails/9.eml", timeout=10).status_code == 404


def test_anyone_may_log_in(sandbox: Sandbox) -> None:
    with connect(sandbox) as connection:
        connection.login("shop", "secret")
        connection.send_message(mail())
    assert len(mails(sandbox)) == 1


def test_a_bouncing_address_is_refused_for_good(sandbox: Sandbox) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
        send(sandbox, mail("Bounce@example.org"))
    assert caught.value.recipients["Bounce@example.org"][0] == 550
    assert mails(sandbox) == []


def test_a_recipient_is_refused_for_now_twice(sandbox: Sandbox) -> None:
    order(sandbox, {"smtp": "rcpt", "address": "jane@*"}, {"kind": "refuse", "status": 451}, times=2)
    send(sandbox, mail("joe@example.org"))
    for _ in range(2):
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            send(sandbox, mail())
        assert caught.value.recipients[JANE][0] == 451
    send(sandbox, mail())
    assert [row["to"] for row in mails(sandbox)] == [["joe@example.org"], [JANE]]


def test_the_message_itself_can_be_refused(sandbox: Sandbox) -> None:
    order(sandbox, {"smtp": "data"}, {"kind": "refuse", "status": 554, "text": "5.7.1 Spam"})
    with pytest.raises(smtplib.SMTPDataError) as caught:
        send(sandbox, mail())
    assert (caught.value.smtp_code, caught.value.smtp_error) == (554, b"5.7.1 Spam")


@pytest.mark.parametrize(("kind", "kept"), [("reset", 0), ("reset_after", 1)])
def test_the_connection_can_break_before_or_after_the_mail_is_kept(sandbox: Sandbox, kind: str, kept: int) -> None:
    order(sandbox, {"smtp": "data"}, {"kind": kind})
    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(sandbox, mail())
    assert len(mails(sandbox)) == kept
    send(sandbox, mail())
    assert len(mails(sandbox)) == kept + 1


def test_a_slow_server_keeps_the_mail_after_the_client_gave_up(sandbox: Sandbox) -> None:
    order(sandbox, {"smtp": "data"}, {"kind": "slow", "seconds": 0.5})
    connection = connect(sandbox)
    assert connection.sock is not None
    connection.sock.settimeout(0.1)
    with pytest.raises((TimeoutError, smtplib.SMTPServerDisconnected)):
        connection.send_message(mail())
    wait_until(lambda: len(mails(sandbox)) == 1)
    connection.close()


def test_stopping_does_not_wait_for_an_idle_client(tmp_path: Path) -> None:
    with running_sandbox(tmp_path) as sandbox:
        connection = connect(sandbox)
        connection.ehlo()
    with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
        connection.noop()
        connection.noop()
    connection.close()


def test_a_taken_port_is_refused_clearly_and_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} .--smtp-port.: Address already in use"):
            Sandbox(SandboxConfig(tmp_path, smtp_port=port))
        result = subprocess.run(
            sandbox_command(tmp_path, ["--stripe-port", str(port)]), capture_output=True, text=True, timeout=60
        )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith(f"sandbox: cannot listen on 127.0.0.1:{port}")
    assert "Traceback" not in result.stderr
    with pytest.raises(ConfigError, match=r"0-65535"):
        Sandbox(SandboxConfig(tmp_path, smtp_port=70000))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_serves_everything_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    sandbox = start_sandbox_process(tmp_path, ["--seed", "1"])
    try:
        assert sandbox.addresses["pid"] == sandbox.process.pid
        for name in ("stripe", "upsampler", "mail_http"):
            answer = requests.get(f"{sandbox.addresses[name]}/_sandbox/ledger", timeout=10)
            assert answer.status_code == 200
        address = urlsplit(sandbox.addresses["smtp"])
        with smtplib.SMTP(address.hostname or "", address.port or 0, timeout=10) as connection:
            connection.send_message(mail())
        hanging = f"{sandbox.addresses['stripe']}/_sandbox/faults"
        requests.post(hanging, json={"match": {"path": "/v1"}, "fault": {"kind": "hang"}}, timeout=10)
        with pytest.raises(requests.ReadTimeout):
            requests.get(f"{sandbox.addresses['stripe']}/v1/events", timeout=0.2)
    finally:
        code, output = sandbox.stop(number)
    assert (code, output) == (0, "")
    assert len(list((tmp_path / "mails").glob("000001-*.eml"))) == 1
    assert "/_sandbox/ledger 200" in (tmp_path / "sandbox.log").read_text()


def test_nothing_of_a_stack_trace_reaches_the_terminal(tmp_path: Path) -> None:
    sandbox = start_sandbox_process(tmp_path)
    try:
        base = sandbox.addresses["stripe"]
        with socket.create_connection(("127.0.0.1", int(base.rsplit(":", 1)[1]))) as raw:
            raw.sendall(b"\x16\x03\x01 not http\r\n\r\n")
            raw.recv(100)
        requests.post(f"{base}/v1/refunds", data=b"\xff\xfe", timeout=10)
        address = urlsplit(sandbox.addresses["smtp"])
        with socket.create_connection((address.hostname or "", address.port or 0)) as raw:
            raw.sendall(b"\xff\xfe\r\nDATA\r\n")
            raw.recv(100)
    finally:
        code, output = sandbox.stop()
    assert (code, output) == (0, "")
