"""Owns the small pages for people: thanks, cancelled, and what problems.py has to say. Called by its siblings."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from flask import Blueprint, Response, render_template, request
from markupsafe import Markup

JOB_ID_LENGTH_MAX = 64

_STYLE = (Path(__file__).parent / "templates" / "style.css.jinja").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# The one style of the page and nothing else: no script, no image, no frame, no form.
PAGE_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def page_routes() -> Blueprint:
    """Where Stripe sends the buyer afterwards. They say what happens next, and change nothing."""
    routes = Blueprint("pages", __name__)

    @routes.get("/thanks")
    def thanks() -> Response:
        return render_page(
            "Thank you for your order",
            [
                "As soon as your payment is confirmed, your image is upscaled. That takes a few minutes.",
                "The download link comes by e-mail. You can close this page.",
            ],
            job_id=_job_id(),
        )

    @routes.get("/cancelled")
    def cancelled() -> Response:
        return render_page(
            "Your order was not paid",
            [
                "Nothing was charged. Without a payment the order ends by itself.",
                "If you left by mistake, go back to the shop and order again.",
            ],
            job_id=_job_id(),
        )

    return routes


def render_page(title: str, paragraphs: Sequence[str], status: int = 200, *, job_id: str = "") -> Response:
    """A page of one headline and a few sentences.

    Args:
        job_id: shown where given, escaped like everything else.
    """
    # Marked safe because it is our own file; everything else is escaped.
    style = Markup(_STYLE)  # nosec B704
    text = render_template("page.html", title=title, paragraphs=paragraphs, job_id=job_id, style=style)
    response = Response(text, status, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response


def _job_id() -> str:
    return request.args.get("job", "")[:JOB_ID_LENGTH_MAX]
