"""The mails of a sale over real SMTP, and what becomes of links and files with time. Called by pytest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.errors import GuardRefused
from smi_workflow.jobs.model import Job
from tests.support.sales import Providers, Sales, open_sales

READY = "Your upscaled image is ready"


def break_mail(sales: Sales, kind: str, times: int | None = 1, **fields: Any) -> None:
    """Tell the mail server what to do wrong with a message."""
    sales.sandbox.mail.faults.add({"smtp": "data"}, {"kind": kind, **fields}, times=times)


def stored(sales: Sales, **changes: Any) -> Job:
    """A completed job whose mail nobody has sent yet."""
    job = sales.processing(**changes)
    sales.call_back(sales.upscaled())
    sales.perform("fetch_result")
    done = sales.job(job.job_id)
    assert (done.status, done.email_sent) == ("completed", False)
    return done


def test_the_buyer_gets_one_mail_with_the_link(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.completed()
    (mail,) = sales.mails()
    assert (mail["subject"], mail["to"]) == (READY, ["jane@example.com"])
    (link,) = [link for link in mail["links"] if "/download/" in link]
    token = link.rsplit("/", 1)[1]
    assert len(token) == 64 and token.isalnum()
    assert job.email_sent
    # What is stored opens nothing.
    assert token not in str([list(table.select().dicts()) for table in sales.app.tables.all()])
    assert token not in str(list(sales.app.job_tables.jobs.select().dicts()))


def test_a_busy_mail_server_gets_it_later_and_once(sales: Sales) -> None:
    job = stored(sales)
    break_mail(sales, "refuse", status=451)
    assert sales.perform("send_download_link") == "to be retried"
    assert sales.mails() == []
    sales.run_down(minutes=1)
    (mail,) = sales.mails()
    assert mail["message_id"] == f"<{sales.effect('send_download_link').id}@example.com>"
    assert sales.job(job.job_id).email_sent


def test_two_copies_are_the_same_mail(sales: Sales) -> None:
    """SMTP knows no keys: what nobody can rule out is at least harmless."""
    stored(sales)
    break_mail(sales, "reset_after")
    sales.run_down(minutes=1)
    first, second = sales.mails()
    assert first["message_id"] == second["message_id"]
    assert first["links"] == second["links"]


def test_an_address_that_bounces_is_told_and_the_job_stays(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = stored(sales, email="bounce@example.com")
    sales.work()
    after = sales.job(job.job_id)
    assert (after.status, after.email_sent) == ("completed", False)
    assert sales.effect("send_download_link").state == "failed"
    assert [mail["to"] for mail in sales.mails()] == [["owner@example.com"]]
    # The buyer phones, the address is mended, the mail is sent again.
    sales.app.jobs.fire(
        job.job_id, "amend", actor="admin:jane", reason="by phone", facts={"fields": {"email": "jane@example.com"}}
    )
    sales.app.jobs.fire(job.job_id, "resend", actor="admin:jane", reason="by phone")
    sales.work()
    assert len(sales.mails(READY)) == 1
    assert sales.job(job.job_id).email_sent


def test_a_mail_that_never_finds_an_address_ends(sales: Sales) -> None:
    job = sales.completed()
    table = sales.app.job_tables.jobs
    table.update(email=None).where(table.job_id == job.job_id).execute()
    sales.app.jobs.fire(job.job_id, "resend", actor="admin:jane", reason="asked")
    sales.work()
    effects = sales.app.tables.effects
    query = effects.select().where(effects.name == "send_download_link").order_by(effects.sequence.desc())
    owed = query.first()
    assert owed is not None
    assert owed.state == "due"
    sales.advance(days=3, minutes=6)
    sales.app.performer.perform(owed.id)
    ended = effects.get_by_id(owed.id)
    assert (ended.state, "ever known" in str(ended.outcome)) == ("done", True)


def test_a_mail_without_an_address_waits_visibly_and_goes_once(sales: Sales) -> None:
    job = stored(sales)
    table = sales.app.job_tables.jobs
    table.update(email=None).where(table.job_id == job.job_id).execute()
    sales.run_down(minutes=21)
    effect = sales.effect("send_download_link")
    assert (effect.state, effect.last_error, effect.waits) == ("due", "no e-mail address is known yet", 3)
    assert len(sales.mails("job notice failed")) == len(sales.mails()) == 1
    assert sales.job(job.job_id).status == "completed"
    facts = {"fields": {"email": "late@example.com"}}
    sales.app.jobs.fire(job.job_id, "amend", actor="admin:jane", reason="found", facts=facts)
    sales.run_down(minutes=30)
    assert [mail["to"] for mail in sales.mails(READY)] == [["late@example.com"]]
    history = "".join(row.metadata + row.reason for row in sales.app.jobs.history(job.job_id))
    assert "late@example.com" not in history


def test_no_owner_to_tell_is_no_trouble(sqlite_url: str, tmp_path: Path, providers: Providers) -> None:
    with open_sales(sqlite_url, tmp_path, providers, admin_email="") as sales:
        sales.failed()
        sales.work()
        assert sales.effect("tell_admin").state == "done"
        assert [mail["to"] for mail in sales.mails()] == [["jane@example.com"]]


def test_a_link_is_warned_of_and_ends(sales: Sales) -> None:
    job = sales.completed()
    name = job.upscaled_file_path
    assert name is not None
    sales.run_down(hours=17)
    assert len(sales.mails()) == 1
    sales.run_down(hours=1, minutes=1)
    assert len(sales.mails()) == 2
    assert sales.mails()[1]["links"] == sales.mails()[0]["links"]
    assert sales.app.storage.exists(name)
    sales.advance_to("expire_download")
    sales.perform("expire_download")
    # The row first, the file after.
    assert sales.job(job.job_id).upscaled_file_path is None
    assert sales.app.storage.exists(name)
    sales.work()
    assert not sales.app.storage.exists(name)
    assert sales.triggers(job.job_id)[-2:] == ["expire_download", "file_removed"]
    with pytest.raises(GuardRefused, match="its file has been removed"):
        sales.app.jobs.fire(job.job_id, "renew_download", actor="admin:jane", reason="asked")


def test_a_renewed_link_kills_the_old_one_and_its_timers(sales: Sales) -> None:
    job = sales.completed()
    sales.advance(hours=20)
    sales.work()
    sales.app.jobs.fire(job.job_id, "renew_download", actor="admin:jane", reason="was on holiday")
    sales.work()
    renewed = sales.job(job.job_id)
    assert (renewed.token_generation, renewed.email_sent) == (2, True)
    assert renewed.download_token != job.download_token
    first, last = sales.mails(READY)
    assert first["links"] != last["links"]
    assert sales.owed(job.job_id) == {"warn_expiry": timedelta(hours=18), "expire_download": timedelta(hours=24)}
    sales.run_down(hours=23)
    assert sales.job(job.job_id).upscaled_file_path is not None
    sales.run_down(hours=2)
    assert sales.job(job.job_id).upscaled_file_path is None


def test_a_timer_of_an_old_link_touches_nothing(sales: Sales) -> None:
    """Claimed just before the renewal, done just after it."""
    job = sales.completed()
    sales.advance(hours=24)

    def meanwhile(attempt: Any, real: Any) -> Any:
        outcome = real(attempt)
        sales.app.jobs.fire(job.job_id, "renew_download", actor="admin:jane", reason="at the last moment")
        return outcome

    performed = sales.performer("expire_download", meanwhile).perform(sales.effect("expire_download").id)
    assert performed == "came back too late"
    assert sales.job(job.job_id).upscaled_file_path is not None


@pytest.fixture
def rolled(sqlite_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop with a new key, that still has the old one."""
    with open_sales(sqlite_url, tmp_path, providers, secret_key=f"{'n' * 32},{'o' * 32}") as opened:
        yield opened


def test_rolling_keys_keeps_the_links_of_the_old_one(rolled: Sales) -> None:
    sales = rolled
    job = sales.completed()
    settings = sales.app.settings
    only_old = settings.model_copy(update={"secret_key": settings.secret_key[1:]})
    object.__setattr__(sales.app.world, "settings", only_old)
    sales.app.jobs.fire(job.job_id, "resend", actor="admin:jane", reason="asked")
    sales.work()
    # The key that made it is gone: no wrong link goes out, the admin is told.
    assert len(sales.mails(READY)) == 1
    assert len(sales.mails("job notice failed")) == 1
    assert "no key in SMI_SECRET_KEY made this token" in (sales.effect("send_download_link").last_error or "")
    object.__setattr__(sales.app.world, "settings", settings)
    sales.app.jobs.fire(job.job_id, "resend", actor="admin:jane", reason="asked")
    sales.work()
    first, second = sales.mails(READY)
    assert first["links"] == second["links"]


def test_what_a_buyer_reads_of_a_failure_is_no_business_of_ours(sales: Sales) -> None:
    job = sales.sold()
    sales.app.jobs.fire(
        job.job_id, "fail", actor="admin:jane", reason="SECRET: the invoice was not paid", facts={"code": "outage"}
    )
    sales.work()
    (mail,) = [mail for mail in sales.mails() if mail["to"] == ["jane@example.com"]]
    text = Path(mail["path"]).read_text()
    assert "Something went wrong on our side." in text
    assert "SECRET" not in text


def test_erasing_a_person(sales: Sales) -> None:
    job = sales.completed()
    sales.app.jobs.fire(job.job_id, "erase", actor="admin:jane", reason="asked by the person")
    sales.work()
    after = sales.job(job.job_id)
    assert (after.email, after.image_url, after.checkout_url, after.upscaled_url) == (None, "", None, None)
    assert after.purged_at == sales.clock.now()
    assert not sales.app.storage.exists(job.source_file)
    everything = str([list(table.select().dicts()) for table in sales.app.job_tables.by_declaration().values()])
    assert "jane@example.com" not in everything
