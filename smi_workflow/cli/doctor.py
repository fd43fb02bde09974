"""Owns `smi doctor`: looks at everything, changes nothing, says what is wrong and what to do. Called by main.py.

Each check runs in a read-only transaction of its own, several of them at a time.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import peewee
import typer
from peewee import MySQLDatabase, SqliteDatabase
from rich.markup import escape

from smi_workflow.app import App
from smi_workflow.cli.screen import FAILED, OK, USAGE, Json, console, errors, print_json, table
from smi_workflow.cli.surroundings import SURROUNDINGS, Look, sqlite_file
from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariant, Invariants
from smi_workflow.errors import ConfigError, InvalidInput, SmiError
from smi_workflow.jobs.attention import ATTENTION
from smi_workflow.jobs.invariants import SALE_INVARIANTS
from smi_workflow.settings import Settings, load_settings

LIMIT = 100
SHOWN = 5
THREADS_MAX = 4
CANNOT_RUN = USAGE
FINE, WRONG, NOTED, UNKNOWN = "fine", "wrong", "noted", "unknown"
MARKS = {FINE: "[green]✓[/]", WRONG: "[red]✗[/]", NOTED: "[yellow]![/]", UNKNOWN: "[red]?[/]"}
# One snapshot for each check: what it reads of a row and of its history was true at the same time.
POSTGRES_OPTIONS = (
    r"-c default_transaction_read_only=on -c default_transaction_isolation=repeatable\ read"
    " -c work_mem=256MB -c jit=off"
)
SQLITE_PRAGMAS = {"query_only": 1, "cache_size": -256_000, "mmap_size": 2**31}
INVARIANTS: tuple[Invariant, ...] = (*ENGINE_INVARIANTS, *SALE_INVARIANTS)
CHECKS: tuple[Look | Invariant, ...] = (*SURROUNDINGS, *INVARIANTS, *ATTENTION)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found, and where."""

    text: str
    workflow: str | None = None
    subject_id: str | None = None


@dataclass(slots=True)
class Verdict:
    """What became of one check."""

    name: str
    sentence: str
    remedy: str
    status: str = FINE
    seconds: float = 0.0
    found: list[Finding] = field(default_factory=list)
    more: bool = False


def doctor(
    only: list[str] = typer.Option([], "--only", metavar="NAME", help="Only this check; repeat for several."),
    sample: int | None = typer.Option(
        None, "--sample", metavar="N", min=1, help="Judge N jobs and N refunds, chosen at random, instead of all."
    ),
    list_checks: bool = typer.Option(False, "--list", help="List the checks, and run none."),
    as_json: bool = Json,
) -> None:
    """Check that what must always be true is true, and that everything around is in order. Changes nothing.

    Exit code: 0 all is well, 1 something is wrong, 2 it could not be checked. What only waits for a person is
    shown, and is no fault.

    Examples:

    `smi doctor` · `smi doctor --only refunds_add_up --only disk` · `smi doctor --sample 10000 --json`

    Before a deploy, with the new release: `smi doctor --only definition`
    """
    if list_checks:
        _list(as_json)
        return
    started = time.monotonic()
    with _giving_up_plainly():
        names = [item.name for item in CHECKS]
        unknown = [name for name in only if name not in names]
        if unknown:
            raise InvalidInput("--only", f"there is no check {', '.join(unknown)}; `smi doctor --list` names them")
        with _opened(only or names) as app:
            verdicts = examine(app, only or names, sample)
    seconds = time.monotonic() - started
    became = {verdict.status for verdict in verdicts}
    if as_json:
        told = [asdict(verdict) for verdict in verdicts]
        ok = not became & {WRONG, UNKNOWN}
        print_json({"ok": ok, "seconds": round(seconds, 3), "sample": sample, "checks": told})
    else:
        _show(verdicts, seconds)
    raise typer.Exit(CANNOT_RUN if UNKNOWN in became else FAILED if WRONG in became else OK)


@contextmanager
def _giving_up_plainly() -> Iterator[None]:
    """Whatever keeps the checks from running is told in a line; 1 is kept for what they find."""
    try:
        yield
    except (SmiError, peewee.PeeweeException, OSError) as error:
        errors.print(f"[red]smi:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(CANNOT_RUN) from None


def examine(app: App, names: Sequence[str], sample: int | None) -> list[Verdict]:
    """Run these checks, several at a time; in the order in which they are listed."""
    invariants = Invariants(app.engine, INVARIANTS, exists=app.storage.exists)

    def run(item: Look | Invariant) -> Verdict:
        begun, verdict = time.monotonic(), Verdict(item.name, item.sentence, item.remedy)
        try:
            if isinstance(item, Look):
                _look(app, item, verdict)
            else:
                _judge(app, invariants, item, verdict, sample)
        except (SmiError, peewee.PeeweeException, OSError) as error:
            verdict.status, verdict.found = UNKNOWN, [Finding(f"it could not be checked: {error}")]
        finally:
            app.database.close()
        verdict.seconds = round(time.monotonic() - begun, 3)
        return verdict

    with ThreadPoolExecutor(min(THREADS_MAX, os.cpu_count() or 1)) as pool:
        return list(pool.map(run, (item for item in CHECKS if item.name in names)))


def _look(app: App, item: Look, verdict: Verdict) -> None:
    remarks = list(item.look(app))
    verdict.found = [Finding(remark.text) for remark in remarks]
    if remarks:
        verdict.status = WRONG if any(remark.wrong for remark in remarks) else NOTED


def _judge(app: App, invariants: Invariants, item: Invariant, verdict: Verdict, sample: int | None) -> None:
    with app.database.atomic():
        found = list(invariants.of_invariant(item, sample=sample, limit=LIMIT + 1))
    verdict.found = [Finding(one.text, one.workflow, one.subject_id) for one in found[:LIMIT]]
    verdict.more = len(found) > LIMIT
    if found:
        verdict.status = NOTED if item in ATTENTION else WRONG


@contextmanager
def _opened(names: Sequence[str]) -> Iterator[App]:
    """The App over a database that cannot be written to through it.

    Raises:
        ConfigError: there is no database, or it is not up to date: nothing can be judged.
    """
    settings = load_settings()
    if settings.database_url.startswith("sqlite") and not sqlite_file(settings).is_file():
        # Opening it would make one.
        raise ConfigError(f"there is no database at {sqlite_file(settings)}: run `smi migrate`")
    app = App(_read_only(settings))
    try:
        if isinstance(app.database, SqliteDatabase):
            for pragma, value in SQLITE_PRAGMAS.items():
                app.database.pragma(pragma, value, permanent=True)
        elif isinstance(app.database, MySQLDatabase):
            app.database.connect_params["init_command"] += ", tx_read_only=1, tx_isolation='REPEATABLE-READ'"
        if any(item.name in names for item in (*INVARIANTS, *ATTENTION)):
            app.check_schema()
        yield app
    finally:
        app.close()


def _read_only(settings: Settings) -> Settings:
    parts = urlsplit(settings.database_url)
    if not parts.scheme.startswith("postgres"):
        return settings
    given = dict(parse_qsl(parts.query))
    given["options"] = f"{given.get('options', '')} {POSTGRES_OPTIONS}".strip()
    url = urlunsplit(parts._replace(query=urlencode(given, quote_via=quote)))
    return settings.model_copy(update={"database_url": url})


def _show(verdicts: Sequence[Verdict], seconds: float) -> None:
    rows = [
        (MARKS[item.status], item.name, _summary(item), f"{item.seconds:.1f} s" if item.seconds >= 0.05 else "")
        for item in verdicts
    ]
    overview = table("", ("", "check", "", "took"), rows)
    overview.columns[2].no_wrap, overview.columns[2].overflow = True, "ellipsis"
    console.print(overview)
    for item in verdicts:
        if item.status == FINE:
            continue
        console.print(f"\n{MARKS[item.status]} [bold]{item.name}[/]  {escape(item.sentence)}")
        for found in item.found[:SHOWN]:
            where = f"{found.workflow} {found.subject_id or ''}".strip() + ": " if found.workflow else ""
            console.print(f"    {escape(where)}{escape(found.text)}", soft_wrap=True)
        if len(item.found) > SHOWN:
            console.print(f"    … and {_many(item, len(item.found) - SHOWN)} more (`--json` lists up to {LIMIT})")
        console.print(f"    [cyan]→[/] {escape(item.remedy)}", soft_wrap=True)
    count = Counter(item.status for item in verdicts)
    words = [f"{count[FINE]} checks are fine"]
    words += [f"[red]{count[WRONG]} found something wrong[/]"] if count[WRONG] else []
    words += [f"[red]{count[UNKNOWN]} could not be run[/]"] if count[UNKNOWN] else []
    words += [f"[yellow]{count[NOTED]} found something to look at[/]"] if count[NOTED] else []
    console.print(f"\n{', '.join(words)}; {seconds:.1f} s.")


def _summary(verdict: Verdict) -> str:
    if verdict.status == FINE:
        return escape(verdict.sentence)
    if len(verdict.found) == 1:
        return escape(verdict.found[0].text)
    return f"{_many(verdict, len(verdict.found))} times"


def _many(verdict: Verdict, count: int) -> str:
    return f"{count}{' or' if verdict.more else ''}"


def _list(as_json: bool) -> None:
    checks = [{"name": item.name, "sentence": item.sentence, "remedy": item.remedy} for item in CHECKS]
    if as_json:
        print_json(checks)
        return
    rows = [(item["name"], escape(item["sentence"]), escape(item["remedy"])) for item in checks]
    console.print(table(f"{len(rows)} checks", ("check", "what must be true", "what to do if it is not"), rows))
