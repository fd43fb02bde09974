"""From the webhook's 2xx to the start of the effect it causes, on an idle system; and what idling costs.

    python -m benchmarks.latency

Real processes; a sale is paid every second, its payment event posted to the web process by hand. Measured: from
the arrival of its 2xx to the worker's claim of the submission (`first_attempt_at`), and to the moment the call
reaches Upsampler. In between lie two messages and two durable commits (the event's transition, the claim). The
bound, in the same run: as many messages through the same broker and as many durable single-row commits on the
same disk, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import redis
import requests
from stripe import WebhookSignature

from smi_workflow.integrations.embedded_broker import embedded_broker_url
from tests.support.sandbox import WEBHOOK_SECRET
from tests.support.stack import Stack, running_stack


class Upsampler:
    """Answers every submission at once, and notes when it came."""

    def __init__(self) -> None:
        arrivals: list[float] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                arrivals.append(time.time())
                self.rfile.read(int(self.headers["Content-Length"]))
                body = json.dumps({"id": f"u{len(arrivals)}", "status": "IN_QUEUE"}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                return

        self.arrivals = arrivals
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def pay(stack: Stack, job_id: str) -> float:
    """Post the payment event of one job; returns when its 2xx had arrived."""
    event = next(
        event
        for event in reversed(stack.ledger("stripe")["events"])
        if event["type"] == "checkout.session.completed"
        and event["data"]["object"]["metadata"]["job_id"] == job_id
    )
    body = json.dumps(event)
    header = WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
    answer = requests.post(
        f"{stack.environment['SMI_PUBLIC_URL']}/webhooks/stripe", data=body, timeout=10,
        headers={"Stripe-Signature": header, "Content-Type": "application/json"},
    )  # fmt: skip
    arrived = time.time()
    assert answer.status_code == 200, answer.text
    return arrived


def sales(stack: Stack, image_url: str, upsampler: Upsampler, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the claim and to the call, one sale a second."""
    to_claim, to_call = [], []
    effects = stack.app.tables.effects
    for _ in range(count):
        job_id = stack.order(image_url, (60, 40))
        stack.pay(job_id)
        time.sleep(1.0)
        before = len(upsampler.arrivals)
        sent = pay(stack, job_id)
        stack.wait(lambda before=before: len(upsampler.arrivals) > before, "the submission")  # type: ignore[misc]
        claim = effects.get((effects.subject_id == job_id) & (effects.name == "submit_upscale"))
        assert claim.first_attempt_at is not None
        to_claim.append((claim.first_attempt_at.timestamp() - sent) * 1000)
        to_call.append((upsampler.arrivals[-1] - sent) * 1000)
    return to_claim, to_call


def bound(folder: Path, count: int) -> list[float]:
    """Milliseconds of two messages and two durable commits, and nothing else."""
    url = embedded_broker_url(folder / "var")
    assert url is not None
    database = sqlite3.connect(folder / "bound.sqlite3", isolation_level=None)
    database.execute("PRAGMA journal_mode=wal")
    database.execute("PRAGMA synchronous=full")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)")
    database.execute("INSERT INTO t VALUES (1, 0)")
    found = []
    with redis.Redis.from_url(url) as sender, redis.Redis.from_url(url) as receiver:
        for number in range(count):
            began = time.perf_counter()
            for _ in range(2):
                sender.lpush("bound", number)
                receiver.blpop(["bound"], 1)
            for _ in range(2):
                database.execute("UPDATE t SET n = n + 1 WHERE id = 1")
            found.append((time.perf_counter() - began) * 1000)
    database.close()
    return found


def idle_shares(parts: dict[str, list[int]], seconds: float) -> dict[str, float]:
    """Per cent of one core that each part, its children included, uses while nothing happens."""
    families = {
        part: [p for pid in pids for p in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
        for part, pids in parts.items()
    }

    def used(part: str) -> float:
        times = [process.cpu_times() for process in families[part]]
        return sum(each.user + each.system for each in times)

    before = {part: used(part) for part in parts}
    time.sleep(seconds)
    return {part: (used(part) - before[part]) / seconds * 100 for part in parts}


def broker_pids(folder: Path) -> list[int]:
    """The embedded broker's keeper and server."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "embedded_broker" in words and str(folder) in words:
            found.append(process.pid)
    return found


def quantiles(values: list[float]) -> str:
    """Median and 95th percentile, for print."""
    return f"p50 {statistics.median(values):6.1f} ms   p95 {statistics.quantiles(values, n=20)[18]:6.1f} ms"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sales", type=int, default=30)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    options = parser.parse_args()
    upsampler = Upsampler()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_stack(
            folder,
            sandbox={"webhook_events": ("none",)},
            SMI_UPSAMPLER_API_BASE=upsampler.url,
            SMI_POLL_SECONDS="3600",
        ) as (stack, site):
            report: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
            to_claim, to_call = sales(stack, f"{site.url}/photo.png", upsampler, options.sales)
            floor = bound(folder, options.sales)
            report(f"2xx to the claimed effect   {quantiles(to_claim)}")
            report(f"2xx to the provider's door  {quantiles(to_call)}")
            report(f"bound (2 messages, 2 fsync) {quantiles(floor)}")
            parts = {each: [stack.running[each].pid] for each in ("urgent", "slow", "relay")}
            shares = idle_shares({**parts, "broker": broker_pids(folder)}, options.idle_seconds)
            split = ", ".join(f"{part} {share:.2f}" for part, share in shares.items())
            report(f"idle: {sum(shares.values()):.2f} % of one core ({split})")
    upsampler.close()


if __name__ == "__main__":
    main()
