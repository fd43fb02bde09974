"""Owns the Upsampler API: submit, ask, and read its answers and callbacks. Called by effects and intake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import requests
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import ConfigError, InvalidInput, ServiceError, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.fetching import TRANSIENT_STATUSES, Call, retry_after_seconds

SERVICE = "upsampler"
FACTOR_MAX = 16
ANSWER_BYTES_MAX = 1024 * 1024
ERROR_TEXT_MAX = 500
CALLBACK_NAME_MAX = 150

# There is no public list of codes: these are the texts that an independent client treats as final.
_FINAL_TEXTS = {
    "invalid api key": "invalid_api_key",
    "insufficient credit": "insufficient_credit",
    "unauthorized": "unauthorized",
    "unsupported": "unsupported",
    "not allowed": "not_allowed",
    "too large": "too_large",
    "exceed": "limit_exceeded",
}
_FINAL_STATUSES = {
    400: "bad_request",
    401: "unauthorized",
    402: "payment_required",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    422: "rejected",
}


class UpscaleStatus(StrEnum):
    """How far Upsampler is, in its own words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Upscale:
    """One upscale as Upsampler describes it.

    Attributes:
        image_url: set on success; works for about three hours.
        credit_cost: credits charged, perhaps fractional; None while unknown.
        error: the provider's words.
    """

    id: str
    status: UpscaleStatus
    image_url: str | None
    credit_cost: Decimal | None
    error: str | None


def parse_upscale(payload: object) -> Upscale:
    """Read the body of an answer or of a callback.

    Args:
        payload: parsed JSON, from anyone.
    Raises:
        InvalidInput: with the field at fault.
    """
    if not isinstance(payload, Mapping):
        raise InvalidInput("payload", "must be a JSON object")
    upscale_id = _read_id(payload)
    try:
        status = UpscaleStatus(str(payload.get("status")))
    except ValueError:
        raise InvalidInput("status", f"must be one of {', '.join(UpscaleStatus)}") from None
    image_url = payload.get("imageUrl")
    if image_url is not None and not isinstance(image_url, str):
        raise InvalidInput("imageUrl", "must be a string")
    if status is UpscaleStatus.SUCCESS and not image_url:
        raise InvalidInput("imageUrl", "is missing although the status is SUCCESS")
    return Upscale(upscale_id, status, image_url or None, _read_cost(payload), _error_text(payload.get("error")))


def callback_name(upscale: Upscale) -> str:
    """What a callback is known by; one that does not fit the inbox's column is known by its digest."""
    name = f"{upscale.id}:{upscale.status}"
    if len(name) <= CALLBACK_NAME_MAX:
        return name
    return f"sha256-{hashlib.sha256(upscale.id.encode()).hexdigest()}:{upscale.status}"


def kept_callback(effect_id: str, upscale: Upscale) -> dict[str, str | None]:
    """What is kept of a callback, or of an answer in its stead.

    Args:
        effect_id: the submission that it answers.
    """
    cost = upscale.credit_cost
    return {
        "effect_id": effect_id, "id": upscale.id, "status": upscale.status, "imageUrl": upscale.image_url,
        # Rounded, because 1E-999999 is a number too, and no column holds it.
        "creditCost": None if cost is None else format(cost.quantize(Decimal("0.000001")), "f"),
        "error": upscale.error,
    }  # fmt: skip


def refusal_code(text: str | None) -> str | None:
    """Name what an error text of Upsampler's says for good; None when it may pass.

    Source: contract of Upsampler, errors; needed where a FAILED upscale carries only a text.
    """
    lowered = (text or "").lower()
    return next((code for words, code in _FINAL_TEXTS.items() if words in lowered), None)


def failure_code(text: str | None) -> str:
    """Name why an upscale failed: `source_unreachable` where the fault may be ours, and passing."""
    lowered = (text or "").lower()
    return "source_unreachable" if "fetch" in lowered or "download" in lowered else "upsampler_failed"


class UpsamplerClient:
    """Talks to the Upsampler API; may be shared by threads, as calls share nothing.

    Args:
        base_url: e.g. `https://upsampler.com/api/v1`.
        image_type: Upsampler's inputImageType.
        extra_inputs: merged into each submission's input.
        connect_timeout_seconds, read_timeout_seconds: a whole call takes at most their sum.
    Raises:
        ConfigError: a key or address that cannot be used.
    """

    def __init__(
        self,
        api_key: str,
        base_url: str,
        *,
        image_type: str,
        extra_inputs: Mapping[str, Any],
        connect_timeout_seconds: float = 5.0,
        read_timeout_seconds: float = 20.0,
    ) -> None:
        problems = []
        if not api_key or not api_key.isascii() or any(char <= " " or char == "\x7f" for char in api_key):
            problems.append("the API key must be plain text without spaces")
        if not _is_base_url(base_url):
            problems.append("the API base must be an http(s) URL without user name, query or fragment")
        if problems:
            raise ConfigError("Upsampler's settings need attention:", problems)
        self._api_key = api_key
        self._base_url = base_url.rstrip("/")
        self._image_type = image_type
        self._extra_inputs = dict(extra_inputs)
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds

    def __repr__(self) -> str:
        return f"UpsamplerClient(base_url={self._base_url!r}, api_key='***')"

    def submit(self, *, image_url: str, factor: int, webhook_url: str) -> Upscale:
        """Ask for one upscale; Upsampler knows no keys, so asking twice makes, and costs, two.

        Args:
            image_url: where Upsampler fetches the source.
            factor: 1..16.
            webhook_url: called once when done; it carries a secret of ours, as callbacks are not signed.
        Returns: the upscale, which may have FAILED already. Whatever else is odd about an answer, its id
            is kept, because what it names is being paid for.
        Raises:
            InvalidInput: the factor.
            ServiceUnavailable: transient; with `outcome_unknown` it may have been taken on.
            ServiceRefused: final.
        Source: contract of Upsampler, submit.
        """
        if not 1 <= factor <= FACTOR_MAX:
            raise InvalidInput("factor", f"must be 1 to {FACTOR_MAX}")
        inputs = {
            **self._extra_inputs,
            "imageUrl": image_url,
            "inputImageType": self._image_type,
            "upscaleFactor": factor,
        }
        answer = self._ask("POST", "precise-upscale", {"webhook": webhook_url, "input": inputs})
        try:
            upscale_id = _read_id(answer)
        except InvalidInput as error:
            raise self._unusable(error) from error
        try:
            return self._redacted(parse_upscale(answer))
        except InvalidInput:
            # Also the plain case: the contract promises nothing but the id here.
            return Upscale(upscale_id, UpscaleStatus.IN_QUEUE, None, None, None)

    def status(self, upscale_id: str) -> Upscale:
        """Ask how far an upscale is.

        Raises:
            InvalidInput: no id that Upsampler could have given.
            ServiceUnavailable: transient, or an answer that makes no sense.
            ServiceRefused: final; `not_found` for an id it does not know.
        Source: contract of Upsampler, status.
        """
        answer = self._ask("GET", f"status/{quote(_read_id({'id': upscale_id}), safe='')}")
        try:
            found = parse_upscale(answer)
        except InvalidInput as error:
            raise self._unusable(error) from error
        if found.id != upscale_id:
            raise self._unusable(InvalidInput("id", "is another upscale's"))
        return self._redacted(found)

    def _ask(self, method: str, path: str, body: object = None) -> Mapping[str, Any]:
        headers = {
            "Authorization": f"Bearer {self._api_key}",
            "Accept": "application/json",
            "User-Agent": "smi-workflow",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = requests.Request(
            method,
            f"{self._base_url}/{path}",
            headers=headers,
            data=None if body is None else json.dumps(body).encode(),
        )
        call = Call(
            SERVICE,
            total_seconds=self._connect_timeout_seconds + self._read_timeout_seconds,
            connect_seconds=self._connect_timeout_seconds,
        )
        reach(Point.CALL_READY)
        with call.running(), call.send(request) as response:
            content = bytearray()
            for chunk in call.body(response):
                content += chunk
                if len(content) > ANSWER_BYTES_MAX:
                    content.clear()
                    break
        reach(Point.CALL_ANSWERED)
        answer = _json_object(content)
        if not 200 <= response.status_code < 300:
            raise self._error(response.status_code, response.headers, answer)
        if answer is None:
            raise self._unusable(InvalidInput("body", "is not a JSON object"))
        return answer

    def _error(self, status: int, headers: Mapping[str, str], answer: Mapping[str, Any] | None) -> ServiceError:
        text = _error_text((answer or {}).get("error")) or _error_text((answer or {}).get("message"))
        message = f"{self._redact(text)} (HTTP {status})" if text else f"answered HTTP {status}"
        if status >= 500 or status in TRANSIENT_STATUSES:
            return ServiceUnavailable(
                SERVICE,
                message,
                code="rate_limited" if status == 429 else f"http_{status}",
                status=status,
                retry_after_seconds=retry_after_seconds(headers, datetime.now(UTC)),
                outcome_unknown=status >= 500,
            )
        code = refusal_code(text) or _FINAL_STATUSES.get(status, f"http_{status}")
        return ServiceRefused(SERVICE, message, code=code, status=status)

    def _unusable(self, error: InvalidInput) -> ServiceUnavailable:
        return ServiceUnavailable(
            SERVICE, f"answered something unusable: {error}", code="unusable_answer", outcome_unknown=True
        )

    def _redacted(self, upscale: Upscale) -> Upscale:
        return replace(upscale, error=upscale.error and self._redact(upscale.error))

    def _redact(self, text: str) -> str:
        return text.replace(self._api_key, "***")


def _is_base_url(url: str) -> bool:
    try:
        parts = parse_url(url)
    except LocationParseError:
        return False
    extras = (parts.auth, parts.query, parts.fragment)
    return parts.scheme in ("http", "https") and bool(parts.host) and extras == (None, None, None)


def _json_object(content: bytes | bytearray) -> Mapping[str, Any] | None:
    try:
        answer = json.loads(content, parse_float=Decimal)
    except (ValueError, RecursionError, InvalidOperation):
        return None
    return answer if isinstance(answer, dict) else None


def _read_id(payload: Mapping[str, Any]) -> str:
    value = payload.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise InvalidInput("id", "must be a text of 1 to 200 characters")
    if value in (".", "..") or not value.isprintable() or " " in value:
        raise InvalidInput("id", "has characters that no id has")
    return value


def _read_cost(payload: Mapping[str, Any]) -> Decimal | None:
    value = payload.get("creditCost")
    if value is None:
        return None
    problem = InvalidInput("creditCost", "must be a number of credits, 0 or more")
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise problem
    try:
        cost = Decimal(str(value))
    except InvalidOperation:
        raise problem from None
    if not cost.is_finite() or not 0 <= cost < 1_000_000_000:
        raise problem
    return cost


def _error_text(value: object) -> str | None:
    texts = []
    for part in value if isinstance(value, list | tuple) else (value,):
        text = part.get("message") if isinstance(part, Mapping) else part
        if isinstance(text, str) and text.strip():
            texts.append(" ".join(text.split()))
    return "; ".join(texts)[:ERROR_TEXT_MAX] or None
