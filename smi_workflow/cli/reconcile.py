"""Owns `smi reconcile`. Called by main.py."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from smi_workflow.cli.screen import FAILED, OK, UNAVAILABLE, Json, console, errors, opened, print_json, table
from smi_workflow.effects.missed import QUESTIONS
from smi_workflow.effects.reconcile import Reconciler, Run
from smi_workflow.errors import InvalidInput, ServiceUnavailable

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
LINES_MAX = 100_000
PATIENCE = 5
WAIT_SECONDS_MAX = 60.0
MARKS = {"applied": "[green]✓[/]", "ignored": "[bright_black]·[/]", "parked": "[yellow]…[/]"}


def reconcile(
    since: str | None = typer.Option(
        None, "--since", metavar="DATE|DURATION",
        help="Ask for what happened since then (2026-03-01, 7d, 12h); unset: since the last scheduled run.",
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would happen, and change nothing."),
    as_json: bool = Json,
) -> None:  # fmt: skip
    """Ask Stripe and Upsampler for what we missed, and make up for it.

    What is found is taken in as a webhook would be: applied, parked or ignored, once. Any number may run at once.

    Exit code: 0 nothing is left, 1 something was found that waits (parked, for a person) or could not be asked
    for, 2 bad input, 5 a provider is away: what was found until then is made up for.

    Examples:

    `smi reconcile` · `smi reconcile --since 7d --dry-run` · `smi reconcile --since 2026-03-01 --json`
    """
    with opened() as app:
        reconciler = Reconciler(app.world, dry=dry_run, lines_max=LINES_MAX)
        run = reconciler.begin(reconciler.remembered(), _moment(since, app.clock.now()) if since else None)
        with _bar() if not as_json else nullcontext() as bar:
            trouble = _go_on(reconciler, run, bar)
    total = run.total()
    if as_json:
        print_json({"dry_run": dry_run, **run.as_json(), "total": asdict(total), "trouble": trouble})
    else:
        _show(run, dry_run)
    if trouble is not None:
        errors.print(f"[red]smi:[/] {escape(trouble)}", soft_wrap=True)
        raise typer.Exit(UNAVAILABLE)
    # In a dry run nothing is applied, and what would wait for another finding seems to wait for ever.
    waits = (0 if dry_run else total.parked) + total.for_person + total.left + total.unanswered
    raise typer.Exit(FAILED if waits else OK)


def _go_on(reconciler: Reconciler, run: Run, bar: Progress | None) -> str | None:
    """Ask until all is told; a provider that wants us to slow down is given time. Returns why it gave up."""
    task = bar.add_task("", total=len(QUESTIONS)) if bar is not None else None

    def show(run: Run) -> None:
        if bar is not None and task is not None:
            told = f"{run.question.replace('_', ' ')}: {run.total().asked} asked, {run.total().found} found"
            bar.update(task, completed=QUESTIONS.index(run.question), description=told)

    failures = 0
    while True:
        stood = (run.question, run.cursor)
        try:
            reconciler.go_on(run, on_step=show)
            return None
        except ServiceUnavailable as trouble:
            failures = 1 if (run.question, run.cursor) != stood else failures + 1
            if failures > PATIENCE:
                return str(trouble)
            wait = max(trouble.retry_after_seconds or 0.0, 2.0**failures)
            time.sleep(min(wait, WAIT_SECONDS_MAX))


def _moment(text: str, now: datetime) -> datetime:
    """Read a date, an instant, or how long ago.

    Raises:
        InvalidInput: it is neither.
    """
    if found := re.fullmatch(r"(\d{1,6})([mhdw])", text):
        return now - timedelta(**{UNITS[found[2]]: int(found[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            "--since", f"must be a date (2026-03-01) or a duration (7d, 12h, 30m), not {text!r}"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _bar() -> Progress:
    return Progress(BarColumn(), TextColumn("{task.description}"), console=errors, transient=True)


def _show(run: Run, dry_run: bool) -> None:
    for line in run.lines:
        where = f"{line.workflow} {line.key}" if line.key else "no sale of ours"
        source = f"[bright_black]({escape(line.kind)} {escape(line.event)})[/]"
        mark = MARKS.get(line.became, "[red]![/]")
        console.print(f"{mark} {escape(where)}: {escape(line.reason)} {source}", soft_wrap=True)
    columns = ("asked", "found", "repaired", "ignored", "parked", "for_person", "left", "unanswered")
    rows = [
        (name.replace("_", " "), *(str(getattr(tally, column) or "") for column in columns))
        for name, tally in (*run.tallies.items(), ("all", run.total()))
    ]
    verb = "Would be found" if dry_run else "Found"
    title = f"{verb} since {run.since:%Y-%m-%d %H:%M} UTC"
    console.print(table(title, ("", *(column.replace("_", " ") for column in columns)), rows))
