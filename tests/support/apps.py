"""Owns complete Apps for tests, and a whole shop in one process: site, sandbox, buyer. Called by tests."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from flask import Flask
from PIL import Image
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.engine.clock import Clock
from smi_workflow.engine.migrate import migrate
from smi_workflow.engine.unit import EVENT_ACTOR
from smi_workflow.integrations.storage import ImageLimits
from smi_workflow.jobs.model import Job
from smi_workflow.jobs.tokens import download_token, token_hash
from smi_workflow.sandbox import Sandbox
from smi_workflow.sandbox.smtp import KeptMail
from smi_workflow.settings import Settings
from smi_workflow.web.site import create_app
from tests.support.sandbox import API_KEY, WEBHOOK_SECRET, Site, running_sandbox, running_site, wait_until

SECRET_KEY = "0123456789abcdef" * 4
# Nobody listens on a reserved port of loopback: calling a provider that a test did not start fails at once.
NOWHERE = "http://127.0.0.1:1"
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Rung:
    """A doorbell that remembers what was rung for; safe for threads."""

    bells: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, message_id: str, actor_name: str, queue: str) -> None:
        self.bells.append((message_id, actor_name, queue))

    def take(self) -> list[tuple[str, str, str]]:
        """Everything rung since the last time."""
        taken, self.bells = self.bells, []
        return taken

    def names(self) -> list[str]:
        """The Dramatiq actors rung for, oldest first."""
        return [name for _, name, _ in self.bells]


def test_settings(folder: Path, sandbox: Sandbox | None = None, **fields: Any) -> Settings:
    """Settings that point into a folder and at a sandbox, or nowhere; the environment's are not needed.

    Args:
        fields: of Settings, instead of these.
    """
    mail_host = sandbox.mail.url if sandbox is not None else "smtp://127.0.0.1:1"
    defaults: dict[str, Any] = {
        "var_dir": folder / "var",
        "database_url": f"sqlite:///{folder / 'shop.sqlite3'}",
        "storage_url": (folder / "files").as_uri(),
        "secret_key": SECRET_KEY,
        "public_url": "http://127.0.0.1:8000",
        "stripe_api_key": API_KEY,
        "stripe_webhook_secret": WEBHOOK_SECRET,
        "stripe_api_base": sandbox.stripe.url if sandbox is not None else NOWHERE,
        "upsampler_api_key": "up-test",
        "upsampler_api_base": sandbox.upsampler.api_base if sandbox is not None else f"{NOWHERE}/api/v1",
        "smtp_url": mail_host,
        "mail_from": "shop@example.com",
        "allow_private_addresses": True,
    }
    return Settings(**{**defaults, **fields})


test_settings.__test__ = False  # type: ignore[attr-defined]  # its name is what it makes, and no test


def open_test_app(
    tmp_path: Path,
    sandbox: Sandbox | None = None,
    *,
    ring: Callable[[str, str, str], object] | None = None,
    clock: Clock | None = None,
    migrated: bool = True,
    **settings: Any,
) -> App:
    """A complete App on a fresh, migrated SQLite file; close it.

    Args:
        sandbox: the providers; unset, there are none, and calling one fails.
        ring: the doorbell, a Rung for instance; unset, nobody listens.
        clock: unset, the machine's.
        migrated: False leaves the database alone.
        settings: fields of Settings; a `database_url` of another kind works too.
    """
    app = App(test_settings(tmp_path, sandbox, **settings), ring=ring or Rung(), clock=clock)
    if migrated:
        migrate(app.database, MIGRATIONS, prefix=app.settings.table_prefix)
    return app


def picture(width: int, height: int, image_format: str = "PNG") -> bytes:
    """A real image, not all of one colour."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    target = io.BytesIO()
    image.save(target, image_format)
    return target.getvalue()


def finished_job(app: App, content: bytes, *, job_id: str = "job-1", **columns: Any) -> tuple[Job, str]:
    """A delivered job with this file, written past the machine, and the token that opens it.

    Args:
        columns: of the job, instead of a delivered one's.
    """

    def store(stem: str) -> str:
        limits = ImageLimits(max_bytes=len(content), max_pixels=10**9)
        return app.storage.store_image(stem, lambda file: file.write(content), limits=limits).name

    now = app.clock.now()
    app.engine.start("job", {
        "job_id": job_id, "image_url": "https://shop.example/photo.png", "image_width": 60, "image_height": 40,
        "resolution": "4x", "currency": "usd", "markup_percentage": 500, "livemode": False, "created_at": now,
        "amount_due_cents": 50, "email": "jane@example.com", "source_file": store(f"sources/{job_id}"),
    }, actor="buyer")  # fmt: skip
    token = download_token(SECRET_KEY.encode(), job_id, 1)
    delivered = {
        "status": "completed", "payment_status": "paid", "paid_cents": 50, "token_generation": 1,
        "upscaled_file_path": store(f"results/{job_id}"), "download_token": token_hash(token),
        "download_expires_at": now + timedelta(hours=24), "completed_at": now, "email_sent": True,
    }  # fmt: skip
    jobs = app.job_tables.jobs
    jobs.update(**{**delivered, **columns}).where(jobs.job_id == job_id).execute()
    return app.jobs.get_job(job_id), token


def free_listener() -> socket.socket:
    """A listening socket on a free port of loopback, so that a URL is known before its server exists."""
    return socket.create_server(("127.0.0.1", 0), backlog=128)


class _QuietHandler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Silent: it would print paths."""

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        self.close_connection = True


class _Server(ThreadedWSGIServer):
    """Closes each thread's database connection with the thread, as no pool would."""

    daemon_threads = False
    database: Any = None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            if self.database is not None and not self.database.is_closed():
                self.database.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of tests break off on purpose."""


@contextmanager
def served(site: Flask, app: App, listener: socket.socket | None = None) -> Iterator[str]:
    """Serve a Flask application in threads, by real HTTP/1.1.

    Yields: its base URL.
    """
    listener = listener or free_listener()
    port = listener.getsockname()[1]
    server = _Server("127.0.0.1", port, site, _QuietHandler, fd=listener.fileno())
    server.database = app.database
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        listener.close()


@contextmanager
def gunicorn(folder: Path, target: str, settings: Settings, **environment: str) -> Iterator[tuple[str, Path]]:
    """Run gunicorn with the repository's configuration, as a child.

    Args:
        target: e.g. `smi_workflow.web.site:create_app()`.
        settings: handed over as environment variables: those that test_settings sets.
        environment: more variables.
    Yields: its base URL, and the file that takes everything it prints.
    """
    with free_listener() as probe:
        port = probe.getsockname()[1]
    log = folder / f"gunicorn-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", str(REPOSITORY / "config" / "gunicorn.conf.py"), target],
            env={**os.environ, **settings_environment(settings), "PORT": str(port), **environment},
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"gunicorn ended with {process.returncode}: {log.read_text()}")
        try:
            return requests.get(f"{url}/healthz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    try:
        wait_until(is_up, 90)
        yield url, log
    finally:
        process.terminate()
        process.wait(30)


def settings_environment(settings: Settings) -> dict[str, str]:
    """The environment variables of a process that shall have these settings."""
    return {
        "SMI_ENV_FILE": "/dev/null",
        "SMI_VAR_DIR": str(settings.var_dir),
        "SMI_DATABASE_URL": settings.database_url,
        "SMI_STORAGE_URL": settings.storage_url,
        "SMI_SECRET_KEY": ",".join(key.get_secret_value() for key in settings.secret_key),
        "SMI_PUBLIC_URL": settings.public_url,
        "SMI_STRIPE_API_KEY": settings.stripe_api_key.get_secret_value(),
        "SMI_STRIPE_WEBHOOK_SECRET": ",".join(key.get_secret_value() for key in settings.stripe_webhook_secret),
        "SMI_STRIPE_API_BASE": settings.stripe_api_base,
        "SMI_UPSAMPLER_API_KEY": settings.upsampler_api_key.get_secret_value(),
        "SMI_UPSAMPLER_API_BASE": settings.upsampler_api_base,
        "SMI_SMTP_URL": settings.smtp_url.get_secret_value(),
        "SMI_MAIL_FROM": settings.mail_from,
        "SMI_ALLOW_PRIVATE_ADDRESSES": str(settings.allow_private_addresses).lower(),
    }


@dataclass
class Shop:
    """Everything of a sale in one process. Nobody works in the background: `work` does what is due."""

    app: App
    rung: Rung
    sandbox: Sandbox
    site: Site
    url: str

    def order(self, size: tuple[int, int] = (60, 40), resolution: str = "4x", **changes: Any) -> dict[str, Any]:
        """Order the upscaling of a picture that the site serves; returns what the API says."""
        self.site.files["/photo.png"] = picture(*size)
        order = {
            "image_url": f"{self.site.url}/photo.png", "resolution": resolution, "image_width": size[0],
            "image_height": size[1], "email": "jane@example.com", **changes,
        }  # fmt: skip
        answer = requests.post(f"{self.url}/api/v1/jobs", json=order, timeout=30)
        assert answer.status_code == 201, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def pay(self, checkout_url: str, email: str = "jane@example.com") -> str:
        """Pay on the payment page as a buyer does; returns where that sends the browser."""
        answer = requests.post(f"{checkout_url}/pay", data={"email": email}, allow_redirects=False, timeout=10)
        assert answer.status_code == 303, answer.text
        return answer.headers["Location"]

    def work(self) -> int:
        """Handle every event and perform every effect that is due by now, until nothing is; returns how many."""
        count = 0
        while bells := self._due():
            for message_id, name in bells:
                self.app.inbox.handle(message_id) if name == EVENT_ACTOR else self.app.performer.perform(
                    message_id
                )
                count += 1
        return count

    def work_until(self, condition: Callable[[], bool], timeout_seconds: float = 20.0) -> None:
        """Go on working, as providers answer, until it is true."""

        def worked() -> bool:
            self.work()
            return condition()

        wait_until(worked, timeout_seconds)

    def sell(self, size: tuple[int, int] = (60, 40), resolution: str = "4x", **changes: Any) -> Job:
        """Order, pay, work until the job is completed or failed and nothing is due; returns the job."""
        told = self.order(size, resolution, **changes)
        self.pay(told["checkout_url"])
        self.work_until(lambda: self.job(told["job_id"]).status in ("completed", "failed"))
        self.work()
        return self.job(told["job_id"])

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return self.app.jobs.get_job(job_id)

    def triggers(self, job_id: str) -> list[str]:
        """What happened to it, oldest first."""
        return [row.trigger for row in self.app.jobs.history(job_id)]

    def mails(self, recipient: str = "jane@example.com") -> list[KeptMail]:
        """What somebody got, oldest first."""
        return [mail for mail in self.sandbox.mail.mails.all() if recipient in mail.recipients]

    def download_path(self, mail: KeptMail) -> str:
        """The path of the download link in a mail."""
        return next(urlsplit(link).path for link in mail.links if "/download/" in link)

    def _due(self) -> list[tuple[str, str]]:
        app, now = self.app, self.app.clock.now()
        bells = [(message_id, name) for message_id, name, _ in self.rung.take()]
        bells += [(due.id, EVENT_ACTOR) for due in app.inbox.due(now, 1000)]
        effects = [effect for flow in app.engine.workflows.values() for effect in flow.effects().values()]
        for queue in sorted({effect.queue for effect in effects}):
            bells += [(due.id, due.name) for due in app.engine.outbox.due(queue, now, 1000)]
        return list(dict.fromkeys(bells))


@contextmanager
def running_shop(
    tmp_path: Path, *, sandbox_options: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Shop]:
    """A served site with its sandbox, wired both ways.

    Args:
        sandbox_options: fields of SandboxConfig.
        settings: fields of Settings.
    """
    listener = free_listener()
    public_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with running_sandbox(tmp_path / "sandbox", **(sandbox_options or {})) as sandbox, running_site() as site:
        rung = Rung()
        app = open_test_app(tmp_path, sandbox, ring=rung, **{"public_url": public_url, **settings})
        try:
            with served(create_app(app), app, listener) as url:
                sandbox.set_webhook(f"{url}/webhooks/stripe", WEBHOOK_SECRET)
                yield Shop(app, rung, sandbox, site, url)
        finally:
            app.close()
