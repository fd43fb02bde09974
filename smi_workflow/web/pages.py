"""Owns how pages for people are written, and the smallest of them: thanks, cancelled, problems.

Called by its siblings. A page brings its style and its script along, allows exactly these by their hashes, and
asks nobody else for anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, render_template, request
from markupsafe import Markup

JOB_ID_LENGTH_MAX = 64
_TEMPLATES = Path(__file__).parent / "templates"


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
    return render_template_page("page.html", status, title=title, paragraphs=paragraphs, job_id=job_id)


def render_template_page(
    template: str,
    status: int = 200,
    *,
    styles: Sequence[str] = ("style",),
    script: str | None = None,
    **values: Any,
) -> Response:
    """A page from a template, which shows `style` and `script` as they are.

    Args:
        styles: of the template folder, in this order.
        script: of the template folder; it may ask this site and no other.
    """
    style, code = _sources(tuple(f"{name}.css.jinja" for name in styles)), ""
    policy = ["default-src 'none'", f"style-src 'sha256-{_digest(style)}'"]
    if script is not None:
        code = _sources((f"{script}.js.jinja",))
        policy += [f"script-src 'sha256-{_digest(code)}'", "connect-src 'self'"]
    policy += ["frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"]
    # Marked safe because they are our own files; everything else is escaped.
    ours = {"style": Markup(style), "script": Markup(code)}  # nosec B704
    text = render_template(template, **ours, **values)
    response = Response(text, status, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = "; ".join(policy)
    return response


@cache
def _sources(names: tuple[str, ...]) -> str:
    return "\n".join((_TEMPLATES / name).read_text(encoding="utf-8").strip() for name in names)


@cache
def _digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _job_id() -> str:
    return request.args.get("job", "")[:JOB_ID_LENGTH_MAX]
