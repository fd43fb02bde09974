"""Owns `smi fire`. Called by main.py."""

from __future__ import annotations

import json
from typing import Any

import typer

from smi_workflow.cli.screen import Json, applied_as_json, console, me, opened, print_json, state
from smi_workflow.errors import InvalidInput


def fire(
    subject_id: str = typer.Argument(metavar="JOB", help="The job's id, or the refund's, or the event's."),
    trigger: str = typer.Argument(help="What is to happen; `smi jobs explain JOB` lists what may."),
    reason: str = typer.Option("", "--reason", help="Why; kept in the history for good. No personal data."),
    fact: list[str] = typer.Option([], "--fact", metavar="NAME=VALUE", help="A fact; JSON values are understood."),
    expect: str | None = typer.Option(None, "--expect", metavar="STATE", help="Refuse if it has moved on."),
    is_refund: bool = typer.Option(False, "--refund", help="JOB is a refund's id: retry, settle_elsewhere."),
    is_alert: bool = typer.Option(False, "--alert", help="JOB is the id of an event for a person: close."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would happen, and change nothing."),
    as_json: bool = Json,
) -> None:
    """Fire a trigger at a job, at one of its refunds, or at what waits for a person.

    Examples:

    `smi fire 6f1c… retry --reason "Upsampler is back"`

    `smi fire 6f1c… override --fact target=failed --reason "buyer asked" --dry-run`

    `smi fire --refund 9a1c… retry --reason "the account is topped up"`

    `smi fire --alert 03be… close --reason "belongs to the other shop"`
    """
    if is_refund and is_alert:
        raise typer.BadParameter("--refund and --alert name different things: give one of them")
    what = "refund" if is_refund else "alert" if is_alert else "job"
    with opened() as app:
        how: dict[str, Any] = {"actor": me(), "reason": reason, "facts": _read_facts(fact), "dry_run": dry_run}
        if is_refund:
            applied = app.jobs.fire_refund(subject_id, trigger, expected_state=expect, **how)
        elif is_alert:
            applied = app.jobs.fire_alert(subject_id, trigger, expected_state=expect, **how)
        else:
            applied = app.jobs.fire(subject_id, trigger, expected_status=expect, **how)
    if as_json:
        print_json({"dry_run": dry_run, **applied_as_json(applied)})
        return
    verb = "would go" if dry_run else "went"
    way = f"{state(applied.from_state)} → {state(applied.to_state)}"
    console.print(f"{what.capitalize()} {subject_id} {verb} {way} by [bold]{trigger}[/]")
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
