"""Owns `smi jobs`: list, show, explain. Called by main.py."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.markup import escape

from smi_workflow.app import App
from smi_workflow.cli.screen import Json, console, moment, opened, print_json, state, table
from smi_workflow.engine.tables import EffectRow
from smi_workflow.jobs.model import Job
from smi_workflow.jobs.pricing import from_cents
from smi_workflow.jobs.queries import payments_of, refunds_of

PAYMENT = ("payment_intent_id", "charge_id", "role", "cents", "currency", "refunded_cents")
REFUND = ("refund_id", "state", "cents", "currency", "payment_intent_id", "stripe_refund_id", "tries", "reason")

app = typer.Typer(help="Look into jobs.", no_args_is_help=True)

SHOWN = (
    "job_id", "status", "payment_status", "image_width", "image_height", "resolution", "post_id", "attachment_id",
    "amount_charged", "amount_cost", "credits_used", "currency", "paid_at", "refund_amount", "refunded_at",
    "refund_reason", "stripe_checkout_session_id", "stripe_payment_intent_id", "upsampler_job_id",
    "upscaled_file_path", "download_expires_at", "email_sent", "processing_started_at", "completed_at",
    "failed_at", "failure_code", "created_at", "updated_at",
)  # fmt: skip


@app.command("list")
def list_jobs(
    status: list[str] = typer.Option([], "--status", "-s", help="Only these states; repeat for several."),
    payment_status: str | None = typer.Option(None, "--payment-status", help="pending, paid or failed"),
    email: str | None = typer.Option(None, "--email", help="Only this buyer's."),
    limit: int = typer.Option(20, "--limit", "-n", help="How many, newest first."),
    as_json: bool = Json,
) -> None:
    """List jobs, newest first.

    Example: `smi jobs list --status failed --limit 50`
    """
    with opened() as system:
        found = system.jobs.get_jobs(
            status=status or None, payment_status=payment_status, email=email, limit=limit
        )
    if as_json:
        print_json([_row(job) for job in found])
        return
    rows = [
        (
            job.job_id, state(job.status), job.payment_status, f"{job.image_width}x{job.image_height}",
            job.resolution, _price(job), moment(job.created_at),
        )
        for job in found
    ]  # fmt: skip
    console.print(
        table(f"{len(rows)} jobs", ("job", "status", "payment", "image", "to", "price", "created"), rows)
    )


@app.command()
def show(job_id: str = typer.Argument(metavar="JOB", help="The job's id."), as_json: bool = Json) -> None:
    """Show one job: its row, its history, its effects.

    Example: `smi jobs show 6f1c…`
    """
    with opened() as system:
        job = system.jobs.get_job(job_id)
        history = system.jobs.history(job_id)
        effects = _effects(system, job_id)
        payments, refunds = payments_of(system.engine, job_id), refunds_of(system.engine, job_id)
    if as_json:
        print_json(
            {
                "job": _row(job),
                "history": [_transition(item) for item in history],
                "effects": [_effect(item) for item in effects],
                "payments": [{name: getattr(item, name) for name in PAYMENT} for item in payments],
                "refunds": [{name: getattr(item, name) for name in REFUND} for item in refunds],
            }
        )
        return
    console.print(f"\n[bold]Job {job.job_id}[/]  {state(job.status)}  {_price(job)}\n")
    for name in SHOWN[2:]:
        value = getattr(job, name)
        if value not in (None, ""):
            console.print(f"  {name:28} {moment(value) if name.endswith('_at') else escape(str(value))}")
    console.print()
    rows = [
        (
            str(t.sequence),
            moment(t.created_at),
            t.trigger,
            f"{state(t.from_state)} → {state(t.to_state)}",
            escape(t.actor),
            escape(t.reason),
        )
        for t in history
    ]
    console.print(table("History", ("#", "at (UTC)", "trigger", "from → to", "actor", "reason"), rows))
    owed = [
        (e.name, e.state, f"{e.attempts}/{e.attempts_max}", moment(e.due_at), escape(e.last_error or ""))
        for e in effects
    ]  # fmt: skip
    for title, columns, items in (("Payments", PAYMENT, payments), ("Refunds", REFUND, refunds)):
        if items:
            shown = [[escape(str(getattr(item, name) or "")) for name in columns] for item in items]
            console.print(table(title, columns, shown))
    console.print(table("Effects", ("effect", "state", "attempts", "due (UTC)", "last error"), owed))


@app.command()
def explain(job_id: str = typer.Argument(metavar="JOB", help="The job's id."), as_json: bool = Json) -> None:
    """Say what may happen to a job next, and which guard blocks what and why.

    Example: `smi jobs explain 6f1c…`
    """
    with opened() as system:
        job = system.jobs.get_job(job_id)
        options = system.jobs.explain(job_id)
    if as_json:
        print_json(
            {
                "status": job.status,
                "options": [
                    {
                        "trigger": o.trigger, "to": o.to or job.status, "allowed": o.allowed, "by": o.by,
                        "blocked_by": [{"guard": guard, "reason": why} for guard, why in o.blocked_by],
                        "needs_facts": list(o.needs),
                    }
                    for o in options
                ],
            }
        )  # fmt: skip
        return
    rows = []
    for option in options:
        verdict = "[green]possible[/]" if option.allowed else "[red]blocked[/]"
        why = "; ".join(f"{guard}: {reason}" for guard, reason in option.blocked_by)
        needs = f"depends on {', '.join(option.needs)}" if option.needs and option.allowed else ""
        rows.append((option.trigger, state(option.to or job.status), verdict, escape(why) or needs, option.by))
    console.print(table(f"Job {job_id} is {job.status}", ("trigger", "to", "", "why", "by"), rows))


def _effects(system: App, job_id: str) -> list[EffectRow]:
    effects = system.tables.effects
    query = effects.select().where((effects.workflow == "job") & (effects.subject_id == job_id))
    return list(query.order_by(effects.sequence, effects.id))


def _row(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in SHOWN}


def _transition(item: Any) -> dict[str, Any]:
    return {
        "sequence": item.sequence, "at": item.created_at, "trigger": item.trigger, "from": item.from_state,
        "to": item.to_state, "actor": item.actor, "reason": item.reason, "metadata": json.loads(item.metadata),
    }  # fmt: skip


def _effect(item: EffectRow) -> dict[str, Any]:
    return {
        "id": item.id, "name": item.name, "state": item.state, "attempts": item.attempts,
        "attempts_max": item.attempts_max, "due_at": item.due_at, "last_error": item.last_error,
        "settled_at": item.settled_at,
    }  # fmt: skip


def _price(job: Job) -> str:
    return f"{from_cents(job.amount_due_cents, job.currency)} {job.currency}"
