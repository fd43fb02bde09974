"""Owns the independent verdict: whether every buyer got the goods or the money, told from the outside alone.

Called by run.py. It knows nothing of the engine, the jobs or the invariants, so that a fault in them cannot hide
itself here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.chaos.evidence import Evidence, Mail, Opened, Promise, Row

ENDED = ("completed", "failed", "abandoned")
ENDED_REFUNDS = ("succeeded", "failed", "canceled", "settled_elsewhere")
# Money that is on its way back counts as gone; what the bank has sent back does not.
COUNTED = ("pending", "requires_action", "succeeded")
LINK_SUBJECT = "Your upscaled image is ready"


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise."""

    rule: str
    job_id: str
    text: str


class Books:
    """The evidence, sorted by job."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.charges: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for charge in evidence.stripe["charges"]:
            if charge["status"] == "succeeded":
                self.charges[charge["metadata"].get("job_id", "")].append(charge)
        self.refunds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for refund in evidence.stripe["refunds"]:
            if refund["status"] in COUNTED:
                self.refunds[refund["charge"]].append(refund)
        self.disputes: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for dispute in evidence.stripe["disputes"]:
            self.disputes[dispute["charge"]].append(dispute)
        self.mails: dict[str, list[Mail]] = defaultdict(list)
        for mail in evidence.mails:
            self.mails[mail.job_id].append(mail)
        self.history: dict[str, list[Row]] = defaultdict(list)
        for row in evidence.history:
            if row.workflow == "job":
                self.history[row.subject_id].append(row)
        self.submissions: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for submission in evidence.upsampler:
            # …/source/<job>/<signature>
            self.submissions[submission["source_url"].rsplit("/", 2)[-2]].append(submission)
        self.jobs = sorted({*evidence.promises, *self.charges, *self.history, *self.submissions} - {""})

    def kept(self, charge: dict[str, Any]) -> int:
        """What the shop still has of a charge, in minor units."""
        back = sum(int(refund["amount"]) for refund in self.refunds[charge["id"]])
        moved = [entry for dispute in self.disputes[charge["id"]] for entry in dispute["balance_transactions"]]
        return int(charge["amount_captured"]) - back + sum(int(entry["amount"]) for entry in moved)

    def links(self, job_id: str) -> list[str]:
        """Every link that was mailed to the buyer, oldest first, each once."""
        return list(dict.fromkeys(link for mail in self.mails[job_id] for link in mail.links))

    def worked(self, job_id: str) -> bool:
        """Whether the buyer was mailed a link that gave the promised image."""
        promise = self.evidence.promises.get(job_id)
        return any(
            is_as_promised(opened, promise)
            for link in self.links(job_id)
            for opened in self.evidence.openings.get(link, [])
        )

    def admin_did(self, job_id: str, *triggers: str) -> bool:
        """Whether an admin is on record with one of these."""
        return any(row.trigger in triggers and row.actor.startswith("admin:") for row in self.history[job_id])


def is_as_promised(opened: Opened, promise: Promise | None) -> bool:
    """Whether it is the image that was ordered, at the size that was sold."""
    return opened.status == 200 and promise is not None and (opened.size, opened.colour) == (
        promise.size, promise.colour,
    )  # fmt: skip


def judge(evidence: Evidence) -> list[Finding]:
    """Every broken promise; empty when all were kept."""
    books = Books(evidence)
    return [Finding(name, job_id, text) for name, rule in RULES.items() for job_id, text in rule(books)]


Found = Iterator[tuple[str, str]]


def charged_without_delivery(books: Books) -> Found:
    for job_id, charges in books.charges.items():
        kept = sum(books.kept(charge) for charge in charges)
        if kept > 0 and not books.worked(job_id):
            yield job_id, f"{kept} of {len(charges)} charges are kept, and no mailed link ever worked"


def charged_twice(books: Books) -> Found:
    for job_id, charges in books.charges.items():
        keeping = [charge["id"] for charge in charges if books.kept(charge) > 0]
        if len(keeping) > 1:
            yield job_id, f"the shop keeps money of {', '.join(keeping)} for one image"


def charged_for_nothing_known(books: Books) -> Found:
    told = {row.metadata["payment_intent_id"] for row in books.evidence.history
            if row.trigger in ("payment_received", "payment_unexpected")}  # fmt: skip
    for job_id, charges in books.charges.items():
        if job_id not in books.evidence.promises:
            yield job_id, f"charged for an order that no buyer knows: {[charge['id'] for charge in charges]}"
        for charge in charges:
            if charge["payment_intent"] not in told:
                yield job_id, f"{charge['payment_intent']} was captured, and history does not know it"


def refunded_twice(books: Books) -> Found:
    for job_id, charges in books.charges.items():
        for charge in charges:
            made = books.refunds[charge["id"]]
            named = Counter(refund["metadata"].get("refund_id") for refund in made)
            for refund_id, times in named.items():
                if refund_id is not None and times > 1:
                    yield job_id, f"refund {refund_id} was made {times} times"


def refunded_too_much(books: Books) -> Found:
    for job_id, charges in books.charges.items():
        for charge in charges:
            if books.kept(charge) < 0:
                yield job_id, f"{-books.kept(charge)} more went back than {charge['id']} took"


def delivered_without_payment(books: Books) -> Found:
    for job_id in books.jobs:
        if books.links(job_id) and not books.charges[job_id] and not books.admin_did(job_id, "override", "retry"):
            yield job_id, "a link was mailed, and nobody paid"


def delivered_and_refunded(books: Books) -> Found:
    for job_id, charges in books.charges.items():
        disputed = any(books.disputes[charge["id"]] for charge in charges)
        kept = sum(books.kept(charge) for charge in charges)
        if (
            books.worked(job_id)
            and kept == 0
            and not disputed
            and not books.admin_did(job_id, "refund", "override")
        ):
            yield job_id, "the buyer has the image and the money, and no admin said so"


def submitted_without_payment(books: Books) -> Found:
    for job_id, made in books.submissions.items():
        if not books.charges[job_id] and not books.admin_did(job_id, "override", "retry"):
            yield job_id, f"{len(made)} submissions to Upsampler, and nobody paid"


def delivered_without_upscale(books: Books) -> Found:
    for job_id in books.jobs:
        if books.links(job_id) and not any(one["status"] == "SUCCESS" for one in books.submissions[job_id]):
            yield job_id, "a link was mailed, and Upsampler never finished this image"


def link_that_does_not_work(books: Books) -> Found:
    for job_id in books.jobs:
        promise, links = books.evidence.promises.get(job_id), books.links(job_id)
        renewed = books.admin_did(job_id, "renew_download", "retry", "override")
        for position, link in enumerate(links):
            openings = books.evidence.openings.get(link, [])
            if not openings:
                yield job_id, "a link was never opened: the check is not complete"
                continue
            is_last = position == len(links) - 1
            for opened in openings:
                over = opened.status == 410 and any(is_as_promised(one, promise) for one in openings)
                replaced = opened.status == 404 and renewed and not is_last
                if not (is_as_promised(opened, promise) or over or replaced):
                    yield job_id, f"link {position + 1} of {len(links)} gave {opened}, promised was {promise}"


def mail_to_a_stranger(books: Books) -> Found:
    for job_id, promise in books.evidence.promises.items():
        own = {promise.email, promise.email.replace("bounce@", "buyer@")}
        for mail in books.mails[job_id]:
            if mail.links and not set(mail.to) <= own:
                yield job_id, f"a link went to {mail.to}, the buyer is {promise.email}"


def link_mail_missing(books: Books) -> Found:
    for job_id in books.jobs:
        rows = books.history[job_id]
        told = any(mail.subject == LINK_SUBJECT for mail in books.mails[job_id])
        if rows and rows[-1].to_state == "completed" and not told:
            yield job_id, "completed, and the mail server never took its mail"


def history_with_gaps(books: Books) -> Found:
    subjects: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in books.evidence.history:
        subjects[(row.workflow, row.subject_id)].append(row)
    for (workflow, key), rows in subjects.items():
        rows.sort(key=lambda row: row.sequence)
        if [row.sequence for row in rows] != list(range(1, len(rows) + 1)):
            yield key, f"{workflow}: its sequence is {[row.sequence for row in rows]}"
        for earlier, later in pairwise(rows):
            if earlier.to_state != later.from_state:
                yield key, f"{workflow}: {later.sequence} starts from {later.from_state}, not {earlier.to_state}"


def never_ended(books: Books) -> Found:
    last: dict[tuple[str, str], Row] = {}
    for row in books.evidence.history:
        key = (row.workflow, row.subject_id)
        if key not in last or last[key].sequence < row.sequence:
            last[key] = row
    for (workflow, subject_id), row in last.items():
        # Periodic work goes on, and what waits for a person may wait.
        if workflow in ("job", "refund") and row.to_state not in (ENDED if workflow == "job" else ENDED_REFUNDS):
            yield subject_id, f"{workflow} is still {row.to_state}"


def promise_without_job(books: Books) -> Found:
    for job_id in books.evidence.promises:
        if not books.history[job_id]:
            yield job_id, "a buyer was given this order, and history does not know it"


RULES: dict[str, Callable[[Books], Found]] = {
    "charged, neither delivered nor refunded": charged_without_delivery,
    "charged twice": charged_twice,
    "charged for nothing known": charged_for_nothing_known,
    "refunded twice": refunded_twice,
    "refunded more than captured": refunded_too_much,
    "delivered without payment": delivered_without_payment,
    "delivered and refunded": delivered_and_refunded,
    "submitted without payment": submitted_without_payment,
    "delivered without upscale": delivered_without_upscale,
    "link does not work": link_that_does_not_work,
    "mail to a stranger": mail_to_a_stranger,
    "link mail missing": link_mail_missing,
    "history has gaps": history_with_gaps,
    "never ended": never_ended,
    "order lost": promise_without_job,
}
