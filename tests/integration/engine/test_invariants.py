"""The engine's invariants know no image and no Stripe: they hold for the loans, and find what is planted there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.engine.inbox import Fire, Park, Reading
from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariants, Violation
from smi_workflow.engine.perform import Performed
from smi_workflow.engine.rules import Rules
from smi_workflow.engine.tables import EventRow
from smi_workflow.errors import ServiceUnavailable
from tests.support.engines import Bench
from tests.support.loans import LOAN


def found(bench: Bench, loan_id: str = "l1") -> set[str]:
    """The names of what is broken everywhere, which one subject's own check must agree with."""
    judged = Invariants(bench.engine, ENGINE_INVARIANTS)
    everywhere = set(judged.everywhere())
    of_loan = set(judged.of_subject("loan", loan_id))
    assert {one for one in everywhere if one.subject_id == loan_id} == of_loan
    return {one.invariant for one in everywhere}


def test_what_the_rules_say_of_a_definition() -> None:
    rules = Rules(LOAN)
    assert rules.owed[("create", "", "reserved")] == {"fetch_book", "remind"}
    assert rules.owed[("lend", "reserved", "lent")] == {"remind", "send_slip"}
    assert rules.may_owe[("lend", "reserved", "lent")] == {"remind", "send_slip", "collect"}
    assert rules.owed[("renew", "lent", "lent")] == {"call_back"}
    assert ("waive", "lost", "lost") in rules.stays
    assert ("reserve_again", "reserved", "reserved") in rules.enters
    assert ("lend", "lent", "lent") not in rules.steps
    assert rules.deadlines == {"reserved": {"remind"}, "lent": {"remind"}}


def test_a_whole_loan_is_in_order(bench: Bench) -> None:
    bench.start()
    assert found(bench) == set()
    bench.fire("reserve_again")
    bench.fire("lend")
    bench.fire("renew")
    bench.fire("waive")
    assert found(bench) == {"waiting_ends"}, "renewing a loan cancels its only deadline, as it is declared"
    bench.fire("lose")
    bench.engine.fire("fine", "f-l1", "pay", actor="reader")
    assert found(bench) == set()
    assert Invariants(bench.engine, ENGINE_INVARIANTS).of_subject("fine", "f-l1") == []


def test_work_in_every_condition_is_in_order(bench: Bench) -> None:
    """Held, tried again, in doubt, late, given up: what the machine itself leaves is never a violation."""
    bench.start()
    seen: list[set[str]] = []

    def run(attempt: Attempt) -> Outcome:
        seen.append(found(bench))
        if len(seen) == 1:
            raise ServiceUnavailable("desk", "closed", outcome_unknown=True)
        if len(seen) == 2:
            bench.clock.advance(minutes=5)
            raise RuntimeError("late, and broken")
        if len(seen) == 3:
            return Again(timedelta(minutes=1))
        return Done("lend", {"barcode": "ok"})

    performer = bench.performer(fetch_book=run)
    effect = bench.effect("fetch_book").id
    for _ in range(4):
        performer.perform(effect)
        seen.append(found(bench))
        bench.clock.advance(minutes=10)
    assert bench.loan().state == "lent"
    assert [names for names in seen if names] == []


def test_an_event_that_comes_early_is_in_order_at_every_step(bench: Bench) -> None:
    bench.start()

    def read(row: EventRow) -> Reading:
        if bench.loan().state == "reserved":
            return Park("too early", "loan", "l1")
        return Fire("loan", "l1", "give_back", "reader")

    inbox = bench.inbox(read)
    received = inbox.receive("post", "e1", "returned", "{}")
    assert found(bench) == set()
    inbox.handle(received.id)
    assert bench.loan().parked_events == 1
    assert found(bench) == set()
    bench.fire("lend")
    assert found(bench) == set()
    inbox.handle(received.id)
    assert bench.loan().state == "returned"
    assert found(bench) == set()


@pytest.mark.parametrize(
    ("columns", "broken"),
    [
        pytest.param({"state": "lost"}, {"history_gapless"}, id="a state by hand"),
        pytest.param(
            {"visit": 1}, {"history_gapless", "timers_end_with_visit", "waiting_ends"}, id="an old visit"
        ),
        pytest.param({"version": 3}, {"history_gapless"}, id="a version that ran ahead"),
        pytest.param({"parked_events": 2}, {"events_accounted_for"}, id="nobody is parked"),
    ],
)
def test_a_row_written_by_hand_is_found(bench: Bench, columns: dict[str, Any], broken: set[str]) -> None:
    bench.lent()
    bench.loans.update(**columns).execute()
    assert found(bench) == broken


def test_a_visit_that_began_again_is_told_from_one_that_went_on(bench: Bench) -> None:
    """From the same state to the same state: only the definition knows which of them is another visit."""
    bench.start()
    bench.fire("reserve_again")
    bench.fire("waive")
    assert found(bench) == set()
    bench.loans.update(visit=3).execute()
    assert "history_gapless" in found(bench)
    bench.loans.update(visit=1).execute()
    assert "history_gapless" in found(bench)


def test_history_of_another_definition_is_judged_by_what_every_definition_has_in_common(bench: Bench) -> None:
    bench.lent()
    table = bench.engine.tables.transitions
    table.update(fingerprint="older", trigger="hand_over").where(table.trigger == "lend").execute()
    assert found(bench) == set()
    table.update(from_state="lost").where(table.trigger == "hand_over").execute()
    assert found(bench) == {"history_gapless"}


def test_a_state_that_this_release_lacks_is_found(bench: Bench) -> None:
    bench.lent()
    bench.loans.update(state="digitised").execute()
    told = [
        one for one in Invariants(bench.engine, ENGINE_INVARIANTS).everywhere() if one.invariant == "definition"
    ]
    assert told == [Violation("definition", "loan", None, "1 in state digitised, which this release lacks")]


def test_at_rest_nothing_may_be_due(bench: Bench) -> None:
    bench.lent()
    assert list(Invariants(bench.engine, ENGINE_INVARIANTS).everywhere()) == []
    left = {
        one.text.split(" (")[0] for one in Invariants(bench.engine, ENGINE_INVARIANTS, at_rest=True).everywhere()
    }
    assert left == {"effect fetch_book", "effect send_slip"}
    performer = bench.performer()
    for name in ("fetch_book", "send_slip"):
        assert performer.perform(bench.effect(name).id) in (Performed.DONE, Performed.SKIPPED)
    assert list(Invariants(bench.engine, ENGINE_INVARIANTS, at_rest=True).everywhere()) == []


@pytest.mark.parametrize("sample", [None, 3, 100])
def test_all_rows_and_a_sample_are_judged_alike(bench: Bench, sample: int | None) -> None:
    for number in range(12):
        bench.start(f"l{number}")
    judged = Invariants(bench.engine, ENGINE_INVARIANTS)
    assert list(judged.everywhere(sample=sample)) == []
    bench.loans.update(version=bench.loans.version + 1).execute()
    told = {one.subject_id for one in judged.everywhere(sample=sample) if one.invariant == "history_gapless"}
    assert len(told) == {None: 12, 3: 3, 100: 12}[sample]


def test_looking_writes_nothing(bench: Bench) -> None:
    bench.lent()
    before = bench.dump()
    list(Invariants(bench.engine, ENGINE_INVARIANTS).everywhere())
    list(Invariants(bench.engine, ENGINE_INVARIANTS).everywhere(sample=1))
    assert bench.dump() == before
