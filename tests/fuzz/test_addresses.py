"""URLs, hosts and headers of whoever we fetch from, and whole answers of a server that lies.

Called by pytest, atheris.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import stripe
from hypothesis import strategies as st

from smi_workflow.errors import ServiceError, ServiceRefused
from smi_workflow.integrations.fetching import (
    FetchPolicy,
    _next_hop,
    check_url,
    fetch,
    is_public,
    retry_after_seconds,
)
from smi_workflow.integrations.stripe_api import StripeApi
from smi_workflow.integrations.upsampler_api import UpsamplerClient
from tests.fuzz.fuzzed import fuzzed
from tests.fuzz.made_up import header_values, texts

STRICT = FetchPolicy(allow_private=False, max_bytes=10_000, total_timeout_seconds=5)
OPEN = FetchPolicy(allow_private=True, max_bytes=10_000, total_timeout_seconds=5)
NOW = datetime(2026, 3, 1, tzinfo=UTC)

hosts = (
    st.sampled_from(
        [
            "example.com",
            "127.0.0.1",
            "[::1]",
            "localhost",
            "0x7f.1",
            "2130706433",
            "127.1",
            "[::ffff:10.0.0.1]",
            "169.254.169.254",
            "[64:ff9b::7f00:1]",
            "\uff11\uff12\uff17.0.0.1",
            "ⓔxample.com",
            "a..b",
            "-",
            "xn--",
            "xn--a",
            "1.2.3.4",
            "[fe80::1%25eth0]",
            "[::",
            "example.com.",
            "EXAMPLE.COM",
            "foo.internal",
            "[2002:7f00:1::]",
            "%31%32%37.0.0.1",
        ]
    )
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(lambda address: f"[{address}]")
    | st.text(max_size=20)
)
urls = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(["https://", "http://", "HTTPS://", "//", "https:/", "ftp://", "https:\\\\", " https://", ""]),
    st.sampled_from(["", "", "", "user@", "user:pw@", "@", "a@b@"]),
    hosts,
    st.sampled_from(["", "", ":443", ":0", ":99999", ":-1", ":x", ":", ":80:80"]),
    st.sampled_from(["", "/", "/p.png", "/..", "/%2e%2e/", "/\u202e"]) | st.text(max_size=10),
    st.sampled_from(["", "?a=b", "#x@y", "?@z", "#"]),
) | st.text(max_size=80)


@fuzzed(500, url=urls)
def test_no_url_leads_into_our_own_network(url: str) -> None:
    try:
        canonical = check_url(url, STRICT)
    except ServiceRefused as refusal:
        assert refusal.code == "url_not_allowed"
        return
    parts = urlsplit(canonical)
    assert parts.scheme == "https"
    assert parts.username is None and parts.password is None
    host = (parts.hostname or "").rstrip(".")
    assert host and host != "localhost"
    with suppress(ValueError):
        assert is_public(ip_address(host))
    # What was checked stays checked: sent once more, it leads to the same host.
    assert urlsplit(check_url(canonical, STRICT)).hostname == parts.hostname


@fuzzed(300, address=st.ip_addresses())
def test_public_is_never_what_the_library_calls_private(address: Any) -> None:
    if is_public(address):
        assert address.is_global
        assert not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_private)


@fuzzed(200, url=urls, location=st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=60))
def test_a_redirect_leads_nowhere_unchecked(url: str, location: str) -> None:
    try:
        start = check_url(url, STRICT)
    except ServiceRefused:
        start = "https://example.com/p.png"
    with suppress(ServiceRefused):
        check_url(_next_hop(start, location), STRICT)


@fuzzed(200, value=header_values | texts | st.integers().map(str) | st.datetimes().map(str))
def test_a_time_to_wait_is_read_or_absent(value: str) -> None:
    found = retry_after_seconds({"Retry-After": value}, NOW)
    assert found is None or found >= 0


# -- servers that lie ---------------------------------------------------------------------------------------------

heads = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200\r\n",
        b"HTTP/1.1 404 No\r\n",
        b"HTTP/1.1 503 Busy\r\n",
        b"HTTP/1.1 999 \r\n",
        b"HTTP/1.1 302 Go\r\nLocation: /x\r\n",
        b"HTTP/0.9 200\r\n",
        b"HTTP/1.1 abc\r\n",
        b"",
        b"\0\0\0",
        b"HTTP/1.1 100\r\n",
        b"HTTP/1.1 301 Go\r\nLocation: http://[\r\n",
        b"HTTP/1.1 301 Go\r\nLocation: \xff\xfe\r\n",
    ]
)
lines = st.lists(
    st.sampled_from(
        [
            b"Content-Length: 5\r\n",
            b"Content-Length: -1\r\n",
            b"Content-Length: x\r\n",
            b"Content-Length: 99999999\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Content-Type: image/png\r\n",
            b"Content-Type: \xff\r\n",
            b"Retry-After: soon\r\n",
            b"Connection: close\r\n",
            b"X: " + b"a" * 70_000 + b"\r\n",
            b"no colon\r\n",
            b" folded\r\n",
            b":\r\n",
            b"Set-Cookie: a=b\r\n",
            b"Retry-After: 9999999999999999999\r\n",
        ]
    )
    | st.binary(max_size=30),
    max_size=5,
)
bodies = st.sampled_from(
    [
        b"hello",
        b"",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"zz\r\nhello",
        b"5\r\nhel",
        b"{}",
        b'{"id": "up-1", "status": "SUCCESS"}',
        b'{"object": "list", "data": [1], "has_more": false}',
        b'{"object": "list", "data": {}, "has_more": 1}',
        b'{"id": "cs_1", "object": "checkout.session", "metadata": [], "customer_details": "x"}',
        b"[" * 3000,
        b'{"error": {"message": 5, "code": []}}',
        b'{"error": "no"}',
        b'{"data": [{"id": 1}], "has_more": true}',
    ]
) | st.binary(max_size=60)
answers = st.builds(lambda head, more, body: head + b"".join(more) + b"\r\n" + body, heads, lines, bodies)


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that says this to whoever connects, and hangs up."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        listener.settimeout(5)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.settimeout(5)
                        connection.recv(65_536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@fuzzed(60, answer=answers)
def test_a_server_of_images_that_lies_is_an_error_of_its_own(answer: bytes) -> None:
    into = io.BytesIO()
    with answering(answer) as url, suppress(ServiceError):
        fetch(f"{url}/p.png", into, OPEN)
    assert into.tell() <= OPEN.max_bytes


@fuzzed(60, answer=answers)
def test_an_upsampler_that_lies_is_an_error_of_its_own(answer: bytes) -> None:
    with answering(answer) as url:
        client = UpsamplerClient("key", url, image_type="universal", extra_inputs={})
        with suppress(ServiceError):
            client.status("up-1")
        with suppress(ServiceError):
            client.submit(image_url="https://x.example/", factor=4, webhook_url="https://x.example/w")


@fuzzed(60, answer=answers)
def test_a_stripe_that_lies_is_an_error_of_its_own(answer: bytes) -> None:
    with answering(answer) as url:
        client = StripeApi("sk_test_fuzz", url)
        try:
            for call in (
                lambda: client.retrieve_checkout_session("cs_1"),
                lambda: client.find_checkout_session(job_id="job-1", since=NOW, until=NOW),
                lambda: client.retrieve_payment_intent("pi_1"),
                lambda: client.list_refunds(payment_intent="pi_1"),
                lambda: client.retrieve_charge_intent("ch_1"),
                lambda: client.create_refund(
                    payment_intent="pi_1", amount_cents=5, reason="duplicate", metadata={}, key="k"
                ),
            ):
                with suppress(ServiceError):
                    call()
        finally:
            client.close()
    assert stripe.VERSION
