"""The broker is flushed in the middle of fifty running jobs: the database is the queue, so all of them end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import redis

from smi_workflow.integrations.embedded_broker import embedded_broker_url
from smi_workflow.jobs.model import JobStatus
from tests.support.stack import running_stack

JOBS = 50


def test_flush_in_the_middle_of_fifty_jobs(tmp_path: Path) -> None:
    with running_stack(tmp_path, sandbox={"upsampler_work_seconds": 0.5}) as (stack, site):

        def sell(_: int) -> str:
            job_id = stack.order(f"{site.url}/photo.png", (60, 40))
            stack.pay(job_id)
            return job_id

        with ThreadPoolExecutor(4) as shop:
            orders = [shop.submit(sell, number) for number in range(JOBS)]
            url = embedded_broker_url(tmp_path / "var")
            assert url is not None
            with redis.Redis.from_url(url) as broker:
                for order in orders[: JOBS // 2]:
                    order.result()
                broker.flushall()
                for order in orders[JOBS // 2 :]:
                    order.result()
                broker.flushall()
        jobs = stack.app.job_tables.jobs

        def delivered() -> int:
            return int(jobs.select().where((jobs.status == JobStatus.COMPLETED) & jobs.email_sent).count())

        stack.wait(lambda: delivered() == JOBS, f"all {JOBS} jobs to be delivered", seconds=120)
        subjects = [mail["subject"] for mail in stack.ledger("mail_http")["mails"]]
        assert len([s for s in subjects if s.startswith("Your upscaled image is ready")]) >= JOBS
        assert len(stack.ledger("stripe")["refunds"]) == 0
