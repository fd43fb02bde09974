"""The JobManager: what it takes, what it refuses by name, and what it tells. Called by pytest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from smi_workflow.app import hooks
from smi_workflow.errors import (
    GuardRefused,
    InvalidInput,
    ServiceRefused,
    ServiceUnavailable,
    StaleState,
    TransitionNotAllowed,
    UnknownJob,
    UnknownTrigger,
)
from smi_workflow.jobs.orders import NewJob
from tests.support.apps import picture
from tests.support.desks import Desk, at_once
from tests.support.sales import Sales

JANE = "admin:jane"
ORDER = {"image_url": "https://example.com/p.png", "resolution": "4x", "image_width": 20, "image_height": 10}


def nothing_written(desk: Desk) -> bool:
    """Whether the tables are as empty as before."""
    tables: list[Any] = [*desk.app.tables.all(), *desk.app.job_tables.by_declaration().values()]
    return all(table.select().count() == 0 for table in tables)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image_url": None}, "image_url"),
        ({"image_url": ""}, "image_url"),
        ({"image_url": 7}, "image_url"),
        ({"resolution": None}, "resolution"),
        ({"resolution": "16x"}, "resolution"),
        ({"resolution": 4}, "resolution"),
        ({"image_width": None}, "image_width"),
        ({"image_width": 0}, "image_width"),
        ({"image_width": "20"}, "image_width"),
        ({"image_width": 20.0}, "image_width"),
        ({"image_width": True}, "image_width"),
        ({"image_width": 10**30}, "image_width"),
        ({"image_height": -1}, "image_height"),
        ({"image_width": 9000, "image_height": 9000}, "resolution"),
        ({"post_id": "7"}, "post_id"),
        ({"post_id": -1}, "post_id"),
        ({"post_id": 2**63}, "post_id"),
        ({"attachment_id": 1.5}, "attachment_id"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@b"}, "email"),
        ({"email": f"{'x' * 250}@example.com"}, "email"),
        ({"email": "a@example.com\nBcc: b@example.com"}, "email"),
        ({"email": 7}, "email"),
        ({"price": 1}, "price"),
        ({"job_id": "mine"}, "job_id"),
        ({"status": "completed"}, "status"),
    ],
)
def test_a_bad_order_names_its_field(desk_sqlite: Desk, changes: Mapping[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        desk_sqlite.app.jobs.create_job({**ORDER, **changes})
    assert error.value.field == field
    assert nothing_written(desk_sqlite)


def test_an_order_as_an_object_is_checked_as_well(desk_sqlite: Desk) -> None:
    with pytest.raises(InvalidInput, match="image_width"):
        desk_sqlite.app.jobs.create_job(NewJob("https://example.com/p.png", "4x", 0, 10))


def test_an_order_becomes_a_job(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    seen: list[str] = []

    def note(sender: Any, job_id: str) -> None:
        seen.append(job_id)

    with hooks.signal("smi_job_created").connected_to(note):
        job = sales.order(post_id=7, attachment_id=8, email="jane@example.com", resolution="8x", actor=JANE)
    assert seen == [job.job_id]
    assert (job.status, job.payment_status, job.post_id, job.attachment_id) == (
        "awaiting_payment",
        "pending",
        7,
        8,
    )
    assert (job.resolution, job.email, job.expected_size) == ("8x", "jane@example.com", (160, 80))
    assert (job.amount_due_cents, job.currency, job.amount_cost) == (50, "usd", Decimal("0.04"))
    assert (job.markup_percentage, job.livemode, job.credits_used) == (Decimal(500), False, Decimal(1))
    assert job.amount_charged is None
    assert job.created_at == job.updated_at == sales.clock.now()
    assert sales.app.storage.path(job.source_file).read_bytes() == sales.site.files["/p.png"]
    assert [(row.trigger, row.actor) for row in sales.app.jobs.history(job.job_id)] == [
        ("create", JANE), ("checkout_opened", "system"),
    ]  # fmt: skip
    # The checkout was opened inline: nobody was rung for it.
    assert "create_checkout" not in sales.rung.names()


def test_an_image_that_is_not_what_it_claims_makes_no_job(sales: Sales) -> None:
    for changes, code in (
        ({"image_width": 21}, "wrong_dimensions"),
        ({"image_url": f"{sales.site.url}/missing.png"}, "not_found"),
        ({"image_url": "ftp://example.com/p.png"}, "url_not_allowed"),
        ({"image_url": "nonsense"}, "url_not_allowed"),
    ):
        with pytest.raises(ServiceRefused) as refused:
            sales.order(**changes)
        assert refused.value.code == code
    sales.site.files["/page.html"] = b"<html>no image</html>"
    with pytest.raises(ServiceRefused, match="image"):
        sales.order(image_url=f"{sales.site.url}/page.html")
    with pytest.raises(ServiceUnavailable):
        sales.order(image_url="http://127.0.0.1:1/p.png")
    assert sales.app.jobs.get_jobs() == []
    assert sales.ledger()["sessions"] == []


def test_the_same_key_makes_one_job(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    first = sales.order(idempotency_key="k1", email="jane@example.com")
    again = sales.order(idempotency_key="k1")
    assert again.job_id == first.job_id
    assert again.checkout_url == first.checkout_url
    other = sales.order(idempotency_key="k2")
    assert other.job_id != first.job_id
    for changes, name in (
        ({"resolution": "8x"}, "resolution"),
        ({"post_id": 9}, "post_id"),
        ({"image_url": f"{sales.site.url}/other.png"}, "image_url"),
    ):
        with pytest.raises(InvalidInput, match=f"Idempotency-Key: was used for an order with another {name}"):
            sales.order(idempotency_key="k1", **changes)
    assert len(sales.app.jobs.get_jobs()) == len(sales.ledger()["sessions"]) == 2


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_cannot_be(sales: Sales, key: str) -> None:
    with pytest.raises(InvalidInput, match="Idempotency-Key: must have 1 to 255 characters"):
        sales.order(idempotency_key=key)


def test_the_same_key_at_the_same_moment_makes_one_job(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    sales.site.files["/p.png"] = picture(20, 10)
    order = {**ORDER, "image_url": f"{sales.site.url}/p.png"}
    made = at_once(sales.app, *[lambda: sales.app.jobs.create_job(order, idempotency_key="k1")] * 4)
    assert len({job.job_id for job in made}) == 1, made
    # Who comes second waits for the one that opens the checkout, and is not sent away without.
    assert {job.checkout_url for job in made} == {sales.ledger()["sessions"][0]["url"]}
    (job,) = sales.app.jobs.get_jobs()
    sales.work()
    assert sales.triggers(job.job_id) == ["create", "checkout_opened"]
    assert len(sales.ledger()["sessions"]) == 1


def test_a_key_that_met_a_dead_stripe_opens_the_checkout_later(sales: Sales) -> None:
    sales.sandbox.stripe.faults.add({"path": "/v1/"}, {"kind": "status", "status": 503}, times=1)
    job = sales.order(idempotency_key="k1")
    assert (job.status, job.checkout_url) == ("awaiting_payment", None)
    sales.advance(seconds=10)
    assert sales.order(idempotency_key="k1").checkout_url == sales.ledger()["sessions"][0]["url"]


def test_an_order_whose_key_was_made_before_the_secret_was_rolled(sales: Sales) -> None:
    job = sales.order(idempotency_key="k1")
    settings = sales.app.settings
    rolled = settings.model_copy(update={"secret_key": (settings.stripe_api_key, *settings.secret_key)})
    sales.app.jobs._settings = rolled
    assert sales.order(idempotency_key="k1").job_id == job.job_id
    assert sales.order(idempotency_key="k2").job_id != job.job_id


@pytest.mark.parametrize("job_id", ["nobody", "", "' OR 1=1 --", "x" * 300, "é"])
def test_an_unknown_job_is_said_so(desk: Desk, job_id: str) -> None:
    jobs = desk.app.jobs
    for ask in (
        lambda: jobs.get_job(job_id),
        lambda: jobs.fire(job_id, "fail", actor=JANE),
        lambda: jobs.explain(job_id),
        lambda: jobs.history(job_id),
        lambda: jobs.mark_failed(job_id, "why"),
    ):
        with pytest.raises(UnknownJob) as error:
            ask()
        assert error.value.subject_id == job_id


def test_an_expected_status_that_is_over_is_refused(desk: Desk) -> None:
    job_id = desk.put("completed")
    with pytest.raises(StaleState, match="expected to be failed, but is completed by now"):
        desk.app.jobs.fire(job_id, "resend", actor=JANE, expected_status="failed")
    applied = desk.app.jobs.fire(job_id, "resend", actor=JANE, reason="lost", expected_status="completed")
    assert (applied.trigger, applied.from_state, applied.to_state, applied.actor) == (
        "resend", "completed", "completed", JANE,
    )  # fmt: skip


def test_a_dry_run_says_all_and_writes_nothing(desk: Desk) -> None:
    job_id = desk.put("failed")
    before, rung = desk.job(job_id).__data__, len(desk.rung.bells)
    applied = desk.app.jobs.fire(job_id, "retry", actor=JANE, reason="try", dry_run=True)
    assert (applied.to_state, {owed.name for owed in applied.owed}) == (
        "pending", {"submit_upscale", "pending_deadline"},
    )  # fmt: skip
    assert desk.job(job_id).__data__ == before
    assert len(desk.app.jobs.history(job_id)) == 1
    assert desk.owed(job_id) == {}
    assert len(desk.rung.bells) == rung
    with pytest.raises(GuardRefused):
        desk.app.jobs.fire(job_id, "purge", actor=JANE, dry_run=True)


def test_an_act_with_a_key_is_done_once(desk: Desk) -> None:
    job_id = desk.put("completed")
    first = desk.app.jobs.fire(job_id, "refund", actor=JANE, facts={"amount_cents": 100}, idempotency_key="a1")
    again = desk.app.jobs.fire(job_id, "refund", actor=JANE, facts={"amount_cents": 100}, idempotency_key="a1")
    assert (again.sequence, again.replayed) == (first.sequence, True)
    assert desk.job(job_id).refunding_cents == 100
    with pytest.raises(InvalidInput, match="was used for 'refund'"):
        desk.app.jobs.fire(job_id, "resend", actor=JANE, idempotency_key="a1")


def test_what_is_refused_says_what_is_possible(desk: Desk) -> None:
    job_id = desk.put("completed")
    with pytest.raises(TransitionNotAllowed) as error:
        desk.app.jobs.fire(job_id, "fail", actor=JANE)
    assert "is completed: 'fail' is not possible there (possible: " in str(error.value)
    assert "renew_download" in error.value.allowed
    with pytest.raises(UnknownTrigger):
        desk.app.jobs.fire(job_id, "explode", actor=JANE)
    with pytest.raises(InvalidInput, match="amount_cents: 'refund_settled' needs this fact"):
        desk.app.jobs.fire(job_id, "refund_settled", actor="stripe", facts={"is_ours": True})


def test_explain_tells_what_may_happen_and_what_stands_in_the_way(desk: Desk) -> None:
    job_id = desk.put("failed", refunding_cents=384)
    options = {(option.trigger, option.to): option for option in desk.app.jobs.explain(job_id)}
    retry = options["retry", "pending"]
    assert (retry.allowed, retry.by) == (False, "admin")
    assert ("override_is_given", "this needs the fact override=true") in retry.blocked_by
    refund = options["refund", None]
    assert refund.blocked_by == (("refund_is_possible", "nothing is left to refund"),)
    assert options["amend", None].needs == ("fields",)
    assert options["notice_failed", None].allowed
    assert ("fail", "failed") not in options


def test_history_is_complete_and_in_order(desk: Desk) -> None:
    job_id = desk.put("failed")
    desk.clock.advance(minutes=5)
    desk.app.jobs.fire(job_id, "retry", actor=JANE, reason="the outage is over — at last 🎉")
    desk.app.jobs.mark_failed(job_id, "again")
    rows = desk.app.jobs.history(job_id)
    assert [(row.sequence, row.trigger, row.from_state, row.to_state, row.actor) for row in rows] == [
        (1, "create", "", "awaiting_payment", "buyer"),
        (2, "retry", "failed", "pending", JANE),
        (3, "fail", "pending", "failed", "system"),
    ]
    assert rows[1].reason == "the outage is over — at last 🎉"
    assert rows[1].created_at - rows[0].created_at == timedelta(minutes=5)
    assert len({row.fingerprint for row in rows}) == 1
    assert desk.job(job_id).failure_code == "again"


def test_prices_are_the_settings(desk_sqlite: Desk) -> None:
    assert desk_sqlite.app.jobs.quote(2000, 2000, "4x").amount_cents == 384
    with pytest.raises(InvalidInput, match=r"at most 64\.0 can be made"):
        desk_sqlite.app.jobs.quote(2001, 2000, "4x")
