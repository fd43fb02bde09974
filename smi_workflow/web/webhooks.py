"""Owns the taking in of what Stripe and Upsampler tell us: proven, cut down, kept in one commit, answered.

Called by site.py. Nothing is judged here: the inbox keeps it, workers apply it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from flask import Blueprint, Response, jsonify, request

from smi_workflow.app import App
from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import InvalidInput
from smi_workflow.intake import STRIPE, UPSAMPLER, reduce_stripe_event
from smi_workflow.integrations.stripe_events import verify_event
from smi_workflow.integrations.upsampler_api import callback_name, kept_callback, parse_upscale
from smi_workflow.jobs.tokens import signature_is_ours
from smi_workflow.web.bodies import check_storable, parse_json, read_body, require_json
from smi_workflow.web.problems import Problem

BODY_BYTES_MAX = 1024 * 1024
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
        kept = kept_callback(effect_id, upscale)
        app.inbox.receive(UPSAMPLER, callback_name(upscale), upscale.status, _payload(kept))
        reach(Point.EVENT_KEPT)
        return jsonify(received=True)

    return routes


def _payload(kept: Mapping[str, object]) -> str:
    check_storable(kept)
    try:
        return json.dumps(kept, allow_nan=False)
    except (ValueError, RecursionError):
        raise InvalidInput("body", "is nested too deeply") from None
