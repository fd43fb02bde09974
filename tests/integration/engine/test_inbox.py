"""Law 10: events are taken in once, applied, parked or ignored with the reason; none is dropped."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest

from smi_workflow.engine.declaration import Case
from smi_workflow.engine.inbox import Fire, Ignore, Inbox, Park, Reading, Translator
from smi_workflow.engine.points import Point, watching
from smi_workflow.engine.tables import EventRow, EventState
from smi_workflow.errors import InvalidInput, TransitionConflict
from tests.integration.engine.racers import Crew
from tests.support.engines import Bench, Opener, counts, taped, together
from tests.support.loans import FINE, LOAN


def reading(answers: Mapping[str, Reading | Exception]) -> Translator:
    """A translator that knows what each kind of event means."""

    def translate(event: EventRow) -> Reading:
        answer = answers[event.kind]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return translate


def fires(trigger: str, key: str = "l1", **rest: Any) -> Fire:
    return Fire("loan", key, trigger, "post", **rest)


def told(bench: Bench, meaning: Reading | Exception, event_id: str = "e1") -> tuple[Inbox, str]:
    """An inbox with one event of this meaning."""
    inbox = bench.inbox(reading({"news": meaning}))
    return inbox, inbox.receive("post", event_id, "news", "{}").id


def told_to(bench: Bench, workers: int, meaning: Reading | Exception) -> tuple[Inbox, str]:
    """The same, but nobody goes on before so many workers have read the event."""
    everyone = threading.Barrier(workers)
    translate = reading({"news": meaning})

    def translate_together(event: EventRow) -> Reading:
        everyone.wait(20)
        return translate(event)

    inbox = bench.inbox(translate_together)
    return inbox, inbox.receive("post", "e1", "news", "{}").id


def parked(bench: Bench, key: str = "l1") -> int:
    """What the loan believes, which must be what the inbox says."""
    believed = int(bench.loan(key).parked_events)
    events = bench.engine.tables.events
    waiting = (events.workflow == "loan") & (events.subject_id == key) & (events.state == "parked")
    assert events.select().where(waiting).count() == believed
    return believed


# -- taken in once ----------------------------------------------------------------------------------------------


def test_an_event_is_taken_in_once(bench: Bench) -> None:
    """Law 10: one row, one bell, the same receipt, however often it is delivered; its first payload is kept."""
    inbox = bench.inbox(reading({}))
    first = inbox.receive("post", "e1", "lost", '{"page": 1}')
    second = inbox.receive("post", "e1", "lost", '{"page": 2}')
    assert (first.is_new, second.is_new, first.id) == (True, False, second.id)
    assert bench.event(first.id).payload == '{"page": 1}'
    assert bench.bells.rung == [(first.id, "handle_event", "events")]
    assert inbox.receive("bank", "e1", "lost", "{}").is_new
    assert counts(bench.dump())["t_smi_inbox"] == 2


def test_taking_in_is_one_commit(bench: Bench) -> None:
    """Law 10: answered 2xx after one commit, of one statement; struck before it, nothing is there."""
    inbox = bench.inbox(reading({}))

    def strike(point: Point) -> None:
        if point is Point.WORK_DONE:
            raise ZeroDivisionError

    with watching(strike), pytest.raises(ZeroDivisionError):
        inbox.receive("post", "e1", "lost", "{}")
    assert counts(bench.dump())["t_smi_inbox"] == 0
    assert bench.bells.rung == []
    with taped(bench.database) as tape:
        inbox.receive("post", "e1", "lost", "{}")
    assert [line.split()[0] for line in tape] == ["INSERT"]
    bench.close()
    assert counts(bench.dump())["t_smi_inbox"] == 1
    with taped(bench.database) as tape:
        inbox.receive("post", "e1", "lost", "{}")
    assert [line.split()[0] for line in tape] == ["INSERT", "SELECT"]


def test_three_deliveries_at_once_are_one_event(bench: Bench) -> None:
    """Law 10: three identical webhooks at once (pay #371), in threads of one server."""
    inbox = bench.inbox(reading({}))
    receipts = together(bench, *[lambda: inbox.receive("post", "e1", "lost", "{}")] * 3)
    assert sorted(receipt.is_new for receipt in receipts) == [False, False, True]
    assert len({receipt.id for receipt in receipts}) == 1
    assert len(bench.bells.rung) == counts(bench.dump())["t_smi_inbox"] == 1


def test_three_processes_take_an_event_in_once_and_apply_it_once(bench: Bench, crew: Crew) -> None:
    """Law 10: the same in three processes, and then three workers handle it at once."""
    bench.lent()
    command = {"url": bench.url, "event": "e1"}
    answers = crew.run(*[{**command, "do": "receive"}] * 3)
    values = [answer["value"] for answer in answers]
    assert sorted(is_new for _, is_new, _ in values) == [False, False, True]
    assert sum(rung for _, _, rung in values) == 1
    inbox_id = values[0][0]
    answers = crew.run(*[{**command, "do": "handle", "inbox_id": inbox_id}] * 3)
    assert answers == [{"value": "applied"}] * 3
    assert bench.history()[2:] == [("lose", "lent", "lost")]
    assert bench.loan().state == "lost"


def test_three_threads_apply_an_event_once(bench: Bench) -> None:
    """Law 10: a trigger that stays could be applied any number of times; its event is applied once."""
    bench.start()
    inbox, inbox_id = told_to(bench, 3, fires("waive"))
    assert together(bench, *[lambda: inbox.handle(inbox_id)] * 3) == ["applied"] * 3
    assert bench.history() == [("create", "", "reserved"), ("waive", "reserved", "reserved")]
    assert bench.inbox(reading({})).handle(inbox_id) == "applied"
    assert bench.loan().version == 2


def test_three_threads_park_an_event_once(bench: Bench) -> None:
    """Law 10: counted once, too."""
    bench.start()
    inbox, inbox_id = told_to(bench, 3, fires("give_back"))
    assert together(bench, *[lambda: inbox.handle(inbox_id)] * 3) == ["parked"] * 3
    assert parked(bench) == 1
    assert bench.event(inbox_id).attempts == 1


def test_an_event_that_lacks_a_fact_needs_a_person(bench: Bench) -> None:
    """Law 10: it means something to us, so it is neither dropped nor tried again without end."""
    bench.engine.start("loan", {"loan_id": "L1"}, actor="system")
    inbox = bench.inbox(lambda row: Fire("loan", "L1", "lend", "post", {}))
    received = inbox.receive("post", "e1", "lent", "{}")
    assert inbox.handle(received.id) == EventState.NEEDS_PERSON
    event = bench.engine.tables.events.get_by_id(received.id)
    assert "'lend' cannot be fired: barcode" in str(event.reason)
    assert bench.engine.read("loan", "L1").state == "reserved"


def test_ids_that_differ_by_case_are_two_events(bench: Bench) -> None:
    """Law 10: providers' ids are case-sensitive; the second must not pass for the first."""
    inbox = bench.inbox(reading({}))
    assert inbox.receive("post", "evt_1aB", "lost", "{}").is_new
    assert inbox.receive("post", "evt_1Ab", "lost", "{}").is_new


# -- applied, parked, ignored -----------------------------------------------------------------------------------


def test_an_applied_event_says_what_it_caused(bench: Bench) -> None:
    """Law 10."""
    bench.start()
    inbox, inbox_id = told(bench, fires("lend", facts={"barcode": "ok", "shelf": "B4"}, reason="scanned"))
    assert inbox.handle(inbox_id) == "applied"
    row = bench.event(inbox_id)
    assert (row.state, row.reason, row.settled_at) == ("applied", "lend", bench.clock.now())
    last = bench.engine.history("loan", "l1")[-1]
    assert (last.actor, last.reason, last.metadata, last.caused_by) == (
        "post", "scanned", '{"shelf":"B4"}', f"event:{inbox_id}",
    )  # fmt: skip


def test_an_early_event_is_parked_and_applied_on_the_transition_it_waited_for(bench: Bench) -> None:
    """Law 10: odd orders are no errors (medusa #14205)."""
    bench.start()
    inbox, inbox_id = told(bench, fires("give_back"))
    assert inbox.handle(inbox_id) == "parked"
    row = bench.event(inbox_id)
    assert "'give_back' is not possible there" in str(row.reason)
    assert row.due_at == bench.clock.now() + timedelta(seconds=5)
    assert parked(bench) == 1
    bench.bells.rung.clear()
    bench.fire("lend")
    assert (inbox_id, "handle_event", "events") in bench.bells.rung
    assert [event.id for event in inbox.due(bench.clock.now(), 10)] == [inbox_id]
    assert inbox.handle(inbox_id) == "applied"
    assert parked(bench) == 0
    assert bench.loan().state == "returned"


def test_each_transition_wakes_what_is_parked_even_one_that_stays(bench: Bench) -> None:
    """Law 10: "tried again on each transition of its job"; another subject's events sleep on."""
    bench.start()
    bench.start("l2")
    inbox = bench.inbox(lambda event: fires("give_back", event.kind))
    ids = [inbox.receive("post", f"e{number}", key, "{}").id for number, key in enumerate(["l1", "l1", "l2"])]
    assert [inbox.handle(inbox_id) for inbox_id in ids] == ["parked"] * 3
    bench.bells.rung.clear()
    bench.fire("waive")
    assert sorted(message for message, _, _ in bench.bells.rung) == sorted(ids[:2])
    assert (parked(bench), parked(bench, "l2")) == (2, 1)


def test_a_parked_event_is_tried_again_by_time(bench: Bench) -> None:
    """Law 10: waits double, up to an hour."""
    bench.start()
    inbox, inbox_id = told(bench, fires("give_back"))
    waits = []
    for _ in range(12):
        assert inbox.handle(inbox_id) == "parked"
        waits.append(round((bench.event(inbox_id).due_at - bench.clock.now()).total_seconds()))
        assert inbox.due(bench.clock.now(), 10) == []
        bench.clock.time = bench.event(inbox_id).due_at
        assert len(inbox.due(bench.clock.now(), 10)) == 1
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    assert parked(bench) == 1


@pytest.mark.parametrize("meaning", [fires("give_back"), fires("waive", "nobody"), Park("unknown charge")],
                         ids=["too early", "unknown subject", "unknown charge"])  # fmt: skip
def test_after_three_days_an_event_needs_a_person(bench: Bench, meaning: Reading) -> None:
    """Law 10: with the reason, once, and not dropped."""
    bench.start()
    inbox, inbox_id = told(bench, meaning)
    assert inbox.handle(inbox_id) == "parked"
    bench.clock.advance(days=3, microseconds=-1)
    assert inbox.handle(inbox_id) == "parked"
    bench.clock.advance(microseconds=1)
    assert inbox.handle(inbox_id) == "needs_person"
    assert inbox.handle(inbox_id) == "needs_person"
    row = bench.event(inbox_id)
    assert row.reason
    assert row.settled_at == bench.clock.now()
    assert parked(bench) == 0
    assert inbox.due(bench.clock.now(), 10) == []


def test_or_else_is_tried_when_the_first_is_refused(bench: Bench) -> None:
    """Law 10: a payment for a dead job is still a payment."""
    bench.start(blocked=True)
    inbox, inbox_id = told(bench, fires("lend", facts={"barcode": "ok"}, or_else=fires("waive")))
    assert inbox.handle(inbox_id) == "applied"
    assert bench.event(inbox_id).reason == "waive"
    assert [row[0] for row in bench.history()] == ["create", "waive"]


def test_when_all_are_refused_the_last_decides(bench: Bench) -> None:
    """Law 10: parked or ignored, with every refusal in the reason."""
    bench.start(blocked=True)
    last = fires("give_back", otherwise="ignore")
    inbox, inbox_id = told(bench, fires("lend", facts={"barcode": "ok"}, or_else=last))
    assert inbox.handle(inbox_id) == "ignored"
    reason = str(bench.event(inbox_id).reason)
    assert "the reader is blocked" in reason
    assert "'give_back' is not possible" in reason
    assert parked(bench) == 0


def test_an_event_is_ignored_with_the_reason(bench: Bench) -> None:
    """Law 10."""
    inbox, inbox_id = told(bench, Ignore("not ours"))
    assert inbox.handle(inbox_id) == "ignored"
    assert (bench.event(inbox_id).reason, bench.event(inbox_id).settled_at) == ("not ours", bench.clock.now())
    receipt = inbox.receive("bank", "e9", "news", "{}")
    # A later release may read them: they wait for one of its workers, and after three days for a person.
    assert inbox.handle(receipt.id) == "parked"
    assert bench.event(receipt.id).reason == "this release reads no events of bank"
    assert inbox.handle("no such event") is None


def test_what_cannot_be_read_is_ignored_with_the_reason(bench: Bench) -> None:
    """Law 10: a payload that can never be understood, told by the translator on purpose."""
    inbox, inbox_id = told(bench, InvalidInput("amount", "not a number"))
    assert inbox.handle(inbox_id) == "ignored"
    assert bench.event(inbox_id).reason == "cannot be read: amount: not a number"


POISON: list[Reading | Exception] = [
    KeyError("no such key in the payload"),
    Park("unknown", "loan", "nobody"),
    Park("torn \x00 page \udcff"),
    Park("no such workflow", "scroll", "s1"),
]


@pytest.mark.parametrize("poison", POISON, ids=["translator", "subject", "reason", "workflow"])
def test_a_poisoned_event_is_parked_and_ends_with_a_person(bench: Bench, poison: Reading | Exception) -> None:
    """Law 10: one that our own code stumbles over must not be tried at every sweep for ever, nor be lost."""
    inbox, inbox_id = told(bench, poison)
    assert inbox.handle(inbox_id) == "parked"
    row = bench.event(inbox_id)
    assert row.reason
    assert row.due_at > bench.clock.now()
    bench.clock.advance(days=3)
    assert inbox.handle(inbox_id) == "needs_person"


def test_an_event_that_breaks_a_change_is_parked(database_url: str, opened: Opener) -> None:
    """Law 10: the same for a fault of ours further in; and nothing of the transition is written."""

    def broken(case: Case[Any]) -> None:
        raise AttributeError("a fault of ours")

    moves = tuple(replace(move, change=broken) if move.trigger == "lose" else move for move in LOAN.moves)
    bench = opened(database_url, workflows=(replace(LOAN, moves=moves), FINE))
    bench.start()
    inbox, inbox_id = told(bench, fires("lose"))
    assert inbox.handle(inbox_id) == "parked"
    assert bench.event(inbox_id).reason == "AttributeError: a fault of ours"
    assert bench.history() == [("create", "", "reserved")]
    mended = opened(database_url, create=False, chance_prefix="m")
    assert mended.inbox(lambda event: fires("lose")).handle(inbox_id) == "applied"


def test_two_workers_may_ignore_the_same_event(bench: Bench) -> None:
    """Law 10: whoever comes second finds it settled, and nothing comes out."""
    inbox, inbox_id = told_to(bench, 3, InvalidInput("amount", "not a number"))
    assert together(bench, *[lambda: inbox.handle(inbox_id)] * 3) == ["ignored"] * 3


# -- counts -----------------------------------------------------------------------------------------------------


def test_the_count_of_parked_events_is_right_after_many_parks_and_wakes(bench: Bench) -> None:
    """Law 10: a transition looks for parked events only where the count says so; it must never be wrong."""
    bench.start()
    meanings: dict[str, Reading] = {}
    inbox = bench.inbox(lambda event: meanings[event.event_id])
    ids = {}
    for number in range(6):
        name = f"e{number}"
        meanings[name] = fires("give_back") if number % 2 else Park("who knows", "loan", "l1")
        ids[name] = inbox.receive("post", name, "news", "{}").id
        assert inbox.handle(ids[name]) == "parked"
        assert parked(bench) == number + 1
    for inbox_id in ids.values():
        assert inbox.handle(inbox_id) == "parked"
    assert parked(bench) == 6
    bench.start("l2")
    meanings["e0"] = Park("it is about the other loan", "loan", "l2")
    meanings["e2"] = Ignore("never mind")
    meanings["e4"] = Park("about nobody we know")
    assert inbox.handle(ids["e0"]) == "parked"
    assert inbox.handle(ids["e2"]) == "ignored"
    assert inbox.handle(ids["e4"]) == "parked"
    assert (parked(bench), parked(bench, "l2")) == (3, 1)
    bench.fire("lend")
    together(bench, *[lambda key=key: inbox.handle(ids[key]) for key in ("e1", "e3", "e5")])
    assert bench.loan().state == "returned"
    assert parked(bench) == 2
    bench.clock.advance(days=3)
    for inbox_id in ids.values():
        inbox.handle(inbox_id)
    assert (parked(bench), parked(bench, "l2")) == (0, 0)


def test_an_event_refused_while_its_subject_moves_is_tried_again_at_once(bench: Bench) -> None:
    """Law 10: the transition that it waits for came between its refusal and its parking, and could not wake it."""
    bench.start()
    inbox, inbox_id = told(bench, fires("give_back"))
    bench.bells.rung.clear()
    park = inbox._park

    def lend_and_park(*args: Any) -> Any:
        bench.fire("lend")
        return park(*args)

    with patch.object(inbox, "_park", lend_and_park):
        assert inbox.handle(inbox_id) == "parked"
    assert (inbox_id, "handle_event", "events") in bench.bells.rung
    assert bench.event(inbox_id).due_at == bench.clock.now()
    assert inbox.handle(inbox_id) == "applied"


def test_a_purged_subject_does_not_keep_its_events_from_ending(bench: Bench) -> None:
    """Law 10: an event whose subject is gone still ends with a person."""
    bench.start()
    inbox, inbox_id = told(bench, fires("give_back"))
    assert inbox.handle(inbox_id) == "parked"
    bench.loans.delete().execute()
    assert inbox.handle(inbox_id) == "parked"
    bench.clock.advance(days=3)
    assert inbox.handle(inbox_id) == "needs_person"


def test_a_conflict_leaves_an_event_for_the_next_worker(bench: Bench) -> None:
    """Law 2, law 10: conflicts pass; they are no reason to park."""
    bench.lent()
    inbox, inbox_id = told(bench, fires("lose"))
    run = bench.engine.run
    conflicts = [TransitionConflict("someone holds the row")]

    def conflict_once(*args: Any, **rest: Any) -> Any:
        if conflicts:
            raise conflicts.pop()
        return run(*args, **rest)

    with patch.object(bench.engine, "run", conflict_once), pytest.raises(TransitionConflict):
        inbox.handle(inbox_id)
    assert bench.event(inbox_id).state == "received"
    assert inbox.handle(inbox_id) == "applied"
