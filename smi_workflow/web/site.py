"""Owns the web site as a whole. gunicorn's target is `smi_workflow.web.site:create_app()`."""

from __future__ import annotations

from flask import Flask

from smi_workflow.app import App
from smi_workflow.web.admin.api import admin_routes
from smi_workflow.web.api import api_routes
from smi_workflow.web.crossing import allow_crossing
from smi_workflow.web.downloads import download_routes
from smi_workflow.web.health import health_routes
from smi_workflow.web.openapi import openapi_routes
from smi_workflow.web.pages import page_routes
from smi_workflow.web.serving import make_site, open_or_exit
from smi_workflow.web.status import status_routes
from smi_workflow.web.webhooks import webhook_routes


def create_app(app: App | None = None) -> Flask:
    """The whole site; the downloads too, so that one process is enough for a small installation.

    Args:
        app: an open system; unset, one from the environment, or the process ends with what is wrong.
    """
    app = app or open_or_exit("web")
    site, limits = make_site(app)
    site.register_blueprint(health_routes(app))
    site.register_blueprint(webhook_routes(app))
    site.register_blueprint(api_routes(app, limits))
    site.register_blueprint(admin_routes(app, limits))
    site.register_blueprint(download_routes(app))
    site.register_blueprint(page_routes())
    site.register_blueprint(status_routes(app))
    site.register_blueprint(openapi_routes(site))
    allow_crossing(site, app.settings.cors_origins)
    return site
