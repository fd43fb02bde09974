"""Owns what a worker process needs beside its App: a broker, and a stop signal that counts once.

Called by its siblings.
"""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType

from smi_workflow.integrations.embedded_broker import EmbeddedBroker, ensure_embedded_broker
from smi_workflow.settings import Settings

log = logging.getLogger(__name__)

SAME_SIGNAL_SECONDS = 2.0

# Held for the life of the process: the embedded broker ends with its last user.
_embedded: list[EmbeddedBroker] = []


def stop_once() -> None:
    """Let one stop signal that arrives twice count once.

    A process manager signals the whole group, and Dramatiq's main process passes the signal on as well; workers
    take the second for "at once", and would drop what they are doing. A later signal still means that.
    """
    passed_on = signal.getsignal(signal.SIGTERM)
    last = -SAME_SIGNAL_SECONDS

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SAME_SIGNAL_SECONDS and callable(passed_on):
            last = now
            passed_on(number, frame)

    signal.signal(signal.SIGTERM, stop)


def broker_url(settings: Settings) -> str:
    """The configured broker, or the embedded one, started if nobody has yet.

    Raises:
        ConfigError: the embedded one cannot be started.
    """
    if settings.broker_url:
        return settings.broker_url
    if not _embedded:
        _embedded.append(ensure_embedded_broker(settings.var_dir))
        log.warning(
            "SMI_BROKER_URL is not set: using %s. Production wants a broker of its own.", _embedded[0].description
        )
    return _embedded[0].url
