"""Owns the proof of what every answer has, and of how the processes start. Called by pytest."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from smi_workflow.app import MIGRATIONS, App
from smi_workflow.engine.database import open_database
from smi_workflow.engine.migrate import roll_back
from smi_workflow.web.problems import MEDIA_TYPE
from smi_workflow.web.serving import RequestNames
from smi_workflow.web.site import create_app
from tests.support.apps import REPOSITORY, finished_job, gunicorn, open_test_app, picture, settings_environment

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = open_test_app(tmp_path)
    yield app
    app.close()


@pytest.fixture
def client(app: App) -> FlaskClient:
    return create_app(app).test_client()


def test_every_answer_has_the_headers(app: App, client: FlaskClient) -> None:
    _, token = finished_job(app, picture(60, 40))
    seen = set()
    for method, path in (
        ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/thanks"), ("GET", "/nowhere"), ("DELETE", "/thanks"),
        ("POST", "/webhooks/stripe"), ("POST", "/api/v1/jobs"), ("GET", f"/download/{token}"),
        ("OPTIONS", "/thanks"), ("GET", "/api/v1/jobs/job-1"), ("HEAD", f"/download/{token}"),
    ):  # fmt: skip
        for headers in ({}, BROWSER):
            with client.open(path, method=method, headers=headers) as answer:
                seen.add(answer.status_code)
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["X-Frame-Options"] == "DENY"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                assert "no-store" in answer.headers["Cache-Control"]
                assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
                assert "Location" not in answer.headers
                assert "Set-Cookie" not in answer.headers
    assert seen == {200, 404, 405, 415}


def test_a_request_id_is_kept_if_it_is_sane(client: FlaskClient) -> None:
    def echoed(given: str) -> bool:
        return client.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given

    assert echoed("req_1.a:b-C")
    for odd in ("", "x" * 65, "a b", "é", "<script>", "a,b"):
        assert not echoed(odd)


def test_a_problem_names_its_request(client: FlaskClient) -> None:
    answer = client.get("/nowhere", headers={"X-Request-Id": "req-7"})
    assert answer.content_type == MEDIA_TYPE
    assert answer.get_json(force=True)["request_id"] == "req-7"


def test_one_line_per_request_without_what_strangers_wrote(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "smi_workflow.web"):
        client.get("/download/" + "T0KEN" * 12 + "abcd?email=jane@example.com", headers={"X-Request-Id": "req-7"})
        client.get("/S3CRET?q=jane")
    first, second = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"GET /download/<token> 404 \d+ ms req-7", first)
    assert re.fullmatch(r"GET \(no route\) 404 \d+ ms [0-9a-f]{32}", second)


def test_the_page_and_its_policy_agree(client: FlaskClient) -> None:
    """The hash in the policy is that of the style as it stands in the page."""
    for path in ("/thanks", "/nowhere"):
        answer = client.get(path, headers=BROWSER)
        style = answer.text.partition("<style>")[2].partition("</style>")[0]
        digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in answer.headers["Content-Security-Policy"]
        assert answer.text.count("<style") == 1
        assert not re.search(r"<(script|img|link|iframe|form)| style=| on\w+=", answer.text)
        assert 'name="viewport"' in answer.text
        assert "prefers-color-scheme: dark" in style


# -- connections ---------------------------------------------------------------------------------------------


def test_a_transaction_left_open_is_rolled_back(app: App, caplog: pytest.LogCaptureFixture) -> None:
    site = create_app(app)
    table = app.tables.audit

    @site.get("/careless")
    def careless() -> str:
        app.database.begin()
        app.database.push_transaction(object())
        table.insert(actor="x", act="x", target="x", created_at=app.clock.now()).execute()
        return "done"

    client = site.test_client()
    assert client.get("/careless").status_code == 200
    assert app.database.transaction_depth() == 0
    assert "left a transaction open" in caplog.text
    assert table.select().count() == 0
    assert client.get("/readyz").status_code == 200


def test_a_server_that_drops_its_connections_is_met_again(tmp_path: Path, postgres_url: str) -> None:
    """Nobody is answered 503 for a restart that is over: what is dead is noticed before it is used."""
    with closing(open_test_app(tmp_path, database_url=postgres_url)) as app:
        finished_job(app, picture(60, 40))
        client = create_app(app).test_client()
        # PostgreSQL refuses to compare with NUL.
        assert client.get("/api/v1/jobs/%00").status_code == 404
        for path in ("/api/v1/jobs/job-1", "/readyz"):
            assert client.get(path).status_code == 200
            with closing(open_database(postgres_url)) as other:
                other.execute_sql(  # type: ignore[no-untyped-call]
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            assert [client.get(path).status_code for _ in range(2)] == [200, 200]


# -- health and start ----------------------------------------------------------------------------------------


def test_ready_only_with_a_current_schema(tmp_path: Path, app: App, client: FlaskClient) -> None:
    assert client.get("/readyz").get_json() == {"status": "ready"}
    roll_back(app.database, MIGRATIONS, prefix="wp_", to=None)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.content_type) == (503, MEDIA_TYPE)
    assert answer.headers["Retry-After"]
    assert client.get("/healthz").status_code == 200


def test_not_ready_without_a_database(tmp_path: Path) -> None:
    app = open_test_app(tmp_path, migrated=False, database_url="postgresql://u:hunter2@127.0.0.1:1/shop")
    client = create_app(app).test_client()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.content_type) == (503, MEDIA_TYPE)
    assert "127.0.0.1" not in answer.text
    assert client.get("/healthz").status_code == 200
    app.close()


@pytest.mark.parametrize("target", ["site", "downloads"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SMI_STRIPE_API_KEY": "", "SMI_SECRET_KEY": ""}, ["SMI_STRIPE_API_KEY is not set", "SMI_SECRET_KEY"]),
        ({"SMI_DATABASE_URL": "sqlite:///{folder}/empty.sqlite3"}, ["run `smi migrate`"]),
        ({"SMI_BROKER_URL": "redis://:hunter2@localhost/?db=first"}, ["SMI_BROKER_URL"]),
    ],
)
def test_a_process_that_cannot_start_says_why(
    tmp_path: Path, app: App, target: str, changes: dict[str, str], said: list[str]
) -> None:
    changes = {name: value.format(folder=tmp_path) for name, value in changes.items()}
    done = subprocess.run(
        [sys.executable, "-c", f"from smi_workflow.web.{target} import create_app; create_app()"],
        env={**os.environ, **settings_environment(app.settings), **changes},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    for text in said:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_gunicorn_gives_up_on_a_site_that_cannot_start(tmp_path: Path, app: App) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.conf.py", "--bind", "127.0.0.1:0",
         "smi_workflow.web.site:create_app()"],
        env={**os.environ, **settings_environment(app.settings), "SMI_STRIPE_API_KEY": ""},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "SMI_STRIPE_API_KEY is not set" in done.stderr
    assert "Booting worker" not in done.stderr
    assert "Traceback" not in done.stderr


def test_gunicorn_without_a_home_and_without_root(tmp_path: Path, app: App) -> None:
    """Nothing is written outside of the data folder."""
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    with gunicorn(tmp_path, "smi_workflow.web.site:create_app()", app.settings, HOME=str(home)) as (url, log):
        assert url
    assert list(home.iterdir()) == []
    assert "Traceback" not in log.read_text()


def test_every_line_of_a_request_names_it(app: App) -> None:
    site = create_app(app)
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    kept = Kept()
    kept.addFilter(RequestNames())
    log = logging.getLogger("smi_workflow.engine.fire")

    @site.get("/talkative")
    def talkative() -> str:
        log.warning("conflict, trying again (%d of %d)", 1, 3)
        return "done"

    log.addHandler(kept)
    try:
        site.test_client().get("/talkative", headers={"X-Request-Id": "req-7"})
        log.warning("outside of %s", "requests")
    finally:
        log.removeHandler(kept)
    assert lines == ["conflict, trying again (1 of 3) (request req-7)", "outside of requests"]
