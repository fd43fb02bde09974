"""Words to receivers: owed with every hook in the move's own commit, one for each, and skipped on record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from smi_workflow.engine.attempt import Attempt, Skip
from smi_workflow.engine.declaration import Case, Effect
from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariants
from smi_workflow.engine.perform import Performed
from smi_workflow.engine.workflow import Workflow
from tests.support.engines import Bench, Opener, states, taped
from tests.support.loans import FINE, LOAN, Loan

TELL = Effect("tell", queue="street", failure="waive", survives=True)


def word(case: Case[Loan], name: str) -> dict[str, object]:
    return {"to": name, "hook": case.hook, "sequence": case.row.version, "state": case.state}


def both(case: Case[Loan]) -> Sequence[dict[str, object]]:
    return [word(case, "reader"), word(case, "library")]


def nobody(case: Case[Loan]) -> Sequence[dict[str, object]]:
    return []


def alike(case: Case[Loan]) -> Sequence[dict[str, object]]:
    return [word(case, "reader"), word(case, "reader")]


def telling(of: Callable[[Case[Any]], Sequence[dict[str, object]]]) -> Workflow:
    """The loans, with a word to receivers when one begins and when a book is lost."""
    return replace(LOAN, start_hook="book_wanted", announces=TELL.for_each(of))


def told(bench: Bench) -> list[str]:
    """What was owed to receivers, in order."""
    return sorted(effect.inputs for effect in bench.effects("tell"))


def test_each_receiver_is_owed_each_word(database_url: str, opened: Opener) -> None:
    """Law 1: the effects are rows of the commit that they tell of; moves without a hook owe none."""
    bench = opened(database_url, workflows=(telling(both), FINE))
    bench.lent()
    with taped(bench.database) as tape:
        applied = bench.fire("lose")
    assert [line for line in tape if line in ("BEGIN", "COMMIT", "ROLLBACK")] == ["BEGIN", "COMMIT"]
    assert [effect.name for effect in applied.owed] == ["tell", "tell"]
    assert told(bench) == [
        f'{{"hook":"{hook}","sequence":{number},"state":"{state}","to":"{name}"}}'
        for hook, number, state in (("book_lost", 3, "lost"), ("book_wanted", 1, "reserved"))
        for name in ("library", "reader")
    ]
    assert bench.bells.names().count("tell") == 4
    invariants = Invariants(bench.engine, ENGINE_INVARIANTS)
    assert [*invariants.everywhere(), *invariants.of_subject("loan", "l1")] == []


def test_nobody_to_tell_is_owed_nothing(database_url: str, opened: Opener) -> None:
    bench = opened(database_url, workflows=(telling(nobody), FINE))
    bench.lent()
    bench.fire("lose")
    assert told(bench) == []
    assert list(Invariants(bench.engine, ENGINE_INVARIANTS).everywhere()) == []


def test_what_was_refused_or_only_tried_tells_nobody(database_url: str, opened: Opener) -> None:
    bench = opened(database_url, workflows=(telling(both), FINE))
    bench.lent()
    before = told(bench)
    assert [effect.name for effect in bench.fire("lose", dry_run=True).owed] == ["tell", "tell"]
    with pytest.raises(ZeroDivisionError), taped(bench.database, _strike):
        bench.fire("lose")
    assert told(bench) == before


def _strike(line: str) -> None:
    if line == "COMMIT":
        raise ZeroDivisionError


def test_the_same_word_twice_is_a_fault(database_url: str, opened: Opener) -> None:
    """Several of one name are right, but not two that nobody could tell apart."""
    bench = opened(database_url, workflows=(telling(alike), FINE))
    bench.start()
    found = list(Invariants(bench.engine, ENGINE_INVARIANTS).of_subject("loan", "l1"))
    assert [violation.text for violation in found] == ["transition 1 owes tell twice"]


def test_a_word_that_nobody_wants_any_more_is_skipped_on_record(database_url: str, opened: Opener) -> None:
    bench = opened(database_url, workflows=(telling(both), FINE))
    bench.start()

    def tell(attempt: Attempt) -> Skip:
        return Skip(f"{attempt.inputs['to']} has moved away")

    performer = bench.performer(tell=tell)
    row = bench.effect("tell")
    assert performer.perform(row.id) is Performed.SKIPPED
    after = bench.engine.tables.effects.get_by_id(row.id)
    assert (after.state, after.attempts) == ("skipped", 1)
    assert "has moved away" in (after.outcome or "")
    assert performer.perform(row.id) is Performed.NOTHING
    assert bench.loan().version == 1
    assert sorted(states(bench.effects("tell"))) == ["due", "skipped"]
