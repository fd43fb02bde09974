"""Owns the imitated Stripe as a whole: book, webhooks, routes, server. Called by sandbox.py."""

from __future__ import annotations

import socket
import traceback
from typing import Any

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from smi_workflow.sandbox.background import Crew
from smi_workflow.sandbox.clock import SandboxClock
from smi_workflow.sandbox.control import control_routes
from smi_workflow.sandbox.faults import FaultBook
from smi_workflow.sandbox.postman import Postman
from smi_workflow.sandbox.server import LoopbackServer, RequestLog, url_of
from smi_workflow.sandbox.stripe_book import StripeBook
from smi_workflow.sandbox.stripe_controls import control_levers
from smi_workflow.sandbox.stripe_errors import StripeFailure
from smi_workflow.sandbox.stripe_idempotency import IdempotencyKeys
from smi_workflow.sandbox.stripe_pages import pay_routes
from smi_workflow.sandbox.stripe_refunds import balances
from smi_workflow.sandbox.stripe_routes import StripeApi, api_routes
from smi_workflow.sandbox.stripe_webhooks import StripeWebhooks

EXPIRY_TICK_SECONDS = 1.0


class StripeServer:
    """A Stripe on loopback; `url` is the API's base address."""

    def __init__(
        self,
        listener: socket.socket,
        log: RequestLog,
        *,
        api_keys: tuple[str, ...] = (),
        webhook_url: str = "",
        webhook_secrets: tuple[str, ...] = (),
        webhook_events: tuple[str, ...] = ("*",),
        retry_first_seconds: float = 0.5,
        retry_give_up_seconds: float = 300.0,
        seed: int | None = None,
    ) -> None:
        self.url = url_of(listener)
        self.clock = SandboxClock()
        self.faults = FaultBook(None if seed is None else f"stripe:{seed}")
        self._crew = Crew("stripe-webhooks")
        postman = Postman(
            self._crew, first_wait_seconds=retry_first_seconds, give_up_seconds=retry_give_up_seconds
        )
        self.webhooks = StripeWebhooks(
            postman, self.faults, url=webhook_url, secrets=webhook_secrets, wanted=webhook_events
        )
        self.book = StripeBook(self.clock, self.webhooks.expects, self.webhooks.publish)
        self.webhooks.on_delivered = self.book.mark_delivered
        self.webhooks.make_twin = self.book.twin
        api = StripeApi(self.book, IdempotencyKeys(self.clock), self.faults, f"{self.url}/pay", api_keys)
        app = Flask(__name__)
        app.register_blueprint(api_routes(api))
        app.register_blueprint(pay_routes(self.book))
        app.register_blueprint(control_levers(self.book, self.webhooks))
        app.register_blueprint(control_routes(self.faults, self.ledger, self.clock))
        _error_answers(app, log)
        self._server = LoopbackServer("stripe", listener, app, self.faults, log, inside=True)

    def start(self) -> None:
        """Answer requests, send webhooks, let sessions expire."""
        self._crew.start()
        self._crew.every(EXPIRY_TICK_SECONDS, self._tick)
        self._server.start()

    def stop(self) -> None:
        """Stop at once; undelivered webhooks are dropped."""
        self._server.stop()
        self._crew.stop()

    def ledger(self) -> dict[str, Any]:
        """Every object, every event with its deliveries, and where the money is."""
        with self.book.turn():
            tables: dict[str, Any] = self.book.ledger()
        for event in tables["events"]:
            event["deliveries"] = self.webhooks.deliveries(event["id"])
        return {**tables, "balances": balances(self.book)}

    def _tick(self) -> None:
        with self.book.turn():
            pass


def _error_answers(app: Flask, log: RequestLog) -> None:
    def http_error(error: HTTPException) -> tuple[Response, int]:
        return jsonify(StripeFailure(error.description or error.name).body()), error.code or 500

    def bug(error: Exception) -> tuple[Response, int]:
        log.write("stripe", "".join(traceback.format_exception(error)))
        return jsonify(StripeFailure("The sandbox has a bug; see its log file.", kind="api_error").body()), 500

    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, bug)
