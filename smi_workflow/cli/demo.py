"""Owns `smi demo`: one whole sale on this machine, watched live. Called by main.py and `make demo`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
import typer
from PIL import Image, UnidentifiedImageError
from rich.markup import escape

from smi_workflow.app import App
from smi_workflow.cli.screen import console, errors, print_json, speaking_plainly, state
from smi_workflow.cli.up import free_port, sandbox_environment
from smi_workflow.engine.tables import Transition
from smi_workflow.errors import InvalidInput, SmiError
from smi_workflow.jobs.model import Job, JobStatus
from smi_workflow.settings import load_settings

PHOTOGRAPH = Path(__file__).parent / "assets" / "cat.jpg"
BUYER = "buyer@example.com"
START_SECONDS, SALE_SECONDS, STOP_SECONDS = 60.0, 90.0, 15.0
FAILURES = {"upscale": {"match": {"result": True}, "fault": {"kind": "fail"}, "times": None}}


class DemoFailed(SmiError):
    """The demo did not end as it must; the message says where."""


def demo(
    image: Path = typer.Option(PHOTOGRAPH, "--image", help="A photograph of your own: PNG, JPEG or WebP."),
    fail: str = typer.Option("", "--fail", help="Let a step fail for good: upscale."),
    keep: bool = typer.Option(False, "--keep", help="Leave everything running at the end, until Ctrl-C."),
    as_json: bool = typer.Option(False, "--json", help="Print the outcome as JSON; the story goes to stderr."),
) -> None:
    """Sell one photograph from end to end: real processes, a real queue, imitated providers.

    Examples: `smi demo`, `smi demo --image holiday.jpg`, `smi demo --fail upscale`
    """
    with speaking_plainly():
        width, height = _measure(image)
        if fail and fail not in FAILURES:
            raise InvalidInput("--fail", f"can be {', '.join(FAILURES)}, not {fail!r}")
        try:
            # A script reads the outcome from stdout; a person watches the story there.
            console.stderr = as_json
            with ExitStack() as held:
                sale = _run(held, image, (width, height), fail)
                if as_json:
                    print_json(sale.outcome())
                if keep:
                    _keep_running(sale.app, sale.folder)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _run(held: ExitStack, image: Path, size: tuple[int, int], fail: str) -> _Sale:
    folder = held.enter_context(_own_folder(Path("var") / "demo"))
    os.environ.update(_environment(folder))
    held.enter_context(_processes(folder))
    console.print(f"Everything runs; logs in [bold]{folder / 'processes.log'}[/].")
    app = held.enter_context(_app())
    if fail:
        _post(f"{app.settings.upsampler_api_base.removesuffix('/api/v1')}/_sandbox/faults", json=FAILURES[fail])
    shop = held.enter_context(_shop(image))
    sale = _Sale(app, folder, size)
    sale.order(f"{shop}/{image.name}")
    sale.pay()
    if fail:
        sale.watch(lambda job: job.refunded_cents == job.paid_cents > 0, "the refund")
        sale.check_refund()
    else:
        sale.watch(lambda job: job.status == JobStatus.COMPLETED and job.email_sent, "the delivery")
        sale.check_delivery()
    console.print("\n[bold green]The demo ended as it must.[/]")
    return sale


@dataclass(slots=True)
class _Sale:
    """One job from order to end, told as it happens."""

    app: App
    folder: Path
    size: tuple[int, int]
    job_id: str = ""
    started: float = 0.0
    seen: int = 0

    def order(self, image_url: str) -> None:
        """Create the job over HTTP, as a shop's site does."""
        width, height = self.size
        order = {
            "image_url": image_url,
            "resolution": "4x",
            "image_width": width,
            "image_height": height,
            "post_id": 1,
        }
        self.started = time.monotonic()
        answer = _post(f"{self.app.settings.public_url}/api/v1/jobs", json=order).json()
        self.job_id = answer["job_id"]
        console.print(f"\nA buyer orders [bold]{image_url.rsplit('/', 1)[1]}[/] ({width}x{height}) at 4x.")
        console.print(f"Job [bold]{self.job_id}[/], {answer['amount']} {answer['currency']}")
        console.print(f"Pay page: {answer['checkout_url']}\n", soft_wrap=True)
        self.told()

    def pay(self) -> None:
        """Press the pay page's button."""
        url = self.app.jobs.get_job(self.job_id).checkout_url
        if not url:
            raise DemoFailed("the job has no checkout")
        page = requests.get(url, timeout=10)
        page.raise_for_status()
        answer = requests.post(f"{url}/pay", data={"email": BUYER}, timeout=10, allow_redirects=False)
        if answer.status_code not in (302, 303):
            raise DemoFailed(f"the pay page answered {answer.status_code}")
        console.print("[dim]         The buyer presses Pay.[/]")

    def watch(self, done: Callable[[Job], bool], awaited: str) -> None:
        """Tell each transition as it happens, until the end."""
        deadline = time.monotonic() + SALE_SECONDS
        while True:
            self.told()
            job = self.app.jobs.get_job(self.job_id)
            if done(job):
                self.told()
                return
            if time.monotonic() > deadline:
                raise DemoFailed(f"{awaited} did not come within {SALE_SECONDS:g} s; the job is {job.status}")
            time.sleep(0.05)

    def told(self) -> None:
        """Print what has happened since the last look."""
        for item in self.app.jobs.history(self.job_id)[self.seen :]:
            self.seen += 1
            console.print(_line(item, time.monotonic() - self.started), soft_wrap=True)

    def check_delivery(self) -> None:
        """The file is four times as large, and the link in the mail opens exactly it."""
        job = self.app.jobs.get_job(self.job_id)
        path = self.app.storage.path(str(job.upscaled_file_path))
        width, height = _measure(path)
        if (width, height) != (self.size[0] * 4, self.size[1] * 4):
            raise DemoFailed(f"the stored file is {width}x{height}, not four times the original")
        console.print(f"\nStored:   {path}  [bold]{width}x{height}[/] (4x, checked)", soft_wrap=True)
        link = self._mail("Your upscaled image is ready")["links"][0]
        answer = requests.get(link, timeout=60)
        if answer.status_code != 200 or _sha256(answer.content) != _sha256(path.read_bytes()):
            raise DemoFailed(f"the link in the mail did not give the stored file (HTTP {answer.status_code})")
        console.print(f"The link in the mail was opened: {len(answer.content):,} bytes, the same as the file's.")
        self._timeline()

    def check_refund(self) -> None:
        """The money is back at Stripe, once, and the buyer was told."""
        job = self.app.jobs.get_job(self.job_id)
        if job.status != JobStatus.FAILED:
            raise DemoFailed(f"the job is {job.status}, not failed")
        ledger = requests.get(f"{self.app.settings.stripe_api_base}/_sandbox/ledger", timeout=10).json()
        refunded = [item["amount"] for item in ledger["refunds"] if item["status"] == "succeeded"]
        if refunded != [job.paid_cents]:
            raise DemoFailed(f"Stripe's ledger has the refunds {refunded}, where {job.paid_cents} was paid")
        console.print(f"\nRefunded: {refunded[0]} cents of {job.paid_cents}, once (read from Stripe's ledger)")
        self._mail("We could not upscale your image")
        self._mail("We have returned")
        console.print("The buyer was told twice: that it failed, and that the money is back.")
        self._timeline()

    def outcome(self) -> dict[str, object]:
        """How it ended, for scripts."""
        job = self.app.jobs.get_job(self.job_id)
        file = self.app.storage.path(job.upscaled_file_path) if job.upscaled_file_path else None
        return {
            "job_id": job.job_id, "status": job.status, "file": file, "width": job.expected_size[0],
            "height": job.expected_size[1], "paid_cents": job.paid_cents, "refunded_cents": job.refunded_cents,
            "triggers": [item.trigger for item in self.app.jobs.history(job.job_id)],
        }  # fmt: skip

    def _mail(self, subject: str) -> dict[str, Any]:
        ready = _ready(self.folder)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            mails = requests.get(f"{ready['mail_http']}/_sandbox/ledger", timeout=10).json()["mails"]
            for mail in mails:
                if mail["subject"].startswith(subject) and BUYER in mail["to"]:
                    console.print(f"Mail:     {mail['path']}  “{mail['subject']}”", soft_wrap=True)
                    return dict(mail)
            time.sleep(0.1)
        raise DemoFailed(f"no mail “{subject} …” reached {BUYER}")

    def _timeline(self) -> None:
        history = self.app.jobs.history(self.job_id)
        console.print("\n[bold]Timeline[/]")
        for item in history:
            seconds = (item.created_at - history[0].created_at).total_seconds()
            console.print(_line(item, seconds), soft_wrap=True)


def _line(item: Transition, seconds: float) -> str:
    move = (
        state(item.to_state)
        if item.from_state == item.to_state
        else f"{state(item.from_state)} → {state(item.to_state)}"
    )
    reason = f"  [dim]{escape(item.reason)}[/]" if item.reason else ""
    return f"[dim]{seconds:7.2f} s[/]  [bold]{item.trigger:18}[/] {move}  [dim]by {item.actor}[/]{reason}"


@contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder for this demo, refused while another demo uses it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed("another demo is running here; end it first") from None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder


def _environment(folder: Path) -> dict[str, str]:
    web, downloads = free_port(), free_port()
    own = {
        # What a shop has configured here must not leak into a demo.
        "SMI_ENV_FILE": os.devnull,
        "SMI_VAR_DIR": str(folder),
        "SMI_DATABASE_URL": f"sqlite:///{folder / 'smi.sqlite3'}",
        "SMI_STORAGE_URL": (folder / "files").absolute().as_uri(),
        "SMI_BROKER_URL": "",
        "SMI_WEB_BIND": f"127.0.0.1:{web}",
        "SMI_DOWNLOADS_BIND": f"127.0.0.1:{downloads}",
        "SMI_PUBLIC_URL": f"http://127.0.0.1:{web}",
        "SMI_DOWNLOADS_URL": f"http://127.0.0.1:{downloads}",
        "SMI_POLL_SECONDS": "5",
        # A shop waits half an hour, so that an admin can retry; nobody wants to watch that.
        "SMI_REFUND_DELAY_MINUTES": "0.02",
    }
    # A provider's real address in the environment must never be used by a demo.
    blank = dict.fromkeys(("SMI_STRIPE_API_BASE", "SMI_UPSAMPLER_API_BASE", "SMI_SMTP_URL"), "")
    return {**own, **sandbox_environment({**os.environ, **own, **blank})}


@contextmanager
def _processes(folder: Path) -> Iterator[None]:
    """`smi up --sandbox` in a session of its own, ended with everything it started."""
    log = (folder / "processes.log").open("wb")
    command = [str(Path(sys.executable).parent / "smi"), "up", "--sandbox"]
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        with console.status("Starting web, downloads, three workers, relay, broker and the sandbox …"):
            _wait_for_health(process, folder)
        yield
    except DemoFailed as failure:
        errors.print(f"[dim]The last lines of {folder / 'processes.log'}:[/]")
        for line in (folder / "processes.log").read_text(errors="replace").splitlines()[-12:]:
            errors.print(f"  {line}", markup=False, soft_wrap=True)
        raise failure
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def _wait_for_health(process: subprocess.Popen[bytes], folder: Path) -> None:
    urls = [f"{os.environ[name]}/healthz" for name in ("SMI_PUBLIC_URL", "SMI_DOWNLOADS_URL")]
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            raise DemoFailed("the processes ended while starting")
        try:
            if (folder / "sandbox" / "ready.json").exists() and all(
                requests.get(url, timeout=2).ok for url in urls
            ):
                return
        except requests.RequestException:
            pass
        if time.monotonic() > deadline:
            raise DemoFailed(f"the processes were not ready within {START_SECONDS:g} s")
        time.sleep(0.1)


@contextmanager
def _app() -> Iterator[App]:
    app = App(load_settings())
    try:
        app.check_schema()
        yield app
    finally:
        app.close()


@contextmanager
def _shop(image: Path) -> Iterator[str]:
    """The shop's site: serves the photograph over real HTTP."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(image.resolve().parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _keep_running(app: App, folder: Path) -> None:
    ready = _ready(folder)
    console.print("\n[bold]Everything is still running.[/] Ctrl-C ends it.")
    for name, url in (
        ("Site", app.settings.public_url), ("Downloads", app.settings.downloads_url), ("Stripe", ready["stripe"]),
        ("Upsampler", ready["upsampler"]), ("Mails", f"{ready['mail_http']}/_sandbox/ledger"),
    ):  # fmt: skip
        console.print(f"  {name:10} {url}")
    while True:
        time.sleep(1)


def _ready(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "sandbox" / "ready.json").read_text()))


def _post(url: str, **arguments: Any) -> requests.Response:
    try:
        answer = requests.post(url, timeout=60, **arguments)
    except requests.RequestException as error:
        raise DemoFailed(f"{url} could not be reached: {error}") from None
    if answer.status_code == 422:
        raise InvalidInput("--image", str(answer.json().get("detail", answer.text[:500])))
    if not answer.ok:
        raise DemoFailed(f"{url} answered {answer.status_code}: {answer.text[:500]}")
    return answer


def _measure(image: Path) -> tuple[int, int]:
    try:
        with Image.open(image) as opened:
            return opened.size
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidInput("--image", f"{image} cannot be read as an image: {error}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
