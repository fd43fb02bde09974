"""Owns the whole life of a job as data: every state, trigger, guard and effect. Read this first. Called by app.py.

How to read it: a job is always in one STATE. Entering a state owes its effects and sets its timers. A MOVE is one
row of the table: in these states, this trigger leads there (or `None`: it stays), if these guards agree; the
change is written in the same commit. Guards are in guards.py, changes in changes.py, conditions
and inputs of what is owed in owing.py, handlers in effects/.
"""

from __future__ import annotations

from datetime import timedelta

from smi_workflow.engine.declaration import ANYWHERE, Case, Delay, Effect, Move, Owed, State
from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs import changes, costs, facts, guards, hooks, owing
from smi_workflow.jobs.model import Job, JobStatus
from smi_workflow.jobs.telling import TELL_ADMIN, money_to_return, what_happened

AWAITING, PENDING, PROCESSING, COMPLETED, FAILED, ABANDONED = JobStatus
STAYS = None

# -- the effects: name, queue, what is fired when it fails for good --------------------------------------------

CREATE_CHECKOUT = Effect("create_checkout", "payments", failure="abandon", survives=True)
PAYMENT_DEADLINE = Effect("payment_deadline", "payments", failure="notice_failed", attempts=1000)
EXPIRE_SESSION = Effect("expire_session", "payments", survives=True, harmless="Stripe ends it by itself in time")
SUBMIT_UPSCALE = Effect("submit_upscale", "upscales", failure="fail", attempts=40)  # six hours of outage
PENDING_DEADLINE = Effect("pending_deadline", "upscales", failure="fail")
POLL_UPSCALE = Effect("poll_upscale", "upscales", harmless="the deadline asks once more", attempts=1000)
UPSCALE_DEADLINE = Effect("upscale_deadline", "upscales", failure="fail", attempts=5)
FETCH_RESULT = Effect("fetch_result", "upscales", failure="fail")
FETCH_DEADLINE = Effect("fetch_deadline", "upscales", failure="fail")
SEND_LINK = Effect("send_download_link", "notices", failure="notice_failed", attempts=150)
WARN_EXPIRY = Effect("warn_expiry", "notices", failure="notice_failed")
EXPIRE_LINK = Effect("expire_download", "notices", harmless="downloads check the time themselves", attempts=1000)
REMOVE_FILE = Effect("remove_file", "upscales", harmless="only space is lost", attempts=1000, survives=True)
REFUND_DUE = Effect("refund_due", "payments", failure="notice_failed", attempts=1000)
SEND_FAILURE = Effect("send_failure_notice", "notices", failure="notice_failed", attempts=150)
SEND_REFUND = Effect("send_refund_notice", "notices", failure="notice_failed", attempts=150, survives=True)
SEND_HOOK = Effect("send_hook", "hooks", failure="hook_failed", attempts=24, survives=True,
                   retry_seconds=5.0, retry_seconds_max=6 * 3600.0)  # three days
FIND_REFUNDS = Effect("find_refunds", "payments", failure="notice_failed", attempts=150, survives=True)
PURGE = Effect("purge_job", "notices", harmless="nothing was paid, so nothing is owed", attempts=1000)


# -- the delays: settings, and what shortens or lengthens them -------------------------------------------------


def setting(unit: str, name: str, *, times: float = 1.0) -> Delay:
    """The delay that a setting gives, e.g. `setting("hours", "pending_timeout_hours")`."""
    return lambda case: timedelta(**{unit: times * float(getattr(case.policy, name))})


def until_payment_is_late(case: Case[Job]) -> timedelta:
    """A little after the checkout's own end, so that Stripe's word comes first; days for a bank debit."""
    if case.trigger == "payment_processing":
        return timedelta(days=case.policy.delayed_payment_days)
    return timedelta(hours=case.policy.payment_timeout_hours, minutes=5)


def until_refund(case: Case[Job]) -> timedelta:
    """Time for an admin to retry after an outage; none where trying again is pointless."""
    final = case.row.failure_code in changes.FINAL_CODES
    return timedelta(minutes=0 if final else case.policy.refund_delay_minutes)


LINK_TIMERS: tuple[Owed, ...] = (
    WARN_EXPIRY.later(setting("hours", "download_expiry_hours", times=0.75), owing.link_generation),
    EXPIRE_LINK.later(setting("hours", "download_expiry_hours"), owing.link_generation),
)

# -- the states ------------------------------------------------------------------------------------------------

STATES = (
    State(AWAITING, "the buyer is at the checkout", waiting=True, owes=(
        CREATE_CHECKOUT.now(owing.checkout_terms, when=owing.has_no_checkout),
        PAYMENT_DEADLINE.later(until_payment_is_late, owing.delayed, deadline=True),
    )),
    State(PENDING, "paid, on its way to Upsampler", waiting=True, owes=(
        SUBMIT_UPSCALE.now(),
        PENDING_DEADLINE.later(setting("hours", "pending_timeout_hours"), deadline=True),
    )),
    State(PROCESSING, "Upsampler works on it", waiting=True, owes=(
        POLL_UPSCALE.later(setting("seconds", "poll_seconds")),
        UPSCALE_DEADLINE.later(setting("minutes", "processing_timeout_minutes"), deadline=True),
    )),
    State(COMPLETED, "stored; the buyer has the link", owes=(SEND_LINK.now(), *LINK_TIMERS)),
    State(FAILED, "will not be delivered; money held goes back", owes=(
        REFUND_DUE.later(until_refund, when=owing.money_is_held),
        SEND_FAILURE.now(money_to_return),
        TELL_ADMIN.now(what_happened),
    )),
    State(ABANDONED, "nobody paid in time", owes=(
        EXPIRE_SESSION.now(when=owing.checkout_may_be_open),
        PURGE.later(lambda case: timedelta(hours=24)),
    )),
)  # fmt: skip

# -- the moves: trigger, from, to, guards, change, effects, who causes it --------------------------------------

_unpaid, _working, _told = (AWAITING, ABANDONED), (PENDING, PROCESSING), (guards.not_by_hand,)
_tell = TELL_ADMIN.now(what_happened)
_back = REFUND_DUE.later(until_refund, when=owing.money_came_back)
_expire = EXPIRE_SESSION.now(when=owing.checkout_may_be_open)
_returned = SEND_REFUND.now(owing.refunded_amount, when=owing.is_paid_back_by_stripe)

MOVES = (
    # Payment
    Move("checkout_opened", _unpaid, STAYS, _told, change=changes.store_checkout,
         owes=(EXPIRE_SESSION.now(owing.the_other_checkout, when=owing.another_checkout_is_open),), by="effect"),
    Move("payment_received", _unpaid, PENDING,
         (*_told, guards.payment_fits_the_sale, guards.payment_is_not_recorded),
         change=changes.record_payment, by="Stripe", hook="smi_payment_completed"),
    Move("payment_processing", _unpaid, AWAITING, (*_told, guards.nothing_is_paid),
         change=changes.expect_late_payment, by="Stripe"),
    Move("payment_declined", AWAITING, STAYS, _told, change=changes.note_declined, by="Stripe"),
    Move("payment_failed", AWAITING, FAILED, (*_told, guards.nothing_is_paid),
         change=changes.end_unpaid, by="Stripe", hook="smi_job_failed"),
    Move("payment_unexpected", ANYWHERE, STAYS, (*_told, guards.payment_fits_no_sale),
         change=changes.record_unexpected_payment, owes=(_tell,), by="Stripe"),
    Move("charge_noted", ANYWHERE, STAYS, _told, change=changes.note_charge, by="Stripe"),
    Move("abandon", AWAITING, ABANDONED, (*_told, guards.nothing_is_paid, guards.nothing_can_be_paid), by="timer"),
    # Upscaling
    Move("upscale_started", PENDING, PROCESSING,
         (*_told, guards.is_paid_or_overridden, guards.no_refund_is_under_way),
         change=changes.start_processing, by="effect"),
    Move("upscale_delivered", PROCESSING, STAYS,
         (*_told, guards.submission_is_ours, guards.is_not_delivered_yet, guards.result_url_is_allowed),
         change=changes.note_delivery, cancels=(POLL_UPSCALE, UPSCALE_DEADLINE),
         owes=(FETCH_RESULT.now(owing.result_url),
               FETCH_DEADLINE.later(setting("minutes", "processing_timeout_minutes"), deadline=True)),
         by="Upsampler, poll"),
    Move("complete", PROCESSING, COMPLETED, (*_told, guards.file_is_the_result, guards.money_is_kept),
         change=changes.store_result, by="effect", hook="smi_job_completed"),
    Move("fail", _working, FAILED, (), change=changes.set_failed,
         by="effect, timer, Upsampler, admin", hook="smi_job_failed"),
    Move("retry", FAILED, PENDING, (guards.is_paid_for, guards.no_refund_is_under_way),
         when=owing.without_override, change=changes.prepare_retry, by="admin"),
    Move("retry", ANYWHERE, PENDING, (guards.override_is_given,), change=changes.prepare_retry, owes=(_expire,),
         by="admin"),
    # Delivery and records
    Move("renew_download", COMPLETED, STAYS, (guards.file_can_be_served, guards.money_is_kept),
         change=changes.renew_link, cancels=(WARN_EXPIRY, EXPIRE_LINK), owes=(SEND_LINK.now(), *LINK_TIMERS),
         by="admin"),
    Move("expire_download", COMPLETED, STAYS, (guards.link_is_over, guards.file_can_be_served),
         change=changes.forget_file, owes=(REMOVE_FILE.now(owing.removed_file),), by="timer"),
    Move("file_removed", ANYWHERE, STAYS, _told, by="effect"),
    Move("notice_sent", ANYWHERE, STAYS, _told, change=changes.note_mail_sent, by="effect"),
    Move("notice_failed", ANYWHERE, STAYS, _told, owes=(_tell,), by="effect"),
    Move("hook_failed", ANYWHERE, STAYS, _told, change=hooks.note_failure,
         owes=(TELL_ADMIN.now(hooks.failure_to_tell),), by="effect"),
    Move("resend", COMPLETED, STAYS, (guards.file_can_be_served,), owes=(SEND_LINK.now(),), by="admin"),
    Move("amend", ANYWHERE, STAYS, (guards.only_listed_fields,), change=changes.amend_fields, by="admin"),
    Move("correct_costs", ANYWHERE, STAYS, (guards.only_costs_are_corrected,), change=costs.correct, by="admin"),
    Move("erase", (COMPLETED, FAILED, ABANDONED), STAYS, (guards.reason_is_given, guards.nothing_is_owed),
         change=changes.forget_person, owes=(REMOVE_FILE.now(owing.kept_source),), by="admin"),
    Move("purge", (COMPLETED, FAILED, ABANDONED), STAYS, (guards.nothing_is_owed,),
         change=changes.forget_person, owes=(REMOVE_FILE.now(owing.kept_source),), by="timer"),
    # Money back
    Move("refund", _working, FAILED, (guards.is_paid_for, guards.refund_is_possible), when=owing.refund_is_full,
         change=changes.refund_and_fail, by="admin", hook="smi_job_failed"),
    Move("refund", ANYWHERE, STAYS, (guards.is_paid_for, guards.refund_is_possible),
         change=changes.request_refund, by="admin, timer"),
    Move("refund_settled", _working, FAILED, (*_told, guards.refund_was_under_way),
         when=owing.settled_refund_ends_the_sale, change=changes.settle_refund_and_fail,
         owes=(_returned,), by="Stripe", hook="smi_job_failed"),
    Move("refund_settled", ANYWHERE, STAYS, (*_told, guards.refund_was_under_way), change=changes.settle_refund,
         owes=(_returned,), by="Stripe"),
    Move("refund_failed", ANYWHERE, STAYS, _told, change=changes.release_refund,
         owes=(_tell, FIND_REFUNDS.now(owing.payment_to_look_into, when=owing.stripe_would_not_refund)),
         by="refund"),
    Move("refund_retried", _working, FAILED, (*_told, guards.refund_is_possible), when=owing.refund_is_full,
         change=changes.count_retried_refund_and_fail, by="refund", hook="smi_job_failed"),
    Move("refund_retried", ANYWHERE, STAYS, (*_told, guards.refund_is_possible),
         change=changes.count_retried_refund, by="refund"),
    Move("refunds_differ", ANYWHERE, STAYS, _told, owes=(FIND_REFUNDS.now(owing.payment_to_look_into),),
         by="Stripe"),
    # A trigger of its own: what fits no sale moves no state and no sum of the job's, whatever the job came to.
    Move("return_payment", ANYWHERE, STAYS, (guards.reason_is_given,), change=changes.return_payment, by="admin"),
    Move("dispute_opened", _working, FAILED, _told, when=owing.funds_are_withdrawn,
         change=changes.note_dispute_and_fail, by="Stripe", hook="smi_job_failed"),
    Move("dispute_opened", ANYWHERE, STAYS, _told, change=changes.note_dispute, owes=(_tell,), by="Stripe"),
    Move("dispute_closed", ANYWHERE, STAYS, _told, change=changes.note_dispute, owes=(_tell, _back), by="Stripe"),
    *(Move("override", ANYWHERE, target, (guards.reason_is_given, guards.target_is_sound), when=owing.to(target),
           change=changes.override_state, owes=(_expire,), quiet=owing.only_deadlines, by="admin")
      for target in JobStatus),
)  # fmt: skip

JOB = Workflow(
    name="job",
    model=Job,
    key="job_id",
    state_column="status",
    initial=AWAITING,
    states=STATES,
    moves=MOVES,
    touched_column="updated_at",
    facts=facts.FACTS,
    start_hook="smi_job_created",
    announces=SEND_HOOK.for_each(hooks.messages),
)
