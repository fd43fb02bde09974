"""Owns the checks of everything around the database: settings, schema, broker, providers, receivers, clocks, disk.

Called by doctor.py. Each looks once, for a few seconds at most, and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.engine.database import is_sqlite, read_stamp
from smi_workflow.engine.migrate import status
from smi_workflow.integrations.embedded_broker import embedded_broker_url
from smi_workflow.jobs.hooks import receivers
from smi_workflow.jobs.model import ScheduleState
from smi_workflow.jobs.pricing import MINIMUM_CENTS
from smi_workflow.jobs.schedule import PERIODIC, RUN_LONGEST, every
from smi_workflow.settings import Settings, without_password

PATIENCE_SECONDS = 5.0
DATABASE_CLOCK_SECONDS, STRIPE_CLOCK_SECONDS = 5.0, 60.0
FREE_BYTES_MIN = 1024**3
SCHEDULE_LATE = timedelta(minutes=15)
STRIPE_ITSELF = "api.stripe.com"
HERE = ("localhost", "127.0.0.1", "::1")
PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class Remark:
    """What a check found; a `wrong` one is to be mended, any other is worth knowing."""

    text: str
    wrong: bool = True


@dataclass(frozen=True, slots=True)
class Look:
    """One check of the surroundings."""

    name: str
    sentence: str
    remedy: str
    look: Callable[[App], Iterator[Remark]]


def check_settings(app: App) -> Iterator[Remark]:
    """What may be set, but should not be."""
    settings = app.settings
    parts = urlsplit(settings.public_url)
    local = (parts.hostname or "") in HERE
    if any(len(set(key)) < 10 for key in settings.secret_keys):
        yield Remark("SMI_SECRET_KEY looks guessable: make one with `openssl rand -hex 32`")
    if settings.livemode:
        if parts.scheme != "https":
            yield Remark("SMI_PUBLIC_URL is not https, and the Stripe key is a live one")
        if settings.allow_private_addresses:
            yield Remark("SMI_ALLOW_PRIVATE_ADDRESSES is on, and the Stripe key is a live one")
        if urlsplit(settings.stripe_api_base).hostname != STRIPE_ITSELF:
            yield Remark(f"SMI_STRIPE_API_BASE is not {STRIPE_ITSELF}, and the Stripe key is a live one")
        if "*" in settings.result_hosts:
            yield Remark("SMI_RESULT_HOSTS lets results come from any public host", wrong=False)
    else:
        yield Remark("the Stripe key is a test key: no real money moves", wrong=False)
        if parts.scheme != "https" and not local:
            yield Remark("SMI_PUBLIC_URL is not https: Stripe delivers live events over https only", wrong=False)
    yield from _prices(settings)
    if not settings.admin_email:
        yield Remark("SMI_ADMIN_EMAIL is not set: nobody is told when a person is needed", wrong=False)


def _prices(settings: Settings) -> Iterator[Remark]:
    """Upsampler's price is in dollars, and Stripe's least amounts are not published for every currency."""
    currency = settings.currency
    if currency != "usd" and "credit_cost" not in settings.model_fields_set:
        yield Remark(f"SMI_CREDIT_COST is not set: prices in {currency} rest on 0.04 dollars a credit")
    if currency not in MINIMUM_CENTS and not settings.price_minimum:
        yield Remark(
            f"SMI_PRICE_MINIMUM is not set: Stripe refuses less than about half a dollar, also in {currency}"
        )


def check_schema(app: App) -> Iterator[Remark]:
    """Every migration is applied, and none that this release does not know."""
    found = status(app.database, MIGRATIONS, prefix=app.settings.table_prefix)
    if found.pending:
        yield Remark(f"not applied yet: {', '.join(found.pending)}")
    if found.unknown:
        yield Remark(f"migrated by a newer release: {', '.join(found.unknown)}", wrong=False)


def check_broker(app: App) -> Iterator[Remark]:
    """The doorbell's server answers."""
    url = app.settings.broker_url or embedded_broker_url(app.settings.var_dir)
    embedded = not app.settings.broker_url
    if url is None:
        yield Remark("no embedded broker was ever started; the processes start it", wrong=False)
        return
    try:
        _knock(url)
    except OSError as error:
        who = "the embedded broker does not run; the processes start it" if embedded else without_password(url)
        yield Remark(f"{who} ({_cause(error)})", wrong=not embedded)


def check_stripe(app: App) -> Iterator[Remark]:
    """Stripe answers, takes our key, and has our time."""
    key = app.settings.stripe_api_key.get_secret_value()
    url = f"{app.settings.stripe_api_base}/v1/balance"
    answer = _get(url, headers={"Authorization": f"Bearer {key}"})
    if isinstance(answer, Remark):
        yield answer
        return
    if answer.status_code == 401:
        yield Remark("Stripe refuses SMI_STRIPE_API_KEY")
    try:
        theirs = parsedate_to_datetime(answer.headers.get("Date", ""))
    except ValueError:
        return
    apart = abs((theirs - datetime.now(UTC)).total_seconds()) if theirs.tzinfo else 0.0
    if apart > STRIPE_CLOCK_SECONDS:
        yield Remark(f"our clock is {apart:.0f} s away from Stripe's: webhooks would be refused as too old")


def check_upsampler(app: App) -> Iterator[Remark]:
    """Upsampler answers."""
    answer = _get(app.settings.upsampler_api_base)
    if isinstance(answer, Remark):
        yield answer


def check_mail(app: App) -> Iterator[Remark]:
    """The mail server greets us."""
    parts = urlsplit(app.settings.smtp_url.get_secret_value())
    host, tls = parts.hostname or "", parts.scheme == "smtps"
    try:
        if tls:
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                host, parts.port or 465, timeout=PATIENCE_SECONDS, context=ssl.create_default_context()
            )
        else:
            server = smtplib.SMTP(host, parts.port or 25, timeout=PATIENCE_SECONDS)
        with server:
            server.noop()
    except (OSError, smtplib.SMTPException) as error:
        yield Remark(f"the mail server {host} does not answer ({_cause(error)})")


def check_hooks(app: App) -> Iterator[Remark]:
    """The receivers of hooks answer; what they answer to a HEAD is their own business."""
    for name, url in receivers(app.settings).items():
        host = urlsplit(url).hostname
        try:
            answer = requests.head(url, timeout=PATIENCE_SECONDS, allow_redirects=False)
        except requests.RequestException as error:
            yield Remark(f"receiver {name} at {host} cannot be reached ({_cause(error)})")
            continue
        yield Remark(f"receiver {name} is at {host}", wrong=False)
        if answer.is_redirect:
            yield Remark(f"receiver {name} at {host} redirects, and is not followed: name where it leads")


def check_clock(app: App) -> Iterator[Remark]:
    """The database has the time that we have."""
    if is_sqlite(app.database):
        return
    cursor = app.database.execute_sql("SELECT CURRENT_TIMESTAMP")  # type: ignore[no-untyped-call]
    theirs = read_stamp(cursor.fetchone()[0])
    apart = abs((theirs - datetime.now(UTC)).total_seconds()) if theirs is not None else 0.0
    if apart > DATABASE_CLOCK_SECONDS:
        yield Remark(f"our clock is {apart:.0f} s away from the database server's: keep both by NTP")


def check_schedules(app: App) -> Iterator[Remark]:
    """Periodic work is done, and comes to its end."""
    now = datetime.now(UTC)
    rows = {row.name: row for row in app.job_tables.schedules.select()}
    for name in (item.name for item in PERIODIC):
        row = rows.get(name)
        if row is None:
            yield Remark(f"{name} is on no schedule yet: the relay puts it there when it starts", wrong=False)
        elif row.state == ScheduleState.PAUSED:
            yield Remark(f"{name} is paused since {row.updated_at:%Y-%m-%d %H:%M} UTC", wrong=False)
        elif row.failures:
            last = f"{row.succeeded_at:%Y-%m-%d %H:%M} UTC" if row.succeeded_at else "ever"
            yield Remark(f"{name} has failed {row.failures} times running; nothing was finished since {last}")
        elif now - row.updated_at > SCHEDULE_LATE + (
            RUN_LONGEST if row.state == ScheduleState.RUNNING else every(name, app.settings)
        ):
            yield Remark(f"{name} is overdue: nothing has come of it since {row.updated_at:%Y-%m-%d %H:%M} UTC")


def check_disk(app: App) -> Iterator[Remark]:
    """There is room, and we may write."""
    settings = app.settings
    needed = max(FREE_BYTES_MIN, 2 * settings.result_bytes_max)
    for name, folder in folders(settings).items():
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        if not os.access(there, os.W_OK | os.X_OK):
            yield Remark(f"{name}: {there} cannot be written to")
        free = shutil.disk_usage(there).free
        if free < needed:
            yield Remark(
                f"{name}: {free / 1e9:.1f} GB are free on {there}, at least {needed / 1e9:.1f} GB should be"
            )


def folders(settings: Settings) -> dict[str, Path]:
    """Where we write."""
    found = {
        "SMI_VAR_DIR": settings.var_dir.absolute(),
        "SMI_STORAGE_URL": Path(unquote(urlsplit(settings.storage_url).path)),
    }
    if settings.database_url.startswith("sqlite"):
        found["SMI_DATABASE_URL"] = sqlite_file(settings).absolute().parent
    return found


def sqlite_file(settings: Settings) -> Path:
    """The database's file."""
    return Path(unquote(urlsplit(settings.database_url).path).removeprefix("/"))


SURROUNDINGS: tuple[Look, ...] = (
    Look("settings", "The settings fit each other, and real money.", "See config/env.example.", check_settings),
    Look("schema", "The tables are those of this release.", "Run `smi migrate`.", check_schema),
    Look("broker", "The broker answers.", "Start it, or mend SMI_BROKER_URL; nothing is lost.", check_broker),
    Look(
        "stripe", "Stripe answers, takes our key, and has our time.",
        "Mend SMI_STRIPE_API_KEY, the network, or the clock (NTP).", check_stripe,
    ),
    Look("upsampler", "Upsampler answers.", "Mend SMI_UPSAMPLER_API_BASE, or the network.", check_upsampler),
    Look("mail", "The mail server greets us.", "Mend SMI_SMTP_URL, or the network; mails wait.", check_mail),
    Look(
        "hooks", "The receivers of hooks answer.",
        "Mend the receiver, or take it out of SMI_HOOK_URLS; it is tried for three days.", check_hooks,
    ),
    Look(
        "schedules", "Periodic work is done in time.",
        "See `smi schedules list` and the workers' logs; `smi schedules run NAME` tries it now.", check_schedules,
    ),
    Look("clock", "The database has our time.", "Keep both machines' clocks by NTP.", check_clock),
    Look("disk", "There is room, and we may write.", "Make room, or give the folder to this user.", check_disk),
)  # fmt: skip


def _get(url: str, headers: dict[str, str] | None = None) -> requests.Response | Remark:
    host = urlsplit(url).hostname
    try:
        answer = requests.get(url, headers=headers, timeout=PATIENCE_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return Remark(f"{host} cannot be reached ({_cause(error)})")
    if answer.status_code >= 500:
        return Remark(f"{host} answers {answer.status_code}")
    return answer


def _knock(url: str) -> None:
    """Connect to a broker; ask a Redis whether it is one.

    Raises:
        OSError: nobody answers.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix":
        line = socket.socket(socket.AF_UNIX)
    else:
        port = parts.port or PORTS[parts.scheme]
        line = socket.create_connection((parts.hostname or "127.0.0.1", port), PATIENCE_SECONDS)
    with contextlib.closing(line):
        line.settimeout(PATIENCE_SECONDS)
        if parts.scheme == "unix":
            line.connect(unquote(parts.path))
        if parts.scheme in ("rediss", "amqps"):
            line = ssl.create_default_context().wrap_socket(line, server_hostname=parts.hostname)
        if parts.scheme.startswith("amqp"):
            return
        line.sendall(b"PING\r\n")
        if not line.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-DENIED")):
            raise OSError("it does not answer like a Redis")


def _cause(error: BaseException) -> str:
    """An error in a few words, without the addresses that libraries put around it."""
    if isinstance(error, requests.Timeout | TimeoutError):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError | ssl.SSLError):
        return "its certificate cannot be trusted"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
