"""What a declaration may not contain (law 13), and what a fingerprint notices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.engine.declaration import ANYWHERE, Case, Effect, Facts, MissingFact, Move, Owed, Parent, State
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import ConfigError
from tests.support.loans import FINE, LOAN
from tests.unit.engine.cases import KNOCK, MOVES, SIT, STATES, declare

HARMLESS = Effect("ring", queue="hall", harmless="nobody minds")


def problems(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        declare(**changes)
    return caught.value.problems


def test_a_sound_declaration_has_no_problems() -> None:
    assert declare().problems() == []
    assert LOAN.problems() == FINE.problems() == []


def test_a_state_that_cannot_be_reached_is_refused() -> None:
    """Law 13: every state reachable."""
    island = (State("attic", "a"), State("roof", "b"))
    found = problems(states=(*STATES, *island), moves=(*MOVES, Move("climb", "attic", "roof")))
    assert found == ("state attic cannot be reached", "state roof cannot be reached")


def test_an_effect_without_a_failure_trigger_must_say_why_that_is_harmless() -> None:
    """Law 13: every effect has a failure trigger."""
    silent = Effect("ring", queue="hall")
    move = Move("chime", "open", None, owes=(silent.now(),))
    assert problems(moves=(*MOVES, move)) == (
        "effect ring has no failure trigger, and does not say why that is harmless",
    )
    assert declare(moves=(*MOVES, replace(move, owes=(HARMLESS.now(),)))).problems() == []


def test_a_waiting_state_without_a_deadline_is_refused() -> None:
    """Law 13: every waiting state sets a deadline, and sets it always."""
    message = ("state shut waits, but sets no deadline",)
    for owed in (KNOCK.now(), replace(SIT, deadline=False), replace(SIT, when=lambda case: True)):
        assert problems(states=(STATES[0], replace(STATES[1], owes=(owed,)))) == message


def test_unknown_states_are_named_with_the_trigger_that_names_them() -> None:
    """Law 13: what is named is declared."""
    moves = (*MOVES, Move("fly", ("open", "cloud"), "sky"))
    assert problems(moves=moves) == ("fly names the unknown state cloud", "fly names the unknown state sky")
    assert problems(initial="ajar")[0] == "the first state ajar is not declared"


def test_a_state_declared_twice_is_refused() -> None:
    """Law 13."""
    assert problems(states=(*STATES, STATES[0])) == ("state open is declared twice",)


def test_a_trigger_without_a_source_is_refused() -> None:
    """Law 13: every trigger has a source."""
    assert problems(moves=(*MOVES, Move("creak", (), None))) == ("creak has no state to start from",)


def test_a_failure_trigger_must_fit_every_state_the_effect_is_owed_in() -> None:
    """Law 13: an effect that fails must have somewhere to go."""
    lacks = "effect knock is owed in open, which lacks its failure trigger slam"
    assert problems(moves=(*MOVES, Move("tap", "open", None, owes=(KNOCK.now(),)))) == (lacks,)
    entering = (Move("close", "open", "shut"), Move("push", "shut", "open", owes=(KNOCK.now(),)), MOVES[2])
    assert problems(moves=entering) == (lacks,)


def test_two_different_effects_of_one_name_are_refused() -> None:
    """Law 13: a row of the queue names its effect by name alone."""
    other = replace(KNOCK, attempts=9)
    moves = (*MOVES, Move("rattle", "shut", None, owes=(other.now(),)))
    assert problems(moves=moves) == ("two different effects are called knock",)


def test_cancelling_what_leaving_cancels_anyway_is_refused() -> None:
    """A move that leaves ends the visit; `cancels` would say nothing."""
    moves = (MOVES[0], replace(MOVES[1], cancels=(KNOCK,)), MOVES[2])
    assert problems(moves=moves) == ("push leaves the visit: what it cancels is cancelled anyway or survives",)


def test_a_word_that_nothing_announces() -> None:
    """Law 13: an effect that no move can owe is a mistake."""
    assert problems(announces=HARMLESS.now()) == ("ring is owed with every hook, and there is none",)


def test_a_word_needs_its_failure_trigger_wherever_it_is_owed() -> None:
    """Law 13: the start and each move with a hook owe it, in the state that they lead to."""
    word = Effect("call_owner", "hall", failure="push")
    found = problems(announces=word.now(), start_hook="door_built", moves=(
        replace(MOVES[0], hook="door_shut"), *MOVES[1:]))
    assert found == ("effect call_owner is owed in open, which lacks its failure trigger push",)


def test_all_holes_are_reported_together() -> None:
    """Law 13: one start shows every mistake."""
    found = problems(
        initial="ajar",
        states=(State("open", "a", waiting=True), State("open", "b"), State("attic", "c")),
        moves=(Move("fly", "open", "sky"), Move("creak", (), None, owes=(Effect("ring", queue="hall").now(),))),
    )
    assert len(found) == 8
    with pytest.raises(ConfigError, match="workflow door is not sound:\n  - state open is declared twice"):
        declare(states=(*STATES, STATES[0]))


# -- fingerprints ------------------------------------------------------------------------------------------------


def agree(case: Case[Any]) -> str | None:
    return None


def remember(case: Case[Any]) -> None:
    case.record(seen=True)


def often(case: Case[Any]) -> bool:
    return True


def an_hour(case: Case[Any]) -> timedelta:
    return timedelta(hours=1)


def neighbours(case: Case[Any]) -> list[dict[str, object]]:
    return [{"number": 1}, {"number": 3}]


def particulars(case: Case[Any]) -> dict[str, object]:
    return {}


def with_move(**changes: Any) -> Workflow:
    return declare(moves=(replace(MOVES[0], **changes), *MOVES[1:]))


def announced(word: Owed) -> Workflow:
    return declare(moves=(replace(MOVES[0], hook="door_shut"), *MOVES[1:]), announces=word)


def with_effect(**changes: Any) -> Workflow:
    changed = replace(KNOCK, **changes)
    owes = (changed.now(), changed.later(an_hour, deadline=True))
    moves = (*MOVES[:2], Move("slam", ANYWHERE, None))
    return declare(states=(STATES[0], replace(STATES[1], owes=owes)), moves=moves)


def with_owed(**changes: Any) -> Workflow:
    return declare(states=(STATES[0], replace(STATES[1], owes=(replace(KNOCK.now(), **changes), SIT))))


ALIKE: list[tuple[str, Callable[[], Workflow], Callable[[], Workflow]]] = [
    ("another first state", declare, lambda: declare(initial="shut")),
    ("another state", declare, lambda: declare(states=(*STATES, State("jammed", "x")),
                                               moves=(*MOVES, Move("jam", "shut", "jammed")))),
    ("a state renamed", declare, lambda: declare(
        states=(State("ajar", "x"), STATES[1]), initial="ajar",
        moves=(Move("close", "ajar", "shut"), Move("push", "shut", "ajar"), MOVES[2]))),
    ("a state that waits", declare, lambda: declare(states=(STATES[0], replace(STATES[1], waiting=False)))),
    ("a state that owes less", declare, lambda: declare(states=(STATES[0], replace(STATES[1], owes=(SIT,))))),
    ("a trigger renamed", declare, lambda: with_move(trigger="bang")),
    ("another source", declare, lambda: with_move(source=("open", "shut"))),
    ("a move that stays", lambda: with_move(source=("open", "shut")),
     lambda: declare(moves=(replace(MOVES[0], source=("open", "shut")), *MOVES[1:], Move("peep", "shut", None)))),
    ("another order of trying", lambda: declare(moves=(*MOVES, Move("slam", "shut", "open"))),
     lambda: declare(moves=(*MOVES[:2], Move("slam", "shut", "open"), MOVES[2]))),
    ("a guard", declare, lambda: with_move(guards=(agree,))),
    ("a condition", declare, lambda: with_move(when=often)),
    ("a change", declare, lambda: with_move(change=remember)),
    ("a move that may be quiet", declare, lambda: with_move(quiet=often)),
    ("a hook", declare, lambda: with_move(hook="door_shut")),
    ("a word to receivers", lambda: with_move(hook="door_shut"), lambda: announced(HARMLESS.now())),
    ("a word to several receivers", lambda: announced(HARMLESS.now()),
     lambda: announced(HARMLESS.for_each(neighbours))),
    ("an effect owed by a move", declare, lambda: with_move(owes=(HARMLESS.now(),))),
    ("an effect cancelled", declare,
     lambda: declare(moves=(*MOVES[:2], replace(MOVES[2], cancels=(KNOCK,))))),
    ("a parent", declare, lambda: declare(parent=Parent("house", "house_id"))),
    ("a start trigger", declare, lambda: declare(started_by="build")),
    ("a start hook", declare, lambda: declare(start_hook="door_built")),
    ("an effect renamed", with_effect, lambda: with_effect(name="tap")),
    ("another failure trigger", with_effect, lambda: with_effect(failure="push")),
    ("more attempts", with_effect, lambda: with_effect(attempts=5)),
    ("another queue", with_effect, lambda: with_effect(queue="porch")),
    ("an effect that survives", with_effect, lambda: with_effect(survives=True)),
    ("slower retries", with_effect, lambda: with_effect(retry_seconds=3.0)),
    ("a timer for an effect", with_owed, lambda: with_owed(after=an_hour)),
    ("inputs", with_owed, lambda: with_owed(inputs=particulars)),
    ("a condition on an effect", with_owed, lambda: with_owed(when=often)),
    ("another deadline", with_owed, lambda: with_owed(after=an_hour, deadline=True)),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [pair for _, *pair in ALIKE], ids=[name for name, *_ in ALIKE])
def test_the_fingerprint_notices(before: Callable[[], Workflow], after: Callable[[], Workflow]) -> None:
    """Law 13: history says by which definition each transition was made."""
    assert before().fingerprint == before().fingerprint
    assert before().fingerprint != after().fingerprint


def test_the_fingerprint_does_not_depend_on_prose_or_the_order_of_sources() -> None:
    """Law 13: a better wording is no other definition."""
    plain = with_move(source=("open", "shut")).fingerprint
    assert with_move(source=("shut", "open"), by="the wind").fingerprint == plain
    assert with_move(source=ANYWHERE).fingerprint == plain
    worded = (replace(STATES[0], meaning="come in"), STATES[1])
    assert declare(states=worded).fingerprint == declare().fingerprint


# -- facts -------------------------------------------------------------------------------------------------------


def test_a_missing_fact_is_named() -> None:
    facts = Facts({"barcode": None})
    assert facts["barcode"] is None
    assert "barcode" in facts
    assert dict(facts) == {"barcode": None}
    assert (len(facts), facts.get("colour"), facts.get("colour", "red")) == (1, None, "red")
    assert "colour" not in facts
    with pytest.raises(MissingFact) as caught:
        facts["colour"]
    assert caught.value.name == "colour"


def test_facts_cannot_be_changed_from_outside() -> None:
    given = {"barcode": "ok"}
    facts = Facts(given)
    given["barcode"] = "bad"
    assert facts["barcode"] == "ok"


def test_the_declaration_answers_what_the_engine_asks() -> None:
    assert LOAN.allowed("lent") == ("renew", "give_back", "lose", "waive")
    assert LOAN.allowed("no such state") == ()
    assert set(LOAN.effects()) == {"fetch_book", "send_slip", "remind", "call_back", "collect"}
    assert LOAN.sets_timers("reserved")
    assert LOAN.sets_timers("lent")
    assert not LOAN.sets_timers("lost")
    assert [move.to for move in LOAN.moves_from("lent", "lose")] == ["lost"]
    assert LOAN.triggers()[:2] == ("lend", "renew")
