"""Owns the JobManager: the one way for programs and people to create, read and move jobs. Called through app.py.

Whatever changes a job fires a declared trigger: there is no side door past the machine.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from smi_workflow.engine.database import Slot
from smi_workflow.engine.fire import Engine, Option
from smi_workflow.engine.points import Point, reach
from smi_workflow.engine.tables import EffectRow, EffectState, Transition
from smi_workflow.engine.unit import Applied, Unit
from smi_workflow.errors import InvalidInput, UnknownJob, UnknownSubject
from smi_workflow.jobs import updates
from smi_workflow.jobs.model import Job, JobStatus
from smi_workflow.jobs.orders import NewJob, read_order
from smi_workflow.jobs.pricing import Price, quote
from smi_workflow.jobs.queries import JobFilter, JobPage, find_jobs
from smi_workflow.jobs.references import references_named
from smi_workflow.jobs.tokens import sign
from smi_workflow.settings import Settings

CHECKOUT = "create_checkout"
# A buyer waits this long, about ten seconds, for a checkout that another process is opening.
CHECKOUT_LOOKS, CHECKOUT_LOOK_SECONDS = 100, 0.1


class KeptImage(Protocol):
    """What keeping a source image found out."""

    @property
    def name(self) -> str:
        """The stored file's."""


KeepSource = Callable[[str, str, tuple[int, int]], KeptImage]


class JobManager:
    """Creates, reads and moves jobs.

    Args:
        keep_source: fetches a stranger's image, checks that it has the given size, and keeps it under a name.
        perform: runs one owed effect now, in this process, under the same lease as any worker would.
        pause: waits for so many seconds.
        ask_session: asks Stripe for a checkout session by its id.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        keep_source: KeepSource,
        perform: Callable[[str], object],
        pause: Callable[[float], object] = time.sleep,
        *,
        ask_session: updates.AskSession,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._keep_source = keep_source
        self._perform = perform
        self._pause = pause
        self._ask_session = ask_session
        self._table = engine.bound(Job)

    def quote(self, image_width: int, image_height: int, resolution: str) -> Price:
        """The price of one image at one resolution.

        Raises:
            InvalidInput: impossible, unknown or too large.
        """
        return quote(
            image_width,
            image_height,
            resolution,
            markup_percentage=self._settings.markup_percentage,
            currency=self._settings.currency,
            output_pixels_max=self._settings.output_pixels_max,
            credit_cost=self._settings.credit_cost,
            price_minimum=self._settings.price_minimum,
        )

    def create_job(
        self, order: Mapping[str, Any] | NewJob, *, actor: str = "buyer", idempotency_key: str | None = None
    ) -> Job:
        """Take an order: price it, keep the image, write the job, and open its checkout while the buyer waits.

        Args:
            order: image_url, resolution, image_width, image_height; post_id, attachment_id, email optional.
            idempotency_key: the same key makes one job, however often it is sent; with another order: refused.
        Returns: the job; its `checkout_url` is None when Stripe could not be reached yet (workers go on trying).
        Raises:
            InvalidInput: names the field.
            ServiceError: the image cannot be fetched; nothing was written.
        """
        wanted = read_order(order)
        price = self.quote(wanted.image_width, wanted.image_height, wanted.resolution)
        job_id = self._job_id(idempotency_key)
        earlier = self._read(job_id)
        if earlier is not None:
            return self._same_order(earlier, wanted)
        source = self._keep_source(job_id, wanted.image_url, (wanted.image_width, wanted.image_height))
        reach(Point.SOURCE_KEPT)
        now = self._engine.clock.now()
        columns: dict[str, object] = {
            "job_id": job_id,
            "post_id": wanted.post_id,
            "attachment_id": wanted.attachment_id,
            "image_url": wanted.image_url,
            "image_width": wanted.image_width,
            "image_height": wanted.image_height,
            "resolution": price.resolution.value,
            "email": wanted.email,
            "amount_cost": price.cost,
            "amount_due_cents": price.amount_cents,
            "credits_used": price.credits,
            "currency": price.currency,
            "markup_percentage": self._settings.markup_percentage,
            "livemode": self._settings.livemode,
            "source_file": source.name,
            "created_at": now,
        }

        def work(unit: Unit) -> None:
            if self._read(job_id) is None:
                unit.start("job", columns, actor=actor)
            # The buyer waits for the checkout: it is opened here, so nobody needs to ring for it.
            unit.bells = [bell for bell in unit.bells if bell.actor_name != CHECKOUT]

        with references_named(self._settings):
            self._engine.run(work)
        reach(Point.ORDER_WRITTEN)
        job = self.get_job(job_id)
        if job.source_file != source.name:
            # A request with the same key was first; what was kept here belongs to no job.
            return self._same_order(job, wanted)
        opened = self._open_checkout(job_id)
        reach(Point.CHECKOUT_OPENED)
        return opened

    def get_job(self, job_id: str) -> Job:
        """One job.

        Raises:
            UnknownJob: there is none of this id.
        """
        try:
            job: Job = self._engine.read("job", str(job_id))
        except UnknownSubject:
            raise UnknownJob(job_id) from None
        return job

    def get_jobs(
        self,
        *,
        status: str | Sequence[str] | None = None,
        payment_status: str | None = None,
        email: str | None = None,
        order_by: str = "created_at",
        descending: bool = True,
        limit: int = 20,
    ) -> list[Job]:
        """Jobs by status, payment status and address, newest first unless told.

        Raises:
            InvalidInput: an unknown status or column, or a limit that is not 1 to 1000.
        """
        return self.find_jobs(
            JobFilter(
                status=status, payment_status=payment_status, email=email,
                order_by=order_by, descending=descending, limit=limit,
            )
        ).jobs  # fmt: skip

    def find_jobs(self, wanted: JobFilter) -> JobPage:
        """One page of jobs, by everything that a job can be found by, and the cursor of the next.

        Raises:
            InvalidInput: names the field.
        """
        return find_jobs(self._table, wanted)

    def fire(
        self,
        job_id: str,
        trigger: str,
        *,
        actor: str,
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
        expected_status: str | None = None,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Applied:
        """Fire a declared trigger; see `Engine.fire`.

        Raises:
            UnknownJob, TransitionNotAllowed, GuardRefused, StaleState, TransitionConflict: nothing was changed.
        """
        try:
            with references_named(self._settings):
                return self._engine.fire(
                    "job", str(job_id), trigger, actor=actor, reason=reason, facts=facts,
                    expected_state=expected_status, idempotency_key=idempotency_key, dry_run=dry_run,
                )  # fmt: skip
        except UnknownSubject:
            raise UnknownJob(job_id) from None

    def update_status(
        self, job_id: str, status: str, *, actor: str = "system", reason: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Applied:  # fmt: skip
        """Bring a job into a state by the declared trigger that leads there, if its guards agree.

        Args:
            facts: what that trigger must know, e.g. of a payment or a result.
        Returns: the transition; the earlier one, marked as replayed, when the job is there already.
        Raises:
            StatusNotReachable: no trigger leads there, or each refuses; names `override`. Nothing was changed.
            InvalidInput: there is no such status.
        """
        flow = self._engine.workflows["job"]
        return updates.to_status(self, flow, job_id, status, actor=actor, reason=reason, facts=facts or {})

    def update_job(
        self, job_id: str, fields: Mapping[str, Any], *, actor: str = "system", reason: str = ""
    ) -> Applied:
        """Amend contact and reference data: email, post_id, attachment_id.

        Raises:
            InvalidInput: names the field, and for one that is not amended the call that it belongs to.
        """
        return updates.with_fields(self, job_id, fields, actor=actor, reason=reason)

    def update_checkout_session(self, job_id: str, session_id: str) -> Applied:
        """Put on record a checkout session that was opened for the job, asking Stripe whether it was.

        Raises:
            InvalidInput: it is another job's, asks for something else, or the job has one already.
            ServiceError: Stripe cannot be asked, or does not know it.
        """
        return updates.with_session(self, self._ask_session, self._is_opening(job_id), job_id, session_id)

    def mark_payment_completed(self, job_id: str, payment_intent_id: str) -> Applied:
        """Record a payment as its webhook would: Stripe is asked, and the same guards decide.

        Returns: the transition; the earlier one, marked as replayed, when it is on record.
        Raises:
            InvalidInput: it is not the payment of the job's session, or not paid.
            GuardRefused, TransitionNotAllowed: paid, but not what was due, or not now.
            ServiceError: Stripe cannot be asked.
        """
        return updates.with_payment(self, self._ask_session, job_id, payment_intent_id)

    def update_cost_data(
        self, job_id: str, costs: Mapping[str, Any], *, actor: str = "system", reason: str = ""
    ) -> Applied:
        """Correct what a sale cost the shop; profit and margin follow (`costs.profit`, `costs.margin_percentage`).

        Args:
            costs: upsampler_cost and credits_required are kept; customer_price and markup_percentage were agreed
                with the buyer, and must be as they are on record where they are given.
        Raises:
            InvalidInput: names the field.
        """
        return updates.with_costs(self, job_id, costs, actor=actor, reason=reason)

    def generate_download_token(self, job_id: str, *, actor: str = "system", reason: str = "") -> str:
        """Renew the download link of a completed job: the old one dies, and the buyer gets a mail with the new.

        Returns: the new token, 64 characters of [A-Za-z0-9].
        Raises:
            TransitionNotAllowed, GuardRefused: not completed, the file is gone, or the money went back.
        """
        return updates.with_new_link(self, self._settings, job_id, actor=actor, reason=reason)

    def fire_refund(self, refund_id: str, trigger: str, **how: Any) -> Applied:
        """Fire a trigger at a job's refund: `retry`, `settle_elsewhere`. Takes what `Engine.fire` takes.

        Raises:
            UnknownSubject, TransitionNotAllowed, GuardRefused, StaleState: nothing was changed.
        """
        return self._engine.fire("refund", str(refund_id), trigger, **how)

    def fire_alert(self, alert_id: str, trigger: str, **how: Any) -> Applied:
        """Fire a trigger at what waits for a person: `close`. Takes what `Engine.fire` takes."""
        return self._engine.fire("alert", str(alert_id), trigger, **how)

    def mark_failed(self, job_id: str, failure_reason: str, *, actor: str = "system") -> Applied:
        """Fail a job that is being worked on; what was paid goes back after the refund delay."""
        return self.fire(job_id, "fail", actor=actor, reason=failure_reason, facts={"code": failure_reason})

    def _job_id(self, idempotency_key: str | None) -> str:
        """A random id, or one that nobody can foresee but that the same key gives again."""
        if idempotency_key is None:
            return str(uuid.UUID(self._engine.chance.token(), version=4))
        if not 1 <= len(idempotency_key) <= 255:
            raise InvalidInput("Idempotency-Key", "must have 1 to 255 characters")
        made = [
            str(uuid.UUID(sign(key, "job", idempotency_key)[:32], version=4)) for key in self._settings.secret_keys
        ]
        known = self._table.select(self._table.job_id).where(self._table.job_id.in_(made)).first()
        return made[0] if known is None else str(known.job_id)

    def _read(self, job_id: str) -> Job | None:
        job: Job | None = self._engine.registry.read(self._engine.workflows["job"], job_id)
        return job

    def _same_order(self, job: Job, wanted: NewJob) -> Job:
        fields = ("image_url", "resolution", "image_width", "image_height", "post_id", "attachment_id")
        different = [name for name in fields if getattr(job, name) != getattr(wanted, name)]
        if different:
            raise InvalidInput("Idempotency-Key", f"was used for an order with another {', '.join(different)}")
        return self._open_checkout(job.job_id)

    def _open_checkout(self, job_id: str) -> Job:
        """Run what opens the checkout here and now, or wait for whoever was quicker and is at it."""
        for _ in range(CHECKOUT_LOOKS):
            job = self.get_job(job_id)
            if job.checkout_url is not None or job.status != JobStatus.AWAITING_PAYMENT:
                return job
            for effect in self._checkouts(job_id):
                self._perform(effect.id)
            if not any(effect.state == EffectState.CLAIMED for effect in self._checkouts(job_id)):
                break
            self._pause(CHECKOUT_LOOK_SECONDS)
        return self.get_job(job_id)

    def _is_opening(self, job_id: str) -> bool:
        """Whether a checkout is still to be opened, or being opened, by what the job owes."""
        return any(effect.state in (EffectState.DUE, EffectState.CLAIMED) for effect in self._checkouts(job_id))

    def _checkouts(self, job_id: str) -> list[EffectRow]:
        effects = self._engine.tables.effects

        def build() -> Any:
            owed = (effects.workflow == "job") & (effects.subject_id == Slot("job_id"))
            return effects.select().where(owed & (effects.name == CHECKOUT))

        return self._engine.registry.select("checkouts", effects, build, {"job_id": job_id})

    def explain(self, job_id: str, *, actor: str = "", reason: str = "") -> list[Option]:
        """What may happen to a job next, and which guard blocks what and why; see `Engine.explain`."""
        try:
            return self._engine.explain("job", str(job_id), actor=actor, reason=reason)
        except UnknownSubject:
            raise UnknownJob(job_id) from None

    def history(self, job_id: str) -> list[Transition]:
        """Every transition of a job, oldest first."""
        self.get_job(job_id)
        return self._engine.history("job", str(job_id))
