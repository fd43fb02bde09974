"""Owns the proof that links open what they should, byte for byte, for as long as they should. Called by pytest."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from smi_workflow.app import App
from smi_workflow.jobs.tokens import download_token, sign_until
from smi_workflow.web import downloads, site
from smi_workflow.web.problems import MEDIA_TYPE
from tests.support.apps import SECRET_KEY, finished_job, open_test_app, picture
from tests.support.engines import HandClock

KEY = SECRET_KEY.encode()
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
# Several chunks long, and no chunk's multiple.
CONTENT = picture(60, 40) + random.Random(1).randbytes(200_001)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def app(tmp_path: Path, clock: HandClock) -> Iterator[App]:
    app = open_test_app(tmp_path, clock=clock)
    yield app
    app.close()


@pytest.fixture
def client(app: App) -> FlaskClient:
    return site.create_app(app).test_client()


@pytest.fixture
def path(app: App) -> str:
    """The link to a file, in a shop of this test alone."""
    return f"/download/{finished_job(app, CONTENT)[1]}"


@pytest.fixture(scope="module")
def still_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One for all tests that only read."""
    app = open_test_app(tmp_path_factory.mktemp("still"))
    yield app
    app.close()


@pytest.fixture(scope="module")
def link(still_app: App) -> str:
    """The link to a file that stays."""
    return f"/download/{finished_job(still_app, CONTENT)[1]}"


@pytest.fixture
def reader(still_app: App) -> FlaskClient:
    """A client of the downloads process."""
    return downloads.create_app(still_app).test_client()


def test_the_whole_file(reader: FlaskClient, link: str) -> None:
    with reader.get(link) as answer:
        assert (answer.status_code, answer.data) == (200, CONTENT)
        headers = answer.headers
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-Length"] == str(len(CONTENT))
    assert headers["Content-Disposition"] == "attachment; filename=job-1-4x.png"
    assert headers["Cache-Control"] == "private, no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["ETag"].startswith('"')


@pytest.mark.parametrize("range_header", [None, "bytes=5-9"])
def test_head_tells_the_same_without_the_bytes(reader: FlaskClient, link: str, range_header: str | None) -> None:
    with (
        reader.get(link) as whole,
        reader.head(link, headers={"Range": range_header} if range_header else {}) as head,
    ):
        assert (head.status_code, head.data) == (200, b"")
        different = {"X-Request-Id", "Date"}
        assert {n: v for n, v in head.headers.items() if n not in different} == {
            n: v for n, v in whole.headers.items() if n not in different
        }


END = len(CONTENT) - 1


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, END),
        ("bytes=5-9", 5, 9),
        ("bytes=65535-65536", 65535, 65536),
        ("bytes=100000-", 100_000, END),
        (f"bytes={END}-", END, END),
        (f"bytes=10-{END + 1000}", 10, END),
        ("bytes=10-999999999999999999", 10, END),
        ("bytes=-1", END, END),
        ("bytes=-70000", END - 69_999, END),
        ("bytes=-999999999", 0, END),
    ],
)
def test_a_range_byte_for_byte(reader: FlaskClient, link: str, asked: str, first: int, last: int) -> None:
    with reader.get(link, headers={"Range": asked}) as answer:
        assert answer.status_code == 206
        assert answer.data == CONTENT[first : last + 1]
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
        assert answer.headers["Content-Length"] == str(last - first + 1)


@pytest.mark.parametrize(
    "asked", [f"bytes={END + 1}-", "bytes=999999999-", f"bytes={END + 1}-{END + 2}", "bytes=-0"]
)
def test_a_range_beyond_the_end(reader: FlaskClient, link: str, asked: str) -> None:
    with reader.get(link, headers={"Range": asked}) as answer:
        assert (answer.status_code, answer.content_type) == (416, MEDIA_TYPE)
        assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-1,5-9", "lines=1-2", "bytes", "bytes=", "bytes=a-b", "bytes=--5", "0-5", "bytes=1" + "0" * 30 + "-",
     "bytes=0x1-2", ",".join(["bytes=0-"] * 50), "bytes=\xb2-\xb3"],
)  # fmt: skip
def test_any_other_range_is_the_whole_file(reader: FlaskClient, link: str, asked: str) -> None:
    with reader.get(link, headers={"Range": asked}) as answer:
        assert (answer.status_code, answer.data) == (200, CONTENT)


def test_a_resumed_download_gets_the_rest_only_of_the_same_file(reader: FlaskClient, link: str) -> None:
    with reader.head(link) as head:
        etag, modified = head.headers["ETag"], head.headers["Last-Modified"]
    for same in (etag, modified):
        with reader.get(link, headers={"Range": "bytes=9-", "If-Range": same}) as answer:
            assert (answer.status_code, answer.data) == (206, CONTENT[9:])
    for other in ('"other"', "Mon, 01 Jan 2001 00:00:00 GMT"):
        with reader.get(link, headers={"Range": "bytes=9-", "If-Range": other}) as answer:
            assert (answer.status_code, answer.data) == (200, CONTENT)
    with reader.get(link, headers={"If-None-Match": etag}) as answer:
        assert (answer.status_code, answer.data) == (304, b"")


def test_another_file_has_another_tag(app: App, client: FlaskClient, path: str) -> None:
    _, token = finished_job(app, CONTENT[:-1] + b"x", job_id="job-2")
    with client.head(path) as one, client.head(f"/download/{token}") as other:
        assert one.headers["ETag"] != other.headers["ETag"]


@pytest.mark.parametrize(
    ("columns", "status"),
    [
        ({"status": "awaiting_payment"}, 425),
        ({"status": "pending"}, 425),
        ({"status": "processing"}, 425),
        ({"status": "failed"}, 410),
        ({"upscaled_file_path": None}, 410),
        ({"upscaled_file_path": "results/gone.png"}, 410),
        ({"upscaled_file_path": "../../etc/passwd"}, 410),
        ({"upscaled_file_path": "/etc/passwd"}, 410),
        ({"download_expires_at": None}, 410),
    ],
)
@pytest.mark.parametrize("headers", [{}, BROWSER])
def test_a_link_that_opens_nothing_now(
    still_app: App, reader: FlaskClient, columns: dict[str, Any], status: int, headers: dict[str, str]
) -> None:
    _, token = finished_job(still_app, CONTENT, job_id=uuid.uuid4().hex, **columns)
    for method in ("GET", "HEAD"):
        with reader.open(f"/download/{token}", method=method, headers=headers) as answer:
            assert answer.status_code == status
            assert answer.content_type.startswith("text/html" if headers else MEDIA_TYPE)
            assert answer.headers["Cache-Control"] == "no-store"
            assert token.encode() not in answer.data


def test_a_link_expires_at_its_time(app: App, client: FlaskClient, clock: HandClock, path: str) -> None:
    clock.advance(hours=24, microseconds=-1)
    assert client.head(path).status_code == 200
    clock.advance(microseconds=1)
    assert client.head(path).status_code == 410


def test_a_renewed_link_kills_the_old_one(app: App, client: FlaskClient, path: str) -> None:
    app.jobs.fire("job-1", "renew_download", actor="admin:jane", reason="lost mail")
    assert client.head(path).status_code == 404
    assert client.head(f"/download/{download_token(KEY, 'job-1', 2)}").status_code == 200


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "0" * 63,
        "0" * 64,
        "0" * 65,
        "é" * 64,
        "%00" * 64,
        "../" * 21 + "x",
        "0" * 63 + "%0a",
        "\u0660" * 64,
        "'" * 64,
    ],
)
def test_a_token_that_was_never_issued(reader: FlaskClient, link: str, token: str) -> None:
    with reader.get(f"/download/{token}") as answer:
        assert (answer.status_code, answer.content_type) == (404, MEDIA_TYPE)
    assert reader.get(link[:-1]).status_code == 404
    assert reader.get(f"{link}/").status_code == 404


def test_a_hash_does_not_open_what_its_token_opens(app: App, client: FlaskClient, path: str) -> None:
    stored = app.jobs.get_job("job-1").download_token
    assert stored is not None
    assert client.get(f"/download/{stored}").status_code == 404


# -- our copy of the source, for Upsampler --------------------------------------------------------------------


def source_path(until: datetime, job_id: str = "job-1", key: bytes = KEY) -> str:
    return f"/source/{job_id}/{sign_until(key, 'source', until, job_id)}"


def test_the_source(app: App, client: FlaskClient, clock: HandClock, path: str) -> None:
    good = source_path(clock.now() + timedelta(hours=1))
    with client.get(good) as answer:
        assert (answer.status_code, answer.data) == (200, CONTENT)
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Content-Disposition" not in answer.headers
    with client.head(good) as head:
        assert (head.status_code, head.data) == (200, b"")
        assert head.headers["Content-Length"] == str(len(CONTENT))
    assert app.storage.remove(app.jobs.get_job("job-1").source_file)
    assert client.get(good).status_code == 404


def test_a_source_link_is_over_at_its_time(client: FlaskClient, clock: HandClock, path: str) -> None:
    until = clock.now() + timedelta(hours=1)
    clock.advance(seconds=3599)
    assert client.head(source_path(until)).status_code == 200
    clock.advance(seconds=1)
    with client.get(source_path(until)) as answer:
        assert (answer.status_code, answer.content_type) == (410, MEDIA_TYPE)


def test_a_source_link_that_is_not_ours(client: FlaskClient, clock: HandClock, path: str) -> None:
    until = clock.now() + timedelta(hours=1)
    good = source_path(until)
    end = int(until.timestamp())
    for wrong in (
        source_path(until, key=b"other"),
        source_path(until, job_id="job-2"),
        good.replace(str(end), str(end + 1)),
        good.replace(str(end), f"{end}0"),
        good.replace(str(end), "9" * 13),
        good.replace(str(end), "\u0663"),
        good.replace("/job-1/", "/job-2/"),
        good[:-1],
        good.upper(),
        "/source/job-1/-",
        "/source/job-1/%00",
        "/source/job-1/",
    ):
        with client.get(wrong) as answer:
            assert (answer.status_code, answer.content_type) == (404, MEDIA_TYPE), wrong


def test_the_site_serves_them_as_the_downloads_process_does(app: App, clock: HandClock, path: str) -> None:
    one, other = site.create_app(app).test_client(), downloads.create_app(app).test_client()
    for link in (path, source_path(clock.now() + timedelta(hours=1))):
        with one.get(link) as first, other.get(link) as second:
            assert first.data == second.data == CONTENT
    assert other.get("/healthz").status_code == 200
    assert other.post("/webhooks/stripe").status_code == 404
    assert other.post("/api/v1/jobs").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_files_are_only_read(client: FlaskClient, clock: HandClock, path: str, method: str) -> None:
    for one in (path, source_path(clock.now() + timedelta(hours=1))):
        assert client.open(one, method=method).status_code == 405
