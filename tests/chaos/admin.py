"""Owns the shop's admin in a chaos run: acts in the middle of everything, tidies up at the end.

Called by system.py.

She acts as scripts do, through the App, and tries again with the same key when something is down.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import peewee

from smi_workflow.app import App
from smi_workflow.engine.tables import EffectState
from smi_workflow.errors import SmiError
from smi_workflow.jobs.model import UNDER_WAY, Job, JobStatus
from smi_workflow.settings import Settings

WHO = "admin:jane"
TRIES = 20
TIDY_TRIES = 6

# What she does to a random job in a state, and how often.
ACTS = {
    JobStatus.FAILED: {"retry": 6, "refund": 2},
    JobStatus.COMPLETED: {"resend": 3, "renew_download": 2, "refund": 1, "partial refund": 2},
    JobStatus.PROCESSING: {"fail": 1, "refund": 1, "amend": 2},
    JobStatus.PENDING: {"refund": 1, "fail": 1},
}


class ShiftedClock:
    """The machine's clock, so far ahead."""

    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead

    def now(self) -> datetime:
        """The time, aware, in UTC."""
        return datetime.now(UTC) + self._ahead


class Admin:
    """Somebody with a script.

    Args:
        refund_at_stripe: the dashboard's button, for a payment intent.
    """

    def __init__(
        self, settings: Settings, chance: random.Random, refund_at_stripe: Callable[[str], object]
    ) -> None:
        self.acts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._settings = settings
        self._chance = chance
        self._refund_at_stripe = refund_at_stripe
        self._tidied: Counter[str] = Counter()
        self._app = App(settings)

    def travel(self, ahead: timedelta) -> None:
        """Act in the future from now on."""
        self._app.close()
        self._app = App(self._settings, clock=ShiftedClock(ahead))
        self._tidied.clear()

    def run(self, stop: threading.Event, pause_seconds: float) -> None:
        """Do something to some job now and then."""
        while not stop.wait(self._chance.expovariate(1 / pause_seconds)):
            status = self._chance.choice(list(ACTS))
            act = self._chance.choices(list(ACTS[status]), list(ACTS[status].values()))[0]
            with suppress(peewee.PeeweeException, SmiError):
                found = self._app.jobs.get_jobs(status=status, limit=50, order_by="updated_at")
                if found:
                    self._act(self._chance.choice(found), act)
        self._app.database.close()

    def tidy_up(self) -> int:
        """What the mails to the admin ask for: links that did not arrive, money that did not go back.

        What does not help after a few tries is left for a later day.

        Returns: how many things there were to do.
        """
        jobs = self._app.job_tables.jobs
        done = 0
        for job in jobs.select().where((jobs.status == JobStatus.COMPLETED) & ~jobs.email_sent):
            if (
                not job.upscaled_file_path
                or self._is_under_way(job, "send_download_link")
                or self._is_tired(job.job_id)
            ):
                continue
            if (job.email or "").startswith("bounce@"):
                # She has asked the buyer for one that works.
                self._fire(job, "amend", {"fields": {"email": str(job.email).replace("bounce@", "buyer@")}})
            done += self._fire(job, "resend", {})
        held = jobs.paid_cents - jobs.refunding_cents - jobs.refunded_cents - jobs.disputed_cents
        for job in jobs.select().where((jobs.status == JobStatus.FAILED) & (held > 0)):
            if not self._is_under_way(job, "refund_due") and not self._is_tired(job.job_id):
                done += self._fire(job, "refund", {})
        return done + self._refund_what_fits_no_sale()

    def _refund_what_fits_no_sale(self) -> int:
        """Our own refund of it failed, and no trigger makes another: she presses the button at Stripe."""
        refunds, payments = self._app.job_tables.refunds, self._app.job_tables.payments
        done = 0
        kept = (payments.role != "sale") & (payments.refunded_cents < payments.cents)
        for payment in payments.select().where(kept):
            of_it = refunds.payment_intent_id == payment.payment_intent_id
            open_ones = refunds.select().where(of_it & refunds.state.in_(UNDER_WAY))
            if not open_ones.exists() and not self._is_tired(payment.payment_intent_id):
                self._refund_at_stripe(payment.payment_intent_id)
                done += 1
        return done

    def _is_under_way(self, job: Job, effect: str) -> bool:
        effects = self._app.tables.effects
        of_it = (effects.subject_id == job.job_id) & (effects.name == effect)
        is_open = effects.state.in_((EffectState.DUE, EffectState.CLAIMED))
        return bool(effects.select().where(of_it & is_open).exists())

    def _is_tired(self, of: str) -> bool:
        self._tidied[of] += 1
        return self._tidied[of] > TIDY_TRIES

    def _act(self, job: Job, act: str) -> None:
        facts: dict[str, object] = {}
        trigger = act
        if act == "partial refund":
            if job.refundable_cents < 2:
                return
            trigger, facts = "refund", {"amount_cents": self._chance.randint(1, job.refundable_cents - 1)}
        elif act == "fail":
            facts = {"code": "admin"}
        elif act == "amend":
            facts = {"fields": {"post_id": self._chance.randint(1, 10**6)}}
        if self._fire(job, trigger, facts):
            self.acts[act] += 1

    def _fire(self, job: Job, trigger: str, facts: dict[str, object]) -> bool:
        key = f"chaos-{self._chance.getrandbits(64):016x}"
        for _ in range(TRIES):
            try:
                self._app.jobs.fire(
                    job.job_id, trigger, actor=WHO, reason="chaos", facts=facts, idempotency_key=key
                )
            except peewee.PeeweeException:
                with suppress(peewee.PeeweeException):
                    self._app.database.close()
                time.sleep(0.5)
            except SmiError as refusal:
                self.refused[type(refusal).__name__] += 1
                return False
            else:
                return True
        return False
