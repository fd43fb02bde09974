"""Owns the page on which a buyer waits: how far the order is, and what happens next. Called by site.py.

Whoever has the job's id may look. Nothing personal and no link is shown, and looking changes nothing.
"""

from __future__ import annotations

from flask import Blueprint, Response, request

from smi_workflow.app import App
from smi_workflow.web.api import checked_id
from smi_workflow.web.news import STEPS, news_of
from smi_workflow.web.pages import render_template_page

# Where a browser without scripts looks again by itself.
REFRESH_SECONDS = 15


def status_routes(app: App) -> Blueprint:
    """How far an order is; the page looks again by itself until there is nothing more to come."""
    routes = Blueprint("status", __name__)

    @routes.get("/jobs/<job_id>")
    def status_page(job_id: str) -> Response:
        job = app.jobs.get_job(checked_id(job_id))
        news = news_of(job, is_back_from_checkout=request.args.get("from") == "checkout")
        return render_template_page(
            "status.html", styles=("style", "status"), script="status",
            news=news, steps=STEPS, job_id=job.job_id, refresh_seconds=REFRESH_SECONDS,
        )  # fmt: skip

    return routes
