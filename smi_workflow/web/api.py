"""Owns the API of the shop's front: prices, orders, how far an order is. Called by site.py.

Whoever knows a job's id may ask how far it is; nothing personal and no link is told.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smi_workflow.app import App
from smi_workflow.errors import InvalidInput, UnknownJob
from smi_workflow.jobs.model import Job, JobStatus, PaymentStatus, Resolution
from smi_workflow.jobs.pricing import from_cents
from smi_workflow.web.bodies import check_storable, parse_json, read_body, require_json
from smi_workflow.web.problems import Problem, unavailable

BODY_BYTES_MAX = 64 * 1024
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

_M = TypeVar("_M", bound=BaseModel)


class Order(BaseModel):
    """What a buyer orders; post_id and attachment_id are WordPress's, and handed through."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image_url: str = Field(min_length=1, max_length=4096)
    resolution: str = Field(max_length=10)
    image_width: int = Field(ge=1)
    image_height: int = Field(ge=1)
    post_id: int | None = Field(None, ge=1)
    attachment_id: int | None = Field(None, ge=1)
    email: str | None = Field(None, max_length=254)


class Size(BaseModel):
    """What a price depends on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image_width: int = Field(ge=1)
    image_height: int = Field(ge=1)


def api_routes(app: App) -> Blueprint:
    """The API, version 1."""
    routes = Blueprint("api", __name__, url_prefix="/api/v1")

    @routes.post("/jobs")
    def create_job() -> tuple[Response, int]:
        order = _read(Order).model_dump(exclude_none=True)
        job = app.jobs.create_job(order, idempotency_key=request.headers.get("Idempotency-Key"))
        if job.checkout_url is None:
            raise _no_checkout(job)
        return jsonify(checkout_url=job.checkout_url, **_told(job)), 201

    @routes.get("/jobs/<job_id>")
    def show_job(job_id: str) -> Response:
        if not _JOB_ID.fullmatch(job_id):
            raise UnknownJob(job_id)
        job = app.jobs.get_job(job_id)
        return jsonify(**_told(job), progress=progress(job), created_at=job.created_at.isoformat())

    @routes.post("/quotes")
    def quote() -> Response:
        size = _read(Size)
        quotes, refused = [], []
        for resolution in Resolution:
            try:
                price = app.jobs.quote(size.image_width, size.image_height, resolution)
            except InvalidInput as refusal:
                if refusal.field != "resolution":
                    raise
                refused.append({"resolution": resolution, "reason": refusal.problem})
                continue
            quotes.append(
                {
                    "resolution": resolution,
                    "output_width": price.output_width,
                    "output_height": price.output_height,
                    "amount": str(price.price),
                    "currency": price.currency,
                }
            )
        return jsonify(quotes=quotes, refused=refused)

    return routes


def progress(job: Job) -> str:
    """How far an order is, in a sentence for its buyer."""
    if job.status == JobStatus.AWAITING_PAYMENT:
        if job.payment_status == PaymentStatus.FAILED:
            return "The payment did not go through. You can try again with another card."
        return "We are waiting for your payment."
    if job.status == JobStatus.PENDING:
        return "Your payment has arrived. Your image is next in line."
    if job.status == JobStatus.PROCESSING:
        done = job.delivered_at is not None
        return "Your image is upscaled; it is being checked." if done else "Your image is being upscaled."
    if job.status == JobStatus.COMPLETED:
        sent = "We have sent you" if job.email_sent else "We are sending you"
        return f"Your image is ready. {sent} the download link by e-mail."
    if job.status == JobStatus.ABANDONED:
        return "The order has ended, as it was not paid. Nothing was charged."
    if job.status != JobStatus.FAILED:
        # A state of another release, during a deploy: nothing is known to have gone wrong.
        return "Your order is being worked on."
    if not job.paid_cents:
        return "The payment failed. Nothing was charged."
    back = job.refunded_cents >= job.paid_cents
    return f"Your image could not be made. Your money {'was sent back' if back else 'will be sent back'}."


def _told(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "status": job.status,
        "amount": str(from_cents(job.amount_due_cents, job.currency)),
        "currency": job.currency,
    }


def _no_checkout(job: Job) -> Problem:
    if job.status == JobStatus.AWAITING_PAYMENT:
        detail = (
            "The payment page cannot be opened just now. Send the same order with the same Idempotency-Key again."
        )
        return unavailable(detail, job_id=job.job_id, job_status=job.status)
    detail = f"This order is {job.status} and cannot be paid. Order anew, with another Idempotency-Key."
    return Problem(409, detail, members={"job_id": job.job_id, "job_status": job.status})


def _read(model: type[_M]) -> _M:
    require_json()
    content = parse_json(read_body(BODY_BYTES_MAX))
    check_storable(content)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidInput(field[:100], f"is refused: {first['msg']}") from None
