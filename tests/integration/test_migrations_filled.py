"""Owns the tests of migrating a database that is full: forward and back, and nothing is lost. Called by pytest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peewee
import pytest
from typer.testing import CliRunner, Result

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.cli import migrate as command
from smi_workflow.cli.main import app as cli
from smi_workflow.engine.migrate import check_current, migrate, roll_back, status, would_roll_back
from smi_workflow.errors import ConfigError, GuardRefused
from tests.support.apps import settings_environment
from tests.support.filled import contents, fill
from tests.support.schemas import schema

TODAY = tuple(sorted(path.stem for path in MIGRATIONS.glob("[0-9]*.py")))
LATEST, LATER = TODAY[-1], "0099_reviewing"
Smi = Callable[..., Result]


@pytest.fixture
def filled(database_url: str, tmp_path: Path) -> Iterator[App]:
    app = fill(database_url, tmp_path)
    yield app
    app.close()


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The migrations of a later release: today's, and one more."""
    folder = tmp_path / "later"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).parents[1] / "support" / "migrations" / f"{LATER}.py", folder)
    return folder


def without_the_new(after: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {
        table: [{name: value for name, value in row.items() if name != "review_note"} for row in rows]
        for table, rows in after.items()
    }


def test_forward_and_back_every_row_stays_as_it_was(filled: App, later: Path) -> None:
    database, prefix = filled.database, filled.settings.table_prefix
    before, shape = contents(database, prefix), schema(database, prefix)
    assert len(before["wp_smi_jobs"]) > 250
    assert {row["status"] for row in before["wp_smi_jobs"]} >= {"pending", "processing", "completed", "failed"}
    assert all(len(rows) > 10 for rows in before.values()), {name: len(rows) for name, rows in before.items()}

    assert migrate(database, later, prefix=prefix) == (LATER,)
    after = contents(database, prefix)
    assert {row["review_note"] for row in after["wp_smi_jobs"]} == {None}
    assert without_the_new(after) == before
    assert schema(database, prefix) != shape
    assert ("currency", "status") in {tuple(index.columns) for index in database.get_indexes("wp_smi_jobs")}

    assert would_roll_back(database, later, prefix=prefix, to=LATEST) == (LATER,)
    assert contents(database, prefix) == after
    assert roll_back(database, later, prefix=prefix, to=LATEST) == (LATER,)
    assert contents(database, prefix) == before
    assert schema(database, prefix) == shape
    check_current(database, MIGRATIONS, prefix=prefix)


def test_the_earlier_release_works_on_the_later_tables_and_keeps_what_it_did(filled: App, later: Path) -> None:
    database, prefix = filled.database, filled.settings.table_prefix
    migrate(database, later, prefix=prefix)
    check_current(database, MIGRATIONS, prefix=prefix)
    (job, *_) = filled.jobs.get_jobs(status="pending")
    filled.jobs.mark_failed(job.job_id, "outage")
    with pytest.raises(GuardRefused):
        filled.jobs.fire(job.job_id, "retry", actor="admin:jane", facts={"override": True})
    told = contents(database, prefix)
    roll_back(database, later, prefix=prefix, to=LATEST)
    assert contents(database, prefix) == without_the_new(told)
    assert filled.jobs.get_job(job.job_id).status == "failed"


def test_the_later_state_is_refused_before_and_taken_after(filled: App, later: Path) -> None:
    database, prefix, jobs = filled.database, filled.settings.table_prefix, filled.job_tables.jobs
    (job, *_) = filled.jobs.get_jobs(status="processing")
    review = jobs.update(status="reviewing").where(jobs.job_id == job.job_id)
    # MariaDB reports a failed check as an operational error.
    with pytest.raises((peewee.IntegrityError, peewee.OperationalError)), database.atomic():
        review.execute()
    migrate(database, later, prefix=prefix)
    assert review.execute() == 1
    told = contents(database, prefix)
    with pytest.raises(ConfigError, match="1 jobs are reviewing, which the earlier release does not know"):
        roll_back(database, later, prefix=prefix, to=LATEST)
    assert contents(database, prefix) == told
    assert status(database, later, prefix=prefix).applied == (*TODAY, LATER)


def test_forward_again_after_back(filled: App, later: Path) -> None:
    database, prefix = filled.database, filled.settings.table_prefix
    migrate(database, later, prefix=prefix)
    after = contents(database, prefix)
    roll_back(database, later, prefix=prefix, to=LATEST)
    assert migrate(database, later, prefix=prefix) == (LATER,)
    assert contents(database, prefix) == after


# -- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def smi(filled: App, later: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """The later release's command line."""
    monkeypatch.setattr(command, "MIGRATIONS", later)
    environment = {**settings_environment(filled.settings), "COLUMNS": "200"}
    # The server counts connections of others as a reason to wait; this one has done its part.
    filled.database.close()

    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(cli, ["migrate", *arguments], env=environment)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return run


def test_the_command_goes_forward_and_back_and_says_so_before(smi: Smi, filled: App) -> None:
    prefix = filled.settings.table_prefix
    before = contents(filled.database, prefix)
    assert f"Would be applied: {LATER}" in smi("--dry-run").stdout
    assert contents(filled.database, prefix) == before
    assert json.loads(smi("--json").stdout) == {"applied": [LATER]}
    assert "up to date" in smi("--dry-run").stdout
    assert f"Would be undone: {LATER}" in smi("--back-to", LATEST, "--dry-run").stdout
    assert json.loads(smi("--back-to", LATEST, "--dry-run", "--json").stdout) == {
        "undone": [LATER],
        "dry_run": True,
    }
    assert "review_note" in contents(filled.database, prefix)["wp_smi_jobs"][0]
    assert f"Undone: {LATER}" in smi("--back-to", LATEST).stdout
    assert contents(filled.database, prefix) == before
    assert f"The database is at {LATEST} already." in smi("--back-to", LATEST).stdout


MONEY_BACK = "0003_money_back"
BEFORE_IT = TODAY[TODAY.index(MONEY_BACK) - 1]


def test_refunds_disputes_and_charges_go_forward_and_back(filled: App) -> None:
    """What the first release left behind is completed, and what it does not know is not taken from it unseen."""
    database, prefix, tables = filled.database, filled.settings.table_prefix, filled.job_tables
    refunds, disputes, payments, events = tables.refunds, tables.disputes, tables.payments, filled.tables.events
    whole = contents(database, prefix)
    assert {row["state"] for row in whole["wp_smi_refunds"]} >= {"failed", "settled_elsewhere"}
    with pytest.raises(ConfigError, match=r"\d+ refunds are pending, canceled, settled_elsewhere, which"):
        roll_back(database, MIGRATIONS, prefix=prefix, to=BEFORE_IT)
    roll_back(database, MIGRATIONS, prefix=prefix, to=MONEY_BACK)
    # What came after it is gone with what it held.
    later = ("wp_smi_schedules",)
    assert contents(database, prefix) == {name: rows for name, rows in whole.items() if name not in later}
    refunds.update(state="failed").where(refunds.state.in_(("pending", "canceled", "settled_elsewhere"))).execute()
    refunds.update(tries=1, past_stripe_ids=None).where(refunds.tries > 1).execute()
    before = contents(database, prefix)

    assert roll_back(database, MIGRATIONS, prefix=prefix, to=BEFORE_IT) == (MONEY_BACK,)
    back = contents(database, prefix)
    assert sorted(set(before) - set(back)) == ["wp_smi_alerts", "wp_smi_disputes"]
    new = ("tries", "past_stripe_ids")
    kept = [{name: row[name] for name in row if name not in new} for row in before["wp_smi_refunds"]]
    assert back == {**{name: before[name] for name in back}, "wp_smi_refunds": kept}
    with pytest.raises((peewee.IntegrityError, peewee.OperationalError)), database.atomic():
        database.execute_sql("UPDATE wp_smi_refunds SET state = 'canceled'")  # type: ignore[no-untyped-call]

    payments.update(charge_id=None).execute()
    paid = payments.select().order_by(payments.id).first()
    told = {"object": {"id": "ch_told", "payment_intent": paid.payment_intent_id}}
    for number, payload in enumerate((json.dumps(told), "{}", "[]", '{"object": {"id": "ch_x"}}')):
        events.insert(
            id=f"{number:032x}", provider="stripe", event_id=f"evt_{number}", kind="charge.succeeded",
            state="ignored", payload=payload, due_at=filled.clock.now(), received_at=filled.clock.now(),
        ).execute()  # fmt: skip
    assert MONEY_BACK in migrate(database, MIGRATIONS, prefix=prefix)
    after = contents(database, prefix)
    assert after["wp_smi_refunds"] == before["wp_smi_refunds"]
    assert payments.get(payments.id == paid.id).charge_id == "ch_told"
    assert payments.select().where(payments.charge_id.is_null(False)).count() == 1
    withdrawn = {row["job_id"]: row["disputed_cents"] for row in after["wp_smi_jobs"] if row["disputed_cents"]}
    assert {row.job_id: row.kept_cents for row in disputes.select()} == withdrawn
    # One by its own name, which the history knows; the copies of it cannot have the same.
    assert sorted(row.dispute_id[:3] for row in disputes.select()) == ["dp_", *["unk"] * (len(withdrawn) - 1)]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_the_command_does_not_go_back_to_nowhere(smi: Smi, filled: App, dry: tuple[str, ...]) -> None:
    done = smi("--back-to", "0000_nothing", *dry)
    assert done.exit_code == 2
    assert f"0000_nothing is not applied (applied: {', '.join(TODAY)})" in done.stderr
    assert len(contents(filled.database, filled.settings.table_prefix)["wp_smi_jobs"]) > 250
