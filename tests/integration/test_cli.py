"""The command line, run as a person runs it: answers, exit codes, and never a stack trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.cli.main import app as cli
from tests.support.apps import finished_job, open_test_app, picture, settings_environment

Smi = Callable[..., Result]
SMI = str(Path(sys.executable).parent / "smi")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    opened = open_test_app(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def smi(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    for name in [name for name in os.environ if name.startswith("SMI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    environment = {**settings_environment(app.settings), "SMI_ENV_FILE": os.devnull, "COLUMNS": "200"}

    def run(*arguments: str, **changes: str) -> Result:
        done = CliRunner().invoke(cli, arguments, env={**environment, **changes})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return run


@pytest.fixture
def job_id(app: App) -> str:
    """A delivered job."""
    return str(finished_job(app, picture(240, 160))[0].job_id)


def answer(done: Result) -> Any:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_list_show_and_explain(smi: Smi, job_id: str) -> None:
    assert job_id in smi("jobs", "list").stdout
    assert [row["job_id"] for row in answer(smi("jobs", "list", "--status", "completed", "--json"))] == [job_id]
    assert answer(smi("jobs", "list", "--status", "failed", "--json")) == []
    shown = answer(smi("jobs", "show", job_id, "--json"))
    assert (shown["job"]["job_id"], shown["job"]["status"]) == (job_id, "completed")
    assert "email" not in shown["job"], "a buyer's address is nobody's business on a screen"
    options = {option["trigger"]: option for option in answer(smi("jobs", "explain", job_id, "--json"))["options"]}
    assert options["resend"]["allowed"]
    assert options["retry"]["blocked_by"] == [
        {"guard": "override_is_given", "reason": "this needs the fact override=true"}
    ]
    assert "override_is_given" in smi("jobs", "explain", job_id).stdout
    assert "History" in smi("jobs", "show", job_id).stdout


def test_fire_with_actor_reason_and_dry_run(smi: Smi, app: App, job_id: str) -> None:
    before = len(app.jobs.history(job_id))
    would = answer(smi("fire", job_id, "resend", "--reason", "asked for it", "--dry-run", "--json"))
    assert (would["dry_run"], would["effects"][0]["name"]) == (True, "send_download_link")
    assert len(app.jobs.history(job_id)) == before
    did = answer(smi("fire", job_id, "resend", "--reason", "asked for it", "--json"))
    last = app.jobs.history(job_id)[-1]
    assert (last.sequence, last.trigger, last.reason) == (did["sequence"], "resend", "asked for it")
    assert last.actor.startswith("admin:")
    assert "owes send_download_link" in smi("fire", job_id, "resend", "--reason", "again").stdout


def test_fire_takes_facts_and_an_expected_state(smi: Smi, app: App, job_id: str) -> None:
    late = smi("fire", job_id, "resend", "--expect", "pending")
    assert late.exit_code == 4
    assert "expected to be pending, but is completed" in late.stderr
    done = smi("fire", job_id, "override", "--fact", "target=failed", "--reason", "the buyer asked")
    assert done.exit_code == 0, done.stderr
    assert app.jobs.get_job(job_id).status == "failed"
    assert smi("fire", job_id, "override", "--fact", "target").exit_code == 2


def test_refunds_and_alerts_are_fired_by_their_own_ids(smi: Smi, app: App, job_id: str) -> None:
    jobs, payments = app.job_tables.jobs, app.job_tables.payments
    jobs.update(stripe_payment_intent_id="pi_1").where(jobs.job_id == job_id).execute()
    paid = {"payment_intent_id": "pi_1", "job_id": job_id, "cents": 50, "currency": "usd", "livemode": False}
    payments.insert(**paid, role="sale", created_at=app.clock.now()).execute()
    smi("fire", job_id, "refund", "--fact", "amount_cents=5", "--reason", "asked")
    (refund,) = answer(smi("jobs", "show", job_id, "--json"))["refunds"]
    assert (refund["state"], refund["cents"], refund["tries"]) == ("requested", 5, 1)
    key = refund["refund_id"]
    assert key in smi("jobs", "show", job_id).stdout.replace("\n", "")
    refused = smi("fire", "--refund", key, "fail", "--reason", "by hand")
    assert refused.exit_code == 4
    assert "refused by not_by_hand" in refused.stderr
    app.engine.fire("refund", key, "fail", actor="stripe", facts={"code": "lost"})
    would = answer(smi("fire", "--refund", key, "retry", "--reason", "topped up", "--dry-run", "--json"))
    assert (would["workflow"], would["from"], would["to"]) == ("refund", "failed", "requested")
    late = smi("fire", "--refund", key, "retry", "--expect", "canceled")
    assert (late.exit_code, app.engine.read("refund", key).state) == (4, "failed")
    done = smi("fire", "--refund", key, "settle_elsewhere", "--reason", "by bank transfer")
    assert f"Refund {key} went failed → settled_elsewhere" in " ".join(done.stdout.split())
    assert app.jobs.get_job(job_id).refunded_cents == 5
    about = {"alert_id": "evt", "text": "nobody's", "created_at": app.clock.now()}
    app.engine.start("alert", about, actor="system")
    assert smi("fire", "--alert", "evt", "close", "--reason", "seen").exit_code == 0
    assert app.engine.read("alert", "evt").state == "closed"
    assert smi("fire", "--alert", "nothing", "close", "--reason", "seen").exit_code == 3
    assert smi("fire", "--alert", "--refund", "evt", "close").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("jobs", "show", "nobody"), 3, "there is no job nobody"),
        (("jobs", "explain", "nobody"), 3, "there is no job nobody"),
        (("jobs", "show", "[/x]"), 3, "there is no job [/x]"),
        (("fire", "nobody", "retry"), 3, "there is no job nobody"),
        (("jobs", "list", "--status", "sold"), 2, "status: there is no sold"),
        (("jobs", "list", "--limit", "0"), 2, "limit: must be 1 to 1000"),
        (("graph", "parcel"), 2, "there is no workflow parcel"),
        (("demo", "--image", "nothing.jpg"), 2, "nothing.jpg cannot be read as an image"),
        (("demo", "--fail", "everything"), 2, "--fail: can be upscale"),
        (("up",), 2, "there is no Procfile here"),
    ],
)
def test_what_cannot_be_done_is_said(smi: Smi, arguments: tuple[str, ...], code: int, told: str) -> None:
    done = smi(*arguments)
    assert done.exit_code == code
    assert told in " ".join((done.stderr + done.stdout).split())


def test_what_looks_like_markup_is_shown_as_it_is(smi: Smi, job_id: str) -> None:
    assert smi("fire", job_id, "resend", "--reason", "said [/bold] and [red]").exit_code == 0
    shown = smi("jobs", "show", job_id)
    assert shown.exit_code == 0
    assert "said [/bold] and [red]" in shown.stdout


def test_refusals_name_the_guard(smi: Smi, job_id: str) -> None:
    refused = smi("fire", job_id, "retry")
    assert refused.exit_code == 4
    assert "refused by override_is_given" in refused.stderr
    impossible = smi("fire", job_id, "abandon")
    assert impossible.exit_code == 4
    assert "'abandon' is not possible there (possible: " in impossible.stderr


def test_bad_settings_are_listed_together(smi: Smi) -> None:
    done = smi("jobs", "list", SMI_SECRET_KEY="", SMI_CURRENCY="dollars", SMI_PAYMENT_TIMEOUT_HOURS="99")
    assert done.exit_code == 2
    for name in ("SMI_SECRET_KEY is not set", "SMI_CURRENCY", "SMI_PAYMENT_TIMEOUT_HOURS"):
        assert name in done.stderr


def test_a_database_that_is_not_migrated_says_so(smi: Smi, tmp_path: Path) -> None:
    done = smi("jobs", "list", SMI_DATABASE_URL=f"sqlite:///{tmp_path / 'fresh.sqlite3'}")
    assert done.exit_code == 2
    assert "smi migrate" in done.stderr
    assert answer(smi("migrate", "--json", SMI_DATABASE_URL=f"sqlite:///{tmp_path / 'fresh.sqlite3'}")) == {
        "applied": sorted(path.stem for path in MIGRATIONS.glob("[0-9]*.py"))
    }
    assert "up to date" in smi("migrate").stdout


def test_a_database_that_is_away_is_not_a_stack_trace(smi: Smi) -> None:
    done = smi("jobs", "list", SMI_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert done.exit_code in (2, 5)
    assert done.stderr.startswith("smi:")


def test_graph_needs_no_settings(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SMI_")}
    for form, start in (("mermaid", "stateDiagram"), ("svg", "<svg"), ("json", "{")):
        done = subprocess.run(
            [SMI, "graph", "refund", "--format", form], env=clean, cwd=tmp_path, capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        assert start in done.stdout


@pytest.mark.parametrize("command", [(), ("jobs",), ("fire",), ("jobs", "list"), ("demo",), ("up",), ("graph",)])
def test_help_has_an_example_or_the_commands(smi: Smi, command: tuple[str, ...]) -> None:
    done = smi(*command, "--help")
    assert done.exit_code == 0
    assert "Example" in done.stdout or "Commands" in done.stdout
