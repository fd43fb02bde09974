"""Owns the last judgement: what the providers' own books say, against what ours say. Called by sale.py.

It looks at nothing the engine has concluded: charges, refunds, mails and files on one side, rows on the other.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from smi_workflow.app import App
from smi_workflow.engine.invariants import Violation
from smi_workflow.engine.tables import Transition
from smi_workflow.integrations.letters import Letter
from smi_workflow.integrations.upsampler_api import UpscaleStatus
from smi_workflow.jobs.model import LOST, Job, JobStatus, Payment, Refund, RefundState
from smi_workflow.jobs.refunds import TRY
from smi_workflow.simulation.stripe_books import Books, Charge
from smi_workflow.simulation.upsampler import Work

# What an admin may do to goods and money, on record.
BY_HAND = ("override", "retry", "refund", "resend", "fail", "erase", "purge", "amend")
ENDS = (*LOST, RefundState.SUCCEEDED, RefundState.SETTLED_ELSEWHERE)


def judge(
    app: App, books: Books, mails: Sequence[Letter], works: Mapping[str, Work], told: Iterable[tuple[str, str]]
) -> Iterator[Violation]:
    """What does not fit, once everything has come to rest."""
    jobs = {job.job_id: job for job in app.job_tables.jobs.select()}
    payments = {row.payment_intent_id: row for row in app.job_tables.payments.select()}
    refunds: dict[str, list[Refund]] = defaultdict(list)
    for refund in app.job_tables.refunds.select():
        refunds[refund.payment_intent_id].append(refund)
    history = _history(app)
    for charge in books.charges.values():
        if charge.settled:
            problem = _judge_charge(
                charge, books, jobs.get(charge.job_id), payments.get(charge.intent), refunds[charge.intent],
                history[charge.job_id], app.settings.unexpected_payment == "hold",
            )  # fmt: skip
            if problem:
                yield Violation("nobody is charged without goods or money back", "job", charge.job_id, problem)
    for intent in payments:
        if intent not in books.charges:
            yield Violation("every payment on record exists at Stripe", "job", payments[intent].job_id, intent)
    opened = Counter(session.job_id for session in books.sessions.values() if session.ours)
    for job_id, count in opened.items():
        began_anew = any(trigger == "override" for trigger, _ in history[job_id])
        if count > 1 and not began_anew:
            yield Violation("one checkout is opened for a job", "job", job_id, f"{count} were")
    yield from _judge_refunds(books, refunds)
    yield from _judge_mails(jobs, mails, history)
    yield from _judge_hooks(app, told)
    done = {work.job_id for work in works.values() if work.status is UpscaleStatus.SUCCESS}
    for job in jobs.values():
        if job.status == JobStatus.COMPLETED and job.job_id not in done:
            yield Violation("what is delivered was upscaled", "job", job.job_id, "Upsampler knows of no result")
        if job.status not in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.ABANDONED):
            yield Violation("every job comes to an end", "job", job.job_id, f"it is still {job.status}")


def _judge_charge(
    charge: Charge, books: Books, job: Job | None, payment: Payment | None, refunds: Sequence[Refund],
    history: Sequence[tuple[str, str]], may_be_held: bool,
) -> str:  # fmt: skip
    if job is None:
        return f"{charge.intent} was charged for a job that does not exist"
    if payment is None:
        return f"{charge.intent} was charged, and is not on record"
    if (payment.cents, payment.currency, payment.livemode) != (charge.cents, charge.currency, charge.livemode):
        return f"{charge.intent}: {charge.cents} {charge.currency} were charged, {payment.cents} are on record"
    settled = sum(
        one.cents for one in books.refunds.values() if one.intent == charge.intent and _is_back(one.status)
    )
    said_elsewhere = any(one.state == RefundState.SETTLED_ELSEWHERE for one in refunds)
    # An admin who says that the buyer has the money otherwise leaves no room for what Stripe gave back meanwhile.
    if settled != payment.refunded_cents and not said_elsewhere:
        return f"{charge.intent}: {settled} were refunded, {payment.refunded_cents} are on record"
    if settled > charge.cents:
        return f"{charge.intent}: {settled} were refunded of {charge.cents}"
    kept = charge.cents - settled - charge.withdrawn_cents
    given_up = any(one.state in (*LOST, RefundState.SETTLED_ELSEWHERE) for one in refunds)
    if payment.role != "sale":
        text = f"{charge.intent}: {kept} of a {payment.role} payment are kept"
        return "" if kept <= 0 or given_up or may_be_held else text
    delivered = job.status == JobStatus.COMPLETED
    acted = any(actor.startswith("admin:") and trigger in BY_HAND for trigger, actor in history)
    if kept > 0 and not delivered and not given_up and not acted:
        return f"{kept} of {charge.cents} are kept, and the job is {job.status}"
    told = any(
        trigger in ("refund_settled", "dispute_opened", "dispute_closed") and actor in ("stripe", "system")
        for trigger, actor in history
    )
    if kept <= 0 and delivered and not acted and not told:
        return "delivered, and the money went back"
    return ""


def _judge_refunds(books: Books, refunds: Mapping[str, Sequence[Refund]]) -> Iterator[Violation]:
    made: dict[tuple[str, str], list[str]] = defaultdict(list)
    for refund in books.refunds.values():
        if "refund_id" in refund.metadata:
            made[(refund.metadata["refund_id"], refund.metadata.get(TRY, "1"))].append(refund.id)
    for (name, _), ids in made.items():
        if len(ids) > 1:
            yield Violation("money goes back once", "refund", name, f"it was refunded as {', '.join(ids)}")
    for row in (one for group in refunds.values() for one in group):
        at_stripe = books.refunds.get(row.stripe_refund_id or "")
        if row.state == RefundState.SUCCEEDED and (at_stripe is None or not _is_back(at_stripe.status)):
            yield Violation("a refund on record is one at Stripe", "refund", row.refund_id, "Stripe knows better")
        if row.state not in ENDS:
            yield Violation("every refund comes to an end", "refund", row.refund_id, f"it is still {row.state}")


def _judge_mails(
    jobs: Mapping[str, Job], mails: Sequence[Letter], history: Mapping[str, Sequence[tuple[str, str]]]
) -> Iterator[Violation]:
    linked = {job_id for letter in mails if "/download/" in letter.text for job_id in _named(letter, jobs)}
    for job in jobs.values():
        sent = job.job_id in linked
        triggers = [trigger for trigger, _ in history[job.job_id]]
        if job.email_sent and not sent:
            yield Violation("a link that was sent went out", "job", job.job_id, "no mail carries it")
        excused = {"notice_failed", "override", "erase", "purge"} & set(triggers)
        if "complete" in triggers and job.status == JobStatus.COMPLETED and not sent and not excused:
            yield Violation("every buyer gets the link", "job", job.job_id, "no mail carries it")


def _judge_hooks(app: App, told: Iterable[tuple[str, str]]) -> Iterator[Violation]:
    """A receiver that puts the messages in order knows how each sale went, whatever came twice or late."""
    bodies: dict[str, str] = {}
    for message_id, body in told:
        if bodies.setdefault(message_id, body) != body:
            yield Violation("a message is the same each time", None, None, f"{message_id} said different things")
    heard = [json.loads(body) for body in bodies.values()]
    words = Counter((one["data"]["job_id"], one["data"]["sequence"], one["type"]) for one in heard)
    happened, missed = set(), set()
    table = app.tables.transitions
    for row in table.select().where(table.workflow == "job"):
        word = _word_of(row)
        if word is not None:
            happened.add((row.subject_id, row.sequence, word))
        if row.trigger == "hook_failed":
            details = json.loads(row.metadata)
            missed.add((row.subject_id, details["missed"], details["hook"]))
    for job_id, sequence, word in sorted(happened ^ set(words)):
        if (job_id, sequence, word) not in missed:
            problem = f"{word} of transition {sequence} was told, or was not, against what happened"
            yield Violation("receivers hear of all that happens", "job", job_id, problem)
    for (job_id, sequence, word), count in words.items():
        if count > 1:
            problem = f"{word} of transition {sequence} came as {count} messages"
            yield Violation("receivers hear of each thing once", "job", job_id, problem)


def _word_of(row: Transition) -> str | None:
    """What a receiver is told of a transition, if anything; an admin who overrides tells whom she wants to."""
    if row.trigger in ("create", "payment_received", "complete"):
        return {"create": "job_created", "payment_received": "payment_completed"}.get(row.trigger, "job_completed")
    fails = row.to_state == JobStatus.FAILED != row.from_state and row.trigger != "override"
    return "job_failed" if fails else None


def _named(letter: Letter, jobs: Mapping[str, Job]) -> list[str]:
    return [word for word in letter.text.replace(".", " ").split() if word in jobs]


def _history(app: App) -> dict[str, list[tuple[str, str]]]:
    table = app.tables.transitions
    told: dict[str, list[tuple[str, str]]] = defaultdict(list)
    query = table.select(table.subject_id, table.trigger, table.actor).where(table.workflow == "job")
    for row in query.order_by(table.id):
        told[row.subject_id].append((row.trigger, row.actor))
    return told


def _is_back(status: str) -> bool:
    return status == "succeeded"
