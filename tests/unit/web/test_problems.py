"""Owns the check of how errors are answered. Called by pytest."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

import peewee
import pytest
from flask import Blueprint, Flask
from werkzeug.test import TestResponse

from smi_workflow.errors import (
    BadSignature,
    ConfigError,
    InvalidInput,
    ServiceRefused,
    ServiceUnavailable,
    TransitionConflict,
    UnknownJob,
)
from smi_workflow.web.pages import page_routes
from smi_workflow.web.problems import MEDIA_TYPE, Problem, answer_problems, unavailable

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
SECRET = "s3cret-internal-text"


def site_that_raises(error: Exception, blueprint: str = "downloads") -> Flask:
    """A site whose one route fails in one way."""
    site = Flask("smi_workflow.web", static_folder=None)
    answer_problems(site)
    routes = Blueprint(blueprint, __name__)

    def fail() -> NoReturn:
        raise error

    routes.add_url_rule("/fail", view_func=fail, methods=["GET", "POST"])
    site.register_blueprint(routes)
    site.register_blueprint(page_routes())
    return site


def ask(error: Exception, blueprint: str = "downloads", **kwargs: Any) -> TestResponse:
    return site_that_raises(error, blueprint).test_client().get("/fail", **kwargs)


@pytest.mark.parametrize(
    ("error", "status", "members"),
    [
        (InvalidInput("email", "is odd"), 422, {"field": "email", "detail": "email is odd"}),
        (BadSignature(SECRET), 400, {"detail": "The signature does not fit."}),
        (UnknownJob(SECRET), 404, {"detail": "There is nothing here."}),
        (TransitionConflict(SECRET), 503, {}),
        (ServiceUnavailable("source", SECRET), 503, {}),
        (
            ServiceRefused("storage", SECRET, code="not_an_image"),
            422,
            {"code": "not_an_image", "field": "image_url"},
        ),
        (ServiceRefused("source", SECRET, code="http_418"), 422, {"code": "http_418", "field": "image_url"}),
        (ConfigError(SECRET), 500, {}),
        (peewee.OperationalError(SECRET), 503, {}),
        (peewee.DataError(SECRET), 503, {}),
        (ZeroDivisionError(SECRET), 500, {}),
        (RecursionError(SECRET), 500, {}),
        (Problem(418, "I am a teapot", members={"lid": 1}), 418, {"detail": "I am a teapot", "lid": 1}),
        (Problem(499, None), 499, {"title": "Error", "detail": "Error"}),
    ],
)
def test_every_error_is_a_problem(error: Exception, status: int, members: dict[str, object]) -> None:
    answer = ask(error)
    assert answer.status_code == status
    assert answer.content_type == MEDIA_TYPE
    told = answer.get_json(force=True)
    assert told["type"] == "about:blank"
    assert told["status"] == status
    assert told["title"]
    assert told["detail"]
    assert members.items() <= told.items()
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text


def test_a_webhook_is_told_400_where_the_api_says_422() -> None:
    assert ask(InvalidInput("body", "is odd"), "webhooks").status_code == 400
    assert ask(InvalidInput("body", "is odd"), "api").status_code == 422


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (unavailable(), "5"),
        (ServiceUnavailable("source", "", retry_after_seconds=12.2), "13"),
        (ServiceUnavailable("source", "", retry_after_seconds=0), "1"),
        (ServiceUnavailable("source", "", retry_after_seconds=1e9), "3600"),
        (peewee.OperationalError("away"), "5"),
        (TransitionConflict("busy"), "1"),
    ],
)
def test_who_shall_come_again_is_told_when(error: Exception, seconds: str) -> None:
    assert ask(error).headers["Retry-After"] == seconds


@pytest.mark.parametrize("method", ["put", "delete", "patch"])
def test_a_wrong_method_says_which_are_right(method: str) -> None:
    answer = getattr(site_that_raises(ZeroDivisionError()).test_client(), method)("/fail")
    assert (answer.status_code, answer.content_type) == (405, MEDIA_TYPE)
    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize(
    ("accept", "blueprint", "is_page"),
    [
        (BROWSER, "downloads", True),
        ({"Accept": "text/html"}, "downloads", True),
        ({"Accept": "*/*"}, "downloads", False),
        ({}, "downloads", False),
        ({"Accept": "application/json, text/html;q=0.5"}, "downloads", False),
        (BROWSER, "api", False),
        (BROWSER, "webhooks", False),
    ],
)
def test_people_get_a_page(accept: dict[str, str], blueprint: str, is_page: bool) -> None:
    problem = Problem(410, "It is <over>.", title="Too late")
    answer = ask(problem, blueprint, headers=accept)
    assert answer.status_code == 410
    assert answer.headers["Vary"] == "Accept"
    assert answer.content_type.startswith("text/html") is is_page
    if is_page:
        assert "<h1>Too late</h1>" in answer.text
        assert "It is &lt;over&gt;." in answer.text


def test_a_bug_is_logged_with_its_stack_and_data_errors_without_their_rows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ask(ZeroDivisionError("a bug"))
    assert "Traceback" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        ask(peewee.DataError("value too long\nDETAIL: Key (email)=(jane@example.com)"))
    assert "value too long" in caplog.text
    assert "jane" not in caplog.text


@pytest.fixture
def get() -> Callable[[str], TestResponse]:
    return site_that_raises(ZeroDivisionError()).test_client().get


@pytest.mark.parametrize("path", ["/thanks", "/cancelled"])
def test_the_pages_escape_what_they_are_told(get: Callable[[str], TestResponse], path: str) -> None:
    answer = get(f"{path}?job=<script>alert('1')</script>{'x' * 500}")
    assert answer.status_code == 200
    assert "<script" not in answer.text
    assert "&lt;script&gt;alert(&#39;1&#39;)" in answer.text
    assert len(answer.text) < 6000
    assert "script" not in answer.headers["Content-Security-Policy"]
    assert "Your order" not in get(path).text.partition("</h1>")[2]
