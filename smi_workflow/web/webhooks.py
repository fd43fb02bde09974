"""Owns the taking in of what Stripe and Upsampler tell us: proven, cut down, kept in one commit, answered.

Called by site.py. Nothing is judged here: the inbox keeps it, workers apply it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal

from flask import Blueprint, Response, jsonify, request

from smi_workflow.app import App
from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import InvalidInput
from smi_workflow.intake import STRIPE, UPSAMPLER, reduce_stripe_event
from smi_workflow.integrations.stripe_events import verify_event
from smi_workflow.integrations.upsampler_api import Upscale, parse_upscale
from smi_workflow.jobs.tokens import signature_is_ours
from smi_workflow.web.bodies import check_storable, parse_json, read_body, require_json
from smi_workflow.web.problems import Problem

BODY_BYTES_MAX = 1024 * 1024
EVENT_ID_LENGTH_MAX = 150
URL_LENGTH_MAX = 8192
_EVENT_ID = re.compile(r"[!-~]{1,150}", re.ASCII)
_KIND = re.compile(r"[!-~]{1,100}", re.ASCII)


def webhook_routes(app: App) -> Blueprint:
    """Where providers report."""
    routes = Blueprint("webhooks", __name__, url_prefix="/webhooks")
    secrets = [secret.get_secret_value() for secret in app.settings.stripe_webhook_secret]

    @routes.post("/stripe")
    def take_stripe() -> Response:
        require_json()
        body = read_body(BODY_BYTES_MAX)
        event = verify_event(body, request.headers.get("Stripe-Signature"), secrets)
        if not _EVENT_ID.fullmatch(event["id"]) or not _KIND.fullmatch(event["type"]):
            raise InvalidInput("body", "has an id or a type that no event has")
        kept = reduce_stripe_event(event)
        app.inbox.receive(STRIPE, event["id"], event["type"], _payload(kept))
        reach(Point.EVENT_KEPT)
        return jsonify(received=True)

    @routes.post("/upsampler/<effect_id>/<signature>")
    def take_upsampler(effect_id: str, signature: str) -> Response:
        if not signature_is_ours(app.settings.secret_keys, signature, "upsampler", effect_id):
            raise Problem(404)
        require_json()
        upscale = parse_upscale(parse_json(read_body(BODY_BYTES_MAX)))
        if len(upscale.image_url or "") > URL_LENGTH_MAX:
            raise InvalidInput("imageUrl", "is too long")
        kept = {
            "effect_id": effect_id, "id": upscale.id, "status": upscale.status, "imageUrl": upscale.image_url,
            "creditCost": _plain_number(upscale.credit_cost), "error": upscale.error,
        }  # fmt: skip
        app.inbox.receive(UPSAMPLER, _event_id(upscale), upscale.status, _payload(kept))
        reach(Point.EVENT_KEPT)
        return jsonify(received=True)

    return routes


def _payload(kept: Mapping[str, object]) -> str:
    check_storable(kept)
    try:
        return json.dumps(kept, allow_nan=False)
    except (ValueError, RecursionError):
        raise InvalidInput("body", "is nested too deeply") from None


def _event_id(upscale: Upscale) -> str:
    """The provider's name for the event; one that does not fit the column is known by its digest."""
    name = f"{upscale.id}:{upscale.status}"
    if len(name) <= EVENT_ID_LENGTH_MAX:
        return name
    return f"sha256-{hashlib.sha256(upscale.id.encode()).hexdigest()}:{upscale.status}"


def _plain_number(cost: Decimal | None) -> str | None:
    # Rounded, because 1E-999999 is a number too, and no column holds it.
    return None if cost is None else format(cost.quantize(Decimal("0.000001")), "f")
