"""Law 3: the database is the queue; the broker is the doorbell, rung after the commit and never before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

import pytest

from smi_workflow.engine.attempt import Again, Attempt
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Park
from smi_workflow.engine.perform import Performed
from smi_workflow.engine.unit import Applied
from smi_workflow.errors import GuardRefused
from tests.support.engines import Bench, Opener, taped


def test_a_message_carries_one_id(bench: Bench) -> None:
    """Law 3: the id of an effect or of an event, the Dramatiq actor's name, its queue, and nothing else."""
    bench.start(reader="Ada Lovelace")
    effect = bench.effect("fetch_book")
    receipt = bench.inbox(lambda event: Park("later")).receive("post", "e1", "lost", '{"secret": 1}')
    assert bench.bells.rung == [(effect.id, "fetch_book", "desk"), (receipt.id, "handle_event", "events")]


def test_only_what_is_due_now_is_rung(bench: Bench) -> None:
    """Law 3: timers wait in the database; a sweep finds them when they are due."""
    bench.lent()
    assert bench.bells.names() == ["fetch_book", "send_slip"]
    reminder = bench.effect("remind")
    assert bench.engine.outbox.due("post", bench.clock.now(), 10)[0].name == "send_slip"
    bench.clock.advance(days=28)
    assert [row.id for row in bench.engine.outbox.due("post", bench.clock.now(), 10)][-1] == reminder.id


def test_the_bell_rings_after_the_commit(bench: Bench, opened: Opener) -> None:
    """Law 3: whoever hears the bell finds the row; ringing inside the transaction would race the commit."""
    seen: list[tuple[str, int, str]] = []
    other = opened(bench.url, create=False)

    def ring(message_id: str, actor: str, queue: str) -> None:
        depth = bench.database.transaction_depth()
        seen.append((actor, depth, str(other.engine.tables.effects.get_by_id(message_id).state)))

    engine = Engine(
        bench.database, bench.engine.tables, tuple(bench.engine.workflows.values()), bench.models,
        clock=bench.clock, chance=bench.engine.chance, ring=ring,
    )  # fmt: skip
    engine.start("loan", {"loan_id": "l1"}, actor="system")
    assert seen == [("fetch_book", 0, "due")]


def test_nothing_rings_when_nothing_was_committed(bench: Bench) -> None:
    """Law 3: neither after a refusal, nor after an error, nor after a dry run."""
    bench.start()
    bench.bells.rung.clear()
    heard: list[Applied] = []
    bench.engine.listeners.append(heard.append)
    assert bench.fire("lend", dry_run=True).owed[-1].name == "send_slip"
    with pytest.raises(GuardRefused):
        bench.fire("lend", facts={"barcode": "bad"})

    def strike(line: str) -> None:
        if line == "COMMIT":
            raise ZeroDivisionError

    with taped(bench.database, strike), pytest.raises(ZeroDivisionError):
        bench.fire("lend")
    assert (bench.bells.rung, heard) == ([], [])


def test_listeners_hear_of_each_transition_once_it_is_committed(bench: Bench) -> None:
    """Hooks are announced with what history keeps, in order."""
    heard: list[tuple[str, str, str | None, int]] = []

    def listen(applied: Applied) -> None:
        depth = bench.database.transaction_depth()
        heard.append((applied.workflow, applied.trigger, applied.hook, depth))

    bench.engine.listeners.append(listen)
    bench.lent()
    bench.fire("lose")
    assert heard == [
        ("loan", "create", None, 0),
        ("loan", "lend", None, 0),
        ("fine", "create", None, 0),
        ("loan", "lose", "book_lost", 0),
    ]


def fail(*args: object) -> None:
    raise ZeroDivisionError("broken")


def test_a_listener_that_fails_breaks_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What is committed is committed: the other listeners still hear of it, and the caller gets its result."""
    heard: list[Applied] = []
    bench.engine.listeners += [fail, heard.append]
    with caplog.at_level(logging.ERROR):
        bench.start()
    assert [applied.trigger for applied in heard] == ["create"]
    assert "a listener failed on create of l1" in caplog.text
    assert bench.fire("lend").to_state == "lent"


def test_a_doorbell_that_fails_breaks_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Law 3: ringing is a hint; what is due is found by the sweep."""
    engine = Engine(
        bench.database, bench.engine.tables, tuple(bench.engine.workflows.values()), bench.models,
        clock=bench.clock, chance=bench.engine.chance, ring=fail,
    )  # fmt: skip
    heard: list[Applied] = []
    engine.listeners.append(heard.append)
    with caplog.at_level(logging.ERROR):
        engine.start("loan", {"loan_id": "l1"}, actor="system")
    assert [applied.trigger for applied in heard] == ["create"]
    assert [row.name for row in engine.outbox.due("desk", bench.clock.now(), 10)] == ["fetch_book"]


RINGS: list[tuple[str, Callable[[Bench, str], object]]] = [
    ("a message lost", lambda bench, effect_id: None),
    ("a message doubled", lambda bench, effect_id: bench.performer().perform(effect_id)),
    ("a message for nothing", lambda bench, effect_id: bench.performer().perform("no such effect")),
]


@pytest.mark.parametrize("happening", [item for _, item in RINGS], ids=[name for name, _ in RINGS])
def test_effects_run_once_whatever_becomes_of_messages(
    bench: Bench, happening: Callable[[Bench, str], object]
) -> None:
    """Law 3: lose any message, duplicate every message: all effects still run, and run once."""
    bench.start()
    happening(bench, bench.effect("fetch_book").id)
    performer = bench.performer()
    for row in bench.engine.outbox.due("desk", bench.clock.now(), 10):
        assert performer.perform(row.id) is Performed.DONE
        assert performer.perform(row.id) is Performed.NOTHING
    assert bench.effect("fetch_book").state == "done"
    assert bench.effect("fetch_book").attempts == 1


def test_the_sweep_finds_what_is_due_or_lapsed_and_nothing_else(bench: Bench) -> None:
    """Law 3: due and unclaimed, queue by queue, oldest first, and no more than asked for."""
    for number in range(3):
        bench.start(f"l{number}")
        bench.clock.advance(seconds=1)
    outbox, now = bench.engine.outbox, bench.clock.now()
    ids = [bench.effect("fetch_book", f"l{number}").id for number in range(3)]
    assert [row.id for row in outbox.due("desk", now, 10)] == ids
    assert [row.id for row in outbox.due("desk", now, 2)] == ids[:2]
    assert outbox.due("post", now, 10) == []
    assert outbox.claim(ids[0], "worker", now, bench.engine.lease) is not None
    assert [row.id for row in outbox.due("desk", now, 10)] == ids[1:]
    assert outbox.lapsed(now, 10) == []
    bench.clock.advance(seconds=61)
    assert [row.id for row in outbox.lapsed(bench.clock.now(), 10)] == ids[:1]


def test_an_effect_that_is_not_due_is_not_run_by_a_ring(bench: Bench) -> None:
    """Law 3, law 5: due_at is respected whoever rings."""
    bench.start()
    effect = bench.effect("fetch_book")
    calls: list[int] = []

    def handler(attempt: Attempt) -> Again:
        calls.append(attempt.waits)
        return Again(timedelta(minutes=5))

    performer = bench.performer(fetch_book=handler)
    assert performer.perform(effect.id) is Performed.AGAIN
    bench.clock.advance(seconds=299)
    assert performer.perform(effect.id) is Performed.NOTHING
    bench.clock.advance(seconds=1)
    assert performer.perform(effect.id) is Performed.AGAIN
    assert calls == [0, 1]
