"""Owns the deliberate one-line breaks of the laws, and who notices each. Run by hand: `make breaks`.

    python -m tests.breaks [--law 4] [--seeds 10] [--jobs 60]

Each break is applied to a copy of the sources; then seeds are simulated until one goes red. What the simulation
does not see, the model check is asked; law 2's are for the races of real processes. Exit 1: one went unnoticed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENGINE = "smi_workflow/engine"
RACES = "tests/integration/engine/test_locks.py"


@dataclass(frozen=True, slots=True)
class Break:
    """One line made wrong."""

    law: int
    what: str
    file: str
    line: str
    instead: str
    races: bool = False


_RUN = '            return self._engine.run(work, cause=f"effect:{row.id}")\n'
_CONCLUDE = (
    f"{_RUN}        except _PASSING:\n            raise\n"
    "        except UnknownState as unknown:\n            return self._leave(row, lease, unknown)\n"
    "        except (GuardRefused, TransitionNotAllowed) as refusal:\n            if outcome"
)
_SETTLE = "            self._alone(lambda unit: self._settle(lease, EffectState.DONE, unit.now), lease)\n"
_FIRE = (
    "            outcome.trigger and self._engine.run(lambda unit: unit.fire(row.workflow, row.subject_id,"
    ' outcome.trigger, actor=outcome.actor, facts=outcome.facts), cause=f"effect:{row.id}")\n'
)
BREAKS = (
    Break(1, "guards, row, history and effects are committed one by one", f"{ENGINE}/fire.py",
          "with transaction(self.database, of_one_statement=of_one_statement):\n"
          "                    result = work(unit)",
          'with __import__("contextlib").nullcontext():\n                    result = work(unit)'),
    Break(2, "a transaction on SQLite does not take the write lock at once", f"{ENGINE}/database.py",
          '= database.atomic("IMMEDIATE") if is_sqlite(database) else database.atomic()',
          "= database.atomic()", races=True),
    Break(3, "the sweep does not ring for leases that have lapsed", f"{ENGINE}/relay.py",
          "yield from (Bell(due.id, due.name, due.queue) for due in outbox.lapsed(now, PAGE))", "yield from ()"),
    Break(4, "a late worker may settle with a lease that went to another", f"{ENGINE}/outbox.py",
          '        & (table.lease_token == Slot("token"))', "        & (table.lease_token == table.lease_token)"),
    Break(5, "an attempt is not counted before the call goes out", f"{ENGINE}/outbox.py",
          "attempts=table.attempts + 1,", "attempts=table.attempts,"),
    Break(6, "a transaction stays open while a provider is called", f"{ENGINE}/perform.py",
          "outcome = self._handlers[row.name].run(attempt)",
          "outcome = self._engine.database.atomic()(self._handlers[row.name].run)(attempt)"),
    Break(7, "an effect's outcome and the trigger it fires are two commits", f"{ENGINE}/perform.py",
          _CONCLUDE, _CONCLUDE.replace(_RUN, f"{_SETTLE}{_FIRE}            return Performed.DONE\n")),
    Break(8, "each attempt calls Stripe with another key", "smi_workflow/effects/payment.py",
          "        email=job.email,\n        key=attempt.id,",
          '        email=job.email,\n        key=f"{attempt.id}-{attempt.number}",'),
    Break(9, "an effect whose visit is over is run all the same", f"{ENGINE}/perform.py",
          "if subject is None or (row.visit != subject.visit and not row.survives):", "if subject is None:"),
    Break(10, "a parked event is not counted at its subject, and so not woken", f"{ENGINE}/inbox.py",
          "            _count(unit, park.workflow, park.key, +1)", "            _count(unit, None, None, +1)"),
    Break(11, "a payment of another amount is taken for the sale's", "smi_workflow/jobs/guards.py",
          'if facts["amount_cents"] != job.amount_due_cents or facts["currency"] != job.currency:',
          'if facts["currency"] != job.currency:'),
)  # fmt: skip


def copy_with(one: Break, folder: Path) -> Path:
    """The sources as they are, with this line made wrong."""
    for name in ("smi_workflow", "workers", "tests", "config", "pyproject.toml", "Procfile", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    target = folder / one.file
    text = target.read_text()
    if text.count(one.line) != 1:
        raise SystemExit(
            f"law {one.law}: the line is there {text.count(one.line)} times in {one.file}: {one.line}"
        )
    target.write_text(text.replace(one.line, one.instead))
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the copy."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def smi(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of the copy."""
    return run(folder, "-c", "from smi_workflow.cli.main import main; main()", *arguments)


def notice(one: Break, folder: Path, seeds: int, jobs: int) -> tuple[str, str]:
    """Who notices, and how soon; empty when nobody does."""
    if one.races:
        done = run(folder, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", RACES)
        return (
            ("races", done.stdout.strip().splitlines()[-1]) if done.returncode == 1 else ("", done.stdout[-300:])
        )
    for seed in range(1, seeds + 1):
        done = smi(folder, "simulate", "--seed", str(seed), "--jobs", str(jobs), "--json")
        if done.returncode == 1 and done.stdout:
            failed = json.loads(done.stdout)["failed"][0]
            return "simulation", f"{seed} seed{'s' if seed > 1 else ''}: {failed['failure'].splitlines()[0][:110]}"
        if done.returncode != 0:
            return "", f"it could not run: {done.stderr[-300:]}"
    done = smi(folder, "verify")
    return ("model check", "") if done.returncode == 1 else ("", f"{seeds} seeds and the model check stay green")


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply them one at a time; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--law", type=int, action="append", help="only this law's; may be given several times")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=60)
    options = parser.parse_args(arguments)
    unnoticed = 0
    sys.stdout.write("| law | made wrong | noticed by | seeds needed: what it said |\n|---|---|---|---|\n")
    for one in BREAKS:
        if options.law and one.law not in options.law:
            continue
        with tempfile.TemporaryDirectory(prefix="smi-break-") as folder:
            who, how = notice(one, copy_with(one, Path(folder)), options.seeds, options.jobs)
        unnoticed += not who
        sys.stdout.write(f"| {one.law} | {one.what} | {who or 'NOBODY'} | {how} |\n")
        sys.stdout.flush()
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
