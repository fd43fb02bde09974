"""Owns what a chaos run says: the table, the JSON file, and the story of each job that came out wrong.

Called by run.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import LINK_SUBJECT, Finding
from tests.chaos.evidence import Evidence
from tests.chaos.system import System

STORIES = 8

FIGURES = {
    "attempts beyond the first": "SELECT coalesce(sum(greatest(attempts - 1, 0)), 0) FROM wp_smi_effects",
    "effects run": "SELECT count(*) FROM wp_smi_effects WHERE attempts > 0",
    "effects failed for good": "SELECT count(*) FROM wp_smi_effects WHERE state = 'failed'",
    "effects skipped (visit over)": "SELECT count(*) FROM wp_smi_effects WHERE state = 'skipped'",
    "late results refused": "SELECT count(*) FROM wp_smi_audit WHERE act = 'late_result'",
    "transitions": "SELECT count(*) FROM wp_smi_transitions",
    "events taken in": "SELECT count(*) FROM wp_smi_inbox",
    "events applied": "SELECT count(*) FROM wp_smi_inbox WHERE state = 'applied'",
    "events ignored with a reason": "SELECT count(*) FROM wp_smi_inbox WHERE state = 'ignored'",
    "events still parked": "SELECT count(*) FROM wp_smi_inbox WHERE state = 'parked'",
    "events that need a person": "SELECT count(*) FROM wp_smi_inbox WHERE state = 'needs_person'",
    "payments found at the deadline": (
        "SELECT count(*) FROM wp_smi_transitions WHERE trigger = 'payment_received' AND caused_by LIKE 'effect:%%'"
    ),
    "unexpected payments": "SELECT count(*) FROM wp_smi_transitions WHERE trigger = 'payment_unexpected'",
}
STORY = (
    ("row", "SELECT * FROM wp_smi_jobs WHERE job_id = %(job)s"),
    ("payments", "SELECT * FROM wp_smi_payments WHERE job_id = %(job)s"),
    ("refunds", "SELECT * FROM wp_smi_refunds WHERE job_id = %(job)s"),
    (
        "history",
        "SELECT created_at, workflow, sequence, trigger, from_state, to_state, actor, reason, metadata, caused_by"
        " FROM wp_smi_transitions WHERE subject_id = %(job)s OR subject_id IN"
        " (SELECT refund_id FROM wp_smi_refunds WHERE job_id = %(job)s) ORDER BY created_at, id",
    ),
    (
        "effects",
        "SELECT id, name, visit, state, due_at, attempts, doubts, waits, last_error, outcome, settled_at"
        " FROM wp_smi_effects WHERE subject_id = %(job)s OR subject_id IN"
        " (SELECT refund_id FROM wp_smi_refunds WHERE job_id = %(job)s) ORDER BY created_at, id",
    ),
    (
        "events",
        "SELECT received_at, provider, kind, state, reason, attempts, due_at, payload FROM wp_smi_inbox"
        " WHERE subject_id = %(job)s OR payload LIKE '%%' || %(job)s || '%%' ORDER BY received_at",
    ),
)


def figures(system: System, evidence: Evidence) -> dict[str, int]:
    """What happened, counted in the database and in the providers' books."""
    counted = {name: int(system.ask(query)[0][0]) for name, query in FIGURES.items()}
    charges = [charge for charge in evidence.stripe["charges"] if charge["status"] == "succeeded"]
    per_effect = Counter(one["webhook"] for one in evidence.upsampler)
    letters = Counter(mail.message_id for mail in evidence.mails)
    deliveries = [event["deliveries"] for event in evidence.stripe["events"]]
    deliveries += [one["deliveries"] for one in evidence.upsampler]
    outcomes = Counter(attempt["outcome"] for attempts in deliveries for attempt in attempts)
    return {
        **counted,
        "charges": len(charges),
        "refunds succeeded": sum(1 for one in evidence.stripe["refunds"] if one["status"] == "succeeded"),
        "refunds failed at the bank": sum(1 for one in evidence.stripe["refunds"] if one["status"] == "failed"),
        "jobs mailed a link": len({mail.job_id for mail in evidence.mails if mail.subject == LINK_SUBJECT}),
        "links opened": sum(len(openings) for openings in evidence.openings.values()),
        "webhooks lost": outcomes["lost"],
        "webhooks delivered": outcomes["delivered"],
        "webhooks delivered again": sum(
            max(0, sum(1 for one in attempts if one["outcome"] == "delivered") - 1) for attempts in deliveries
        ),
        "webhooks refused or unanswered": outcomes["failed"],
        "submissions to Upsampler": len(evidence.upsampler),
        "submitted again (no keys there)": sum(count - 1 for count in per_effect.values()),
        "mails": len(evidence.mails),
        "mails sent twice (same Message-ID)": sum(count - 1 for count in letters.values()),
    }


def show(console: Console, title: str, groups: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """The table at the end."""
    table = Table("what", "count", title=title, title_justify="left", show_edge=False)
    table.columns[1].justify = "right"
    for name, counts in groups:
        table.add_section()
        table.add_row(f"[bold]{name}[/]", "")
        for what, count in counts.items():
            table.add_row(f"  {what}", str(count))
    console.print(table)


def tell(console: Console, system: System, findings: list[Finding]) -> None:
    """The whole story of the first jobs that came out wrong."""
    for job_id in list(dict.fromkeys(finding.job_id for finding in findings))[:STORIES]:
        console.rule(f"job {job_id}")
        for finding in findings:
            if finding.job_id == job_id:
                console.print(f"[red]{finding.rule}[/]: {finding.text}", markup=True, soft_wrap=True)
        for part, query in STORY:
            console.print(f"[bold]{part}[/]")
            for row in system.ask(query, job=job_id):
                console.print("  " + " | ".join(str(value) for value in row), markup=False, soft_wrap=True)
