"""Owns `python -m smi_workflow.sandbox`: the providers in one process. Called by the demo and the Procfile."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from smi_workflow.errors import SmiError
from smi_workflow.sandbox.sandbox import Sandbox, SandboxConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT.

    Returns: the exit status; 2 when it cannot start.
    """
    options = _parser().parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        sandbox = Sandbox(
            SandboxConfig(
                folder=options.folder,
                stripe_port=options.stripe_port,
                upsampler_port=options.upsampler_port,
                smtp_port=options.smtp_port,
                mail_http_port=options.mail_http_port,
                webhook_url=options.webhook_url,
                webhook_secrets=tuple(options.webhook_secret),
                upsampler_work_seconds=options.work_seconds,
                retry_give_up_seconds=options.give_up_seconds,
                seed=options.seed,
            )
        ).start()
    except SmiError as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 2
    if options.ready_file is not None:
        _write_ready(options.ready_file, sandbox.addresses())
    stop.wait()
    sandbox.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m smi_workflow.sandbox",
        description="Stripe, Upsampler and a mail server, imitated on loopback.",
    )
    for name in ("stripe", "upsampler", "smtp", "mail-http"):
        parser.add_argument(
            f"--{name}-port", type=int, default=0, metavar="PORT", help="0 (default): any free port"
        )
    parser.add_argument("--webhook-url", default="", metavar="URL", help="where Stripe sends its events")
    parser.add_argument(
        "--webhook-secret",
        action="append",
        default=[],
        metavar="SECRET",
        help="signs events; repeat while rolling",
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="mails, results and the log")
    parser.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="gets the addresses as JSON once all listen"
    )
    parser.add_argument("--work-seconds", type=float, default=0.3, metavar="N", help="how long an upscale takes")
    parser.add_argument(
        "--give-up-seconds", type=float, default=300.0, metavar="N", help="how long a webhook is tried"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="makes faults by probability repeatable")
    return parser


def _write_ready(path: Path, addresses: dict[str, str]) -> None:
    # A reader must never see half a file.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps({"pid": os.getpid(), **addresses}, indent=2), encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
