"""Owns what is right as it is, but waits for a person. Called by `smi doctor`.

None of it breaks an invariant: the machine has done what it can, and said so in the history.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from peewee import fn

from smi_workflow.engine.checking import Invariant, View, Violation, alone
from smi_workflow.engine.tables import EventState
from smi_workflow.jobs import model
from smi_workflow.jobs.hooks import HOOK_MISSED
from smi_workflow.jobs.model import Alert, AlertState, Job, JobStatus, Payment, PaymentRole, PaymentStatus, Refund
from smi_workflow.jobs.records import JOB, REFUND

UNDER_WAY, LOST = (tuple(state.value for state in states) for states in (model.UNDER_WAY, model.LOST))

DEAF_OF_LATE = timedelta(days=7)


def _events(view: View) -> Iterator[Violation]:
    table, alerts = view.engine.tables.events, view.engine.bound(Alert)
    columns = (table.id, table.kind, table.provider, table.received_at)
    seen_to = (alerts.alert_id == table.id) & (alerts.state == AlertState.CLOSED.value)
    waiting = table.select(*columns).left_outer_join(alerts, on=seen_to)
    waiting = waiting.where((table.state == EventState.NEEDS_PERSON.value) & alerts.id.is_null())
    for event_id, kind, provider, _ in view.rows(waiting.order_by(table.received_at)):
        yield Violation(EVENTS.name, None, None, f"event {event_id} ({kind} of {provider}) could not be applied")


def _held_money(view: View) -> Iterator[Violation]:
    jobs, effects = view.engine.bound(Job), view.engine.tables.effects
    held = jobs.paid_cents - jobs.refunding_cents - jobs.refunded_cents - jobs.disputed_cents
    due = (effects.workflow == JOB) & (effects.subject_id == jobs.job_id) & (effects.visit == jobs.visit)
    due &= (effects.name == "refund_due") & effects.state.in_(("due", "claimed"))
    failed = (jobs.status == JobStatus.FAILED.value) & (jobs.payment_status == PaymentStatus.PAID.value)
    query = jobs.select(jobs.job_id, held, jobs.currency).left_outer_join(effects, on=due)
    for job_id, cents, currency in view.rows(query.where(failed & (held > 0) & effects.id.is_null())):
        text = f"it failed, and {cents} {currency} (minor units) could not be given back"
        yield Violation(HELD.name, JOB, job_id, text)


def _unexpected(view: View) -> Iterator[Violation]:
    payments, refunds = view.engine.bound(Payment), view.engine.bound(Refund)
    back = (refunds.payment_intent_id == payments.payment_intent_id) & refunds.state.not_in(LOST)
    columns = (payments.job_id, payments.payment_intent_id, payments.cents, payments.currency)
    strange = (payments.role != PaymentRole.SALE.value) & (payments.refunded_cents == 0) & refunds.id.is_null()
    query = payments.select(*columns).left_outer_join(refunds, on=back).where(strange)
    for job_id, intent, cents, currency in view.rows(query):
        text = f"payment {intent} of {cents} {currency} (minor units) fits no sale, and is held"
        yield Violation(UNEXPECTED.name, JOB, job_id, text)


def _slow_refunds(view: View) -> Iterator[Violation]:
    refunds, history = view.engine.bound(Refund), view.engine.tables.transitions
    open_ = refunds.state.in_(UNDER_WAY)
    told = (
        (history.workflow == REFUND) & (history.subject_id == refunds.refund_id) & (history.trigger == "overdue")
    )
    query = refunds.select(refunds.refund_id, refunds.job_id).join(history, on=told).where(open_)
    for refund_id, job_id in view.rows(query):
        yield Violation(SLOW.name, REFUND, refund_id, f"of job {job_id}: not settled within 72 hours")


def _lost_refunds(view: View) -> Iterator[Violation]:
    refunds = view.engine.bound(Refund)
    later = refunds.alias()
    same = (later.payment_intent_id == refunds.payment_intent_id) & (later.id > refunds.id)
    columns = (refunds.refund_id, refunds.job_id, refunds.cents, refunds.currency, refunds.state)
    query = refunds.select(*columns).left_outer_join(later, on=same & later.state.not_in(LOST))
    # What was made at Stripe's own pages is for whoever made it there.
    for refund_id, job_id, cents, currency, state in view.rows(
        query.where(refunds.state.in_(LOST) & (refunds.tries > 0) & later.id.is_null())
    ):
        text = f"of job {job_id}: {cents} {currency} (minor units) did not go back, it is {state}"
        yield Violation(REFUNDS.name, REFUND, refund_id, text)


def _deaf_receivers(view: View) -> Iterator[Violation]:
    audit = view.engine.tables.audit
    recent = audit.created_at > view.now - DEAF_OF_LATE
    query = audit.select(audit.target, fn.COUNT(audit.id)).where(recent & (audit.act == HOOK_MISSED))
    for target, days in view.rows(query.group_by(audit.target).order_by(audit.target)):
        name = str(target).removeprefix("hook:")
        yield Violation(DEAF.name, None, None, f"receiver {name} missed messages on {days} of the last seven days")


EVENTS = alone(
    "events_for_a_person",
    "Events that could not be applied for three days.",
    "Compare the job with what the provider's dashboard says, and move it: `smi jobs explain JOB`; then "
    "`smi fire --alert EVENT close --reason ...`.",
    _events,
)
HELD = alone(
    "money_for_a_person",
    "Failed jobs whose money could not be given back.",
    "`smi fire JOB refund --reason ...` tries again; where the card is gone, pay the buyer in another way and "
    "say so: `smi fire --refund REFUND settle_elsewhere --reason ...`.",
    _held_money,
)
UNEXPECTED = alone(
    "payments_for_a_person",
    "Payments that fit no sale and were not sent back (SMI_UNEXPECTED_PAYMENT=hold, or the refund failed).",
    "`smi fire JOB return_payment --fact payment_intent_id=INTENT --reason ...`; or refund them at Stripe's "
    "dashboard: the job learns of it by itself.",
    _unexpected,
)
REFUNDS = alone(
    "lost_refunds_for_a_person",
    "Refunds that failed or were called off, and that no later one has made good.",
    "`smi fire --refund REFUND retry --reason ...` sends it once more; `settle_elsewhere` instead of `retry` says "
    "that the buyer was paid back in another way.",
    _lost_refunds,
)
SLOW = alone(
    "refunds_for_a_person",
    "Refunds that a bank has not settled for three days.",
    "Look at Stripe's dashboard; Stripe tells when it ends.",
    _slow_refunds,
)

DEAF = alone(
    "receivers_for_a_person",
    "Receivers of hooks that did not take a message in three days of trying.",
    "`smi doctor --only hooks` says where it is and whether it answers; mend it, or take it out of SMI_HOOK_URLS. "
    "What it missed is in the histories (`hook_failed`).",
    _deaf_receivers,
)

ATTENTION: tuple[Invariant, ...] = (EVENTS, HELD, UNEXPECTED, REFUNDS, SLOW, DEAF)
