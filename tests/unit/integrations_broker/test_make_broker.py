"""Owns the proof that a URL becomes the right broker, or a clear refusal. Called by pytest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from smi_workflow.errors import ConfigError
from smi_workflow.integrations.broker import make_broker
from smi_workflow.integrations.consumer import WAIT_SECONDS, BlockingConsumer, BlockingRedisBroker
from smi_workflow.integrations.embedded_broker import Address, embedded_broker_url


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:6379/3", "rediss://:pass@redis.example/0", "unix:///run/redis.sock?db=1"]
)
def test_redis_urls_give_waiting_consumers(url: str) -> None:
    broker = make_broker(url)

    assert isinstance(broker, BlockingRedisBroker)
    assert isinstance(broker.consume("effects", 4, 1000), BlockingConsumer)


def test_a_wait_ends_before_its_socket_times_out() -> None:
    broker = make_broker("redis://127.0.0.1/0")

    assert isinstance(broker, BlockingRedisBroker)
    assert broker.waiting_client.connection_pool.connection_kwargs["socket_timeout"] > WAIT_SECONDS
    assert broker.waiting_client.connection_pool is not broker.client.connection_pool


def test_options_in_the_url_win() -> None:
    broker = make_broker("redis://127.0.0.1/0?socket_timeout=9&client_name=mine")

    assert isinstance(broker, BlockingRedisBroker)
    options = broker.client.connection_pool.connection_kwargs
    assert (options["socket_timeout"], options["client_name"]) == (9.0, "mine")


def test_an_amqp_url_gives_impatient_rabbitmq_connections() -> None:
    broker = make_broker("amqp://user:p%40ss@rabbit.example:5673/shop?heartbeat=20")

    assert isinstance(broker, RabbitmqBroker)
    assert broker.confirm_delivery
    parameters: Any = broker.parameters
    (server,) = parameters
    assert (server.host, server.port, server.virtual_host) == ("rabbit.example", 5673, "shop")
    assert server.credentials.password == "p@ss"
    assert server.socket_timeout == 1.0
    assert server.heartbeat == 20
    assert server.client_properties["connection_name"].startswith("smi-")


def test_no_middleware_touches_a_handler() -> None:
    for url in ("redis://127.0.0.1/0", "amqp://127.0.0.1"):
        names = {type(middleware).__name__ for middleware in make_broker(url).middleware}
        assert names <= {"_StopWaiting"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1",
        "redis://:sec/ret@127.0.0.1:6379/0",
        "redis://127.0.0.1?socket_timeout=secret",
        "amqp://user:sec/ret@host",
        "amqp://host?tcp_options=secret",
    ],
)
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="SMI_BROKER_URL") as caught:
        make_broker(url)

    assert "sec" not in str(caught.value)


def test_a_socket_is_used_where_its_path_fits(tmp_path: Path) -> None:
    assert Address(path="/var/a b/broker.sock").url == "unix:///var/a%20b/broker.sock?db=0"
    assert embedded_broker_url(Path("/v")) == "unix:///v/broker/broker.sock?db=0"
    assert embedded_broker_url(tmp_path / ("x" * 120)) is None


def test_an_address_keeps_its_password_out_of_its_repr() -> None:
    address = Address(port=1234, password="swordfish")

    assert address.url == "redis://:swordfish@127.0.0.1:1234/0"
    assert "swordfish" not in repr(address)
