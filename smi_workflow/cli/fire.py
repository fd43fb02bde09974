"""Owns `smi fire`. Called by main.py."""

from __future__ import annotations

import json
from typing import Any

import typer

from smi_workflow.cli.screen import Json, applied_as_json, console, me, opened, print_json, state
from smi_workflow.errors import InvalidInput


def fire(
    job_id: str = typer.Argument(metavar="JOB", help="The job's id."),
    trigger: str = typer.Argument(help="What is to happen; `smi jobs explain JOB` lists what may."),
    reason: str = typer.Option("", "--reason", help="Why; kept in the history for good. No personal data."),
    fact: list[str] = typer.Option([], "--fact", metavar="NAME=VALUE", help="A fact; JSON values are understood."),
    expect: str | None = typer.Option(None, "--expect", metavar="STATE", help="Refuse if it has moved on."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would happen, and change nothing."),
    as_json: bool = Json,
) -> None:
    """Fire a trigger at a job.

    Examples:

    `smi fire 6f1c… retry --reason "Upsampler is back"`

    `smi fire 6f1c… override --fact target=failed --reason "buyer asked" --dry-run`
    """
    with opened() as app:
        applied = app.jobs.fire(
            job_id,
            trigger,
            actor=me(),
            reason=reason,
            facts=_read_facts(fact),
            expected_status=expect,
            dry_run=dry_run,
        )
    if as_json:
        print_json({"dry_run": dry_run, **applied_as_json(applied)})
        return
    verb = "would go" if dry_run else "went"
    console.print(
        f"Job {job_id} {verb} {state(applied.from_state)} → {state(applied.to_state)} by [bold]{trigger}[/]"
    )
    for effect in applied.owed:
        when = "now" if effect.due_at <= applied.at else f"at {effect.due_at:%Y-%m-%d %H:%M:%S} UTC"
        console.print(f"  {'would owe' if dry_run else 'owes'} {effect.name} {when}")


def _read_facts(given: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for item in given:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise InvalidInput("--fact", f"must be NAME=VALUE, not {item!r}")
        try:
            facts[name] = json.loads(value)
        except ValueError:
            facts[name] = value
    return facts
