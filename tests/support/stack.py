"""Owns the Procfile's real processes for acceptance tests: started, killed, restarted.

Called by tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests
from honcho.environ import parse_procfile
from PIL import Image

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.cli.up import free_port
from smi_workflow.engine.migrate import migrate
from smi_workflow.jobs.model import Job
from smi_workflow.sandbox import Sandbox
from smi_workflow.settings import Settings, load_settings
from tests.support.contracts import REPOSITORY
from tests.support.sandbox import API_KEY, WEBHOOK_SECRET, Site, running_sandbox, running_site

PATIENCE_SECONDS = 60.0


class Stack:
    """Real processes over one folder. Each runs in a session of its own, so that a kill takes its children too."""

    def __init__(self, folder: Path, sandbox: Sandbox, **settings: str) -> None:
        web, downloads = free_port(), free_port()
        where = sandbox.addresses()
        self.folder = folder
        self.sandbox = sandbox
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SMI_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SMI_ENV_FILE": os.devnull,
            "SMI_VAR_DIR": str(folder / "var"),
            "SMI_SECRET_KEY": "k" * 40,
            "SMI_WEB_BIND": f"127.0.0.1:{web}",
            "SMI_DOWNLOADS_BIND": f"127.0.0.1:{downloads}",
            "SMI_PUBLIC_URL": f"http://127.0.0.1:{web}",
            "SMI_DOWNLOADS_URL": f"http://127.0.0.1:{downloads}",
            "SMI_STRIPE_API_BASE": where["stripe"],
            "SMI_STRIPE_API_KEY": API_KEY,
            "SMI_STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "SMI_UPSAMPLER_API_BASE": where["upsampler_api_base"],
            "SMI_UPSAMPLER_API_KEY": "sandbox",
            "SMI_SMTP_URL": where["smtp"],
            "SMI_ALLOW_PRIVATE_ADDRESSES": "true",
            "SMI_POLL_SECONDS": "2",
            "SMI_LEASE_SECONDS": "3",
            "SMI_RING_AGAIN_SECONDS": "1",
            **settings,
        }
        sandbox.set_webhook(f"{self.environment['SMI_PUBLIC_URL']}/webhooks/stripe", WEBHOOK_SECRET)
        self.commands = dict(parse_procfile((REPOSITORY / "Procfile").read_text()).processes)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.app = App(self._settings(), ring=lambda *bell: None)
        migrate(self.app.database, MIGRATIONS, prefix=self.app.settings.table_prefix)

    def _settings(self) -> Settings:
        saved = dict(os.environ)
        os.environ.update({name: value for name, value in self.environment.items() if name.startswith("SMI_")})
        try:
            return load_settings()
        finally:
            os.environ.clear()
            os.environ.update(saved)

    def start(self, *names: str) -> None:
        """Start processes of the Procfile; all of them when none is named."""
        for name in names or self.commands:
            log = (self.folder / f"{name}.log").open("ab")
            with log:
                self.running[name] = subprocess.Popen(
                    ["/bin/sh", "-c", f"exec {self.commands[name]}"],
                    cwd=REPOSITORY, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
        for name, url in (("web", "SMI_PUBLIC_URL"), ("downloads", "SMI_DOWNLOADS_URL")):
            if name in (names or self.commands):
                self.wait(partial(_is_up, f"{self.environment[url]}/healthz"), f"{name} to answer")

    def kill(self, name: str) -> None:
        """kill -9, its children with it."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End everything the way a shop would: SIGTERM, and wait."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.running.clear()
        self.app.close()

    def order(self, image_url: str, size: tuple[int, int], resolution: str = "4x") -> str:
        """Order one image over HTTP; returns the job's id."""
        body = {
            "image_url": image_url, "resolution": resolution, "image_width": size[0], "image_height": size[1],
            "post_id": 1,
        }  # fmt: skip
        answer = requests.post(f"{self.environment['SMI_PUBLIC_URL']}/api/v1/jobs", json=body, timeout=30)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job_id"])

    def pay(self, job_id: str, email: str = "buyer@example.com") -> None:
        """Press Pay on the job's pay page."""
        url = self.app.jobs.get_job(job_id).checkout_url
        answer = requests.post(f"{url}/pay", data={"email": email}, timeout=30, allow_redirects=False)
        assert answer.status_code == 303, answer.text

    def wait(self, condition: Callable[[], bool], awaited: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Look again until it is true; fails with the logs' last lines when it never is."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:g} s in vain for {awaited}\n{self.last_lines()}")
            time.sleep(0.05)

    def wait_for(self, job_id: str, condition: Callable[[Job], bool], awaited: str) -> Job:
        """Wait until the job's row is as it must be."""
        self.wait(lambda: condition(self.app.jobs.get_job(job_id)), f"{awaited}, job {job_id}")
        return self.app.jobs.get_job(job_id)

    def triggers(self, job_id: str) -> list[str]:
        """The job's history, trigger by trigger."""
        return [item.trigger for item in self.app.jobs.history(job_id)]

    def ledger(self, of: str) -> dict[str, Any]:
        """What a provider has on its own books: stripe, upsampler or mail_http."""
        answer = requests.get(f"{self.sandbox.addresses()[of]}/_sandbox/ledger", timeout=10)
        return dict(answer.json())

    def last_lines(self) -> str:
        """The end of every log."""
        texts = [
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(texts)


def _is_up(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


@contextmanager
def running_stack(
    folder: Path, *, sandbox: dict[str, Any] | None = None, start: bool = True, **settings: str
) -> Iterator[tuple[Stack, Site]]:
    """A sandbox, a shop's site with `photo.png`, and the Procfile's processes; all ended at the end."""
    with running_sandbox(folder / "sandbox", **(sandbox or {})) as providers, running_site() as site:
        stack = Stack(folder, providers, **settings)
        picture = folder / "photo.png"
        Image.effect_noise((60, 40), 80).convert("RGB").save(picture)
        site.files["/photo.png"] = picture.read_bytes()
        try:
            if start:
                stack.start()
            yield stack, site
        finally:
            stack.stop()
