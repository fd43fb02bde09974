"""Owns how commands speak: colours and tables for people, JSON for scripts, errors in one line.

Called by its siblings.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import peewee
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from smi_workflow.app import App, open_app
from smi_workflow.engine.unit import Applied
from smi_workflow.errors import (
    ConfigError,
    EngineError,
    InvalidInput,
    ServiceError,
    SmiError,
    UnknownSubject,
)

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

STATE_COLOURS = {
    "awaiting_payment": "yellow", "pending": "cyan", "processing": "blue", "completed": "green",
    "failed": "red", "abandoned": "bright_black",
}  # fmt: skip

# Exit codes, stable for scripts.
OK, FAILED, USAGE, NOT_FOUND, REFUSED, UNAVAILABLE = 0, 1, 2, 3, 4, 5

Json = typer.Option(False, "--json", help="Print JSON for scripts instead of a table.")


@contextmanager
def speaking_plainly() -> Iterator[None]:
    """Turn what this package raises on purpose into one line and an exit code; no stack trace reaches a person."""
    try:
        yield
    except SmiError as error:
        errors.print(f"[red]smi:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(_exit_code(error)) from None
    except peewee.PeeweeException as error:
        errors.print(f"[red]smi:[/] the database cannot be used: {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(UNAVAILABLE) from None
    except OSError as error:
        errors.print(f"[red]smi:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(FAILED) from None


@contextmanager
def opened() -> Iterator[App]:
    """The App for one command."""
    with speaking_plainly(), open_app() as app:
        yield app


def me() -> str:
    """The actor written in the history for whoever runs this command."""
    try:
        return f"admin:{os.environ.get('SUDO_USER') or getpass.getuser()}"
    except (KeyError, OSError):
        # A container's user may have no name.
        return f"admin:uid-{os.getuid()}"


def state(name: str) -> str:
    """A state's name in its colour."""
    return f"[{STATE_COLOURS.get(name, 'white')}]{name}[/]"


def moment(value: datetime | None) -> str:
    """A time for people."""
    return value.strftime("%Y-%m-%d %H:%M:%S") if value is not None else ""


def print_json(value: object) -> None:
    """Print for a script."""
    typer.echo(json.dumps(value, default=plain, ensure_ascii=False, indent=2))


def plain(value: object) -> object:
    """What JSON has no word for."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for people."""
    made = Table(title=title, title_justify="left", header_style="bold", border_style="bright_black")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def applied_as_json(applied: Applied) -> Mapping[str, Any]:
    """One applied trigger, for scripts."""
    return {
        "workflow": applied.workflow, "id": applied.subject_id, "trigger": applied.trigger,
        "sequence": applied.sequence, "from": applied.from_state, "to": applied.to_state,
        "actor": applied.actor, "reason": applied.reason, "at": applied.at, "metadata": applied.metadata,
        "effects": [{"name": e.name, "queue": e.queue, "due_at": e.due_at} for e in applied.owed],
    }  # fmt: skip


def _exit_code(error: SmiError) -> int:
    for kind, code in (
        (UnknownSubject, NOT_FOUND), (InvalidInput, USAGE), (ConfigError, USAGE), (EngineError, REFUSED),
        (ServiceError, UNAVAILABLE),
    ):  # fmt: skip
        if isinstance(error, kind):
            return code
    return FAILED
