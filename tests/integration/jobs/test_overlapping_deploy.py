"""Two releases of the shop over one database: every sale ends as it should, whichever worker takes which step.

Called by pytest.
"""

from __future__ import annotations

import hmac
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.app import App
from smi_workflow.engine.unit import EVENT_ACTOR
from smi_workflow.errors import UnknownState
from smi_workflow.web.site import create_app
from tests.support.apps import Rung
from tests.support.later_shop import LATER_JOB, REVIEWING, LaterApp, migrate_to_later
from tests.support.sales import Providers, Sales, open_sales
from tests.support.sandbox import WEBHOOK_SECRET

JANE = "admin:jane"
LATER_EFFECTS = {"review_result", "review_deadline"}


@dataclass
class Deploy:
    """The earlier release as a shop, and the later one beside it, on the same tables."""

    sales: Sales
    later: App

    @property
    def apps(self) -> tuple[App, App]:
        return self.sales.app, self.later

    def reviewing(self) -> str:
        """A job that the later release has put where the earlier one knows nothing; returns its id."""
        job = self.sales.processing()
        self.sales.call_back(self.sales.upscaled())
        (fetch,) = [row for row in self.sales.effects("fetch_result") if row.subject_id == job.job_id]
        assert self.later.performer.perform(fetch.id) == "done"
        assert self.sales.job(job.job_id).status == REVIEWING
        return job.job_id

    def work(self, choose: random.Random) -> None:
        """Do what is due until nothing is, each step by a worker of either release, and go on when it was left."""
        for _ in range(500):
            self.sales.deliver()
            rows = self.sales.due()
            if not rows:
                held = [
                    row for row in self.sales.app.tables.effects.select() if "release" in (row.last_error or "")
                ]
                waiting = [row for row in held if row.state == "due"]
                if not waiting:
                    return
                self.sales.advance(seconds=30)
                continue
            name, row_id = choose.choice(rows)
            app = choose.choice(self.apps)
            app.inbox.handle(row_id) if name == EVENT_ACTOR else app.performer.perform(row_id)
        raise AssertionError("it does not end")

    def effects(self, job_id: str) -> dict[str, Any]:
        """Where each effect of a job stands, by name."""
        table = self.later.tables.effects
        return {row.name: row for row in table.select().where(table.subject_id == job_id)}


@pytest.fixture
def deploy(database_url: str, tmp_path: Path, providers: Providers) -> Iterator[Deploy]:
    with open_sales(database_url, tmp_path, providers) as sales:
        migrate_to_later(sales.app, tmp_path)
        sales.app.check_schema()
        later = LaterApp(sales.app.settings, ring=Rung(), clock=sales.clock)
        yield Deploy(sales, later)
        later.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_sales_end_well_whichever_release_takes_which_step(deploy: Deploy, seed: int) -> None:
    sales, choose = deploy.sales, random.Random(seed)
    jobs = [sales.order() for _ in range(3)]
    for job in jobs:
        sales.pay(job)
        deploy.work(choose)
    for index in range(len(sales.submissions())):
        sales.receive_callback(sales.upscaled(index))
    deploy.work(choose)
    prints = set()
    for job in jobs:
        assert sales.job(job.job_id).status == "completed", sales.triggers(job.job_id)
        sales.balances(job.job_id)
        history = sales.app.jobs.history(job.job_id)
        assert [row.sequence for row in history] == list(range(1, len(history) + 1))
        assert [row.trigger for row in history].count("complete") == 1
        assert {row.state for row in deploy.effects(job.job_id).values()} <= {"done", "cancelled", "due"}
        prints |= {row.fingerprint for row in history}
    assert prints == {flow.fingerprint for flow in (LATER_JOB, sales.app.engine.workflows["job"])}
    assert len(sales.mails("Your upscaled image is ready")) == len(jobs)


def test_an_earlier_worker_leaves_alone_what_the_later_release_owes(deploy: Deploy) -> None:
    job_id = deploy.reviewing()
    for _ in range(3):
        for name, row in deploy.effects(job_id).items():
            if row.state == "due":
                deploy.sales.app.performer.perform(row.id)
                after = deploy.effects(job_id)[name]
                assert (after.state, after.attempts, after.doubts) == ("due", 0, 0), name
        deploy.sales.advance(seconds=40)
    deploy.later.performer.perform(deploy.effects(job_id)["review_result"].id)
    assert deploy.sales.job(job_id).status == "completed"


def test_an_admin_of_the_earlier_release_is_refused_and_told_why(deploy: Deploy) -> None:
    job_id = deploy.reviewing()
    before = deploy.sales.triggers(job_id)
    for trigger, facts in (("fail", {}), ("refund", {}), ("override", {"target": "failed"})):
        with pytest.raises(UnknownState, match="reviewing, a state that this release does not know"):
            deploy.sales.app.jobs.fire(job_id, trigger, actor=JANE, reason="no", facts=facts)
    assert deploy.sales.triggers(job_id) == before
    assert deploy.sales.app.jobs.explain(job_id) == []


@pytest.mark.parametrize("kind", ["refund", "dispute"])
def test_money_news_for_an_unknown_state_waits_for_the_later_release(deploy: Deploy, kind: str) -> None:
    sales, job_id = deploy.sales, deploy.reviewing()
    intent = sales.job(job_id).stripe_payment_intent_id
    sales.lever(f"dashboard/{kind}s", payment_intent=intent)
    # The earlier release's workers are the first to see all of it, again and again.
    for _ in range(3):
        sales.deliver()
        sales.advance(seconds=30)
    assert not [reason for state, reason in sales.event_rows().values() if state == "needs_person"]
    assert (sales.job(job_id).refunded_cents, sales.job(job_id).disputed_cents) == (0, 0)
    for row in deploy.later.tables.events.select():
        deploy.later.inbox.handle(row.id)
    after = sales.job(job_id)
    assert (after.refunded_cents, after.disputed_cents) == ((50, 0) if kind == "refund" else (0, 50))
    sales.balances(job_id)


def test_a_refund_whose_job_is_unknown_is_settled_by_the_later_release(deploy: Deploy) -> None:
    sales, job_id = deploy.sales, deploy.reviewing()
    deploy.later.jobs.fire(job_id, "refund", actor=JANE, reason="asked", facts={"amount_cents": 20})
    (refund,) = sales.refunds(job_id)
    assert sales.perform("submit_refund", refund.refund_id) == "to be retried"
    (refund,) = sales.refunds(job_id)
    assert (refund.state, sales.job(job_id).refunding_cents) == ("requested", 20)
    assert sales.effect("submit_refund").attempts == 0
    sales.advance(seconds=30)
    assert deploy.later.performer.perform(sales.effect("submit_refund").id) == "done"
    sales.deliver()
    assert len(sales.ledger()["refunds"]) == 1
    assert (sales.refunds(job_id)[0].state, sales.job(job_id).refunded_cents) == ("succeeded", 20)
    sales.balances(job_id)


def test_the_web_of_the_earlier_release_takes_in_what_is_meant_for_the_later(deploy: Deploy) -> None:
    sales, job_id = deploy.sales, deploy.reviewing()
    sales.lever("dashboard/refunds", payment_intent=sales.job(job_id).stripe_payment_intent_id)
    client = create_app(sales.app).test_client()
    for event in sales.events():
        body = json.dumps(event).encode()
        answer = client.post("/webhooks/stripe", data=body, headers=signed(body), content_type="application/json")
        assert answer.status_code == 200, answer.text
    for row in deploy.later.tables.events.select():
        deploy.later.inbox.handle(row.id)
    assert sales.job(job_id).refunded_cents == 50
    told = client.get(f"/api/v1/jobs/{job_id}")
    assert (told.status_code, told.json["status"]) == (200, REVIEWING)  # type: ignore[index]
    assert "charged" not in told.text and "could not be made" not in told.text


def test_rolled_back_the_job_waits_and_goes_on_when_deployed_again(deploy: Deploy) -> None:
    sales, job_id = deploy.sales, deploy.reviewing()
    sales.run_down(hold=LATER_EFFECTS, hours=3)
    for name, row in deploy.effects(job_id).items():
        if name in LATER_EFFECTS:
            sales.app.performer.perform(row.id)
    assert sales.job(job_id).status == REVIEWING
    live = sales.app.job_tables.jobs
    known = [state.name for state in sales.app.engine.workflows["job"].states]
    assert [row.job_id for row in live.select().where(live.status.not_in(known))] == [job_id]
    sales.advance(seconds=30)
    deploy.later.performer.perform(deploy.effects(job_id)["review_result"].id)
    assert sales.job(job_id).status == "completed"
    assert {row.state for row in deploy.effects(job_id).values()} <= {"done", "cancelled", "due"}


def signed(body: bytes) -> dict[str, str]:
    """Stripe's signature, as of now by the machine's clock, which is the one that the site goes by."""
    stamp = int(time.time())
    signature = hmac.new(WEBHOOK_SECRET.encode(), f"{stamp}.".encode() + body, sha256).hexdigest()
    return {"Stripe-Signature": f"t={stamp},v1={signature}"}
