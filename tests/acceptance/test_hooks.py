"""Receivers of hooks and real processes: one that hangs delays no sale, and a killed worker loses no word."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.test_kills import SIZE, is_delivered
from tests.support.receivers import SECRET, running_receiver
from tests.support.stack import running_stack

SALES = 4
WORDS = ["job_created", "payment_completed", "job_completed"]


def test_a_receiver_that_hangs_delays_no_sale_and_misses_nothing(tmp_path: Path) -> None:
    """The worker of hooks is killed in the midst of it, and everything is told in the end."""
    with running_receiver() as stuck, running_receiver() as well:
        stuck.answers = ["hang"] * (SALES * len(WORDS))
        urls = f"{stuck.url}/hook,{well.url}/hook"
        with running_stack(tmp_path, SMI_HOOK_URLS=urls, SMI_HOOK_SECRET=SECRET) as (stack, site):
            jobs = [stack.order(f"{site.url}/photo.png", SIZE) for _ in range(SALES)]
            stack.wait(lambda: len(stuck.messages) > 0, "an order to be told, and to hang")
            for job_id in jobs:
                stack.pay(job_id)
            for job_id in jobs:
                stack.wait_for(job_id, is_delivered, "the delivery, whoever hangs")
            stack.kill("hooks")
            stuck.answers = []
            stuck.closing.set()
            stack.start("hooks")
            told = dict.fromkeys(jobs, WORDS)
            stack.wait(lambda: stuck.sales() == told, "the one that hung to be told of everything")
            stack.wait(lambda: well.sales() == told, "the other one to be told of everything")
            # What came twice was one message each time.
            for receiver in (stuck, well):
                assert len(set(receiver.ids())) == SALES * len(WORDS)
