"""Owns the checks of SMTP URLs and senders. Called by pytest."""

from __future__ import annotations

import pytest

from smi_workflow.errors import ConfigError, InvalidInput
from smi_workflow.integrations.mailer import Letter, Mailer

SENDER = "no-reply@shop.example"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("smtp://mail.example", "Mailer(smtp://mail.example:25)"),
        ("smtps://mail.example/", "Mailer(smtps://mail.example:465)"),
        ("smtp://jane%40x:p%2Fw%20d@mail.example:587", "Mailer(smtp://mail.example:587)"),
        ("smtp://[::1]:2525", "Mailer(smtp://[::1]:2525)"),
    ],
)
def test_usable_urls(url: str, shown: str) -> None:
    assert repr(Mailer(url, SENDER)) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.example:25",
        "http://hidden@mail.example",
        "smtp://",
        "smtp://:25",
        "smtp://jane:hidden@mail.example:port",
        "smtp://jane:hidden@mail.example:99999",
        "smtp://jane:hidden@mail.example:0",
        "smtp://jane:hidden/x@mail.example",
        "smtp://jane:hidden#x@mail.example",
        "smtp://jane:hidden@mail.example/path",
        "smtp://jane:hidden?x@mail.example",
        "smtp://jane@mail.example",
        "smtp://:hidden@mail.example",
        "smtp://jane:hidden%C3%BC@mail.example",
        "smtp://jane:hidden%0A@mail.example",
        "smtp://jane:hidden@[mail",
    ],
)
def test_urls_that_cannot_be_used_are_refused_unrepeated(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Mailer(url, SENDER)
    assert "hidden" not in str(refused.value)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(
    "sender", ["", "shop", "a@b\r\nBcc: c@d", "Shop\n <a@b.example>", "Shop <a@b.example", "Shop a@b.example>"]
)
def test_senders_that_cannot_be_used_are_refused(sender: str) -> None:
    with pytest.raises(ConfigError):
        Mailer("smtp://mail.example", sender)


def test_all_problems_are_listed_together() -> None:
    with pytest.raises(ConfigError) as refused:
        Mailer("", "", timeout_seconds=0)
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("to", "jane@example.com\r\nBcc: eve@example.com"),
        ("to", "jane"),
        ("subject", "a\r\nBcc: eve@example.com"),
        ("subject", "a\nb"),
        ("subject", "a\x00b"),
        ("subject", "\ud800"),
        ("text", "\ud800"),
        ("html", "\ud800"),
        ("message_id", "<a@b>\r\nBcc: eve@example.com"),
        ("message_id", "a@b"),
        ("message_id", "<a b@c>"),
        ("message_id", ""),
    ],
)
def test_letters_that_would_break_a_header_never_leave(field: str, value: str) -> None:
    fields = {"to": "jane@example.com", "subject": "s", "text": "t", "html": "h", "message_id": "<a@b>"}
    # Nothing listens there: the refusal comes before any connection.
    with pytest.raises(InvalidInput):
        Mailer("smtp://mail.invalid", SENDER).send(Letter(**{**fields, field: value}))
