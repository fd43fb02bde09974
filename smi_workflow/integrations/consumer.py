"""Owns how a worker takes messages from Redis: at once, unpolled, through any outage. Called by broker.py."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import uuid4

import redis
from dramatiq import Broker, Consumer, Message, MessageProxy, Middleware, Worker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import dq_name
from dramatiq.errors import DecodeError

logger = logging.getLogger(__name__)

# One wait on an empty queue. Shorter costs commands, longer delays the end of a worker.
WAIT_SECONDS = 1
RETRY_SECONDS = 0.5
STOPPING_POLL_SECONDS = 0.05
GATHER_SECONDS = 0.002
# Dramatiq takes a worker for dead after 60 s without a command; one whose threads are all busy sends only this.
HEARTBEAT_SECONDS = 15.0
# In a million. Maintenance returns what dead workers had taken; Dramatiq's own 1,000 fits polling, not waiting.
MAINTENANCE_CHANCE = 10_000

# redis.TimeoutError is no redis.ConnectionError; a refusal (disk full, loading, replica) passes like an outage.
REDIS_AWAY = (redis.RedisError, OSError)


class Outage:
    """Logs once that the broker is away and once that it is back, whichever threads notice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None

    @property
    def away(self) -> bool:
        """True between `lost` and `back`."""
        return self._since is not None

    def lost(self, error: BaseException) -> None:
        """Note a failure; the first of an outage is logged."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                logger.warning("The broker is away, the database keeps what is due: %s", error)

    def back(self) -> None:
        """Note a success; the first after an outage is logged."""
        if self._since is None:
            return
        with self._lock:
            if self._since is not None:
                logger.warning("The broker is back after %.1f s", time.monotonic() - self._since)
                self._since = None


class BlockingRedisBroker(RedisBroker):
    """Dramatiq's Redis broker with consumers that wait in the server instead of polling it."""

    def __init__(self, client: redis.Redis, waiting_client: redis.Redis) -> None:
        """Connect nothing yet.

        Args:
            client: for every command that returns at once.
            waiting_client: for the waits, on connections of its own: a waiting connection serves nobody else,
                and its socket time-out must exceed WAIT_SECONDS.
        """
        super().__init__(  # type: ignore[no-untyped-call]
            client=client, middleware=[], maintenance_chance=MAINTENANCE_CHANCE
        )
        self.waiting_client = waiting_client
        self.outage = Outage()
        self.stopping = threading.Event()
        self.add_middleware(_StopWaiting(self.stopping))

    @property
    def consumer_class(self) -> type[BlockingConsumer]:
        """What `consume` builds."""
        return BlockingConsumer

    def enqueue_all(self, messages: Sequence[Message[Any]]) -> None:
        """Enqueue many in one trip: what Dramatiq's script does for one, for all at once."""
        with self.client.pipeline(transaction=True) as trip:
            for queue, group in groupby(sorted(messages, key=attrgetter("queue_name")), attrgetter("queue_name")):
                copies = [message.copy(options={"redis_message_id": str(uuid4())}) for message in group]
                names = [copy.options["redis_message_id"] for copy in copies]
                data = [part for name, copy in zip(names, copies, strict=True) for part in (name, copy.encode())]
                trip.hset(f"{self.namespace}:{queue}.msgs", items=data)
                trip.rpush(f"{self.namespace}:{queue}", *names)
            trip.execute()

    def close(self) -> None:
        """Close every connection; the next command would open one again."""
        self.client.close()
        self.waiting_client.close()


class _StopWaiting(Middleware):
    """Tells the consumers that the worker is ending, while its threads still finish what they have."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._stopping.clear()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._stopping.set()


class BlockingConsumer(Consumer):
    """One queue's consumer. `__next__` runs in its thread; `ack` and `nack` come from the worker's threads."""

    def __init__(self, broker: BlockingRedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        self._broker = broker
        self._queue = queue_name
        self._prefetch = prefetch
        self._list_key = f"{broker.namespace}:{queue_name}"
        self._delayed = queue_name == dq_name(queue_name)
        self._fetched: deque[bytes | None] = deque()
        self._held: set[str] = set()
        self._room = threading.Event()
        self._unsettled: deque[tuple[str, str]] = deque()
        self._look_again_at = 0.0
        self._nothing_came = False

    def __next__(self) -> MessageProxy | None:
        if not self._fetched:
            try:
                self._settle_again()
                self._fetched.extend(self._fetch_or_wait())
            except REDIS_AWAY as error:
                self._broker.outage.lost(error)
                self._pause(RETRY_SECONDS)
        return self._take()

    def ack(self, message: MessageProxy) -> None:
        """Forget a message that was processed, later if the broker is away: no worker thread waits for it."""
        self._settle("ack", message)

    def nack(self, message: MessageProxy) -> None:
        """Move a message to the dead letters, later if the broker is away."""
        self._settle("nack", message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give back what was taken and not begun; what cannot be given back is rung again by the sweep."""
        self._give_back([message.options["redis_message_id"] for message in messages])

    def close(self) -> None:
        """Give back what was fetched and never handed out."""
        unread = [data for data in self._fetched if data is not None]
        self._fetched.clear()
        messages = [message for data in unread if (message := _decode(data, self._queue)) is not None]
        self._give_back([message.options["redis_message_id"] for message in messages])

    def _take(self) -> MessageProxy | None:
        while self._fetched:
            data = self._fetched.popleft()
            message = _decode(data, self._queue) if data is not None else None
            if message is not None:
                self._held.add(message.options["redis_message_id"])
                return MessageProxy(message)
        return None

    def _fetch_or_wait(self) -> list[bytes | None]:
        if self._delayed:
            return self._fetch_delayed()
        if self._broker.stopping.is_set():
            self._pause(STOPPING_POLL_SECONDS)
            return []
        self._room.clear()
        if len(self._held) >= self._prefetch:
            self._room.wait(WAIT_SECONDS)
            return []
        if self._prefetch - len(self._held) < self._prefetch // 4:
            # Busy: one fetch for several messages instead of one for each that is done.
            time.sleep(GATHER_SECONDS)
        # After a wait that brought nothing, the next one says as much as a fetch: half the commands.
        idle = self._nothing_came and time.monotonic() < self._look_again_at
        messages = [] if idle else self._fetch()
        if not messages:
            self._nothing_came = not self._wait_for_message()
            if not self._nothing_came:
                messages = self._fetch()
        return messages

    def _fetch_delayed(self) -> list[bytes | None]:
        # Delays live in SQL, so this queue is empty; looking at it is the worker's heartbeat.
        if time.monotonic() < self._look_again_at or len(self._held) >= self._prefetch:
            self._pause(WAIT_SECONDS)
            return []
        return self._fetch()

    def _fetch(self) -> list[bytes | None]:
        self._look_again_at = time.monotonic() + HEARTBEAT_SECONDS
        messages: list[bytes | None] = self._broker.do_fetch(self._queue, self._prefetch - len(self._held))
        self._broker.outage.back()
        return messages

    def _wait_for_message(self) -> bool:
        # Moving the first element onto its own place waits for one and loses none, should we die right here.
        moved = self._broker.waiting_client.blmove(self._list_key, self._list_key, WAIT_SECONDS, "LEFT", "LEFT")
        return moved is not None

    def _pause(self, seconds: float) -> None:
        if self._broker.stopping.is_set():
            time.sleep(STOPPING_POLL_SECONDS)
        else:
            self._broker.stopping.wait(seconds)

    def _settle(self, verb: str, message: MessageProxy) -> None:
        redis_id: str = message.options["redis_message_id"]
        try:
            self._command(verb, redis_id)
        except REDIS_AWAY as error:
            self._broker.outage.lost(error)
            self._unsettled.append((verb, redis_id))
        finally:
            self._held.discard(redis_id)
            self._room.set()

    def _settle_again(self) -> None:
        while self._unsettled:
            self._command(*self._unsettled[0])
            self._unsettled.popleft()

    def _give_back(self, redis_ids: list[str]) -> None:
        try:
            self._settle_again()
            if redis_ids:
                self._command("requeue", *redis_ids)
        except REDIS_AWAY as error:
            self._broker.outage.lost(error)

    def _command(self, verb: str, *redis_ids: str) -> None:
        getattr(self._broker, f"do_{verb}")(self._queue, *redis_ids)


def _decode(data: bytes, queue: str) -> Message[Any] | None:
    try:
        message: Message[Any] = Message.decode(data)
    except DecodeError as error:
        logger.error("A message on queue %s cannot be read and is dropped: %s", queue, error)
        return None
    if "redis_message_id" not in message.options:
        logger.error("A message on queue %s was not put there by Dramatiq and is dropped", queue)
        return None
    return message
