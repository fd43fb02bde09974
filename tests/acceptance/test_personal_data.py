"""Where a buyer's address goes while real processes sell: its column, Stripe's event and the mails, no further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smi_workflow.engine.tables import Tables
from tests.support.stack import Stack, running_stack

NAME, ADDRESS = "Unmistakable", "unmistakable.buyer@example.com"


def test_a_buyers_address_is_in_no_log_no_message_and_no_history(tmp_path: Path) -> None:
    with running_stack(
        tmp_path, SMI_REFUND_DELAY_MINUTES="0", SMI_ADMIN_EMAIL="owner@example.com"
    ) as (stack, site):
        delivered = sold(stack, f"{site.url}/photo.png")
        stack.wait_for(delivered, lambda job: bool(job.email_sent), "the mail")
        stack.sandbox.upsampler.faults.add(
            {"method": "POST"}, {"kind": "status", "status": 400, "body": {"error": "No."}}, times=1
        )
        refunded = sold(stack, f"{site.url}/photo.png")
        stack.wait_for(refunded, lambda job: job.refunded_cents == job.paid_cents, "the money to go back")
        stack.wait(lambda: len(mails(stack)) >= 3, "the mails about it")
        tables = stack.app.tables
        kept = columns_that_hold_it(tables)
        # Two columns of the job's own: what clears personal data knows them.
        jobs = {job.email for job in stack.app.job_tables.jobs.select()}
        assert jobs == {ADDRESS}
        # Everything that the processes wrote, and every command that the broker took.
    texts = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and is_ours(path, tmp_path)}
    assert [path for path in texts if path.name == "web.log"]
    assert any("appendonly" in str(path) for path in texts), sorted(map(str, texts))
    for path, text in texts.items():
        assert ADDRESS.encode() not in text and NAME.encode() not in text, path
    assert kept <= {"EventRow.payload"}, kept


def sold(stack: Stack, image_url: str) -> str:
    """Order and pay, under one address."""
    job_id = stack.order(image_url, (60, 40))
    stack.pay(job_id, ADDRESS)
    return job_id


def mails(stack: Stack) -> list[Any]:
    """What the buyer got."""
    return [mail for mail in stack.ledger("mail_http")["mails"] if ADDRESS in str(mail)]


def columns_that_hold_it(tables: Tables) -> set[str]:
    """The engine's columns in which the address stands."""
    found = set()
    for table in tables.all():
        rows: list[dict[str, object]] = list(table.select().dicts())  # type: ignore[arg-type]
        found |= {f"{table.__name__}.{name}" for row in rows for name in row if ADDRESS in str(row[name])}
    return found


def is_ours(path: Path, folder: Path) -> bool:
    """Logs and the broker's files; neither the database, nor the imitated providers' own books."""
    relative = path.relative_to(folder).as_posix()
    return relative.endswith(".log") or relative.startswith("var/broker")
