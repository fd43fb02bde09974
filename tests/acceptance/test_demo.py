"""The demo, as a stranger runs it: it ends as it must, twice in a row, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.contracts import REPOSITORY

SMI = str(Path(sys.executable).parent / "smi")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A checkout's face: what the demo needs beside the package. Nothing may run in it afterwards."""
    for name in ("Procfile", "config"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    yield tmp_path
    deadline = time.monotonic() + 15
    while (left := _running_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SMI, "demo", *arguments],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def outcome(folder: Path, *arguments: str) -> Any:
    done = run(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_sells_a_photograph_twice_in_a_row(folder: Path) -> None:
    for _ in range(2):
        sold = outcome(folder)
        assert (sold["status"], sold["width"], sold["height"], sold["refunded_cents"]) == (
            "completed",
            1804,
            1200,
            0,
        )
        assert sold["triggers"][-2:] == ["complete", "notice_sent"]
        assert Path(sold["file"]).is_file()


def test_the_other_half_gives_the_money_back(folder: Path) -> None:
    failed = outcome(folder, "--fail", "upscale")
    assert (failed["status"], failed["refunded_cents"]) == ("failed", failed["paid_cents"])
    assert failed["triggers"][-3:] == ["fail", "refund", "refund_settled"]


def test_keep_leaves_it_running_until_ctrl_c(folder: Path) -> None:
    process = subprocess.Popen(
        [SMI, "demo", "--keep"], cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        said = ""
        for line in process.stdout:
            said += line
            if line.strip().startswith("Mails"):
                break
        assert "Everything is still running" in said
        second = run(folder)
        assert second.returncode != 0
        assert "another demo is running here" in second.stderr
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.wait(30) == 130


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SMI_")}


def _running_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if process.cwd().startswith(str(folder)):
                found.append(" ".join(process.info["cmdline"]))
        except psutil.Error:
            continue
    return found
