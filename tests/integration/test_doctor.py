"""`smi doctor`, run as a person runs it: what it looks at, what it says, and that it changes nothing."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from smi_workflow.app import App
from smi_workflow.cli.doctor import CHECKS, INVARIANTS
from smi_workflow.cli.main import app as cli
from smi_workflow.cli.surroundings import Look, Remark
from smi_workflow.jobs.schedule import set_up_schedules
from smi_workflow.sandbox import Sandbox
from tests.support.apps import finished_job, open_test_app, picture, settings_environment
from tests.support.desks import job_columns
from tests.support.receivers import SECRET, running_receiver
from tests.support.sandbox import running_sandbox

Smi = Callable[..., Result]
JUDGED = [word for item in INVARIANTS for word in ("--only", item.name)]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path_factory.mktemp("sandbox")) as running:
        yield running


@pytest.fixture
def app(database_url: str, tmp_path: Path, sandbox: Sandbox) -> Iterator[App]:
    """A migrated shop on each kind of database, with providers that answer."""
    opened = open_test_app(tmp_path, sandbox, database_url=database_url)
    yield opened
    opened.close()


@pytest.fixture
def smi(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    return command_for(app, tmp_path, monkeypatch)


@pytest.fixture
def plain_smi(sqlite_url: str, tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Smi]:
    """The same on SQLite alone, for what lies around the database."""
    opened = open_test_app(tmp_path, sandbox, database_url=sqlite_url)
    yield command_for(opened, tmp_path, monkeypatch)
    opened.close()


def command_for(app: App, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """`smi` with the settings of this shop."""
    for name in [name for name in os.environ if name.startswith("SMI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    environment = {**settings_environment(app.settings), "SMI_ENV_FILE": os.devnull, "COLUMNS": "200"}

    def run(*arguments: str, **changes: str) -> Result:
        done = CliRunner().invoke(cli, arguments, env={**environment, **changes})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.output
        return done

    return run


def checks(done: Result) -> dict[str, dict[str, Any]]:
    """The verdicts, by name."""
    return {item["name"]: item for item in json.loads(done.stdout)["checks"]}


def start(app: App, job_id: str = "job-1") -> str:
    app.engine.start("job", {**job_columns(job_id), "created_at": app.clock.now()}, actor="buyer")
    app.storage.path(f"sources/{job_id}.png").parent.mkdir(parents=True, exist_ok=True)
    app.storage.path(f"sources/{job_id}.png").write_bytes(picture(20, 10))
    return job_id


def test_a_healthy_shop(app: App, smi: Smi) -> None:
    start(app)
    done = smi("doctor", "--json")
    told = checks(done)
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (0, True), told
    assert list(told) == [item.name for item in CHECKS]
    noted = {name for name, item in told.items() if item["status"] == "noted"}
    assert noted == {"settings", "broker", "schedules"}, (
        "a test key, nobody to tell, no broker and no relay yet: worth knowing, no fault"
    )
    assert {item["status"] for item in told.values()} == {"fine", "noted"}


def test_what_is_wrong_is_explained_with_its_remedy(app: App, smi: Smi) -> None:
    job_id = start(app)
    app.job_tables.jobs.update(paid_cents=7).execute()
    done = smi("doctor", *JUDGED)
    assert done.exit_code == 1
    assert f"job {job_id}: it counts 7 cents as paid, its payments are 0" in done.stdout
    assert "→ Compare the job with Stripe's dashboard" in done.stdout
    told = checks(smi("doctor", "--json", *JUDGED))
    assert [name for name, item in told.items() if item["status"] == "wrong"] == ["payments_match"]
    found = told["payments_match"]["found"]
    assert [(one["workflow"], one["subject_id"]) for one in found] == [("job", job_id)]


def test_only_some_checks(app: App, smi: Smi) -> None:
    app.job_tables.jobs.update(paid_cents=7).execute()
    assert list(checks(smi("doctor", "--json", "--only", "definition", "--only", "disk"))) == [
        "disk",
        "definition",
    ]
    unknown = smi("doctor", "--only", "horoscope")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "no check horoscope" in unknown.stderr


def test_before_a_deploy(app: App, smi: Smi) -> None:
    start(app)
    assert smi("doctor", "--only", "definition").exit_code == 0
    effects = app.tables.effects
    effects.update(name="teleport").where(effects.name == "payment_deadline").execute()
    done = smi("doctor", "--only", "definition")
    assert done.exit_code == 1
    assert "1 owed effects teleport, which this release lacks" in done.stdout


def test_a_sample(app: App, smi: Smi) -> None:
    for number in range(5):
        start(app, f"job-{number}")
    app.job_tables.jobs.update(version=9).execute()
    told = json.loads(smi("doctor", "--json", "--sample", "2", "--only", "history_gapless").stdout)
    assert told["sample"] == 2
    assert len(told["checks"][0]["found"]) == 2
    assert smi("doctor", "--sample", "0").exit_code == 2


def test_many_violations_are_counted_and_not_poured_out(app: App, smi: Smi) -> None:
    for number in range(7):
        start(app, f"job-{number}")
    app.job_tables.jobs.update(version=9).execute()
    done = smi("doctor", "--only", "history_gapless")
    assert done.stdout.count("it is at version 9") == 5
    assert "and 2 more" in done.stdout


def test_periodic_work_that_is_overdue_or_fails_is_found(app: App, smi: Smi) -> None:
    set_up_schedules(app.engine)

    def look() -> tuple[str, list[str]]:
        found = checks(smi("doctor", "--json", "--only", "schedules"))["schedules"]
        return found["status"], [one["text"] for one in found["found"]]

    schedules, now = app.job_tables.schedules, datetime.now(UTC)
    assert look() == ("fine", [])
    schedules.update(updated_at=now - timedelta(minutes=80)).execute()
    status, (text,) = look()
    assert (status, "reconcile is overdue" in text) == ("wrong", True)
    schedules.update(updated_at=now, failures=3).execute()
    status, (text,) = look()
    assert (status, text.startswith("reconcile has failed 3 times running")) == ("wrong", True)
    app.engine.fire("schedule", "reconcile", "pause", actor="admin:jane")
    status, (text,) = look()
    assert (status, text.startswith("reconcile is paused since")) == ("noted", True)


def test_it_lists_what_it_checks(plain_smi: Smi) -> None:
    listed = json.loads(plain_smi("doctor", "--list", "--json").stdout)
    assert [item["name"] for item in listed] == [item.name for item in CHECKS]
    assert all(item["sentence"].endswith(".") and item["remedy"].endswith(".") for item in listed)
    assert "history_gapless" in plain_smi("doctor", "--list").stdout


def test_it_writes_nothing(app: App, smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by good will alone: the database refuses."""
    start(app)

    def write(system: App) -> Iterator[Remark]:
        system.job_tables.jobs.update(paid_cents=7).execute()
        yield Remark("it could be written to")

    monkeypatch.setattr("smi_workflow.cli.doctor.CHECKS", (Look("schema", "A trick.", "None.", write),))
    verdict = checks(smi("doctor", "--json"))["schema"]
    assert verdict["status"] == "unknown", verdict
    assert app.jobs.get_job("job-1").paid_cents == 0


@pytest.mark.parametrize("broken", [{"SMI_SECRET_KEY": "short"}, {"SMI_STRIPE_API_KEY": ""}])
def test_settings_that_cannot_be_read(plain_smi: Smi, broken: dict[str, str]) -> None:
    done = plain_smi("doctor", **broken)
    assert (done.exit_code, done.stdout) == (2, "")
    assert next(iter(broken)) in done.stderr


def test_a_database_that_is_not_there(plain_smi: Smi, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.sqlite3"
    for url in (f"sqlite:///{nowhere}", f"postgresql://smi@/smi?host={tmp_path}"):
        done = plain_smi("doctor", SMI_DATABASE_URL=url)
        assert (done.exit_code, done.stdout) == (2, ""), url
        assert done.stderr.startswith("smi: ")
    assert not nowhere.exists(), "looking for a database must not make one"


def test_a_database_that_is_not_set_up(plain_smi: Smi, tmp_path: Path) -> None:
    empty = tmp_path / "empty.sqlite3"
    empty.touch()
    url = f"sqlite:///{empty}"
    done = plain_smi("doctor", SMI_DATABASE_URL=url)
    assert done.exit_code == 2
    assert "smi migrate" in done.stderr
    assert (
        checks(plain_smi("doctor", "--json", "--only", "schema", SMI_DATABASE_URL=url))["schema"]["status"]
        == "wrong"
    )


@pytest.mark.parametrize(
    ("check", "changes", "said"),
    [
        ("settings", {"SMI_SECRET_KEY": "a" * 32}, "looks guessable"),
        ("settings", {"SMI_STRIPE_API_KEY": "sk_live_x"}, "not https, and the Stripe key is a live one"),
        ("settings", {"SMI_STRIPE_API_KEY": "rk_live_x"}, "SMI_ALLOW_PRIVATE_ADDRESSES is on"),
        ("settings", {"SMI_CURRENCY": "jpy"}, "SMI_CREDIT_COST is not set"),
        ("settings", {"SMI_CURRENCY": "krw", "SMI_CREDIT_COST": "55"}, "SMI_PRICE_MINIMUM is not set"),
        ("broker", {"SMI_BROKER_URL": "redis://:secret@127.0.0.1:1/0"}, "redis://:***@127.0.0.1:1/0"),
        ("broker", {"SMI_BROKER_URL": "amqp://127.0.0.1:1"}, "Connection refused"),
        ("stripe", {"SMI_STRIPE_API_BASE": "http://127.0.0.1:1"}, "cannot be reached (Connection refused)"),
        ("upsampler", {"SMI_UPSAMPLER_API_BASE": "http://127.0.0.1:1/api"}, "127.0.0.1 cannot be reached"),
        ("mail", {"SMI_SMTP_URL": "smtp://user:secret@127.0.0.1:1"}, "mail server 127.0.0.1 does not answer"),
        ("hooks", {"SMI_HOOK_URLS": "http://x:secret@127.0.0.1:1/secret", "SMI_HOOK_SECRET": SECRET},
         "at 127.0.0.1 cannot be reached"),
    ],
)
def test_what_is_wrong_around_the_database(plain_smi: Smi, check: str, changes: dict[str, str], said: str) -> None:
    done = plain_smi("doctor", "--json", "--only", check, **changes)
    verdict = checks(done)[check]
    assert (done.exit_code, verdict["status"]) == (1, "wrong")
    assert said in " ".join(one["text"] for one in verdict["found"])
    assert "secret" not in done.output


@pytest.mark.parametrize(
    ("check", "setting", "status", "hours_away", "said"),
    [
        ("stripe", "SMI_STRIPE_API_BASE", 401, 0, "Stripe refuses SMI_STRIPE_API_KEY"),
        ("stripe", "SMI_STRIPE_API_BASE", 200, 1, "our clock is 3600 s away from Stripe's"),
        ("stripe", "SMI_STRIPE_API_BASE", 403, 0, ""),
        ("upsampler", "SMI_UPSAMPLER_API_BASE", 503, 0, "127.0.0.1 answers 503"),
        ("upsampler", "SMI_UPSAMPLER_API_BASE", 404, 0, ""),
    ],
)
def test_what_a_provider_answers(
    plain_smi: Smi, check: str, setting: str, status: int, hours_away: int, said: str
) -> None:
    with answering(status, timedelta(hours=hours_away)) as url:
        verdict = checks(plain_smi("doctor", "--json", "--only", check, **{setting: url}))[check]
    assert verdict["status"] == ("wrong" if said else "fine")
    told = " ".join(one["text"] for one in verdict["found"])
    assert said.split(" 3600")[0] in told


def test_receivers_are_shown_by_name_and_host_alone(plain_smi: Smi) -> None:
    """What history calls them, so that an admin knows which is which; their URLs may carry secrets."""
    with running_receiver() as receiver:
        changes = {"SMI_HOOK_URLS": f"{receiver.url}/secret", "SMI_HOOK_SECRET": SECRET}
        done = plain_smi("doctor", "--json", "--only", "hooks", **changes)
        assert receiver.messages == []
    verdict = checks(done)["hooks"]
    (text,) = [one["text"] for one in verdict["found"]]
    assert (done.exit_code, verdict["status"]) == (0, "noted")
    assert re.fullmatch(r"receiver [0-9a-f]{16} is at 127\.0\.0\.1", text)
    assert "secret" not in done.output


@contextmanager
def answering(status: int, away: timedelta) -> Iterator[str]:
    """A provider that answers everything with this, and whose clock is wrong by so much."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", format_datetime(datetime.now(UTC) + away, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_broker_that_is_there(plain_smi: Smi) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        assert (
            checks(plain_smi("doctor", "--json", "--only", "broker", SMI_BROKER_URL=f"amqp://127.0.0.1:{port}"))[
                "broker"
            ]["status"]
            == "fine"
        )


def test_a_folder_that_cannot_be_written_to(plain_smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smi_workflow.cli.surroundings.os.access", lambda path, mode: False)
    verdict = checks(plain_smi("doctor", "--json", "--only", "disk"))["disk"]
    assert "SMI_STORAGE_URL" in " ".join(one["text"] for one in verdict["found"])


def test_a_storage_that_fails_is_said_and_hides_nothing_else(
    app: App, smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_job(app, picture(240, 160))

    def fail(self: object, name: str) -> bool:
        raise OSError("input/output error")

    monkeypatch.setattr("smi_workflow.integrations.storage.FileStorage.exists", fail)
    done = smi("doctor", "--json", "--only", "files_there", "--only", "definition")
    assert done.exit_code == 2
    told = checks(done)
    assert (told["files_there"]["status"], told["definition"]["status"]) == ("unknown", "fine")
