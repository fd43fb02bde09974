"""Owns the doorbell: the Dramatiq broker from a URL, and ringing one id through it. Called by app.py and workers.

A message carries one id and nothing else; the database is the queue. So no ring matters: what is lost is rung
again by the sweep. No middleware of Dramatiq's runs here, on purpose: retries, time limits, ageing and results are
the rows' business, and an exception raised asynchronously into a handler (TimeLimit, ShutdownNotifications) would
hit it in the middle of a transaction, where a lease that lapses does the same job safely.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pika.exceptions  # type: ignore[import-untyped]
import redis
from dramatiq import Broker, Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import BrokerError
from redis.backoff import NoBackoff
from redis.retry import Retry

from smi_workflow.engine.unit import Bell
from smi_workflow.errors import ConfigError
from smi_workflow.integrations.consumer import WAIT_SECONDS, BlockingRedisBroker, Outage

CONNECT_SECONDS = 1.0
COMMAND_SECONDS = 2.0
PUBLISH_SECONDS = 2.0
QUIET_SECONDS = 1.0

BROKER_AWAY = (BrokerError, redis.RedisError, pika.exceptions.AMQPError, OSError)


def make_broker(url: str) -> Broker:
    """Build the broker; nothing is connected before the first message.

    Args:
        url: redis://, rediss://, unix:// (a Redis server's socket), amqp:// or amqps://. Options in the query
            string go to redis-py or pika and win over the defaults here.
    Raises:
        ConfigError: the URL cannot be used. The URL is not repeated: it may hold a password.
    """
    scheme = url.partition("://")[0]
    try:
        if scheme in ("redis", "rediss", "unix"):
            return _redis_broker(url)
        if scheme in ("amqp", "amqps"):
            return _rabbitmq_broker(url)
    except (ValueError, TypeError, SyntaxError):
        shape = "unix:///path?db=0" if scheme == "unix" else f"{scheme}://user:password@host:port/name"
        raise ConfigError(
            "The broker cannot be reached like this:",
            [f"SMI_BROKER_URL must look like {shape}, special characters percent-encoded"],
        ) from None
    raise ConfigError(
        "The broker cannot be reached like this:",
        ["SMI_BROKER_URL must be a redis://, rediss://, unix:// or amqp:// URL"],
    )


class Doorbell:
    """Tells workers that an id is due. A broker that is away costs the caller next to nothing."""

    def __init__(self, broker: Broker, clock: Callable[[], float] = time.monotonic) -> None:
        """Ring through a broker from `make_broker`; declares no Dramatiq actor and needs none."""
        self._broker = broker
        self._clock = clock
        self._publisher = _Publisher(broker) if isinstance(broker, RabbitmqBroker) else None
        self._enqueue: Callable[[Message[Any]], object] = (self._publisher or broker).enqueue
        self._outage = broker.outage if isinstance(broker, BlockingRedisBroker) else Outage()
        self._lock = threading.Lock()
        self._quiet_until: float | None = None

    def ring(self, message_id: str, actor_name: str, queue: str) -> bool:
        """Put one id on a queue; safe from any thread.

        Args:
            message_id: of an effect or an inbox event.
            actor_name: the Dramatiq actor's, which this process need not know.
            queue: its queue; created where the broker has none of that name.
        Returns: False when the broker is away. That is logged once per outage, tried by one caller a second, and
            answered at once to all others.
        """
        return self.ring_all([Bell(message_id, actor_name, queue)])

    def ring_all(self, bells: Sequence[Bell]) -> bool:
        """Ring for several, in one trip where the broker can."""
        if not self._may_try():
            return False
        messages: list[Message[Any]] = [
            Message(
                queue_name=bell.queue, actor_name=bell.actor_name, args=(bell.message_id,), kwargs={}, options={}
            )
            for bell in bells
        ]
        try:
            if len(messages) > 1 and isinstance(self._broker, BlockingRedisBroker):
                self._broker.enqueue_all(messages)
            else:
                for message in messages:
                    self._enqueue(message)
        except BROKER_AWAY as error:
            self._outage.lost(error)
            with self._lock:
                self._quiet_until = self._clock() + QUIET_SECONDS
            return False
        if self._quiet_until is not None:
            with self._lock:
                self._quiet_until = None
        self._outage.back()
        return True

    def close(self) -> None:
        """Close the broker's connections."""
        if self._publisher is not None:
            self._publisher.close()
        self._broker.close()

    def _may_try(self) -> bool:
        if self._quiet_until is None:
            return True
        with self._lock:
            now = self._clock()
            if self._quiet_until is not None and now < self._quiet_until:
                return False
            # While this caller tries, which may take a connection's time-out, the others need not.
            self._quiet_until = now + CONNECT_SECONDS + COMMAND_SECONDS + QUIET_SECONDS
            return True


class _Publisher:
    """Publishes from one thread of its own and waits a bounded time for it.

    pika's connections belong to the thread that opened them, so each of a web server's threads would hold one;
    and a server that hangs would hold the caller for as long as pika tries.
    """

    def __init__(self, broker: RabbitmqBroker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._pid = 0

    def enqueue(self, message: Message[Any]) -> None:
        """Publish and wait for the server's confirmation; raises TimeoutError when it takes too long."""
        future = self._thread().submit(self._broker.enqueue, message)
        try:
            future.result(timeout=PUBLISH_SECONDS)
        except TimeoutError:
            future.cancel()
            raise TimeoutError(f"no confirmation within {PUBLISH_SECONDS:g} s") from None

    def close(self) -> None:
        """Let go of the thread; whatever waits is dropped."""
        with self._lock:
            if self._executor is not None:
                self._executor.shutdown(wait=False, cancel_futures=True)
                self._executor = None

    def _thread(self) -> ThreadPoolExecutor:
        with self._lock:
            # After a fork the thread is gone, and its connection is the parent's.
            if self._executor is None or self._pid != os.getpid():
                self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="doorbell")
                self._pid = os.getpid()
            return self._executor


def _redis_broker(url: str) -> Broker:
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_SECONDS,
        "client_name": f"smi-{os.getpid()}",
        # One more try at once, for a connection that a restarted server has forgotten; patience is the callers'.
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    }
    if not url.startswith("unix://"):
        options["socket_keepalive"] = True
    client = redis.Redis.from_url(url, socket_timeout=COMMAND_SECONDS, **options)
    waiting_client = redis.Redis.from_url(url, socket_timeout=WAIT_SECONDS + COMMAND_SECONDS, **options)
    return BlockingRedisBroker(client, waiting_client)


def _rabbitmq_broker(url: str) -> Broker:
    options: dict[str, object] = {
        "connection_attempts": 1,
        "socket_timeout": CONNECT_SECONDS,
        "stack_timeout": CONNECT_SECONDS + COMMAND_SECONDS,
        "blocked_connection_timeout": 5,
        # A doorbell that nobody rings sends no AMQP heartbeats, so the kernel's keepalive watches the connection.
        "heartbeat": 0,
        "tcp_options": _keepalive(),
        "client_properties": {"connection_name": f"smi-{os.getpid()}"},
    }
    urls = []
    for one in url.split(";"):
        parts = urlsplit(one)
        query = options | dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        urls.append(parts._replace(query=urlencode(query, quote_via=quote)).geturl())
    # pika reports each failed attempt in six lines; `Outage` says it once.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    # Confirmed, because only then a queue that disappeared is noticed and declared again.
    return RabbitmqBroker(url=urls, middleware=[], confirm_delivery=True)


def _keepalive() -> dict[str, int]:
    wanted = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
    return {name: value for name, value in wanted.items() if hasattr(socket, name)}
