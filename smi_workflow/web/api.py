"""Owns the API of the shop's front: prices, orders, how far an order is. Called by site.py.

Whoever knows a job's id may ask how far it is; nothing personal and no link is told.
"""

from __future__ import annotations

import re

from flask import Blueprint, Response, request

from smi_workflow.app import App
from smi_workflow.errors import InvalidInput, UnknownJob
from smi_workflow.jobs.model import Job, JobStatus, Resolution
from smi_workflow.jobs.pricing import from_cents
from smi_workflow.web.limits import ORDERS, Doorway, Limits
from smi_workflow.web.models import NotSold, Order, Ordered, Progress, Quote, Quotes, Size
from smi_workflow.web.news import news_of
from smi_workflow.web.operations import Header, described
from smi_workflow.web.problems import Problem, unavailable
from smi_workflow.web.reading import read_json, told

KEY_LENGTH_MAX = 255
TAG = "Shop"
IDEMPOTENCY_KEY = Header(
    "Idempotency-Key", "The same key and the same order make one job, however often they are sent.", KEY_LENGTH_MAX
)
REFUSALS = (400, 408, 413, 415, 422, 429, 503)
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def api_routes(app: App, limits: Limits) -> Blueprint:
    """The API, version 1."""
    routes = Blueprint("api", __name__, url_prefix="/api/v1")
    doorway = Doorway(app.settings.orders_at_once)

    @routes.post("/jobs")
    @described(
        TAG, "Order an image", body=Order, headers=(IDEMPOTENCY_KEY,), answers={201: Ordered},
        problems=(*REFUSALS, 409),
    )  # fmt: skip
    def create_job() -> Response:
        """Fetches the image, measures and keeps it, and opens the checkout: one answer has it all.

        Nothing is charged before the buyer pays at `checkout_url`. After a 503 send the same order with the same
        key again; a 409 says that the order of this key is over.
        """
        with doorway.passed(limits.caller(ORDERS)):
            order = read_json(Order).model_dump(exclude_none=True)
            job = app.jobs.create_job(order, idempotency_key=request.headers.get("Idempotency-Key"))
        if job.checkout_url is None:
            raise _no_checkout(job)
        amount = str(from_cents(job.amount_due_cents, job.currency))
        return told(
            Ordered(
                job_id=job.job_id, status=job.status, checkout_url=job.checkout_url, amount=amount,
                currency=job.currency,
            ),
            201,
        )  # fmt: skip

    @routes.get("/jobs/<job_id>")
    @described(TAG, "Ask how far a job is", answers={200: Progress}, problems=(404, 429, 503))
    def show_job(job_id: str) -> Response:
        """For the waiting buyer: whoever has the job's id may ask. Every few seconds is enough."""
        return told(progress_of(app.jobs.get_job(checked_id(job_id))))

    @routes.post("/quotes")
    @described(TAG, "Ask for prices", body=Size, answers={200: Quotes}, problems=REFUSALS)
    def quote() -> Response:
        """The price of each resolution for an image of this size, and why not where there is none."""
        size = read_json(Size)
        answer = Quotes(quotes=[], refused=[])
        for resolution in Resolution:
            try:
                price = app.jobs.quote(size.image_width, size.image_height, resolution)
            except InvalidInput as refusal:
                if refusal.field != "resolution":
                    raise
                answer.refused.append(NotSold(resolution=resolution, reason=refusal.problem))
                continue
            answer.quotes.append(
                Quote(
                    resolution=resolution, output_width=price.output_width, output_height=price.output_height,
                    amount=str(price.price), currency=price.currency,
                )
            )  # fmt: skip
        return told(answer)

    return routes


def checked_id(job_id: str) -> str:
    """The id, if it can be one: not every database takes every text.

    Raises:
        UnknownJob: no job can have it.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise UnknownJob(job_id)
    return job_id


def progress_of(job: Job) -> Progress:
    """What a waiting buyer may see."""
    news = news_of(job)
    return Progress(
        job_id=job.job_id, status=job.status, progress=news.progress, next=news.next, final=news.final,
        amount=str(from_cents(job.amount_due_cents, job.currency)), currency=job.currency,
        created_at=job.created_at,
    )  # fmt: skip


def _no_checkout(job: Job) -> Problem:
    if job.status == JobStatus.AWAITING_PAYMENT:
        detail = (
            "The payment page cannot be opened just now. Send the same order with the same Idempotency-Key again."
        )
        return unavailable(detail, job_id=job.job_id, job_status=job.status)
    detail = f"This order is {job.status} and cannot be paid. Order anew, with another Idempotency-Key."
    return Problem(409, detail, members={"job_id": job.job_id, "job_status": job.status})
