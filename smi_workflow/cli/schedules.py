"""Owns `smi schedules`: periodic work, listed, run now, paused, resumed. Called by main.py."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.markup import escape

from smi_workflow.app import App
from smi_workflow.cli.screen import Json, applied_as_json, console, me, moment, opened, print_json, table
from smi_workflow.jobs.model import Schedule
from smi_workflow.jobs.schedule import PERIODIC, every, set_up_schedules

app = typer.Typer(
    help="Periodic work: when it runs, what it did; run, pause and resume it.", no_args_is_help=True
)

Name = typer.Argument(metavar="NAME", help="Which: " + ", ".join(item.name for item in PERIODIC))
Reason = typer.Option("", "--reason", help="Why; kept in the history for good.")


@app.command(name="list")
def list_schedules(as_json: bool = Json) -> None:
    """List what is done again and again, and how it went."""
    with opened() as shop:
        table_of = shop.job_tables.schedules
        rows = [_described(shop, row) for row in table_of.select().order_by(table_of.name)]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "state", "every", "began", "succeeded", "failures since", "next", "it came to")
    shown = [
        (
            row["name"], row["state"], f"{row['every_minutes']:g} min", moment(row["began_at"]),
            moment(row["succeeded_at"]), str(row["failures"] or ""), moment(row["next_at"]),
            escape(row["came_to"] or ""),
        )
        for row in rows
    ]  # fmt: skip
    console.print(table("Periodic work (UTC)", columns, shown))


@app.command()
def run(name: str = Name, reason: str = Reason, as_json: bool = Json) -> None:
    """Run it now; the workers do it. Refused while it runs or is paused."""
    _fire(name, "run", reason, as_json)


@app.command()
def pause(name: str = Name, reason: str = Reason, as_json: bool = Json) -> None:
    """Let it rest until it is resumed; a run that is under way ends where it stands."""
    _fire(name, "pause", reason, as_json)


@app.command()
def resume(name: str = Name, reason: str = Reason, as_json: bool = Json) -> None:
    """Put it back on its schedule; what was missed meanwhile is made up for by one run."""
    _fire(name, "resume", reason, as_json)


def _fire(name: str, trigger: str, reason: str, as_json: bool) -> None:
    with opened() as shop:
        # No relay may have run yet.
        set_up_schedules(shop.engine)
        applied = shop.engine.fire("schedule", name, trigger, actor=me(), reason=reason)
    if as_json:
        print_json(applied_as_json(applied))
        return
    console.print(f"{name}: {applied.from_state} → {applied.to_state} by [bold]{trigger}[/]")


def _described(shop: App, row: Schedule) -> dict[str, Any]:
    effects = shop.tables.effects
    mine = (effects.workflow == "schedule") & (effects.subject_id == row.name) & (effects.visit == row.visit)
    due = effects.select(effects.due_at).where(
        mine & (effects.name == "schedule_due") & effects.state.in_(("due", "claimed"))
    )
    next_due = due.first()
    history = shop.tables.transitions
    its = (history.workflow == "schedule") & (history.subject_id == row.name)
    ended = history.select(history.reason).where(its & history.trigger.in_(("finish", "fail")))
    last = ended.order_by(history.sequence.desc()).first()
    return {
        "name": row.name, "state": row.state,
        "every_minutes": every(row.name, shop.settings).total_seconds() / 60,
        "began_at": row.began_at, "succeeded_at": row.succeeded_at, "failures": row.failures,
        "next_at": next_due.due_at if next_due is not None else None,
        "came_to": last.reason if last is not None else None,
        "report": json.loads(row.report) if row.report else None,
    }  # fmt: skip
