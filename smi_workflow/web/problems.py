"""Owns every answer that is a refusal: application/problem+json (RFC 9457), or a small page for people.

Called by serving.py; the routes raise. What an answer says is written here or in the routes; texts of exceptions
reach the log only, but for those that were written for whoever sent the request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

import peewee
from flask import Flask, Response, g, json, request
from werkzeug.exceptions import HTTPException

from smi_workflow.errors import (
    BadSignature,
    GuardRefused,
    InvalidInput,
    ServiceRefused,
    ServiceUnavailable,
    SmiError,
    StaleState,
    TransitionConflict,
    TransitionNotAllowed,
    UnknownState,
    UnknownSubject,
)
from smi_workflow.web.pages import render_page

MEDIA_TYPE = "application/problem+json"
DATABASE_FAILED = "database_failed"
RETRY_SECONDS = 5
RETRY_SECONDS_MAX = 3600

# Blueprints that programs talk to, whatever they say that they accept.
FOR_PROGRAMS = ("api", "admin_api", "webhooks")

DETAILS = {
    400: "The request cannot be understood.",
    401: "A token is needed that this shop knows.",
    404: "There is nothing here.",
    405: "This address does not take that method.",
    408: "The request took too long to arrive.",
    409: "That is not possible in the present state.",
    413: "The body is larger than this address takes.",
    415: "The content type must be application/json.",
    416: "The file does not have that part.",
    422: "Something in the request is refused: `field` names it.",
    429: "That was too often. Please try again later.",
    500: "Something went wrong on our side. It is on record.",
    503: "This is not possible just now. Please try again in a moment.",
}
# The image of an order was refused: what its buyer may know of the reason.
_IMAGE_DETAILS = {
    "url_not_allowed": "Images cannot be fetched from this address.",
    "too_many_redirects": "The address of the image redirects too often.",
    "not_found": "There is no image at this address.",
    "gone": "There is no image at this address any more.",
    "forbidden": "The image may not be fetched without permission.",
    "too_large": "The file of the image is too large.",
    "not_an_image": "At this address is no image, or a damaged one.",
    "unsupported_format": "Only still images as PNG, JPEG or WebP can be upscaled.",
    "too_many_pixels": "The image has too many pixels.",
    "wrong_dimensions": "The image does not have the given width and height.",
}
# What the machine says to those who fire by HTTP: admins, for whom these texts were written.
REFUSALS = (GuardRefused, TransitionNotAllowed, StaleState, UnknownState)
_IMAGE_DETAIL_ELSE = "The image at this address cannot be used."

log = logging.getLogger(__name__)


class Problem(HTTPException):
    """A refusal in words for whoever sent the request.

    Args:
        status: 400..599.
        detail: what is wrong; unset, a plain sentence for the status.
        title: the page's headline; unset, the status in words.
        headers: beside those that every answer has.
        members: further members of the problem object.
    """

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.code = status
        self.detail = detail
        self.title = title
        self.more_headers = dict(headers or {})
        self.members = dict(members or {})


def unavailable(detail: str | None = None, *, seconds: float | None = None, **members: object) -> Problem:
    """503 with the time after which to come again."""
    wait = RETRY_SECONDS if seconds is None else max(1, min(RETRY_SECONDS_MAX, math.ceil(seconds)))
    return Problem(503, detail, headers={"Retry-After": str(wait)}, members=members)


def answer_problems(site: Flask) -> None:
    """Answer every error of this application as a problem, and log those that are ours."""

    def http_error(error: HTTPException) -> Response:
        return answer(error if isinstance(error, Problem) else _plain(error))

    def refused(error: SmiError) -> Response:
        return answer(_translate(error))

    def database_trouble(error: peewee.PeeweeException) -> Response:
        # One line: what follows may quote rows.
        text = (str(error).splitlines() or [""])[0]
        log.error("the database failed: %s: %s (request %s)", type(error).__name__, text, g.get("request_id"))
        setattr(g, DATABASE_FAILED, True)
        return answer(unavailable())

    def bug(error: Exception) -> Response:
        log.error("request %s failed", g.get("request_id"), exc_info=error)
        return answer(Problem(500))

    site.register_error_handler(HTTPException, http_error)
    site.register_error_handler(SmiError, refused)
    site.register_error_handler(peewee.PeeweeException, database_trouble)
    site.register_error_handler(Exception, bug)


def answer(problem: Problem) -> Response:
    """The refusal as a page where a person asks, as problem+json everywhere else."""
    status = problem.code or 500
    phrase = phrase_of(status)
    detail = problem.detail or DETAILS.get(status, phrase)
    if _a_person_asks():
        response = render_page(problem.title or phrase, [detail], status)
    else:
        content = {
            "type": "about:blank", "title": phrase, "status": status, "detail": detail,
            **problem.members, "request_id": g.get("request_id"),
        }  # fmt: skip
        response = Response(json.dumps(content), status, content_type=MEDIA_TYPE)
    response.vary.add("Accept")
    response.headers.update(problem.more_headers)
    return response


def phrase_of(status: int) -> str:
    """The status in words."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _a_person_asks() -> bool:
    if request.method not in ("GET", "HEAD") or request.blueprint in FOR_PROGRAMS:
        return False
    return request.accept_mimetypes.best_match([MEDIA_TYPE, "application/json", "text/html"]) == "text/html"


def _plain(error: HTTPException) -> Problem:
    """What the libraries raise: their status and headers (Allow, Content-Range), our words."""
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    return Problem(error.code or 500, headers=headers)


def _refusal(error: GuardRefused | TransitionNotAllowed | StaleState | UnknownState) -> dict[str, object]:
    """Why the machine said no, for programs."""
    if isinstance(error, GuardRefused):
        return {
            "code": "guard_refused", "state": error.state, "trigger": error.trigger, "guard": error.guard,
            "reason": error.reason,
        }  # fmt: skip
    if isinstance(error, TransitionNotAllowed):
        return {
            "code": "not_possible", "state": error.state, "trigger": error.trigger, "allowed": error.allowed,
            "reason": f"a job that is {error.state} has no such trigger",
        }  # fmt: skip
    if isinstance(error, StaleState):
        return {
            "code": "stale_state", "state": error.state, "expected": error.expected, "reason": "it has moved on",
        }  # fmt: skip
    return {"code": "unknown_state", "state": error.state, "reason": "a newer release put it there"}


def _translate(error: SmiError) -> Problem:
    if isinstance(error, InvalidInput):
        status = 400 if request.blueprint == "webhooks" else 422
        if status == 400:
            log.warning("a message was refused: %s (request %s)", error, g.get("request_id"))
        return Problem(status, f"{error.field} {error.problem}", members={"field": error.field})
    if isinstance(error, BadSignature):
        log.warning("a message was refused: %s (request %s)", error, g.get("request_id"))
        return Problem(400, "The signature does not fit.")
    if isinstance(error, UnknownSubject):
        return Problem(404)
    if isinstance(error, TransitionConflict):
        if request.blueprint == "admin_api":
            detail = "Another process holds the job. Please try again."
            return Problem(409, detail, headers={"Retry-After": "1"}, members={"code": "conflict"})
        return unavailable(seconds=1)
    if request.blueprint == "admin_api" and isinstance(error, REFUSALS):
        return Problem(409, str(error), members=_refusal(error))
    if isinstance(error, ServiceUnavailable):
        log.warning("not possible now: %s (request %s)", error, g.get("request_id"))
        return unavailable(seconds=error.retry_after_seconds, code=error.code)
    if isinstance(error, ServiceRefused):
        detail = _IMAGE_DETAILS.get(error.code or "", _IMAGE_DETAIL_ELSE)
        return Problem(422, detail, members={"code": error.code, "field": "image_url"})
    log.error("request %s failed: %s", g.get("request_id"), error, exc_info=error)
    return Problem(500)
