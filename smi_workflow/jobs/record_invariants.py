"""Owns the invariants of how a sale ends: in time, with its file, and forgotten when it must be.

Called by invariants.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from smi_workflow.engine.checking import OPEN, Invariant, Suspects, View, instant, invariant
from smi_workflow.engine.database import stamp
from smi_workflow.engine.event_invariants import contains, shows_address
from smi_workflow.jobs.model import Job, JobStatus
from smi_workflow.jobs.money_invariants import PAID, UNDER_WAY, held_cents
from smi_workflow.jobs.records import JOB, Sale, refunds_of, sale_of

AWAITING, PENDING, PROCESSING, COMPLETED, FAILED, ABANDONED = (item.value for item in JobStatus)
REFUND_DUE = "refund_due"
# A bank may take three days, and everything may wait a little.
BANK, SLACK = timedelta(hours=72), timedelta(hours=1)
# What begins the wait anew, and what tells a person that it ends in no other way.
RESTARTS = ("payment_received", "retry", "override", "dispute_closed")
TELLS = ("refund_failed", "notice_failed")
FORGETS = ("purge", "erase")


# -- in time ------------------------------------------------------------------------------------------------------


def ends_in_time(view: View, workflow: str, key: str) -> Iterator[str]:
    """What is paid is delivered or given back, or a person has been told that it cannot be."""
    sale = sale_of(view, key) if workflow == JOB else None
    if sale is None or sale.payment_status != PAID or sale.status == COMPLETED:
        return
    if sale.status in (AWAITING, ABANDONED):
        yield f"it is paid, and {sale.status}"
        return
    history = view.history(workflow, key)
    if any(item.sequence > sale.visit and item.trigger in TELLS for item in history):
        return
    if sale.status == FAILED and held_cents(sale) > 0 and not sale.disputed_cents and not _is_due(view, sale, key):
        yield f"it failed, {held_cents(sale)} cents are held, and nothing will give them back"
        return
    if sale.disputed_cents:
        # A bank has taken a part of it, and Stripe refunds nothing of it: a person has been told.
        return
    since = max((instant(item.created_at) for item in history if item.trigger in RESTARTS), default=None)
    kept = sale.paid_cents - sale.refunded_cents
    if kept > 0 and since is not None and since + patience(view) < view.now and not _bank_is_late(view, key):
        yield f"it is {sale.status}: paid, and neither delivered nor refunded since {since:%Y-%m-%d %H:%M} UTC"


def patience(view: View) -> timedelta:
    """The longest way from paid to ended: the deadlines of each state, the wait before the refund, the bank."""
    policy: Any = view.engine.registry.policy
    waits = timedelta(hours=policy.pending_timeout_hours, minutes=2 * policy.processing_timeout_minutes)
    return waits + timedelta(minutes=policy.refund_delay_minutes) + BANK + SLACK


def _is_due(view: View, sale: Sale, key: str) -> bool:
    return any(
        item.name == REFUND_DUE and item.visit == sale.visit and item.state in OPEN
        for item in view.effects(JOB, key)
    )


def _bank_is_late(view: View, key: str) -> bool:
    """A refund is under way for longer than 72 hours, and the admin has been told."""
    return any(
        item.state in UNDER_WAY and "overdue" in [past.trigger for past in view.history("refund", item.refund_id)]
        for item in refunds_of(view, key)
    )


def _endless(view: View) -> Suspects:
    jobs, effects = view.engine.bound(Job), view.engine.tables.effects
    is_paid = jobs.payment_status == PAID
    query = jobs.select(jobs.job_id).where(is_paid & jobs.status.in_((AWAITING, ABANDONED)))
    yield from ((JOB, found[0]) for found in view.rows(query))
    held = jobs.paid_cents - jobs.refunding_cents - jobs.refunded_cents - jobs.disputed_cents
    due = (effects.workflow == JOB) & (effects.subject_id == jobs.job_id) & (effects.visit == jobs.visit)
    due &= (effects.name == REFUND_DUE) & effects.state.in_(OPEN)
    lost = (jobs.status == FAILED) & is_paid & (held > 0) & (jobs.disputed_cents == 0) & effects.id.is_null()
    # Those of which a person has been told are suspects too: they must not hide the others.
    query = jobs.select(jobs.job_id).left_outer_join(effects, on=due).where(lost)
    yield from ((JOB, found[0]) for found in view.each(query))
    kept = (jobs.paid_cents > jobs.refunded_cents) & (jobs.disputed_cents == 0)
    late = jobs.status.in_((PENDING, PROCESSING, FAILED)) & is_paid & kept
    query = jobs.select(jobs.job_id).where(late & (jobs.paid_at < stamp(view.now - patience(view))))
    yield from ((JOB, found[0]) for found in view.each(query))


ENDS = invariant(
    "paid_job_ends",
    "A paid job is delivered or refunded within its deadlines and 72 hours for the bank, or a person was told, on "
    "record, that it could not be.",
    "`smi jobs explain JOB` says what may be done: `smi fire JOB retry --reason ...` delivers, "
    "`smi fire JOB refund --reason ...` gives the money back.",
    ends_in_time,
    _endless,
)


# -- files --------------------------------------------------------------------------------------------------------


def has_its_files(view: View, workflow: str, key: str) -> Iterator[str]:
    """Whoever has a link gets a file, and whoever waits has a source."""
    sale = sale_of(view, key) if workflow == JOB else None
    if sale is None:
        return
    if sale.status == COMPLETED and sale.upscaled_file_path:
        if not sale.download_token or sale.download_expires_at is None:
            yield "it has a file, and no link to it"
        if view.exists is not None and not view.exists(sale.upscaled_file_path):
            yield f"its file {sale.upscaled_file_path} is not in the storage"
    waits = sale.status in (AWAITING, PENDING, PROCESSING) and sale.purged_at is None
    if waits and view.exists is not None and not view.exists(sale.source_file):
        yield f"its source {sale.source_file} is not in the storage"


def _without_file(view: View) -> Suspects:
    jobs = view.engine.bound(Job)
    stored = (jobs.status == COMPLETED) & ~jobs.upscaled_file_path.is_null()
    unlinked = jobs.download_token.is_null() | jobs.download_expires_at.is_null()
    yield from ((JOB, found[0]) for found in view.rows(jobs.select(jobs.job_id).where(stored & unlinked)))
    if view.exists is None:
        return
    waits = jobs.status.in_((AWAITING, PENDING, PROCESSING)) & jobs.purged_at.is_null()
    for column, condition in ((jobs.upscaled_file_path, stored), (jobs.source_file, waits)):
        for job_id, name in view.each(jobs.select(jobs.job_id, column).where(condition)):
            if name and not view.exists(name):
                yield JOB, job_id


FILES = invariant(
    "files_there",
    "A delivered job has its file and its link until the link ends; a job that waits has its source.",
    "Restore the storage from a backup; or `smi fire JOB retry --fact override=true --reason ...` makes the result"
    " again, where the source is still there, and `smi fire JOB refund` gives the money back.",
    has_its_files,
    _without_file,
)


# -- forgotten ----------------------------------------------------------------------------------------------------


def is_forgotten(view: View, workflow: str, key: str) -> Iterator[str]:
    """What is purged holds nothing of the person; and no text kept for good names the buyer."""
    sale = sale_of(view, key) if workflow == JOB else None
    if sale is None:
        return
    if shows_address(sale.refund_reason):
        yield "its refund_reason holds an e-mail address"
    if sale.email and any(
        sale.email in text and not shows_address(text)
        for item in view.history(workflow, key)
        for text in (item.reason, item.metadata)
    ):
        yield "its history holds the buyer's address"
    if sale.purged_at is None:
        return
    history = view.history(workflow, key)
    when = max((item.sequence for item in history if item.trigger in FORGETS), default=0)
    since = {item.trigger for item in history if item.sequence > when}
    for name, value, brought_by in (
        ("email", sale.email, {"payment_received", "amend"}),
        ("image_url", sale.image_url, set()),
        ("checkout_url", sale.checkout_url, {"checkout_opened"}),
        ("upscaled_url", sale.upscaled_url, {"upscale_delivered"}),
    ):
        if value and not since & brought_by:
            yield f"it is purged, and its {name} is still there"


def _remembered(view: View) -> Suspects:
    jobs = view.engine.bound(Job)
    purged = ~jobs.purged_at.is_null()
    left = ~jobs.email.is_null() | (jobs.image_url != "") | ~jobs.checkout_url.is_null()
    left |= ~jobs.upscaled_url.is_null()
    # What came back after the purge is right, and must not hide the rest.
    query = jobs.select(jobs.job_id).where((purged & left) | contains("@", jobs.refund_reason))
    yield from ((JOB, found[0]) for found in view.each(query))


FORGOTTEN = invariant(
    "purged_is_forgotten",
    "A purged job holds no address of a person or page, and no text of a job names its buyer.",
    "`smi fire JOB erase --reason ...` clears the row once more; a text is overwritten with `(redacted)`, and the "
    "audit table told.",
    is_forgotten,
    _remembered,
)

RECORD_INVARIANTS: tuple[Invariant, ...] = (ENDS, FILES, FORGOTTEN)
