"""Owns the recording of today's lives. Run by hand after a change to a declared workflow:

    python -m tests.histories.record

It writes one file, named after the two fingerprints, and leaves those of earlier definitions as they are.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.histories.lives import LIVES, TOLD
from tests.histories.tape import End, Life, path_of_today, recording
from tests.support.sales import Providers, Sales, open_sales, running_providers


def record(name: str, folder: Path, providers: Providers) -> Life:
    """Act one life out, and take it down."""
    folder.mkdir()
    settings = TOLD if name.startswith("told_") else {}
    url = f"sqlite:///{folder / 'shop.sqlite3'}"
    with open_sales(url, folder, providers, **settings) as sales, recording() as tape:
        LIVES[name](sales)
        subjects = dict.fromkeys((row.workflow, row.subject) for act in tape for row in act.rows)
        return Life(name, tuple(tape), tuple(_end(sales, *subject) for subject in subjects))


def _end(sales: Sales, workflow: str, subject: str) -> End:
    flow = sales.app.engine.workflows[workflow]
    state = str(getattr(sales.app.engine.read(workflow, subject), flow.state_column))
    return End(workflow, subject, state, tuple(sorted(sales.owed(subject))))


def main() -> int:
    """Record every life of today's definitions; returns the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="smi-lives-"))
    try:
        with running_providers(folder / "sandbox") as providers:
            lives = [record(name, folder / name, providers) for name in LIVES]
    finally:
        shutil.rmtree(folder)
    path = path_of_today()
    path.write_text("".join(f"{life.line()}\n" for life in lives), encoding="utf-8")
    rows = sum(len(life.rows()) for life in lives)
    sys.stdout.write(f"{len(lives)} lives, {rows} transitions: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
