"""Owns processes that work on one database at the same time, and that can be killed. Called by the engine's tests.

A crew's member is this file run as a program: it reads one command a line and answers one line. The command names
what to do; `remove` takes protections away inside that process, `meet` makes members wait for each other right
after they have read the subject, `die_at` kills the process at a statement.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from smi_workflow.engine.attempt import Attempt, Done
from smi_workflow.engine.declaration import Case
from smi_workflow.engine.inbox import Fire
from smi_workflow.engine.registry import Registry
from smi_workflow.engine.unit import Unit
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import SmiError
from tests.support.engines import GOOD, Bench, open_bench, taped

REPOSITORY = Path(__file__).resolve().parents[3]


class Crew:
    """Processes that are started once and used by many tests."""

    def __init__(self) -> None:
        self._members: list[subprocess.Popen[str]] = []

    def run(self, *commands: dict[str, Any]) -> list[dict[str, Any]]:
        """Give one command to each member at once; a member that dies answers {"died": exit status}."""
        while len(self._members) < len(commands):
            self._members.append(_recruit())
        members = self._members[: len(commands)]
        for member, command in zip(members, commands, strict=True):
            assert member.stdin is not None
            member.stdin.write(json.dumps(command) + "\n")
            member.stdin.flush()
        return [self._answer(member) for member in members]

    def close(self) -> None:
        """Send everyone home."""
        while self._members:
            self._dismiss(self._members[0])

    def _answer(self, member: subprocess.Popen[str]) -> dict[str, Any]:
        assert member.stdout is not None
        line = member.stdout.readline()
        if line:
            return dict(json.loads(line))
        return {"died": self._dismiss(member)}

    def _dismiss(self, member: subprocess.Popen[str]) -> int:
        self._members.remove(member)
        with member:
            assert member.stdin is not None
            member.stdin.close()
            return member.wait()


def _recruit() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.engine.racers"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip


def main() -> None:
    """Obey until the input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        bench = open_bench(
            command["url"], create=False, chance_prefix=f"{os.getpid()}-{time.monotonic_ns()}-"[-20:]
        )
        try:
            if "now" in command:
                bench.clock.time = datetime.fromisoformat(command["now"])
            with ExitStack() as stack:
                stack.enter_context(_weakened(bench, command.get("remove", ())))
                stack.enter_context(_meeting(command.get("meet")))
                stack.enter_context(_dying(bench, command.get("die_at")))
                answer = {"value": DEEDS[command["do"]](bench, command)}
        except SmiError as error:
            answer = {"error": type(error).__name__, "state": getattr(error, "state", None), "text": str(error)}
        finally:
            bench.close()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


# -- deeds ------------------------------------------------------------------------------------------------------


def _fire(bench: Bench, command: dict[str, Any]) -> int:
    return bench.engine.fire("loan", "l1", command["trigger"], actor="system", facts=GOOD).sequence


def _perform(bench: Bench, command: dict[str, Any]) -> str:
    def handler(attempt: Attempt) -> Done:
        with Path(command["calls"]).open("a") as calls:
            calls.write(f"{attempt.number}\n")
        end = command.get("end")
        if end == "kill -9":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "os._exit":
            os._exit(7)
        return Done()

    return str(bench.performer(fetch_book=handler).perform(command["effect"]))


def _receive(bench: Bench, command: dict[str, Any]) -> list[Any]:
    receipt = bench.inbox(_lose).receive("post", command["event"], "lost", "{}")
    return [receipt.id, receipt.is_new, len(bench.bells.rung)]


def _handle(bench: Bench, command: dict[str, Any]) -> str:
    return str(bench.inbox(_lose).handle(command["inbox_id"]))


def _lose(event: object) -> Fire:
    return Fire("loan", "l1", "lose", "system")


DEEDS: dict[str, Callable[[Bench, dict[str, Any]], object]] = {
    "fire": _fire,
    "perform": _perform,
    "receive": _receive,
    "handle": _handle,
}


# -- sabotage ---------------------------------------------------------------------------------------------------


@contextmanager
def _weakened(bench: Bench, removed: Sequence[str]) -> Iterator[None]:
    """Take the row lock and the version check away; the unique index is dropped by the test itself."""
    read = Registry.read

    def read_unlocked(registry: Registry, flow: Workflow, key: str, *, lock: bool = False) -> Any:
        return read(registry, flow, key)

    def update_blindly(unit: Unit, flow: Workflow, case: Case[Any], key: str, version: int) -> None:
        model: Any = unit.bound(flow.model)
        model.update(**case.changes).where(getattr(model, flow.key) == key).execute()

    with ExitStack() as stack:
        if "lock" in removed:
            stack.enter_context(patch.object(Registry, "read", read_unlocked))
        if "version" in removed:
            stack.enter_context(patch.object(Unit, "_update", update_blindly))
        yield


@contextmanager
def _meeting(meet: dict[str, Any] | None) -> Iterator[None]:
    """Once the subject is read, wait until others have read it too, or for as long as patience lasts."""
    if meet is None:
        yield
        return
    read = Registry.read
    folder = Path(meet["folder"])

    def read_and_meet(registry: Registry, flow: Workflow, key: str, *, lock: bool = False) -> Any:
        row = read(registry, flow, key, lock=lock)
        (folder / str(os.getpid())).touch()
        patience = time.monotonic() + float(meet["patience_seconds"])
        while len(list(folder.iterdir())) < int(meet["members"]) and time.monotonic() < patience:
            time.sleep(0.002)
        return row

    with patch.object(Registry, "read", read_and_meet):
        yield


@contextmanager
def _dying(bench: Bench, pattern: str | None) -> Iterator[None]:
    if pattern is None:
        yield
        return

    def die(statement: str) -> None:
        if re.search(pattern, statement):
            os.kill(os.getpid(), signal.SIGKILL)

    with taped(bench.database, die):
        yield


if __name__ == "__main__":
    main()
