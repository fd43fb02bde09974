"""Owns the proof that ringing never gets in the caller's way. Called by pytest."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import QueueNotFound

from smi_workflow.integrations.broker import QUIET_SECONDS, Doorbell


class FlakyBroker(StubBroker):
    """Dramatiq's in-memory broker, with a plug that can be pulled."""

    def __init__(self) -> None:
        super().__init__(middleware=[])
        self.error: Exception | None = None
        self.attempts = 0
        self.declare_queue("effects")

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        return super().enqueue(message, delay=delay)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_message_carries_one_id_and_nothing_else() -> None:
    broker = FlakyBroker()

    assert Doorbell(broker).ring("effect-1", "run_effect", "effects")

    message = Message.decode(broker.queues["effects"].get_nowait())
    assert (message.queue_name, message.actor_name) == ("effects", "run_effect")
    assert (message.args, message.kwargs, message.options) == (("effect-1",), {}, {})


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("refused"),
        redis.TimeoutError("slow"),
        redis.ResponseError("MISCONF disk full"),
        QueueNotFound("gone"),  # type: ignore[no-untyped-call]
        OSError("no route"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_broker_that_is_away_is_an_answer_not_an_error(error: Exception) -> None:
    broker = FlakyBroker()
    broker.error = error

    assert Doorbell(broker).ring("effect-1", "run_effect", "effects") is False


def test_a_bug_is_not_taken_for_an_outage() -> None:
    broker = FlakyBroker()
    broker.error = TypeError("not the broker's fault")

    with pytest.raises(TypeError):
        Doorbell(broker).ring("effect-1", "run_effect", "effects")


def test_a_failure_quiets_the_doorbell_for_a_second() -> None:
    broker, clock = FlakyBroker(), Clock()
    doorbell = Doorbell(broker, clock)
    broker.error = redis.ConnectionError("refused")
    assert doorbell.ring("effect-1", "run_effect", "effects") is False
    broker.error = None

    clock.now += QUIET_SECONDS * 0.9
    assert doorbell.ring("effect-2", "run_effect", "effects") is False
    assert broker.attempts == 1

    clock.now += QUIET_SECONDS * 0.2
    assert doorbell.ring("effect-3", "run_effect", "effects") is True
    assert doorbell.ring("effect-4", "run_effect", "effects") is True
    assert broker.attempts == 3


def test_during_an_outage_one_caller_tries_and_the_others_do_not_wait_for_it() -> None:
    entered, leave = threading.Event(), threading.Event()

    class SlowBroker(FlakyBroker):
        def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
            if self.error is None:
                entered.set()
                leave.wait(10)
            return super().enqueue(message, delay=delay)

    broker, clock = SlowBroker(), Clock()
    doorbell = Doorbell(broker, clock)
    broker.error = redis.ConnectionError("refused")
    doorbell.ring("effect-1", "run_effect", "effects")
    broker.error = None
    clock.now += QUIET_SECONDS
    probe = threading.Thread(target=doorbell.ring, args=("effect-2", "run_effect", "effects"))
    probe.start()
    assert entered.wait(10)

    assert doorbell.ring("effect-3", "run_effect", "effects") is False

    leave.set()
    probe.join()
    assert doorbell.ring("effect-4", "run_effect", "effects") is True


def test_an_outage_is_logged_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    broker, clock = FlakyBroker(), Clock()
    doorbell = Doorbell(broker, clock)
    caplog.set_level(logging.INFO, logger="smi_workflow")
    broker.error = redis.ConnectionError("refused")
    for _ in range(3):
        doorbell.ring("effect-1", "run_effect", "effects")
        clock.now += QUIET_SECONDS
    broker.error = None
    for _ in range(3):
        doorbell.ring("effect-1", "run_effect", "effects")

    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0].split(" after")[0] for line in lines] == [
        "The broker is away",
        "The broker is back",
    ]
