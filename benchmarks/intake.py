"""Webhooks taken in per second, beside a bare Flask view that inserts one row, under the same gunicorn settings.

    python -m benchmarks.intake                       # SQLite, then PostgreSQL
    python -m benchmarks.intake --databases sqlite --rounds 5 --seconds 2

Both are started by the Procfile's own command for `web`, two processes of eight threads, on the same database.
Ours checks the signature, cuts the event down, commits it once, rings the embedded broker and answers; the bare
view inserts what it got. Every commit is durable on both sides: SQLite in WAL mode with synchronous=FULL,
PostgreSQL with fsync and synchronous_commit on. Load comes from one process of its own, over connections that are
kept for a while; rounds alternate, so that a noisy machine is noisy for both. The figure that counts is the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import requests
from honcho.environ import parse_procfile

from smi_workflow.app import MIGRATIONS
from smi_workflow.cli.up import free_port
from smi_workflow.engine.database import open_database
from smi_workflow.engine.migrate import migrate
from smi_workflow.integrations.embedded_broker import ensure_embedded_broker
from smi_workflow.settings import Settings
from tests.support.apps import REPOSITORY, settings_environment, test_settings
from tests.support.postgres import PostgresServer
from tests.support.sandbox import WEBHOOK_SECRET

TARGETS = {"ours": "smi_workflow.web.site:create_app()", "bare": "benchmarks.bare:create_app()"}
START_SECONDS = 30.0


@dataclass(slots=True)
class Side:
    """One of the two, and what its rounds came to."""

    name: str
    port: int
    rates: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)


@contextmanager
def running(name: str, settings: Settings, folder: Path) -> Iterator[Side]:
    """The Procfile's `web`, or the bare view in its place."""
    command = parse_procfile((REPOSITORY / "Procfile").read_text()).processes["web"]
    port = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("SMI_")},
        **settings_environment(settings),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SMI_WEB_BIND": f"127.0.0.1:{port}", "WEB_CONCURRENCY": "2", "WEB_THREADS": "8",
    }  # fmt: skip
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command.replace(TARGETS['ours'], TARGETS[name])}"],
            cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_up(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield Side(name, port)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _is_up(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=2).ok
    except requests.RequestException:
        return False


def load(side: Side, number: int, connections: int, seconds: float) -> dict[str, Any]:
    """Drive one side for one round, from a process of its own."""
    order = {
        "host": "127.0.0.1", "port": side.port, "secret": WEBHOOK_SECRET, "name": f"{side.name}{number:03d}",
        "connections": connections, "seconds": seconds,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"], input=json.dumps(order), capture_output=True, text=True,
        check=True, cwd=REPOSITORY, timeout=seconds + 120,
    )  # fmt: skip
    told: dict[str, Any] = json.loads(done.stdout)
    if told["refused"]:
        raise RuntimeError(f"{side.name} refused: {told['refused']}")
    return told


def measure(settings: Settings, folder: Path, rounds: int, connections: int, seconds: float) -> list[Side]:
    """Alternate the two, and check that every event answered for is there, and was rung for."""
    broker = ensure_embedded_broker(settings.var_dir)
    with closing(open_database(settings.database_url)) as database:
        migrate(database, MIGRATIONS, prefix=settings.table_prefix)
    with (
        running("ours", settings, folder) as ours,
        running("bare", settings, folder) as bare,
        redis.Redis.from_url(broker.url) as queue,
    ):
        answered = 0
        for number in range(rounds + 1):
            for side in (ours, bare) if number % 2 else (bare, ours):
                told = load(side, number, connections, seconds if number else 1.0)
                answered += len(told["latencies_ms"]) if side is ours else 0
                if number:  # the first round warms up
                    side.rates.append(len(told["latencies_ms"]) / told["seconds"])
                    side.latencies_ms += told["latencies_ms"]
        with closing(open_database(settings.database_url)) as database:
            table = f"{settings.table_prefix}smi_inbox"
            count = f"SELECT COUNT(*) FROM {table}"
            kept = database.execute_sql(count).fetchone()[0]  # type: ignore[no-untyped-call]
        if kept != answered:
            raise RuntimeError(f"{answered} were answered with 2xx, and {kept} are kept")
        deadline = time.monotonic() + START_SECONDS
        while queue.llen("dramatiq:events") != kept:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{kept} are kept, and not each was rung for once")
            time.sleep(0.05)
    broker.release()
    return [ours, bare]


def report(kind: str, ours: Side, bare: Side) -> None:
    """Print what one database came to."""
    ratios = [mine / bound for mine, bound in zip(ours.rates, bare.rates, strict=True)]
    print(f"{kind}: ratio {statistics.median(ratios):.2f} (rounds: {', '.join(f'{one:.2f}' for one in ratios)})")
    for side in (ours, bare):
        points = statistics.quantiles(side.latencies_ms, n=100)
        print(
            f"  {side.name}  {statistics.median(side.rates):6.0f}/s   p50 {points[49]:5.1f} ms   "
            f"p99 {points[98]:6.1f} ms   ({len(side.latencies_ms)} requests)",
            flush=True,
        )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round of one side")
    parser.add_argument("--connections", type=int, default=16, help="at once; there are 16 threads")
    options = parser.parse_args()
    for kind in options.databases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            server = PostgresServer(is_durable=True) if kind == "postgres" else None
            try:
                url = server.url("postgres") if server is not None else f"sqlite:///{folder / 'shop.sqlite3'}"
                settings = test_settings(folder, database_url=url)
                report(kind, *measure(settings, folder, options.rounds, options.connections, options.seconds))
            finally:
                if server is not None:
                    server.close()


if __name__ == "__main__":
    main()
