"""Guards: each agrees and refuses, with words that an admin understands. Called by pytest."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.engine.declaration import Case, MissingFact
from smi_workflow.jobs import guards
from smi_workflow.jobs.alerts import ALERT
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.refunds import REFUND
from tests.unit.jobs.cases import NOW, job_case, refund_case

PAYMENT = {
    "session_id": "cs_1", "payment_intent_id": "pi_1", "amount_cents": 384, "currency": "usd", "livemode": False,
}  # fmt: skip
OPEN = {"status": "awaiting_payment"}
FIELDS = "fields"

BY_HAND = "this follows from what an effect or a provider reports, and is not fired by hand"

AGREE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # guard, facts, the row
    ("payment_fits_the_sale", PAYMENT, OPEN),
    ("payment_fits_the_sale", {**PAYMENT, "livemode": True}, {**OPEN, "livemode": True}),
    ("payment_is_not_recorded", {}, OPEN),
    ("payment_fits_no_sale", {**PAYMENT, "amount_cents": 1}, OPEN),
    ("payment_fits_no_sale", PAYMENT, {"status": "pending", "stripe_payment_intent_id": "pi_0"}),
    ("payment_fits_no_sale", PAYMENT, {**OPEN, "payment_status": "paid", "stripe_payment_intent_id": "pi_0"}),
    ("nothing_is_paid", {}, OPEN),
    ("nothing_is_paid", {}, {**OPEN, "payment_status": "failed"}),
    ("nothing_can_be_paid", {}, {**OPEN, "stripe_checkout_session_id": None}),
    ("nothing_can_be_paid", {"session_status": "expired"}, OPEN),
    ("nothing_can_be_paid", {"session_status": "spent"}, OPEN),
    ("is_paid_or_overridden", {}, {}),
    ("is_paid_or_overridden", {}, {"payment_status": "pending", "overridden": True}),
    ("no_refund_is_under_way", {}, {}),
    ("no_refund_is_under_way", {}, {"refunded_cents": 384, "overridden": True}),
    ("money_is_kept", {}, {"refunded_cents": 383}),
    ("money_is_kept", {}, {"refunded_cents": 384, "overridden": True}),
    ("money_is_kept", {}, {"paid_cents": 0}),
    ("is_paid_for", {}, {}),
    ("override_is_given", {"override": True, "reason": "said so"}, {}),
    ("reason_is_given", {"reason": "said so"}, {}),
    ("submission_is_ours", {"submit_effect_id": "e1"}, {"status": "processing"}),
    ("is_not_delivered_yet", {}, {}),
    ("result_url_is_allowed", {"url_refusal": ""}, {}),
    ("file_is_the_result", {"width": 80, "height": 40}, {}),
    ("file_is_the_result", {"width": 160, "height": 80}, {"resolution": "8x"}),
    ("file_can_be_served", {}, {"status": "completed"}),
    ("link_is_over", {"token_generation": 1}, {"status": "completed", "download_expires_at": NOW}),
    ("refund_is_possible", {}, {}),
    ("refund_is_possible", {"amount_cents": 384}, {}),
    ("refund_is_possible", {"amount_cents": 84}, {"refunding_cents": 200, "refunded_cents": 100}),
    ("refund_was_under_way", {"amount_cents": 100, "is_ours": True}, {"refunding_cents": 100}),
    ("refund_was_under_way", {"amount_cents": 384, "is_ours": False}, {}),
    ("refund_was_under_way", {"amount_cents": 384, "is_ours": True, "elsewhere": True}, {}),
    ("refund_was_under_way", {"amount_cents": 999, "is_ours": True, "role": "surplus"}, {}),
    ("only_costs_are_corrected", {"costs": {"upsampler_cost": 0.64, "customer_price": 3.84}}, {}),
    ("only_listed_fields", {FIELDS: {"email": None, "post_id": 1, "attachment_id": None}}, {}),
    ("nothing_is_owed", {}, {"status": "completed"}),
    ("nothing_is_owed", {}, {"status": "abandoned"}),
    ("nothing_is_owed", {}, {"status": "failed", "refunded_cents": 384}),
    ("nothing_is_owed", {}, {"status": "failed", "paid_cents": 0}),
    ("target_is_sound", {"target": "completed"}, {"status": "completed"}),
    ("target_is_sound", {"target": "awaiting_payment"}, OPEN),
    ("target_is_sound", {"target": "pending"}, OPEN),
    ("refund_matches", {"amount_cents": 100, "currency": "usd", "stripe_refund_id": "re_1"}, {}),
]

OF_REFUNDS = ("refund_matches", "was_made_at_stripe", "was_made_by_us", "is_of_this_try")
AGREE.append(("was_made_at_stripe", {}, {"stripe_refund_id": "re_1"}))
AGREE += [("was_made_by_us", {}, {"tries": tries}) for tries in (1, 2)]
AGREE += [("is_of_this_try", facts, {"tries": 2}) for facts in ({}, {"tries": 2})]
AGREE += [("not_by_hand", {"actor": actor}, {}) for actor in ("system", "stripe", "upsampler")]

REFUSE: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("not_by_hand", {"actor": "admin:jane"}, {}, BY_HAND),
    ("not_by_hand", {"actor": "buyer"}, {}, BY_HAND),
    ("payment_fits_the_sale", PAYMENT, {**OPEN, "stripe_checkout_session_id": None},
     "its checkout session is not on record yet"),
    ("payment_fits_the_sale", {**PAYMENT, "session_id": "cs_2"}, OPEN,
     "it was made in session cs_2, not in the job's own"),
    ("payment_fits_the_sale", {**PAYMENT, "payment_intent_id": None}, OPEN, "Stripe names no payment intent"),
    ("payment_fits_the_sale", {**PAYMENT, "amount_cents": 383}, OPEN,
     "383 usd was paid where 384 usd is due (minor units)"),
    ("payment_fits_the_sale", {**PAYMENT, "amount_cents": 385}, OPEN,
     "385 usd was paid where 384 usd is due (minor units)"),
    ("payment_fits_the_sale", {**PAYMENT, "amount_cents": None}, OPEN,
     "None usd was paid where 384 usd is due (minor units)"),
    ("payment_fits_the_sale", {**PAYMENT, "currency": "eur"}, OPEN,
     "384 eur was paid where 384 usd is due (minor units)"),
    ("payment_fits_the_sale", {**PAYMENT, "livemode": True}, OPEN, "test and live mode are mixed"),
    ("payment_fits_the_sale", PAYMENT, {**OPEN, "livemode": True}, "test and live mode are mixed"),
    ("payment_is_not_recorded", {}, {"stripe_payment_intent_id": "pi_0"}, "it is paid already, by pi_0"),
    ("payment_fits_no_sale", PAYMENT, {**OPEN, "stripe_checkout_session_id": None},
     "the job's checkout session is not on record yet"),
    ("payment_fits_no_sale", PAYMENT, {"stripe_payment_intent_id": "pi_1"}, "this payment is the sale's own"),
    ("payment_fits_no_sale", PAYMENT, OPEN, "this payment is the one we wait for"),
    ("payment_fits_no_sale", PAYMENT, {"status": "abandoned"}, "this payment is the one we wait for"),
    ("nothing_is_paid", {}, {}, "it is paid"),
    ("nothing_can_be_paid", {}, OPEN, "its checkout session is not known to be over at Stripe"),
    ("nothing_can_be_paid", {"session_status": "open"}, OPEN, "its checkout session is open at Stripe"),
    ("nothing_can_be_paid", {"session_status": "complete"}, OPEN, "its checkout session is complete at Stripe"),
    ("is_paid_or_overridden", {}, OPEN, "it is not paid, and no admin has overridden that"),
    ("no_refund_is_under_way", {}, {"refunding_cents": 1}, "a refund is under way or done"),
    ("no_refund_is_under_way", {}, {"refunded_cents": 1}, "a refund is under way or done"),
    ("money_is_kept", {}, {"refunded_cents": 384}, "the money went back (refund or chargeback)"),
    ("money_is_kept", {}, {"refunding_cents": 384}, "the money went back (refund or chargeback)"),
    ("money_is_kept", {}, {"disputed_cents": 384}, "the money went back (refund or chargeback)"),
    ("money_is_kept", {}, {"refunding_cents": 100, "refunded_cents": 100, "disputed_cents": 184},
     "the money went back (refund or chargeback)"),
    ("is_paid_for", {}, OPEN, "it is not paid"),
    ("is_paid_for", {}, {**OPEN, "payment_status": "failed"}, "it is not paid"),
    ("override_is_given", {}, {}, "this needs the fact override=true"),
    ("override_is_given", {"override": "yes", "reason": "said so"}, {}, "this needs the fact override=true"),
    ("override_is_given", {"override": True}, {}, "a reason is needed"),
    ("reason_is_given", {"reason": " \t "}, {}, "a reason is needed"),
    ("submission_is_ours", {"submit_effect_id": "e2"}, {"status": "processing"},
     "it is the result of submission e2; this visit waits for e1"),
    ("is_not_delivered_yet", {}, {"delivered_at": NOW}, "its result was announced already"),
    ("result_url_is_allowed", {"url_refusal": "result: no"}, {}, "its result cannot be fetched: result: no"),
    ("file_is_the_result", {"width": 80, "height": 41}, {}, "the file is 80x41 pixels, not 80x40"),
    ("file_is_the_result", {"width": 40, "height": 80}, {}, "the file is 40x80 pixels, not 80x40"),
    ("file_can_be_served", {}, {}, "its file has been removed"),
    ("link_is_over", {"token_generation": 1}, {"status": "completed", "token_generation": 2},
     "the link was renewed meanwhile"),
    ("link_is_over", {"token_generation": 1},
     {"status": "completed", "download_expires_at": NOW + timedelta(microseconds=1)}, "the link has not expired"),
    ("link_is_over", {"token_generation": 0}, {"download_expires_at": None}, "the link has not expired"),
    ("refund_is_possible", {}, {"disputed_cents": 1}, "a chargeback has withdrawn the money"),
    ("refund_is_possible", {}, {"refunding_cents": 384}, "nothing is left to refund"),
    ("refund_is_possible", {}, {"refunding_cents": 184, "refunded_cents": 200}, "nothing is left to refund"),
    ("refund_is_possible", {"amount_cents": 385}, {}, "385 is not within 1 to 384 usd (minor units)"),
    ("refund_is_possible", {"amount_cents": 0}, {}, "0 is not within 1 to 384 usd (minor units)"),
    ("refund_is_possible", {"amount_cents": -5}, {}, "-5 is not within 1 to 384 usd (minor units)"),
    ("refund_is_possible", {"amount_cents": 1.5}, {}, "1.5 is not a whole number of minor units"),
    ("refund_is_possible", {"amount_cents": True}, {}, "True is not a whole number of minor units"),
    ("refund_is_possible", {"amount_cents": "5"}, {}, "'5' is not a whole number of minor units"),
    ("refund_was_under_way", {"amount_cents": 101, "is_ours": True}, {"refunding_cents": 100},
     "101 was settled where 100 was expected (minor units)"),
    ("refund_was_under_way", {"amount_cents": 300, "is_ours": False}, {"refunding_cents": 100},
     "300 was settled where 284 was expected (minor units)"),
    ("only_costs_are_corrected", {"costs": {}}, {}, "no cost is given"),
    ("only_costs_are_corrected", {"costs": {"customer_price": 1}}, {},
     "customer_price was agreed as 3.84 usd, and stands"),
    ("refund_was_under_way", {"amount_cents": 300, "is_ours": True, "elsewhere": True}, {"refunding_cents": 100},
     "300 was settled where 284 was expected (minor units)"),
    ("only_listed_fields", {FIELDS: {"status": "completed", "paid_cents": 1, "email": "a@example.com"}}, {},
     "cannot be amended: paid_cents, status (can: attachment_id, email, post_id)"),
    ("only_listed_fields", {FIELDS: {"email": "new@example.com"}},
     {"status": "awaiting_payment", "stripe_checkout_session_id": None},
     "the checkout is being opened with the address as it is: amend it once that is done"),
    ("only_listed_fields", {FIELDS: ["email"]}, {}, "fields must be names with their new values"),
    ("only_listed_fields", {FIELDS: {"email": "nobody"}}, {}, "email An email address must have an @-sign."),
    ("only_listed_fields", {FIELDS: {"post_id": "7"}}, {}, "post_id must be a whole number"),
    ("only_listed_fields", {FIELDS: {"attachment_id": 2**63}}, {}, "attachment_id must be a whole number"),
    ("nothing_is_owed", {}, {}, "it is pending"),
    ("nothing_is_owed", {}, {"status": "failed"}, "its refund is still owed"),
    ("nothing_is_owed", {}, {"status": "failed", "refunding_cents": 384}, "a refund is under way"),
    ("nothing_is_owed", {}, {"status": "completed", "refunding_cents": 1}, "a refund is under way"),
    ("target_is_sound", {"target": "completed"}, {}, "there is no file, so it cannot be completed"),
    ("target_is_sound", {"target": "awaiting_payment"}, {}, "it is paid, so it does not await payment"),
    ("target_is_sound", {"target": "abandoned"}, {}, "it is paid; fail it instead, and the money goes back"),
    ("was_made_at_stripe", {}, {"stripe_refund_id": None}, "it is ours, and Stripe has not got it yet"),
    ("was_made_by_us", {}, {"tries": 0},
     "it was made at Stripe's own pages: ask for a `refund` of the job instead"),
    ("is_of_this_try", {"tries": 1}, {"tries": 2}, "it is about try 1 of 2"),
    ("refund_matches", {"amount_cents": 99, "currency": "usd", "stripe_refund_id": "re_1"}, {},
     "Stripe refunded 99 usd, not 100 usd (minor units)"),
    ("refund_matches", {"amount_cents": 100, "currency": "eur", "stripe_refund_id": "re_1"}, {},
     "Stripe refunded 100 eur, not 100 usd (minor units)"),
    ("refund_matches", {"amount_cents": 100, "currency": "usd", "stripe_refund_id": "re_2"},
     {"stripe_refund_id": "re_1"}, "it is re_1 at Stripe, not re_2"),
]  # fmt: skip


def judge(name: str, facts: dict[str, Any], row: dict[str, Any]) -> str | None:
    """Ask one guard."""
    guard: Callable[[Case[Any]], str | None] = getattr(guards, name)
    given = {key: value for key, value in facts.items() if key not in ("reason", "actor")}
    case: Case[Any]
    if name in OF_REFUNDS:
        case = refund_case(facts=given, **row)
    else:
        case = job_case(**{"status": "pending", "facts": given, "reason": facts.get("reason", ""), **row})
    case.actor = facts.get("actor", "admin:jane")
    before = dict(case.row.__data__)
    answer = guard(case)
    assert case.row.__data__ == before and not case.changes, "a guard changes nothing"
    return answer


@pytest.mark.parametrize(("name", "facts", "row"), AGREE)
def test_it_agrees(name: str, facts: dict[str, Any], row: dict[str, Any]) -> None:
    assert judge(name, facts, row) is None


@pytest.mark.parametrize(("name", "facts", "row", "reason"), REFUSE)
def test_it_refuses_and_says_why(name: str, facts: dict[str, Any], row: dict[str, Any], reason: str) -> None:
    assert judge(name, facts, row) == reason


def test_every_guard_is_tried_both_ways_and_used() -> None:
    used = {guard.__name__ for flow in (JOB, REFUND, ALERT) for move in flow.moves for guard in move.guards}
    assert {name for name, _, _ in AGREE} == {name for name, _, _, _ in REFUSE} == used
    written = {
        name
        for name, function in inspect.getmembers(guards, inspect.isfunction)
        if function.__module__ == guards.__name__ and not name.startswith("_")
    }
    assert written == used | {"is_paid"}
    assert all((getattr(guards, name).__doc__ or "").endswith(".") for name in used)


def test_a_fact_that_is_missing_is_named() -> None:
    with pytest.raises(MissingFact, match="session_id"):
        judge("payment_fits_the_sale", {}, OPEN)
