"""Law 7: settle once, with the trigger. Law 9: an effect is owed to a visit, and stale ones are skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.engine.declaration import ANYWHERE, Case, Effect, Move
from smi_workflow.engine.outbox import Lease
from smi_workflow.engine.perform import Performed
from smi_workflow.engine.tables import EffectState
from smi_workflow.errors import ServiceRefused
from tests.support.engines import LEASE, Bench, Opener, states, taped
from tests.support.loans import FINE, LOAN, SEND_SLIP


def perform(bench: Bench, name: str, outcome: Outcome | Exception) -> Performed:
    """Ring for the latest effect of this name; its handler gives this outcome."""

    def handler(attempt: Attempt) -> Outcome:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return bench.performer(**{name: handler}).perform(bench.effect(name).id)


def block(case: Case[Any]) -> str | None:
    return "nothing may happen today"


def with_moves(**changes: dict[str, Any]) -> Any:
    """The loans with some of their moves changed."""
    return replace(LOAN, moves=tuple(replace(m, **changes.get(m.trigger, {})) for m in LOAN.moves))


# -- law 7 ------------------------------------------------------------------------------------------------------


def test_a_refused_trigger_ends_in_the_failure_trigger_in_one_commit(bench: Bench) -> None:
    """Law 7: the outcome does not fit; the effect fails, and its failure trigger is fired with the reason."""
    bench.start(blocked=True)
    with taped(bench.database) as tape:
        done = Done("lend", facts={"barcode": "ok"})
        assert perform(bench, "fetch_book", done) is Performed.FAILED
    commits = [number for number, line in enumerate(tape) if line == "COMMIT"]
    assert len(commits) == 2
    settling = " ".join(tape[commits[0] + 1 :])
    assert "UPDATE t_smi_effects" in settling
    assert "UPDATE t_loans" in settling
    last = bench.engine.history("loan", "l1")[-1]
    assert (last.trigger, last.to_state) == ("cancel", "returned")
    assert "refused by reader_not_blocked: the reader is blocked" in last.reason
    assert bench.effect("fetch_book").state == "failed"


def test_a_trigger_that_the_state_lacks_ends_in_the_failure_trigger(bench: Bench) -> None:
    """Law 7: the same for a trigger that is not possible there, and for one that lacks its facts."""
    bench.start()
    assert perform(bench, "fetch_book", Done("give_back")) is Performed.FAILED
    assert bench.history()[-1] == ("cancel", "reserved", "returned")
    bench.start("l2")
    performer = bench.performer(fetch_book=lambda attempt: Done("lend"))
    assert performer.perform(bench.effect("fetch_book", "l2").id) is Performed.FAILED
    assert bench.history("l2")[-1] == ("cancel", "reserved", "returned")


def test_a_refusal_may_be_skipped_if_the_handler_says_so(bench: Bench) -> None:
    """Law 7: on_refusal="skip" records the refusal; nothing failed."""
    bench.start(blocked=True)
    done = Done("lend", facts={"barcode": "ok"}, on_refusal="skip")
    assert perform(bench, "fetch_book", done) is Performed.DONE
    row = bench.effect("fetch_book")
    assert row.state == "done"
    assert "the reader is blocked" in json.loads(str(row.outcome))["note"]
    assert bench.history() == [("create", "", "reserved")]


def test_what_the_handler_found_is_on_record(bench: Bench) -> None:
    """Law 7: the row says what was done and what it caused; the actor and the reason reach history."""
    bench.start()
    done = Done("lose", actor="upsampler", reason="eaten by the dog", note="page 1 of 1")
    assert perform(bench, "fetch_book", done) is Performed.DONE
    row = bench.effect("fetch_book")
    assert json.loads(str(row.outcome)) == {"note": "page 1 of 1", "trigger": "lose"}
    assert (row.state, row.lease_token, row.lease_until, row.settled_at) == ("done", None, None, bench.clock.now())
    last = bench.engine.history("loan", "l1")[-1]
    assert (last.actor, last.reason) == ("upsampler", "eaten by the dog")


def test_a_refused_failure_trigger_is_on_record(database_url: str, opened: Opener) -> None:
    """Law 7: even the failure trigger may be refused; the effect says so and is not tried for ever."""
    bench = opened(database_url, workflows=(with_moves(cancel={"guards": (block,)}), FINE))
    bench.start()
    assert perform(bench, "fetch_book", ServiceRefused("desk", "gone")) is Performed.FAILED
    row = bench.effect("fetch_book")
    assert row.state == "failed"
    assert "desk: gone; and its failure trigger was refused" in str(row.last_error)
    assert "nothing may happen today" in str(row.last_error)
    assert bench.loan().state == "reserved"


def broken(case: Case[Any]) -> None:
    raise AttributeError("a fault of ours")


def test_a_fault_of_ours_while_settling_ends_in_the_failure_trigger(database_url: str, opened: Opener) -> None:
    """Law 7, law 5: a change that breaks must not leave an effect that nobody ever settles."""
    bench = opened(database_url, workflows=(with_moves(lose={"change": broken}), FINE))
    bench.start()
    assert perform(bench, "fetch_book", Done("lose")) is Performed.FAILED
    assert bench.history()[-1] == ("cancel", "reserved", "returned")
    assert bench.effect("fetch_book").last_error == "AttributeError: a fault of ours"


def test_a_broken_failure_trigger_is_tried_until_it_is_mended(database_url: str, opened: Opener) -> None:
    """Law 5: what failed for good is not forgotten because our code for it is broken; nothing is called anew."""
    bench = opened(database_url, workflows=(with_moves(cancel={"change": broken}), FINE))
    bench.start()
    calls: list[int] = []

    def handler(attempt: Attempt) -> Outcome:
        calls.append(attempt.number)
        raise ServiceRefused("desk", "gone")

    effect_id = bench.effect("fetch_book").id
    for _ in range(5):
        assert bench.performer(fetch_book=handler).perform(effect_id) is Performed.RETRY
        bench.clock.advance(minutes=11)
    assert calls == [1]
    assert bench.history() == [("create", "", "reserved")]
    mended = opened(database_url, create=False, chance_prefix="m")
    mended.clock.time = bench.clock.now()
    assert mended.performer(fetch_book=handler).perform(effect_id) is Performed.FAILED
    assert bench.loan().state == "returned"


def test_a_handler_that_returns_nothing_ends_in_the_failure_trigger(bench: Bench) -> None:
    """Law 7: a forgotten `return` is a fault like any other."""
    bench.start()
    nothing: Any = None
    for expected in (Performed.RETRY, Performed.RETRY, Performed.FAILED):
        assert perform(bench, "fetch_book", nothing) is expected
        bench.clock.advance(minutes=1)
    assert bench.effect("fetch_book").last_error == "AssertionError: its handler returned nothing"
    assert bench.loan().state == "returned"


def test_an_effect_without_a_failure_trigger_just_fails(bench: Bench) -> None:
    """Law 13: it says why that is harmless."""
    bench.lent()
    before = bench.history()
    assert perform(bench, "send_slip", ServiceRefused("post", "no stamp")) is Performed.FAILED
    assert bench.effect("send_slip").state == "failed"
    assert bench.history() == before


def test_a_row_that_is_gone_skips_its_effects(bench: Bench) -> None:
    """Law 9: nothing is owed to nobody."""
    bench.start()
    bench.loans.delete().execute()
    assert perform(bench, "fetch_book", Done("lose")) is Performed.SKIPPED


# -- law 9 ------------------------------------------------------------------------------------------------------


def test_an_effect_whose_visit_is_over_is_skipped_at_the_claim(bench: Bench) -> None:
    """Law 9: visibly, and without calling anyone."""
    bench.lent()
    calls: list[Attempt] = []
    performer = bench.performer(fetch_book=lambda attempt: calls.append(attempt))
    assert performer.perform(bench.effect("fetch_book").id) is Performed.SKIPPED
    assert calls == []
    row = bench.effect("fetch_book")
    assert (row.state, json.loads(str(row.outcome))) == ("skipped", {"note": "the visit it was owed to is over"})


SETTLING: list[tuple[str, Outcome | Exception]] = [
    ("done", Done("lose")),
    ("again", Again(timedelta(0), trigger="lose")),
    ("refused", ServiceRefused("desk", "gone")),
    ("does not fit", Done("found")),
]


@pytest.mark.parametrize("outcome", [item for _, item in SETTLING], ids=[name for name, _ in SETTLING])
def test_an_effect_whose_visit_ended_meanwhile_fires_nothing(bench: Bench, outcome: Outcome | Exception) -> None:
    """Law 9: whatever its outcome, it belongs to another visit: its trigger would hit the wrong one."""
    bench.start()

    def handler(attempt: Attempt) -> Outcome:
        bench.fire("lend")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    effect_id = bench.effect("fetch_book").id
    assert bench.performer(fetch_book=handler).perform(effect_id) is Performed.SKIPPED
    assert bench.effect("fetch_book").state == "skipped"
    assert bench.history() == [("create", "", "reserved"), ("lend", "reserved", "lent")]


def test_entering_the_same_state_again_is_another_visit(bench: Bench) -> None:
    """Law 9: visits are compared, and not the names of states."""
    bench.start()
    old = bench.effect("fetch_book").id
    bench.fire("reserve_again")
    row = bench.loan()
    assert (row.state, row.visit, row.version) == ("reserved", 2, 2)
    assert [effect.visit for effect in bench.effects("fetch_book")] == [1, 2]
    performer = bench.performer(fetch_book=lambda attempt: Done("lose"))
    assert performer.perform(old) is Performed.SKIPPED
    assert bench.loan().state == "reserved"
    assert performer.perform(bench.effect("fetch_book").id) is Performed.DONE
    assert bench.loan().state == "lost"


def test_staying_is_the_same_visit(bench: Bench) -> None:
    """Law 9: a trigger that stays ends nothing, and owes the state's effects no second time."""
    bench.start()
    bench.fire("waive")
    row = bench.loan()
    assert (row.visit, row.version) == (1, 2)
    assert len(bench.effects("fetch_book")) == 1
    assert states(bench.effects("remind")) == ["due"]
    assert perform(bench, "fetch_book", Done("lose")) is Performed.DONE


def test_leaving_cancels_timers_and_nothing_else(bench: Bench) -> None:
    """Law 9: those of the visit that ends, of that subject."""
    bench.start("l2")
    bench.start()
    bench.fire("lend")
    assert states(bench.effects("remind")) == ["cancelled", "due"]
    assert bench.effects("remind")[0].settled_at == bench.clock.now()
    assert states(bench.effects("remind", "l2")) == ["due"]
    assert bench.effect("fetch_book").state == "due"
    assert bench.effect("send_slip").state == "due"


def test_leaving_cancels_a_timer_that_a_worker_has_claimed(bench: Bench) -> None:
    """Law 9: the worker comes back and cannot settle it."""
    bench.lent()
    bench.clock.advance(days=29)

    def handler(attempt: Attempt) -> Done:
        bench.fire("give_back")
        return Done("lose")

    assert bench.performer(remind=handler).perform(bench.effect("remind").id) is Performed.LATE
    assert bench.effect("remind").state == "cancelled"
    assert bench.loan().state == "returned"


def test_a_timer_may_end_the_visit_itself(bench: Bench) -> None:
    """Law 9: it is done, not cancelled."""
    bench.lent()
    bench.clock.advance(days=29)
    assert perform(bench, "remind", Done("lose")) is Performed.DONE
    assert states(bench.effects("remind")) == ["cancelled", "done"]


def test_a_move_may_cancel_an_effect_by_name(bench: Bench) -> None:
    """Law 9: `cancels`: of the present visit only."""
    bench.lent()
    bench.fire("renew", facts={})
    assert states(bench.effects("remind")) == ["cancelled", "cancelled"]
    assert bench.effect("call_back").due_at == bench.clock.now() + timedelta(days=7)
    assert bench.effect("send_slip").state == "due"
    bench.fire("renew", facts={})
    assert states(bench.effects("call_back")) == ["due", "due"]


def test_an_effect_that_survives_runs_after_its_visit(bench: Bench) -> None:
    """Law 9: "unless declared to survive"; its trigger counts as well."""
    bench.lent()
    bench.fire("lose")
    assert perform(bench, "send_slip", Done("found")) is Performed.DONE
    assert bench.loan().state == "returned"


def test_a_timer_that_survives_is_not_cancelled(database_url: str, opened: Opener) -> None:
    """Law 9: deletion after expiry, retention: due long after the visit."""
    shred = Effect("shred", queue="desk", failure="waive", survives=True)
    moves = tuple(
        replace(move, owes=(shred.later(lambda case: timedelta(days=1)),)) if move.trigger == "lend" else move
        for move in LOAN.moves
    )
    bench = opened(database_url, workflows=(replace(LOAN, moves=moves), FINE))
    bench.lent()
    bench.fire("give_back")
    assert bench.effect("shred").state == "due"
    bench.clock.advance(days=1)
    assert perform(bench, "shred", Done("waive")) is Performed.DONE


CANCELLED_MEANWHILE: list[tuple[str, Callable[[Bench, Lease], bool]]] = [
    ("settle", lambda b, lease: b.engine.outbox.settle(
        lease, EffectState.DONE, b.clock.now(), outcome="{}", error=None)),
    ("put back", lambda b, lease: b.engine.outbox.put_back(lease, b.clock.now())),
    ("renew", lambda b, lease: b.engine.outbox.renew(lease, b.clock.now(), LEASE)),
]  # fmt: skip


@pytest.mark.parametrize("act", [act for _, act in CANCELLED_MEANWHILE], ids=[n for n, _ in CANCELLED_MEANWHILE])
def test_a_cancelled_timer_stays_cancelled(bench: Bench, act: Callable[[Bench, Lease], bool]) -> None:
    """Laws 4 and 9: cancelling takes the lease away."""
    bench.lent()
    bench.clock.advance(days=29)
    timer = bench.effect("remind").id
    assert bench.engine.outbox.claim(timer, "worker", bench.clock.now(), LEASE) is not None
    bench.fire("give_back")
    assert act(bench, Lease(timer, "worker")) is False
    assert bench.effect("remind").state == "cancelled"
    assert bench.engine.outbox.claim(timer, "next", bench.clock.now() + timedelta(days=1), LEASE) is None


def test_the_loans_say_what_this_file_relies_on() -> None:
    """A stay from anywhere, and an effect that survives."""
    assert SEND_SLIP.survives
    assert Move("waive", ANYWHERE, None) in LOAN.moves
