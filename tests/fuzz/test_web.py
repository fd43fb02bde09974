"""The site, whatever is sent to it: never a 500, never a trace, always an answer in its own form.

Called by pytest, atheris.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder, run_wsgi_app
from werkzeug.wrappers import Response

from smi_workflow.jobs.tokens import sign, sign_until
from smi_workflow.web.problems import MEDIA_TYPE
from tests.fuzz.fuzzed import fuzzed
from tests.fuzz.made_up import header_values, ids, json_values, objects, texts
from tests.fuzz.shop import no_faults, shop
from tests.fuzz.test_stripe import events
from tests.fuzz.test_upsampler import upscales
from tests.support.apps import SECRET_KEY
from tests.support.sandbox import WEBHOOK_SECRET

JSON = "application/json"
KEY = SECRET_KEY.encode()
NAMES = ["Accept", "Range", "If-Range", "If-None-Match", "If-Modified-Since", "Idempotency-Key", "X-Request-Id",
         "Content-Type", "Stripe-Signature", "Content-Encoding", "X-Forwarded-For", "Host", "Cookie"]  # fmt: skip
plain = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
headers = st.dictionaries(st.sampled_from(NAMES), plain, max_size=4)
orders = objects({
    "image_url": st.sampled_from(["https://x.example/p.png", "http://127.0.0.1/", "x"]) | texts,
    "resolution": st.sampled_from(["4x", "8x", "16x", ""]), "image_width": st.integers(-5, 70_000) | st.integers(),
    "image_height": st.integers(-5, 70_000), "post_id": st.integers(), "attachment_id": st.integers(),
    "email": texts | st.just("jane@example.com"),
})  # fmt: skip
bodies = (
    orders.map(lambda value: json.dumps(value).encode("utf-8", "replace"))
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=100)
    | st.integers(0, 3000).map(lambda depth: b"[" * depth)
)
segments = st.sampled_from(
    [
        "api",
        "v1",
        "jobs",
        "quotes",
        "admin",
        "webhooks",
        "stripe",
        "upsampler",
        "download",
        "source",
        "healthz",
        "readyz",
        "thanks",
        "cancelled",
        "..",
        "",
        "%00",
        "job-1",
        "%2e%2e",
        "é",
    ]
) | st.text(max_size=20)
ranges = st.builds(
    "{}{}{}{}".format, st.sampled_from(["bytes=", "bytes =", "items=", "", "BYTES="]),
    st.integers(-3, 10**20).map(str) | st.just(""), st.sampled_from(["-", "", "--", ","]),
    st.integers(-3, 10**20).map(str) | st.just(""),
) | plain  # fmt: skip


def ask(
    method: str, path: str, *, data: bytes = b"", query: bytes = b"", headers: Mapping[str, str] | None = None,
    content_type: str | None = None,
) -> Response:  # fmt: skip
    """Send one request as a server hands it over, and check what holds of every answer."""
    made = shop()
    made.reset()
    environ = EnvironBuilder(method=method, data=data, content_type=content_type).get_environ()
    # The bytes of a path and of headers arrive as Latin-1, whatever they were meant to be.
    environ["PATH_INFO"] = path.encode("utf-8", "replace").decode("latin-1")
    environ["QUERY_STRING"] = query.decode("latin-1")
    for name, value in (headers or {}).items():
        key = name.upper().replace("-", "_")
        environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
    with no_faults():
        chunks, status, sent = run_wsgi_app(made.site, environ, buffered=True)
    answer = Response(b"".join(chunks), status, sent)
    content = answer.get_data()
    assert answer.status_code < 500 or answer.status_code == 503, answer.status_code
    assert b"Traceback" not in content
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.mimetype in (MEDIA_TYPE, "text/html"), answer.mimetype
        if answer.mimetype == MEDIA_TYPE:
            assert json.loads(content)["status"] == answer.status_code
    return answer


@fuzzed(
    300,
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"]),
    path=st.sampled_from(["/cancelled", "/thanks", "/api/v1/jobs/job-1", "/readyz"])
    | st.lists(segments, max_size=6).map(lambda parts: "/" + "/".join(parts)),
    query=st.binary(max_size=30) | st.sampled_from([b"job=job-1", b"job=%00", b"job=%ff&job=", b"&&="]),
    given_headers=headers,
    body=bodies,
)
def test_any_request_is_answered(method: str, path: str, query: bytes, given_headers: Any, body: bytes) -> None:
    ask(method, path, query=query, headers=given_headers, data=body)


@fuzzed(
    200,
    path=st.sampled_from(["/api/v1/jobs", "/api/v1/quotes"]),
    body=bodies,
    key=st.none() | plain,
    content_type=st.sampled_from([JSON, JSON, JSON, "text/plain", "application/json; charset=latin-1", ""]),
)
def test_an_order_is_taken_or_refused(path: str, body: bytes, key: str | None, content_type: str) -> None:
    given = {} if key is None else {"Idempotency-Key": key}
    answer = ask("POST", path, data=body, content_type=content_type, headers=given)
    assert answer.status_code in (200, 201, 400, 409, 413, 415, 422, 503)


@fuzzed(200, event=events | json_values, header=st.none() | plain)
def test_an_event_is_taken_in_and_never_a_fault(event: Any, header: str | None) -> None:
    body = json.dumps(event).encode()
    stamp = int(time.time())
    right = hmac.new(WEBHOOK_SECRET.encode(), f"{stamp}.".encode() + body, sha256).hexdigest()
    given = {"Stripe-Signature": f"t={stamp},v1={right}" if header is None else header}
    answer = ask("POST", "/webhooks/stripe", data=body, content_type=JSON, headers=given)
    assert answer.status_code in (200, 400)
    follow_up()


@fuzzed(
    200,
    told=upscales | json_values,
    effect=st.sampled_from(["e1", "nobody"]) | texts.filter(lambda t: "/" not in t and t),
)
def test_a_callback_is_taken_in_and_never_a_fault(told: Any, effect: str) -> None:
    effect = effect.encode("utf-8", "replace").decode().replace("\0", "") or "e1"
    path = f"/webhooks/upsampler/{effect}/{sign(KEY, 'upsampler', effect)}"
    answer = ask("POST", path, data=json.dumps(told, default=str).encode(), content_type=JSON)
    assert answer.status_code in (200, 308, 400, 404)
    follow_up()


def follow_up() -> None:
    """Let a worker apply what was taken in: it is applied, parked, ignored or told to a person; not a fault."""
    made = shop()
    for row in made.app.tables.events.select():
        with no_faults():
            assert made.app.inbox.handle(row.id) is not None


@fuzzed(
    300,
    token=st.just("the right one") | texts | st.text("abcXYZ019", min_size=64, max_size=64),
    method=st.sampled_from(["GET", "HEAD"]),
    given_headers=st.fixed_dictionaries({}, optional={"Range": ranges, "If-Range": plain, "If-None-Match": plain}),
)
def test_a_download_is_whole_in_part_or_refused(token: str, method: str, given_headers: Any) -> None:
    right = token == "the right one"
    path = f"/download/{shop().token if right else token}"
    answer = ask(method, path, headers=given_headers)
    assert answer.status_code in ((200, 206, 304, 412, 416) if right else (200, 308, 404, 405, 410))
    if answer.status_code == 206:
        start, _, end = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")[0].partition("-")
        assert int(end) - int(start) + 1 == answer.content_length


@fuzzed(200, job_id=ids("job-with-a-file"), signature=texts | st.integers().map(str) | st.just("the right one"))
def test_a_source_is_handed_out_or_refused(job_id: str, signature: str) -> None:
    job_id = job_id.encode("utf-8", "replace").decode()
    signature = signature.encode("utf-8", "replace").decode()
    if signature == "the right one":
        at = shop().app.clock.now()
        signature = sign_until(KEY, "source", at.replace(year=at.year + 1), job_id)
    path = f"/source/{job_id}/{signature}"
    assert ask("GET", path).status_code in (200, 304, 308, 404, 405, 410)


@fuzzed(100, value=header_values)
def test_an_id_of_a_request_is_ours_or_plain(value: str) -> None:
    value = value.replace("\r", "").replace("\n", "")
    answer = ask("GET", "/healthz", headers={"X-Request-Id": value})
    given = answer.headers["X-Request-Id"]
    assert given.isascii() and 0 < len(given) <= 64
