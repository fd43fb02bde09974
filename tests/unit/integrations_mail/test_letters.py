"""Owns the checks of what our mails say. Called by pytest."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.errors import ConfigError, InvalidInput
from smi_workflow.integrations.letters import (
    TEMPLATES,
    LetterWriter,
    check_address,
    make_message_id,
    money,
    one_line,
    readable_utc,
)

LINK = "https://shop.example/download/abc?x=1&y=2"
CONTEXT: dict[str, Any] = {
    "job_id": "job_1",
    "download_url": LINK,
    "expires_at": datetime(2026, 3, 5, 14, 5, tzinfo=UTC),
    "width": 4096,
    "height": 2160,
    "reason": "The upscaling service did not answer.",
    "charged": True,
    "amount": Decimal("3.84"),
    "currency": "usd",
    "headline": "A refund failed",
    "details": {"Refund": "re_1"},
    "admin_url": "https://shop.example/admin/jobs/job_1",
}
ID = "<effect@shop.example>"


def write(template: str, **changes: Any) -> Any:
    return LetterWriter().write(template, "jane@example.com", {**CONTEXT, **changes}, message_id=ID)


class Page(HTMLParser):
    """Collects what a mail client would load or follow, and that tags are closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "srcset", "background", "poster", "href", "action"):
                self.loads.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_gives_a_whole_letter(template: str) -> None:
    letter = write(template)
    assert (letter.to, letter.message_id) == ("jane@example.com", ID)
    assert letter.subject
    assert "\n" not in letter.subject
    assert not letter.text.startswith("Subject")
    page = Page(letter.html)
    assert page.loads == []
    assert not re.search(r"@import|url\(|<script|<img|<link", letter.html)
    assert letter.html.startswith("<!DOCTYPE html>")
    assert "prefers-color-scheme: dark" in letter.html
    assert "max-width: 480px" in letter.html
    assert "job_1" in letter.text
    assert "job_1" in "".join(page.words)
    assert "{" not in letter.text


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_template_names_at_its_head_the_keys_that_it_needs(template: str) -> None:
    folder = Path(__file__).parents[3] / "smi_workflow" / "integrations" / "mail_templates"
    for kind in ("txt", "html"):
        head = (folder / f"{template}.{kind}.jinja").read_text().split("#}")[0]
        named = {key: value for key, value in CONTEXT.items() if re.search(rf"\b{key}\b", head)}
        LetterWriter().write(template, "jane@example.com", named, message_id=ID)
        for key in named:
            rest = {name: value for name, value in named.items() if name != key}
            with pytest.raises(InvalidInput, match=key):
                LetterWriter().write(template, "jane@example.com", rest, message_id=ID)


@pytest.mark.parametrize("template", ["download_ready", "download_expiring"])
def test_the_link_and_its_end_are_in_both_forms(template: str) -> None:
    letter = write(template)
    assert LINK in letter.text
    assert Page(letter.html).links == [LINK, LINK]
    assert "5 March 2026, 14:05 UTC" in letter.text
    assert "5 March 2026, 14:05 UTC" in letter.html


def test_a_failed_job_says_what_becomes_of_the_money() -> None:
    paid = write("job_failed")
    assert "your money goes back" in paid.subject
    for text in (paid.text, paid.html):
        assert "$3.84" in text
        assert "not been charged" not in text
    unpaid = LetterWriter().write(
        "job_failed",
        "jane@example.com",
        {"job_id": "job_1", "reason": "No.", "charged": False, "returned": False},
        message_id=ID,
    )
    back = LetterWriter().write(
        "job_failed",
        "jane@example.com",
        {"job_id": "job_1", "reason": "No.", "charged": False, "returned": True},
        message_id=ID,
    )
    assert "your money went back" in back.subject
    for text in (back.text, back.html):
        assert "Your payment has already gone back to you." in text
        assert "not been charged" not in text
    assert "nothing was charged" in unpaid.subject
    for text in (unpaid.text, unpaid.html):
        assert "You have not been charged." in text
        assert "return" not in text


def test_a_notice_may_lack_job_details_and_address() -> None:
    letter = write("admin_notice", job_id=None, details={}, admin_url=None)
    assert letter.subject == "[action needed] A refund failed"
    assert "None" not in letter.text + letter.html
    assert Page(letter.html).links == []


def test_html_is_escaped_and_text_is_not() -> None:
    letter = write("admin_notice", reason='<b onload="x">&', details={"<i>": "</table>"})
    assert '<b onload="x">&' in letter.text
    assert "<b onload" not in letter.html
    assert "&lt;i&gt;" in letter.html
    Page(letter.html)


def test_a_subject_stays_one_line() -> None:
    letter = write("admin_notice", headline="one\r\nBcc: eve@example.com\x00\u2028two")
    assert letter.subject == "[action needed] one Bcc: eve@example.com two"
    assert "Bcc" not in letter.text


@pytest.mark.parametrize("template", ["", "layout", "../mailer", "nothing"])
def test_unknown_templates_are_refused(template: str) -> None:
    with pytest.raises(InvalidInput):
        write(template)


@pytest.mark.parametrize(
    ("template", "changes"),
    [
        ("download_ready", {"expires_at": datetime(2026, 3, 5)}),
        ("download_ready", {"expires_at": "tomorrow"}),
        ("refund_sent", {"amount": 3.84}),
        ("refund_sent", {"amount": Decimal("NaN")}),
        ("refund_sent", {"currency": "dollars"}),
        ("refund_sent", {"currency": None}),
        ("admin_notice", {"details": 3}),
    ],
)
def test_odd_values_are_refused(template: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        write(template, **changes)


def test_a_folder_of_ones_own_replaces_single_files(tmp_path: Path) -> None:
    (tmp_path / "refund_sent.txt.jinja").write_text("Subject: Money\t!\nBack: {{ amount|money(currency) }}")
    letter = LetterWriter(tmp_path).write("refund_sent", "jane@example.com", CONTEXT, message_id=ID)
    assert (letter.subject, letter.text) == ("Money !", "Back: $3.84\n")
    assert "Your refund is on its way" in letter.html


@pytest.mark.parametrize("source", ["no subject", "Subject: {{ broken", "Subject: x\n{% include 'gone' %}"])
def test_a_broken_replacement_is_a_matter_of_configuration(tmp_path: Path, source: str) -> None:
    (tmp_path / "refund_sent.txt.jinja").write_text(source)
    with pytest.raises(ConfigError, match=r"refund_sent\.txt\.jinja"):
        LetterWriter(tmp_path).write("refund_sent", "jane@example.com", CONTEXT, message_id=ID)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone"):
        LetterWriter(tmp_path / "gone")


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        ("3.84", "usd", "$3.84"),
        ("3.8", "EUR", "€3.80"),
        ("1234567.5", "gbp", "£1,234,567.50"),
        ("3.84", "sek", "3.84 SEK"),
        ("384", "jpy", "384 JPY"),
        ("1.5", "kwd", "1.500 KWD"),
        ("-3.84", "usd", "-$3.84"),
        ("0", "usd", "$0.00"),
    ],
)
def test_money_reads_as_people_write_it(amount: str, currency: str, text: str) -> None:
    assert money(Decimal(amount), currency) == text


def test_moments_are_given_in_utc() -> None:
    there = datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    assert readable_utc(there) == "31 December 2025, 22:30 UTC"


def test_lines_are_folded_into_one() -> None:
    assert one_line(" a\tb\r\nc\x85d ") == "a b c d"


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("jane@example.com", ("jane", "example.com")),
        ("no-reply@127.0.0.1", ("no-reply", "127.0.0.1")),
        ("o'neil+tag@sub.example.co", ("o'neil+tag", "sub.example.co")),
        ("root@localhost", ("root", "localhost")),
        ("jane@müller.example", ("jane", "xn--mller-kva.example")),
    ],
)
def test_addresses_are_taken_apart(address: str, parts: tuple[str, str]) -> None:
    assert check_address("to", address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "",
        "jane",
        "@example.com",
        "jane@",
        "a@b@c",
        "jane doe@example.com",
        "jane@example.com\r\nBcc: eve@example.com",
        "jane@example.com\n",
        "jane@exa mple.com",
        "jane@-example.com",
        "jane@example..com",
        "jane.@example.com",
        "<jane@example.com>",
        "jane@example.com,eve@example.com",
        "jäne@example.com",
        "jane@" + "ü" * 80 + ".example",
        "j" * 65 + "@example.com",
        "jane@" + "a." * 130 + "com",
        "jane@example.com\x00",
    ],
)
def test_what_is_not_one_plain_address_is_refused_unrepeated(address: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_address("to", address)
    assert str(refused.value) == "to: is not a mail address"


def test_a_message_id_depends_on_nothing_but_effect_and_host() -> None:
    assert make_message_id("01hx-9_a", "no-reply@shop.example") == "<01hx-9_a@shop.example>"
    assert make_message_id("01hx", "The Shop <no-reply@shop.example>") == "<01hx@shop.example>"


@pytest.mark.parametrize("effect_id", ["", "a b", "a>b", "a@b", "a\r\nb", ".a", "ü"])
def test_effect_ids_that_would_break_a_message_id_are_refused(effect_id: str) -> None:
    with pytest.raises(InvalidInput):
        make_message_id(effect_id, "no-reply@shop.example")
