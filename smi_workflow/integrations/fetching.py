"""Owns outgoing HTTP: bounded, and guarded where strangers chose the URL. Called by effects, upsampler_api."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.deadline import Deadline

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

NETWORK_ERRORS = (requests.RequestException, HTTPError)
TRANSIENT_STATUSES = frozenset({408, 425, 429})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CHUNK_BYTES = 65_536

# What ipaddress calls global, and IANA's registries do not: assignments, 6to4 relays, multicast.
_V4_SPECIAL = tuple(IPv4Network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4"))
_V6_GLOBAL = IPv6Network("2000::/3")
_V6_SPECIAL = (IPv6Network("2001::/23"), IPv6Network("2001:db8::/32"), IPv6Network("3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII)
_ENDS_IN_NUMBER = re.compile(r"(^|\.)([0-9]+|0x[0-9a-f]*)$", re.ASCII)
_SHORT_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
_FINAL_CODES = {401: "forbidden", 403: "forbidden", 404: "not_found", 410: "gone"}


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched, and how much of it.

    Attributes:
        allow_private: private networks and plain http too; for development only.
        hosts: `*` (any), `*.example.com` (below, not itself) or a host as it stands.
        max_bytes: of the body.
        total_timeout_seconds: everything together: names, redirects, a slow body.
    """

    allow_private: bool
    max_bytes: int
    total_timeout_seconds: float
    hosts: tuple[str, ...] = ("*",)
    connect_timeout_seconds: float = 5.0
    max_redirects: int = 3


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch brought."""

    final_url: str
    content_type: str
    size_bytes: int
    sha256: str


def system_resolver(host: str, port: int) -> list[str]:
    """Look a name up the way the system does; every address once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: Address) -> bool:
    """Tell whether an address belongs to the public internet, looking into embedded IPv4 addresses.

    Source: IANA special-purpose address registries; RFC 6052 (NAT64), RFC 3056 (6to4).
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _V4_SPECIAL)
    embedded = address.ipv4_mapped or address.sixtofour
    if embedded is None and address in _NAT64:
        embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
    if embedded is not None:
        return is_public(embedded)
    return address in _V6_GLOBAL and not any(address in network for network in _V6_SPECIAL)


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Read Retry-After, as seconds or as an HTTP date; negative, past and garbled ones count as absent."""
    value = headers.get("Retry-After", "").strip()
    if _SHORT_NUMBER.fullmatch(value):
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    seconds = (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds()
    return seconds if seconds >= 0 else None


class Call:
    """One bounded exchange: one total time over names, connections, headers and body; no state shared.

    No Session of requests: that would follow netrc and proxies from the environment, and read the whole
    body of a redirect. No connection is kept: a stale one, reset on reuse, looks like a lost answer.

    Args:
        guard: says of each address that a name leads to whether it may be dialled; None: all may. The
            addresses dialled are those it saw, so a name that changes its mind in between gains nothing.
        ca_file: certificates to trust instead of the usual ones.
    """

    def __init__(
        self,
        service: str,
        *,
        total_seconds: float,
        connect_seconds: float,
        resolve: Resolver = system_resolver,
        guard: Callable[[Address], bool] | None = None,
        ca_file: str | None = None,
    ) -> None:
        self.service = service
        self.connected = False
        self._total_seconds = total_seconds
        self._connect_seconds = connect_seconds
        self._resolve = resolve
        self._guard = guard
        self._ca_file = ca_file
        self._ends_at = time.monotonic() + total_seconds
        self._looked_up = self._changes = True
        self._deadline = Deadline(total_seconds)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the clock; every network error inside comes out as ServiceUnavailable."""
        try:
            with self._deadline:
                yield
        except NETWORK_ERRORS as error:
            raise self._unavailable() from error

    @contextmanager
    def send(self, request: requests.Request) -> Iterator[requests.Response]:
        """Send one request; the answer's body is read with `body`."""
        self.connected, self._changes = False, request.method != "GET"
        request.headers = {"Accept-Encoding": "identity", "Connection": "close", **request.headers}
        timeout = (min(self._connect_seconds, self._seconds_left()), self._seconds_left())
        with closing(_Adapter(self)) as adapter:
            verify = self._ca_file or True
            with adapter.send(request.prepare(), stream=True, timeout=timeout, verify=verify) as response:
                yield response

    def body(self, response: requests.Response) -> Iterator[bytes]:
        """Yield the body as it arrives; a cut one ends in ServiceUnavailable."""
        while chunk := response.raw.read(CHUNK_BYTES, decode_content=False):
            yield chunk
        # A cut socket reads like the end of a body that did not announce its length.
        if self._deadline.expired:
            raise self._unavailable()

    def dial(self, host: str, port: int) -> socket.socket:
        """Resolve, check every address, connect to one of exactly those."""
        addresses = self._addresses(host.strip("[]"), port)
        if self._guard is not None and not all(self._guard(address) for address in addresses):
            raise ServiceRefused(
                self.service, f"{host} leads to an address that is not public", code="url_not_allowed"
            )
        failure: OSError = OSError("the name has no address")
        for address in addresses:
            seconds = min(self._connect_seconds, self._seconds_left())
            try:
                sock = socket.create_connection((str(address), port), timeout=seconds)
            except OSError as error:
                failure = error
                continue
            # For the TLS handshake, the one stretch that the deadline's shutdown cannot reach.
            sock.settimeout(min(self._connect_seconds, self._seconds_left()))
            return sock
        raise failure

    def guard_socket(self, sock: socket.socket) -> None:
        """Put a connected socket under the deadline."""
        self._deadline.guard(sock)
        self.connected = True

    def _addresses(self, host: str, port: int) -> list[Address]:
        with suppress(ValueError):
            return [ip_address(host)]
        answer: SimpleQueue[Sequence[str] | Exception] = SimpleQueue()

        def look_up() -> None:
            try:
                answer.put(self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                answer.put(error)

        # In a thread of its own, because getaddrinfo knows no time limit.
        self._looked_up = False
        threading.Thread(target=look_up, name="resolver", daemon=True).start()
        try:
            found = answer.get(timeout=self._seconds_left())
        except Empty:
            raise TimeoutError("the name was not resolved in time") from None
        if isinstance(found, Exception):
            raise OSError(f"the name cannot be resolved: {found}")
        self._looked_up = True
        return [ip_address(text) for text in found]

    def _seconds_left(self) -> float:
        return max(self._ends_at - time.monotonic(), 0.001)  # 0 would make a socket non-blocking

    def _unavailable(self) -> ServiceUnavailable:
        if self._deadline.expired or time.monotonic() >= self._ends_at:
            code, message = "timed_out", f"no complete answer within {self._total_seconds:g} s"
        elif self.connected:
            code, message = "connection_lost", "the connection broke before the answer was complete"
        elif self._looked_up:
            code, message = "connect_failed", "no connection could be made"
        else:
            code, message = "dns_failed", "the host's name could not be resolved"
        unknown = self.connected and self._changes
        return ServiceUnavailable(self.service, message, code=code, outcome_unknown=unknown)


class _Connection(HTTPConnection):
    def __init__(self, *args: Any, call: Call, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._call = call

    def _new_conn(self) -> socket.socket:
        return self._call.dial(self._dns_host, self.port)

    def connect(self) -> None:
        super().connect()
        self._call.guard_socket(self.sock)


class _TlsConnection(_Connection, HTTPSConnection):
    """TLS over the same dialling; the certificate is checked against the name in the URL."""


class _Adapter(HTTPAdapter):
    def __init__(self, call: Call) -> None:
        self._call = call
        super().__init__(pool_connections=1, pool_maxsize=1)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = partial(_TlsConnection if pool.scheme == "https" else _Connection, call=self._call)
        return pool  # type: ignore[no-any-return]


def check_url(url: str, policy: FetchPolicy, *, service: str = "source") -> str:
    """Refuse a URL that the policy does not allow, without any I/O: names are not resolved here.

    Returns: the URL as it will be requested.
    Raises:
        ServiceRefused: code `url_not_allowed`.
    """

    def refuse(problem: str) -> ServiceRefused:
        return ServiceRefused(service, f"this URL is not allowed: {problem}", code="url_not_allowed")

    if len(url) > 8_192 or any(char <= " " or char in "\\\x7f" for char in url):
        raise refuse("it is too long, or has spaces, backslashes or control characters")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in (("https", "http") if policy.allow_private else ("https",)):
        raise refuse("it must start with https://")
    if "@" in re.split("[/?#]", rest)[0]:
        raise refuse("it carries a user name or password")
    try:
        # The same two parsers that will send the request: no second opinion on where the host ends.
        canonical = requests.Request("GET", url).prepare().url or ""
        host = (parse_url(canonical).host or "").lower().removesuffix(".")
    except (requests.RequestException, HTTPError, ValueError) as error:
        raise refuse("it cannot be read") from error
    if problem := _host_problem(host, policy):
        raise refuse(problem)
    return canonical


def _host_problem(host: str, policy: FetchPolicy) -> str | None:
    try:
        address: Address | None = ip_address(host.strip("[]"))
    except ValueError:
        address = None
    if "%" in host:
        return "its address has a zone"
    if address is None and (_ENDS_IN_NUMBER.search(host) or not _HOST_NAME.fullmatch(host)):
        return "its host is neither a name nor a plainly written address"
    if not policy.allow_private:
        if address is not None and not is_public(address):
            return "its address is not public"
        if address is None and ("." not in host or host.endswith((".localhost", ".local", ".internal"))):
            return "its host is not a public name"
    if not any(fnmatchcase(host, pattern.lower()) for pattern in policy.hosts):
        return "its host is not on the list"
    return None


def fetch(
    url: str,
    into: BinaryIO,
    policy: FetchPolicy,
    *,
    service: str = "source",
    resolve: Resolver = system_resolver,
    ca_file: str | None = None,
) -> Fetched:
    """Download a URL that a stranger or a provider gave us.

    Every hop is checked anew, and only addresses that were checked are dialled.

    Args:
        into: receives the body; after an error, whatever had arrived by then.
        resolve, ca_file: as for Call.
    Raises:
        ServiceUnavailable: worth trying again: `dns_failed`, `connect_failed`, `timed_out`,
            `connection_lost` (or a body cut short), `rate_limited`, `http_5xx`.
        ServiceRefused: final: `url_not_allowed`, `too_large`, `not_found`, `gone`, `forbidden`,
            `too_many_redirects`, `unsupported_encoding`, `http_…`.
    """
    call = Call(
        service,
        total_seconds=policy.total_timeout_seconds,
        connect_seconds=policy.connect_timeout_seconds,
        resolve=resolve,
        guard=None if policy.allow_private else is_public,
        ca_file=ca_file,
    )
    with call.running():
        for _ in range(policy.max_redirects + 1):
            url = check_url(url, policy, service=service)
            headers = {"Accept": "image/*, */*;q=0.5", "User-Agent": "smi-workflow"}
            with call.send(requests.Request("GET", url, headers=headers)) as response:
                if response.status_code not in REDIRECTS or "Location" not in response.headers:
                    _check_answer(response, service)
                    size, digest = _copy(call, response, into, policy.max_bytes)
                    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()[:100]
                    return Fetched(url, kind, size, digest)
                url = _next_hop(url, response.headers["Location"])
    raise ServiceRefused(service, "redirected too often", code="too_many_redirects")


def _next_hop(url: str, location: str) -> str:
    try:
        # http.client reads headers as Latin-1; browsers take them for UTF-8.
        return urljoin(url, location.encode("latin-1").decode("utf-8", "replace"))
    except ValueError:
        return location


def _check_answer(response: requests.Response, service: str) -> None:
    status = response.status_code
    if status >= 500 or status in TRANSIENT_STATUSES:
        raise ServiceUnavailable(
            service,
            f"answered HTTP {status}",
            code="rate_limited" if status == 429 else "http_5xx" if status >= 500 else f"http_{status}",
            status=status,
            retry_after_seconds=retry_after_seconds(response.headers, datetime.now(UTC)),
        )
    if status != 200:
        code = _FINAL_CODES.get(status, f"http_{status}")
        raise ServiceRefused(service, f"answered HTTP {status}", code=code, status=status)
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise ServiceRefused(service, "sent a compressed body, unasked", code="unsupported_encoding")


def _copy(call: Call, response: requests.Response, into: BinaryIO, max_bytes: int) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    too_large = ServiceRefused(call.service, f"the file is larger than {max_bytes} bytes", code="too_large")
    announced = response.headers.get("Content-Length", "")
    if _SHORT_NUMBER.fullmatch(announced) and int(announced) > max_bytes:
        raise too_large
    for chunk in call.body(response):
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        digest.update(chunk)
        into.write(chunk)
    return size, digest.hexdigest()
