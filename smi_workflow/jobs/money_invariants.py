"""Owns law 11 as invariants: what was captured, what goes back, that nobody has both. Called by invariants.py."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from peewee import JOIN, Case, fn

from smi_workflow.engine.checking import Invariant, Suspects, View, invariant
from smi_workflow.engine.event_invariants import contains
from smi_workflow.jobs import model
from smi_workflow.jobs.model import (
    Dispute,
    Job,
    JobStatus,
    Payment,
    PaymentRole,
    PaymentStatus,
    Refund,
    RefundState,
)
from smi_workflow.jobs.pricing import THREE_DECIMAL, ZERO_DECIMAL, from_cents
from smi_workflow.jobs.records import (
    JOB,
    REFUND,
    Sale,
    disputes_of,
    payments_of,
    refund_itself,
    refunds_of,
    sale_of,
)

PAID, SALE = PaymentStatus.PAID.value, PaymentRole.SALE.value
UNDER_WAY = tuple(state.value for state in model.UNDER_WAY)
SUCCEEDED = RefundState.SUCCEEDED.value
# What the buyer has back, at Stripe or in another way; and what Stripe must have given an id.
SETTLED = (SUCCEEDED, RefundState.SETTLED_ELSEWHERE.value)
AT_STRIPE = (RefundState.SUBMITTED.value, RefundState.PENDING.value, SUCCEEDED)
WITH_GOODS = (JobStatus.PENDING.value, JobStatus.PROCESSING.value, JobStatus.COMPLETED.value)
# What takes money back after the goods are out, and by whom: Stripe's own refund is of none of ours; only an admin
# says that the buyer was paid back elsewhere, or tries a refund again.
NOT_OURS = '"refund_id":""'
ELSEWHERE = '"elsewhere":true'
BY_OTHERS = ("dispute_opened", "dispute_closed", "refund_retried")


# -- captured -----------------------------------------------------------------------------------------------------


def is_paid_once(view: View, workflow: str, key: str) -> Iterator[str]:
    """The payments on record are what the row says, and what history received."""
    sale = sale_of(view, key) if workflow == JOB else None
    if sale is None:
        return
    payments = payments_of(view, key)
    own = [item for item in payments if item.role == SALE]
    if len(own) != (1 if sale.payment_status == PAID else 0):
        yield f"it is {sale.payment_status}, and has {len(own)} payments of the sale"
    if sale.paid_cents != sum(item.cents for item in own):
        yield f"it counts {sale.paid_cents} cents as paid, its payments are {sum(item.cents for item in own)}"
    for item in own:
        if item.payment_intent_id != sale.stripe_payment_intent_id:
            yield f"it was paid by {item.payment_intent_id}, and names {sale.stripe_payment_intent_id}"
        due = (sale.amount_due_cents, sale.currency, bool(sale.livemode))
        if (item.cents, item.currency, bool(item.livemode)) != due:
            yield (
                f"{item.cents} {item.currency} were taken for {due[0]} {due[1]}"
                f" ({'live' if item.livemode else 'test'} mode, the job is {'live' if due[2] else 'test'})"
            )
    if own and not _same_amount(sale.amount_charged, sale.paid_cents, sale.currency):
        yield f"amount_charged says {sale.amount_charged}, paid were {sale.paid_cents} cents of {sale.currency}"
    triggers = [item.trigger for item in view.history(workflow, key)]
    for trigger, count in (("payment_received", len(own)), ("payment_unexpected", len(payments) - len(own))):
        if triggers.count(trigger) != count:
            yield f"history has {triggers.count(trigger)} {trigger}, the payments are {count}"


def _same_amount(shown: Any, cents: int, currency: str) -> bool:
    return shown is not None and Decimal(str(shown)) == from_cents(cents, currency)


def _shown_wrongly(shown: Any, cents: Any, currency: Any) -> Any:
    """In SQL, where the currency has the usual two places."""
    usual = currency.not_in(sorted(ZERO_DECIMAL | THREE_DECIMAL))
    return usual & (fn.ROUND(fn.COALESCE(shown, 0) * 100) != cents)


def _paid_oddly(view: View) -> Suspects:
    jobs, payments = view.engine.bound(Job), view.engine.bound(Payment)
    own = (payments.job_id == jobs.job_id) & (payments.role == SALE)
    has, is_paid = ~payments.id.is_null(), jobs.payment_status == PAID
    wrong = (
        (is_paid & ~has)
        | (~is_paid & (has | (jobs.paid_cents != 0)))
        | (
            has
            & (
                (payments.cents != jobs.paid_cents)
                | (payments.cents != jobs.amount_due_cents)
                | (payments.payment_intent_id != jobs.stripe_payment_intent_id)
                | jobs.stripe_payment_intent_id.is_null()
                | (payments.currency != jobs.currency)
                | (payments.livemode != jobs.livemode)
                | _shown_wrongly(jobs.amount_charged, jobs.paid_cents, jobs.currency)
            )
        )
    )
    query = jobs.select(jobs.job_id).left_outer_join(payments, on=own).where(wrong)
    yield from ((JOB, found[0]) for found in view.rows(query))
    for query in _received_oddly(view):
        yield from ((JOB, found[0]) for found in view.rows(query))


def _received_oddly(view: View) -> Iterator[Any]:
    """Jobs with another number of payments than their history received.

    First the numbers of the jobs' rows are added up, once by their payments and once by their history: where both
    come to the same, nobody needs to be looked for.
    """
    jobs, payments, history = view.engine.bound(Job), view.engine.bound(Payment), view.engine.tables.transitions
    for trigger, of_role in (
        ("payment_received", payments.role == SALE), ("payment_unexpected", payments.role != SALE),
    ):  # fmt: skip
        told = view.of(JOB, history.workflow) & (history.trigger == trigger)
        total = (fn.COUNT(jobs.id), fn.SUM(jobs.id))
        paid = payments.select(*total).join(jobs, JOIN.LEFT_OUTER, on=(jobs.job_id == payments.job_id))
        received = history.select(*total).join(jobs, JOIN.LEFT_OUTER, on=(jobs.job_id == history.subject_id))
        if list(view.each(paid.where(of_role))) != list(view.each(received.where(told))):
            yield from _unlike(payments, history, of_role, told)


def _unlike(payments: Any, history: Any, of_role: Any, told: Any) -> Iterator[Any]:
    paid = payments.select(payments.job_id, fn.COUNT(payments.id).alias("n")).where(of_role)
    paid = paid.group_by(payments.job_id)
    received = history.select(history.subject_id, fn.COUNT(history.id).alias("n")).where(told)
    received = received.group_by(history.subject_id)
    same = paid.c.job_id == received.c.subject_id
    yield (
        paid.select_from(paid.c.job_id)
        .left_outer_join(received, on=same)
        .where(received.c.n.is_null() | (received.c.n != paid.c.n))
    )
    yield received.select_from(received.c.subject_id).left_outer_join(paid, on=same).where(paid.c.n.is_null())


PAYMENTS = invariant(
    "payments_match",
    "A paid job has one payment of exactly its amount, currency and mode; every payment on record came by a "
    "transition, and every such transition left its payment.",
    "Compare the job with Stripe's dashboard by its payment intent; what was taken wrongly goes back with "
    "`smi fire JOB refund --reason ...`, or at the dashboard.",
    is_paid_once,
    _paid_oddly,
)


# -- given back ---------------------------------------------------------------------------------------------------


def adds_up(view: View, workflow: str, key: str) -> Iterator[str]:
    """Refunds, payments and the row agree on what went back and what is on its way."""
    if workflow == REFUND:
        yield from _refund_fits(view, key)
        return
    sale = sale_of(view, key) if workflow == JOB else None
    if sale is None:
        return
    refunds = refunds_of(view, key)
    own = [item for item in refunds if item.role == SALE]
    under_way = sum(item.cents for item in own if item.state in UNDER_WAY)
    settled = sum(item.cents for item in own if item.state in SETTLED)
    if sale.refunding_cents != under_way:
        yield f"it counts {sale.refunding_cents} cents on their way back, its refunds are {under_way}"
    if sale.refunded_cents != settled:
        yield f"it counts {sale.refunded_cents} cents as refunded, its refunds are {settled}"
    if min(sale.paid_cents, sale.refunding_cents, sale.refunded_cents, sale.disputed_cents) < 0:
        yield "an amount is negative"
    if sale.refunding_cents + sale.refunded_cents > sale.paid_cents:
        yield f"more goes back than the {sale.paid_cents} cents that were paid"
    if sale.refunded_cents and not _same_amount(sale.refund_amount, sale.refunded_cents, sale.currency):
        yield f"refund_amount says {sale.refund_amount}, refunded were {sale.refunded_cents} {sale.currency}"
    disputes = [item for item in disputes_of(view, key) if item.role == SALE]
    disputed = sum(item.withdrawn_cents for item in disputes if not item.reinstated)
    if sale.disputed_cents != disputed:
        yield f"it counts {sale.disputed_cents} cents as charged back, its disputes are {disputed}"
    for payment in payments_of(view, key):
        back = sum(
            item.cents
            for item in refunds
            if item.payment_intent_id == payment.payment_intent_id and item.state == SUCCEEDED
        )
        if payment.refunded_cents != back:
            yield f"payment {payment.payment_intent_id} counts {payment.refunded_cents} cents back, refunds {back}"
        if back > payment.cents:
            yield f"{back} cents of payment {payment.payment_intent_id} went back, {payment.cents} were paid"


def _refund_fits(view: View, key: str) -> Iterator[str]:
    refund = refund_itself(view, key)
    if refund is None:
        return
    if refund.cents <= 0:
        yield f"it is of {refund.cents} cents"
    if refund.stripe_refund_id is None and refund.state in AT_STRIPE:
        yield f"it is {refund.state} and has no id at Stripe"
    of = [item for item in payments_of(view, refund.job_id) if item.payment_intent_id == refund.payment_intent_id]
    if not of:
        yield f"its payment {refund.payment_intent_id} is not one of job {refund.job_id}"
    elif (of[0].currency, of[0].role) != (refund.currency, refund.role):
        yield f"it is of {refund.currency} for a {refund.role}, the payment {of[0].currency} for a {of[0].role}"


def _not_adding_up(view: View) -> Suspects:
    jobs, payments, refunds = view.engine.bound(Job), view.engine.bound(Payment), view.engine.bound(Refund)
    under_way, settled = refunds.state.in_(UNDER_WAY), refunds.state == SUCCEEDED
    given_back = refunds.state.in_(SETTLED)
    sums = (_sum(under_way, refunds).alias("way"), _sum(given_back, refunds).alias("back"))
    counted = (
        refunds.select(refunds.job_id, *sums)
        .where(refunds.role == SALE)
        .group_by(refunds.job_id)
    )
    odd = (
        (jobs.refunding_cents != fn.COALESCE(counted.c.way, 0))
        | (jobs.refunded_cents != fn.COALESCE(counted.c.back, 0))
        | (jobs.paid_cents < 0)
        | (jobs.refunding_cents < 0)
        | (jobs.refunded_cents < 0)
        | (jobs.disputed_cents < 0)
        | (jobs.refunding_cents + jobs.refunded_cents > jobs.paid_cents)
        | ((jobs.refunded_cents != 0) & _shown_wrongly(jobs.refund_amount, jobs.refunded_cents, jobs.currency))
    )
    query = jobs.select(jobs.job_id).left_outer_join(counted, on=(counted.c.job_id == jobs.job_id)).where(odd)
    yield from ((JOB, found[0]) for found in view.rows(query))
    by_payment = refunds.select(refunds.payment_intent_id, _sum(settled, refunds).alias("back"))
    by_payment = by_payment.group_by(refunds.payment_intent_id)
    off = (payments.refunded_cents != fn.COALESCE(by_payment.c.back, 0)) | (
        payments.refunded_cents > payments.cents
    )
    joined = payments.select(payments.job_id).left_outer_join(
        by_payment, on=(by_payment.c.payment_intent_id == payments.payment_intent_id)
    )
    yield from ((JOB, found[0]) for found in view.rows(joined.where(off)))
    its = (payments.payment_intent_id == refunds.payment_intent_id) & (payments.job_id == refunds.job_id)
    unfit = (
        payments.id.is_null()
        | (payments.currency != refunds.currency)
        | (payments.role != refunds.role)
        | (refunds.cents <= 0)
        | (refunds.stripe_refund_id.is_null() & refunds.state.in_(AT_STRIPE))
    )
    strange = refunds.select(refunds.refund_id).left_outer_join(payments, on=its).where(unfit)
    yield from ((REFUND, found[0]) for found in view.rows(strange))


    yield from _disputed_oddly(view)


def _disputed_oddly(view: View) -> Suspects:
    jobs, disputes = view.engine.bound(Job), view.engine.bound(Dispute)
    kept = fn.SUM(Case(None, [(disputes.reinstated, 0)], disputes.withdrawn_cents))
    counted = disputes.select(disputes.job_id, kept.alias("kept")).where(disputes.role == SALE)
    counted = counted.group_by(disputes.job_id)
    its = counted.c.job_id == jobs.job_id
    unlike = jobs.disputed_cents != fn.COALESCE(counted.c.kept, 0)
    query = jobs.select(jobs.job_id).left_outer_join(counted, on=its).where(unlike)
    yield from ((JOB, found[0]) for found in view.rows(query))


def _sum(condition: Any, refunds: Any) -> Any:
    return fn.SUM(Case(None, [(condition, refunds.cents)], 0))


REFUNDS = invariant(
    "refunds_add_up",
    "What the job, its payments and its refunds say of money given back and on its way back is the same, never "
    "negative, and never more than was paid.",
    "Compare with Stripe's dashboard by the payment intent; set the row right by hand, and say so in the audit "
    "table, for no trigger may change money.",
    adds_up,
    _not_adding_up,
)


# -- both, or neither ---------------------------------------------------------------------------------------------


def has_not_both(view: View, workflow: str, key: str) -> Iterator[str]:
    """Goods for money; and not the money too, unless somebody gave it back after the delivery, on record."""
    sale = sale_of(view, key) if workflow == JOB else None
    if sale is None or sale.overridden:
        return
    if sale.status in WITH_GOODS and sale.payment_status != PAID:
        yield f"it is {sale.status}, and nobody has paid"
    gone = sale.refunding_cents + sale.refunded_cents + sale.disputed_cents
    if sale.status != JobStatus.COMPLETED or not 0 < sale.paid_cents <= gone:
        return
    later = [item for item in view.history(workflow, key) if item.sequence > sale.visit]
    if not any(
        item.trigger in BY_OTHERS
        or (item.trigger == "refund" and item.actor.startswith("admin:"))
        or (item.trigger == "refund_settled" and (NOT_OURS in item.metadata or ELSEWHERE in item.metadata))
        for item in later
    ):
        yield "it was delivered, and its money went back though no admin and no bank said so afterwards"


def _with_both(view: View) -> Suspects:
    jobs, history = view.engine.bound(Job), view.engine.tables.transitions
    unpaid = jobs.status.in_(WITH_GOODS) & (jobs.payment_status != PAID)
    query = jobs.select(jobs.job_id).where(~jobs.overridden & unpaid)
    yield from ((JOB, found[0]) for found in view.rows(query))
    gone = jobs.refunding_cents + jobs.refunded_cents + jobs.disputed_cents
    both = (jobs.status == JobStatus.COMPLETED.value) & (jobs.paid_cents > 0) & (gone >= jobs.paid_cents)
    said = (
        history.trigger.in_(BY_OTHERS)
        | ((history.trigger == "refund") & (fn.SUBSTR(history.actor, 1, 6) == "admin:"))
        | (
            (history.trigger == "refund_settled")
            & (contains(NOT_OURS, history.metadata) | contains(ELSEWHERE, history.metadata))
        )
    )
    after = (history.workflow == JOB) & (history.subject_id == jobs.job_id) & (history.sequence > jobs.visit)
    on_record = fn.EXISTS(history.select(history.id).where(after & said))
    query = jobs.select(jobs.job_id).where(both & ~jobs.overridden & ~on_record)
    yield from ((JOB, found[0]) for found in view.rows(query))


GOODS = invariant(
    "goods_or_money",
    "Goods are made for money only, and nobody has both the goods and the money, unless an admin overrode it,"
    " or an admin or a bank took the money back after the delivery.",
    "Look at the history (`smi jobs show JOB`): decide who bears it, and put that on record with "
    "`smi fire JOB override --fact target=STATE --reason ...`.",
    has_not_both,
    _with_both,
)

MONEY_INVARIANTS: tuple[Invariant, ...] = (PAYMENTS, REFUNDS, GOODS)


def held_cents(sale: Sale) -> int:
    """What is left to give back, refunds under way and chargebacks counted."""
    return sale.paid_cents - sale.refunding_cents - sale.refunded_cents - sale.disputed_cents
