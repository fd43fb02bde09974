"""Every process that finds no folder to keep things in says so in a line, and ends. Called by pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.apps import REPOSITORY, settings_environment, test_settings

COMMANDS = {
    "worker": ["-m", "dramatiq", "workers.actors", "--processes", "1", "--threads", "1"],
    "relay": ["-m", "workers.relay"],
    "web": ["-m", "gunicorn", "--bind", "127.0.0.1:0", "smi_workflow.web.site:create_app()"],
}


@pytest.mark.parametrize("name", ["worker", "relay", "web"])
def test_a_folder_that_cannot_be_made_is_a_setting_to_correct(name: str, tmp_path: Path) -> None:
    # Root may write anywhere, but not below a file.
    (tmp_path / "file").touch()
    settings = test_settings(tmp_path, database_url=f"sqlite:///{tmp_path}/file/var/smi.sqlite3")
    done = subprocess.run(
        [sys.executable, *COMMANDS[name]],
        env={**os.environ, **settings_environment(settings), "SMI_VAR_DIR": str(tmp_path / "file" / "var")},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode != 0
    assert "set SMI_VAR_DIR or SMI_DATABASE_URL to a place of yours" in told
    assert "Traceback" not in told, told
