"""Mail addresses, senders, subjects and ids: nothing of them adds a line to a letter.

Called by pytest, atheris.
"""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from email import message_from_bytes
from email.policy import default
from typing import Any

from hypothesis import strategies as st

from smi_workflow.errors import ConfigError, InvalidInput
from smi_workflow.integrations.letters import (
    TEMPLATES,
    Letter,
    LetterWriter,
    check_address,
    check_sender,
    make_message_id,
    money,
)
from smi_workflow.integrations.mailer import Mailer
from tests.fuzz.fuzzed import fuzzed
from tests.fuzz.made_up import scalars, texts

SENDER = "shop@example.com"
addresses = st.builds(
    "{}{}{}".format,
    st.sampled_from(["jane", "a.b", "a..b", ".", '"a b"', "é", "", "a\r\nBcc: x", "a,b"]) | texts,
    st.sampled_from(["@", "", "@@"]),
    st.sampled_from(["example.com", "[127.0.0.1]", "exämple.com", "-", "a..b", "x" * 300 + ".com", "example.com>"])
    | texts,
)
lines = st.text(max_size=60) | st.sampled_from(
    ["a\r\nBcc: x@example.com", "\r\n\r\nbody", "=?utf-8?q?a?=", "\u2028", "\x85"]
)


@fuzzed(300, value=addresses | texts)
def test_an_address_is_one_or_refused(value: str) -> None:
    try:
        local, host = check_address("email", value)
    except InvalidInput as refusal:
        # Nothing of it is repeated.
        assert str(refusal) == "email: is not a mail address"
        return
    assert f"{local}@{host}".isascii() and not set("\r\n<>, ") & set(local + host)


@fuzzed(200, value=addresses | st.builds("{} <{}>".format, lines, addresses), effect_id=texts | st.just("e1"))
def test_a_sender_and_an_id_are_good_or_refused(value: str, effect_id: str) -> None:
    with suppress(InvalidInput):
        check_sender(value)
    try:
        made = make_message_id(effect_id, value)
    except InvalidInput:
        return
    assert made.isascii() and not set("\r\n ") & set(made)


@fuzzed(
    200,
    to=addresses | st.just("jane@example.com"),
    subject=lines,
    text=lines,
    message_id=lines | st.just("<a@b.c>"),
)
def test_a_letter_has_the_lines_that_it_should(to: str, subject: str, text: str, message_id: str) -> None:
    mailer = Mailer("smtp://127.0.0.1:1", SENDER)
    try:
        _, data = mailer._compose(Letter(to=to, subject=subject, text=text, html="", message_id=message_id))
    except (InvalidInput, UnicodeError):
        # `send` tells the second as the first.
        return
    message = message_from_bytes(data, policy=default)
    assert (
        len(message.get_all("To", []))
        == len(message.get_all("Subject", []))
        == len(message.get_all("From", []))
        == 1
    )
    assert "Bcc" not in message


@fuzzed(
    200,
    template=st.sampled_from(sorted(TEMPLATES)) | texts,
    context=st.dictionaries(
        st.sampled_from(["job_id", "download_url", "expires_at", "width", "height", "reason", "charged", "amount",
                         "currency", "headline", "details", "admin_url"]),
        scalars | st.decimals() | st.datetimes() | st.dictionaries(texts, texts, max_size=2),
    ),
)  # fmt: skip
def test_a_template_is_filled_in_or_the_context_refused(template: str, context: dict[str, Any]) -> None:
    try:
        letter = LetterWriter().write(template, "jane@example.com", context, message_id="<a@b.c>")
    except InvalidInput:
        return
    assert "\n" not in letter.subject and "\r" not in letter.subject


@fuzzed(
    200, amount=st.decimals() | st.just(Decimal("3.84")), currency=texts | st.sampled_from(["usd", "jpy", "kwd"])
)
def test_money_is_written_or_refused(amount: Decimal, currency: str) -> None:
    with suppress(InvalidInput):
        assert money(amount, currency)


@fuzzed(200, url=texts | st.builds("{}://{}{}".format, st.sampled_from(["smtp", "smtps", "http"]), texts, texts))
def test_a_mail_server_is_one_or_a_setting_to_correct(url: str) -> None:
    with suppress(ConfigError):
        Mailer(url, SENDER)
