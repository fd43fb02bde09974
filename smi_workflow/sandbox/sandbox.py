"""Owns the sandbox as a whole: all servers in one process. Called by __main__.py, the demo and tests."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from smi_workflow.errors import ConfigError
from smi_workflow.sandbox.server import RequestLog, listen
from smi_workflow.sandbox.smtp import MailServer
from smi_workflow.sandbox.stripe_server import StripeServer
from smi_workflow.sandbox.upsampler import UpsamplerServer


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """How the providers behave. Ports: 0 takes a free one; all servers listen on 127.0.0.1 only.

    `folder` holds mails/, results/ and sandbox.log. `webhook_url` may be empty and set later. Empty key tuples
    accept any well-formed key. `webhook_events` and `refused_recipients` are patterns. With a `seed` the faults
    given by probability fall the same way each time.
    """

    folder: Path
    stripe_port: int = 0
    upsampler_port: int = 0
    smtp_port: int = 0
    mail_http_port: int = 0
    webhook_url: str = ""
    webhook_secrets: tuple[str, ...] = ()
    webhook_events: tuple[str, ...] = ("*",)
    retry_first_seconds: float = 0.5
    retry_give_up_seconds: float = 300.0
    stripe_api_keys: tuple[str, ...] = ()
    upsampler_api_keys: tuple[str, ...] = ()
    upsampler_credits: float = 100_000.0
    upsampler_work_seconds: float = 0.3
    upsampler_output_pixels_max: int = 64_000_000
    refused_recipients: tuple[str, ...] = ("bounce@*",)
    seed: int | None = None


class Sandbox:
    """Stripe, Upsampler and a mail server, all imitated.

    Raises:
        ConfigError: a port is taken or the folder cannot be used; nothing is left open then.
        InvalidInput: a webhook URL without a secret, or no URL at all.
    """

    def __init__(self, config: SandboxConfig) -> None:
        with ExitStack() as opened:
            results, mails = _folder(config.folder / "results"), _folder(config.folder / "mails")
            log = RequestLog(config.folder / "sandbox.log")
            opened.callback(log.close)

            def port(number: int, option: str) -> socket.socket:
                return opened.enter_context(listen(number, option))

            stripe_listener = port(config.stripe_port, "--stripe-port")
            upsampler_listener = port(config.upsampler_port, "--upsampler-port")
            smtp_listener = port(config.smtp_port, "--smtp-port")
            mail_http_listener = port(config.mail_http_port, "--mail-http-port")
            retries = {
                "retry_first_seconds": config.retry_first_seconds,
                "retry_give_up_seconds": config.retry_give_up_seconds,
            }
            self.stripe = StripeServer(
                stripe_listener,
                log,
                api_keys=config.stripe_api_keys,
                webhook_url=config.webhook_url,
                webhook_secrets=config.webhook_secrets,
                webhook_events=config.webhook_events,
                seed=config.seed,
                **retries,
            )
            self.upsampler = UpsamplerServer(
                upsampler_listener,
                log,
                results,
                api_keys=config.upsampler_api_keys,
                credits=config.upsampler_credits,
                work_seconds=config.upsampler_work_seconds,
                output_pixels_max=config.upsampler_output_pixels_max,
                seed=config.seed,
                **retries,
            )
            self.mail = MailServer(
                smtp_listener, mail_http_listener, log, mails, refused=config.refused_recipients, seed=config.seed
            )
            self._log = log
            opened.pop_all()

    def start(self) -> Sandbox:
        """Serve; returns at once, with every address known."""
        self.stripe.start()
        self.upsampler.start()
        self.mail.start()
        return self

    def stop(self) -> None:
        """Stop everything within a second; what is in memory is gone."""
        self.mail.stop()
        self.upsampler.stop()
        self.stripe.stop()
        self._log.close()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def set_webhook(self, url: str, *secrets: str) -> None:
        """Deliver Stripe's webhooks there from now on."""
        self.stripe.webhooks.set_endpoint(url, secrets)

    def addresses(self) -> dict[str, str]:
        """Where everything is, by the names of the ready file."""
        return {
            "stripe": self.stripe.url,
            "upsampler": self.upsampler.url,
            "upsampler_api_base": self.upsampler.api_base,
            "smtp": self.mail.url,
            "mail_http": self.mail.http_url,
        }


def _folder(path: Path) -> Path:
    # Absolute: Flask takes a relative path for one beside its own code.
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use the folder {path}: {error.strerror}") from error
    return path
