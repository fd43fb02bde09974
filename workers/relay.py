"""Owns the relay's process: rings whatever is due and nobody works on, for ever. Run by the Procfile."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

import peewee
from peewee import Database

from smi_workflow.app import open_process
from smi_workflow.engine.relay import Relay
from smi_workflow.errors import SmiError, TransitionConflict
from smi_workflow.integrations.broker import Doorbell, make_broker
from smi_workflow.jobs.schedule import set_up_schedules
from workers.process import broker_url

log = logging.getLogger(__name__)


def run(
    relay: Relay, database: Database, stop: threading.Event, pause_seconds: float,
    begin: Callable[[], object] = bool,
) -> None:  # fmt: skip
    """Sweep until told to stop; a database that is away is waited for.

    Args:
        begin: done once, before the first sweep.
    """
    has_begun = False
    while not stop.is_set():
        try:
            if not has_begun:
                begin()
                has_begun = True
            relay.sweep()
        except (peewee.PeeweeException, TransitionConflict) as trouble:
            log.error("the database cannot be read: %s", trouble)
            # The engine forgets what is broken; one that cannot even be closed must not end the relay.
            with suppress(peewee.PeeweeException):
                database.close()
            stop.wait(2.0)
        stop.wait(pause_seconds)


def main() -> int:
    """Run the relay until SIGTERM or SIGINT; returns the exit status."""
    stop = threading.Event()
    try:
        app = open_process()
        doorbell = Doorbell(make_broker(broker_url(app.settings)))
    except SmiError as error:
        sys.stderr.write(f"relay: {error}\n")
        return 2
    # Not before: whoever waits for the database can be stopped at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    app.ring_through(doorbell)
    log.info("relay: sweeping every %g s", app.settings.sweep_seconds)
    relay = Relay(app.engine, app.inbox, timedelta(seconds=app.settings.ring_again_seconds))
    run(relay, app.database, stop, app.settings.sweep_seconds, partial(set_up_schedules, app.engine))
    app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
