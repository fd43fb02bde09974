"""The admins' API: who gets in, what is found and told of a job, how a trigger is fired. Called by pytest."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from smi_workflow.errors import TransitionConflict
from smi_workflow.web.problems import MEDIA_TYPE
from smi_workflow.web.site import create_app
from tests.support.desks import Desk, open_desk

JANE, JANES_NEW, JOE = "j" * 40, "n" * 40, "o" * 40
JOBS = "/api/v1/admin/jobs"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    tokens = f"jane:{JANE},jane:{JANES_NEW},joe:{JOE}"
    with open_desk(f"sqlite:///{tmp_path / 'admin.sqlite3'}", tmp_path, admin_tokens=tokens) as desk:
        yield desk


@pytest.fixture
def client(desk: Desk) -> FlaskClient:
    return create_app(desk.app).test_client()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def get(client: FlaskClient, path: str = JOBS, token: str = JANE, **query: Any) -> TestResponse:
    return client.get(path, query_string=query, headers=bearer(token))


def fire(client: FlaskClient, job_id: str, trigger: str, key: str | None = None, **fields: Any) -> TestResponse:
    body = {"trigger": trigger, "reason": "it must be", **fields}
    headers = {**bearer(JANE), **({"Idempotency-Key": key} if key is not None else {})}
    return client.post(f"{JOBS}/{job_id}/transitions", json=body, headers=headers)


# -- who gets in -------------------------------------------------------------------------------------------------


def test_no_admin_route_answers_without_a_token(desk: Desk) -> None:
    site = create_app(desk.app)
    desk.put("failed")
    rules = [rule for rule in site.url_map.iter_rules() if "admin" in rule.rule]
    assert len(rules) >= 3
    for rule in rules:
        for method in sorted((rule.methods or set()) - {"OPTIONS"}):
            for headers in (
                {}, bearer(""), bearer("x" * 40), bearer(JANE[:-1]), {"Authorization": f"Basic {JANE}"},
                {"Authorization": JANE}, {"Cookie": f"token={JANE}"}, bearer(f"jane:{JANE}"), bearer("\xff" * 40),
            ):  # fmt: skip
                # A client of its own each time: whoever fails often is refused in another way.
                client = create_app(desk.app).test_client()
                path = rule.rule.replace("<job_id>", "job-1")
                answer = client.open(f"{path}?token={JANE}", method=method, headers=headers)
                assert answer.status_code == 401, (method, path, headers)
                assert answer.content_type == MEDIA_TYPE
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                assert "job_id" not in answer.text


def test_without_tokens_in_the_settings_nobody_gets_in(tmp_path: Path) -> None:
    with open_desk(f"sqlite:///{tmp_path / 'none.sqlite3'}", tmp_path) as desk:
        client = create_app(desk.app).test_client()
        for headers in ({}, bearer(""), bearer("x" * 40)):
            assert client.get(JOBS, headers=headers).status_code == 401


def test_each_token_has_a_name_and_a_name_may_have_two(client: FlaskClient, desk: Desk) -> None:
    for token, actor in ((JANE, "admin:jane"), (JANES_NEW, "admin:jane"), (JOE, "admin:joe")):
        job_id = desk.put("failed")
        body = {"trigger": "retry", "reason": "it must be"}
        answer = client.post(f"{JOBS}/{job_id}/transitions", json=body, headers=bearer(token))
        assert (answer.status_code, answer.get_json()["actor"]) == (200, actor)
        assert desk.app.jobs.history(job_id)[-1].actor == actor


def test_wrong_tokens_are_throttled_and_logged_without_them(
    desk: Desk, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "wrong-token-" + "w" * 40
    with caplog.at_level(logging.INFO):
        statuses = [get(client, token=wrong).status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert wrong not in caplog.text
    assert caplog.text.count("an admin route was refused: a token that is none of ours (request") == 10
    # Also with the right one: else guessing would go on behind the limit.
    refused = get(client)
    assert (refused.status_code, refused.content_type) == (429, MEDIA_TYPE)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    elsewhere = client.get(JOBS, headers=bearer(JANE), environ_base={"REMOTE_ADDR": "192.0.2.7"})
    assert elsewhere.status_code == 200


# -- lists -------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_page_by_page(desk: Desk, client: FlaskClient) -> None:
    ids = []
    for status in ("pending", "failed", "failed", "completed", "failed"):
        ids.append(desk.put(status))
        desk.clock.advance(minutes=1)
    told = get(client).get_json()
    assert [job["job_id"] for job in told["jobs"]] == ids[::-1]
    assert told["next_cursor"] is None
    assert told["jobs"][0]["email"] == "jane@example.com"
    assert "download_token" not in told["jobs"][0]

    first = get(client, status=["failed", "completed"], limit=2, order="created_at").get_json()
    assert [job["job_id"] for job in first["jobs"]] == ids[1:3]
    second = get(
        client, status=["failed", "completed"], limit=2, order="created_at", cursor=first["next_cursor"]
    ).get_json()
    assert [job["job_id"] for job in second["jobs"]] == ids[3:5]
    assert second["next_cursor"] is None
    moment = (desk.job(ids[2]).created_at + timedelta(seconds=1)).isoformat()
    assert [job["job_id"] for job in get(client, created_from=moment).get_json()["jobs"]] == ids[:2:-1]
    assert [job["job_id"] for job in get(client, search=ids[1]).get_json()["jobs"]] == [ids[1]]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"status": "done"}, "status.0"),
        ({"payment_status": "maybe"}, "payment_status"),
        ({"payment_status": ["paid", "pending"]}, "payment_status"),
        ({"post_id": "x"}, "post_id"),
        ({"post_id": 2**63}, "post_id"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"limit": ["5", "6"]}, "limit"),
        ({"order": "email"}, "order"),
        ({"cursor": "x"}, "cursor"),
        ({"created_from": "yesterday"}, "created_from"),
        ({"created_from": "2026-01-01T00:00:00"}, "created_from"),
        ({"created_from": "0"}, "created_from"),
        ({"created_before": "9999-12-31T23:59:59-23:00"}, "created_before"),
        ({"search": ""}, "search"),
        ({"search": "a\0"}, "body"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_list_that_makes_no_sense_names_its_parameter(
    client: FlaskClient, query: dict[str, Any], field: str
) -> None:
    answer = get(client, **query)
    assert (answer.status_code, answer.content_type) == (422, MEDIA_TYPE), answer.text
    assert answer.get_json(force=True)["field"] == field


# -- one job -----------------------------------------------------------------------------------------------------


def test_everything_about_a_job(desk: Desk, client: FlaskClient) -> None:
    job_id = desk.put("failed")
    desk.fire(job_id, "retry", "admin:joe", "the outage is over")
    desk.app.inbox.receive("stripe", "evt_1", "charge.refunded", '{"email": "jane@example.com"}')
    events = desk.app.tables.events
    events.update(workflow="job", subject_id=job_id).execute()
    told = get(client, f"{JOBS}/{job_id}").get_json()
    assert set(told) == {"job", "options", "history", "effects", "events", "payments", "refunds", "disputes"}
    assert [(row["cents"], row["role"]) for row in told["payments"]] == [(384, "sale")]
    assert told["refunds"] == told["disputes"] == []
    assert (told["job"]["status"], told["job"]["amount_due"]) == ("pending", "3.84")
    assert [row["trigger"] for row in told["history"]] == ["create", "retry"]
    assert (told["history"][1]["actor"], told["history"][1]["reason"]) == ("admin:joe", "the outage is over")
    assert {row["name"] for row in told["effects"]} == {"submit_upscale", "pending_deadline"}
    assert [(row["event_id"], row["state"]) for row in told["events"]] == [("evt_1", "received")]
    # An event's payload may name the buyer: it is not handed on.
    assert "payload" not in told["events"][0]
    options = {option["trigger"]: option for option in told["options"]}
    assert options["fail"]["allowed"]
    assert options["refund"]["allowed"]
    by_hand = options["file_removed"]["blocked_by"]
    assert [block["guard"] for block in by_hand] == ["not_by_hand"]
    # What an admin may do with a reason is not said to be blocked for want of one.
    assert options["override"]["allowed"]
    assert options["override"]["needs"] == ["target"]
    (block, *_) = next(option for option in told["options"] if option["trigger"] == "retry")["blocked_by"]
    assert block == {"guard": "override_is_given", "reason": "this needs the fact override=true"}


@pytest.mark.parametrize("path", ["nobody", "%00", "x" * 65, "é", "..", "nobody/transitions"])
def test_a_job_that_is_not_there(client: FlaskClient, path: str) -> None:
    method = "POST" if path.endswith("transitions") else "GET"
    body = {"trigger": "retry", "reason": "it must be"}
    answer = client.open(f"{JOBS}/{path}", method=method, headers=bearer(JANE), json=body)
    assert (answer.status_code, answer.content_type) == (404, MEDIA_TYPE)


# -- transitions -------------------------------------------------------------------------------------------------


def test_a_trigger_is_fired(desk: Desk, client: FlaskClient) -> None:
    job_id = desk.put("failed")
    before = len(desk.app.jobs.history(job_id))
    dry = fire(client, job_id, "retry", dry_run=True, expected_status="failed").get_json()
    assert (dry["from_status"], dry["to_status"], dry["dry_run"]) == ("failed", "pending", True)
    assert {effect["name"] for effect in dry["owed"]} == {"submit_upscale", "pending_deadline"}
    assert (desk.job(job_id).status, len(desk.app.jobs.history(job_id))) == ("failed", before)

    told = fire(client, job_id, "retry", expected_status="failed").get_json()
    assert (told["from_status"], told["to_status"], told["dry_run"]) == ("failed", "pending", False)
    assert (told["actor"], told["reason"], told["replayed"]) == ("admin:jane", "it must be", False)
    assert desk.job(job_id).status == "pending"


def test_a_trigger_takes_data(desk: Desk, client: FlaskClient) -> None:
    job_id = desk.put("completed")
    assert fire(client, job_id, "refund", data={"amount_cents": 100}).status_code == 200
    assert desk.job(job_id).refunding_cents == 100
    (refund,) = get(client, f"{JOBS}/{job_id}").get_json()["refunds"]
    assert (refund["cents"], refund["state"], refund["stripe_refund_id"]) == (100, "requested", None)
    assert fire(client, job_id, "amend", data={"fields": {"email": "joe@example.com"}}).status_code == 200
    assert desk.job(job_id).email == "joe@example.com"
    assert "joe@example.com" not in "".join(row.metadata for row in desk.app.jobs.history(job_id))


def test_one_key_fires_once(desk: Desk, client: FlaskClient) -> None:
    job_id = desk.put("completed")
    first, second = (fire(client, job_id, "refund", key="k1", data={"amount_cents": 100}) for _ in range(2))
    assert (first.get_json()["replayed"], second.get_json()["replayed"]) == (False, True)
    assert first.get_json()["sequence"] == second.get_json()["sequence"]
    assert desk.job(job_id).refunding_cents == 100
    assert fire(client, job_id, "refund", key="k2", data={"amount_cents": 100}).status_code == 200
    assert desk.job(job_id).refunding_cents == 200
    for other in (
        fire(client, job_id, "resend", key="k1"),
        fire(client, job_id, "refund", key="k1", reason="another"),
        fire(client, job_id, "refund", key=""),
        fire(client, job_id, "refund", key="k" * 91),
    ):
        assert (other.status_code, other.get_json(force=True)["field"]) == (422, "Idempotency-Key")
    assert desk.job(job_id).refunding_cents == 200


def test_a_refusal_says_why(desk: Desk, client: FlaskClient) -> None:
    job_id = desk.put("completed")

    def refused(answer: TestResponse) -> dict[str, Any]:
        assert (answer.status_code, answer.content_type) == (409, MEDIA_TYPE), answer.text
        told: dict[str, Any] = answer.get_json(force=True)
        assert told["detail"]
        return told

    told = refused(fire(client, job_id, "complete", data={}))
    assert (told["code"], told["state"], told["trigger"]) == ("not_possible", "completed", "complete")
    assert "renew_download" in told["allowed"]
    told = refused(fire(client, job_id, "refund", data={"amount_cents": 385}))
    assert (told["code"], told["guard"]) == ("guard_refused", "refund_is_possible")
    assert "385" in told["reason"]
    told = refused(fire(client, job_id, "retry", expected_status="failed"))
    assert (told["code"], told["state"], told["expected"]) == ("stale_state", "completed", "failed")
    told = refused(fire(client, job_id, "file_removed"))
    assert (told["code"], told["guard"]) == ("guard_refused", "not_by_hand")
    assert len(desk.app.jobs.history(job_id)) == 1


def test_a_job_that_is_held_is_a_conflict(
    desk: Desk, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = desk.put("failed")

    def held(*args: Any, **kwargs: Any) -> Any:
        raise TransitionConflict("another process holds or has written the row")

    monkeypatch.setattr(desk.app.engine, "fire", held)
    answer = fire(client, job_id, "retry")
    assert (answer.status_code, answer.headers["Retry-After"]) == (409, "1")
    assert answer.get_json(force=True)["code"] == "conflict"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trigger": "explode"}, "trigger"),
        ({"trigger": ""}, "trigger"),
        ({"reason": ""}, "reason"),
        ({"reason": "  "}, "reason"),
        ({"reason": None}, "reason"),
        ({"reason": "x" * 1001}, "reason"),
        ({"reason": "Jane asked: jane@example.com"}, "reason"),
        ({"reason": "\0"}, "body"),
        ({"dry_run": "yes"}, "dry_run"),
        ({"data": [1]}, "data"),
        ({"data": {"amount_cents": "all"}, "trigger": "refund"}, "data.amount_cents"),
        ({"data": {"target": "nowhere"}, "trigger": "override"}, "data.target"),
        ({"data": {}, "trigger": "override"}, "data.target"),
        ({"data": {"amount_cents": 2**64}, "trigger": "refund"}, "body"),
        ({"actor": "admin:joe"}, "actor"),
    ],
)
def test_a_wish_that_makes_no_sense_names_its_field(
    desk: Desk, client: FlaskClient, changes: dict[str, Any], field: str
) -> None:
    job_id = desk.put("completed")
    answer = fire(client, job_id, **{"trigger": "resend", **changes})
    assert (answer.status_code, answer.content_type) == (422, MEDIA_TYPE), answer.text
    assert answer.get_json(force=True)["field"] == field
    assert len(desk.app.jobs.history(job_id)) == 1
