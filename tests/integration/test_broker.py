"""Owns the proof that rings reach handlers, and that no outage stops a worker or a caller. Called by pytest."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dramatiq
import psutil
import pytest
import redis
from dramatiq import Broker, Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from smi_workflow.engine.unit import Bell
from smi_workflow.integrations.broker import Doorbell, make_broker
from smi_workflow.integrations.consumer import BlockingConsumer, BlockingRedisBroker
from smi_workflow.integrations.embedded_broker import ensure_embedded_broker

PATIENCE_SECONDS = 30.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.02)


class Server:
    """A real server that can be hung, killed and held down."""

    def __init__(self, var_dir: Path) -> None:
        self._folder = str((var_dir / "broker").resolve())
        self.embedded = ensure_embedded_broker(var_dir)
        self.url = self.embedded.url
        self.client = redis.Redis.from_url(self.url)

    def process(self) -> psutil.Process:
        """The server's."""
        return psutil.Process(int(self.client.info("server")["process_id"]))

    @contextmanager
    def held_down(self) -> Iterator[None]:
        """Killed, with a keeper that cannot start it again."""
        server = self.process()
        keeper = server.parent()
        assert keeper is not None
        keeper.suspend()
        server.kill()
        wait_until(lambda: server.status() == psutil.STATUS_ZOMBIE, "server gone")
        try:
            yield
        finally:
            keeper.resume()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Listening, and answering nothing."""
        server = self.process()
        server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            server.send_signal(signal.SIGCONT)

    def wait(self) -> None:
        """Until it answers."""
        wait_until(self._answers, "server up again")

    def _answers(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def close(self) -> None:
        """Let go of it."""
        self.client.close()
        self.embedded.release()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="smi-") as folder:
        server = Server(Path(folder))
        yield server
        server.wait()
        process = server.process()
        server.close()
        wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "server ended")


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.wait()
    shared_server.client.flushall()
    return shared_server


@pytest.fixture
def broker(server: Server) -> Iterator[BlockingRedisBroker]:
    broker = make_broker(server.url)
    assert isinstance(broker, BlockingRedisBroker)
    yield broker
    broker.close()


@pytest.fixture
def doorbell(server: Server) -> Iterator[Doorbell]:
    """On a broker of its own, as in another process, with no Dramatiq actor declared."""
    doorbell = Doorbell(make_broker(server.url))
    yield doorbell
    doorbell.close()


class Handled:
    """The ids that reached the Dramatiq actors, in order."""

    def __init__(self) -> None:
        self.ids: list[str] = []


@contextmanager
def working(broker: Broker, *queues: str, threads: int = 2) -> Iterator[Handled]:
    """A real worker with one actor `run_<queue>` per queue."""
    handled = Handled()
    for queue in queues:
        dramatiq.actor(broker=broker, queue_name=queue, actor_name=f"run_{queue}")(handled.ids.append)
    worker = Worker(broker, worker_threads=threads)
    worker.start()
    try:
        yield handled
    finally:
        worker.stop()


def consume(broker: BlockingRedisBroker, prefetch: int) -> BlockingConsumer:
    consumer = broker.consume("effects", prefetch, 1000)
    assert isinstance(consumer, BlockingConsumer)
    return consumer


def test_rings_reach_handlers_on_their_queues(broker: BlockingRedisBroker, doorbell: Doorbell) -> None:
    with working(broker, "effects", "events") as handled:
        for number in range(50):
            assert doorbell.ring(f"effect-{number}", "run_effects", "effects")
            assert doorbell.ring(f"event-{number}", "run_events", "events")
        wait_until(lambda: len(handled.ids) == 100, "all handled")

    assert len(set(handled.ids)) == 100
    assert broker.client.hlen("dramatiq:effects.msgs") == 0


def test_many_threads_ring_one_doorbell(broker: BlockingRedisBroker, doorbell: Doorbell) -> None:
    with ThreadPoolExecutor(8) as threads:
        rung = list(threads.map(lambda n: doorbell.ring(str(n), "run_effects", "effects"), range(200)))

    assert all(rung)
    assert broker.client.llen("dramatiq:effects") == 200


def test_many_bells_rung_together_reach_the_same_handlers(
    server: Server, broker: BlockingRedisBroker, doorbell: Doorbell
) -> None:
    """What goes out in one trip is written past Dramatiq's script: a real worker finds it, and clears it away."""
    bells = [Bell(str(number), f"run_{queue}", queue) for number in range(50) for queue in ("effects", "events")]
    assert doorbell.ring_all(bells)
    assert broker.client.llen("dramatiq:effects") == 50
    with working(broker, "effects", "events") as handled:
        wait_until(lambda: len(handled.ids) == 100, "all handled")
        wait_until(lambda: not broker.client.keys("dramatiq:*.msgs"), "nothing left behind")
    assert sorted(handled.ids) == sorted(bell.message_id for bell in bells)


def test_an_idle_worker_waits_in_the_server(broker: BlockingRedisBroker, doorbell: Doorbell) -> None:
    def blocked_clients() -> int:
        return int(broker.client.info("clients")["blocked_clients"])

    with working(broker, "effects", "events") as handled:
        wait_until(lambda: blocked_clients() == 2, "one wait per queue, none for the delay queues")
        assert doorbell.ring("effect-1", "run_effects", "effects")
        wait_until(lambda: handled.ids == ["effect-1"], "handled")
        wait_until(lambda: blocked_clients() == 2, "waiting again")


def test_two_workers_waiting_on_one_queue_lose_and_double_nothing(server: Server, doorbell: Doorbell) -> None:
    brokers = [make_broker(server.url) for _ in range(2)]
    with working(brokers[0], "effects") as one, working(brokers[1], "effects") as other:
        for number in range(200):
            assert doorbell.ring(str(number), "run_effects", "effects")
        wait_until(lambda: len(one.ids) + len(other.ids) >= 200, "all handled")

    assert sorted(one.ids + other.ids, key=int) == [str(number) for number in range(200)]
    for broker in brokers:
        broker.close()


def test_a_full_consumer_takes_the_next_message_when_one_is_done(
    broker: BlockingRedisBroker, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smi_workflow.integrations.consumer.WAIT_SECONDS", 2 * PATIENCE_SECONDS)
    for number in range(2):
        assert doorbell.ring(str(number), "run_effects", "effects")
    consumer = consume(broker, prefetch=1)
    first = next(consumer)
    assert first is not None
    taken: list[object] = []
    reader = threading.Thread(
        target=lambda: taken.append(next(message.args for message in consumer if message is not None)), daemon=True
    )
    reader.start()
    consumer.ack(first)
    reader.join(PATIENCE_SECONDS)

    assert taken == [("1",)]


def test_what_was_taken_and_not_begun_is_given_back(broker: BlockingRedisBroker, doorbell: Doorbell) -> None:
    for number in range(5):
        assert doorbell.ring(str(number), "run_effects", "effects")
    consumer = consume(broker, prefetch=5)
    taken = next(consumer)
    assert taken is not None

    consumer.requeue([taken])
    consumer.close()

    assert broker.client.llen("dramatiq:effects") == 5
    assert [key for key in broker.client.keys("dramatiq:__acks__*") if broker.client.scard(key)] == []


def test_what_cannot_be_read_is_dropped(
    broker: BlockingRedisBroker, doorbell: Doorbell, caplog: pytest.LogCaptureFixture
) -> None:
    broker.client.hset("dramatiq:effects.msgs", mapping={"a": b"no message", "b": b"{}"})
    broker.client.rpush("dramatiq:effects", "a", "b", "without data")
    assert doorbell.ring("effect-1", "run_effects", "effects")

    with working(broker, "effects") as handled:
        wait_until(lambda: handled.ids == ["effect-1"], "the good one handled")

    assert sum("cannot be read" in record.getMessage() for record in caplog.records) == 2
    assert not [record for record in caplog.records if record.levelno >= logging.CRITICAL]


def test_a_delayed_message_is_still_delivered(broker: BlockingRedisBroker) -> None:
    message: dramatiq.Message[None] = dramatiq.Message(
        queue_name="effects", actor_name="run_effects", args=("late",), kwargs={}, options={}
    )
    broker.enqueue(message, delay=1)

    with working(broker, "effects") as handled:
        wait_until(lambda: handled.ids == ["late"], "handled")


@pytest.mark.parametrize("outage", ["held_down", "hung"])
def test_a_worker_survives_an_outage(
    server: Server,
    broker: BlockingRedisBroker,
    doorbell: Doorbell,
    caplog: pytest.LogCaptureFixture,
    outage: str,
) -> None:
    caplog.set_level(logging.INFO)
    with working(broker, "effects", "events") as handled:
        assert doorbell.ring("before", "run_effects", "effects")
        wait_until(lambda: handled.ids == ["before"], "handled before")
        caplog.clear()
        with getattr(server, outage)():
            wait_until(lambda: broker.outage.away, "outage noticed")
            assert doorbell.ring("during", "run_effects", "effects") is False
        server.wait()
        wait_until(lambda: doorbell.ring("after", "run_effects", "effects"), "ringing again")
        wait_until(lambda: "after" in handled.ids, "handled after")

    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.CRITICAL]
    assert any("is away" in record.getMessage() for record in caplog.records)
    assert any("is back" in record.getMessage() for record in caplog.records)


def test_a_message_done_during_an_outage_is_settled_after_it(
    server: Server, broker: BlockingRedisBroker, doorbell: Doorbell
) -> None:
    assert all(doorbell.ring(name, "run_effects", "effects") for name in ("done", "unread"))
    consumer = consume(broker, prefetch=2)
    message = next(consumer)
    assert message is not None
    with server.held_down():
        consumer.ack(message)
        consumer.close()
    server.wait()
    assert broker.client.hlen("dramatiq:effects.msgs") == 2
    while broker.outage.away:
        next(consumer)

    assert broker.client.hlen("dramatiq:effects.msgs") == 1


def test_a_flush_loses_messages_and_nothing_else(
    server: Server, broker: BlockingRedisBroker, doorbell: Doorbell, caplog: pytest.LogCaptureFixture
) -> None:
    with working(broker, "effects") as handled:
        for number in range(300):
            doorbell.ring(str(number), "run_effects", "effects")
            if number % 50 == 0:
                server.client.flushall()
                server.client.script_flush()
        wait_until(lambda: doorbell.ring("last", "run_effects", "effects"), "ringing")
        wait_until(lambda: "last" in handled.ids, "handled after the flush")

    assert not [record for record in caplog.records if record.exc_info]


def test_a_worker_ends_without_its_broker(
    server: Server, broker: BlockingRedisBroker, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as outage, working(broker, "effects"):
        outage.enter_context(server.held_down())

    assert not [record for record in caplog.records if record.exc_info]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:{port}/0", "unix:///nowhere/{port}.sock", "amqp://127.0.0.1:{port}"]
)
def test_a_broker_that_is_not_there_costs_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    doorbell = Doorbell(make_broker(url.format(port=closed_port())))

    assert [doorbell.ring(str(number), "run_effects", "effects") for number in range(20)] == [False] * 20

    lines = [record for record in caplog.records if record.name.startswith("smi_workflow")]
    assert len(lines) == 1
    doorbell.close()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_does_not_answer_is_away(scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        doorbell = Doorbell(make_broker(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"))

        assert doorbell.ring("effect-1", "run_effects", "effects") is False

        doorbell.close()


def test_a_wrong_password_is_an_outage_too(server: Server) -> None:
    with tempfile.TemporaryDirectory(prefix="smi-") as folder:
        protected = ensure_embedded_broker(Path(folder) / ("x" * 100))
        doorbell = Doorbell(make_broker(protected.url.replace("redis://:", "redis://:not-")))

        assert doorbell.ring("effect-1", "run_effects", "effects") is False

        doorbell.close()
        protected.release()


def amqp_url() -> str:
    url = os.environ.get("SMI_TEST_AMQP_URL", "")
    if not url:
        message = "needs a RabbitMQ server in SMI_TEST_AMQP_URL"
        if os.environ.get("CI_WIDE") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return url


@pytest.mark.server("rabbitmq")
def test_rabbitmq_carries_rings_from_many_threads() -> None:
    url, queue = amqp_url(), f"test-{uuid.uuid4().hex}"
    broker, doorbell = make_broker(url), Doorbell(make_broker(url))
    with working(broker, queue) as handled, ThreadPoolExecutor(8) as threads:
        rung = list(threads.map(lambda n: doorbell.ring(str(n), f"run_{queue}", queue), range(200)))
        assert all(rung)
        wait_until(lambda: len(handled.ids) >= 200, "all handled")

    assert sorted(handled.ids, key=int) == [str(number) for number in range(200)]
    doorbell.close()
    broker.close()


@pytest.mark.server("rabbitmq")
def test_rabbitmq_queues_are_made_by_the_first_ring_and_again_when_deleted() -> None:
    url, queue = amqp_url(), f"test-{uuid.uuid4().hex}"
    doorbell, janitor = Doorbell(make_broker(url)), make_broker(url)
    assert doorbell.ring("effect-1", f"run_{queue}", queue)

    assert isinstance(janitor, RabbitmqBroker)
    janitor.channel.queue_delete(queue)
    assert doorbell.ring("effect-2", f"run_{queue}", queue)

    broker = make_broker(url)
    with working(broker, queue) as handled:
        wait_until(lambda: handled.ids == ["effect-2"], "handled")
    for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
        janitor.channel.queue_delete(name)
    for closable in (doorbell, broker, janitor):
        closable.close()
