"""The page on which a buyer waits, and the page of the documentation: what they say, show and allow. By pytest."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from smi_workflow.effects.hook import body_of
from smi_workflow.web.models import HookMessage
from smi_workflow.web.problems import MEDIA_TYPE
from smi_workflow.web.site import create_app
from tests.support.desks import Desk, open_desk

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(f"sqlite:///{tmp_path / 'pages.sqlite3'}", tmp_path) as desk:
        yield desk


@pytest.fixture
def client(desk: Desk) -> FlaskClient:
    return create_app(desk.app).test_client()


def page(client: FlaskClient, path: str) -> TestResponse:
    answer = client.get(path, headers=BROWSER)
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    return answer


def steps(answer: TestResponse) -> list[tuple[str, str]]:
    return re.findall(r'<li class="(\w+)">([^<]+)</li>', answer.text)


@pytest.mark.parametrize(
    ("status", "columns", "said", "at"),
    [
        ("awaiting_payment", {}, "We are waiting for your payment", "now later later"),
        ("awaiting_payment", {"payment_status": "failed"}, "another card", "now later later"),
        ("pending", {}, "next in line", "done now later"),
        ("processing", {}, "is being upscaled", "done now later"),
        ("completed", {}, "We are sending you the download link by e-mail", "done done now"),
        ("completed", {"email_sent": True}, "We have sent you the download link by e-mail", "done done done"),
        ("failed", {}, "Your money will be sent back", ""),
        ("failed", {"refunded_cents": 384}, "Your money was sent back", ""),
        ("abandoned", {}, "Nothing was charged", ""),
    ],
)
def test_a_buyer_sees_how_far_it_is_and_what_happens_next(
    desk: Desk, client: FlaskClient, status: str, columns: dict[str, object], said: str, at: str
) -> None:
    job_id = desk.put(status, **columns)
    answer = page(client, f"/jobs/{job_id}")
    assert said in answer.text
    assert job_id in answer.text
    assert " ".join(state for state, _ in steps(answer)) == at
    # Nobody looks again where nothing more will come, with scripts or without.
    told = client.get(f"/api/v1/jobs/{job_id}").get_json()
    assert ("data-final" in answer.text) is told["final"]
    assert ('http-equiv="refresh"' in answer.text) is not told["final"]
    assert told["progress"] in answer.text
    assert told["next"] in answer.text


def test_whoever_comes_back_from_the_checkout_is_thanked_and_believed_nothing(
    desk: Desk, client: FlaskClient
) -> None:
    job_id = desk.put("awaiting_payment")
    before = [desk.job(job_id).version, len(desk.app.jobs.history(job_id))]
    for _ in range(3):
        answer = page(client, f"/jobs/{job_id}?from=checkout")
        assert "Thank you for your order" in answer.text
        assert "is being confirmed" in answer.text
    job = desk.job(job_id)
    assert [job.version, len(desk.app.jobs.history(job_id))] == before
    assert (job.status, job.payment_status) == ("awaiting_payment", "pending")
    # Who was declined, or is further on, is told so.
    desk.set(job_id, payment_status="failed")
    assert "another card" in page(client, f"/jobs/{job_id}?from=checkout").text
    assert "Thank you" not in page(client, f"/jobs/{desk.put('failed')}?from=checkout").text


def test_the_page_shows_nothing_personal_and_opens_nothing(desk: Desk, client: FlaskClient) -> None:
    for status in ("awaiting_payment", "completed", "failed"):
        job_id = desk.put(status, email="jane@example.com", image_url="https://shop.example/jane.png")
        text = page(client, f"/jobs/{job_id}").text
        for secret in ("jane", "shop.example", "download/", "0" * 64, "pay.example", "cs_1", "sources/", "3.84"):
            assert secret not in text, secret


def test_the_pages_allow_exactly_what_they_bring(desk: Desk, client: FlaskClient) -> None:
    job_id = desk.put("processing")
    for path, has_script in ((f"/jobs/{job_id}", True), ("/docs", False)):
        answer = page(client, path)
        policy = answer.headers["Content-Security-Policy"]
        for tag in ("style", "script") if has_script else ("style",):
            (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, flags=re.DOTALL)
            digest = b64encode(hashlib.sha256(source.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert ("script" in answer.text, "connect-src 'self'" in policy) == (has_script, has_script)
        assert "unsafe" not in policy
        assert not re.search(r"<(img|link|iframe|form)| style=| on\w+=|src=", answer.text)
        assert not re.search(r"https?://(?!shop\.example)", answer.text)
        assert 'name="viewport"' in answer.text
        assert "prefers-color-scheme: dark" in answer.text


@pytest.mark.parametrize("job_id", ["nobody", "%00", "x" * 65, "é", "<script>"])
def test_a_page_of_a_job_that_is_not_there(client: FlaskClient, job_id: str) -> None:
    person = client.get(f"/jobs/{job_id}", headers=BROWSER)
    assert (person.status_code, person.mimetype) == (404, "text/html")
    assert "<script" not in person.text
    assert client.get(f"/jobs/{job_id}").content_type == MEDIA_TYPE


def test_the_documentation_names_every_route_of_the_interface(desk: Desk, client: FlaskClient) -> None:
    document = client.get("/openapi.json").get_json()
    assert document["openapi"] == "3.1.0"
    text = page(client, "/docs").text
    site = create_app(desk.app)
    rules = {re.sub(r"<(\w+)>", r"{\1}", rule.rule) for rule in site.url_map.iter_rules() if "/api/" in rule.rule}
    assert rules <= set(document["paths"])
    for path, methods in document["paths"].items():
        assert path in text
        for method, operation in methods.items():
            assert operation["summary"]
            assert operation["description"]
            assert operation["tags"], (path, method)
            for parameter in operation["parameters"]:
                assert parameter["description"], (path, parameter["name"])
            if method == "post":
                assert operation["requestBody"]["content"]["application/json"]["example"]
    assert "webhook-signature" in text
    for body in ("Order", "Size", "Wish"):
        for name, field in document["components"]["schemas"][body]["properties"].items():
            assert field["description"], (body, name)
    for status, answer in document["components"]["responses"].items():
        assert answer["content"][MEDIA_TYPE]["example"]["status"] == int(status)


def test_what_receivers_are_told_is_what_the_document_says() -> None:
    told = {"hook": "job_completed", "at": "2026-03-01T12:00:00+00:00", "sequence": 6, "status": "completed"}
    attempt: Any = SimpleNamespace(subject_id="job-1", inputs=told)
    message = HookMessage.model_validate_json(body_of(attempt))
    assert (message.type, message.data.job_id, message.data.sequence) == ("job_completed", "job-1", 6)
    assert json.loads(message.model_dump_json()).keys() == json.loads(body_of(attempt)).keys()
