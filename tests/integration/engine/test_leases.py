"""Law 4: claim, lease, fence. At most one live lease; who comes back late settles nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.engine.leases import LeaseKeeper
from smi_workflow.engine.outbox import Lease
from smi_workflow.engine.perform import Performed
from smi_workflow.engine.tables import EffectState
from smi_workflow.errors import ServiceUnavailable
from tests.integration.engine.racers import Crew
from tests.support.engines import LEASE, Bench, Opener, together


def claim(bench: Bench, token: str) -> Lease | None:
    """Claim the book's fetching; None when someone has it."""
    effect_id = bench.effect("fetch_book").id
    row = bench.engine.outbox.claim(effect_id, token, bench.clock.now(), LEASE)
    return None if row is None else Lease(row.id, str(row.lease_token))


def test_of_many_threads_one_claims(bench: Bench) -> None:
    """Law 4: compare-and-set."""
    bench.start()
    calls: list[int] = []

    def handler(attempt: Attempt) -> Done:
        calls.append(attempt.number)
        return Done()

    performer = bench.performer(fetch_book=handler)
    effect_id = bench.effect("fetch_book").id
    results = together(bench, *[lambda: performer.perform(effect_id)] * 4)
    assert sorted(results) == sorted([Performed.DONE, *[Performed.NOTHING] * 3])
    assert calls == [1]
    assert bench.effect("fetch_book").attempts == 1


def test_of_many_processes_one_claims(bench: Bench, crew: Crew, tmp_path: Path) -> None:
    """Law 4: compare-and-set, across processes."""
    bench.start()
    effect_id = bench.effect("fetch_book").id
    command = {"do": "perform", "url": bench.url, "effect": effect_id, "calls": str(tmp_path / "calls")}
    answers = crew.run(*[command] * 4)
    assert sorted(answer["value"] for answer in answers) == ["done", *["nothing to do"] * 3]
    assert (tmp_path / "calls").read_text() == "1\n"


def test_a_lease_stands_until_it_lapses_and_is_then_claimed_with_a_new_token(bench: Bench) -> None:
    """Law 4: at most one live lease."""
    bench.start()
    first = claim(bench, "first")
    assert claim(bench, "second") is None
    bench.clock.advance(seconds=60)
    assert claim(bench, "second") is None
    bench.clock.advance(microseconds=1)
    second = claim(bench, "third")
    assert first is not None
    assert second is not None
    assert (first.effect_id, first.token, second.token) == (second.effect_id, "first", "third")
    row = bench.effect("fetch_book")
    assert (row.attempts, row.lease_token, row.lease_until) == (2, "third", bench.clock.now() + LEASE)


def test_a_token_is_fresh_for_each_claim(bench: Bench) -> None:
    """Law 4: never a hostname: a restarted worker must not pass for the one that died."""
    bench.start()
    tokens: list[str | None] = []

    def handler(attempt: Attempt) -> Done:
        tokens.append(bench.effect("fetch_book").lease_token)
        raise ServiceUnavailable("desk", "closed")

    performer = bench.performer(fetch_book=handler)
    for _ in range(2):
        performer.perform(bench.effect("fetch_book").id)
        bench.clock.advance(hours=1)
    assert None not in tokens
    assert len(set(tokens)) == 2


LATE: list[tuple[str, Outcome | Exception]] = [
    ("done", Done()),
    ("done with a trigger", Done("lose")),
    ("again", Again(timedelta(0))),
    ("again with a trigger", Again(timedelta(0), trigger="lose")),
    ("unavailable", ServiceUnavailable("desk", "closed")),
]


@pytest.mark.parametrize("late", [item for _, item in LATE], ids=[name for name, _ in LATE])
def test_who_comes_back_late_settles_nothing(bench: Bench, opened: Opener, late: Outcome | Exception) -> None:
    """Law 4: the second worker has it; the first one's result is refused, recorded, and applied nowhere."""
    bench.start()
    effect_id = bench.effect("fetch_book").id
    taken: list[object] = []

    def slow(attempt: Attempt) -> Outcome:
        bench.clock.advance(seconds=61)
        taken.append(claim(bench, "other"))
        if isinstance(late, Exception):
            raise late
        return late

    assert bench.performer(fetch_book=slow).perform(effect_id) is Performed.LATE
    assert taken == [Lease(effect_id, "other")]
    row = bench.effect("fetch_book")
    assert (row.state, row.lease_token, row.attempts) == ("claimed", "other", 2)
    assert bench.audits() == [("late_result", f"effect:{effect_id}")]
    assert bench.loan().state == "reserved"
    assert bench.history() == [("create", "", "reserved")]
    other = Lease(effect_id, "other")
    assert bench.engine.outbox.settle(other, EffectState.DONE, bench.clock.now(), outcome="{}", error=None)


def test_a_settled_effect_is_never_claimed_again(bench: Bench) -> None:
    """Law 4: finish versus reap: one of them."""
    bench.start()
    lease = claim(bench, "worker")
    assert lease is not None
    assert bench.engine.outbox.settle(lease, EffectState.DONE, bench.clock.now(), outcome="{}", error=None)
    assert not bench.engine.outbox.settle(lease, EffectState.FAILED, bench.clock.now(), outcome="{}", error=None)
    assert not bench.engine.outbox.renew(lease, bench.clock.now(), LEASE)
    assert not bench.engine.outbox.put_back(lease, bench.clock.now())
    bench.clock.advance(days=1)
    assert claim(bench, "late") is None
    assert bench.effect("fetch_book").state == "done"


def test_renewals_keep_a_lease(bench: Bench) -> None:
    """Law 4: a lease is renewed while the handler lives, and nobody else gets it."""
    bench.start()
    lease = claim(bench, "worker")
    assert lease is not None
    with bench.keeper.keeping(lease):
        for _ in range(5):
            bench.clock.advance(seconds=40)
            bench.keeper.renew_all()
            assert claim(bench, "thief") is None
    bench.clock.advance(seconds=40)
    bench.keeper.renew_all()
    bench.clock.advance(seconds=21)
    assert claim(bench, "next") is not None


def test_a_lapsed_lease_cannot_be_renewed(bench: Bench) -> None:
    """Law 4: a worker that slept through its lease must not wake up as its holder."""
    bench.start()
    lease = claim(bench, "worker")
    assert lease is not None
    bench.clock.advance(seconds=60, microseconds=1)
    assert not bench.engine.outbox.renew(lease, bench.clock.now(), LEASE)
    assert claim(bench, "next") is not None


def test_the_keeper_forgets_what_was_lost(bench: Bench) -> None:
    """Law 4: another token's lease is left alone."""
    bench.start()
    lease = claim(bench, "worker")
    assert lease is not None
    with bench.keeper.keeping(lease):
        bench.clock.advance(seconds=61)
        assert claim(bench, "next") is not None
        bench.clock.advance(seconds=30)
        bench.keeper.renew_all()
    assert bench.effect("fetch_book").lease_until == bench.clock.now() + timedelta(seconds=30)


def test_the_keeper_lets_a_stuck_one_lapse(bench: Bench) -> None:
    """Law 4: a handler that never returns must not hold its effect for ever."""
    bench.start()
    keeper = LeaseKeeper(bench.engine, longest=timedelta(minutes=2))
    lease = claim(bench, "worker")
    assert lease is not None
    with keeper.keeping(lease):
        for _ in range(3):
            bench.clock.advance(seconds=40)
            keeper.renew_all()
        bench.clock.advance(seconds=40)
        keeper.renew_all()
        bench.clock.advance(seconds=40)
        assert claim(bench, "next") is not None


def test_the_keeper_renews_by_itself_while_a_handler_runs(database_url: str, opened: Opener) -> None:
    """Law 4: a thread of its own does it, from a third of the lease on."""
    bench = opened(database_url, lease=timedelta(seconds=0.06))
    bench.start()
    before = threading.active_count()

    def renewed(attempt: Attempt) -> Done:
        first = bench.effect("fetch_book").lease_until
        bench.clock.advance(milliseconds=50)
        poll(lambda: bench.effect("fetch_book").lease_until == bench.clock.now() + timedelta(seconds=0.06))
        assert first != bench.effect("fetch_book").lease_until
        return Done()

    assert bench.performer(fetch_book=renewed).perform(bench.effect("fetch_book").id) is Performed.DONE
    assert threading.active_count() == before + 1


def poll(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
