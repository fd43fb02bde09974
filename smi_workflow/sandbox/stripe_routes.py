"""Owns the routes of the imitated api.stripe.com, authentication and replay included. Called by its server."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from flask import Blueprint, Response, g, request

from smi_workflow.sandbox import stripe_objects as objects
from smi_workflow.sandbox import stripe_params as known
from smi_workflow.sandbox.faults import Channel, Fault, FaultBook
from smi_workflow.sandbox.server import INSIDE, planned_answer
from smi_workflow.sandbox.stripe_book import Origin, StripeBook
from smi_workflow.sandbox.stripe_checkout import create_session, expire_session
from smi_workflow.sandbox.stripe_errors import StripeFailure, invalid
from smi_workflow.sandbox.stripe_forms import check, read_form
from smi_workflow.sandbox.stripe_idempotency import Answer, IdempotencyKeys
from smi_workflow.sandbox.stripe_objects import Payload
from smi_workflow.sandbox.stripe_refunds import create_refund

PATHS = {
    "checkout/sessions": "sessions",
    "payment_intents": "intents",
    "charges": "charges",
    "refunds": "refunds",
    "disputes": "disputes",
    "events": "events",
}
EVENTS_KEPT_SECONDS = 30 * 24 * 3600
UPDATABLE = frozenset({"sessions", "intents", "refunds"})


@dataclass(frozen=True, slots=True)
class StripeApi:
    """What the routes work with."""

    book: StripeBook
    keys: IdempotencyKeys
    faults: FaultBook
    pay_url: str
    api_keys: tuple[str, ...]


def api_routes(api: StripeApi) -> Blueprint:
    """The imitated part of https://api.stripe.com/v1."""
    routes = Blueprint("stripe_api", __name__, url_prefix="/v1")
    _admission(routes, api)
    book = api.book

    @routes.post("/checkout/sessions")
    def post_session() -> Response:
        params = _params(known.SESSION_CREATE)
        with book.turn(_origin()):
            session = create_session(book, params, g.livemode, api.pay_url)
            shown = book.show(session, params.get("expand"))
        return _json(shown)

    @routes.post("/checkout/sessions/<session_id>/expire")
    def post_expire(session_id: str) -> Response:
        params = _params(known.EXPAND_ONLY)
        with book.turn(_origin()):
            session = book.get("sessions", session_id, g.livemode, "session")
            expire_session(book, session)
            shown = book.show(session, params.get("expand"))
        return _json(shown)

    @routes.post("/refunds")
    def post_refund() -> Response:
        params = _params(known.REFUND_CREATE)
        fault = api.faults.take(Channel.REFUND)
        with book.turn(_origin()):
            refund = create_refund(book, params, g.livemode, fault.kind if fault else "succeeded")
            shown = book.show(refund, params.get("expand"))
        return _json(shown)

    for path, kind in PATHS.items():
        _collection(routes, book, path, kind)

    @routes.route("/<path:rest>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    def unknown(rest: str) -> Response:
        message = f"Unrecognized request URL ({request.method}: {request.path})."
        raise StripeFailure(message, status=404, began=False)

    return routes


def _collection(routes: Blueprint, book: StripeBook, path: str, kind: str) -> None:
    def retrieve(object_id: str) -> Response:
        params = _params(known.EXPAND_ONLY)
        with book.turn(_origin()):
            shown = book.show(book.get(kind, object_id, g.livemode), params.get("expand"))
        return _json(shown)

    def update(object_id: str) -> Response:
        params = _params(known.METADATA_UPDATE)
        with book.turn(_origin()):
            payload = book.get(kind, object_id, g.livemode)
            merged = {**payload["metadata"], **params.get("metadata", {})}
            payload["metadata"] = {key: value for key, value in merged.items() if value != ""}
            shown = book.show(payload, params.get("expand"))
        return _json(shown)

    def listing() -> Response:
        params = _params(known.LISTS[kind])
        with book.turn(_origin()):
            fits = _filter(kind, params, book.now())
            shown = book.page(kind, params, g.livemode, f"/v1/{path}", fits)
        return _json(shown)

    routes.add_url_rule(f"/{path}", f"list_{kind}", listing, methods=["GET"])
    routes.add_url_rule(f"/{path}/<object_id>", f"retrieve_{kind}", retrieve, methods=["GET"])
    if kind in UPDATABLE:
        routes.add_url_rule(f"/{path}/<object_id>", f"update_{kind}", update, methods=["POST"])


def _filter(kind: str, params: Payload, now: int) -> Callable[[Payload], bool]:
    if kind == "events":
        return _event_filter(params, now)
    wanted = {name: params[name] for name in ("payment_intent", "charge", "status") if name in params}
    email = params.get("customer_details", {}).get("email")

    def fits(payload: Payload) -> bool:
        if email is not None and (payload["customer_details"] or {}).get("email") != email:
            return False
        return all(payload[name] == value for name, value in wanted.items())

    return fits


def _event_filter(params: Payload, now: int) -> Callable[[Payload], bool]:
    if "type" in params and "types" in params:
        raise invalid("You may only specify one of these parameters: type, types.", "type")
    patterns = [params["type"]] if "type" in params else params.get("types", ["*"])
    if len(patterns) > 20:
        raise invalid("types takes up to 20 entries.", "types")
    success = params.get("delivery_success")

    def fits(event: Payload) -> bool:
        if success is not None and (event["pending_webhooks"] == 0) is not success:
            return False
        if now - event["created"] > EVENTS_KEPT_SECONDS:
            return False
        return any(fnmatchcase(event["type"], pattern) for pattern in patterns)

    return fits


def _admission(routes: Blueprint, api: StripeApi) -> None:
    @routes.before_request
    def admit() -> Response | None:
        g.request_id = objects.new_id("req", 14)
        g.key_id = None
        g.began = True
        secret = _secret(api.api_keys)
        g.livemode = "_live_" in secret
        key = request.headers.get("Idempotency-Key")
        if request.method == "POST" and key:
            answer = api.keys.begin((secret, key), f"POST {request.path}", _fingerprint())
            if answer is not None:
                return _replay(answer)
            g.key_id = (secret, key)
        fault = _fault_inside()
        if fault is not None and fault.kind == "status":
            return _planned(fault)
        return None

    @routes.after_request
    def seal(response: Response) -> Response:
        fault = _fault_inside()
        if fault is not None and fault.kind == "slow":
            # The key stays in use meanwhile, as it does at Stripe: a retry that comes too soon gets a 409.
            time.sleep(fault.seconds)
        if g.get("key_id") is not None:
            answer = Answer(response.status_code, response.get_data(), g.request_id) if g.began else None
            api.keys.finish(g.key_id, answer)
        response.headers.setdefault("Request-Id", g.request_id)
        response.headers["Stripe-Version"] = objects.API_VERSION
        if "Idempotency-Key" in request.headers:
            response.headers["Idempotency-Key"] = request.headers["Idempotency-Key"]
        return response

    @routes.errorhandler(StripeFailure)
    def refuse(failure: StripeFailure) -> Response:
        g.began = failure.began
        return _json(failure.body(), failure.status)


def _fault_inside() -> Fault | None:
    fault: Fault | None = request.environ.get(INSIDE)
    return fault


def _planned(fault: Fault) -> Response:
    response = planned_answer(fault)
    if fault.body is None:
        message = "An error occurred with our connection to the bank. (The sandbox was told so.)"
        response = _json(StripeFailure(message, kind="api_error").body(), fault.status)
        response.headers.extend(dict(fault.headers))
    # The key would only replay it: Stripe tells its own libraries not to try again.
    response.headers.setdefault("Stripe-Should-Retry", "false")
    return response


def _replay(answer: Answer) -> Response:
    response = Response(answer.body, answer.status, content_type="application/json")
    response.headers["Idempotent-Replayed"] = "true"
    response.headers["Original-Request"] = answer.request_id
    return response


def _secret(api_keys: tuple[str, ...]) -> str:
    sent = request.authorization
    secret = ""
    if sent is not None:
        secret = (sent.token if sent.type == "bearer" else sent.username if sent.type == "basic" else None) or ""
    if not secret:
        message = (
            "You did not provide an API key. You need to provide your API key in the Authorization header, "
            "using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
        )
        raise StripeFailure(message, status=401, began=False)
    shaped = secret.startswith(("sk_test_", "sk_live_", "rk_test_", "rk_live_"))
    if not shaped or (api_keys and secret not in api_keys):
        raise StripeFailure(f"Invalid API Key provided: {secret[:8]}****", status=401, began=False)
    return secret


def _pairs() -> list[tuple[str, str]]:
    if request.method == "GET":
        return list(request.args.items(multi=True))
    kind = request.mimetype
    if kind not in ("", "application/x-www-form-urlencoded", "multipart/form-data") and request.get_data():
        message = "Invalid request (check that your POST content type is application/x-www-form-urlencoded)."
        raise invalid(message)
    return [*request.args.items(multi=True), *request.form.items(multi=True)]


def _params(fields: known.Fields) -> Payload:
    return check(fields, read_form(_pairs()))


def _fingerprint() -> str:
    return hashlib.sha256(json.dumps(sorted(_pairs())).encode()).hexdigest()


def _origin() -> Origin:
    return Origin(g.request_id, request.headers.get("Idempotency-Key"))


def _json(payload: Any, status: int = 200) -> Response:
    return Response(json.dumps(payload, indent=2), status, content_type="application/json")
