"""Owns the mails, and what becomes of links and rows with time. Called by perform.py."""

from __future__ import annotations

from datetime import timedelta

from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.errors import ServiceRefused
from smi_workflow.jobs.model import Job
from smi_workflow.jobs.pricing import from_cents
from smi_workflow.jobs.tokens import token_that_opens

# Amended addresses are found within the hour; three days of looking every five minutes would be 864 claims.
NO_ADDRESS_RETRY, NO_ADDRESS_RETRY_MAX = timedelta(minutes=5), timedelta(hours=1)
NO_ADDRESS_PATIENCE = timedelta(days=3)
# A receiver that is away misses a word with every sale; each of them is in the history.
TOLD_OF_RECEIVER_ONCE_IN = timedelta(days=1)

# What a buyer is told. Anything else is our own business, and in the history.
BUYER_REASONS = {
    "upsampler_timeout": "The upscaling took too long.",
    "upsampler_failed": "The upscaling service could not process this image.",
    "wrong_dimensions": "The result did not have the size you ordered.",
    "refunded": "The order was cancelled and refunded.",
    "delayed_payment_timeout": "Your payment did not arrive.",
    "delayed_payment_failed": "Your payment did not arrive.",
}
BUYER_REASON_ELSE = "Something went wrong on our side."


def send_download_link(world: World, attempt: Attempt) -> Outcome:
    """The buyer gets the link. The token is derived, so each mail ever sent for it carries the same one."""
    job: Job = attempt.row
    if not job.email:
        return _without_address(attempt)
    width, height = job.expected_size
    context = {
        "job_id": job.job_id, "download_url": download_url(world, job), "expires_at": job.download_expires_at,
        "width": width, "height": height,
    }  # fmt: skip
    world.send(attempt, "download_ready", job.email, context)
    return Done("notice_sent", reason="download link", on_refusal="skip")


def warn_expiry(world: World, attempt: Attempt) -> Outcome:
    """The link ends soon."""
    job: Job = attempt.row
    if not job.email:
        return Done(note="no address")
    if attempt.inputs["token_generation"] != job.token_generation or not job.upscaled_file_path:
        return Done(note="the link was renewed or the file is gone")
    context = {
        "job_id": job.job_id, "download_url": download_url(world, job), "expires_at": job.download_expires_at
    }  # fmt: skip
    world.send(attempt, "download_expiring", job.email, context)
    return Done(note="sent")


def expire_download(world: World, attempt: Attempt) -> Outcome:
    """The link is over: forget the file, then remove it."""
    return Done("expire_download", dict(attempt.inputs), on_refusal="skip")


def send_failure_notice(world: World, attempt: Attempt) -> Outcome:
    """The buyer is told that nothing will come, and what happens to the money."""
    job: Job = attempt.row
    if not job.email:
        return _without_address(attempt)
    # As it was when the job failed: by now all of it may be back, and that is no reason to say "not charged".
    cents = attempt.inputs.get("amount_cents", job.refundable_cents + job.refunding_cents)
    paid_cents = attempt.inputs.get("paid_cents", job.paid_cents)
    context = {
        "job_id": job.job_id, "reason": BUYER_REASONS.get(job.failure_code or "", BUYER_REASON_ELSE),
        "charged": cents > 0, "returned": not cents and paid_cents > 0,
        "amount": from_cents(cents, job.currency), "currency": job.currency,
    }  # fmt: skip
    world.send(attempt, "job_failed", job.email, context)
    return Done(note="sent")


def send_refund_notice(world: World, attempt: Attempt) -> Outcome:
    """The buyer is told that the money is on its way."""
    job: Job = attempt.row
    if not job.email:
        return _without_address(attempt)
    context = {
        "job_id": job.job_id, "currency": attempt.inputs["currency"],
        "amount": from_cents(attempt.inputs["amount_cents"], attempt.inputs["currency"]),
    }  # fmt: skip
    world.send(attempt, "refund_sent", job.email, context)
    return Done(note="sent")


def tell_admin(world: World, attempt: Attempt) -> Outcome:
    """The shop's owner is told that something happened which may need a person."""
    told = attempt.inputs
    receiver = told.get("receiver")
    if receiver is not None and world.has_missed_of_late(receiver, TOLD_OF_RECEIVER_ONCE_IN):
        return Done(note=f"told of receiver {receiver} within a day")
    if not world.settings.admin_email:
        return _told(world, receiver, "SMI_ADMIN_EMAIL is not set")
    job_id = getattr(attempt.row, "job_id", None)
    context = {
        "headline": f"{attempt.workflow} {told['trigger'].replace('_', ' ')}",
        "reason": told["reason"] or "No reason was given.",
        "job_id": job_id,
        "details": {"State": told["state"], "Caused by": told["actor"], "Subject": attempt.subject_id},
        "admin_url": None,
    }
    world.send(attempt, "admin_notice", world.settings.admin_email, context)
    return _told(world, receiver, "sent")


def _told(world: World, receiver: str | None, note: str) -> Outcome:
    if receiver is not None:
        world.note_missed(receiver)
    return Done(note=note)


def purge_job(world: World, attempt: Attempt) -> Outcome:
    """Nobody ever paid: what we know of the person goes."""
    return Done("purge", reason="abandoned for a day", on_refusal="skip")


def download_url(world: World, job: Job) -> str:
    """The link that opens this job's file.

    Raises:
        ServiceRefused: none of our keys made the stored token: a key was taken away too early.
    """
    keys = world.settings.secret_keys
    token = token_that_opens(keys, job.job_id, job.token_generation, job.download_token or "")
    if token is None:
        raise ServiceRefused("link", "no key in SMI_SECRET_KEY made this token; renew the link", code="key_lost")
    return f"{world.settings.downloads_url}/download/{token}"


def _without_address(attempt: Attempt) -> Outcome:
    """It waits, visibly, for three days; the admin is told once."""
    first = attempt.waits == 0
    note = "no e-mail address is known yet"
    if attempt.row.purged_at is not None or attempt.clock.now() - attempt.owed_at > NO_ADDRESS_PATIENCE:
        return Done(note="no e-mail address was ever known")
    wait = min(NO_ADDRESS_RETRY * 2 ** min(attempt.waits, 10), NO_ADDRESS_RETRY_MAX)
    return Again(wait, note, trigger="notice_failed" if first else None, reason=note)
