"""Owns the invariants of the inbox, and of personal data in the engine's tables. Called by invariants.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from operator import add, or_
from typing import Any

from peewee import SQL, Case, NodeList, Value, fn

from smi_workflow.engine.checking import Invariant, Suspects, View, Violation, invariant
from smi_workflow.engine.database import Slot
from smi_workflow.engine.tables import EventState

RECEIVED, PARKED, APPLIED, IGNORED, NEEDS_PERSON = (item.value for item in EventState)
_STATES = tuple(item.value for item in EventState)
EVENT, EFFECT = "event:", "effect:"
# An address in a text, once the addresses of web pages are taken out: they may hold an @ of their own.
_ADDRESS = re.compile(r"[^\s@\"'<>(),;:\\/]+@[^\s@\"'<>(),;:\\/]+\.[^\W\d_]{2,}")
_PAGE = re.compile(r"https?://[^\s\"?#]*")


# -- causes -------------------------------------------------------------------------------------------------------


def has_causes(view: View, workflow: str, key: str) -> Iterator[str]:
    """The event or effect that a transition names as its cause is on record, and the event was used once."""
    history = view.history(workflow, key)
    # One commit may start a subject and move it on at once.
    moved = Counter(item.caused_by for item in history if item.caused_by and item.from_state)
    own = {item.id for item in view.effects(workflow, key)}
    for cause in dict.fromkeys(item.caused_by for item in history if item.caused_by):
        if cause.startswith(EVENT):
            event = view.event(cause.removeprefix(EVENT))
            if event is None or event.state != APPLIED:
                yield f"{cause} caused a transition, and is {event.state if event else 'not in the inbox'}"
            elif moved[cause] > 1:
                yield f"{cause} was applied {moved[cause]} times"
        elif cause.removeprefix(EFFECT) not in own and not _is_effect(view, cause.removeprefix(EFFECT)):
            yield f"{cause} caused a transition, and is not there"


def _is_effect(view: View, effect_id: str) -> bool:
    table = view.engine.tables.effects

    def build() -> Any:
        return table.select(table.id).where(table.id == Slot("id"))

    return bool(view.statement("effect", build, id=effect_id))


def _uncaused(view: View) -> Suspects:
    """Subjects that were moved by an event that is not applied, or by one that moved more of their kind."""
    table = view.engine.tables.transitions
    uneven = view.once("uneven events", lambda: _uneven(view))
    for name in view.rules:
        odd = [event_id for event_id, kind in uneven if kind == name]
        causes = [f"{EVENT}{event_id}" for event_id in odd]
        query = table.select(table.subject_id).where((table.workflow == name) & table.caused_by.in_(causes))
        if causes:
            yield from ((name, found[0]) for found in view.rows(query))


def _unapplied(view: View) -> Iterator[Violation]:
    """Events that were settled as applied, and moved nothing."""
    for event_id, kind in view.once("uneven events", lambda: _uneven(view)):
        if kind == "":
            yield Violation(CAUSES.name, None, None, f"event {event_id} is applied, and no transition names it")


def _uneven(view: View) -> list[tuple[str, str]]:
    """Each event of which inbox and history do not say the same, and the workflow that says more; "": the inbox.

    Both are put under each other and counted, in one pass.
    """
    table, events = view.engine.tables.transitions, view.engine.tables.events
    names = sorted(view.rules)
    applied = events.select(
        events.id.alias("event"),
        Value(1).alias("applied"),
        *(Value(0).alias(f"moved{n}") for n in range(len(names))),
    ).where(events.state == APPLIED)
    # One commit may start a subject and move it on at once.
    moves = [
        Case(None, [((table.workflow == name) & (table.from_state != ""), 1)], 0).alias(f"moved{n}")
        for n, name in enumerate(names)
    ]
    used = table.select(rest_of(table.caused_by, EVENT), Value(0), *moves).where(_begins(table.caused_by, EVENT))
    both = applied.union_all(used)
    sums = [fn.SUM(getattr(both.c, f"moved{n}")) for n in range(len(names))]
    count = fn.SUM(both.c.applied)
    odd = (count != 1) | (reduce(add, sums) == 0)
    for one in sums:
        odd |= one > 1
    query = both.select_from(both.c.event, count, *sums).group_by(both.c.event).having(odd)
    found = []
    for event_id, was_applied, *moved in view.rows(query):
        if was_applied and not any(moved):
            found.append((event_id, ""))
        found += [(event_id, name) for name, times in zip(names, moved, strict=True) if times > was_applied]
    return found


def _begins(column: Any, word: str) -> Any:
    return fn.SUBSTR(column, 1, len(word)) == word


def rest_of(column: Any, word: str) -> Any:
    """What follows the word that a column begins with."""
    return fn.SUBSTR(column, len(word) + 1)


CAUSES = invariant(
    "causes_on_record",
    "Every event that was applied caused a transition, once; every cause that history names is on record.",
    "An event that moved nothing can be sent again by its provider (Stripe: `stripe events resend`); compare the "
    "job with what the provider says before you move it.",
    has_causes,
    _uncaused,
    beside=_unapplied,
)


# -- the inbox ----------------------------------------------------------------------------------------------------


def counts_parked(view: View, workflow: str, key: str) -> Iterator[str]:
    """A subject knows how many events wait for it: otherwise it would not wake them."""
    row = view.row(workflow, key)
    parked = len(view.parked(workflow, key))
    if row is not None and row.parked_events != parked:
        yield f"{parked} events are parked at it, and it counts {row.parked_events}"


def _miscounted(view: View) -> Suspects:
    events = view.engine.tables.events
    for name, rules in view.rules.items():
        model = view.engine.bound(rules.flow.model)
        key = getattr(model, rules.flow.key)
        yield from ((name, found[0]) for found in view.rows(model.select(key).where(model.parked_events != 0)))
        parked = events.select(events.subject_id).where((events.state == PARKED) & (events.workflow == name))
        joined = parked.join(model, on=(key == events.subject_id)).where(model.parked_events == 0)
        yield from ((name, found[0]) for found in view.rows(joined))


def _half_settled(view: View) -> Iterator[Violation]:
    table = view.engine.tables.events
    open_ = table.state.in_((RECEIVED, PARKED))
    wrong = (
        (open_ & ~table.settled_at.is_null())
        | (~open_ & (table.settled_at.is_null() | table.reason.is_null()))
        | ((table.state == PARKED) & table.reason.is_null())
        | table.state.not_in(_STATES)
    )
    columns = (table.id, table.kind, table.provider, table.state)
    for event_id, kind, provider, state in view.rows(table.select(*columns).where(wrong)):
        text = (
            f"event {event_id} ({kind} of {provider}) is {state}, without a reason or a time, or with one too many"
        )
        yield Violation(EVENTS.name, None, None, text)


EVENTS = invariant(
    "events_accounted_for",
    "Every event is received, parked, applied, ignored or in need of a person, with the reason; a subject knows"
    " how many wait for it.",
    "A wrong count is mended by the event's next attempt, at the latest in an hour; else ask the provider to send "
    "the event again.",
    counts_parked,
    _miscounted,
    beside=_half_settled,
)


# -- personal data ------------------------------------------------------------------------------------------------


def keeps_no_address(view: View, workflow: str, key: str) -> Iterator[str]:
    """No e-mail address in what is kept for good, and in the queue."""
    for item in view.history(workflow, key):
        if shows_address(item.reason) or shows_address(item.metadata):
            yield f"transition {item.sequence} ('{item.trigger}') holds an e-mail address"
    for effect in view.effects(workflow, key):
        if shows_address(effect.inputs) or shows_address(effect.outcome) or shows_address(effect.last_error):
            yield f"effect {effect.name} ({effect.id}) holds an e-mail address"
    for item in view.history(workflow, key):
        if item.caused_by is not None and item.caused_by.startswith(EVENT):
            event = view.event(item.caused_by.removeprefix(EVENT))
            if event is not None and shows_address(event.payload):
                yield f"{item.caused_by} is settled, and still holds an e-mail address"


def shows_address(text: str | None) -> bool:
    """Whether something in it looks like an e-mail address."""
    return text is not None and "@" in text and _ADDRESS.search(_PAGE.sub("", text)) is not None


def _with_at(view: View) -> Suspects:
    history, effects = view.engine.tables.transitions, view.engine.tables.effects
    for table, columns in (
        (history, (history.reason, history.metadata)),
        (effects, (effects.inputs, effects.outcome, effects.last_error)),
    ):
        query = table.select(table.workflow, table.subject_id).where(contains("@", *columns))
        yield from ((workflow, key) for workflow, key in view.rows(query) if workflow in view.rules)


def _beside_subjects(view: View) -> Iterator[Violation]:
    audit, events = view.engine.tables.audit, view.engine.tables.events
    told = (audit.id, audit.act, audit.reason, audit.details)
    for number, act, reason, details in view.rows(
        audit.select(*told).where(contains("@", audit.reason, audit.details))
    ):
        if shows_address(reason) or shows_address(details):
            yield Violation(PERSONAL.name, None, None, f"audit row {number} ({act}) holds an e-mail address")
    settled = ~events.settled_at.is_null() & contains("@", events.payload)
    for (event_id,) in view.each(events.select(events.id).where(settled | contains("@", events.reason))):
        event = view.event(event_id)
        if event is not None and (shows_address(event.reason) or shows_address(event.payload)):
            yield Violation(PERSONAL.name, None, None, f"event {event_id} is settled, and holds an e-mail address")


def contains(text: str, *columns: Any) -> Any:
    """Whether one of these columns contains the text, which must have no letters of two cases."""
    return reduce(or_, (NodeList((column, SQL("LIKE"), f"%{text}%"), parens=True) for column in columns))


PERSONAL = invariant(
    "no_personal_data",
    "No e-mail address stands in history, queue or audit, which are kept for good, nor in a settled event.",
    "Find out who wrote it there, and tell them; overwrite that one text with `(redacted)` and say so in the audit"
    " table.",
    keeps_no_address,
    _with_at,
    beside=_beside_subjects,
)

EVENT_INVARIANTS: tuple[Invariant, ...] = (CAUSES, EVENTS, PERSONAL)
