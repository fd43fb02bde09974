"""What Stripe tells of charges, refunds, chargebacks: lost, twice, out of order, by charge. Called by pytest."""

from __future__ import annotations

import email
import email.policy
import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.engine.invariants import Invariants
from smi_workflow.errors import GuardRefused, InvalidInput
from smi_workflow.jobs.attention import ATTENTION
from smi_workflow.jobs.model import Job
from tests.support.desks import at_once
from tests.support.sales import Providers, Sales, open_sales

JANE = "admin:jane"


@pytest.fixture
def holding(sqlite_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop that holds what fits no sale for a person."""
    with open_sales(sqlite_url, tmp_path, providers, unexpected_payment="hold") as opened:
        yield opened


def states(sales: Sales, *kinds: str) -> set[str]:
    """Where the events of these types stand; all of them unless types are named."""
    rows = sales.event_rows()
    told = [event for event in sales.events() if event["id"] in rows and (not kinds or event["type"] in kinds)]
    return {rows[event["id"]][0] for event in told}


def refund_at_dashboard(sales: Sales, job: Job, amount: int) -> dict[str, Any]:
    """Somebody refunds at Stripe's own pages."""
    return sales.lever("dashboard/refunds", payment_intent=job.stripe_payment_intent_id, amount=amount)


# -- payments -----------------------------------------------------------------------------------------------------


def test_a_payment_is_not_taken_for_the_sales_without_its_session(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    sales.deliver("payment_intent.succeeded", "charge.succeeded")
    assert (sales.job(job.job_id).status, sales.payments(job.job_id)) == ("awaiting_payment", [])
    assert states(sales) == {"parked"}
    sales.deliver("checkout.session.completed")
    sales.work(hold=("submit_upscale",))
    assert sales.job(job.job_id).status == "pending"
    assert states(sales, "payment_intent.succeeded") == {"ignored"}
    assert states(sales, "charge.succeeded") == {"applied"}
    sales.balances(job.job_id)


def test_a_charge_is_noted_once_and_found_again(sales: Sales) -> None:
    job = sales.sold()
    sales.work(hold=("submit_upscale",))
    (payment,) = sales.payments(job.job_id)
    (charge,) = sales.ledger()["charges"]
    assert payment.charge_id == charge["id"]
    for event in sales.events("charge.succeeded"):
        sales.app.inbox.handle(sales.receive({**event, "id": "evt_twin"}))
    assert sales.triggers(job.job_id).count("charge_noted") == 1


@pytest.mark.parametrize("kind", ["payment_intent.succeeded", "charge.succeeded"])
def test_what_others_sell_on_the_same_account_is_none_of_ours(sales: Sales, kind: str) -> None:
    thing = {"id": "x_1", "payment_intent": "pi_theirs", "metadata": {"order": "7"}}
    event = {"id": "evt_1", "type": kind, "livemode": False, "data": {"object": thing}}
    sales.app.inbox.handle(sales.receive(event))
    assert sales.event_rows()["evt_1"] == ("ignored", "it carries no job of ours")


# -- refunds made at Stripe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("amounts", [(20,), (20, 30), (10, 15, 25)])
def test_refunds_are_found_if_only_the_charge_tells(sales_everywhere: Sales, amounts: tuple[int, ...]) -> None:
    sales = sales_everywhere
    job = sales.completed()
    for amount in amounts:
        refund_at_dashboard(sales, job, amount)
    sales.deliver("charge.refunded")
    for _ in range(20):
        sales.work()
        sales.advance(minutes=30)
    sales.balances(job.job_id)
    assert sales.job(job.job_id).refunded_cents == sum(amounts)
    # All that was lost arrives after all, and counts no second time.
    sales.deliver()
    sales.work()
    sales.balances(job.job_id)
    assert sorted(row.cents for row in sales.refunds(job.job_id)) == sorted(amounts)
    assert sales.triggers(job.job_id).count("refund_settled") == len(amounts)
    assert states(sales) <= {"applied", "ignored"}


def test_a_full_refund_that_only_the_charge_tells_of_stops_the_work(sales: Sales) -> None:
    job = sales.processing()
    refund_at_dashboard(sales, job, 50)
    sales.deliver("charge.refunded")
    sales.work(hold=("poll_upscale",))
    sales.balances(job.job_id)
    assert (sales.job(job.job_id).status, sales.job(job.job_id).failure_code) == ("failed", "refunded")


def test_what_the_charge_tells_of_our_own_refund_is_on_record(sales: Sales) -> None:
    """Also when it comes while our call is still unanswered: it might be another's, so it waits for the answer."""
    job = sales.completed()
    sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="asked", facts={"amount_cents": 20})
    sales.sandbox.stripe.faults.add({"method": "POST", "path": "/v1/refunds"}, {"kind": "reset_after"})
    sales.perform("submit_refund")
    sales.deliver("charge.refunded")
    assert states(sales, "charge.refunded") == {"parked"}
    sales.run_down(minutes=1)
    sales.balances(job.job_id)
    assert states(sales, "charge.refunded") == {"ignored"}
    assert "refunds_differ" not in sales.triggers(job.job_id)
    assert sales.effects("find_refunds") == []


def test_the_refund_that_was_faster_is_found_although_nothing_tells_of_it(sales: Sales) -> None:
    job = sales.completed()
    sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="asked")
    refund_at_dashboard(sales, job, 50)
    sales.work()
    sales.balances(job.job_id)
    assert [row.state for row in sales.refunds(job.job_id)] == ["failed", "succeeded"]
    assert sales.job(job.job_id).refunded_cents == 50


def test_a_pending_refund_at_stripe_is_waited_for(sales: Sales) -> None:
    job = sales.completed()
    made = sales.lever(
        "dashboard/refunds", payment_intent=job.stripe_payment_intent_id, amount=20, status="pending"
    )
    sales.deliver("charge.refunded")
    sales.work()
    assert sales.job(job.job_id).refunded_cents == 0
    assert sales.owed(job.job_id)["find_refunds"] == timedelta(hours=6)
    sales.lever(f"refunds/{made['id']}/settle", outcome="succeeded")
    for _ in range(3):
        sales.advance(hours=6)
        sales.work()
    assert sales.job(job.job_id).refunded_cents == 20
    assert sales.effect("find_refunds").state == "done"
    sales.balances(job.job_id)


def test_the_look_for_refunds_outlives_a_wrong_key(sales: Sales) -> None:
    job = sales.completed()
    refund_at_dashboard(sales, job, 20)
    listed = {"method": "GET", "path": "/v1/refunds"}
    sales.sandbox.stripe.faults.add(listed, {"kind": "status", "status": 401}, times=2)
    sales.deliver("charge.refunded")
    sales.work()
    assert len(sales.mails("job notice failed")) == 1
    for _ in range(3):
        sales.advance(hours=6)
        sales.work()
    assert len(sales.mails("job notice failed")) == 1
    assert sales.job(job.job_id).refunded_cents == 20


def test_another_modes_refunds_and_chargebacks_touch_nothing(sales: Sales) -> None:
    job = sales.completed()
    refund_at_dashboard(sales, job, 20)
    sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id, amount=30)
    kinds = ("charge.refunded", "refund.created", "charge.dispute.created")
    for event in [event for event in sales.events() if event["type"] in kinds]:
        sales.app.inbox.handle(sales.receive({**event, "livemode": True}))
        assert sales.event_rows()[event["id"]] == ("ignored", "test and live mode are mixed")
    assert (sales.job(job.job_id).refunded_cents, sales.job(job.job_id).disputed_cents) == (0, 0)


# -- chargebacks --------------------------------------------------------------------------------------------------

OPENED, TAKEN, GIVEN, CLOSED = (
    f"charge.dispute.{name}" for name in ("created", "funds_withdrawn", "funds_reinstated", "closed")
)


def bare(event: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The event as older versions have it: it tells what happened, and nothing of what was before."""
    thing = {**event["data"]["object"], "balance_transactions": [], **changes}
    return {**event, "data": {"object": thing}}


@pytest.mark.parametrize("order", list(itertools.permutations((OPENED, TAKEN, GIVEN, CLOSED))))
@pytest.mark.parametrize("by_charge", [False, True])
def test_a_chargeback_in_any_order_is_the_same(sales: Sales, order: tuple[str, ...], by_charge: bool) -> None:
    job = sales.completed()
    dispute = sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id, amount=30)
    sales.lever(f"dashboard/disputes/{dispute['id']}/close", outcome="won")
    for kind in order:
        (event,) = sales.events(kind)
        told = bare(event, **({"payment_intent": None} if by_charge else {}))
        for number in range(2):
            # Sometimes two Event objects tell of one fact.
            sales.app.inbox.handle(sales.receive({**told, "id": f"{event['id']}_{number}"}))
    after = sales.job(job.job_id)
    assert (after.status, after.disputed_cents) == ("completed", 0)
    sales.balances(job.job_id)
    assert {state for state, _ in sales.event_rows().values()} <= {"applied", "ignored"}


@pytest.mark.parametrize("outcome", ["won", "lost"])
def test_how_a_chargeback_ended_says_where_the_money_is(sales: Sales, outcome: str) -> None:
    """All that moved it was lost."""
    job = sales.completed()
    dispute = sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id, amount=30)
    sales.lever(f"dashboard/disputes/{dispute['id']}/close", outcome=outcome)
    (event,) = sales.events(CLOSED)
    sales.app.inbox.handle(sales.receive(bare(event)))
    assert sales.job(job.job_id).disputed_cents == (0 if outcome == "won" else 30)
    sales.balances(job.job_id)


def test_a_chargeback_whose_loss_is_all_that_is_told_ends_the_work(sales: Sales) -> None:
    job = sales.processing()
    dispute = sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id)
    sales.lever(f"dashboard/disputes/{dispute['id']}/close", outcome="lost")
    (event,) = sales.events(CLOSED)
    sales.app.inbox.handle(sales.receive(bare(event)))
    after = sales.job(job.job_id)
    assert (after.status, after.failure_code, after.disputed_cents) == ("failed", "chargeback", 50)
    sales.balances(job.job_id)


def test_two_chargebacks_add_up(sales: Sales) -> None:
    job = sales.completed()
    made = [
        sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id, amount=amount)
        for amount in (10, 25)
    ]
    sales.deliver()
    assert sales.job(job.job_id).disputed_cents == 35
    sales.lever(f"dashboard/disputes/{made[0]['id']}/close", outcome="won")
    sales.deliver()
    sales.balances(job.job_id)
    assert sales.job(job.job_id).disputed_cents == 25


def test_withdrawn_and_reinstated_in_the_same_instant(sales_everywhere: Sales) -> None:
    sales = sales_everywhere
    job = sales.processing()
    dispute = sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id)
    sales.lever(f"dashboard/disputes/{dispute['id']}/close", outcome="won")
    told = [sales.receive(bare(event)) for kind in (TAKEN, GIVEN) for event in sales.events(kind)]
    at_once(sales.app, *[lambda one=one: sales.app.inbox.handle(one) for one in told for _ in range(2)])
    sales.advance(seconds=10)
    sales.work(hold=("poll_upscale",))
    after = sales.job(job.job_id)
    # Delivered by nobody: once the bank has given it back, it goes on to the buyer.
    assert (after.status, after.disputed_cents, after.refunded_cents) == ("failed", 0, 50)
    sales.balances(job.job_id)
    assert len(sales.ledger()["refunds"]) == 1


def test_the_news_of_a_chargeback_closes_the_door_for_refunds_at_once(sales: Sales) -> None:
    job = sales.completed()
    sales.lever("dashboard/disputes", payment_intent=job.stripe_payment_intent_id)
    sales.deliver(OPENED)
    with pytest.raises(GuardRefused, match="a chargeback has withdrawn the money"):
        sales.app.jobs.fire(job.job_id, "refund", actor=JANE, reason="asked")


def test_a_chargeback_by_charge_waits_for_the_charge(sales: Sales) -> None:
    job = sales.order()
    sales.pay(job)
    (charge,) = sales.ledger()["charges"]
    sales.deliver("checkout.session.completed")
    sales.lever("dashboard/disputes", charge=charge["id"], without_intent=True)
    sales.deliver(TAKEN)
    assert states(sales, TAKEN) == {"parked"}
    sales.deliver("charge.succeeded")
    for name, row_id in sales.due():
        if name == "handle_event":
            sales.app.inbox.handle(row_id)
    assert (sales.job(job.job_id).status, sales.job(job.job_id).disputed_cents) == ("failed", 50)


# -- what waits for a person --------------------------------------------------------------------------------------


def needing_a_person(sales: Sales) -> list[str]:
    """What `smi doctor` lists."""
    checks = Invariants(sales.app.engine, ATTENTION)
    return [violation.invariant for violation in checks.everywhere()]


@pytest.mark.parametrize("known", [False, True])
def test_the_admin_is_told_once_of_an_event_that_needs_a_person(sales_everywhere: Sales, known: bool) -> None:
    sales = sales_everywhere
    job = sales.order()
    about = {"job_id": job.job_id} if known else {}
    kind = "payment_intent.succeeded" if known else "charge.dispute.created"
    thing = {"id": "x_1", "charge": "ch_nobodys", "metadata": about, "status": "needs_response"}
    event = {"id": "evt_lost", "type": kind, "livemode": False, "data": {"object": thing}}
    inbox_id = sales.receive(event)
    while sales.event_rows()["evt_lost"][0] in ("received", "parked"):
        sales.app.inbox.handle(inbox_id)
        assert sales.mails("alert raised") == []
        sales.clock.time = max(sales.clock.time, sales.app.tables.events.get_by_id(inbox_id).due_at)
    at_once(sales.app, *[lambda: sales.app.inbox.handle(inbox_id)] * 3)
    sales.work()
    (mail,) = sales.mails("alert raised")
    text = email.message_from_bytes(Path(mail["path"]).read_bytes(), policy=email.policy.default)
    body = text.get_body(("plain",))
    assert body is not None
    assert "evt_lost" in body.get_content()
    assert (job.job_id in body.get_content()) == known
    alert = sales.app.engine.read("alert", inbox_id)
    assert (alert.state, alert.job_id) == ("open", job.job_id if known else None)
    assert needing_a_person(sales) == ["events_for_a_person"]
    with pytest.raises(GuardRefused, match="a reason is needed"):
        sales.app.jobs.fire_alert(inbox_id, "close", actor=JANE)
    sales.app.jobs.fire_alert(inbox_id, "close", actor=JANE, reason="belongs to the other shop")
    assert needing_a_person(sales) == []


# -- what fits no sale --------------------------------------------------------------------------------------------


def held(sales: Sales, amount: int = 49) -> tuple[Job, str]:
    """A payment of a wrong amount, on record and not given back."""
    job = sales.order()
    sales.pay(job, amount=amount)
    sales.deliver()
    sales.work()
    (payment,) = sales.payments(job.job_id)
    assert payment.refunded_cents == 0
    return job, payment.payment_intent_id


def give_back(sales: Sales, job: Job, intent: str, **facts: Any) -> Any:
    """An admin gives it back."""
    facts = {"payment_intent_id": intent, **facts}
    return sales.app.jobs.fire(job.job_id, "return_payment", actor=JANE, reason="fits no sale", facts=facts)


def test_money_that_is_held_is_given_back_by_an_admin(holding: Sales) -> None:
    sales = holding
    job, intent = held(sales)
    assert needing_a_person(sales) == ["payments_for_a_person"]
    with pytest.raises(GuardRefused, match="50 is not within 1 to 49 usd"):
        give_back(sales, job, intent, amount_cents=50)
    give_back(sales, job, intent, amount_cents=9)
    with pytest.raises(GuardRefused, match="41 is not within 1 to 40 usd"):
        give_back(sales, job, intent, amount_cents=41)
    give_back(sales, job, intent)
    with pytest.raises(GuardRefused, match="0 is not within 1 to 0 usd"):
        give_back(sales, job, intent)
    sales.work()
    sales.balances(job.job_id)
    assert [(row.cents, row.state, row.role) for row in sales.refunds(job.job_id)] == [
        (9, "succeeded", "mismatch"), (40, "succeeded", "mismatch"),
    ]  # fmt: skip
    after = sales.job(job.job_id)
    assert (after.status, after.refunding_cents, after.refunded_cents) == ("awaiting_payment", 0, 0)
    assert needing_a_person(sales) == []


def test_admins_who_give_back_at_once_give_it_back_once(sqlite_url: str, tmp_path: Path, holding: Sales) -> None:
    sales = holding
    job, intent = held(sales)
    outcomes = at_once(sales.app, *[lambda: give_back(sales, job, intent)] * 3)
    assert sum(isinstance(one, GuardRefused) for one in outcomes) == 2
    sales.work()
    sales.balances(job.job_id)


def test_an_automatic_refund_that_failed_is_made_good_in_either_way(sales: Sales) -> None:
    for number in range(2):
        sales.sandbox.stripe.faults.add({"refund": True}, {"kind": "failed"})
        job, intent = held(sales)
        assert needing_a_person(sales).count("lost_refunds_for_a_person") == 1
        (row,) = sales.refunds(job.job_id)
        if number:
            sales.app.jobs.fire_refund(row.refund_id, "retry", actor=JANE, reason="topped up")
            with pytest.raises(GuardRefused, match="0 is not within 1 to 0"):
                give_back(sales, job, intent)
        else:
            give_back(sales, job, intent)
            with pytest.raises(GuardRefused, match="more than is left of the payment"):
                sales.app.jobs.fire_refund(row.refund_id, "retry", actor=JANE, reason="topped up")
            with pytest.raises(GuardRefused, match="more than is left of the payment"):
                sales.app.jobs.fire_refund(row.refund_id, "settle_elsewhere", actor=JANE, reason="in cash")
        sales.work()
        sales.balances(job.job_id)
        assert [payment.refunded_cents for payment in sales.payments(job.job_id)] == [49]
        assert needing_a_person(sales) == []


def test_only_what_fits_no_sale_is_given_back_like_that(holding: Sales) -> None:
    sales = holding
    job = sales.completed()
    assert job.stripe_payment_intent_id is not None
    with pytest.raises(GuardRefused, match="this payment is the sale's own: that is what `refund` is for"):
        give_back(sales, job, job.stripe_payment_intent_id)
    _, intent = held(sales)
    with pytest.raises(GuardRefused, match=f"no payment {intent} of this job is on record"):
        give_back(sales, job, intent)
    with pytest.raises(InvalidInput, match="payment_intent_id"):
        sales.app.jobs.fire(job.job_id, "return_payment", actor=JANE, reason="fits no sale")
