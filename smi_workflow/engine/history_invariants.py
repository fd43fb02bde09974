"""Owns the invariants of history: gapless, legal, every transition's effects owed. Called by invariants.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any

from peewee import Case, fn

from smi_workflow.engine.checking import Invariant, Suspects, View, Violation, invariant
from smi_workflow.engine.rules import Rules, Step

# -- gapless ------------------------------------------------------------------------------------------------------


def is_gapless(view: View, workflow: str, key: str) -> Iterator[str]:
    """The rows are numbered 1 to the version, each begins where the last one ended, and so does the subject."""
    row, past = view.row(workflow, key), view.history(workflow, key)
    if row is None:
        if past:
            yield "its history is there, the row itself is gone"
        return
    if len(past) != row.version or (past and (past[0].sequence, past[-1].sequence) != (1, row.version)):
        yield f"it is at version {row.version}, its history has {_ranges([item.sequence for item in past])}"
        return
    for earlier, later in pairwise(past):
        if later.from_state != earlier.to_state:
            yield (
                f"transition {later.sequence} ('{later.trigger}') starts in {later.from_state or 'nothing'},"
                f" though {earlier.sequence} ended in {earlier.to_state}"
            )
    if past and past[-1].to_state != row.state:
        yield f"it is {row.state}, its last transition led to {past[-1].to_state}"
    yield from _wrong_visit(view.rules[workflow], row, past)


def _wrong_visit(rules: Rules, row: Any, past: list[Any]) -> Iterator[str]:
    """Its visit is named by the last transition that began one."""
    if not past:
        if row.visit != row.version:
            yield f"it is in visit {row.visit} without a history"
        return
    begun = 0
    for item in past:
        step = (item.trigger, item.from_state, item.to_state)
        ours = item.fingerprint == rules.flow.fingerprint
        if item.from_state != item.to_state or (ours and step in rules.enters and step not in rules.stays):
            begun = item.sequence
        elif item.sequence == row.visit and not (ours and step not in rules.enters):
            # Entered again: only the definition of that time knows whether it began a visit.
            begun = item.sequence
    if begun != row.visit:
        yield f"it is in visit {row.visit}, though transition {begun} began the last one"


def _ranges(numbers: list[int]) -> str:
    if not numbers:
        return "no transition"
    missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    lacks = f" without {', '.join(map(str, missing[:5]))}" if missing else ""
    return f"transitions {numbers[0]} to {numbers[-1]}{lacks}"


def _gaps(view: View) -> Suspects:
    for name, rules in view.rules.items():
        yield from ((name, found[0]) for found in view.rows(_incoherent(view, rules)))


def _incoherent(view: View, rules: Rules) -> Any:
    """Subjects that are not where their history, in one piece, has led them: one pass over both tables.

    That each transition starts where the one before ended is told by a sum: with a number for each state, what
    transition n led to, times n, is what transition n + 1 starts from, times n; only the last one is left over.
    """
    table, (model, key, state) = view.engine.tables.transitions, _columns(view, rules)
    number, ours = table.sequence, table.fingerprint == rules.flow.fingerprint
    led = fn.SUM(_numbered(table.to_state, rules) * number - _numbered(table.from_state, rules) * (number - 1))
    changed = table.from_state != table.to_state
    may_begin = ~ours | _again(table, rules.enters)
    begun = changed | (ours & _again(table, rules.enters - rules.stays)) | ((number == model.visit) & may_begin)
    return (
        model.select(key)
        .left_outer_join(table, on=_of(table, rules.flow.name, key))
        .group_by(model._meta.primary_key)
        .having(
            (fn.COUNT(number) != fn.MAX(model.version))
            | (fn.COALESCE(fn.MIN(number), 1) != 1)
            | (fn.COALESCE(fn.MAX(number), 0) != fn.MAX(model.version))
            | (fn.COALESCE(led, 0) != _numbered(fn.MAX(state), rules) * fn.MAX(model.version))
            | (fn.COALESCE(fn.MAX(Case(None, [(begun, number)], 0)), 0) != fn.MAX(model.visit))
        )
    )


def _numbered(column: Any, rules: Rules) -> Any:
    """A number for each state, so large that no two sums of them are the same by chance."""
    numbers = [
        (item.name, int.from_bytes(hashlib.sha256(item.name.encode()).digest()[:5])) for item in rules.flow.states
    ]
    return Case(column, numbers, 1)


def _again(table: Any, steps: Iterable[Step]) -> Any:
    """One of these steps, of those that lead from a state to itself."""
    origins: dict[str, list[str]] = {}
    for trigger, origin, to in sorted(steps):
        if origin == to:
            origins.setdefault(trigger, []).append(origin)
    same = [(table.trigger == trigger) & table.from_state.in_(states) for trigger, states in origins.items()]
    return (table.from_state == table.to_state) & reduce(or_, same, table.sequence < 0)


def _orphans(view: View) -> Iterator[Violation]:
    table = view.engine.tables.transitions
    for name, rules in view.rules.items():
        model, key, _ = _columns(view, rules)
        begun = table.select(fn.COUNT(table.id)).where((table.workflow == name) & (table.sequence == 1))
        if list(view.each(begun)) == list(view.each(model.select(fn.COUNT(key)).where(model.version > 0))):
            continue
        lost = (
            table.select(table.subject_id)
            .left_outer_join(model, on=(key == table.subject_id))
            .where((table.workflow == name) & (table.sequence == 1) & key.is_null())
        )
        for found in view.rows(lost):
            yield Violation(GAPLESS.name, name, found[0], "its history is there, the row itself is gone")


def _columns(view: View, rules: Rules) -> tuple[Any, Any, Any]:
    """The subjects' table, its key, its state."""
    model = view.engine.bound(rules.flow.model)
    return model, getattr(model, rules.flow.key), getattr(model, rules.flow.state_column)


def _of(table: Any, workflow: str, key: Any) -> Any:
    return (table.workflow == workflow) & (table.subject_id == key)


GAPLESS = invariant(
    "history_gapless",
    "A subject's history has every number from 1 to its version, each transition starts where the one before "
    "ended, and the row is in the state and the visit that the last one led to.",
    "Somebody wrote past the machine: restore these rows from a backup; then `smi fire JOB override` if the state "
    "is wrong, so that it stands in the history.",
    is_gapless,
    _gaps,
    beside=_orphans,
)

# -- legal --------------------------------------------------------------------------------------------------------


def is_legal(view: View, workflow: str, key: str) -> Iterator[str]:
    """Each step under the present definition's fingerprint is one that this definition allows."""
    rules = view.rules[workflow]
    for item in view.history(workflow, key):
        if item.fingerprint != rules.flow.fingerprint:
            continue
        if (item.trigger, item.from_state, item.to_state) not in rules.steps:
            origin = item.from_state or "nothing"
            yield f"transition {item.sequence}: '{item.trigger}' does not lead from {origin} to {item.to_state}"


def _illegal(view: View) -> Suspects:
    for rules, step in _steps_taken(view):
        if step not in rules.steps:
            yield from _takers(view, rules, step)


def _steps_taken(view: View) -> Iterator[tuple[Rules, Step]]:
    """Each step of which the present definition's history has one or more."""
    table = view.engine.tables.transitions
    for name, rules in view.rules.items():
        ours = view.of(name, table.workflow) & (table.fingerprint == rules.flow.fingerprint)
        taken = table.select(table.trigger, table.from_state, table.to_state).where(ours).distinct()
        for trigger, origin, to in view.each(taken):
            yield rules, (trigger, origin, to)


def _takers(view: View, rules: Rules, step: Step) -> Suspects:
    table = view.engine.tables.transitions
    same = (table.trigger == step[0]) & (table.from_state == step[1]) & (table.to_state == step[2])
    ours = (table.workflow == rules.flow.name) & (table.fingerprint == rules.flow.fingerprint)
    yield from (
        (rules.flow.name, found[0]) for found in view.rows(table.select(table.subject_id).where(ours & same))
    )


LEGAL = invariant(
    "history_legal",
    "Every transition under the present definition is one that this definition allows.",
    "Somebody wrote history by hand: find out who (`smi jobs show JOB`), restore it from a backup.",
    is_legal,
    _illegal,
)
HISTORY_INVARIANTS: tuple[Invariant, ...] = (GAPLESS, LEGAL)
