"""Owns the end of everything that a chaos run started, however the run itself ends. Run by run.py, as a program.

It waits for the end of its standard input, which comes even when the run is killed, and then kills every process
that carries the run's mark in its environment or works in the run's folder: children of children included, and
nobody else's.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil

MARK = "CHAOS_RUN"
PATIENCE_SECONDS = 10.0


def marked(run: str) -> list[psutil.Process]:
    """The processes of one run that are alive now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and _belongs_to(process, run):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _belongs_to(process: psutil.Process, run: str) -> bool:
    # A server that writes its title over its environment is known by its folder alone.
    folder = Path(process.cwd())
    return process.environ().get(MARK) == run or Path(run) in (folder, *folder.parents)


def end(run: str) -> None:
    """Kill them until none is left: one may start another while it dies."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (alive := marked(run)) and time.monotonic() < deadline:
        for process in alive:
            try:
                process.kill()
            except psutil.Error:
                continue
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.read()
    end(sys.argv[1])
