"""The web's start beside a database that is away: it waits, says so, and goes on. Called by pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import requests

from smi_workflow.app import App
from tests.support.apps import REPOSITORY, gunicorn, open_test_app, settings_environment, test_settings
from tests.support.bridge import Bridge
from tests.support.sandbox import wait_until

TARGET = "smi_workflow.web.site:create_app()"
# A worker that need not wait for long.
SHORT = (
    "from smi_workflow.web import downloads, serving, site;"
    "serving.open_or_exit.__kwdefaults__['wait_seconds'] = 0;"
)


@pytest.mark.parametrize("target", ["site", "downloads"])
def test_a_worker_that_waited_in_vain_ends_so_that_another_is_started(tmp_path: Path, target: str) -> None:
    settings = test_settings(tmp_path, database_url="postgresql://u:hunter2@127.0.0.1:1/shop")
    done = subprocess.run(
        [sys.executable, "-c", f"{SHORT} {target}.create_app()"],
        env={**os.environ, **settings_environment(settings)},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "cannot read the state of the database" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_too_few_threads_for_the_orders_are_said(tmp_path: Path) -> None:
    app = open_test_app(tmp_path)
    code = "from smi_workflow.web.serving import check_start; check_start('web', threads={}, wait_seconds=0)"

    def said(threads: int) -> bool:
        done = subprocess.run(
            [sys.executable, "-c", code.format(threads)],
            env={**os.environ, **settings_environment(app.settings)},
            cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return "SMI_ORDERS_AT_ONCE is 4 and WEB_THREADS" in done.stderr

    assert [said(4), said(5)] == [True, False]
    app.close()


def workers_of(log: Path) -> list[int]:
    """The running workers of this test's gunicorn."""
    found = []
    for process in psutil.Process().children():
        if process.status() != psutil.STATUS_ZOMBIE and "gunicorn" in " ".join(process.cmdline()):
            found += [child.pid for child in process.children()]
    assert log.exists()
    return found


def test_the_site_outlives_a_database_that_goes_and_comes(tmp_path: Path, postgres_url: str) -> None:
    app: App = open_test_app(tmp_path, database_url=postgres_url)
    bridge = Bridge(postgres_url)
    settings = app.settings.model_copy(update={"database_url": bridge.url})

    def said(text: str, times: int) -> bool:
        return sum(path.read_text().count(text) for path in tmp_path.glob("gunicorn-*.log")) >= times

    def open_later() -> None:
        wait_until(lambda: said("waiting for the database", 1), 30)
        bridge.open()

    opener = threading.Thread(target=open_later)
    opener.start()
    try:
        # The first start waits: healthz answers only after the bridge is open.
        with gunicorn(tmp_path, TARGET, settings, WEB_CONCURRENCY="1") as (url, log):
            opener.join()
            assert requests.get(f"{url}/readyz", timeout=10).status_code == 200
            bridge.close()
            (worker,) = workers_of(log)
            os.kill(worker, signal.SIGKILL)
            # So does the next worker, which is not the end of the site.
            wait_until(lambda: said("waiting for the database", 2), 30)
            bridge.open()
            wait_until(lambda: _is_ready(url), 30)
            assert "App failed to load" not in log.read_text()
    finally:
        bridge.close()
        app.close()


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).status_code == 200
    except requests.RequestException:
        return False
