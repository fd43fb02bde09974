"""Owns the whole system of a chaos run: servers, providers, processes, settings; and questions to its database.

Called by run.py.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.cli.up import free_port
from smi_workflow.engine.migrate import migrate
from smi_workflow.settings import Settings, load_settings
from tests.chaos.admin import Admin
from tests.chaos.fleet import Fleet
from tests.chaos.guard import MARK
from tests.chaos.providers import Bank, Providers
from tests.chaos.servers import Broker, Postgres, wait_for
from tests.chaos.shop import ImageSite
from tests.support.sandbox import API_KEY, WEBHOOK_SECRET

LEASE_SECONDS = 3.0
# Past the payment deadline (36 + 5 minutes), the check of slow refunds and the end of links (an hour each).
AHEAD_SECONDS = 65 * 60.0
# What is due within so many seconds is waited for; the rest is made due by the travel, or is months away.
SOON_SECONDS = 30.0

SETTINGS = {
    "SMI_SECRET_KEY": "k" * 40,
    "SMI_STRIPE_API_KEY": API_KEY,
    "SMI_STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
    "SMI_UPSAMPLER_API_KEY": "sandbox",
    "SMI_ADMIN_EMAIL": "admin@shop.example.com",
    "SMI_ALLOW_PRIVATE_ADDRESSES": "true",
    "SMI_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "SMI_SWEEP_SECONDS": "0.3",
    "SMI_RING_AGAIN_SECONDS": "1",
    "SMI_POLL_SECONDS": "3",
    "SMI_PAYMENT_TIMEOUT_HOURS": "0.6",
    "SMI_DELAYED_PAYMENT_DAYS": "0.04",
    "SMI_PENDING_TIMEOUT_HOURS": "0.05",
    "SMI_PROCESSING_TIMEOUT_MINUTES": "0.5",
    "SMI_REFUND_DELAY_MINUTES": "0.2",
    "SMI_DOWNLOAD_EXPIRY_HOURS": "1",
    "SMI_FETCH_TIMEOUT_SECONDS": "5",
    "SMI_RESULT_TIMEOUT_SECONDS": "8",
}

OPEN_EFFECTS = (
    "SELECT count(*) FROM wp_smi_effects WHERE state = 'claimed' OR (state = 'due' AND due_at <= %(soon)s)"
)
OPEN_EVENTS = (
    "SELECT count(*) FROM wp_smi_inbox WHERE state = 'received' OR (state = 'parked' AND due_at <= %(soon)s)"
)
UNFINISHED = (
    "SELECT (SELECT count(*) FROM wp_smi_jobs WHERE status IN ('awaiting_payment', 'pending', 'processing'))"
    " + (SELECT count(*) FROM wp_smi_refunds WHERE state IN ('requested', 'submitted'))"
    " + (SELECT count(*) FROM wp_smi_inbox WHERE state IN ('received', 'parked'))"
)


class System:
    """Everything that runs, over one folder. The guard ends it all, however this process ends."""

    def __init__(self, folder: Path, seed: int) -> None:
        # PostgreSQL runs as another user, below it.
        folder.chmod(0o711)
        self.folder = folder
        self.ahead = timedelta()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        plain = {name: value for name, value in os.environ.items() if not name.startswith("SMI_")}
        environment = {**plain, MARK: str(folder)}
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.guard", str(folder)],
            stdin=subprocess.PIPE, cwd=Path(__file__).parents[2], start_new_session=True,
        )  # fmt: skip
        web, downloads = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.broker = Broker(folder / "broker", environment)
        self.broker.start()
        self.database = Postgres(folder / "postgres", environment)
        self.database.create()
        webhooks = f"http://{web}/webhooks/stripe"
        self.providers = Providers(folder / "sandbox", environment, webhooks, seed)
        where = self.providers.where
        self.variables = {
            **SETTINGS,
            "SMI_ENV_FILE": os.devnull,
            "SMI_VAR_DIR": str(folder / "var"),
            "SMI_DATABASE_URL": self.database.url,
            "SMI_BROKER_URL": self.broker.url,
            "SMI_WEB_BIND": web,
            "SMI_DOWNLOADS_BIND": downloads,
            "SMI_PUBLIC_URL": f"http://{web}",
            "SMI_DOWNLOADS_URL": f"http://{downloads}",
            "SMI_STRIPE_API_BASE": where["stripe"],
            "SMI_UPSAMPLER_API_BASE": where["upsampler_api_base"],
            "SMI_SMTP_URL": where["smtp"],
        }
        self.settings = _settings(self.variables)
        app = App(self.settings, ring=lambda *bell: None)
        migrate(app.database, MIGRATIONS, prefix=self.settings.table_prefix)
        app.close()
        self.site = ImageSite()
        self.fleet = Fleet(folder, {**environment, **self.variables})
        self.bank = Bank(self.providers, random.Random(f"{seed}:bank"))
        self.admin = Admin(self.settings, random.Random(f"{seed}:admin"), self._refund_at_stripe)
        wait_for(self.broker.is_up, "the broker")
        self.fleet.start_all()

    def live(self, *lives: Callable[[threading.Event], None]) -> None:
        """Let bank and admin act beside everything else."""
        for life in lives:
            thread = threading.Thread(target=life, args=(self._stop,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def rest(self) -> None:
        """No more acts of bank and admin."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def travel(self) -> None:
        """Stop all processes, and start them an hour further on."""
        self.fleet.stop_all()
        self.ahead += timedelta(seconds=AHEAD_SECONDS)
        self.providers.travel(AHEAD_SECONDS)
        self.fleet.travel(self.ahead.total_seconds())
        self.admin.travel(self.ahead)
        self.fleet.start_all()

    def ask(self, query: str, **values: object) -> list[Any]:
        """The rows that a query gives; psycopg.Error while the database is away."""
        with psycopg.connect(self.database.url, connect_timeout=2, options="-c timezone=UTC") as connection:
            return connection.execute(query, values).fetchall()

    def open_work(self, within_seconds: float = SOON_SECONDS) -> tuple[int, int]:
        """Effects and events that are due, or soon will be."""
        soon = (datetime.now(UTC) + self.ahead + timedelta(seconds=within_seconds)).replace(tzinfo=None)
        return self.ask(OPEN_EFFECTS, soon=soon)[0][0], self.ask(OPEN_EVENTS, soon=soon)[0][0]

    def unfinished(self) -> int:
        """Sales and refunds that have not ended, and events that wait for something."""
        return int(self.ask(UNFINISHED)[0][0])

    def states(self) -> dict[str, int]:
        """How many jobs are in which state."""
        return dict(self.ask("SELECT status, count(*) FROM wp_smi_jobs GROUP BY status"))

    def close(self) -> None:
        """End everything that was started."""
        self.site.close()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def last_lines(self, count: int) -> str:
        """The end of every log."""
        logs: Sequence[Path] = sorted([*self.folder.glob("*.log"), *self.folder.glob("*/log")])
        return "\n".join(
            f"--- {path.relative_to(self.folder)}\n"
            + "\n".join(path.read_text(errors="replace").splitlines()[-count:])
            for path in logs
        )

    def _refund_at_stripe(self, intent: str) -> None:
        self.providers.post("stripe", "stripe/dashboard/refunds", {"payment_intent": intent})


def _settings(variables: dict[str, str]) -> Settings:
    saved = dict(os.environ)
    os.environ.update(variables)
    try:
        return load_settings()
    finally:
        os.environ.clear()
        os.environ.update(saved)
