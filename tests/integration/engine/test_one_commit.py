"""Law 1: guards, state, history, effects, timers, other subjects and the cause: one commit, or nothing.

Law 6: no transaction is open while a handler runs.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import peewee
import psycopg
import pytest
from pymysql.constants import SERVER_STATUS

from smi_workflow.engine.attempt import Attempt, Done
from smi_workflow.engine.database import transaction
from smi_workflow.engine.declaration import Case
from smi_workflow.engine.inbox import Fire
from smi_workflow.engine.perform import Performed
from smi_workflow.engine.unit import Unit
from smi_workflow.errors import EngineError, GuardRefused, InvalidInput, TransitionConflict
from tests.integration.engine.racers import Crew
from tests.support.engines import Bench, Opener, counts, states, taped
from tests.support.loans import FINE, LOAN, start_fine

STATEMENTS = {
    "child": "INSERT INTO t_fines",
    "child's history": r"INSERT INTO t_smi_transitions",
    "state": "UPDATE t_loans",
    "timers": "UPDATE t_smi_effects",
    "commit": "COMMIT",
}


class Struck(peewee.OperationalError):
    """Raised by a test in the middle of a transaction: the database has gone away."""


def strike_at(pattern: str, number: int = 1) -> Callable[[str], None]:
    """Raise at the n-th statement that matches."""
    seen: list[str] = []

    def strike(statement: str) -> None:
        if re.search(pattern, statement):
            seen.append(statement)
            if len(seen) == number:
                raise Struck(statement)

    return strike


def test_everything_of_a_transition_is_one_commit(bench: Bench) -> None:
    """Law 1: the row, its history, cancelled timers, the child with its history: one BEGIN, one COMMIT."""
    bench.lent()
    with taped(bench.database) as tape:
        bench.fire("lose")
    assert [line for line in tape if line in ("BEGIN", "COMMIT", "ROLLBACK")] == ["BEGIN", "COMMIT"]
    assert (tape[0], tape[-1]) == ("BEGIN", "COMMIT")
    assert bench.loan().state == "lost"
    assert bench.history()[-1] == ("lose", "lent", "lost")
    assert bench.engine.read("fine", "f-l1").state == "open"
    assert states(bench.effects("remind")) == ["cancelled", "cancelled"]


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=list(STATEMENTS))
def test_nothing_is_written_when_a_transition_is_struck(bench: Bench, statement: str) -> None:
    """Law 1: whatever raises, wherever, after the child was started or before: no table has changed."""
    bench.lent()
    bench.bells.rung.clear()
    heard: list[object] = []
    bench.engine.listeners.append(heard.append)
    before = bench.dump()
    with taped(bench.database, strike_at(statement)) as tape, pytest.raises(Struck):
        bench.fire("lose")
    assert tape[-1] == "ROLLBACK"
    assert bench.dump() == before
    assert (bench.bells.rung, heard) == ([], [])
    assert bench.fire("lose").to_state == "lost"


def test_nothing_is_written_when_the_effects_cannot_be(bench: Bench) -> None:
    """Law 1: a state without the effects that it owes must not exist."""
    bench.start()
    before = bench.dump()
    with taped(bench.database, strike_at("INSERT INTO t_smi_effects")), pytest.raises(Struck):
        bench.fire("lend")
    assert bench.dump() == before
    with taped(bench.database, strike_at("INSERT INTO t_smi_effects")), pytest.raises(Struck):
        bench.start("l2")
    assert bench.dump() == before


def test_a_change_that_raises_takes_its_children_back(database_url: str, opened: Opener) -> None:
    """Law 1: the child was started and the parent's change failed afterwards."""

    def fail(case: Case[Any]) -> None:
        start_fine(case)
        raise Struck

    moves = tuple(replace(move, change=fail) if move.trigger == "lose" else move for move in LOAN.moves)
    bench = opened(database_url, workflows=(replace(LOAN, moves=moves), FINE))
    bench.lent()
    before = bench.dump()
    with pytest.raises(Struck):
        bench.fire("lose")
    assert bench.dump() == before


def test_a_refusal_in_another_subject_takes_everything_back(bench: Bench) -> None:
    """Law 1: paying a fine fires its loan; a loan that refuses leaves the fine unpaid."""
    bench.lent()
    bench.fire("lose")
    bench.fire("found")
    before = bench.dump()
    with pytest.raises(EngineError, match="'found' is not possible there"):
        bench.engine.fire("fine", "f-l1", "pay", actor="system")
    assert bench.dump() == before


def test_a_fired_parent_is_one_commit_with_its_child(bench: Bench) -> None:
    """Law 1: other subjects fired."""
    bench.lent()
    bench.fire("lose")
    with taped(bench.database) as tape:
        bench.engine.fire("fine", "f-l1", "pay", actor="admin:jane")
    assert tape.count("COMMIT") == 1
    assert (bench.loan().state, bench.engine.read("fine", "f-l1").state) == ("returned", "paid")
    assert bench.engine.history("loan", "l1")[-1].actor == "admin:jane"


def test_an_effect_and_what_it_causes_are_one_commit(bench: Bench) -> None:
    """Laws 1 and 7: the settled effect, and everything its trigger does, name each other and stand together."""
    bench.start()
    effect = bench.effect("fetch_book")
    performer = bench.performer(fetch_book=lambda attempt: Done("lose"))
    with taped(bench.database) as tape:
        assert performer.perform(effect.id) is Performed.DONE
    assert tape.count("COMMIT") == 2
    settling = tape[tape.index("COMMIT") + 1 :]
    assert [word for word in ("t_smi_effects", "t_loans", "t_fines") if word in " ".join(settling)] == [
        "t_smi_effects", "t_loans", "t_fines",
    ]  # fmt: skip
    assert bench.engine.history("loan", "l1")[-1].caused_by == f"effect:{effect.id}"
    assert bench.engine.history("fine", "f-l1")[-1].caused_by == f"effect:{effect.id}"


@pytest.mark.parametrize("statement", [*STATEMENTS.values(), "INSERT INTO t_smi_transitions"])
def test_an_effect_is_not_settled_when_its_trigger_is_struck(bench: Bench, statement: str) -> None:
    """Laws 1 and 7: the outcome is not on record either, so the effect runs again once its lease has lapsed."""
    bench.start()
    effect = bench.effect("fetch_book")
    struck: list[dict[str, Any]] = []

    def handler(attempt: Attempt) -> Done:
        struck.append(bench.dump())
        return Done("lose")

    settling = strike_at(statement, 2 if statement in ("COMMIT", "UPDATE t_smi_effects") else 1)
    with taped(bench.database, settling), pytest.raises(Struck):
        bench.performer(fetch_book=handler).perform(effect.id)
    assert bench.dump() == struck[0]
    bench.clock.advance(seconds=61)
    assert bench.performer(fetch_book=handler).perform(effect.id) is Performed.DONE
    assert bench.loan().state == "lost"


def test_an_event_and_what_it_causes_are_one_commit(bench: Bench) -> None:
    """Laws 1 and 10: an event is settled in the commit of its transition, or not at all."""
    bench.lent()
    inbox = bench.inbox(lambda event: Fire("loan", "l1", "lose", "stripe"))
    receipt = inbox.receive("post", "e1", "lost", "{}")
    before = bench.dump()
    for statement in STATEMENTS.values():
        with taped(bench.database, strike_at(statement)), pytest.raises(Struck):
            inbox.handle(receipt.id)
        assert bench.dump() == before
    with taped(bench.database) as tape:
        assert inbox.handle(receipt.id) == "applied"
    assert tape.count("COMMIT") == 1
    last = bench.engine.history("loan", "l1")[-1]
    assert (last.caused_by, last.actor) == (f"event:{receipt.id}", "stripe")


@pytest.mark.parametrize("statement", ["INSERT INTO t_fines", "COMMIT"])
def test_a_process_killed_in_mid_transition_leaves_nothing(bench: Bench, crew: Crew, statement: str) -> None:
    """Law 1: kill -9 after the child is written, and right before the commit."""
    bench.lent()
    before = bench.dump()
    command = {"do": "fire", "url": bench.url, "trigger": "lose"}
    assert crew.run({**command, "die_at": statement}) == [{"died": -9}]
    assert bench.dump() == before
    assert crew.run(command) == [{"value": 3}]
    assert counts(bench.dump())["t_fines"] == 1


def test_no_transaction_is_open_while_a_handler_runs(bench: Bench) -> None:
    """Law 6: neither in peewee's eyes nor in the database's."""
    bench.start()
    seen: list[tuple[int, bool]] = []

    def handler(attempt: Attempt) -> Done:
        depth = bench.database.transaction_depth()
        connection: Any = bench.database.connection()  # type: ignore[no-untyped-call]
        if isinstance(connection, psycopg.Connection):
            is_open = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
        elif isinstance(connection, sqlite3.Connection):
            is_open = connection.in_transaction
        else:
            is_open = bool(connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)
        seen.append((depth, is_open))
        bench.fire("waive")
        return Done()

    assert bench.performer(fetch_book=handler).perform(bench.effect("fetch_book").id) is Performed.DONE
    assert seen == [(0, False)]


def test_the_engine_refuses_to_work_inside_an_open_transaction(bench: Bench) -> None:
    """Law 1: nested, its commit would be a savepoint that the caller may still roll back."""
    bench.start()
    with bench.database.atomic(), pytest.raises(EngineError, match="inside an open transaction"):
        bench.fire("lend")
    with transaction(bench.database), pytest.raises(EngineError, match="inside an open transaction"):
        bench.engine.audit(actor="system", act="look", target="nothing")
    assert bench.loan().state == "reserved"


def test_a_conflict_is_tried_three_times_from_the_start(bench: Bench) -> None:
    """Law 2: a conflict is retried, each time with a new view of the rows, and then told."""
    bench.start()
    units: list[Unit] = []

    def work(unit: Unit) -> str:
        units.append(unit)
        row = unit.lock("loan", "l1")
        unit.fire("loan", "l1", "waive", actor="system")
        if len(units) < 3:
            raise TransitionConflict("someone was first")
        return str(row.version)

    assert bench.engine.run(work) == "2"
    assert len({id(unit) for unit in units}) == 3
    assert [row[0] for row in bench.history()] == ["create", "waive"]

    def never(unit: Unit) -> None:
        units.append(unit)
        raise TransitionConflict("someone is always first")

    units.clear()
    with pytest.raises(TransitionConflict, match="someone is always first"):
        bench.engine.run(never)
    assert len(units) == 3


def test_a_subject_cannot_be_fired_in_the_middle_of_its_own_transition(database_url: str, opened: Opener) -> None:
    """Law 1: a change that fires its own row would write a history in which states do not follow each other."""

    def meddle(case: Case[Any]) -> None:
        case.unit.fire("loan", case.row.loan_id, "waive", actor="system")

    moves = tuple(replace(move, change=meddle) if move.trigger == "lend" else move for move in LOAN.moves)
    bench = opened(database_url, workflows=(replace(LOAN, moves=moves), FINE))
    bench.start()
    before = bench.dump()
    with pytest.raises(EngineError, match="in the middle of 'lend'"):
        bench.fire("lend")
    assert bench.dump() == before
    assert bench.fire("waive").sequence == 2


def test_a_refused_guard_writes_nothing(bench: Bench) -> None:
    """Law 1, law 2: the guard and its reason are told, and nothing is on record."""
    bench.start(blocked=True)
    before = bench.dump()
    with pytest.raises(GuardRefused) as caught:
        bench.fire("lend")
    assert (caught.value.guard, caught.value.reason) == ("reader_not_blocked", "the reader is blocked")
    assert (caught.value.state, caught.value.trigger) == ("reserved", "lend")
    assert bench.dump() == before


def test_a_missing_fact_is_bad_input(bench: Bench) -> None:
    """Law 2: guards see nothing but the row and the facts; one that lacks a fact names it."""
    bench.start()
    before = bench.dump()
    with pytest.raises(InvalidInput) as caught:
        bench.fire("lend", facts={})
    assert caught.value.field == "barcode"
    assert bench.dump() == before
