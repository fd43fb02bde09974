"""Owns what every web process has: start-up, headers, request ids, log lines, clean connections.

Called by site.py and downloads.py.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
import uuid
from typing import Any

from flask import Flask, Response, g, has_request_context, request
from peewee import Database, PeeweeException
from werkzeug.middleware.proxy_fix import ProxyFix

from smi_workflow.app import App, open_process
from smi_workflow.errors import DatabaseAway, SmiError
from smi_workflow.integrations.bell_ringer import BellRinger
from smi_workflow.integrations.broker import Doorbell, make_broker
from smi_workflow.integrations.embedded_broker import embedded_broker_url
from smi_workflow.web.limits import ORDERS, READS, Limits
from smi_workflow.web.problems import DATABASE_FAILED, Problem, answer_problems

# gunicorn's own status for an application that cannot be loaded: it stops, and does not try for ever.
EXIT_NOT_LOADED = 4
# Any other: it starts the next worker.
EXIT_TRY_AGAIN = 1
# Less than what gunicorn gives a worker to report, and one that is told to stop to do so.
WORKER_WAIT_SECONDS = 20.0
# A client that neither sends nor takes a byte for so long is gone, or holds a thread on purpose.
STALL_SECONDS = 60.0

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# What only an https:// site may say; for a year, renewed with each answer.
HTTPS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}
# Providers prove themselves by signatures, admins by tokens (failures are counted); a watcher gets its answer.
PROVEN = ("webhooks.", "admin_api.", "health.")
UNLIMITED = ("downloads.source",)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)

log = logging.getLogger(__name__)


class RequestNames(logging.Filter):
    """Names the request in every line that is logged while one is answered, wherever in the system."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the name, unless the line has it already."""
        name = g.get("request_id") if has_request_context() else None
        if name is not None and name not in record.getMessage():
            record.msg, record.args = f"{record.getMessage()} (request {name})", ()
        return True


def open_or_exit(name: str, *, wait_seconds: float = WORKER_WAIT_SECONDS) -> App:
    """Open the system for a web process; says what is missing and ends the process where it cannot run.

    A database that is away is waited for. A worker that has waited in vain ends with a status after which gunicorn
    starts another: the site stays, and goes on when the database does.

    Args:
        name: of the process, for the message.
    """
    try:
        app = open_process(wait_seconds=wait_seconds)
        for handler in logging.getLogger().handlers:
            handler.addFilter(RequestNames())
        url = app.settings.broker_url or embedded_broker_url(app.settings.var_dir)
        if url is not None:
            # Made now, so that a URL that cannot be used shows before the first event has been taken in.
            app.ring_through(BellRinger(Doorbell(make_broker(url))))
    except DatabaseAway as error:
        sys.stderr.write(f"{name}: {error}\n")
        sys.exit(EXIT_TRY_AGAIN)
    except SmiError as error:
        sys.stderr.write(f"{name}: {error}\n")
        sys.exit(EXIT_NOT_LOADED)
    # Threads connect for themselves; this one serves nobody.
    app.database.close()
    return app


def check_start(name: str, *, threads: int, wait_seconds: float) -> None:
    """Look, before any worker starts, whether one could; ends the process with what is wrong.

    Args:
        threads: of each worker.
    """
    places = open_or_exit(name, wait_seconds=wait_seconds).settings.orders_at_once
    if places >= threads:
        message = "SMI_ORDERS_AT_ONCE is %d and WEB_THREADS %d: slow orders may keep webhooks waiting"
        log.warning(message, places, threads)


def make_site(app: App) -> tuple[Flask, Limits]:
    """A Flask application without routes, but with everything that each answer needs; and its limits."""
    limits = Limits(app.settings)
    headers = {**SECURITY_HEADERS, **(HTTPS_HEADERS if app.settings.public_url.startswith("https://") else {})}
    site = Flask("smi_workflow.web", static_folder=None)
    # A redirect to a tidier path would answer a webhook with something else than yes or no.
    site.url_map.merge_slashes = False
    site.json.sort_keys = False  # type: ignore[attr-defined]  # the default provider has it
    answer_problems(site)
    if app.settings.trusted_proxies:
        # Nothing else that a proxy says is needed: no answer depends on a scheme, a host or a port.
        proxied = ProxyFix(site.wsgi_app, x_for=app.settings.trusted_proxies, x_proto=0)
        site.wsgi_app = proxied  # type: ignore[method-assign]

    @site.before_request
    def begin() -> None:
        g.started = time.monotonic()
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        if not request.query_string.isascii():
            # No URL has such bytes; whoever reads the query would choke on them.
            raise Problem(400)
        connection = request.environ.get("gunicorn.socket")
        if isinstance(connection, socket.socket):
            connection.settimeout(STALL_SECONDS)
        kind = limit_of(request.endpoint, request.method)
        if kind is not None:
            limits.check(kind)

    @site.after_request
    def finish(response: Response) -> Response:
        given = {name.lower() for name, _ in response.headers}
        response.headers.extend([pair for pair in headers.items() if pair[0].lower() not in given])
        response.headers["X-Request-Id"] = g.request_id
        # The route and never the path: paths carry tokens, queries whatever a stranger wrote.
        rule = request.url_rule.rule if request.url_rule is not None else "(no route)"
        took_ms = (time.monotonic() - g.started) * 1000
        log.info("%s %s %d %.0f ms %s", request.method[:16], rule, response.status_code, took_ms, g.request_id)
        return response

    @site.teardown_request
    def leave_clean(error: BaseException | None) -> None:
        leave_connection_clean(app.database, has_failed=bool(g.get(DATABASE_FAILED)))

    return site, limits


def limit_of(endpoint: str | None, method: str) -> str | None:
    """Which limit a route counts for: strangers' are limited unless named here, new ones too."""
    if endpoint is None or endpoint in UNLIMITED or endpoint.startswith(PROVEN) or method == "OPTIONS":
        return None
    return ORDERS if endpoint == "api.create_job" else READS


def leave_connection_clean(database: Database, *, has_failed: bool) -> None:
    """Hand no open transaction and no broken connection to the next request of this thread."""
    if database.is_closed():
        return
    state: Any = database._state  # type: ignore[attr-defined]  # peewee closes nothing while it counts a transaction
    if database.transaction_depth():
        log.error("a request left a transaction open; it is rolled back")
        state.transactions.clear()
        has_failed = True
    if has_failed:
        try:
            database.close()
        except PeeweeException as trouble:
            log.info("a connection could not even be closed: %s", type(trouble).__name__)
