"""Owns the Dramatiq actors: one per effect, one for events. Run by `dramatiq workers.actors -Q <queues>`.

Importing this module wires the whole system from the environment, as the `dramatiq` command expects. An actor
claims, performs and settles by id. It never raises: the row and not the message decides what is tried again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress

import dramatiq
import peewee
from dramatiq import Broker, Middleware

from smi_workflow.app import App, open_process
from smi_workflow.engine.points import Point, reach
from smi_workflow.engine.unit import EVENT_ACTOR, EVENT_QUEUE
from smi_workflow.errors import SmiError
from smi_workflow.integrations.broker import Doorbell, make_broker
from workers.process import broker_url, stop_once

log = logging.getLogger(__name__)


class Connections(Middleware):
    """Ends a thread's database connection with the thread."""

    def __init__(self, app: App) -> None:
        self._app = app

    def before_worker_thread_shutdown(self, broker: Broker, thread: object) -> None:
        """Called by Dramatiq in the thread that stops."""
        if not self._app.database.is_closed():
            self._app.database.close()


def declare(app: App, broker: Broker) -> None:
    """Give the broker an actor for every effect of every workflow, and one for events."""
    for flow in app.engine.workflows.values():
        for effect in flow.effects().values():
            if effect.name not in broker.get_declared_actors():
                work = _guarded(app, app.performer.perform)
                dramatiq.actor(actor_name=effect.name, queue_name=effect.queue, broker=broker)(work)
    handle_event = _guarded(app, app.inbox.handle)
    dramatiq.actor(actor_name=EVENT_ACTOR, queue_name=EVENT_QUEUE, broker=broker)(handle_event)


def _guarded(app: App, work: Callable[[str], object]) -> Callable[[str], None]:
    def perform(message_id: str) -> None:
        reach(Point.MESSAGE_TAKEN)
        try:
            work(message_id)
        except (peewee.PeeweeException, SmiError) as trouble:
            # The row is as it was, or under a lease that will lapse: the relay rings again.
            log.error("%s could not be handled now: %s", message_id, trouble)
            with suppress(peewee.PeeweeException):
                app.database.close()
        reach(Point.MESSAGE_HANDLED)

    return perform


def main() -> None:
    """Wire everything; called on import."""
    try:
        app = open_process()
        broker = make_broker(broker_url(app.settings))
    except SmiError as error:
        sys.exit(f"worker: {error}")
    broker.add_middleware(Connections(app))
    app.ring_through(Doorbell(broker))
    dramatiq.set_broker(broker)
    declare(app, broker)
    stop_once()


main()
