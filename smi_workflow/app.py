"""Owns the wiring: settings → clients, engine, handlers, as one App. Called by workers, web, cli and scripts.

Example:
    with open_app() as app:
        job = app.jobs.get_job(job_id)
        app.jobs.fire(job_id, "retry", actor="admin:jane", reason="Upsampler outage is over")
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import blinker
from peewee import Database

from smi_workflow.effects.registry import handlers
from smi_workflow.effects.upscale import url_refusal
from smi_workflow.effects.world import Arrivals, Outside, World
from smi_workflow.engine.clock import Chance, Clock, SystemChance, SystemClock
from smi_workflow.engine.database import open_database
from smi_workflow.engine.fire import Engine, Ring
from smi_workflow.engine.inbox import Inbox
from smi_workflow.engine.leases import LeaseKeeper
from smi_workflow.engine.migrate import check_current
from smi_workflow.engine.perform import Performer
from smi_workflow.engine.tables import Tables
from smi_workflow.engine.unit import Applied
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import DatabaseAway
from smi_workflow.intake import StripeReader, reduce_stripe_event, translators, without_person
from smi_workflow.integrations.bell_ringer import BellRinger
from smi_workflow.integrations.broker import Doorbell, make_broker
from smi_workflow.integrations.embedded_broker import embedded_broker_url
from smi_workflow.integrations.fetching import fetch
from smi_workflow.integrations.hooks import TOTAL_SECONDS as HOOK_SECONDS
from smi_workflow.integrations.hooks import HookPoster
from smi_workflow.integrations.letters import LetterWriter
from smi_workflow.integrations.mailer import Mailer
from smi_workflow.integrations.storage import FileStorage, ImageLimits, StoredImage
from smi_workflow.integrations.stripe_api import StripeApi
from smi_workflow.integrations.upsampler_api import UpsamplerClient
from smi_workflow.jobs.alerts import ALERT, raise_for_event
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.manager import JobManager
from smi_workflow.jobs.model import JobTables
from smi_workflow.jobs.refunds import REFUND
from smi_workflow.jobs.schedule import SCHEDULE
from smi_workflow.settings import Settings, load_settings

# A server that starts beside us, or is started anew, is there within this time.
DATABASE_WAIT_SECONDS = 60.0
TELL_EVERY_SECONDS = 10
MIGRATIONS = Path(__file__).parent / "migrations"
WORKFLOWS: Sequence[Workflow] = (JOB, REFUND, ALERT, SCHEDULE)

# In-process hooks: smi_job_created, smi_payment_completed, smi_job_completed, smi_job_failed. Sent after the
# commit, in the process that fired; the sender is the Applied transition.
hooks = blinker.Namespace()

log = logging.getLogger(__name__)


class App:
    """Everything, wired. Close it when done; `open_app` does."""

    def __init__(
        self,
        settings: Settings,
        *,
        ring: Ring | None = None,
        clock: Clock | None = None,
        chance: Chance | None = None,
        outside: Outside | None = None,
        workflows: Sequence[Workflow] = WORKFLOWS,
        keeper: Callable[[Engine], LeaseKeeper] = LeaseKeeper,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.database: Database = open_database(settings.database_url)
        self.tables = Tables.bound_to(self.database, settings.table_prefix)
        self.job_tables = JobTables.bound_to(self.database, settings.table_prefix)
        self._doorbell: Doorbell | BellRinger | None = None
        self.engine = Engine(
            self.database,
            self.tables,
            workflows,
            self.job_tables.by_declaration(),
            clock=self.clock,
            chance=chance or SystemChance(),
            ring=ring or self._ring,
            lease=timedelta(seconds=settings.lease_seconds),
            policy=settings,
        )
        self.engine.listeners.append(_announce)
        self.outside = outside or reach_outside(settings)
        self.storage = self.outside.storage
        self.stripe = self.outside.stripe
        read = translators(self.engine, lambda url: url_refusal(self.world, url))
        self.inbox = Inbox(self.engine, read, without_person, raise_for_event)
        self.world = World(
            settings=settings, engine=self.engine, clock=self.clock, outside=self.outside,
            arrivals=Arrivals(self.inbox, reduce_stripe_event, StripeReader(self.engine).kinds),
        )  # fmt: skip
        held = handlers(self.world)
        if workflows is not WORKFLOWS:
            # Another release's: it may lack an effect that we have code for.
            known = {name for flow in workflows for name in flow.effects()}
            held = {name: handler for name, handler in held.items() if name in known}
        self.performer = Performer(self.engine, held, keeper(self.engine))
        self.jobs = JobManager(
            self.engine, settings, self._keep_source, self.performer.perform, pause,
            ask_session=self.stripe.retrieve_checkout_session,
        )  # fmt: skip

    def check_schema(self) -> None:
        """Refuse to run on a database that `smi migrate` has not brought up to date.

        Raises:
            ConfigError: names what is pending.
        """
        check_current(self.database, MIGRATIONS, prefix=self.settings.table_prefix)

    def ring_through(self, doorbell: Doorbell | BellRinger) -> None:
        """Use a doorbell that a process has already, instead of one made on first use."""
        self._doorbell = doorbell

    def close(self) -> None:
        """Close this thread's connections."""
        if self._doorbell is not None:
            self._doorbell.close()
        self.stripe.close()
        if not self.database.is_closed():
            self.database.close()

    def _ring(self, message_id: str, actor_name: str, queue: str) -> None:
        if self._doorbell is None:
            # A short-lived command does not start a broker for a hint; the relay rings what it could not.
            url = self.settings.broker_url or embedded_broker_url(self.settings.var_dir)
            if url is None:
                return
            self._doorbell = Doorbell(make_broker(url))
        self._doorbell.ring(message_id, actor_name, queue)

    def _keep_source(self, job_id: str, url: str, size: tuple[int, int]) -> StoredImage:
        limits = ImageLimits(max_bytes=self.settings.source_bytes_max, max_pixels=self.settings.output_pixels_max)
        return self.storage.store_image(
            # A name of its own each time: two requests with one key must not replace each other's image.
            f"sources/{job_id[:2]}/{job_id}/{self.engine.chance.new_id()}",
            lambda file: self.outside.fetch(url, file, self.world.source_policy(), service="source"),
            limits=limits,
            expected_size=size,
        )


def reach_outside(settings: Settings) -> Outside:
    """The real clients, as the settings name them.

    Raises:
        ConfigError: a key or an address that cannot be used.
    """
    return Outside(
        stripe=StripeApi(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base),
        upsampler=UpsamplerClient(
            settings.upsampler_api_key.get_secret_value(),
            settings.upsampler_api_base,
            image_type=settings.upsampler_image_type,
            extra_inputs=settings.upsampler_extra_inputs,
        ),
        storage=FileStorage(settings.storage_url),
        letters=LetterWriter(),
        mailer=Mailer(settings.smtp_url.get_secret_value(), settings.mail_from),
        fetch=fetch,
        hooks=HookPoster(
            [secret.get_secret_value() for secret in settings.hook_secret],
            min(HOOK_SECONDS, settings.lease_seconds / 2),
        ),
    )


@contextmanager
def open_app(settings: Settings | None = None) -> Iterator[App]:
    """Open the system for a script: settings from the environment, closed at the end.

    Raises:
        ConfigError: settings are missing or bad, or the database is not migrated.
    """
    app = App(settings or load_settings())
    try:
        app.check_schema()
        yield app
    finally:
        app.close()


def open_process(*, wait_seconds: float = DATABASE_WAIT_SECONDS) -> App:
    """Open the system for a process that stays: readable logs, settings from the environment, a current schema.

    Args:
        wait_seconds: how long a database that is away is waited for.
    Raises:
        ConfigError: settings are missing or bad, or the database is not migrated.
        DatabaseAway: it still is.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.Formatter.converter = time.gmtime
    for chatty in ("transitions", "stripe"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    app = App(load_settings())
    ends_at = time.monotonic() + wait_seconds
    waited = 0
    while True:
        try:
            app.check_schema()
            return app
        except DatabaseAway as error:
            if time.monotonic() >= ends_at:
                raise
            if waited % TELL_EVERY_SECONDS == 0:
                log.warning("waiting for the database: %s", (str(error).splitlines() or [""])[0])
        time.sleep(1.0)
        waited += 1


def _announce(applied: Applied) -> None:
    """Send the move's signal; what one receiver raises keeps it from no other one."""
    if applied.hook is None:
        return
    for receiver in hooks.signal(applied.hook).receivers_for(applied):
        try:
            receiver(applied, job_id=applied.subject_id)
        except Exception:
            log.exception("a receiver of %s failed on job %s", applied.hook, applied.subject_id)
