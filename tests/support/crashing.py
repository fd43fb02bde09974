"""Owns real processes that kill themselves at a named point. Called by crash_sales.py; a program, too.

The program is the warm parent: it imports what the Procfile's processes import, and forks one whenever it is told
to, so that a process that died is back within a tenth of a second. Beyond that nothing is warm. Each runs its own
command line (gunicorn, dramatiq or the relay), reads its settings and opens its connections; each is a session of
its own, and dies with all of its children. The probe is put in place in between: production code knows of none.

The probe names each passing of a point by what the process is doing there, read off the call stack: an effect's
name, an event's kind, or `order`. It obeys the file `armed.json` in its folder: a passing that is counted there
kills the process group, once, because whoever renames the file does it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from smi_workflow.engine import points
from smi_workflow.engine.database import open_database
from smi_workflow.engine.points import Point
from smi_workflow.engine.tables import Tables
from tests.support.contracts import REPOSITORY

ARMED, FIRED, TRACE = "armed.json", "fired.json", "trace"
PROBE_FOLDER = "TEST_CRASH_FOLDER"
PR_SET_CHILD_SUBREAPER = 36
TICK_SECONDS = 0.02
WARM = (
    "dramatiq.cli", "gunicorn.app.wsgiapp", "gunicorn.workers.gthread", "smi_workflow.web.site", "workers.process",
    "smi_workflow.integrations.embedded_broker", "psycopg", "xml.etree.ElementTree", "PIL.PngImagePlugin",
)  # fmt: skip
UNKNOWN = "unknown"

# -- the probe ------------------------------------------------------------------------------------------------


class Probe:
    """Sees every point that this process passes."""

    def __init__(self, role: str, folder: Path, database_url: str, table_prefix: str) -> None:
        self._role = role
        self._folder = folder
        self._database = open_database(database_url)
        self._tables = Tables.bound_to(self._database, table_prefix)
        self._lock = threading.Lock()
        self._reader: ThreadPoolExecutor | None = None
        self._known: dict[str, tuple[str, datetime] | None] = {}
        self._case = ""
        self._passed: Counter[tuple[str, Point]] = Counter()

    def __call__(self, point: Point) -> None:
        """Called by `reach`, in whatever thread, inside or outside of a transaction."""
        armed = self._armed()
        if armed is None:
            return
        # Whatever is older belongs to an earlier sale.
        since = datetime.fromisoformat(armed["since"])
        for activity, began in self._activities(sys._getframe(2)):
            if began is None or began >= since:
                self._pass(armed, activity, point)

    def _armed(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads((self._folder / ARMED).read_text()))
        return None

    def _pass(self, armed: Mapping[str, Any], activity: str, point: Point) -> None:
        with self._lock:
            if armed["case"] != self._case:
                self._case, self._passed = armed["case"], Counter()
            self._passed[(activity, point)] += 1
            number = self._passed[(activity, point)]
        with (self._folder / TRACE).open("a") as trace:
            trace.write(f"{self._role} {activity} {point} {number}\n")
        if [self._role, activity, point, number] == armed["at"]:
            try:
                (self._folder / ARMED).rename(self._folder / FIRED)
            except FileNotFoundError:
                return
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def _activities(self, frame: FrameType | None) -> Iterator[tuple[str, datetime | None]]:
        """What this thread is doing, and when that was written down, if it was."""
        while frame is not None:
            place = (frame.f_globals.get("__name__"), frame.f_code.co_name)
            read = _PLACES.get(place)
            if read is not None:
                yield from read(self, frame.f_locals)
                return
            frame = frame.f_back
        yield UNKNOWN, None

    def look_up(self, message_id: str) -> Iterator[tuple[str, datetime | None]]:
        """The effect or event of an id."""
        if message_id not in self._known:
            with self._lock:
                # One connection a process, in a thread of its own: it may be needed inside a transaction.
                self._reader = self._reader or ThreadPoolExecutor(1, "probe")
            self._known[message_id] = self._reader.submit(self._read, message_id).result()
        yield self._known[message_id] or (UNKNOWN, None)

    def _read(self, message_id: str) -> tuple[str, datetime] | None:
        effects, events = self._tables.effects, self._tables.events
        effect = effects.get_or_none(effects.id == message_id)
        if effect is not None:
            return effect.name, effect.created_at
        event = events.get_or_none(events.id == message_id)
        if event is None:
            return None
        return (event.kind if event.provider == "stripe" else f"upsampler.{event.kind}"), event.received_at


Locals = Mapping[str, Any]


def _swept(probe: Probe, local: Locals) -> Iterator[tuple[str, datetime | None]]:
    for bell in [local["bell"]] if "bell" in local else local["bells"]:
        yield from probe.look_up(bell.message_id)


_PLACES: Mapping[tuple[Any, str], Callable[[Probe, Locals], Iterator[tuple[str, datetime | None]]]] = {
    ("smi_workflow.engine.perform", "perform"): lambda probe, local: probe.look_up(local["effect_id"]),
    ("smi_workflow.engine.inbox", "handle"): lambda probe, local: probe.look_up(local["inbox_id"]),
    ("workers.actors", "perform"): lambda probe, local: probe.look_up(local["message_id"]),
    ("smi_workflow.web.webhooks", "take_stripe"): lambda _, local: iter([(local["event"]["type"], None)]),
    ("smi_workflow.web.webhooks", "take_upsampler"): lambda _, local: iter(
        [(f"upsampler.{local['upscale'].status}", None)]
    ),
    ("smi_workflow.jobs.manager", "create_job"): lambda _, local: iter([("order", None)]),
    ("smi_workflow.engine.relay", "sweep"): _swept,
}

# -- the warm parent and its children -------------------------------------------------------------------------


def _live(order: Mapping[str, Any]) -> None:
    """Become one process of the Procfile; never returns."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["environment"])
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words = order["words"]
    points.watch(
        Probe(
            order["role"],
            Path(os.environ[PROBE_FOLDER]),
            os.environ["SMI_DATABASE_URL"],
            os.environ["SMI_TABLE_PREFIX"],
        )
    )
    status = 1
    try:
        if words[:2] == ["python", "-m"]:
            sys.argv = words[2:]
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            entry = {"gunicorn": ("gunicorn.app.wsgiapp", "run"), "dramatiq": ("dramatiq.cli", "main")}[words[0]]
            status = getattr(importlib.import_module(entry[0]), entry[1])() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve() -> None:
    """Fork what is ordered, one JSON line each, until the test run ends; then kill all of it."""
    if sys.platform == "linux":
        # Children of killed processes become ours: reaped by us, they leave their groups empty.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for name in WARM:
        importlib.import_module(name)
    # What is never collected is never copied either.
    gc.freeze()
    started: set[int] = set()
    unread = b""
    _say("ready")
    while True:
        readable, _, _ = select.select([0], [], [], TICK_SECONDS)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if ended in started:
                    # At once, for its number may soon be another's.
                    started.discard(ended)
                    _kill(ended)
        if not readable:
            continue
        data = os.read(0, 65536)
        if not data:
            break
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                _live(json.loads(line))
            started.add(pid)
            _say(str(pid))
    for pid in started:
        _kill(pid)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


# -- the warm parent, as a test sees it -----------------------------------------------------------------------


class WarmParent:
    """Starts processes of the Procfile. Close it when done; that kills what it has started."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        with (folder / "warm-parent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.crashing"],
                cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
        if self._answer() != "ready":
            raise AssertionError(f"no warm parent: {(folder / 'warm-parent.log').read_text()}")

    def start(self, role: str, command: str, environment: Mapping[str, str], log: Path) -> int:
        """Start one process; returns its id, which is its group's too.

        Args:
            command: as the Procfile has it, its variables filled in.
        """
        order = {
            "role": role, "words": shlex.split(command), "environment": dict(environment), "log": str(log)
        }  # fmt: skip
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return int(self._answer())

    def close(self) -> None:
        """Kill everything and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def kill_group(pid: int) -> None:
    """kill -9 for a process and all of its children; returns when nothing of them is left."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(pid, signal.SIGKILL)
            time.sleep(0.002)


if __name__ == "__main__":
    _serve()
