"""Secrets rolled without downtime: whatever was signed before works while both are named. Called by pytest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient

from smi_workflow.app import App
from smi_workflow.jobs.model import Job
from smi_workflow.web.site import create_app
from tests.integration.test_web_webhooks import DONE, event, signed
from tests.support.apps import SECRET_KEY, Rung, Shop, running_shop
from tests.support.sandbox import WEBHOOK_SECRET

NEW_KEY, NEW_SECRET = "f" * 64, "whsec_the_new_one"
ADMIN, NEW_ADMIN = "a" * 40, "b" * 40


@contextmanager
def redeployed(shop: Shop, **settings: str) -> Iterator[tuple[App, FlaskClient]]:
    """The same shop after a restart with other secrets."""
    fields = {name: getattr(shop.app.settings, name) for name in type(shop.app.settings).model_fields}
    app = App(type(shop.app.settings)(**{**fields, **settings}), ring=Rung())
    try:
        yield app, create_app(app).test_client()
    finally:
        app.close()


@pytest.fixture(scope="module")
def sold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Job, dict[str, str]]]:
    """A sale made with the old key alone, and every link that went out for it."""
    with running_shop(tmp_path_factory.mktemp("rolling")) as shop:
        job = shop.sell()
        shop.work_until(lambda: shop.job(job.job_id).email_sent)
        links = {
            "download": shop.download_path(shop.mails()[-1]),
            "source": urlsplit(shop.app.world.source_url(job.job_id)).path,
            "callback": urlsplit(shop.app.world.callback_url("effect1")).path,
        }
        yield shop, shop.job(job.job_id), links


def statuses(client: FlaskClient, links: dict[str, str]) -> dict[str, int]:
    """What each link answers."""
    found = {}
    for name, path in links.items():
        with client.post(path, json=DONE) if name == "callback" else client.get(path) as answer:
            found[name] = answer.status_code
    return found


def test_every_link_outlives_the_rolling_of_the_key(sold: tuple[Shop, Job, dict[str, str]]) -> None:
    shop, job, links = sold
    works = dict.fromkeys(links, 200)
    with redeployed(shop, secret_key=f"{NEW_KEY},{SECRET_KEY}") as (app, client):
        assert statuses(client, links) == works
        new = {
            "source": urlsplit(app.world.source_url(job.job_id)).path,
            "callback": urlsplit(app.world.callback_url("effect1")).path,
        }
        assert not set(new.values()) & set(links.values())
        assert statuses(client, new) == dict.fromkeys(new, 200)
        # A process that has not been restarted yet does not know the new key: it goes first to all, then signs.
        assert statuses(create_app(shop.app).test_client(), new) == dict.fromkeys(new, 404)
    with redeployed(shop, secret_key=NEW_KEY) as (_, client):
        # What is stored of a download is no signature: the links in people's mails stay.
        assert statuses(client, links) == {"download": 200, "source": 404, "callback": 404}
        assert statuses(client, new) == dict.fromkeys(new, 200)


def test_one_idempotency_key_is_one_order_while_keys_are_rolled(sold: tuple[Shop, Job, dict[str, str]]) -> None:
    shop, _, _ = sold
    order = {
        "image_url": f"{shop.site.url}/photo.png", "resolution": "4x", "image_width": 60, "image_height": 40,
    }  # fmt: skip

    def ordered(client: FlaskClient) -> str:
        answer = client.post("/api/v1/jobs", json=order, headers={"Idempotency-Key": "cart-rolled"})
        assert answer.status_code == 201, answer.text
        return str(answer.get_json()["job_id"])

    before = ordered(create_app(shop.app).test_client())
    with redeployed(shop, secret_key=f"{NEW_KEY},{SECRET_KEY}") as (_, client):
        assert ordered(client) == before
    with redeployed(shop, secret_key=f"{SECRET_KEY},{NEW_KEY}") as (_, client):
        assert ordered(client) == before


def test_a_mail_is_written_again_with_the_link_that_it_had(sold: tuple[Shop, Job, dict[str, str]]) -> None:
    shop, job, links = sold
    with redeployed(shop, secret_key=f"{NEW_KEY},{SECRET_KEY}") as (app, client):
        app.jobs.fire(job.job_id, "resend", actor="admin:jane", reason="it was lost")
        sent = len(shop.mails())
        Shop(app, Rung(), shop.sandbox, shop.site, shop.url).work()
        assert [shop.download_path(mail) for mail in shop.mails()[sent:]] == [links["download"]]
        app.jobs.fire(job.job_id, "renew_download", actor="admin:jane", reason="it leaked")
        Shop(app, Rung(), shop.sandbox, shop.site, shop.url).work()
        renewed = shop.download_path(shop.mails()[-1])
        assert statuses(client, {"download": links["download"], "renewed": renewed}) == {
            "download": 404,
            "renewed": 200,
        }


def test_stripes_old_and_new_secret_are_taken_while_both_are_named(
    sold: tuple[Shop, Job, dict[str, str]],
) -> None:
    shop, _, _ = sold

    def taken(client: FlaskClient, secret: str, event_id: str) -> int:
        body = json.dumps(event(id=event_id)).encode()
        return client.post("/webhooks/stripe", data=body, headers=signed(body, secret)).status_code

    stages: list[tuple[str, dict[str, int]]] = [
        (WEBHOOK_SECRET, {WEBHOOK_SECRET: 200, NEW_SECRET: 400, "whsec_a_strangers": 400}),
        (f"{NEW_SECRET},{WEBHOOK_SECRET}", {WEBHOOK_SECRET: 200, NEW_SECRET: 200, "whsec_a_strangers": 400}),
        (NEW_SECRET, {WEBHOOK_SECRET: 400, NEW_SECRET: 200, "whsec_a_strangers": 400}),
    ]
    for number, (named, expected) in enumerate(stages):
        with redeployed(shop, stripe_webhook_secret=named) as (_, client):
            found = {secret: taken(client, secret, f"evt_rolled_{number}_{secret}") for secret in expected}
        assert found == expected


def test_an_admins_old_and_new_token_are_taken_while_both_are_named(
    sold: tuple[Shop, Job, dict[str, str]],
) -> None:
    shop, _, _ = sold

    def gets(client: FlaskClient, token: str) -> int:
        return client.get("/api/v1/admin/jobs", headers={"Authorization": f"Bearer {token}"}).status_code

    for named, expected in ((f"jane:{NEW_ADMIN},jane:{ADMIN}", (200, 200)), (f"jane:{NEW_ADMIN}", (401, 200))):
        with redeployed(shop, admin_tokens=named) as (_, client):
            assert (gets(client, ADMIN), gets(client, NEW_ADMIN)) == expected


def test_the_database_holds_nothing_that_opens_a_download(sold: tuple[Shop, Job, dict[str, str]]) -> None:
    shop, _, links = sold
    token = links["download"].rpartition("/")[2]
    tables: list[Any] = [*shop.app.tables.all(), *shop.app.job_tables.by_declaration().values()]
    for table in tables:
        for row in table.select().dicts():
            assert token not in repr(row), table
