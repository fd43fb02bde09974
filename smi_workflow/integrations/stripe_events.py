"""Owns the proof that a webhook body is Stripe's. Called by web/webhooks.py."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from smi_workflow.errors import BadSignature, InvalidInput

SCHEME = "v1"


def verify_event(
    body: bytes,
    signature_header: str | None,
    secrets: Sequence[str],
    *,
    now: float | None = None,
    tolerance_seconds: int = 300,
) -> dict[str, Any]:
    """Return the event in a webhook body, if Stripe signed it, for us, recently.

    Args:
        body: the bytes as they came in.
        signature_header: `Stripe-Signature`: one `t`, one or several `v1`.
        secrets: the endpoint's secrets; several while rolling, any may fit. Blank ones never fit.
        now: seconds since the epoch; unset, the system's clock.
        tolerance_seconds: how far `t` may lie in the past or the future; 0 means not at all.
    Raises:
        BadSignature: not signed, wrongly signed, too old, or stamped in the future.
        InvalidInput: signed, but not a v1 event object.
    Source: Stripe documentation, "Verify webhook signatures manually".
    """
    if not signature_header:
        raise BadSignature("the Stripe-Signature header is missing")
    stamp, signatures = _split(signature_header)
    signed = f"{stamp}.".encode() + body
    fits = False
    for secret in secrets:
        if not secret.strip():
            continue
        expected = hmac.new(secret.encode(), signed, sha256).hexdigest().encode()
        for signature in signatures:
            fits |= hmac.compare_digest(expected, signature)
    if not fits:
        raise BadSignature("no signature fits the body")
    if abs((time.time() if now is None else now) - int(stamp)) > tolerance_seconds:
        raise BadSignature("the signature's timestamp is too far from now")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSignature("the body is not UTF-8") from error
    return _event(text)


def _split(header: str) -> tuple[str, list[bytes]]:
    pairs = [item.strip().partition("=") for item in header.split(",")]
    stamps = [value for name, _, value in pairs if name == "t"]
    signatures = [value.encode("utf-8", "surrogateescape") for name, _, value in pairs if name == SCHEME]
    if len(stamps) != 1 or not (stamps[0].isascii() and stamps[0].isdigit() and len(stamps[0]) <= 15):
        raise BadSignature("the Stripe-Signature header has no timestamp")
    if not signatures:
        raise BadSignature(f"the Stripe-Signature header has no {SCHEME} signature")
    return stamps[0], signatures


def _event(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("body", "is not JSON") from error
    if not isinstance(event, dict) or event.get("object") != "event":
        raise InvalidInput("body", "is not a v1 event object")
    for field in ("id", "type"):
        if not isinstance(event.get(field), str) or not event[field]:
            raise InvalidInput("body", f"is an event without {field}")
    data = event.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("object"), dict):
        raise InvalidInput("body", "is an event without data.object")
    return event
