"""Owns the control routes that every server of the sandbox has: faults, ledger, clock. Called by its servers."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from smi_workflow.errors import InvalidInput
from smi_workflow.sandbox.clock import SandboxClock
from smi_workflow.sandbox.faults import FaultBook
from smi_workflow.sandbox.server import RequestLog


def body_object() -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty object.

    Raises:
        InvalidInput: it is something else.
    """
    if not request.get_data():
        return {}
    data = request.get_json(force=True, silent=True)
    if not isinstance(data, dict):
        raise InvalidInput("body", "must be a JSON object")
    return data


def control_routes(faults: FaultBook, ledger: Callable[[], dict[str, Any]], clock: SandboxClock) -> Blueprint:
    """The routes below /_sandbox/ that no provider has.

    Args:
        ledger: everything that happened, for independent checks.
    """
    routes = Blueprint("control", __name__, url_prefix="/_sandbox")

    @routes.post("/faults")
    def add_fault() -> tuple[Response, int]:
        data = body_object()
        unknown = set(data) - {"match", "fault", "times", "probability"}
        if unknown:
            raise InvalidInput("body", f"unknown fields {sorted(unknown)}")
        number = faults.add(
            data.get("match", {}), data.get("fault", {}), data.get("times", 1), data.get("probability", 1.0)
        )
        return jsonify({"id": number}), 201

    @routes.get("/faults")
    def list_faults() -> Response:
        return jsonify({"faults": faults.listing()})

    @routes.delete("/faults")
    def clear_faults() -> tuple[str, int]:
        faults.clear()
        return "", 204

    @routes.get("/ledger")
    def show_ledger() -> Response:
        return jsonify(ledger())

    @routes.post("/clock")
    def advance_clock() -> Response:
        seconds = body_object().get("advance_seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
            raise InvalidInput("advance_seconds", "must be a number of seconds from 0")
        clock.advance(seconds)
        return jsonify({"now": clock()})

    @routes.errorhandler(InvalidInput)
    def refuse(error: InvalidInput) -> tuple[Response, int]:
        return jsonify({"error": str(error)}), 400

    return routes


def plain_errors(app: Flask, log: RequestLog) -> None:
    """Answer what went wrong as {"error": …}; the stack trace of a bug goes to the log file alone."""

    def http_error(error: HTTPException) -> tuple[Response, int]:
        return jsonify({"error": error.description or error.name}), error.code or 500

    def bug(error: Exception) -> tuple[Response, int]:
        log.write(app.name, "".join(traceback.format_exception(error)))
        return jsonify({"error": "the sandbox has a bug; see its log file"}), 500

    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, bug)
