"""Owns the evidence of a chaos run: what the providers have on their books, what history says, what links give.

Called by run.py and checker.py. It imports nothing of the product: ledgers come over HTTP, history as plain SQL.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import default as default_policy
from typing import Any

import psycopg
import requests
from PIL import Image
from psycopg.rows import dict_row

_ORDER = re.compile(r"^Order: (\S+)\s*$", re.MULTILINE)
READERS = 8
RELOADS, RELOAD_SECONDS = 5, 1.0


@dataclass(frozen=True, slots=True)
class Promise:
    """What a buyer was told when the order was taken."""

    email: str
    size: tuple[int, int]
    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that the mail server took."""

    to: tuple[str, ...]
    subject: str
    message_id: str
    job_id: str
    links: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """What a link gave: the status, and the image's size and colour where there was one."""

    status: int
    size: tuple[int, int] | None = None
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of history."""

    workflow: str
    subject_id: str
    sequence: int
    trigger: str
    from_state: str
    to_state: str
    actor: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Evidence:
    """Everything that is judged.

    Attributes:
        promises: by job id.
        stripe, upsampler: the ledgers as the providers wrote them.
        openings: by link, every time that it was opened, oldest first.
    """

    promises: dict[str, Promise]
    stripe: dict[str, list[dict[str, Any]]]
    upsampler: list[dict[str, Any]]
    mails: list[Mail]
    history: list[Row]
    openings: dict[str, list[Opened]] = field(default_factory=dict)


def read_mails(mail_http: str) -> list[Mail]:
    """Every mail, read as its reader would."""
    kept = requests.get(f"{mail_http}/_sandbox/ledger", timeout=120).json()["mails"]

    def read(mail: Mapping[str, Any]) -> Mail:
        answer = requests.get(f"{mail_http}/mails/{mail['number']}.eml", timeout=60)
        answer.raise_for_status()
        body = message_from_bytes(answer.content, policy=default_policy).get_body(("plain",))
        named = _ORDER.search(str(body.get_content()) if body is not None else "")
        links = tuple(link for link in mail["links"] if "/download/" in link)
        return Mail(tuple(mail["to"]), mail["subject"], mail["message_id"], named[1] if named else "", links)

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(read, kept))


def open_links(links: Iterable[str]) -> dict[str, Opened]:
    """Open every link, as a buyer would."""
    distinct = sorted(set(links))
    with ThreadPoolExecutor(READERS) as readers:
        return dict(zip(distinct, readers.map(_open, distinct), strict=True))


def _open(link: str) -> Opened:
    answer = requests.get(link, timeout=60)
    for _ in range(RELOADS):
        if answer.status_code != 503:
            break
        # "Please try again in a moment", it says: a buyer does.
        time.sleep(RELOAD_SECONDS)
        answer = requests.get(link, timeout=60)
    if answer.status_code != 200:
        return Opened(answer.status_code)
    try:
        with Image.open(io.BytesIO(answer.content)) as image:
            middle = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
            assert isinstance(middle, tuple)
            red, green, blue = (int(part) for part in middle)
            return Opened(200, image.size, (red, green, blue))
    except OSError:
        return Opened(200)


def read_history(database_url: str, prefix: str) -> list[Row]:
    """Every row of history, in order."""
    columns = "workflow, subject_id, sequence, trigger, from_state, to_state, actor, metadata"
    query = f"SELECT {columns} FROM {prefix}smi_transitions ORDER BY workflow, subject_id, sequence"
    with psycopg.connect(database_url, row_factory=dict_row) as connection:
        rows = connection.execute(query).fetchall()
    return [Row(**{**row, "metadata": json.loads(row["metadata"])}) for row in rows]
