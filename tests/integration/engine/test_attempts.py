"""Law 5: the attempt is on record before the call goes out; what nobody knows is looked up before it fails."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.engine.attempt import Again, Attempt, Done, Handler, Outcome
from smi_workflow.engine.perform import Performed
from smi_workflow.errors import ConfigError, ServiceRefused, ServiceUnavailable
from tests.integration.engine.racers import Crew
from tests.support.engines import Bench

CLOSED = ServiceUnavailable("desk", "closed")
LOST_ANSWER = ServiceUnavailable("desk", "no answer", outcome_unknown=True)
GONE = ServiceRefused("desk", "no such book", code="no_such_book")


class Scripted:
    """A handler and its lookup that do what a list says, one item a call; the last item is repeated."""

    def __init__(
        self, *runs: Outcome | BaseException, lookups: tuple[Outcome | Exception | None, ...] = ()
    ) -> None:
        self._runs, self._lookups = list(runs), list(lookups)
        self.calls: list[str] = []
        self.attempts: list[Attempt] = []

    def handler(self) -> Handler:
        return Handler(self._run, self._lookup if self._lookups else None)

    def _run(self, attempt: Attempt) -> Outcome:
        self.calls.append("run")
        self.attempts.append(attempt)
        answer = self._runs.pop(0) if len(self._runs) > 1 else self._runs[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _lookup(self, attempt: Attempt) -> Outcome | None:
        self.calls.append("lookup")
        answer = self._lookups.pop(0) if len(self._lookups) > 1 else self._lookups[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def perform(bench: Bench, script: Scripted) -> Performed:
    return bench.performer(fetch_book=script.handler()).perform(bench.effect("fetch_book").id)


def perform_until(bench: Bench, script: Scripted, wanted: Performed, most: int = 12) -> int:
    """Ring once an hour; returns how many rings it took."""
    for number in range(1, most + 1):
        if perform(bench, script) is wanted:
            return number
        bench.clock.advance(hours=1)
    raise AssertionError(f"not {wanted} after {most} rings: {bench.effect('fetch_book').last_error}")


def test_the_attempt_is_on_record_before_the_handler_runs(bench: Bench) -> None:
    """Law 5: committed, so that another connection sees it while the call is under way."""
    bench.start()
    seen: list[tuple[int, int, str]] = []

    def handler(attempt: Attempt) -> Done:
        bench.close()
        row = bench.effect("fetch_book")
        seen.append((row.attempts, row.doubts, str(row.state)))
        return Done()

    bench.performer(fetch_book=handler).perform(bench.effect("fetch_book").id)
    assert seen == [(1, 1, "claimed")]


@pytest.mark.parametrize("end", ["kill -9", "os._exit"])
def test_a_process_that_dies_has_used_an_attempt(bench: Bench, crew: Crew, tmp_path: Path, end: str) -> None:
    """Law 5: kill -9 counts, and leaves a doubt; the effect waits for its lease to lapse."""
    bench.start()
    effect_id = bench.effect("fetch_book").id
    command = {
        "do": "perform",
        "url": bench.url,
        "effect": effect_id,
        "calls": str(tmp_path / "calls"),
        "end": end,
    }
    assert crew.run(command) == [{"died": -9 if end == "kill -9" else 7}]
    row = bench.effect("fetch_book")
    assert (row.state, row.attempts, row.doubts) == ("claimed", 1, 1)
    script = Scripted(Done())
    assert perform(bench, script) is Performed.NOTHING
    bench.clock.advance(seconds=61)
    assert perform(bench, script) is Performed.DONE
    assert (script.attempts[0].number, script.attempts[0].doubts) == (2, 1)


def test_a_loop_of_kills_ends_in_the_failure_trigger(bench: Bench, crew: Crew, tmp_path: Path) -> None:
    """Law 5: after the last attempt nothing is called again; it is looked up, and then it fails."""
    bench.start()
    effect_id = bench.effect("fetch_book").id
    for _ in range(3):
        now = bench.clock.now().isoformat()
        command = {
            "do": "perform", "url": bench.url, "effect": effect_id, "calls": str(tmp_path / "calls"),
            "end": "kill -9", "now": now,
        }  # fmt: skip
        assert crew.run(command) == [{"died": -9}]
        bench.clock.advance(seconds=61)
    assert (tmp_path / "calls").read_text() == "1\n2\n3\n"
    script = Scripted(Done(), lookups=(None,))
    assert perform(bench, script) is Performed.FAILED
    assert script.calls == ["lookup"]
    assert bench.loan().state == "returned"
    last = bench.engine.history("loan", "l1")[-1]
    assert (last.trigger, last.caused_by) == ("cancel", f"effect:{effect_id}")
    assert last.reason == "no attempt reported an outcome"


class Stopped(BaseException):
    """As Dramatiq stops a thread: its time limit, its shutdown."""


@pytest.mark.parametrize("end", [SystemExit(), KeyboardInterrupt(), Stopped()], ids=lambda end: type(end).__name__)
def test_a_worker_that_is_stopped_hands_its_effect_over(bench: Bench, end: BaseException) -> None:
    """Law 5: the attempt stays counted and in doubt, and the next worker may start at once."""
    bench.start()
    with pytest.raises(type(end)):
        perform(bench, Scripted(end))
    row = bench.effect("fetch_book")
    assert (row.state, row.attempts, row.doubts, row.lease_token) == ("due", 1, 1, None)
    script = Scripted(Done())
    assert perform(bench, script) is Performed.DONE
    assert (script.attempts[0].number, script.attempts[0].doubts) == (2, 1)


def test_a_worker_that_is_stopped_too_late_is_stopped_all_the_same(bench: Bench) -> None:
    """A lost lease must not swallow the order to stop."""
    bench.start()
    effect_id = bench.effect("fetch_book").id

    def slow(attempt: Attempt) -> Done:
        bench.clock.advance(seconds=61)
        bench.engine.outbox.claim(effect_id, "other", bench.clock.now(), bench.engine.lease)
        raise Stopped

    with pytest.raises(Stopped):
        bench.performer(fetch_book=slow).perform(effect_id)
    assert bench.effect("fetch_book").lease_token == "other"


def test_what_fails_for_a_known_reason_leaves_no_doubt(bench: Bench) -> None:
    """Law 5: nothing was done, so nothing needs to be looked up."""
    bench.start()
    script = Scripted(CLOSED, lookups=(Done(),))
    assert perform_until(bench, script, Performed.FAILED) == 3
    assert script.calls == ["run"] * 3
    assert [attempt.doubts for attempt in script.attempts] == [0, 0, 0]
    assert bench.loan().state == "returned"


def test_known_failures_keep_earlier_doubts(bench: Bench) -> None:
    """Law 5: one unknown outcome among known ones is enough to look it up."""
    bench.start()
    script = Scripted(LOST_ANSWER, CLOSED, CLOSED, lookups=(Done(note="it had worked"),))
    assert perform_until(bench, script, Performed.DONE) == 3
    assert [attempt.doubts for attempt in script.attempts] == [0, 1, 1]
    assert script.calls == ["run", "run", "run", "lookup"]
    assert bench.effect("fetch_book").state == "done"
    assert bench.loan().state == "reserved"


UNKNOWN = [LOST_ANSWER, ZeroDivisionError("a bug of ours")]


@pytest.mark.parametrize("trouble", UNKNOWN, ids=["no answer", "a bug"])
def test_an_unknown_outcome_is_looked_up_before_it_fails(bench: Bench, trouble: Exception) -> None:
    """Law 5: the lookup found what the last attempt really did, and its trigger is fired."""
    bench.start()
    script = Scripted(trouble, lookups=(Done("lose", note="found"),))
    assert perform_until(bench, script, Performed.DONE) == 3
    assert script.calls == ["run", "run", "run", "lookup"]
    assert bench.loan().state == "lost"
    assert [attempt.doubts for attempt in script.attempts] == [0, 1, 2]


def test_an_unknown_outcome_that_was_none_fails(bench: Bench) -> None:
    """Law 5: looked up, nothing was done: the failure trigger, once."""
    bench.start()
    script = Scripted(LOST_ANSWER, lookups=(None,))
    assert perform_until(bench, script, Performed.FAILED) == 3
    assert script.calls[-2:] == ["run", "lookup"]
    assert [row[0] for row in bench.history()] == ["create", "cancel"]


@pytest.mark.parametrize("trouble", [CLOSED, KeyError("a bug in the lookup")], ids=["unavailable", "a bug"])
def test_while_the_lookup_cannot_tell_nothing_fails(bench: Bench, trouble: Exception) -> None:
    """Law 5: for as long as it takes; and the call itself is not made again."""
    bench.start()
    script = Scripted(LOST_ANSWER, lookups=(trouble, trouble, trouble, None))
    assert perform_until(bench, script, Performed.FAILED) == 6
    assert script.calls == ["run"] * 3 + ["lookup"] * 4
    assert [row[0] for row in bench.history()] == ["create", "cancel"]


def test_a_lookup_that_waits_is_run_again(bench: Bench) -> None:
    """Law 5: what is found may still be under way."""
    bench.start()
    script = Scripted(LOST_ANSWER, LOST_ANSWER, LOST_ANSWER, Done(), lookups=(Again(timedelta(minutes=1)),))
    assert perform_until(bench, script, Performed.AGAIN) == 3
    bench.clock.advance(minutes=1)
    assert perform(bench, script) is Performed.DONE


def test_a_refusal_is_final_at_once(bench: Bench) -> None:
    """Law 5: asking again would give the same answer; the failure trigger hears the code."""
    bench.start()
    script = Scripted(GONE, lookups=(Done(),))
    assert perform(bench, script) is Performed.FAILED
    assert script.calls == ["run"]
    assert bench.engine.history("loan", "l1")[-1].reason == "desk: no such book"
    row = bench.effect("fetch_book")
    assert (row.state, row.last_error, row.lease_token, row.settled_at) == (
        "failed", "desk: no such book", None, bench.clock.now(),
    )  # fmt: skip


def test_a_refusal_after_a_doubt_is_looked_up(bench: Bench) -> None:
    """Law 5: "already done" is refused as well."""
    bench.start()
    script = Scripted(LOST_ANSWER, GONE, lookups=(Done(note="it was done"),))
    assert perform_until(bench, script, Performed.DONE) == 2
    assert script.calls == ["run", "run", "lookup"]


def test_waits_grow_with_jitter(bench: Bench) -> None:
    """Law 5: doubled each time, spread by half either way."""
    bench.start()
    waits: list[float] = []
    for jitter in (0.0, 0.999):
        bench.engine.chance.jitter = lambda value=jitter: value  # type: ignore[method-assign,misc]
        assert perform(bench, Scripted(CLOSED)) is Performed.RETRY
        due_at = bench.effect("fetch_book").due_at
        waits.append((due_at - bench.clock.now()).total_seconds())
        bench.clock.time = due_at - timedelta(microseconds=1)
        assert perform(bench, Scripted(CLOSED)) is Performed.NOTHING
        bench.clock.time = due_at
    assert waits == [2.0 * 0.5, pytest.approx(4.0 * 1.499)]


def test_waits_have_an_end(bench: Bench) -> None:
    """Law 5: `retry_seconds_max`."""
    bench.start()
    table = bench.engine.tables.effects
    table.update(attempts=40, attempts_max=50).execute()
    assert perform(bench, Scripted(CLOSED)) is Performed.RETRY
    assert bench.effect("fetch_book").due_at == bench.clock.now() + timedelta(seconds=600)


@pytest.mark.parametrize(("asked", "waited"), [(30.0, 30.0), (0.5, 2.0), (1e30, 86400.0)])
def test_retry_after_is_honoured(bench: Bench, asked: float, waited: float) -> None:
    """Law 5: no sooner than the provider asked for; within reason."""
    bench.start()
    busy = ServiceUnavailable("desk", "busy", retry_after_seconds=asked)
    assert perform(bench, Scripted(busy)) is Performed.RETRY
    assert bench.effect("fetch_book").due_at == bench.clock.now() + timedelta(seconds=waited)


def test_again_is_no_failed_attempt(bench: Bench) -> None:
    """`Again` waits as long as it says, forgets attempts and doubts, and counts its waits."""
    bench.start()
    again = Again(timedelta(seconds=30), note="not yet")
    script = Scripted(LOST_ANSWER, again, CLOSED, again, again, Done())
    outcomes = []
    for _ in range(6):
        outcomes.append(perform(bench, script))
        bench.clock.advance(hours=1)
    assert outcomes == ["to be retried", "again later", "to be retried", "again later", "again later", "done"]
    assert [attempt.number for attempt in script.attempts] == [1, 2, 1, 2, 1, 1]
    assert [attempt.doubts for attempt in script.attempts] == [0, 1, 0, 0, 0, 0]
    assert [attempt.waits for attempt in script.attempts] == [0, 0, 1, 1, 2, 3]
    assert len({attempt.first_attempt_at for attempt in script.attempts}) == 1


def test_again_may_fire_a_trigger(bench: Bench) -> None:
    """`Again` with a trigger: progress, in one commit with the waiting."""
    bench.start()
    script = Scripted(Again(timedelta(seconds=30), trigger="waive", reason="still looking"))
    assert perform(bench, script) is Performed.AGAIN
    last = bench.engine.history("loan", "l1")[-1]
    assert (last.trigger, last.reason, last.caused_by) == (
        "waive", "still looking", f"effect:{bench.effect('fetch_book').id}",
    )  # fmt: skip
    assert bench.effect("fetch_book").due_at == bench.clock.now() + timedelta(seconds=30)


@pytest.mark.parametrize("trigger", ["give_back", "no such trigger"])
def test_again_waits_although_its_trigger_is_refused(bench: Bench, trigger: str) -> None:
    """`Again` is about waiting; news that does not fit is no reason to fail."""
    bench.start()
    assert perform(bench, Scripted(Again(timedelta(seconds=30), trigger=trigger))) is Performed.AGAIN
    assert (bench.effect("fetch_book").state, bench.effect("fetch_book").waits) == ("due", 1)


def test_an_effect_of_another_release_is_put_back_untouched(bench: Bench) -> None:
    """A rolling deploy: a newer release owed it; no attempt is used up here, and it is not lost."""
    bench.start()
    table = bench.engine.tables.effects
    effect_id = bench.effect("fetch_book").id
    for change in ({"name": "bind_book"}, {"name": "fetch_book", "workflow": "scroll"}):
        table.update(**change).where(table.id == effect_id).execute()
        assert bench.performer().perform(effect_id) is Performed.NOTHING
        row = table.get_by_id(effect_id)
        assert (row.state, row.attempts, row.doubts, row.lease_token) == ("due", 0, 0, None)
        assert row.due_at == bench.clock.now() + timedelta(seconds=30)
        bench.clock.advance(seconds=30)
    table.update(workflow="loan").where(table.id == effect_id).execute()
    assert bench.performer().perform(effect_id) is Performed.DONE


def test_effects_and_handlers_must_match(bench: Bench) -> None:
    """Law 13: every effect has a handler, and every handler an effect; told together."""
    with pytest.raises(ConfigError) as caught:
        bench.performer(bind_book=lambda attempt: Done())
    assert caught.value.problems == ("handler bind_book belongs to no effect",)
    performer: Callable[..., Any] = type(bench.performer())
    with pytest.raises(ConfigError) as caught:
        performer(bench.engine, {"bind_book": Handler(lambda attempt: Done())}, bench.keeper)
    assert set(caught.value.problems) == {
        "handler bind_book belongs to no effect",
        *(f"effect {name} has no handler" for name in bench.engine.workflows["loan"].effects()),
    }


def test_an_attempt_knows_its_key_and_its_age(bench: Bench) -> None:
    """Law 8: the key is the effect's id, its inputs are frozen, and its horizon counts from its first use."""
    bench.start()
    bench.loans.update(renewals=7).execute()
    script = Scripted(CLOSED, Done())
    perform(bench, script)
    bench.clock.advance(hours=20)
    perform(bench, script)
    first, second = script.attempts
    assert first.id == second.id == bench.effect("fetch_book").id
    assert first.inputs == second.inputs == {"loan": "l1", "renewals": 0}
    assert second.row.renewals == 7
    assert second.first_attempt_at == first.owed_at
    assert second.key_is_fresh(timedelta(hours=20, seconds=1))
    assert not second.key_is_fresh(timedelta(hours=20))


def test_errors_that_no_database_can_keep_are_kept_readable(bench: Bench) -> None:
    """Law 5: a provider's odd bytes must not keep an effect from ever being settled."""
    bench.start()
    odd = ServiceRefused("desk", "page \x00 torn \udcff out 📕")
    assert perform(bench, Scripted(odd)) is Performed.FAILED
    assert bench.effect("fetch_book").last_error == "desk: page \ufffd torn \ufffd out 📕"
    assert bench.loan().state == "returned"
