"""Owns `smi up`: the Procfile's processes on this machine, and the sandbox if asked for.

Called by main.py and demo.py.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

import typer
from honcho.environ import parse_procfile
from honcho.manager import Manager
from honcho.printer import Printer

from smi_workflow.app import MIGRATIONS
from smi_workflow.cli.screen import errors, print_json, speaking_plainly
from smi_workflow.engine.database import open_database
from smi_workflow.engine.migrate import migrate
from smi_workflow.errors import ConfigError
from smi_workflow.settings import load_settings


def up(
    procfile: Path = typer.Option(Path("Procfile"), help="The processes to run."),
    sandbox: bool = typer.Option(False, "--sandbox", help="Imitate Stripe, Upsampler and mail on this machine."),
    as_json: bool = typer.Option(
        False, "--json", help="Print what is started as one JSON object; logs go to stderr."
    ),
) -> None:
    """Run everything on this machine, for development: web, downloads, workers, relay. Ctrl-C ends it.

    Example: `smi up --sandbox`
    """
    with speaking_plainly():
        if not procfile.is_file():
            raise ConfigError(f"there is no {procfile} here; name one with --procfile")
        if sandbox:
            os.environ.update(sandbox_environment(os.environ))
        settings = load_settings()
        database = open_database(settings.database_url)
        migrate(database, MIGRATIONS, prefix=settings.table_prefix, wordpress_tables=settings.wordpress_tables)
        database.close()
        processes = dict(parse_procfile(procfile.read_text(encoding="utf-8")).processes)
    if sandbox:
        processes["sandbox"] = sandbox_command(os.environ)
    if as_json:
        print_json(
            {"processes": processes, "public_url": settings.public_url, "downloads_url": settings.downloads_url}
        )
        sys.stdout.flush()
    errors.print(f"[bold]smi up[/]: {', '.join(processes)}; Ctrl-C ends them")
    raise typer.Exit(run(processes, sys.stderr if as_json else sys.stdout))


def run(processes: Mapping[str, str], log: TextIO) -> int:
    """Run named commands side by side until one ends or we are told to stop; returns the exit status."""
    manager = Manager(Printer(log))
    # The commands of this environment first, whatever the shell's PATH says.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for name, command in processes.items():
        # exec: the signal must reach the command itself, not a shell around it.
        manager.add_process(name, f"exec {command}", env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"})
    manager.loop()
    return int(manager.returncode or 0)


def sandbox_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings that make this machine play every provider: what is set already stays, if it is on this machine."""
    folder = Path(environment.get("SMI_VAR_DIR", "var"))

    def local(name: str, scheme: str, path: str = "") -> str:
        given = urlsplit(environment.get(name, ""))
        port = given.port if given.hostname == "127.0.0.1" and given.port else free_port()
        return f"{scheme}://127.0.0.1:{port}{path}"

    public_url = environment.get("SMI_PUBLIC_URL") or "http://127.0.0.1:8000"
    return {
        "SMI_SECRET_KEY": environment.get("SMI_SECRET_KEY") or _kept_secret(folder / "sandbox" / "secret_key"),
        "SMI_PUBLIC_URL": public_url,
        "SMI_DOWNLOADS_URL": environment.get("SMI_DOWNLOADS_URL") or "http://127.0.0.1:8001",
        "SMI_STRIPE_API_BASE": local("SMI_STRIPE_API_BASE", "http"),
        "SMI_STRIPE_API_KEY": "sk_test_sandbox",
        "SMI_STRIPE_WEBHOOK_SECRET": "whsec_sandbox",
        "SMI_UPSAMPLER_API_BASE": local("SMI_UPSAMPLER_API_BASE", "http", "/api/v1"),
        "SMI_UPSAMPLER_API_KEY": "sandbox",
        "SMI_SMTP_URL": local("SMI_SMTP_URL", "smtp"),
        "SMI_ADMIN_EMAIL": environment.get("SMI_ADMIN_EMAIL") or "owner@shop.example",
        "SMI_MAIL_FROM": environment.get("SMI_MAIL_FROM") or "Sell My Images <no-reply@shop.example>",
        # The sandbox and the demo's shop are on loopback, where no stranger's URL may normally point.
        "SMI_ALLOW_PRIVATE_ADDRESSES": "true",
    }


def sandbox_command(environment: Mapping[str, str]) -> str:
    """The sandbox, on the ports that the settings name."""
    folder = Path(environment.get("SMI_VAR_DIR", "var")) / "sandbox"
    words = [
        "python", "-m", "smi_workflow.sandbox",
        "--folder", str(folder),
        "--ready-file", str(folder / "ready.json"),
        "--stripe-port", str(urlsplit(environment["SMI_STRIPE_API_BASE"]).port),
        "--upsampler-port", str(urlsplit(environment["SMI_UPSAMPLER_API_BASE"]).port),
        "--smtp-port", str(urlsplit(environment["SMI_SMTP_URL"]).port),
        "--webhook-url", f"{environment['SMI_PUBLIC_URL']}/webhooks/stripe",
        "--webhook-secret", environment["SMI_STRIPE_WEBHOOK_SECRET"],
    ]  # fmt: skip
    return shlex.join(words)


def free_port() -> int:
    """A port on loopback that nobody uses right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _kept_secret(path: Path) -> str:
    # Kept, so that the links of an earlier run still open.
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
    return path.read_text().strip()
