"""Owns what our mails say: templates, filters, addresses. Called by mailer.py and effects/notice.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    StrictUndefined,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
    Undefined,
    UndefinedError,
    select_autoescape,
)

from smi_workflow.errors import ConfigError, InvalidInput

TEMPLATES: Final = ("download_ready", "job_failed", "refund_sent", "download_expiring", "admin_notice")
SYMBOLS: Final = {"usd": "$", "eur": "€", "gbp": "£"}
# Stripe's documentation, "Supported currencies".
ZERO_DECIMAL: Final = frozenset(
    {
        *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"),
        *("pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof", "xpf"),
    }
)
THREE_DECIMAL: Final = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
# Not strftime's %B, which follows the process's locale.
MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
SUBJECT: Final = "Subject: "

_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?P<local>{_LOCAL})@(?P<host>{_HOST})", re.ASCII)
_MESSAGE_ID_LEFT = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail, ready to be sent."""

    to: str
    subject: str
    text: str
    html: str
    message_id: str


class LetterWriter:
    """Writes letters from `<name>.txt.jinja` (first line `Subject: …`) and `<name>.html.jinja`.

    Args:
        overrides: a folder whose files replace ours of the same name, the layout included.
    """

    def __init__(self, overrides: Path | None = None) -> None:
        folders = [Path(__file__).parent / "mail_templates"]
        if overrides is not None:
            if not overrides.is_dir():
                raise ConfigError("The mail templates cannot be read:", [f"{overrides} is not a folder"])
            folders.insert(0, overrides)
        self._environment = Environment(
            loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
            autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters: dict[str, Callable[..., str]] = {"money": money, "utc": readable_utc, "one_line": one_line}
        self._environment.filters |= {name: _needing_values(each) for name, each in filters.items()}

    def write(self, template: str, to: str, context: Mapping[str, object], *, message_id: str) -> Letter:
        """Fill in a template.

        Args:
            template: one of TEMPLATES.
            context: the keys that the template's head names; more do no harm.
            message_id: from `make_message_id`, the same for the same effect.
        Raises:
            InvalidInput: an unknown template, a missing or odd context key.
            ConfigError: an override that is no valid template.
        """
        if template not in TEMPLATES:
            raise InvalidInput("template", f"there is no {template!r}; there are {', '.join(TEMPLATES)}")
        text = self._render(f"{template}.txt.jinja", context).lstrip()
        html = self._render(f"{template}.html.jinja", context).strip() + "\n"
        head, _, body = text.partition("\n")
        if not head.startswith(SUBJECT):
            raise ConfigError("A mail template is wrong:", [f"{template}.txt.jinja must start with {SUBJECT}"])
        return Letter(
            to=to,
            subject=one_line(head.removeprefix(SUBJECT)),
            text=body.strip() + "\n",
            html=html,
            message_id=message_id,
        )

    def _render(self, name: str, context: Mapping[str, object]) -> str:
        try:
            return self._environment.get_template(name).render(context)
        except (TemplateNotFound, TemplateSyntaxError) as error:
            raise ConfigError("A mail template is wrong:", [f"{name}: {error}"]) from error
        except UndefinedError as error:
            raise InvalidInput("context", f"{name}: {error}") from error
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidInput("context", f"{name} cannot be filled in: {error}") from error


def _needing_values(function: Callable[..., str]) -> Callable[..., str]:
    def checked(*values: object) -> str:
        for value in values:
            # A missing key reaches a filter as an object; writing it out raises the error that names the key.
            if isinstance(value, Undefined):
                str(value)
        return function(*values)

    return checked


def money(amount: Decimal, currency: str) -> str:
    """Write an amount as people do: `$3.84`, `€1,200.00`, `3.84 SEK`, `384 JPY`.

    Args:
        amount: major units.
        currency: three letters, either case.
    """
    code = currency.lower() if isinstance(currency, str) else ""
    if not re.fullmatch("[a-z]{3}", code):
        raise InvalidInput("currency", "must be three letters")
    places = 0 if code in ZERO_DECIMAL else 3 if code in THREE_DECIMAL else 2
    if not isinstance(amount, Decimal) or not amount.is_finite():
        raise InvalidInput("amount", "must be a finite Decimal")
    try:
        rounded = amount.quantize(Decimal(1).scaleb(-places))
    except InvalidOperation as error:
        raise InvalidInput("amount", "is too large") from error
    number = f"{abs(rounded):,}"
    sign = "-" if rounded < 0 else ""
    return f"{sign}{SYMBOLS[code]}{number}" if code in SYMBOLS else f"{sign}{number} {code.upper()}"


def readable_utc(moment: datetime) -> str:
    """Write a moment as `5 March 2026, 14:05 UTC`."""
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidInput("datetime", "must be an aware datetime")
    there = moment.astimezone(UTC)
    return f"{there.day} {MONTHS[there.month - 1]} {there.year}, {there:%H:%M} UTC"


def one_line(value: object) -> str:
    """Fold line breaks and other control characters into single spaces."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", str(value)).split())


def check_address(field: str, value: str) -> tuple[str, str]:
    """Take an address apart.

    Returns: local part and host, the host in its ASCII form.
    Raises:
        InvalidInput: not one plain address; nothing of it is repeated in the text.
    """
    if not isinstance(value, str):
        raise InvalidInput(field, "is not a mail address")
    local, _, host = value.rpartition("@")
    try:
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise InvalidInput(field, "is not a mail address") from error
    if not _ADDRESS.fullmatch(f"{local}@{host}") or len(local) > 64 or len(local) + len(host) > 253:
        raise InvalidInput(field, "is not a mail address")
    return local, host


def check_sender(mail_from: str) -> tuple[str, str, str]:
    """Take a sender apart, bare or as `Name <address>`.

    Returns: name (may be empty), local part and host.
    Raises:
        InvalidInput: neither of the two forms.
    """
    name, bracket, rest = mail_from.rpartition("<")
    if (bracket and not rest.endswith(">")) or one_line(name) != name.strip(" "):
        raise InvalidInput("mail_from", "is not a mail address")
    local, host = check_address("mail_from", rest.removesuffix(">") if bracket else mail_from)
    return name.strip(' "'), local, host


def make_message_id(effect_id: str, mail_from: str) -> str:
    """Name a letter after the effect that owes it, so that a repeated one is told by its id.

    Args:
        mail_from: the sender; its host gives the right-hand side.
    """
    if not _MESSAGE_ID_LEFT.fullmatch(effect_id) or effect_id.strip(".") != effect_id:
        raise InvalidInput("effect_id", "cannot stand in a Message-ID")
    *_, host = check_sender(mail_from)
    return f"<{effect_id}@{host}>"
