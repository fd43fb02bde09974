"""Owns the levers of the imitated Stripe that no API has: dashboard, bank, endpoint. Called by its server."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify

from smi_workflow.errors import InvalidInput
from smi_workflow.sandbox.control import body_object
from smi_workflow.sandbox.stripe_book import StripeBook
from smi_workflow.sandbox.stripe_checkout import pay, settle
from smi_workflow.sandbox.stripe_errors import StripeFailure
from smi_workflow.sandbox.stripe_refunds import (
    close_dispute,
    create_refund,
    find_charge,
    open_dispute,
    settle_refund,
)
from smi_workflow.sandbox.stripe_webhooks import StripeWebhooks


def control_levers(book: StripeBook, webhooks: StripeWebhooks) -> Blueprint:
    """The routes below /_sandbox/stripe/."""
    routes = Blueprint("stripe_controls", __name__, url_prefix="/_sandbox/stripe")

    @routes.post("/sessions/<session_id>/pay")
    def pay_session(session_id: str) -> Response:
        data = _known("email", "amount", "delayed")
        with book.turn():
            session = book.get("sessions", session_id, None)
            pay(
                book,
                session,
                email=data.get("email"),
                delayed=bool(data.get("delayed")),
                amount=_whole(data, "amount"),
            )
            shown = book.show(session)
        return jsonify(shown)

    @routes.post("/sessions/<session_id>/settle")
    def settle_session(session_id: str) -> Response:
        outcome = str(_known("outcome").get("outcome", "succeeded"))
        with book.turn():
            session = book.get("sessions", session_id, None)
            settle(book, session, outcome)
            shown = book.show(session)
        return jsonify(shown)

    @routes.post("/refunds/<refund_id>/settle")
    def settle_pending_refund(refund_id: str) -> Response:
        data = _known("outcome", "failure_reason")
        with book.turn():
            refund = book.get("refunds", refund_id, None)
            reason = str(data.get("failure_reason", "lost_or_stolen_card"))
            settle_refund(book, refund, str(data.get("outcome", "succeeded")), reason)
            shown = book.show(refund)
        return jsonify(shown)

    @routes.post("/dashboard/refunds")
    def refund_at_dashboard() -> Response:
        data = _known("payment_intent", "charge", "amount", "reason", "metadata", "status")
        _whole(data, "amount")
        status = data.pop("status", "succeeded")
        if status not in ("succeeded", "pending", "requires_action", "failed"):
            raise InvalidInput("status", "must be succeeded, pending, requires_action or failed")
        if not isinstance(data.get("metadata", {}), dict):
            raise InvalidInput("metadata", "must be an object")
        with book.turn():
            refund = create_refund(book, data, None, status)
            shown = book.show(refund)
        return jsonify(shown)

    @routes.post("/dashboard/disputes")
    def dispute_charge() -> Response:
        data = _known("payment_intent", "charge", "amount", "reason", "inquiry", "without_intent")
        with book.turn():
            charge = find_charge(book, data, None)
            dispute = open_dispute(
                book,
                charge,
                amount=_whole(data, "amount"),
                reason=str(data.get("reason", "fraudulent")),
                inquiry=bool(data.get("inquiry")),
                without_intent=bool(data.get("without_intent")),
            )
            shown = book.show(dispute)
        return jsonify(shown)

    @routes.post("/dashboard/disputes/<dispute_id>/close")
    def close_open_dispute(dispute_id: str) -> Response:
        outcome = str(_known("outcome").get("outcome", ""))
        with book.turn():
            dispute = book.get("disputes", dispute_id, None)
            close_dispute(book, dispute, outcome)
            shown = book.show(dispute)
        return jsonify(shown)

    @routes.post("/events/<event_id>/resend")
    def resend(event_id: str) -> Response:
        with book.turn():
            event = book.show(book.get("events", event_id, None))
        webhooks.resend(event)
        return jsonify(event)

    @routes.post("/webhook")
    def set_webhook() -> tuple[str, int]:
        data = _known("url", "secrets")
        secrets = data.get("secrets", [])
        if not isinstance(secrets, list) or not all(isinstance(secret, str) and secret for secret in secrets):
            raise InvalidInput("secrets", "must be a list of endpoint secrets")
        webhooks.set_endpoint(str(data.get("url", "")), tuple(secrets))
        return "", 204

    @routes.errorhandler(StripeFailure)
    def refuse(failure: StripeFailure) -> tuple[Response, int]:
        return jsonify(failure.body()), failure.status

    @routes.errorhandler(InvalidInput)
    def refuse_input(error: InvalidInput) -> tuple[Response, int]:
        return jsonify({"error": str(error)}), 400

    return routes


def _known(*names: str) -> dict[str, Any]:
    data = body_object()
    unknown = set(data) - set(names)
    if unknown:
        raise InvalidInput("body", f"unknown fields {sorted(unknown)}")
    return data


def _whole(data: dict[str, Any], name: str) -> int | None:
    value = data.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidInput(name, "must be a whole number from 1, in minor units")
    return value
