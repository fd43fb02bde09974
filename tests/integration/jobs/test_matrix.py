"""Every trigger in every state: where it leads, what it writes and owes, or why it is refused. Called by pytest.

The tables below are written down from the design, and know nothing of lifecycle.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.errors import GuardRefused, InvalidInput, TransitionNotAllowed
from smi_workflow.jobs import guards
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.model import Job
from smi_workflow.jobs.refunds import REFUND
from tests.support.desks import Desk

STATES = ("awaiting_payment", "pending", "processing", "completed", "failed", "abandoned")
SHORT = dict(zip(("wait", "pend", "proc", "done", "fail", "gone"), STATES, strict=True))
NOW, MINUTE, HOUR, DAY = timedelta(0), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

# What entering a state owes, and when it is due.
ENTERING: Mapping[str, Mapping[str, timedelta]] = {
    "awaiting_payment": {"payment_deadline": DAY + 5 * MINUTE},
    "pending": {"submit_upscale": NOW, "pending_deadline": DAY},
    "processing": {"poll_upscale": MINUTE / 2, "upscale_deadline": 15 * MINUTE},
    "completed": {"send_download_link": NOW, "warn_expiry": 18 * HOUR, "expire_download": DAY},
    "failed": {"refund_due": 30 * MINUTE, "send_failure_notice": NOW, "tell_admin": NOW},
    "abandoned": {"expire_session": NOW, "purge_job": DAY},
}
LINK = {"send_download_link": NOW, "warn_expiry": 18 * HOUR, "expire_download": DAY}
TOLD = {"tell_admin": NOW}
FINAL = {"refund_due": NOW}
UNPAID = {"refund_due": None}

PAYMENT = {
    "session_id": "cs_1", "payment_intent_id": "pi_new", "amount_cents": 384, "currency": "usd", "livemode": False,
    "email": None,
}  # fmt: skip
RESULT = {"upsampler_job_id": "up-1", "submit_effect_id": "e1", "credits_used": 2}
FILE = {
    "file_name": "results/new.png", "width": 80, "height": 40, "format": "PNG", "size_bytes": 9, "sha256": "0",
}  # fmt: skip
PAID = "stripe_payment_intent_id payment_status paid_at paid_cents amount_charged"
FORGOTTEN = "email image_url checkout_url upscaled_url purged_at"


@dataclass(frozen=True)
class Line:
    """One trigger with agreeing facts.

    leads: words like `wait>pend` (leads there), `done` (stays), `wait!guard` (refused by it); `*` is every state
        that is not named. A state that is not named at all does not know the trigger.
    columns: what may change beside version, visit, status and the time of the last touch.
    owes: beside what the state entered owes; None takes something of that away.
    row: columns of the job before.
    """

    trigger: str
    leads: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: str = ""
    owes: Mapping[str, timedelta | None] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def given(self, job_id: str) -> dict[str, Any]:
        """The facts; a payment intent is any job's own."""
        named = {"payment_intent_id": f"pi_new_{job_id}", "dispute_id": f"dp_{job_id}"}
        return {**self.facts, **{name: value for name, value in named.items() if name in self.facts}}

    def expected(self) -> dict[str, str]:
        """State → `>state`, `` (stays) or `!guard`; without those that do not know it."""
        found: dict[str, str] = {}
        rest = ""
        for word in self.leads.split():
            name = word.rstrip(">!").split(">")[0].split("!")[0]
            tail = word.removeprefix(name)
            what = f">{SHORT[tail[1:]]}" if tail.startswith(">") else tail or "stays"
            if name == "*":
                rest = what
            else:
                found[SHORT[name]] = what
        return {state: found.get(state, rest) for state in STATES if state in found or rest}


LINES = (
    Line("checkout_opened", "wait gone", {"session_id": "cs_2", "checkout_url": "https://pay.example/2"},
         owes={"expire_session": timedelta(0)}),
    Line("payment_received", "wait>pend gone>pend", PAYMENT, PAID),
    Line("payment_processing", "wait>wait gone>wait", owes={"payment_deadline": 14 * DAY}),
    Line("payment_declined", "wait", {"code": "card_declined"}, "payment_status"),
    Line("payment_failed", "wait>fail", {"code": "delayed_payment_failed"},
         "payment_status failed_at failure_code", UNPAID),
    Line("payment_unexpected", "*", {**PAYMENT, "amount_cents": 999}, "", TOLD),
    Line("payment_unexpected", "wait!payment_fits_no_sale gone!payment_fits_no_sale *", PAYMENT, "", TOLD),
    Line("charge_noted", "*", {"payment_intent_id": "pi_1", "charge_id": "ch_1"}),
    Line("abandon", "wait>gone", {"session_status": "expired"}, "", {"expire_session": None}),
    Line("abandon", "wait>gone", {"session_status": "spent"}),
    Line("abandon", "wait!nothing_can_be_paid", {"session_status": "open"}),
    Line("abandon", "wait!nothing_can_be_paid", {"session_status": "complete"}),
    Line("upscale_started", "pend>proc", RESULT,
         "upsampler_job_id submit_effect_id processing_started_at credits_used"),
    Line("upscale_delivered", "proc", {**RESULT, "image_url": "https://cdn.example/r.png", "url_refusal": ""},
         "delivered_at upscaled_url credits_used", {"fetch_result": NOW, "fetch_deadline": 15 * MINUTE}),
    Line("complete", "proc>done", FILE,
         "upscaled_file_path completed_at token_generation download_token download_expires_at"),
    Line("fail", "pend>fail proc>fail", {"code": "outage"}, "failed_at failure_code"),
    Line("fail", "pend>fail proc>fail", {"code": "upsampler_failed"}, "failed_at failure_code", FINAL),
    Line("retry", "fail>pend *!override_is_given", {}, "failed_at failure_code"),
    Line("retry", "*!override_is_given", {"override": True}),
    Line("retry", "wait>pend pend>pend proc>pend done>pend fail>pend gone>pend", {"override": True},
         "upsampler_job_id submit_effect_id failed_at failure_code overridden", reason="the buyer phoned"),
    Line("renew_download", "done", {}, "token_generation download_token download_expires_at email_sent", LINK,
         {"email_sent": True}),
    Line("expire_download", "done", {"token_generation": 1}, "upscaled_file_path", {"remove_file": NOW},
         {"token_generation": 1, "download_expires_at": "past"}),
    Line("file_removed", "*"),
    Line("notice_sent", "*", {}, "email_sent"),
    Line("notice_failed", "*", {}, "", TOLD),
    Line("hook_failed", "*", {"inputs": {"receiver": "r1", "hook": "job_created", "sequence": 1}}, "", TOLD),
    Line("resend", "done", {}, "", {"send_download_link": NOW}),
    Line("amend", "*", {"fields": {"email": "joe@example.com", "post_id": 7}}, "email post_id"),
    Line("correct_costs", "*", {"costs": {"upsampler_cost": 0.6, "credits_required": 15, "customer_price": 3.84}},
         "amount_cost credits_used"),
    Line("correct_costs", "*!only_costs_are_corrected", {"costs": {"upsampler_cost": 0.6, "customer_price": 1}}),
    Line("correct_costs", "*!only_costs_are_corrected", {"costs": {"markup_percentage": 500}}),
    Line("erase", "done fail!nothing_is_owed gone", {},
         FORGOTTEN, {"remove_file": NOW}, {"upscaled_url": "https://cdn.example/r.png"}, "asked by the person"),
    Line("erase", "done!reason_is_given fail!reason_is_given gone!reason_is_given"),
    Line("purge", "done fail!nothing_is_owed gone", {},
         FORGOTTEN, {"remove_file": NOW}, {"upscaled_url": "https://cdn.example/r.png"}),
    Line("refund", "wait!is_paid_for gone!is_paid_for pend>fail proc>fail done fail", {},
         "refunding_cents refund_reason failed_at failure_code", UNPAID, reason="the buyer asked"),
    Line("refund", "wait!is_paid_for gone!is_paid_for *", {"amount_cents": 100}, "refunding_cents refund_reason",
         reason="the buyer asked"),
    Line("refund_settled", "wait!refund_was_under_way gone!refund_was_under_way pend>fail proc>fail done fail",
         {"amount_cents": 384, "is_ours": True, "role": "sale"},
         "refunding_cents refunded_cents refunded_at refund_amount failed_at failure_code",
         {"send_refund_notice": NOW, **UNPAID}, {"refunding_cents": "if paid"}),
    Line("refund_settled", "wait!refund_was_under_way gone!refund_was_under_way *",
         {"amount_cents": 100, "is_ours": True, "role": "sale"},
         "refunding_cents refunded_cents refunded_at refund_amount", {"send_refund_notice": NOW},
         {"refunding_cents": "a part, if paid"}),
    Line("refund_settled", "*", {"amount_cents": 999, "is_ours": True, "role": "surplus"}, "",
         {"send_refund_notice": NOW}),
    Line("refund_failed", "*", {"amount_cents": 100, "refund_id": "r1", "role": "sale"}, "refunding_cents", TOLD,
         {"refunding_cents": 384}),
    Line("refund_failed", "*", {"amount_cents": 100, "refund_id": "r1", "role": "surplus"}, "", TOLD),
    Line("refund_settled", "wait!refund_was_under_way gone!refund_was_under_way pend>fail proc>fail done fail",
         {"amount_cents": 384, "is_ours": True, "elsewhere": True, "role": "sale"},
         "refunded_cents refunded_at refund_amount failed_at failure_code", UNPAID),
    Line("refund_retried", "wait!refund_is_possible gone!refund_is_possible pend>fail proc>fail done fail",
         {"amount_cents": 384, "refund_id": "r1"}, "refunding_cents failed_at failure_code", UNPAID),
    Line("refund_retried", "wait!refund_is_possible gone!refund_is_possible *",
         {"amount_cents": 100, "refund_id": "r1"}, "refunding_cents"),
    Line("refunds_differ", "*", {"payment_intent_id": "pi_1"}, "", {"find_refunds": NOW}),
    Line("return_payment", "*!payment_is_strange", {"payment_intent_id": "pi_1"}, reason="it fits no sale"),
    Line("return_payment", "*!reason_is_given", {"payment_intent_id": "pi_1"}),
    Line("dispute_opened", "pend>fail proc>fail *", {"dispute_id": "dp_1", "withdrawn_cents": 384},
         "disputed_cents failed_at failure_code", {**TOLD, **UNPAID}),
    Line("dispute_opened", "*", {"dispute_id": "dp_1", "withdrawn_cents": None}, "", TOLD),
    Line("dispute_opened", "*", {"dispute_id": "dp_1", "withdrawn_cents": 384, "role": "surplus"}, "", TOLD),
    Line("dispute_closed", "*", {"dispute_id": "dp_1", "withdrawn_cents": 0}, "disputed_cents", TOLD,
         {"disputed_cents": 384}),
    Line("dispute_closed", "*", {"dispute_id": "dp_1", "withdrawn_cents": None}, "", TOLD),
    *(Line("override", f"*>{short}" if short in ("pend", "proc", "fail") else
           f"done>{short} *!target_is_sound" if short == "done" else
           f"wait>{short} gone>{short} *!target_is_sound",
           # Goods may follow there, so the guards against goods and money both are lifted; elsewhere they stay.
           {"target": state, "effects": True}, "overridden" if short in ("pend", "proc", "done") else "",
           reason="the phone call of Monday")
      for short, state in SHORT.items()),
    *(Line("override", "*!reason_is_given", {"target": state, "effects": True}) for state in STATES),
)  # fmt: skip


def test_the_tables_name_every_state_and_trigger() -> None:
    assert [state.name for state in JOB.states] == list(STATES)
    assert {line.trigger for line in LINES} == set(JOB.triggers())


def test_every_trigger_in_every_state(desk: Desk) -> None:
    wrong: list[str] = []
    for line in LINES:
        expected, changed = line.expected(), set[str]()
        for state in STATES:
            said = _try(desk, line, state, expected.get(state, "unknown here"), changed)
            wrong += [f"{line.trigger} in {state} {dict(line.facts)}: {text}" for text in said]
        never = set(line.columns.split()) - changed
        wrong += [f"{line.trigger} {dict(line.facts)} never changes {sorted(never)}"] if never else []
    assert not wrong, "\n".join(wrong)


def _try(desk: Desk, line: Line, state: str, expected: str, changed: set[str]) -> list[str]:
    job_id = desk.put(state, **_columns(desk, line, state))
    before = desk.job(job_id)
    desk.clock.advance(seconds=1)
    try:
        actor = "admin:jane" if line.trigger in BY_HAND else "system"
        desk.fire(job_id, line.trigger, actor, line.reason, **line.given(job_id))
    except TransitionNotAllowed as refusal:
        assert refusal.allowed == JOB.allowed(state)
        assert refusal.trigger in str(refusal) and state in str(refusal)
        outcome = "unknown here"
    except GuardRefused as refusal:
        # A sentence that an admin can read: no names of code, no dangling end.
        assert " " in refusal.reason and "None" not in refusal.reason
        outcome = f"!{refusal.guard}"
    else:
        after = desk.job(job_id)
        moved = after.visit == after.version
        outcome = f">{after.status}" if moved else "stays" if after.status == state else f"slid to {after.status}"
        found = [] if expected == outcome else [f"{outcome}, not {expected}"]
        these = {name for name, value in after.__data__.items() if before.__data__[name] != value}
        changed |= these
        strange = these - {"version", "visit", "status", "updated_at"} - set(line.columns.split())
        found += [f"changed {sorted(strange)}"] if strange else []
        return found + _owed(desk, line, after if moved else None, job_id)
    unchanged = desk.job(job_id).__data__ == before.__data__ and not desk.owed(job_id)
    if len(desk.app.jobs.history(job_id)) != 1 or not unchanged:
        return [f"{outcome}, but something was written"]
    return [] if outcome == expected else [f"{outcome}, not {expected}"]


def _columns(desk: Desk, line: Line, state: str) -> dict[str, Any]:
    columns = dict(line.row)
    if columns.get("download_expires_at") == "past":
        columns["download_expires_at"] = desk.clock.now() - HOUR
    in_flight = {"if paid": 384, "a part, if paid": 100}.get(columns.get("refunding_cents", ""))
    if in_flight is not None:
        columns["refunding_cents"] = 0 if state in ("awaiting_payment", "abandoned") else in_flight
    return columns


def _owed(desk: Desk, line: Line, entered: Job | None, job_id: str) -> list[str]:
    expected: dict[str, timedelta | None] = dict(ENTERING[entered.status]) if entered is not None else {}
    if entered is not None and entered.payment_status != "paid":
        expected.pop("refund_due", None)
    if entered is not None and line.trigger in ("retry", "override") and entered.payment_status != "paid":
        # Moved on by an admin while nobody has paid: the checkout must not stay open behind its back.
        expected |= {"expire_session": NOW} if entered.status != "awaiting_payment" else {}
    if entered is not None:
        expected = {**expected, **line.owes}
    else:
        expected = {name: due for name, due in line.owes.items() if name != "refund_due"}
        if line.facts.get("withdrawn_cents") == 0 and desk.job(job_id).status == "failed":
            expected["refund_due"] = 30 * MINUTE  # the money is ours again, and still not the shop's to keep
    wanted = {name: due for name, due in expected.items() if due is not None}
    owed = desk.owed(job_id)
    return [] if owed == wanted else [f"owes {owed}, not {wanted}"]


QUIET: Mapping[str, Mapping[str, timedelta]] = {
    # An unpaid checkout must not stay open, whatever else is left undone.
    "awaiting_payment": {"payment_deadline": DAY + 5 * MINUTE},
    "pending": {"pending_deadline": DAY},
    "processing": {"poll_upscale": MINUTE / 2, "upscale_deadline": 15 * MINUTE},
    "completed": {"warn_expiry": 18 * HOUR, "expire_download": DAY},
    "failed": {"refund_due": 30 * MINUTE},
    "abandoned": {"purge_job": DAY, "expire_session": NOW},
}


def test_an_override_sets_deadlines_and_asks_for_nothing_else_unless_told(desk: Desk) -> None:
    for target, owed in QUIET.items():
        source = {"completed": "completed", "abandoned": "awaiting_payment", "awaiting_payment": "abandoned"}
        job_id = desk.put(source.get(target, "failed"))
        desk.fire(job_id, "override", "admin:jane", "the phone call of Monday", target=target)
        assert desk.owed(job_id) == owed, target
        assert (desk.job(job_id).status, desk.job(job_id).overridden) == (
            target, target in ("pending", "processing", "completed"),
        )  # fmt: skip
    job_id = desk.put("pending")
    try:
        desk.fire(job_id, "override", "admin:jane", "a typing error", target="complete")
    except InvalidInput:
        assert desk.job(job_id).status == "pending"
    else:
        raise AssertionError("an unknown state was accepted")


# What a person may fire; all else reports what an effect or a provider did.
BY_HAND = {
    "fail", "retry", "renew_download", "expire_download", "resend", "amend", "correct_costs", "erase", "purge",
    "refund", "return_payment", "override",
}  # fmt: skip


def test_nobody_makes_true_by_hand_what_only_a_report_can_say(desk: Desk) -> None:
    reported = {move.trigger for move in JOB.moves if guards.not_by_hand in move.guards}
    assert reported == set(JOB.triggers()) - BY_HAND
    job_id = desk.put("completed")
    for trigger in ("notice_sent", "file_removed", "refund_failed", "dispute_opened"):
        for actor in ("admin:jane", "buyer"):
            with pytest.raises(GuardRefused, match="not fired by hand"):
                desk.fire(job_id, trigger, actor, "", refund_id="r", amount_cents=1, withdrawn_cents=1)


REFUND_STATES = ("requested", "submitted", "pending", "succeeded", "settled_elsewhere", "failed", "canceled")


def _stripe_says(refund_id: str, **changes: Any) -> dict[str, Any]:
    said = {"stripe_refund_id": f"re_{refund_id}", "amount_cents": 100, "currency": "usd", "status": "succeeded"}
    return {**said, **changes}


REFUND_LINES: Mapping[str, Mapping[str, str | None]] = {
    # A refund that was settled can still come back: the bank says so.
    "submitted": {"requested": "submitted"},
    "pending": {"requested": "pending", "submitted": "pending"},
    "succeed": {"requested": "succeeded", "submitted": "succeeded", "pending": "succeeded"},
    "fail": {"requested": "failed", "submitted": "failed", "pending": "failed", "succeeded": "failed"},
    "cancel": {"requested": "canceled", "submitted": "canceled", "pending": "canceled"},
    "overdue": {"requested": None, "submitted": None, "pending": None},
    "retry": {"failed": "requested", "canceled": "requested"},
    "settle_elsewhere": {"failed": "settled_elsewhere", "canceled": "settled_elsewhere"},
    # Only for those that Stripe made: they are put on record and found in one commit.
    "found_at_stripe": {},
}
REFUND_OWES: Mapping[str, Mapping[str, timedelta]] = {
    "requested": {"submit_refund": NOW, "refund_overdue": 3 * DAY},
    "submitted": {"check_refund": HOUR, "refund_overdue": 3 * DAY},
    "pending": {"check_refund": HOUR, "refund_overdue": 3 * DAY},
    "succeeded": {},
    "failed": {"tell_admin": NOW},
    "canceled": {"tell_admin": NOW},
    "settled_elsewhere": {},
}
REFUND_WAYS: Mapping[str, tuple[str, ...]] = {
    "submitted": ("submitted",), "pending": ("pending",), "succeeded": ("succeed",), "failed": ("fail",),
    "canceled": ("cancel",), "settled_elsewhere": ("fail", "settle_elsewhere"),
}  # fmt: skip
# What a person may do with a refund; all else reports what an effect or Stripe did.
REFUND_BY_HAND = {"retry", "settle_elsewhere"}


def _fire_refund(desk: Desk, refund_id: str, trigger: str) -> Any:
    actor, reason = ("admin:jane", "by bank transfer") if trigger in REFUND_BY_HAND else ("stripe", "")
    facts = {} if trigger in REFUND_BY_HAND else _stripe_says(refund_id)
    return desk.app.engine.fire("refund", refund_id, trigger, actor=actor, reason=reason, facts=facts)


def _refund_in(desk: Desk, state: str) -> tuple[str, str]:
    job_id = desk.put("completed")
    desk.fire(job_id, "refund", "admin:jane", "", amount_cents=100)
    table = desk.app.job_tables.refunds
    refund_id = table.get(table.job_id == job_id).refund_id
    assert desk.owed(refund_id) == REFUND_OWES["requested"]
    for trigger in REFUND_WAYS.get(state, ()):
        _fire_refund(desk, refund_id, trigger)
    return job_id, refund_id


def test_every_trigger_of_a_refund_in_every_state(desk: Desk) -> None:
    assert [state.name for state in REFUND.states] == list(REFUND_STATES)
    assert set(REFUND.triggers()) == set(REFUND_LINES)
    assert {move.trigger for move in REFUND.moves if guards.not_by_hand not in move.guards} == REFUND_BY_HAND
    job_money = dict.fromkeys(("requested", "submitted", "pending"), (100, 0))
    job_money |= dict.fromkeys(("succeeded", "settled_elsewhere"), (0, 100))
    job_money |= dict.fromkeys(("failed", "canceled"), (0, 0))
    for trigger, leads in REFUND_LINES.items():
        for state in REFUND_STATES:
            job_id, refund_id = _refund_in(desk, state)
            assert (desk.job(job_id).refunding_cents, desk.job(job_id).refunded_cents) == job_money[state]
            where = f"{trigger} in {state}"
            try:
                _fire_refund(desk, refund_id, trigger)
            except (TransitionNotAllowed, GuardRefused) as refusal:
                assert state not in leads, where
                assert refusal.state == state
                continue
            assert state in leads, where
            to = leads[state] or state
            row = desk.app.engine.read("refund", refund_id)
            assert row.state == to, where
            assert (desk.job(job_id).refunding_cents, desk.job(job_id).refunded_cents) == job_money[to], where
            told = trigger == "overdue" or (trigger in REFUND_BY_HAND)
            owed = {**REFUND_OWES[to], **({"tell_admin": NOW} if told else {})}
            assert desk.owed(refund_id) == owed, where
            payments = desk.app.job_tables.payments
            at_stripe = job_money[to][1] if to != "settled_elsewhere" else 0
            assert payments.get(payments.job_id == job_id).refunded_cents == at_stripe, where


def test_a_refund_that_is_not_ours_to_settle_is_refused(desk: Desk) -> None:
    _, refund_id = _refund_in(desk, "submitted")
    for wrong, text in (
        ({"amount_cents": 99}, "Stripe refunded 99 usd, not 100 usd"),
        ({"currency": "eur"}, "Stripe refunded 100 eur, not 100 usd"),
        ({"stripe_refund_id": "re_2"}, f"it is re_{refund_id} at Stripe, not re_2"),
    ):
        try:
            desk.app.engine.fire(
                "refund", refund_id, "succeed", actor="stripe", facts=_stripe_says(refund_id, **wrong)
            )
        except GuardRefused as refusal:
            assert refusal.guard == "refund_matches"
            assert text in refusal.reason
        else:
            raise AssertionError(f"{wrong} was accepted")
