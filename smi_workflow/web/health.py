"""Owns the answers to whoever watches the processes. Called by site.py and downloads.py."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, g

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.engine.migrate import status
from smi_workflow.errors import ConfigError
from smi_workflow.web.models import Alive
from smi_workflow.web.operations import described
from smi_workflow.web.problems import DATABASE_FAILED, unavailable
from smi_workflow.web.reading import told

log = logging.getLogger(__name__)


def health_routes(app: App) -> Blueprint:
    """Alive, and ready."""
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    @described("Watching", "Is the process alive?", answers={200: Alive})
    def healthz() -> Response:
        """Asks nothing of anyone."""
        return told(Alive(status="ok"))

    @routes.get("/readyz")
    @described("Watching", "Can it work?", answers={200: Alive}, problems=(503,))
    def readyz() -> Response:
        """The database is there, and its tables are up to date."""
        try:
            found = status(app.database, MIGRATIONS, prefix=app.settings.table_prefix)
        except ConfigError as error:
            log.error("not ready: %s", (str(error).splitlines() or [""])[0])
            setattr(g, DATABASE_FAILED, True)
            raise unavailable("The database cannot be reached.") from error
        if found.pending:
            log.error("not ready: migrations are pending: %s", ", ".join(found.pending))
            raise unavailable("The database is not up to date.")
        return told(Alive(status="ready"))

    return routes
