"""One whole sale on every database and broker that a shop may run, by the Procfile's processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.jobs.model import JobStatus
from tests.support.stack import running_stack


def sell_one(folder: Path, **settings: Any) -> None:
    """Order, pay, deliver."""
    with running_stack(folder, **settings) as (stack, site):
        job_id = stack.order(f"{site.url}/photo.png", (60, 40))
        stack.pay(job_id)
        stack.wait_for(job_id, lambda job: job.status == JobStatus.COMPLETED and job.email_sent, "the delivery")
        triggers = stack.triggers(job_id)
        # Its own event may come at any moment.
        triggers.remove("charge_noted")
        assert triggers == [
            "create", "checkout_opened", "payment_received", "upscale_started", "upscale_delivered", "complete",
            "notice_sent",
        ]  # fmt: skip


def server_url(variable: str) -> str:
    """A server that only the wider run has: absent, it is skipped there, and a failure in that run."""
    url = os.environ.get(variable)
    if url:
        return url
    if os.environ.get("CI_WIDE") == "true":
        pytest.fail(f"{variable} is not set")
    pytest.skip(f"set {variable} to test with this server")


def test_a_sale_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    sell_one(tmp_path, SMI_DATABASE_URL=postgres_url)


def test_a_sale_on_mariadb(tmp_path: Path, mariadb_url: str) -> None:
    sell_one(tmp_path, SMI_DATABASE_URL=mariadb_url)


@pytest.mark.server("rabbitmq")
def test_a_sale_over_rabbitmq(tmp_path: Path) -> None:
    sell_one(tmp_path, SMI_BROKER_URL=server_url("SMI_TEST_AMQP_URL"))


@pytest.mark.server("redis")
def test_a_sale_over_redis(tmp_path: Path) -> None:
    sell_one(tmp_path, SMI_BROKER_URL=server_url("SMI_TEST_REDIS_URL"))
