"""Owns the engine's public face: fire, start, explain, history, and the commit they share.

Called by everyone above.

Example:
    engine.fire("job", job_id, "retry", actor="admin:jane", reason="the outage is over")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from peewee import Database, Model

from smi_workflow.engine.clock import Chance, Clock
from smi_workflow.engine.database import transaction
from smi_workflow.engine.declaration import Case, Facts, MissingFact, Move
from smi_workflow.engine.outbox import Outbox
from smi_workflow.engine.points import Point, reach
from smi_workflow.engine.registry import Registry
from smi_workflow.engine.tables import Tables, Transition
from smi_workflow.engine.unit import Applied, Bell, Unit, to_json
from smi_workflow.engine.workflow import Workflow, guard_name
from smi_workflow.errors import TransitionConflict, UnknownSubject

T = TypeVar("T")
M = TypeVar("M", bound=Model)
Ring = Callable[[str, str, str], object]
Listener = Callable[[Applied], None]

CONFLICT_ATTEMPTS = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Option:
    """What a trigger would do from the present state, and what stands in its way.

    `allowed` is False when a guard refuses already; with `needs`, the answer depends on facts not known here.
    """

    trigger: str
    to: str | None
    allowed: bool
    blocked_by: tuple[tuple[str, str], ...]
    needs: tuple[str, ...]
    by: str


class Engine:
    """Runs declared workflows over one database.

    Args:
        workflows: checked declarations.
        models: declared model → model bound to `database`, for every table that changes may write.
        policy: the settings that guards, changes and delays may read.
        ring: the doorbell: (message id, Dramatiq actor's name, queue). A hint; it must not raise.
    """

    def __init__(
        self,
        database: Database,
        tables: Tables,
        workflows: Sequence[Workflow],
        models: Mapping[type[Model], type[Model]],
        *,
        clock: Clock,
        chance: Chance,
        ring: Ring,
        lease: timedelta = timedelta(seconds=60),
        policy: object = None,
    ) -> None:
        self.database = database
        self.tables = tables
        self.clock = clock
        self.chance = chance
        self.lease = lease
        self.registry = Registry(database, tables, {flow.name: flow for flow in workflows}, models, chance, policy)
        self.outbox = Outbox(self.registry)
        self.listeners: list[Listener] = []
        self._ring = ring

    @property
    def workflows(self) -> Mapping[str, Workflow]:
        """The declared workflows, by name."""
        return self.registry.workflows

    def bound(self, model: type[M]) -> type[M]:
        """The declared model, bound to this engine's database."""
        return self.registry.bound(model)

    def run(
        self,
        work: Callable[[Unit], T],
        *,
        cause: str | None = None,
        dry: bool = False,
        of_one_statement: bool = False,
    ) -> T:
        """Do some work in one transaction; ring and announce once it is committed.

        Args:
            work: called with the open unit; called again from the start after a conflict.
            cause: written to each history row of this commit.
            dry: roll back at the end, and ring nothing.
            of_one_statement: `work` writes with one statement, which the database commits by itself.
        Raises:
            TransitionConflict: still in conflict after three attempts.
        """
        for attempt in range(1, CONFLICT_ATTEMPTS + 1):
            unit = Unit(self.registry, self.outbox, self.clock.now())
            unit.cause = cause
            try:
                with transaction(self.database, of_one_statement=of_one_statement):
                    result = work(unit)
                    if not of_one_statement:
                        reach(Point.WORK_DONE)
                    if dry:
                        raise _RolledBack
            except _RolledBack:
                return result
            except TransitionConflict:
                if attempt == CONFLICT_ATTEMPTS:
                    raise
                log.info("conflict, trying again (%d of %d)", attempt, CONFLICT_ATTEMPTS)
                continue
            reach(Point.COMMITTED)
            self._after_commit(unit)
            return result
        raise AssertionError("unreachable")

    def fire(
        self,
        workflow: str,
        key: str,
        trigger: str,
        *,
        actor: str,
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
        expected_state: str | None = None,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Applied:
        """Apply one trigger to one subject: guards, state, history, effects and timers in one commit.

        Args:
            facts: what was found out before; guards and changes see nothing else of the world.
            expected_state: refuse if the subject is in another one by now.
            idempotency_key: the same key for the same subject applies once; later calls return the first.
            dry_run: report what would happen, and change nothing.
        Raises:
            UnknownSubject, UnknownTrigger, TransitionNotAllowed, StaleState, GuardRefused: nothing was changed.
            TransitionConflict: someone held the row too long; try again.
        """

        def work(unit: Unit) -> Applied:
            return unit.fire(
                workflow, key, trigger, actor=actor, reason=reason, facts=facts,
                expected_state=expected_state, idempotency_key=idempotency_key,
            )  # fmt: skip

        return self.run(work, dry=dry_run)

    def start(self, workflow: str, columns: Mapping[str, object], *, actor: str, reason: str = "") -> Any:
        """Create a subject in its first state; returns its row."""
        return self.run(lambda unit: unit.start(workflow, columns, actor=actor, reason=reason))

    def read(self, workflow: str, key: str) -> Any:
        """The subject's row as it is now, without a lock.

        Raises:
            UnknownSubject: no such row.
        """
        row = self.registry.read(self.registry.workflow(workflow), key)
        if row is None:
            raise UnknownSubject(workflow, key)
        return row

    def explain(
        self, workflow: str, key: str, facts: Mapping[str, Any] | None = None, *, actor: str = "", reason: str = ""
    ) -> list[Option]:
        """What may happen to a subject next, and which guard blocks what and why.

        Args:
            actor, reason: who would fire it and why, for guards that ask; unset, nobody in particular.
        """
        flow = self.registry.workflow(workflow)
        row = self.read(workflow, key)
        state = str(getattr(row, flow.state_column))
        unit = Unit(self.registry, self.outbox, self.clock.now())
        options = []
        for trigger in flow.allowed(state):
            for move in flow.moves_from(state, trigger):
                case: Case[Any] = Case(
                    row=row, state=state, trigger=trigger, facts=Facts(facts), now=unit.now,
                    actor=actor, reason=reason, unit=unit, policy=self.registry.policy,
                )  # fmt: skip
                options.append(_weigh(move, case))
        return options

    def history(self, workflow: str, key: str) -> list[Transition]:
        """Every transition of a subject, oldest first."""
        table = self.tables.transitions
        query = table.select().where((table.workflow == workflow) & (table.subject_id == key))
        return list(query.order_by(table.sequence))

    def audit(self, *, actor: str, act: str, target: str, reason: str = "", **details: object) -> None:
        """Put on record what was done to the machinery itself, and not to a subject."""
        row = {"actor": actor, "act": act, "target": target, "reason": reason, "details": to_json(details)}
        with transaction(self.database):
            self.tables.audit.insert(**row, created_at=self.clock.now()).execute()

    def ring(self, bell: Bell) -> None:
        """Ring once; a broker that is away is no reason to fail what has been committed."""
        try:
            self._ring(bell.message_id, bell.actor_name, bell.queue)
        except Exception:
            log.exception("the bell for %s %s could not be rung; the sweep will", bell.actor_name, bell.message_id)

    def _after_commit(self, unit: Unit) -> None:
        for bell in unit.bells:
            self.ring(bell)
            reach(Point.BELL_RUNG)
        for applied in unit.applied:
            for listener in self.listeners:
                try:
                    listener(applied)
                except Exception:
                    log.exception("a listener failed on %s of %s", applied.trigger, applied.subject_id)


class _RolledBack(Exception):
    pass


def _weigh(move: Move, case: Case[Any]) -> Option:
    blocked: list[tuple[str, str]] = []
    needs: list[str] = []
    try:
        if move.when is not None and not move.when(case):
            blocked.append((guard_name(move.when), "does not apply now"))
    except MissingFact as missing:
        needs.append(missing.name)
    for guard in move.guards:
        try:
            refusal = guard(case)
        except MissingFact as missing:
            needs.append(missing.name)
            continue
        if refusal is not None:
            blocked.append((guard_name(guard), refusal))
    return Option(move.trigger, move.to, not blocked, tuple(blocked), tuple(dict.fromkeys(needs)), move.by)
