"""`smi reconcile` and `smi schedules`, run as a person runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from smi_workflow.cli.main import app as cli
from tests.support.apps import settings_environment
from tests.support.missed import LostWeek, live_a_lost_week
from tests.support.sales import Providers, Sales, open_sales, running_providers

Smi = Callable[..., Result]


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    """One sandbox for all tests of this file."""
    with running_providers(tmp_path_factory.mktemp("providers")) as running:
        yield running


@pytest.fixture
def sales(sqlite_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    with open_sales(sqlite_url, tmp_path, providers) as opened:
        yield opened


@pytest.fixture
def smi(sales: Sales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    for name in [name for name in os.environ if name.startswith("SMI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("smi_workflow.cli.reconcile.time.sleep", lambda seconds: None)
    environment = {**settings_environment(sales.app.settings), "SMI_ENV_FILE": os.devnull, "COLUMNS": "200"}

    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(cli, arguments, env=environment)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return run


@pytest.fixture
def week(sales: Sales) -> LostWeek:
    """A week that lies behind us by Stripe's clock; the command has the machine's."""
    return live_a_lost_week(sales)


def test_it_makes_up_for_the_week_and_then_finds_nothing(smi: Smi, week: LostWeek) -> None:
    foretold = smi("reconcile", "--since", "30d", "--dry-run", "--json")
    assert foretold.exit_code == 0, foretold.output
    assert json.loads(foretold.stdout)["dry_run"] is True
    assert week.made_up_for() == {name: [] for name in week.jobs}

    done = smi("reconcile", "--since", "30d")
    assert done.exit_code == 0, done.output
    week.is_right()
    paid = week.jobs["paid"]
    assert f"job {paid}: payment_received" in done.stdout
    again = json.loads(smi("reconcile", "--json").stdout)
    assert (again["total"]["found"], again["lines"], again["trouble"]) == (0, [], None)


def test_what_waits_is_told_by_the_exit_code(smi: Smi, sales: Sales, week: LostWeek) -> None:
    payment = sales.app.job_tables.payments
    disputed = sales.job(week.jobs["disputed"]).stripe_payment_intent_id
    payment.delete().where(payment.payment_intent_id == disputed).execute()
    done = smi("reconcile", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["total"]["parked"] == 2


def test_a_provider_that_is_away_is_told_and_what_was_found_stands(
    smi: Smi, sales: Sales, week: LostWeek
) -> None:
    sales.sandbox.stripe.faults.add({"path": "/v1/refunds"}, {"kind": "status", "status": 503}, times=None)
    done = smi("reconcile", "--json")
    assert done.exit_code == 5
    assert "503" in json.loads(done.stdout)["trouble"]
    week.is_right()


def test_a_rate_limit_is_waited_for(
    smi: Smi, sales: Sales, week: LostWeek, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("smi_workflow.cli.reconcile.time.sleep", waited.append)
    limit = {"kind": "status", "status": 429, "headers": {"Retry-After": "17"}}
    sales.sandbox.stripe.faults.add({"path": "/v1/"}, limit, times=3)
    assert smi("reconcile").exit_code == 0
    assert waited == [17.0, 17.0, 17.0]
    week.is_right()


@pytest.mark.parametrize("since", ["yesterday", "7", "7y", "2026-13-01"])
def test_a_since_that_cannot_be_read_is_refused(smi: Smi, since: str) -> None:
    done = smi("reconcile", "--since", since)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--since: must be a date" in done.stderr


def test_an_admin_lists_runs_pauses_and_resumes(smi: Smi, sales: Sales) -> None:
    assert json.loads(smi("schedules", "list", "--json").stdout) == []
    assert "waiting → running" in smi("schedules", "run", "reconcile", "--reason", "after the outage").stdout
    assert smi("schedules", "run", "reconcile").exit_code == 4
    assert smi("schedules", "run", "astrology").exit_code == 3
    assert "running → paused" in smi("schedules", "pause", "reconcile").stdout
    (row,) = json.loads(smi("schedules", "list", "--json").stdout)
    assert (row["name"], row["state"], row["next_at"]) == ("reconcile", "paused", None)
    assert json.loads(smi("schedules", "resume", "reconcile", "--json").stdout)["to"] == "waiting"
    told = sales.app.engine.history("schedule", "reconcile")
    assert [(one.trigger, one.reason) for one in told][1] == ("run", "after the outage")
    assert all(one.actor.startswith("admin:") for one in told[1:])
    assert "reconcile" in smi("schedules", "list").stdout
