"""What is asked of Stripe, against a sandbox that hangs, breaks and lies: never two. Called by pytest."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.jobs.model import Job
from tests.support.sales import Sales

SESSIONS = {"method": "POST", "path": "/v1/checkout/sessions"}
REFUNDS = {"method": "POST", "path": "/v1/refunds"}
EVERYTHING = {"path": "/v1/"}


def break_stripe(sales: Sales, match: dict[str, Any], kind: str, times: int | None = 1, **fields: Any) -> None:
    """Tell the imitated Stripe what to do wrong."""
    sales.sandbox.stripe.faults.add(match, {"kind": kind, **fields}, times=times)


def sessions(sales: Sales) -> list[dict[str, Any]]:
    """Every checkout session at Stripe."""
    found: list[dict[str, Any]] = sales.ledger()["sessions"]
    return found


def refunding(sales: Sales) -> Job:
    """A delivered job whose full refund has been asked for."""
    job = sales.completed()
    sales.app.jobs.fire(job.job_id, "refund", actor="admin:jane", reason="asked")
    return job


# -- opening and ending a checkout --


def test_a_checkout_is_what_was_sold(sales: Sales) -> None:
    job = sales.order(email="jane@example.com")
    (session,) = sessions(sales)
    assert job.checkout_url == session["url"]
    assert (session["amount_total"], session["currency"]) == (job.amount_due_cents, "usd")
    assert (session["metadata"], session["client_reference_id"]) == ({"job_id": job.job_id}, job.job_id)
    assert session["customer_email"] == "jane@example.com"
    assert session["success_url"].endswith(f"/jobs/{job.job_id}?from=checkout")
    opened = session["expires_at"] - sales.effect("create_checkout").created_at.timestamp()
    assert timedelta(hours=23, minutes=54) < timedelta(seconds=opened) <= timedelta(hours=24)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("reset_after", {}),
        ("reset", {}),
        ("hang", {"seconds": 0.1}),
        ("garbage", {}),
        ("status", {"status": 503}),
        ("status", {"status": 429, "headers": {"Retry-After": "7"}}),
        ("status", {"status": 502, "after": True, "remember": False}),
    ],
)
def test_a_checkout_of_unknown_outcome_is_opened_once(sales: Sales, kind: str, fields: dict[str, Any]) -> None:
    break_stripe(sales, SESSIONS, kind, **fields)
    job = sales.order()
    assert (job.status, job.checkout_url) == ("awaiting_payment", None)
    sales.run_down(seconds=30)
    (session,) = sessions(sales)
    assert sales.job(job.job_id).stripe_checkout_session_id == session["id"]
    assert sales.job(job.job_id).checkout_url == session["url"]


def test_a_worker_that_dies_after_stripes_answer_leaves_one_session(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    break_stripe(sales, SESSIONS, "status", status=503)
    job = sales.order()
    sales.advance_to("create_checkout")
    assert sales.perform_late("create_checkout") == "came back too late"
    (session,) = sessions(sales)
    assert sales.job(job.job_id).stripe_checkout_session_id == session["id"]
    assert sales.triggers(job.job_id) == ["create", "checkout_opened"]
    audits = [(row.act, row.target) for row in sales.app.tables.audit.select()]
    assert audits == [("late_result", f"effect:{sales.effect('create_checkout').id}")]


def test_a_deploy_between_two_attempts_changes_nothing_that_stripe_is_asked(sales: Sales) -> None:
    """Stripe refuses other parameters under the same key: they are those of the moment when it was owed."""
    break_stripe(sales, SESSIONS, "reset_after")
    job = sales.order()
    before = sales.app.settings.success_url.replace("{JOB_ID}", job.job_id)
    changed = {"success_url": "https://new.example/thanks", "cancel_url": "https://new.example/no"}
    # The settings of a process never change: this is the next release's process.
    sales.app.settings.__dict__.update(changed, payment_timeout_hours=1.0)
    sales.run_down(seconds=30)
    (session,) = sessions(sales)
    assert sales.job(job.job_id).stripe_checkout_session_id == session["id"]
    assert session["success_url"] == before


@pytest.mark.parametrize("target", ["abandoned", "failed"])
def test_what_was_paid_before_its_checkout_could_be_ended_is_found_there(sales: Sales, target: str) -> None:
    """No event told of it: it revives what was given up, and goes back where nothing is sold any more."""
    job, facts = sales.order(), {"target": target, "effects": False}
    sales.app.jobs.fire(job.job_id, "override", actor="admin:jane", reason="nobody pays", facts=facts)
    sales.pay(job)
    assert sales.perform("expire_session") == "done"
    sales.work()
    sales.balances(job.job_id)
    expected = {"abandoned": ("processing", 50), "failed": ("failed", 0)}
    assert (sales.job(job.job_id).status, sales.job(job.job_id).paid_cents) == expected[target]
    assert [payment.role for payment in sales.payments(job.job_id)] == [
        "sale" if target == "abandoned" else "surplus"
    ]


def test_of_two_checkouts_the_later_is_ended(sales: Sales) -> None:
    """An admin has the job begin anew while its checkout is being opened: only one of two stays payable."""
    break_stripe(sales, SESSIONS, "status", status=503)
    job = sales.order()
    facts = {"target": "awaiting_payment", "effects": True}
    sales.app.jobs.fire(job.job_id, "override", actor="admin:jane", reason="again", facts=facts)
    sales.work()
    assert [row.state for row in sales.effects("create_checkout")] == ["due", "done"]
    known = sales.job(job.job_id).stripe_checkout_session_id
    sales.run_down(seconds=30)
    assert sales.job(job.job_id).stripe_checkout_session_id == known
    assert {one["id"]: one["status"] for one in sessions(sales)} == {
        one["id"]: "open" if one["id"] == known else "expired" for one in sessions(sales)
    }
    assert len(sessions(sales)) == 2


def test_past_the_life_of_the_key_the_session_is_found_by_listing(sales: Sales) -> None:
    break_stripe(sales, SESSIONS, "reset_after")
    job = sales.order()
    sales.advance(hours=23, minutes=1)
    break_stripe(sales, SESSIONS, "reset", times=None)
    assert sales.perform("create_checkout") == "done"
    (session,) = sessions(sales)
    assert sales.job(job.job_id).stripe_checkout_session_id == session["id"]


def test_past_the_life_of_the_key_one_is_opened_if_none_was(sales: Sales) -> None:
    break_stripe(sales, SESSIONS, "status", status=503)
    job = sales.order()
    sales.advance(hours=23, minutes=1)
    assert sales.perform("create_checkout") == "done"
    (session,) = sessions(sales)
    assert sales.job(job.job_id).stripe_checkout_session_id == session["id"]


def test_a_checkout_that_stripe_refuses_ends_the_job(sales: Sales) -> None:
    break_stripe(sales, SESSIONS, "status", status=400, body={"error": {"code": "amount_too_small"}})
    job = sales.order()
    assert (job.status, job.checkout_url) == ("abandoned", None)
    assert sales.effect("create_checkout").state == "failed"


def test_before_a_checkout_is_given_up_it_is_looked_for(sales: Sales) -> None:
    """The first attempt was carried out and lost; every later one is refused."""
    break_stripe(sales, SESSIONS, "reset_after")
    job = sales.order()
    break_stripe(sales, SESSIONS, "status", times=None, status=400)
    sales.run_down(minutes=5)
    (session,) = sessions(sales)
    assert sales.job(job.job_id).status == "awaiting_payment"
    assert sales.job(job.job_id).stripe_checkout_session_id == session["id"]


def test_nobody_pays_in_time(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.order()
    sales.advance(hours=23)
    sales.work()
    assert sales.job(job.job_id).status == "awaiting_payment"
    sales.clock.advance(hours=1, minutes=5)  # Stripe's clock runs late: its session is open still
    sales.work()
    assert sessions(sales)[0]["status"] == "expired"
    assert sales.job(job.job_id).status == "abandoned"
    sales.deliver()
    assert sales.triggers(job.job_id) == ["create", "checkout_opened", "abandon"]
    assert sales.owed(job.job_id) == {"purge_job": timedelta(hours=24)}
    sales.advance(hours=24)
    sales.work()
    after = sales.job(job.job_id)
    assert (after.status, after.email, after.image_url, after.checkout_url) == ("abandoned", None, "", None)
    assert not sales.app.storage.exists(after.source_file)


def test_stripes_own_word_that_a_session_ended(sales: Sales) -> None:
    job = sales.order()
    sales.advance(hours=24)
    sales.deliver("checkout.session.expired")
    assert sales.job(job.job_id).status == "abandoned"
    assert "expire_session" not in sales.owed(job.job_id)
    sales.run_down(hours=1)
    assert sales.triggers(job.job_id).count("abandon") == 1


def test_a_job_given_up_ends_its_open_session(sales: Sales) -> None:
    job = sales.order()
    facts = {"target": "abandoned", "effects": True}
    sales.app.jobs.fire(job.job_id, "override", actor="admin:jane", reason="a test order", facts=facts)
    sales.work()
    assert sessions(sales)[0]["status"] == "expired"


def test_a_payment_whose_webhook_is_lost_is_found_at_the_deadline(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    sales.advance_to("payment_deadline")
    sales.work(hold=("submit_upscale",))
    after = sales.job(job.job_id)
    assert (after.status, after.email) == ("pending", "jane@example.com")
    sales.balances(job.job_id)
    # The webhook comes after all.
    sales.deliver()
    assert sales.triggers(job.job_id).count("payment_received") == 1
    told = {event["type"]: sales.event_rows()[event["id"]][0] for event in sales.events()}
    # All of it is known by now, but for the charge.
    assert [kind for kind, state in told.items() if state != "ignored"] == ["charge.succeeded"]
    sales.balances(job.job_id)


def test_no_word_from_stripe_is_no_reason_to_give_up(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    sales.advance_to("payment_deadline")
    break_stripe(sales, EVERYTHING, "status", times=20, status=503)
    sales.work()
    assert sales.job(job.job_id).status == "awaiting_payment"
    # No webhook either: only the timer asks, and it goes on asking.
    while sales.job(job.job_id).status == "awaiting_payment":
        sales.advance_to("payment_deadline")
        sales.work(hold=("submit_upscale",))
    assert sales.job(job.job_id).status == "pending"
    assert sales.effect("payment_deadline").attempts == 21


def test_a_session_that_stripe_does_not_know_needs_a_person(sales: Sales) -> None:
    job = sales.order()
    table = sales.app.job_tables.jobs
    table.update(stripe_checkout_session_id="cs_gone").where(table.job_id == job.job_id).execute()
    sales.advance_to("payment_deadline")
    sales.work()
    # The only deadline must not be used up: it asks again, and the admin is told once.
    for _ in range(2):
        assert sales.effect("payment_deadline").state == "due"
        sales.advance(hours=1)
        sales.work()
    assert len(sales.mails("job notice failed")) == 1
    assert sales.job(job.job_id).status == "awaiting_payment"


# -- bank debits --


def test_a_bank_debit_that_settles(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.order()
    sales.pay(job, delayed=True)
    sales.deliver()
    assert sales.triggers(job.job_id) == ["create", "checkout_opened", "payment_processing"]
    assert sales.owed(job.job_id) == {"payment_deadline": timedelta(days=14)}
    sales.run_down(days=3)
    assert len(sessions(sales)) == 1
    assert sales.job(job.job_id).status == "awaiting_payment"
    sales.lever(f"sessions/{job.stripe_checkout_session_id}/settle", outcome="succeeded")
    sales.deliver()
    assert sales.job(job.job_id).status == "pending"
    sales.balances(job.job_id)


def test_a_bank_debit_that_fails(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job, delayed=True)
    sales.deliver()
    sales.lever(f"sessions/{job.stripe_checkout_session_id}/settle", outcome="failed")
    sales.deliver()
    after = sales.job(job.job_id)
    assert (after.status, after.payment_status, after.failure_code) == (
        "failed",
        "failed",
        "delayed_payment_failed",
    )
    assert "refund_due" not in sales.owed(job.job_id)
    sales.balances(job.job_id)


@pytest.mark.parametrize("told", [True, False])
def test_a_bank_debit_that_nobody_settles(sales: Sales, told: bool) -> None:
    job = sales.order(email="jane@example.com")
    sales.pay(job, delayed=True)
    if told:
        sales.deliver()
    else:
        sales.advance_to("payment_deadline")
        sales.work()
    assert sales.owed(job.job_id) == {"payment_deadline": timedelta(days=14)}
    sales.advance_to("payment_deadline")
    sales.work()
    after = sales.job(job.job_id)
    assert (after.status, after.failure_code) == ("failed", "delayed_payment_timeout")
    assert len(sessions(sales)) == 1
    # The bank pays after all: that money goes back.
    sales.lever(f"sessions/{job.stripe_checkout_session_id}/settle", outcome="succeeded")
    sales.deliver()
    sales.work()
    sales.deliver()
    sales.balances(job.job_id)
    assert [(payment.role, payment.refunded_cents) for payment in sales.payments(job.job_id)] == [("surplus", 50)]


# -- sending money back --


@pytest.mark.parametrize(
    ("kind", "fields", "times"),
    [
        ("hang", {"seconds": 0.1}, 1),
        ("reset", {}, 2),
        ("reset_after", {}, 1),
        ("reset_after", {}, 3),
        ("garbage", {}, 1),
        ("status", {"status": 500, "after": True, "remember": False}, 1),
        ("status", {"status": 500, "after": True, "remember": False}, None),
        ("status", {"status": 503}, 2),
        ("status", {"status": 429}, 1),
        ("status", {"status": 409}, 1),
    ],
)
def test_a_refund_of_unknown_outcome_is_made_once(
    sales: Sales, kind: str, fields: dict[str, Any], times: int | None
) -> None:
    job = refunding(sales)
    break_stripe(sales, REFUNDS, kind, times=times, **fields)
    sales.work()
    sales.balances(job.job_id)
    # No webhook helps: we have to find out alone.
    for _ in range(20):
        if sales.refunds(job.job_id)[0].state != "requested":
            break
        sales.advance_to("submit_refund")
        sales.work()
        sales.balances(job.job_id)
    assert [row.state for row in sales.refunds(job.job_id)] == ["succeeded"]
    assert len(sales.ledger()["refunds"]) == 1
    assert sales.job(job.job_id).refunded_cents == 50


def test_an_error_that_stripe_remembers_is_not_taken_for_a_refund(sales: Sales) -> None:
    """A plain 500 is replayed for the key's whole life: nothing was refunded, so it is still owed and tried."""
    job = refunding(sales)
    break_stripe(sales, REFUNDS, "status", status=500)
    sales.run_down(hours=12)
    (row,) = sales.refunds(job.job_id)
    assert (row.state, sales.job(job.job_id).refunding_cents) == ("requested", 50)
    assert sales.ledger()["refunds"] == []
    sales.balances(job.job_id)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refund_waits_until_our_key_is_mended(sales: Sales, status: int) -> None:
    """A wrong key says nothing about the refund: the money is still owed, and goes back once the key is right."""
    job = refunding(sales)
    break_stripe(sales, REFUNDS, "status", status=status, remember=False)
    sales.work()
    assert [row.state for row in sales.refunds(job.job_id)] == ["requested"]
    sales.advance_to("submit_refund")
    sales.work()
    assert [row.state for row in sales.refunds(job.job_id)] == ["succeeded"]
    sales.balances(job.job_id)


def test_a_worker_that_dies_after_the_refund_leaves_one(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = refunding(sales)
    assert sales.perform_late("submit_refund") == "came back too late"
    sales.balances(job.job_id)
    assert len(sales.ledger()["refunds"]) == len(sales.refunds(job.job_id)) == 1
    assert sales.triggers(job.job_id).count("refund_settled") == 1


@pytest.mark.parametrize("made", [True, False])
def test_past_the_life_of_the_key_it_looks_before_it_refunds(sales: Sales, made: bool) -> None:
    """A part of the money: Stripe would gladly send it twice."""
    job = sales.completed()
    sales.app.jobs.fire(job.job_id, "refund", actor="admin:jane", reason="asked", facts={"amount_cents": 20})
    if made:
        break_stripe(sales, REFUNDS, "reset_after")
    else:
        break_stripe(sales, REFUNDS, "status", status=503)
    sales.work()
    sales.advance(hours=25)
    sales.work()
    sales.balances(job.job_id)
    assert len(sales.ledger()["refunds"]) == 1
    assert sales.job(job.job_id).refunded_cents == 20


def test_a_refund_found_failed_is_over(sales: Sales) -> None:
    job = refunding(sales)
    sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "failed"})
    break_stripe(sales, REFUNDS, "reset_after")
    sales.work()
    break_stripe(sales, REFUNDS, "status", times=None, status=503)
    for _ in range(20):
        sales.advance_to("submit_refund")
        sales.work()
        if sales.refunds(job.job_id)[0].state == "failed":
            break
    assert sales.refunds(job.job_id)[0].state == "failed"
    assert sales.job(job.job_id).refunding_cents == 0
    sales.balances(job.job_id)


def test_a_refund_that_somebody_was_faster_with(sales: Sales) -> None:
    job = refunding(sales)
    sales.lever("dashboard/refunds", payment_intent=sales.job(job.job_id).stripe_payment_intent_id)
    sales.work()
    # Ours could not be made, and whose it was instead is found at once, without the event.
    assert sorted(row.state for row in sales.refunds(job.job_id)) == ["failed", "succeeded"]
    sales.deliver()
    sales.balances(job.job_id)
    after = sales.job(job.job_id)
    assert (after.refunding_cents, after.refunded_cents) == (0, 50)
    assert len(sales.ledger()["refunds"]) == 1


def test_a_refund_asked_for_while_the_dashboards_event_waits(sales: Sales) -> None:
    """The event that comes first does not fit while ours is under way; it counts once ours has failed."""
    job = refunding(sales)
    sales.lever("dashboard/refunds", payment_intent=sales.job(job.job_id).stripe_payment_intent_id)
    sales.deliver()
    assert sales.job(job.job_id).refunded_cents == 0
    sales.work()
    sales.run_down(minutes=5)
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == 50
    assert {state for state, _ in sales.event_rows().values()} == {"applied", "ignored"}


def test_the_money_goes_back_after_the_delay_and_not_before(sales: Sales) -> None:
    job = sales.failed()
    sales.advance(minutes=29)
    sales.work()
    assert sales.refunds(job.job_id) == []
    sales.advance(minutes=1)
    sales.work()
    (row,) = sales.refunds(job.job_id)
    assert (row.cents, row.state, row.reason) == (50, "succeeded", "outage")
    (made,) = sales.ledger()["refunds"]
    assert made["metadata"] == {"refund_id": row.refund_id, "job_id": job.job_id}
    assert made["reason"] == "requested_by_customer"
    assert [item.actor for item in sales.app.jobs.history(job.job_id) if item.trigger == "refund"] == ["system"]
