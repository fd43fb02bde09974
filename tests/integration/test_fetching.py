"""The guarded download against real servers on loopback that misbehave in every way we know."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.fetching import FetchPolicy, fetch

POLICY = FetchPolicy(allow_private=True, max_bytes=100_000, total_timeout_seconds=10)
PUBLIC_ADDRESS = "93.184.215.14"
BODY = bytes(range(256)) * 200

Behaviour = Callable[["Handler"], object]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items())))
        self.server.behaviours[self.path.partition("?")[0]](self)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, start: bytes, piece: bytes, end: bytes) -> None:
        """Send twenty pieces slower than anyone should wait for."""
        self.wfile.write(start)
        for _ in range(20):
            self.server.stopping.wait(self.server.pause_seconds)
            self.wfile.write(piece)
        self.wfile.write(end)
        self.server.dripped.set()

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            self.rfile.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours: dict[str, Behaviour] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopping = threading.Event()
        self.dripped = threading.Event()
        self.pause_seconds = 1.0

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.server_port}{path}"

    def on(self, path: str, behaviour: Behaviour) -> str:
        self.behaviours[path] = behaviour
        return self.url(path)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what these tests are about."""


def serve(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serve(Server())


def unavailable(url: str, policy: FetchPolicy = POLICY, **options: Any) -> ServiceUnavailable:
    with pytest.raises(ServiceUnavailable) as caught:
        fetch(url, io.BytesIO(), policy, **options)
    assert not caught.value.outcome_unknown
    return caught.value


def refused(url: str, policy: FetchPolicy = POLICY, **options: Any) -> ServiceRefused:
    with pytest.raises(ServiceRefused) as caught:
        fetch(url, io.BytesIO(), policy, **options)
    return caught.value


def test_a_file_arrives_whole(server: Server) -> None:
    url = server.on("/a", lambda to: to.answer(200, BODY, Content_Type="Image/PNG; charset=x"))
    into = io.BytesIO()
    fetched = fetch(url, into, POLICY)
    assert into.getvalue() == BODY
    assert (fetched.final_url, fetched.content_type, fetched.size_bytes) == (url, "image/png", len(BODY))
    assert fetched.sha256 == hashlib.sha256(BODY).hexdigest()
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_chunked_and_unannounced_bodies_arrive(server: Server) -> None:
    def chunked(to: Handler) -> None:
        to.wfile.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
        )

    def unannounced(to: Handler) -> None:
        to.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nabcde")

    for behaviour in (chunked, unannounced):
        into = io.BytesIO()
        fetch(server.on("/a", behaviour), into, POLICY)
        assert into.getvalue() == b"abcde"


def test_the_environment_names_no_proxy_and_no_password(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    fetch(server.on("/a", lambda to: to.answer(200, BODY)), io.BytesIO(), POLICY)
    assert "Authorization" not in server.requests[0][1]


def test_redirects_are_followed_and_relative_ones_understood(server: Server) -> None:
    server.on("/b/c", lambda to: to.answer(200, BODY))
    url = server.on("/a", lambda to: to.answer(302, b"see there", Location="b/c?d=\xc3\xa9"))
    fetched = fetch(url, io.BytesIO(), POLICY)
    assert fetched.final_url == server.url("/b/c?d=%C3%A9")
    assert fetched.size_bytes == len(BODY)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_loop_ends(server: Server, status: int) -> None:
    url = server.on("/a", lambda to: to.answer(status, Location="/a"))
    assert refused(url).code == "too_many_redirects"
    assert len(server.requests) == POLICY.max_redirects + 1


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://user:pw@127.0.0.1/", "http://[", "http://0x7f.1/"],
)
def test_a_redirect_is_checked_like_a_first_url(server: Server, target: str) -> None:
    url = server.on("/a", lambda to: to.answer(302, Location=target))
    assert refused(url).code == "url_not_allowed"
    assert len(server.requests) == 1


def test_a_redirect_off_the_list_of_hosts_is_refused(server: Server) -> None:
    url = server.on("/a", lambda to: to.answer(302, Location=server.url("/b", host="localhost")))
    server.on("/b", lambda to: to.answer(200, BODY))
    assert refused(url, replace(POLICY, hosts=("127.0.0.1",))).code == "url_not_allowed"
    assert fetch(url, io.BytesIO(), POLICY).size_bytes == len(BODY)


def test_the_body_of_a_redirect_is_not_read(server: Server) -> None:
    server.on("/b", lambda to: to.answer(200, BODY))

    def endless(to: Handler) -> None:
        to.drip(b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 999999\r\n\r\n", b"x", b"")

    policy = replace(POLICY, total_timeout_seconds=1)
    assert fetch(server.on("/a", endless), io.BytesIO(), policy).size_bytes == len(BODY)


DRIPS = {
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", b"x", b""),
    "unannounced body": (b"HTTP/1.0 200 OK\r\n\r\n", b"x", b""),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"0\r\n\r\n"),
    "headers": (b"HTTP/1.1 200 OK\r\nX: ", b"x", b"\r\nContent-Length: 2\r\n\r\nok"),
    "continues": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    "silence": (b"", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
}


@pytest.mark.parametrize("where", DRIPS)
def test_a_slow_drip_meets_the_total_time(server: Server, where: str) -> None:
    url = server.on("/a", lambda to: to.drip(*DRIPS[where]))
    assert unavailable(url, replace(POLICY, total_timeout_seconds=0.3)).code == "timed_out"
    assert not server.dripped.is_set()
    server.pause_seconds = 0.001
    fetch(url, io.BytesIO(), POLICY)
    assert server.dripped.wait(20)


def test_slow_redirects_share_one_total_time(server: Server) -> None:
    server.pause_seconds = 0.05
    server.on("/a", lambda to: to.drip(b"", b"", b"HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n"))
    server.on("/b", lambda to: to.drip(b"", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    assert unavailable(server.url("/a"), replace(POLICY, total_timeout_seconds=1.5)).code == "timed_out"


def test_a_name_that_is_not_answered_meets_the_total_time() -> None:
    asked, answered = threading.Event(), threading.Event()

    def slow(host: str, port: int) -> list[str]:
        asked.wait(20)
        answered.set()
        return ["127.0.0.1"]

    error = unavailable("http://slow.test/", replace(POLICY, total_timeout_seconds=0.3), resolve=slow)
    assert error.code == "timed_out"
    assert not answered.is_set()
    asked.set()


def test_a_file_announced_too_large_is_refused_unread(server: Server) -> None:
    def behaviour(to: Handler) -> None:
        to.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n", b"x", b"")

    assert refused(server.on("/a", behaviour), replace(POLICY, total_timeout_seconds=1)).code == "too_large"


@pytest.mark.parametrize(
    "header", [b"Transfer-Encoding: chunked\r\n", b"", b"Content-Length: 99999999999999999\r\n"]
)
def test_more_than_the_maximum_is_cut_off_whatever_was_announced(server: Server, header: bytes) -> None:
    def behaviour(to: Handler) -> None:
        to.wfile.write(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n")
        piece = b"x" * 50_000
        for _ in range(1000):
            to.wfile.write(b"c350\r\n" + piece + b"\r\n" if b"chunked" in header else piece)

    into = io.BytesIO()
    with pytest.raises(ServiceRefused) as caught:
        fetch(server.on("/a", behaviour), into, POLICY)
    assert caught.value.code == "too_large"
    assert len(into.getvalue()) <= POLICY.max_bytes


def test_the_maximum_itself_is_allowed(server: Server) -> None:
    url = server.on("/a", lambda to: to.answer(200, b"x" * 100))
    assert fetch(url, io.BytesIO(), replace(POLICY, max_bytes=100)).size_bytes == 100
    assert refused(url, replace(POLICY, max_bytes=99)).code == "too_large"
    url = server.on("/a", lambda to: to.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100))
    assert fetch(url, io.BytesIO(), replace(POLICY, max_bytes=100)).size_bytes == 100
    assert refused(url, replace(POLICY, max_bytes=99)).code == "too_large"


def test_a_compressed_body_is_refused_not_unpacked(server: Server) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    url = server.on("/a", lambda to: to.answer(200, bomb, Content_Encoding="gzip"))
    assert refused(url).code == "unsupported_encoding"


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 20",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
def test_a_cut_or_garbled_answer_is_transient(server: Server, sent: bytes) -> None:
    def behaviour(to: Handler) -> None:
        to.wfile.write(sent)

    assert unavailable(server.on("/a", behaviour)).code == "connection_lost"


def test_a_reset_is_transient(server: Server) -> None:
    def halfway(to: Handler) -> None:
        to.wfile.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        to.reset()

    assert unavailable(server.on("/a", Handler.reset)).code == "connection_lost"
    assert unavailable(server.on("/b", halfway)).code == "connection_lost"


def test_nobody_listening_is_transient() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert unavailable(f"http://127.0.0.1:{bound.getsockname()[1]}/").code == "connect_failed"


def test_an_unknown_name_is_transient() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert unavailable("http://gone.test/", resolve=unknown).code == "dns_failed"


@pytest.mark.parametrize(
    ("status", "code"), [(429, "rate_limited"), (500, "http_5xx"), (503, "http_5xx"), (408, "http_408")]
)
def test_transient_answers_carry_when_to_come_back(server: Server, status: int, code: str) -> None:
    error = unavailable(server.on("/a", lambda to: to.answer(status, b"no", Retry_After="17")))
    assert (error.code, error.status, error.retry_after_seconds) == (code, status, 17.0)


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "not_found"), (410, "gone"), (403, "forbidden"), (401, "forbidden"), (400, "http_400"),
     (304, "http_304"), (302, "http_302"), (204, "http_204"), (206, "http_206")],
)  # fmt: skip
def test_final_answers_say_why(server: Server, status: int, code: str) -> None:
    error = refused(server.on("/a", lambda to: to.answer(status)))
    assert (error.code, error.status) == (code, status)


def test_trouble_on_our_side_is_not_blamed_on_the_network(server: Server) -> None:
    class FullDisk(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fetch(server.on("/a", lambda to: to.answer(200, BODY)), FullDisk(), POLICY)


# From here on with TLS and public addresses: names are resolved by the test, and whatever is dialled
# is recorded and led to the server on loopback.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for images.test, and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("CI") == "true":
            pytest.fail("openssl is needed to make a certificate")
        pytest.skip("openssl is needed to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, pem = folder / "key.pem", folder / "images.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=images.test"
    extensions = ["subjectAltName=DNS:images.test", "keyUsage=critical,digitalSignature,keyCertSign"]
    subprocess.run(
        [openssl, *command.split(), *(f"-addext={text}" for text in extensions), "-keyout", key, "-out", pem],
        check=True,
        capture_output=True,
    )
    pem.write_text(pem.read_text() + key.read_text())
    return pem


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Server]:
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    yield from serve(server)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    really_connect = socket.create_connection

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        found.append(address[0])
        return really_connect(("127.0.0.1", address[1]), timeout)

    monkeypatch.setattr("smi_workflow.integrations.fetching.socket.create_connection", connect)
    return found


GUARDED = replace(POLICY, allow_private=False)


def to_public(host: str, port: int) -> list[str]:
    return [PUBLIC_ADDRESS]


def test_a_name_is_resolved_once_and_only_the_checked_address_is_dialled(
    tls_server: Server, certificate: Path, dialled: list[str]
) -> None:
    answers = [[PUBLIC_ADDRESS], ["127.0.0.1"], ["10.0.0.1"]]
    asked: list[tuple[str, int]] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers[len(asked) - 1]

    tls_server.on("/a", lambda to: to.answer(200, BODY))
    url = tls_server.url("/a", "images.test", "https")
    into = io.BytesIO()
    fetch(url, into, GUARDED, resolve=rebinding, ca_file=str(certificate))
    assert into.getvalue() == BODY
    assert asked == [("images.test", tls_server.server_port)]
    assert dialled == [PUBLIC_ADDRESS]
    assert tls_server.requests[0][1]["Host"] == f"images.test:{tls_server.server_port}"
    # The second look-up is checked anew, so the name's change of mind is noticed.
    refused(url, GUARDED, resolve=rebinding)
    assert dialled == [PUBLIC_ADDRESS]


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.5"], [PUBLIC_ADDRESS, "127.0.0.1"], ["2606:4700::1111", "::1"], ["::ffff:169.254.169.254"],
     ["fe80::1%eth0"], ["64:ff9b::10.0.0.1"], ["0.0.0.0"]],
)  # fmt: skip
def test_one_address_that_is_not_public_is_enough(addresses: list[str], dialled: list[str]) -> None:
    error = refused("https://images.test/a", GUARDED, resolve=lambda host, port: addresses)
    assert error.code == "url_not_allowed"
    assert not any(address in str(error) for address in addresses)
    assert dialled == []


@pytest.mark.parametrize(
    "target",
    ["https://127.0.0.1/", "https://169.254.169.254/latest/meta-data", "https://[::1]/", "https://2130706433/",
     "https://inside.test/", "http://images.test/", "https://localhost/"],
)  # fmt: skip
def test_a_redirect_to_a_private_address_is_refused_undialled(
    tls_server: Server, certificate: Path, dialled: list[str], target: str
) -> None:
    names = {"images.test": [PUBLIC_ADDRESS], "inside.test": ["10.0.0.5"]}
    tls_server.on("/a", lambda to: to.answer(302, Location=target))
    url = tls_server.url("/a", "images.test", "https")
    error = refused(url, GUARDED, resolve=lambda host, port: names[host], ca_file=str(certificate))
    assert error.code == "url_not_allowed"
    assert dialled == [PUBLIC_ADDRESS]


def test_the_certificate_must_be_trusted_and_name_the_host(
    tls_server: Server, certificate: Path, dialled: list[str]
) -> None:
    tls_server.on("/a", lambda to: to.answer(200, BODY))
    for host, ca_file in (("other.test", str(certificate)), ("images.test", None)):
        url = tls_server.url("/a", host, "https")
        assert unavailable(url, GUARDED, resolve=to_public, ca_file=ca_file).code == "connect_failed"
    assert tls_server.requests == []


def test_the_next_address_is_tried_when_one_is_dead(server: Server) -> None:
    server.on("/a", lambda to: to.answer(200, BODY))
    into = io.BytesIO()
    # Nothing listens on the first: the server is bound to 127.0.0.1 alone.
    fetch(server.url("/a", "images.test"), into, POLICY, resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"])
    assert into.getvalue() == BODY


def test_a_tls_handshake_that_never_ends_meets_the_total_time(dialled: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://images.test:{mute.getsockname()[1]}/"
        policy = replace(GUARDED, total_timeout_seconds=0.3)
        assert unavailable(url, policy, resolve=to_public).code == "timed_out"


def test_a_slow_drip_over_tls_meets_the_total_time(
    tls_server: Server, certificate: Path, dialled: list[str]
) -> None:
    tls_server.on("/a", lambda to: to.drip(*DRIPS["unannounced body"]))
    url, policy = tls_server.url("/a", "images.test", "https"), replace(GUARDED, total_timeout_seconds=0.5)
    assert unavailable(url, policy, resolve=to_public, ca_file=str(certificate)).code == "timed_out"
    assert not tls_server.dripped.is_set()
