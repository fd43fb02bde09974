"""Owns the invariants of the queue: what is owed, by whom it is held, how it ends. Called by invariants.py."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from peewee import JOIN, SQL, Case, fn

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
from smi_workflow.engine.rules import Rules, Step
from smi_workflow.engine.tables import EffectState, EventState

DUE, CLAIMED, DONE, FAILED, SKIPPED, CANCELLED = (item.value for item in EffectState)
RUN = (DONE, FAILED, SKIPPED)
# No lease is ever longer; and so late is what nobody works on.
LEASE_LONGEST, LATE = timedelta(hours=1), timedelta(minutes=15)


# -- owed ---------------------------------------------------------------------------------------------------------


def is_owed(view: View, workflow: str, key: str) -> Iterator[str]:
    """Each transition's effects are there, and each effect has its transition."""
    rules, past = view.rules[workflow], {item.sequence: item for item in view.history(workflow, key)}
    owed: dict[int, set[str]] = {}
    for effect in view.effects(workflow, key):
        names = owed.setdefault(effect.sequence, set())
        if effect.name in names:
            yield f"transition {effect.sequence} owes {effect.name} twice"
        names.add(effect.name)
        if effect.sequence not in past:
            yield f"effect {effect.name} ({effect.id}) was owed by transition {effect.sequence}, which is missing"
        elif not 1 <= effect.visit <= effect.sequence:
            yield f"effect {effect.name} ({effect.id}) is owed to visit {effect.visit} by {effect.sequence}"
    for sequence, item in past.items():
        if item.fingerprint != rules.flow.fingerprint:
            continue
        step = (item.trigger, item.from_state, item.to_state)
        lacking = rules.owed.get(step, frozenset()) - owed.get(sequence, set())
        for name in sorted(lacking):
            yield f"transition {sequence} ('{item.trigger}') owes {name}, which is not there"
        for name in sorted(owed.get(sequence, set()) - rules.may_owe.get(step, frozenset())):
            yield f"transition {sequence} ('{item.trigger}') does not owe {name}"


def _unowed(view: View) -> Suspects:
    """Counted by kind first, which is quick; only kinds that do not come out even are looked at row by row."""
    for name, rules in view.rules.items():
        queries = []
        taken = {tuple(row[:3]): tuple(row[3:]) for row in view.each(_taken(view, rules))}
        owed: dict[tuple[Step, str], tuple[int, int]] = {}
        for trigger, origin, to, effect, causeless, count, total in view.each(_owing(view, rules)):
            if causeless:
                queries.append(_causeless(view, rules))
                continue
            owed[(trigger, origin, to), effect] = (count, total)
            if effect not in rules.may_owe.get((trigger, origin, to), frozenset()):
                queries.append(_owed_by(view, rules, (trigger, origin, to), effect))
        for step, names in rules.owed.items():
            for effect in sorted(names):
                if step in taken and owed.get((step, effect)) != taken[step]:
                    queries += [_lacking(view, rules, step, effect), _doubled(view, rules, step, effect)]
        for query in queries:
            yield from ((name, found[0]) for found in view.rows(query))


def _taken(view: View, rules: Rules) -> Any:
    """How often each step that owes something was taken; the sum of the rows' numbers tells them apart."""
    table = view.engine.tables.transitions
    owing = sorted({step[0] for step in rules.owed})
    columns = (table.trigger, table.from_state, table.to_state)
    query = table.select(*columns, fn.COUNT(table.id), fn.SUM(table.id))
    return query.where(_ours(table, rules) & table.trigger.in_(owing)).group_by(*columns)


def _owing(view: View, rules: Rules) -> Any:
    """How often each effect was owed by each step, and by which transitions altogether."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    causeless = _without_cause(effects, table)
    columns = (table.trigger, table.from_state, table.to_state, effects.name)
    ours = table.id.is_null() | (table.fingerprint == rules.flow.fingerprint)
    query = _joined(view, rules, effects).select(
        *columns, causeless.alias("causeless"), fn.COUNT(effects.id), fn.SUM(table.id)
    )
    # By its name: an expression with parameters in it is another one each time to PostgreSQL.
    return query.where((effects.workflow == rules.flow.name) & ours).group_by(*columns, SQL("causeless"))


def _causeless(view: View, rules: Rules) -> Any:
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    odd = (effects.workflow == rules.flow.name) & (_without_cause(effects, table) == 1)
    return _joined(view, rules, effects).where(odd)


def _owed_by(view: View, rules: Rules, step: Step, name: str) -> Any:
    """Subjects of which such a step owed this effect."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    mine = (effects.workflow == rules.flow.name) & (effects.name == name)
    return _joined(view, rules, effects).where(mine & _ours(table, rules) & _is_step(table, step))


def _doubled(view: View, rules: Rules, step: Step, name: str) -> Any:
    effects = view.engine.tables.effects
    twice = _owed_by(view, rules, step, name).group_by(effects.subject_id, effects.sequence)
    return twice.having(fn.COUNT(effects.id) > 1)


def _lacking(view: View, rules: Rules, step: Step, name: str) -> Any:
    """Subjects of which such a step lacks this effect."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    its = (effects.workflow == rules.flow.name) & (effects.subject_id == table.subject_id)
    its &= (effects.sequence == table.sequence) & (effects.name == name)
    query = table.select(table.subject_id).left_outer_join(effects, on=its)
    return query.where(_ours(table, rules) & _is_step(table, step) & effects.id.is_null())


def _joined(view: View, rules: Rules, effects: Any) -> Any:
    """Effects, each with the transition that owed it."""
    table = view.engine.tables.transitions
    its = (table.workflow == rules.flow.name) & (table.subject_id == effects.subject_id)
    return effects.select(effects.subject_id).left_outer_join(table, on=its & (table.sequence == effects.sequence))


def _without_cause(effects: Any, table: Any) -> Any:
    odd = table.id.is_null() | (effects.visit > effects.sequence) | (effects.visit < 1)
    return Case(None, [(odd, 1)], 0)


def _ours(table: Any, rules: Rules) -> Any:
    return (table.workflow == rules.flow.name) & (table.fingerprint == rules.flow.fingerprint)


def _is_step(table: Any, step: Step) -> Any:
    return (table.trigger == step[0]) & (table.from_state == step[1]) & (table.to_state == step[2])


OWED = invariant(
    "effects_owed",
    "No transition without its effects, and no effect without its transition.",
    "A missing effect is owed again by re-entering the state: `smi fire JOB override --fact target=STATE --fact "
    "effects=true --reason ...`; one that nobody owes does no harm once it is settled.",
    is_owed,
    _unowed,
)


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
        # COALESCE and the cross join keep SQLite to the index of states: few effects are open.
        open_ &= fn.COALESCE(effects.workflow, "") == name
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

EFFECT_INVARIANTS: tuple[Invariant, ...] = (OWED, LEASES, SETTLED, TIMERS, DEADLINES, OVERDUE, DEFINITION)


def _named(view: View, query: Any) -> Suspects:
    """Suspects of the workflows that we know; the others are told of by the definition's check."""
    return ((workflow, key) for workflow, key in view.rows(query) if workflow in view.rules)
