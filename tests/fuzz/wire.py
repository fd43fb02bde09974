"""Owns requests to the webhooks as bytes on the wire, nearly right ones, by a seed each; and who may be believed.

Called by test_wire.py and benchmarks/fuzz_webhooks.py. Below HTTP libraries, as whoever attacks uses none: lengths
that lie, chunks that break off, headers that no library would send.
"""

from __future__ import annotations

import gzip
import hmac
import json
import random
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.parse import urlsplit

from smi_workflow.jobs.tokens import sign
from tests.support.apps import SECRET_KEY
from tests.support.sandbox import WEBHOOK_SECRET

SECONDS = 30.0
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n")
KEY = SECRET_KEY.encode()
# gunicorn's own, before it reads on: a coding or a version of HTTP that it does not speak (RFC 9112, 6.1).
NO_SUCH_PROTOCOL = (501, 505)


@dataclass(slots=True)
class Made:
    """One request.

    Attributes:
        proven: it carries what only Stripe or Upsampler could have sent, over just this body.
        whole: its framing is right, so that it must be answered.
        plain: nothing is odd about it at all, so that it must be taken in, under this event id.
    """

    seed: int
    raw: bytes
    event_id: str
    proven: bool
    whole: bool
    plain: bool


@dataclass(slots=True)
class Tally:
    """What a run came to."""

    statuses: dict[int, int] = field(default_factory=dict)
    accepted: int = 0
    genuine: set[str] = field(default_factory=set)  # ids of events that nothing was wrong with
    faults: list[str] = field(default_factory=list)


def make(seed: int) -> Made:
    """The request of this seed: right in most ways, and spoilt in up to three."""
    chance = random.Random(seed)
    spoilt = set(chance.sample(WAYS, chance.choice([0, 1, 1, 1, 2, 2, 3])))
    to_stripe = chance.random() < 0.6
    name = f"{seed:08d}"
    body = _stripe_body(name) if to_stripe else _upsampler_body(name)
    if "body" in spoilt:
        body = _spoil_body(chance, body)
    headers: list[tuple[bytes, bytes]] = [(b"Host", b"shop"), (b"User-Agent", b"Stripe/1.0")]
    proven = "proof" not in spoilt
    if to_stripe:
        path = b"/webhooks/stripe"
        header = _signature(chance, body) if proven else _wrong_signature(chance, body)
        headers += [(b"Stripe-Signature", header)] if header is not None else []
    else:
        path = b"/webhooks/upsampler/" + (_callback() if proven else _wrong_callback(chance))
    headers.append((b"Content-Type", chance.choice(ODD_TYPES) if "type" in spoilt else b"application/json"))
    headers += chance.choices(ODD_HEADERS, k=chance.randrange(1, 4)) if "headers" in spoilt else []
    method = chance.choice(ODD_METHODS) if "method" in spoilt else b"POST"
    version = chance.choice(ODD_VERSIONS) if "version" in spoilt else b" HTTP/1.1"
    path = _spoil_path(chance, path) if "path" in spoilt else path
    framed = _broken_frame(chance, body, headers) if "frame" in spoilt else _frame(chance, body, headers)
    raw = method + b" " + path + version + framed
    if "byte" in spoilt:
        # Somewhere a byte is another one.
        at = chance.randrange(len(raw))
        raw = raw[:at] + bytes([chance.randrange(256)]) + raw[at + 1 :]
    whole = not spoilt & {"frame", "byte", "headers", "version", "method", "path"}
    event_id = f"evt_{name}" if to_stripe else f"up-{name}:SUCCESS"
    return Made(seed, raw, event_id, proven, whole, plain=not spoilt)


# What may be wrong with a request. Whatever else is, one whose proof is wrong must never be taken in.
WAYS = ["body", "proof", "proof", "type", "headers", "method", "version", "path", "frame", "frame", "byte"]
ODD_TYPES = [b"", b"text/plain", b"application/json; charset=utf-16", b"application/x-www-form-urlencoded",
             b"multipart/form-data; boundary=x", b"application/json\x00", b"\xff\xfe", b"a" * 5000]  # fmt: skip
ODD_METHODS = [b"GET", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"post", b"POST\x00", b"P" * 3000, b"", b"TRACE"]
ODD_VERSIONS = [b" HTTP/1.0", b" HTTP/9.9", b"", b" HTTP/1.1 "]
ODD_HEADERS = [
    (b"Content-Encoding", b"gzip"), (b"Transfer-Encoding", b"identity"), (b"Expect", b"100-continue"),
    (b"Expect", b"the unexpected"), (b"Connection", b"upgrade"), (b"X-Long", b"y" * 9000),
    (b"X-Request-Id", b"\xff"), (b"X-Forwarded-For", b"127.0.0.1"),
    (b"Content-Type", b"text/html"), (b"Stripe-Signature", b"t=1,v1=0"),
    (b"X\x00", b"1"), (b"", b"nameless"), (b" X", b"folded"), (b"Content_Length", b"3"),
    (b"Cookie", b"a=b;" * 200), (b"X-Real", b"a\x00b"), (b"Range", b"bytes=0-"), (b"If-None-Match", b"*"),
]  # fmt: skip


def _stripe_body(name: str) -> bytes:
    session = {
        "id": f"cs_{name}", "object": "checkout.session", "payment_status": "paid", "amount_total": 384,
        "currency": "usd", "payment_intent": f"pi_{name}", "metadata": {"job_id": f"nobody-{name}"},
    }  # fmt: skip
    event = {"id": f"evt_{name}", "object": "event", "type": "checkout.session.completed", "livemode": False}
    return json.dumps({**event, "data": {"object": session}}).encode()


def _upsampler_body(name: str) -> bytes:
    return json.dumps({"id": f"up-{name}", "status": "SUCCESS", "imageUrl": "https://cdn.example/1.png"}).encode()


def _spoil_body(chance: random.Random, body: bytes) -> bytes:
    """Something else, which is signed all the same."""
    how = chance.randrange(9, 20)
    cut = chance.randrange(len(body))
    if how == 9:
        return body[:cut]
    if how == 10:
        return body[:cut] + chance.randbytes(chance.randrange(1, 9)) + body[cut:]
    if how == 11:
        return chance.randbytes(chance.randrange(200))
    if how == 12:
        return chance.choice([b"[" * 20_000, b'{"a":' * 5_000, b"1" * 5_000, b'"\\ud800"', b"null", b"{}", b"[]"])
    if how == 13:
        return body.replace(b'"', chance.choice([b"'", b"", b"\x00", b'\\"', b"\xff"]), chance.randrange(1, 9))
    if how == 14:
        return gzip.compress(body)
    if how == 15:
        return body + b" " * chance.choice([1024 * 1024, 70_000])
    if how == 16:
        number = chance.choice([b"-1", b"1e999", b"NaN", b"9" * 30, b"true", b"null", b'"x"', b"[[]]", b"{}"])
        return re.sub(rb":\s*(\"[^\"]*\"|\d+|false)", b": " + number, body, count=chance.randrange(1, 6))
    if how == 17:
        return body.decode().encode("utf-16")
    if how == 18:
        return b"\xef\xbb\xbf" + body
    return b""


def _signed(stamp: object, body: bytes, secret: str = WEBHOOK_SECRET) -> bytes:
    return hmac.new(secret.encode(), f"{stamp}.".encode() + body, sha256).hexdigest().encode()


def _signature(chance: random.Random, body: bytes) -> bytes:
    """The header as Stripe writes it, or as it does while a secret is rolled."""
    now = int(time.time())
    right = _signed(now, body)
    if chance.random() < 0.8:
        return b"t=%d,v1=%s" % (now, right)
    return b"t=%d,v1=%s,v1=%s,v0=%s" % (now, b"0" * 64, right, b"1" * 64)


def _wrong_signature(chance: random.Random, body: bytes) -> bytes | None:
    """A header that proves nothing of this body."""
    now = int(time.time())
    right = _signed(now, body)
    past, future = now - 100_000, now + 100_000
    return chance.choice([
        None, b"", b"t=%d" % now, b"v1=" + right, b"t=%d,v0=%s" % (now, right), b"t=%d,v1=%s" % (now + 1, right),
        b"t=%d,v1=%s" % (past, _signed(past, body)), b"t=%d,v1=%s" % (future, _signed(future, body)),
        b"t=%d,v1=%s" % (now, right[:-1]), b"t=%d,v1=%s" % (now, _signed(now, body + b" ")),
        b"t=%d,v1=%s" % (now, _signed(now, body, "whsec_of_others")),
        b"t=%d,v1=%s" % (now, _signed(now, body, "")),
        b"t=%d,t=%d,v1=%s" % (now, now, right), b"t=1e9,v1=" + right, b"t=\xb2,v1=\xff" + right,
        chance.randbytes(40).replace(b"\r", b"").replace(b"\n", b""),
    ])  # fmt: skip


def _callback() -> bytes:
    return f"effect1/{sign(KEY, 'upsampler', 'effect1')}".encode()


def _wrong_callback(chance: random.Random) -> bytes:
    """What comes after the route, where it is not what we submitted."""
    right = sign(KEY, "upsampler", "effect1")
    return chance.choice([
        f"effect2/{right}", f"effect1/{right[:-1]}", f"effect1/{right}0", "effect1/", f"/{right}", "effect1/%00",
        f"effect1/{right.swapcase()}", "%ff/%fe", f"effect1/{sign(b'x' * 64, 'upsampler', 'effect1')}",
        f"effect1/{sign(KEY, 'source', 'effect1')}",
    ]).encode()  # fmt: skip


def _spoil_path(chance: random.Random, path: bytes) -> bytes:
    ways: list[Callable[[bytes], bytes]] = [
        lambda it: it + b"/", lambda it: b"/" + it, lambda it: it + b"?a=%ff", lambda it: it + b"?\xff",
        lambda it: b"http://evil.example" + it, lambda it: it.replace(b"/", b"//"), lambda it: it + b"%00",
        lambda it: it + b"#x", lambda it: it.upper(), lambda it: b"*", lambda it: it + b"/" + b"z" * 9000,
    ]  # fmt: skip
    return chance.choice(ways)(path)


def _head(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"\r\n" + name + b": " + value for name, value in headers)


def _chunks(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"


def _frame(chance: random.Random, body: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Head and body, as they should be."""
    if chance.random() < 0.8:
        return _head(headers) + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    return _head(headers) + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + _chunks(body)


def _broken_frame(chance: random.Random, body: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Lengths that lie, chunks that break off."""
    head, sizes = _head(headers), _chunks(body)
    length, chunked = b"\r\nContent-Length: ", b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    lie = chance.choice([b"-1", b"x", b"", b"1e3", b"+5", b"0x10", b"9" * 40, b"\xb2"])
    return chance.choice([
        head + length + b"%d\r\n\r\n" % (len(body) + 50) + body,
        head + length + b"%d\r\n\r\n" % max(0, len(body) - 5) + body,
        head + length + lie + b"\r\n\r\n" + body,
        head + length + b"3" + length + b"%d\r\n\r\n" % len(body) + body,
        head + length + b"%d" % len(body) + chunked + sizes,
        head + chunked + sizes[: len(sizes) // 2],
        head + chunked + chance.choice([b"zz\r\n", b"-1\r\n", b"f" * 20 + b"\r\n", b"5;" + b"x" * 9000]) + body,
        head + b"\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + sizes,
        head + b"\r\n\r\n" + body,
        head.replace(b"\r\n", b"\n") + length + b"%d\r\n\r\n" % len(body) + body,
        head[: chance.randrange(len(head))],
        head + b"\r\nTrailer: x" + chunked + sizes[:-2] + b"x: y\r\n\r\n",
    ])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; no status where the connection was just closed."""

    statuses: tuple[int, ...]
    is_taken_in: bool

    @property
    def final(self) -> int:
        """The status of the first answer; 0 for none."""
        return next((status for status in self.statuses if status >= 200), 0)


def send(host: str, port: int, raw: bytes) -> Answer:
    """Send, end, and read all that comes."""
    answer = b""
    with socket.create_connection((host, port), timeout=SECONDS) as connection, suppress(ConnectionError):
        connection.sendall(raw)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            answer += piece
    statuses = tuple(int(found) for found in STATUS.findall(answer))
    return Answer(statuses, b'"received":true' in answer.replace(b" ", b""))


def judge(made: Made, answer: Answer) -> str:
    """What is wrong with the answer; empty when nothing is."""
    if any(status >= 500 and status not in NO_SUCH_PROTOCOL for status in answer.statuses):
        return f"answered {answer.statuses}"
    if answer.is_taken_in and not made.proven:
        return "taken in, and nobody had signed it"
    if made.whole and not answer.final:
        return "not answered"
    if made.plain and not (answer.is_taken_in and answer.final == 200):
        return f"genuine, and refused: {answer.statuses}"
    return ""


def fuzz(url: str, seeds: range, threads: int) -> Tally:
    """Send the request of every seed; stops judging nothing, and tells all that was wrong."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    host, port, tally = parts.hostname, parts.port, Tally()

    def one(seed: int) -> tuple[Made, Answer]:
        made = make(seed)
        return made, send(host, port, made.raw)

    with ThreadPoolExecutor(threads) as pool:
        for made, answer in pool.map(one, seeds):
            problem = judge(made, answer)
            if problem:
                tally.faults.append(f"seed {made.seed}: {problem}: {made.raw[:300]!r}")
            tally.statuses[answer.final] = tally.statuses.get(answer.final, 0) + 1
            tally.accepted += answer.is_taken_in
            if made.plain:
                tally.genuine.add(made.event_id)
    return tally
