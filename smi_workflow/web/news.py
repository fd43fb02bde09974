"""Owns what a waiting buyer is told: how far the order is, and what happens next. Called by api.py, status.py."""

from __future__ import annotations

from dataclasses import dataclass

from smi_workflow.jobs.model import Job, JobStatus, PaymentStatus

STEPS = ("Payment", "Upscaling", "Your e-mail")


@dataclass(frozen=True, slots=True)
class News:
    """How far an order is, in sentences for its buyer.

    Attributes:
        headline: a few words.
        step: of STEPS, the one that it is at; all of them, when there is nothing left to do; None: it has ended.
        final: nothing more happens by itself.
    """

    headline: str
    progress: str
    next: str
    step: int | None
    final: bool = False


def news_of(job: Job, *, is_back_from_checkout: bool = False) -> News:
    """What its buyer is told of a job.

    Args:
        is_back_from_checkout: the browser says so. It is believed so far as to thank, and proves no payment.
    """
    if job.status == JobStatus.AWAITING_PAYMENT:
        if job.payment_status == PaymentStatus.FAILED:
            return News(
                "Your payment",
                "The payment did not go through. You can try again with another card.",
                "Nothing was charged. Unless it is paid, the order ends by itself.",
                step=0,
            )
        if is_back_from_checkout:
            return News(
                "Thank you for your order",
                "Your payment is being confirmed.",
                "That mostly takes seconds; some banks take a few days. The download link comes by e-mail."
                " You can close this page.",
                step=0,
            )
        return News(
            "Your payment",
            "We are waiting for your payment.",
            "As soon as it is confirmed, your image is upscaled. Some banks take a few days.",
            step=0,
        )
    if job.status == JobStatus.PENDING:
        return News(
            "Paid, and next in line",
            "Your payment has arrived. Your image is next in line.",
            "The download link comes by e-mail. You can close this page.",
            step=1,
        )
    if job.status == JobStatus.PROCESSING:
        done = job.delivered_at is not None
        return News(
            "Your image is being made",
            "Your image is upscaled; it is being checked." if done else "Your image is being upscaled.",
            "That takes a few minutes. The download link comes by e-mail. You can close this page.",
            step=1,
        )
    if job.status == JobStatus.COMPLETED:
        sent = "We have sent you" if job.email_sent else "We are sending you"
        return News(
            "Done",
            f"Your image is ready. {sent} the download link by e-mail.",
            "If you do not find it, please look into the folder for spam.",
            step=3 if job.email_sent else 2,
            final=bool(job.email_sent),
        )
    if job.status == JobStatus.ABANDONED:
        return News(
            "This order has ended",
            "The order has ended, as it was not paid. Nothing was charged.",
            "If you still want the image, please go back to the shop and order again.",
            step=None,
            final=True,
        )
    if job.status != JobStatus.FAILED:
        # A state of another release, during a deploy: nothing is known to have gone wrong.
        return News(
            "Your order is being worked on",
            "Your order is being worked on.",
            "You will hear from us by e-mail. You can close this page.",
            step=1,
        )
    if not job.paid_cents:
        return News(
            "This order has ended",
            "The payment failed. Nothing was charged.",
            "If you still want the image, please go back to the shop and order again.",
            step=None,
            final=True,
        )
    back = job.refunded_cents >= job.paid_cents
    return News(
        "We are sorry",
        f"Your image could not be made. Your money {'was sent back' if back else 'will be sent back'}.",
        "Banks take a few days to show it." if back else "There is nothing for you to do. We tell you by e-mail.",
        step=None,
        final=back,
    )
