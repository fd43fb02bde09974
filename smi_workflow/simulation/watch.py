"""Owns what is checked after each step of a simulation. Called by simulation.py.

The invariants are the doctor's own. What only somebody who sees every step can tell is added here: who settled
with which lease, what was open while a provider was called, and whether the attempt was on record by then.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from smi_workflow.engine.database import Slot
from smi_workflow.engine.invariants import Invariants, Violation
from smi_workflow.engine.outbox import Lease
from smi_workflow.engine.tables import EffectState
from smi_workflow.simulation.scenario import Release
from smi_workflow.simulation.stage import Agent, Stage, Violated

EVERYWHERE_STEPS = 1000
_SETTLED = (EffectState.DONE.value, EffectState.FAILED.value, EffectState.SKIPPED.value)


class Watch:
    """Looks at whatever a step has touched."""

    def __init__(self, stage: Stage, releases: Mapping[str, Release], invariants: Invariants) -> None:
        self._stage = stage
        self._releases = list(releases.values())
        self._invariants = invariants
        self._engine = self._releases[0].engine
        self._last_transition = 0
        self._changes = 0
        self._tokens: dict[str, str] = {}
        self._settled: set[str] = set()
        self.checked = 0
        stage.check_call = self.check_call
        stage.on_lease = self._note_lease

    def after(self, agent: Agent | None) -> None:
        """Check whatever the last step may have changed.

        Raises:
            Violated: something is wrong.
        """
        changes = sum(_connection(release).total_changes for release in self._releases)
        if changes != self._changes:
            self._changes = changes
            self._check_touched(agent)
        if self._stage.steps % EVERYWHERE_STEPS == 0:
            self.everywhere()

    def everywhere(self) -> None:
        """Check all there is."""
        for violation in self._invariants.everywhere():
            raise _violated(violation)

    def check_call(self, name: str) -> None:
        """Called by the simulated providers whenever one is called."""
        for release in self._releases:
            if _connection(release).in_transaction:
                raise Violated("no transaction is open while a provider is called", f"{name} was called in one")
        agent = self._stage.agent()
        if agent.lease is not None:
            row = self._read(agent.lease.effect_id)
            # Whoever has lost the lease meanwhile may find the attempts of others, or none.
            if row is None or (row[2] == agent.lease.token and row[1] < 1):
                raise Violated(
                    "the attempt is on record before the call", f"{name} was called without", agent.subject
                )

    def _check_touched(self, agent: Agent | None) -> None:
        touched: dict[tuple[str, str], None] = {}
        for number, workflow, key in self._new_transitions():
            self._last_transition = max(self._last_transition, number)
            touched[(workflow, key)] = None
        if agent is not None:
            if agent.effect is not None:
                self._watch_effect(agent, agent.effect)
            if agent.subject is not None:
                touched[agent.subject] = None
        for workflow, key in touched:
            self.checked += 1
            for violation in self._invariants.of_subject(workflow, key):
                raise _violated(violation)

    def _watch_effect(self, agent: Agent, effect_id: str) -> None:
        row = self._read(effect_id)
        if row is None:
            return
        state, _, token, visit, survives, workflow, key = row
        agent.subject = (workflow, key)
        if state == EffectState.CLAIMED.value and token != self._tokens.get(effect_id):
            self._tokens[effect_id] = token
            subject = self._engine.read(workflow, key)
            if subject.visit != visit and not survives:
                text = f"effect {effect_id} was claimed for visit {visit}, and it is {subject.visit}"
                raise Violated("an effect whose visit is over is skipped", text, agent.subject)
        if state in _SETTLED and effect_id not in self._settled:
            self._settled.add(effect_id)
            lease = agent.lease
            if lease is not None and lease.effect_id == effect_id and self._tokens.get(effect_id) != lease.token:
                text = f"effect {effect_id} was settled by a worker whose lease had gone to another"
                raise Violated("a worker that comes back late cannot settle", text, agent.subject)

    def _note_lease(self, lease: Lease) -> None:
        """A claim that was made by somebody who had no message for it: a buyer who waits."""
        row = self._read(lease.effect_id)
        if row is not None and row[0] == EffectState.CLAIMED.value:
            self._tokens[lease.effect_id] = row[2]

    def _read(self, effect_id: str) -> Any:
        table = self._engine.tables.effects
        columns = (
            table.state, table.attempts, table.lease_token, table.visit, table.survives, table.workflow,
            table.subject_id,
        )  # fmt: skip

        def build() -> Any:
            return table.select(*columns).where(table.id == Slot("id"))

        return self._engine.registry.statement("watched effect", build).run({"id": effect_id}).fetchone()

    def _new_transitions(self) -> Any:
        table = self._engine.tables.transitions

        def build() -> Any:
            return table.select(table.id, table.workflow, table.subject_id).where(table.id > Slot("last"))

        last = {"last": self._last_transition}
        return self._engine.registry.statement("watched transitions", build).run(last).fetchall()


class Alarm(logging.Handler):
    """Takes every fault that the engine only logs for a violation: a simulation has no night to sleep through."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR and record.exc_info:
            raise Violated("no fault of our own", f"{record.getMessage()}: {record.exc_info[1]!r}")


def _violated(violation: Violation) -> Violated:
    subject = None
    if violation.workflow is not None and violation.subject_id is not None:
        subject = (violation.workflow, violation.subject_id)
    return Violated(violation.invariant, violation.text, subject)


def _connection(release: Release) -> Any:
    return release.database.connection()  # type: ignore[no-untyped-call]
