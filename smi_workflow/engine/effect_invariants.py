"""Owns the invariants of the queue: who holds an effect, when it is due, how it ends. Called by invariants.py."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from peewee import JOIN, fn

from smi_workflow.engine.checking import (
    OPEN,
    Invariant,
    Owing,
    Suspects,
    View,
    Violation,
    alone,
    instant,
    invariant,
)
from smi_workflow.engine.database import stamp
from smi_workflow.engine.tables import EffectState, EventState

DUE, CLAIMED, DONE, FAILED, SKIPPED, CANCELLED = (item.value for item in EffectState)
RUN = (DONE, FAILED, SKIPPED)
# No lease is ever longer; and so late is what nobody works on.
LEASE_LONGEST, LATE = timedelta(hours=1), timedelta(minutes=15)


# -- held and settled ---------------------------------------------------------------------------------------------


def is_held_once(view: View, workflow: str, key: str) -> Iterator[str]:
    """Who works on an effect has a lease; nobody has one on any other."""
    for effect in view.effects(workflow, key):
        wrong = _wrong_hold(effect, view)
        if wrong:
            yield f"effect {effect.name} ({effect.id}) is {effect.state}, {wrong}"


def _wrong_hold(effect: Owing, view: View) -> str | None:
    held = effect.lease_token is not None
    if held != (effect.state == CLAIMED):
        return "and yet it carries a lease" if held else "but nobody's: it has no lease"
    if held and effect.lease_until is None:
        return "with a lease that never ends"
    if held and instant(effect.lease_until) > view.now + LEASE_LONGEST:
        return f"with a lease until {instant(effect.lease_until):%Y-%m-%d %H:%M}: a clock was wrong"
    if (effect.state == CLAIMED or effect.state in RUN) and not (effect.attempts and effect.first_attempt_at):
        return "without an attempt on record"
    if not 0 <= effect.doubts <= effect.attempts:
        return f"with {effect.doubts} attempts in doubt out of {effect.attempts}"
    if effect.state == DUE and effect.attempts >= effect.attempts_max and not effect.doubts:
        return f"although all {effect.attempts_max} attempts are used up and nothing is in doubt"
    return None


def _ill_held(view: View) -> Suspects:
    table = view.engine.tables.effects
    is_claimed, held = table.state == CLAIMED, ~table.lease_token.is_null()
    untried = (table.attempts == 0) | table.first_attempt_at.is_null()
    wrong = (
        (held & ~is_claimed)
        | (is_claimed & (table.lease_token.is_null() | table.lease_until.is_null()))
        | (is_claimed & (table.lease_until > stamp(view.now + LEASE_LONGEST)))
        | (table.state.in_((CLAIMED, *RUN)) & untried)
        | (table.doubts < 0)
        | (table.doubts > table.attempts)
        | ((table.state == DUE) & (table.attempts >= table.attempts_max) & (table.doubts == 0))
    )
    return _named(view, table.select(table.workflow, table.subject_id).where(wrong))


LEASES = invariant(
    "leases",
    "A claimed effect has one holder, whose lease ends; every other has none; each attempt is on record before it "
    "is made, and one whose attempts are used up is only kept to find out what became of the last.",
    "Look at the effect (`smi jobs show JOB`) and at the workers' clocks; a lease that has lapsed is taken over by"
    " the next worker, by itself.",
    is_held_once,
    _ill_held,
)


def is_settled_once(view: View, workflow: str, key: str) -> Iterator[str]:
    """An effect is open or settled, in one of the states that there are."""
    for effect in view.effects(workflow, key):
        if effect.state not in _STATES:
            yield f"effect {effect.name} ({effect.id}) is {effect.state!r}, which is no state of an effect"
        elif (effect.settled_at is None) != (effect.state in OPEN):
            how = "without the time of it" if effect.settled_at is None else "and settled all the same"
            yield f"effect {effect.name} ({effect.id}) is {effect.state} {how}"


def _half_settled(view: View) -> Suspects:
    table = view.engine.tables.effects
    open_ = table.state.in_(OPEN)
    wrong = (
        (open_ & ~table.settled_at.is_null()) | (~open_ & table.settled_at.is_null()) | table.state.not_in(_STATES)
    )
    return _named(view, table.select(table.workflow, table.subject_id).where(wrong))


_STATES = tuple(item.value for item in EffectState)

SETTLED = invariant(
    "effects_settled",
    "An effect is open, or settled at one time, for good.",
    "Somebody wrote the queue by hand: set the row right, and say so in the audit table.",
    is_settled_once,
    _half_settled,
)


# -- timers -------------------------------------------------------------------------------------------------------


def is_timely(view: View, workflow: str, key: str) -> Iterator[str]:
    """The timers of a visit that has ended are cancelled."""
    row, rules = view.row(workflow, key), view.rules[workflow]
    if row is None:
        return
    late = [
        item for item in view.effects(workflow, key)
        if item.state in OPEN and item.is_timer and not item.survives and item.visit != row.visit
    ]  # fmt: skip
    for effect in late:
        if all(item.fingerprint == rules.flow.fingerprint for item in view.history(workflow, key)):
            yield f"timer {effect.name} ({effect.id}) is {effect.state}, and its visit {effect.visit} is over"


def _left_over(view: View) -> Suspects:
    effects = view.engine.tables.effects
    for name, rules in view.rules.items():
        model = view.engine.bound(rules.flow.model)
        open_ = effects.state.in_(OPEN) & effects.is_timer & ~effects.survives
        # With the cross join, it keeps SQLite to the index of states: few effects are open.
        open_ &= view.of(name, effects.workflow)
        open_ &= (getattr(model, rules.flow.key) == effects.subject_id) & (effects.visit != model.visit)
        joined = effects.select(effects.subject_id).join(model, JOIN.CROSS)
        yield from ((name, found[0]) for found in view.rows(joined.where(open_)))


TIMERS = invariant(
    "timers_end_with_visit",
    "Leaving a state cancels its timers.",
    "None is needed for the job: a worker that takes such a timer skips it. Report it: the engine should have "
    "cancelled it.",
    is_timely,
    _left_over,
)


def has_deadline(view: View, workflow: str, key: str) -> Iterator[str]:
    """Whoever waits has a deadline."""
    row, rules = view.row(workflow, key), view.rules[workflow]
    deadlines = rules.deadlines.get(row.state) if row is not None else None
    if row is None or deadlines is None:
        return
    entered = [item for item in view.history(workflow, key) if item.sequence == row.visit]
    if not entered or entered[0].fingerprint != rules.flow.fingerprint:
        return
    live = (*OPEN, DONE)
    if not any(
        item.visit == row.visit and item.name in deadlines and item.state in live
        for item in view.effects(workflow, key)
    ):
        yield f"it waits in {row.state} and has no deadline any more ({', '.join(sorted(deadlines))})"


def _endless(view: View) -> Suspects:
    effects = view.engine.tables.effects
    for name, rules in view.rules.items():
        model = view.engine.bound(rules.flow.model)
        key, state = getattr(model, rules.flow.key), getattr(model, rules.flow.state_column)
        for waiting, deadlines in rules.deadlines.items():
            its = (effects.workflow == name) & (effects.subject_id == key) & (effects.visit == model.visit)
            its &= effects.name.in_(sorted(deadlines)) & effects.state.in_((*OPEN, DONE))
            without = model.select(key).left_outer_join(effects, on=its)
            yield from (
                (name, found[0]) for found in view.rows(without.where((state == waiting) & effects.id.is_null()))
            )


DEADLINES = invariant(
    "waiting_ends",
    "Every subject in a waiting state has a deadline that ends the wait.",
    "`smi fire JOB override --fact target=STATE --reason ...` enters the state again and sets its deadlines.",
    has_deadline,
    _endless,
)


def _overdue(view: View) -> Iterator[Violation]:
    """Due for long, and nobody works on it: of effects and events, with the oldest first."""
    effects, events = view.engine.tables.effects, view.engine.tables.events
    before = stamp(view.now if view.at_rest else view.now - LATE)
    waiting = (effects.state == DUE) & (effects.due_at <= before)
    lapsed = (effects.state == CLAIMED) & (effects.lease_until < before)
    columns = (effects.workflow, effects.subject_id, effects.name, effects.id, effects.due_at)
    for condition, since in ((waiting, "due"), (lapsed, "left by its worker, due")):
        for workflow, key, name, effect_id, due_at in view.rows(effects.select(*columns).where(condition)):
            text = f"effect {name} ({effect_id}) is {since} since {instant(due_at):%Y-%m-%d %H:%M} UTC"
            yield Violation(OVERDUE.name, workflow, key, text)
    open_ = events.state.in_((EventState.RECEIVED.value, EventState.PARKED.value)) & (events.due_at <= before)
    told = (events.workflow, events.subject_id, events.id, events.provider, events.kind, events.due_at)
    for workflow, key, event_id, provider, kind, due_at in view.rows(events.select(*told).where(open_)):
        text = f"event {event_id} ({kind} of {provider}) is due since {instant(due_at):%Y-%m-%d %H:%M} UTC"
        yield Violation(OVERDUE.name, workflow, key, text)


OVERDUE = alone(
    "nothing_overdue",
    "What is due is worked on: no effect and no event waits for more than a quarter of an hour.",
    "Start the workers and the relay (`smi up`, or your service manager), and look into the workers' logs.",
    _overdue,
)


# -- the definition -----------------------------------------------------------------------------------------------


def _unknown_to_the_definition(view: View) -> Iterator[Violation]:
    """Law 13: what is in the database and not in this release."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    for name, rules in view.rules.items():
        model = view.engine.bound(rules.flow.model)
        state, known = getattr(model, rules.flow.state_column), [item.name for item in rules.flow.states]
        strangers = model.select(state, fn.COUNT(state)).where(state.not_in(known)).group_by(state)
        for found, count in view.each(strangers):
            yield Violation(DEFINITION.name, name, None, f"{count} in state {found}, which this release lacks")
    open_ = effects.select(effects.workflow, effects.name, fn.COUNT(effects.id)).where(effects.state.in_(OPEN))
    for workflow, name, count in view.each(open_.group_by(effects.workflow, effects.name)):
        if workflow not in view.rules:
            yield Violation(
                DEFINITION.name, workflow, None, f"{count} effects of a workflow that this release lacks"
            )
        elif name not in view.rules[workflow].flow.effects():
            yield Violation(
                DEFINITION.name, workflow, None, f"{count} owed effects {name}, which this release lacks"
            )
    # Histories of other workflows: every row's workflow is looked up in the index, not row by row.
    known = sorted(view.rules)
    for bound in (table.workflow < known[0], table.workflow > known[-1]):
        for (workflow,) in view.each(table.select(table.workflow).where(bound).limit(1)):
            yield Violation(DEFINITION.name, workflow, None, "history of a workflow that this release lacks")


DEFINITION = alone(
    "definition",
    "The definition of this release knows the state of every subject and the name of every effect that is owed.",
    "Do not deploy this release yet: let the old one finish these subjects, move them (`smi fire JOB override`),"
    " or keep the state or effect declared for one release more.",
    _unknown_to_the_definition,
)

EFFECT_INVARIANTS: tuple[Invariant, ...] = (LEASES, SETTLED, TIMERS, DEADLINES, OVERDUE, DEFINITION)


def _named(view: View, query: Any) -> Suspects:
    """Suspects of the workflows that we know; the others are told of by the definition's check."""
    return ((workflow, key) for workflow, key in view.rows(query) if workflow in view.rules)
