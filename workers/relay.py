"""Owns the relay: rings whatever is due and nobody works on, timers and lost messages alike. Run by the Procfile.

It decides nothing: it reads ids and rings. Any number of relays may run; none may run for a while.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta

import peewee

from smi_workflow.app import App, open_process
from smi_workflow.engine.unit import EVENT_ACTOR, EVENT_QUEUE, Bell
from smi_workflow.errors import SmiError
from smi_workflow.integrations.broker import Doorbell, make_broker
from workers.process import broker_url

PAGE = 500

log = logging.getLogger(__name__)


class Relay:
    """Sweeps the database, and rings.

    Args:
        again: how long a ring is given to have its effect before the next one for the same id.
    """

    def __init__(self, app: App, again: timedelta) -> None:
        self._app = app
        self._again = again
        self._rung: dict[str, datetime] = {}
        effects = [effect for flow in app.engine.workflows.values() for effect in flow.effects().values()]
        self._queues = sorted({effect.queue for effect in effects})

    def sweep(self) -> int:
        """Ring everything that is due and was not rung of late; returns how many."""
        now = self._app.clock.now()
        bells = [*self._due_effects(now), *self._due_events(now)]
        fresh = [
            bell
            for bell in bells
            if now - self._rung.get(bell.message_id, datetime.min.replace(tzinfo=now.tzinfo)) >= self._again
        ]
        for bell in fresh:
            self._app.engine.ring(bell)
        # Only what is still due is remembered: the rest has been worked on.
        self._rung = {bell.message_id: self._rung.get(bell.message_id, now) for bell in bells}
        self._rung |= {bell.message_id: now for bell in fresh}
        return len(fresh)

    def _due_effects(self, now: datetime) -> Iterable[Bell]:
        outbox = self._app.engine.outbox
        for queue in self._queues:
            yield from (
                Bell(due.id, due.name, due.queue) for due in outbox.due(queue, now, PAGE) if not due.is_fresh
            )
        yield from (Bell(due.id, due.name, due.queue) for due in outbox.lapsed(now, PAGE))

    def _due_events(self, now: datetime) -> Iterable[Bell]:
        due = self._app.inbox.due(now, PAGE)
        return (Bell(event.id, EVENT_ACTOR, EVENT_QUEUE) for event in due if not event.is_fresh)


def run(relay: Relay, stop: threading.Event, pause_seconds: float) -> None:
    """Sweep until told to stop; a database that is away is waited for."""
    while not stop.is_set():
        try:
            relay.sweep()
        except peewee.PeeweeException as trouble:
            log.error("the database cannot be read: %s", trouble)
            # The engine forgets what is broken; one that cannot even be closed must not end the relay.
            with suppress(peewee.PeeweeException):
                relay._app.database.close()
            stop.wait(2.0)
        stop.wait(pause_seconds)


def main() -> int:
    """Run the relay until SIGTERM or SIGINT; returns the exit status."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        app = open_process()
        doorbell = Doorbell(make_broker(broker_url(app.settings)))
    except SmiError as error:
        sys.stderr.write(f"relay: {error}\n")
        return 2
    app.ring_through(doorbell)
    log.info("relay: sweeping every %g s", app.settings.sweep_seconds)
    run(Relay(app, timedelta(seconds=app.settings.ring_again_seconds)), stop, app.settings.sweep_seconds)
    app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
