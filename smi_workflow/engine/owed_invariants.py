"""Owns the invariant between history and queue: no transition without its effects, no effect without one.

Called by invariants.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peewee import SQL, Case, fn

from smi_workflow.engine.checking import Suspects, View, invariant
from smi_workflow.engine.rules import Rules, Step


def is_owed(view: View, workflow: str, key: str) -> Iterator[str]:
    """Each transition's effects are there, and each effect has its transition."""
    rules, past = view.rules[workflow], {item.sequence: item for item in view.history(workflow, key)}
    owed: dict[int, set[str]] = {}
    seen: set[tuple[int, str, str]] = set()
    for effect in view.effects(workflow, key):
        names = owed.setdefault(effect.sequence, set())
        one = (effect.sequence, effect.name, effect.inputs if effect.name in rules.several else "")
        if one in seen:
            yield f"transition {effect.sequence} owes {effect.name} twice"
        seen.add(one)
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
    """Counted by kind first, in one pass over each table; only a kind that does not come out even is looked into.

    Of the transitions of each step, the numbers of their rows are added up: as they stand in the history, and as
    the effects of each name refer to them. Where every transition has its effect, the sums are the same.
    """
    for name, rules in view.rules.items():
        queries = []
        owed: dict[tuple[Step, str], tuple[int, int]] = {}
        for trigger, origin, to, effect, causeless, count, total in view.each(_by_kind(view, rules)):
            step = (trigger, origin, to)
            if causeless:
                queries.append(_causeless(view, rules))
            elif effect not in rules.may_owe.get(step, frozenset()):
                queries.append(_owed_by(view, rules, step, effect))
            owed[step, effect] = (count, total)
        for trigger, origin, to, count, total in view.each(_by_step(view, rules)):
            step = (trigger, origin, to)
            for effect in sorted(rules.owed.get(step, ())):
                if owed.get((step, effect)) != (count, total):
                    queries += [_lacking(view, rules, step, effect), _doubled(view, rules, step, effect)]
        yield from ((name, row[0]) for query in queries for row in view.rows(query))


def _by_step(view: View, rules: Rules) -> Any:
    """How often each step that owes something was taken, and the sum of the rows' numbers."""
    table = view.engine.tables.transitions
    columns = (table.trigger, table.from_state, table.to_state)
    owing = table.trigger.in_(sorted({step[0] for step in rules.owed}))
    mine = view.of(rules.flow.name, table.workflow) & (table.fingerprint == rules.flow.fingerprint)
    return table.select(*columns, fn.COUNT(table.id), fn.SUM(table.id)).where(mine & owing).group_by(*columns)


def _by_kind(view: View, rules: Rules) -> Any:
    """How often each step owed each effect, and the sum of the numbers of the transitions that did."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    columns = (table.trigger, table.from_state, table.to_state, effects.name)
    causeless = Case(None, [(_has_no_cause(effects, table), 1)], 0).alias("causeless")
    ours = table.id.is_null() | (table.fingerprint == rules.flow.fingerprint)
    query = _with_cause(view, rules).select(*columns, causeless, fn.COUNT(effects.id), fn.SUM(table.id))
    # By its name: an expression with parameters in it is another one each time to PostgreSQL.
    return query.where(_mine(view, rules) & ours).group_by(*columns, SQL("causeless"))


def _causeless(view: View, rules: Rules) -> Any:
    """Subjects with effects that no transition owed."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    return _with_cause(view, rules).where(_mine(view, rules) & _has_no_cause(effects, table))


def _owed_by(view: View, rules: Rules, step: Step, name: str) -> Any:
    """Subjects of which such a step owed this effect."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    ours = (effects.name == name) & (table.fingerprint == rules.flow.fingerprint)
    return _with_cause(view, rules).where(_mine(view, rules) & ours & _is_step(table, step))


def _doubled(view: View, rules: Rules, step: Step, name: str) -> Any:
    """Subjects of which such a step owed this effect twice."""
    effects = view.engine.tables.effects
    twice = _owed_by(view, rules, step, name).group_by(effects.subject_id, effects.sequence)
    return twice.having(fn.COUNT(effects.id) > 1)


def _lacking(view: View, rules: Rules, step: Step, name: str) -> Any:
    """Subjects of which such a step lacks this effect."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    its = (effects.workflow == rules.flow.name) & (effects.subject_id == table.subject_id)
    its &= (effects.sequence == table.sequence) & (effects.name == name)
    ours = view.of(rules.flow.name, table.workflow) & (table.fingerprint == rules.flow.fingerprint)
    query = table.select(table.subject_id).left_outer_join(effects, on=its)
    return query.where(ours & _is_step(table, step) & effects.id.is_null())


def _with_cause(view: View, rules: Rules) -> Any:
    """Effects, each with the transition that owed it."""
    effects, table = view.engine.tables.effects, view.engine.tables.transitions
    its = (table.workflow == rules.flow.name) & (table.subject_id == effects.subject_id)
    return effects.select(effects.subject_id).left_outer_join(table, on=its & (table.sequence == effects.sequence))


def _mine(view: View, rules: Rules) -> Any:
    return view.of(rules.flow.name, view.engine.tables.effects.workflow)


def _has_no_cause(effects: Any, table: Any) -> Any:
    return table.id.is_null() | (effects.visit > effects.sequence) | (effects.visit < 1)


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
