"""Receivers of hooks: told of each sale's course by real HTTP, whatever they do; nothing waits for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.app import App
from smi_workflow.engine.invariants import Invariants
from smi_workflow.engine.tables import EffectRow
from smi_workflow.jobs.attention import ATTENTION
from smi_workflow.jobs.hooks import receiver_name
from smi_workflow.jobs.model import Job
from tests.support.apps import test_settings
from tests.support.receivers import SECRET, Receiver, running_receiver
from tests.support.sales import Providers, Sales, open_sales

KEY = "s3cret-in-the-path"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


@pytest.fixture
def told(sqlite_url: str, tmp_path: Path, providers: Providers, receiver: Receiver) -> Iterator[Sales]:
    """A shop that tells one receiver."""
    with open_told(sqlite_url, tmp_path, providers, receiver) as opened:
        yield opened


def open_told(url: str, folder: Path, providers: Providers, *receivers: Receiver) -> Any:
    """A shop that tells these receivers."""
    urls = ",".join(f"{one.url}/{KEY}" for one in receivers)
    return open_sales(url, folder, providers, hook_urls=urls, hook_secret=SECRET)


def hook_of(sales: Sales, kind: str) -> EffectRow:
    """The newest effect that tells of this."""
    return next(row for row in reversed(sales.effects("send_hook")) if f'"{kind}"' in row.inputs)


def attempts_at(sales: Sales, kind: str) -> int:
    """Work on nothing but this hook until it is settled; returns how often it was tried."""
    while hook_of(sales, kind).state == "due":
        row = hook_of(sales, kind)
        sales.advance(seconds=max(0.0, (row.due_at - sales.clock.now()).total_seconds()))
        sales.app.performer.perform(row.id)
    return hook_of(sales, kind).attempts


def test_a_sale_is_told_in_order(
    database_url: str, tmp_path: Path, providers: Providers, receiver: Receiver
) -> None:
    with open_told(database_url, tmp_path, providers, receiver) as sales:
        job = sales.completed()
        assert receiver.sales() == {job.job_id: ["job_created", "payment_completed", "job_completed"]}
        contents = [message.verified() for message in receiver.messages]
        assert [content["data"]["status"] for content in contents] == ["awaiting_payment", "pending", "completed"]
        history = {row.sequence: row.created_at.isoformat() for row in sales.app.jobs.history(job.job_id)}
        assert all(content["timestamp"] == history[content["data"]["sequence"]] for content in contents)
        assert {message.id for message in receiver.messages} == {row.id for row in sales.effects("send_hook")}


def test_nothing_personal_and_no_link_is_told(told: Sales, receiver: Receiver) -> None:
    told.completed(email="jane@example.com")
    for message in receiver.messages:
        content = message.verified()
        assert set(content) == {"type", "timestamp", "data"}
        assert set(content["data"]) == {"job_id", "sequence", "status"}
        assert "jane" not in message.body and "download" not in message.body


def test_a_failed_sale_is_told(told: Sales, receiver: Receiver) -> None:
    job = told.failed()
    told.run_down(hours=1)
    assert receiver.sales()[job.job_id] == ["job_created", "payment_completed", "job_failed"]


def test_a_refund_in_mid_work_is_a_failure_told_once(told: Sales, receiver: Receiver) -> None:
    """The buyer's money went back at Stripe's own pages, while Upsampler worked."""
    job = told.processing()
    told.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id)
    told.deliver()
    told.work()
    assert told.job(job.job_id).status == "failed"
    assert receiver.sales()[job.job_id] == ["job_created", "payment_completed", "job_failed"]


def test_each_receiver_has_its_own_attempts(
    sqlite_url: str, tmp_path: Path, providers: Providers, receiver: Receiver
) -> None:
    """One that is broken keeps nothing from another one, nor from mails and upscales."""
    with running_receiver() as broken, open_told(sqlite_url, tmp_path, providers, broken, receiver) as sales:
        broken.answers = [500] * 6
        job = sales.completed()
        assert receiver.sales() == {job.job_id: ["job_created", "payment_completed", "job_completed"]}
        assert sales.job(job.job_id).email_sent
        assert len(sales.effects("send_hook")) == 6
        sales.run_down(minutes=10)
        assert broken.sales() == receiver.sales()


@pytest.mark.parametrize("answer", [500, 404, 301, "reset"])
def test_it_is_told_again_with_the_same_id_and_words(told: Sales, receiver: Receiver, answer: Any) -> None:
    receiver.answers = [answer, answer]
    told.order()
    told.run_down(minutes=5)
    first, *others = receiver.messages
    assert len(others) == 2
    assert {(one.id, one.body) for one in others} == {(first.id, first.body)}
    assert hook_of(told, "job_created").state == "done"


def test_one_that_was_told_when_the_worker_died_is_told_again(told: Sales, receiver: Receiver) -> None:
    """What a crash duplicates, a receiver knows by its id."""
    job = told.order()
    told.perform_and_die("send_hook")
    told.run_down(minutes=2)
    assert len(receiver.messages) == 2
    assert receiver.sales() == {job.job_id: ["job_created"]}


def test_messages_that_come_in_the_wrong_order_can_be_put_right(told: Sales, receiver: Receiver) -> None:
    receiver.answers = [503]
    job = told.completed()
    kinds = [message.verified()["type"] for message in receiver.messages]
    assert kinds[0] == "job_created" and kinds[-1] != "job_created"
    told.run_down(minutes=2)
    assert receiver.messages[-1].verified()["type"] == "job_created"
    assert receiver.sales() == {job.job_id: ["job_created", "payment_completed", "job_completed"]}


def test_a_dead_receiver_is_tried_for_three_days_and_the_admin_is_told(told: Sales, receiver: Receiver) -> None:
    job = told.order()
    began = told.clock.now()
    receiver.answers = [500] * 100
    assert attempts_at(told, "job_created") == 24
    row = hook_of(told, "job_created")
    assert row.state == "failed" and len(receiver.messages) == 24
    assert timedelta(days=2.5) < told.clock.now() - began < timedelta(days=4.5)
    last = told.app.jobs.history(job.job_id)[-1]
    name = receiver_name(told.app.settings.secret_keys[0], f"{receiver.url}/{KEY}")
    assert (last.trigger, last.reason) == ("hook_failed", f"hook {name}: answered HTTP 500")
    assert last.metadata == f'{{"hook":"job_created","missed":1,"receiver":"{name}"}}'
    assert told.job(job.job_id).status == "awaiting_payment"
    told.perform("tell_admin")
    assert len(told.mails("hook failed")) == 1


def test_one_that_says_gone_is_not_asked_again(told: Sales, receiver: Receiver) -> None:
    told.order()
    receiver.answers = [410]
    assert attempts_at(told, "job_created") == 1
    assert hook_of(told, "job_created").state == "failed"


def test_the_admin_is_told_of_a_receiver_once_a_day(told: Sales, receiver: Receiver) -> None:
    """A shop that sells a thousand images a day gets no thousand mails of it."""
    receiver.answers = [410] * 100
    jobs = [told.order(), told.order(), told.order()]
    told.run_down(minutes=5)
    assert len(told.mails("hook failed")) == 1
    assert all("hook_failed" in told.triggers(job.job_id) for job in jobs)
    told.advance(days=1, seconds=1)
    told.order()
    told.work(hold=("payment_deadline",))
    assert len(told.mails("hook failed")) == 2


def test_one_that_nobody_is_told_of_stands_in_the_doctors_list(
    sqlite_url: str, tmp_path: Path, providers: Providers, receiver: Receiver
) -> None:
    """Without an admin's address it is on record all the same."""
    given = {"hook_urls": f"{receiver.url}/{KEY}", "hook_secret": SECRET, "admin_email": ""}
    with open_sales(sqlite_url, tmp_path, providers, **given) as sales:
        receiver.answers = [410, 410]
        sales.order()
        sales.order()
        sales.work()
        name = receiver_name(sales.app.settings.secret_keys[0], f"{receiver.url}/{KEY}")
        found = [one.text for one in Invariants(sales.app.engine, ATTENTION).everywhere()]
        assert found == [f"receiver {name} missed messages on 1 of the last seven days"]


def test_a_receiver_that_was_taken_away_is_skipped_on_record(told: Sales, receiver: Receiver) -> None:
    job = told.order()
    elsewhere = _another_app(told, hook_urls="http://127.0.0.1:1/other")
    effect = hook_of(told, "job_created")
    # Settings reach the processes one after the other: at first it only waits.
    assert elsewhere.performer.perform(effect.id) == "again later"
    told.advance(hours=1, seconds=1)
    assert elsewhere.performer.perform(effect.id) == "skipped"
    after = hook_of(told, "job_created")
    assert "is not in SMI_HOOK_URLS" in (after.outcome or "")
    assert told.triggers(job.job_id) == ["create", "checkout_opened"]
    elsewhere.close()


def test_a_rolled_key_changes_no_receiver(told: Sales, receiver: Receiver) -> None:
    told.order()
    rolled = _another_app(
        told, secret_key=f"{'n' * 40},{'0123456789abcdef' * 4}", hook_urls=f"{receiver.url}/{KEY}"
    )
    assert rolled.performer.perform(hook_of(told, "job_created").id) == "done"
    rolled.close()


def _another_app(sales: Sales, **fields: Any) -> App:
    """Another process of the same shop, with other settings."""
    known = {"database_url": sales.app.settings.database_url, "hook_secret": SECRET}
    folder = sales.app.settings.var_dir.parent
    return App(test_settings(folder, sales.sandbox, **{**known, **fields}), ring=sales.rung, clock=sales.clock)


def test_no_url_is_kept_or_logged(told: Sales, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """It may carry a secret, and rows are kept for good."""
    receiver.answers = [500, "reset", 301, 410]
    with caplog.at_level("INFO", logger="smi_workflow"):
        told.completed()
        told.run_down(minutes=30)
    rows = str([list(table.select().dicts()) for table in told.app.tables.all()])
    assert "send_hook" in rows and "hook_failed" in rows
    for text in (rows, caplog.text, repr(told.app.settings), str(told.mails())):
        assert KEY not in text and SECRET not in text


def test_an_erased_job_has_left_nothing_with_receivers(told: Sales, receiver: Receiver) -> None:
    """The effect of an old hook may still run after the person was forgotten."""
    job: Job = told.order(email="jane@example.com")
    told.advance_to("payment_deadline")
    told.work(hold=("send_hook",))
    told.app.jobs.fire(job.job_id, "erase", actor="admin:jane", reason="she asked for it")
    told.work()
    assert [json.loads(message.body)["type"] for message in receiver.messages] == ["job_created"]
