"""Owns our own processes: the Procfile's, with a second set of workers; started, killed, frozen, looked after.

Called by run.py and monkey.py, always from the main thread.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import requests
from honcho.environ import parse_procfile

from tests.chaos.servers import wait_for
from tests.support.contracts import REPOSITORY

RESPAWN_SECONDS = 1.0
START_SECONDS = 180.0
TERM_SECONDS = 25.0
WORKERS = ("urgent-1", "urgent-2", "slow-1", "slow-2")
NAMES = ("web", "downloads", *WORKERS, "relay")
TIME_MACHINE = Path(__file__).with_name("later")


class Fleet:
    """Every process by name. One that dies by itself is started again, as any process manager would."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.died: Counter[str] = Counter()
        self._folder = folder
        self._environment = {
            **environment,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{TIME_MACHINE}{os.pathsep}{REPOSITORY}",
        }
        self._commands = dict(parse_procfile((REPOSITORY / "Procfile").read_text()).processes)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._due: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self._leaving: dict[str, float] = {}

    def travel(self, seconds: float) -> None:
        """Processes started from now on live so far in the future."""
        self._environment["CHAOS_AHEAD_SECONDS"] = str(seconds)

    def start(self, name: str) -> None:
        """Start one process."""
        self._due.pop(name, None)
        self._since[name] = time.monotonic()
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self._commands[name.split('-')[0]]}"],
                cwd=REPOSITORY, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def age_seconds(self, name: str) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._since[name]

    def kill(self, name: str, back_in_seconds: float) -> bool:
        """kill -9, its children with it; False when it was not there."""
        process = self._running.pop(name, None)
        if process is None:
            return False
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._leaving.pop(name, None)
        self._due[name] = time.monotonic() + back_in_seconds
        return True

    def kill_child(self, name: str, chance: random.Random) -> bool:
        """kill -9 of one child alone: its parent must cope."""
        try:
            children = psutil.Process(self._running[name].pid).children(recursive=True)
            chance.choice(children).kill()
        except (KeyError, IndexError, psutil.Error):
            return False
        return True

    def terminate(self, name: str) -> bool:
        """SIGTERM to the whole group, as process managers do; it comes back once it has ended."""
        if name not in self._running or name in self._leaving:
            return False
        with suppress(ProcessLookupError):
            os.killpg(self._running[name].pid, signal.SIGTERM)
        self._leaving[name] = time.monotonic() + TERM_SECONDS
        return True

    def signal(self, name: str, number: signal.Signals) -> bool:
        """SIGSTOP or SIGCONT to the whole group."""
        if name not in self._running:
            return False
        with suppress(ProcessLookupError):
            os.killpg(self._running[name].pid, number)
        return True

    def look_after(self) -> None:
        """Start whatever is to come back, and what died by itself."""
        now = time.monotonic()
        for name, process in list(self._running.items()):
            leaving = self._leaving.get(name)
            if process.poll() is not None:
                del self._running[name]
                with suppress(ProcessLookupError):
                    # What it left behind would serve on, unseen.
                    os.killpg(process.pid, signal.SIGKILL)
                if self._leaving.pop(name, None) is None:
                    self.died[name.split("-")[0]] += 1
                self._due[name] = now + (RESPAWN_SECONDS if leaving is None else 0.0)
            elif leaving is not None and now > leaving:
                self.kill(name, 0.0)
                self.died["stopped too slowly"] += 1
        for name, due in list(self._due.items()):
            if now >= due:
                self.start(name)

    def stop_all(self) -> None:
        """SIGTERM to all, and wait; whoever takes too long is killed."""
        for process in self._running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + TERM_SECONDS
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()
        self._due.clear()
        self._leaving.clear()

    def start_all(self) -> None:
        """Start what does not run, and wait until the sites answer."""
        for name in NAMES:
            if name not in self._running:
                self.start(name)
        for url in ("SMI_PUBLIC_URL", "SMI_DOWNLOADS_URL"):
            wait_for(partial(self._answers, f"{self._environment[url]}/healthz"), url, START_SECONDS)

    def _answers(self, url: str) -> bool:
        self.look_after()
        try:
            return requests.get(url, timeout=10).ok
        except requests.RequestException:
            return False
