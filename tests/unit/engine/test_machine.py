"""The contract with `transitions`, and what the machine built on it does: guards, conditions, effects owed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from transitions import EventData, Machine, MachineError, State

from smi_workflow.engine.declaration import Case, Effect, MissingFact, Move
from smi_workflow.engine.declaration import State as Declared
from smi_workflow.engine.workflow import guard_name
from tests.unit.engine.cases import MOVES, STATES, Door, case_of, declare


class Thing:
    """A plain object that no machine was told about."""

    def __init__(self, state: str = "a") -> None:
        self.state = state
        self.log: list[str] = []
        self.wanted = True


def note(word: str) -> Callable[[EventData], None]:
    return lambda event: cast("Thing", event.model).log.append(word)


def machine(guard: Callable[[EventData], bool] = lambda event: True) -> Machine:
    """Built the way workflow.py builds it."""
    built = Machine(
        model=None,
        states=[State("a", on_enter=[note("enter a")]), State("b", on_enter=[note("enter b")])],
        initial="a",
        auto_transitions=False,
        send_event=True,
    )
    built.add_transition("go", "a", "b", conditions=[guard], before=[note("before")], after=[note("after")])
    built.add_transition("stay", "a", None, before=[note("before")], after=[note("after")])
    built.add_transition("again", "a", "a", before=[note("before")], after=[note("after")])
    return built


def test_an_event_drives_an_unregistered_object() -> None:
    """Contract with transitions <0.10: `machine.events[name].trigger(object)`."""
    built, thing = machine(), Thing()
    assert built.events["go"].trigger(thing) is True
    assert thing.state == "b"
    assert thing.log == ["before", "enter b", "after"]
    assert built.models == []
    assert not hasattr(thing, "go")


def test_an_internal_transition_enters_nothing() -> None:
    """Contract: dest=None runs before and after, but no on_enter; source to itself does enter."""
    built, thing = machine(), Thing()
    assert built.events["stay"].trigger(thing) is True
    assert (thing.state, thing.log) == ("a", ["before", "after"])
    again = Thing()
    built.events["again"].trigger(again)
    assert again.log == ["before", "enter a", "after"]


def test_a_refused_guard_returns_false_and_changes_nothing() -> None:
    """Contract: no exception, no callback but the guard."""
    built, thing = machine(lambda event: False), Thing()
    assert built.events["go"].trigger(thing) is False
    assert (thing.state, thing.log) == ("a", [])


def test_a_wrong_state_and_an_unknown_trigger_raise() -> None:
    """Contract: MachineError, ValueError for a state nobody declared, KeyError for a trigger nobody declared."""
    built = machine()
    with pytest.raises(MachineError):
        built.events["go"].trigger(Thing("b"))
    with pytest.raises(ValueError, match="nowhere"):
        built.events["go"].trigger(Thing("nowhere"))
    with pytest.raises(KeyError):
        built.events["fly"]


def test_an_error_in_a_guard_comes_out() -> None:
    """Contract: nothing of ours is swallowed."""

    def broken(event: EventData) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        machine(broken).events["go"].trigger(Thing())


def test_four_threads_at_once_get_their_own_results() -> None:
    """Contract: one machine is shared by every thread of a process."""
    lines = threading.Barrier(4)
    built = machine(lambda event: cast("Thing", event.model).wanted)
    wrong: list[str] = []

    def work(number: int) -> None:
        lines.wait()
        for turn in range(300):
            thing = Thing()
            thing.wanted = wanted = (number + turn) % 2 == 0
            done = built.events["go"].trigger(thing)
            if done is not wanted or thing.state != ("b" if wanted else "a"):
                wrong.append(f"{number}/{turn}: {done}, {thing.state}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- the machine of a Workflow ------------------------------------------------------------------------------------


def is_dry(case: Case[Door]) -> str | None:
    return None if case.facts.get("dry", True) else "it is swollen with rain"


def is_oiled(case: Case[Door]) -> str | None:
    return None if case.facts["oiled"] else "it would squeak"


def by_night(case: Case[Door]) -> bool:
    return bool(case.facts.get("night"))


def leave_note(case: Case[Door]) -> None:
    case.record(note="back soon")


RING = Effect("ring", queue="hall", harmless="nobody minds")


def test_the_first_refusing_guard_leaves_its_reason_on_the_case() -> None:
    flow = declare(moves=(Move("close", "open", "shut", guards=(is_dry, is_oiled)), *MOVES[1:]))
    case = case_of("close", facts={"dry": False, "oiled": False})
    assert flow.machine.events["close"].trigger(case) is False
    assert case.refusals == [("is_dry", "it is swollen with rain")]
    assert (case.state, case.move, case.owed, case.changes) == ("open", None, [], {})


def test_a_guard_that_lacks_a_fact_says_which() -> None:
    flow = declare(moves=(Move("close", "open", "shut", guards=(is_oiled,)), *MOVES[1:]))
    with pytest.raises(MissingFact) as caught:
        flow.machine.events["close"].trigger(case_of("close"))
    assert caught.value.name == "oiled"


def test_when_chooses_between_moves_of_one_trigger() -> None:
    """`when` is no refusal: the next move of the same trigger is tried."""
    night = Move("close", "open", "barred", when=by_night)
    states = (*STATES, Declared("barred", "locked"))
    flow = declare(states=states, moves=(night, *MOVES))
    for facts, state in (({"night": True}, "barred"), ({}, "shut")):
        case = case_of("close", facts=facts)
        assert flow.machine.events["close"].trigger(case) is True
        assert (case.state, case.refusals) == (state, [])


def test_entering_owes_what_the_state_and_the_move_owe() -> None:
    flow = declare(moves=(Move("close", "open", "shut", owes=(RING.now(),), change=leave_note), *MOVES[1:]))
    case = case_of("close")
    flow.machine.events["close"].trigger(case)
    assert [owed.effect.name for owed in case.owed] == ["knock", "knock", "ring"]
    assert case.metadata == {"note": "back soon"}
    assert case.move is flow.moves[0]


def test_staying_owes_what_the_move_owes_and_not_what_the_state_owes() -> None:
    flow = declare(moves=(*MOVES, Move("chime", "shut", None, owes=(RING.now(),))))
    case = case_of("chime", state="shut")
    flow.machine.events["chime"].trigger(case)
    assert [owed.effect.name for owed in case.owed] == ["ring"]


def test_an_effect_with_a_condition_is_owed_only_when_it_holds() -> None:
    flow = declare(moves=(*MOVES, Move("chime", "shut", None, owes=(RING.now(when=by_night),))))
    for facts, owed in (({"night": True}, 1), ({}, 0)):
        case = case_of("chime", state="shut", facts=facts)
        flow.machine.events["chime"].trigger(case)
        assert len(case.owed) == owed


def test_a_quiet_move_hushes_the_state_but_for_its_timers() -> None:
    """A deadline is set in any case, the state's side effects only if asked for; the move's own are its own."""
    flow = declare(moves=(Move("close", "open", "shut", owes=(RING.now(),), quiet=by_night), *MOVES[1:]))
    for facts, owed in (({"night": True}, [True, False]), ({}, [False, True, False])):
        case = case_of("close", facts=facts)
        flow.machine.events["close"].trigger(case)
        assert [item.is_timer for item in case.owed] == owed


def test_a_change_sees_the_row_it_sets() -> None:
    case = case_of("close")
    case.set(state="shut", version=4)
    assert (case.row.state, case.row.version) == ("shut", 4)
    assert case.changes == {"state": "shut", "version": 4}


def test_guards_without_a_name_are_called_after_their_class() -> None:
    class Opinion:
        def __call__(self, case: Case[Any]) -> str | None:
            return None

    assert guard_name(Opinion()) == "Opinion"
    assert guard_name(is_dry) == "is_dry"
