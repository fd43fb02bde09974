"""Owns the answers to whoever watches the processes. Called by site.py and downloads.py."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, g, jsonify

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.engine.migrate import status
from smi_workflow.errors import ConfigError
from smi_workflow.web.problems import DATABASE_FAILED, unavailable

log = logging.getLogger(__name__)


def health_routes(app: App) -> Blueprint:
    """Alive, and ready."""
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @routes.get("/readyz")
    def readyz() -> Response:
        try:
            found = status(app.database, MIGRATIONS, prefix=app.settings.table_prefix)
        except ConfigError as error:
            log.error("not ready: %s", (str(error).splitlines() or [""])[0])
            setattr(g, DATABASE_FAILED, True)
            raise unavailable("The database cannot be reached.") from error
        if found.pending:
            log.error("not ready: migrations are pending: %s", ", ".join(found.pending))
            raise unavailable("The database is not up to date.")
        return jsonify(status="ready")

    return routes
