"""Owns the run of one effect: claim, call its handler, settle. Called by workers/ and by whoever runs one inline.

Claim and settle are one commit each; the handler runs between them, outside any transaction. Dying on any
line leaves either a due row or a lease that lapses, and the next claim takes it from there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import peewee

from smi_workflow.engine.attempt import Again, Attempt, Done, Handler, Outcome, Skip
from smi_workflow.engine.clock import Clock
from smi_workflow.engine.declaration import Effect
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.leases import LeaseKeeper
from smi_workflow.engine.outbox import Lease
from smi_workflow.engine.points import Point, reach
from smi_workflow.engine.tables import EffectRow, EffectState
from smi_workflow.engine.unit import Unit, to_json
from smi_workflow.errors import (
    ConfigError,
    EngineError,
    GuardRefused,
    ServiceRefused,
    ServiceUnavailable,
    StaleLease,
    TransitionConflict,
    TransitionNotAllowed,
    UnknownState,
    UnknownSubject,
)

log = logging.getLogger(__name__)

# How long what only another release knows is left alone.
OTHER_RELEASE_RETRY = timedelta(seconds=30)
RETRY_AFTER_MAX_SECONDS = 86_400.0
# Passes by itself: nothing was written, the lease lapses, and the next claim does it all again.
_PASSING = (StaleLease, TransitionConflict, peewee.OperationalError, peewee.InterfaceError)


class Performed(StrEnum):
    """What became of a ring at the door."""

    NOTHING = "nothing to do"
    DONE = "done"
    AGAIN = "again later"
    RETRY = "to be retried"
    FAILED = "failed"
    SKIPPED = "skipped"
    LATE = "came back too late"


class Performer:
    """Runs effects by id.

    Args:
        handlers: one for each effect that any workflow may owe.
    Raises:
        ConfigError: an effect without a handler, or a handler that no workflow knows.
    """

    def __init__(self, engine: Engine, handlers: Mapping[str, Handler], keeper: LeaseKeeper) -> None:
        self._engine = engine
        self._handlers = handlers
        self._keeper = keeper
        self._effects: dict[str, Effect] = {}
        for flow in engine.workflows.values():
            self._effects |= flow.effects()
        problems = [f"effect {name} has no handler" for name in self._effects if name not in handlers]
        problems += [f"handler {name} belongs to no effect" for name in handlers if name not in self._effects]
        if problems:
            raise ConfigError("effects and handlers do not match:", problems)

    def perform(self, effect_id: str) -> Performed:
        """Claim and run one effect, and settle it. Safe to call any number of times, from anywhere.

        Only errors of the database come out of here; what goes wrong in a handler ends in the effect's row.
        """
        claimed = self._claim(effect_id)
        if isinstance(claimed, Performed):
            return claimed
        row, attempt = claimed
        reach(Point.CLAIMED)
        lease = Lease(effect_id, str(row.lease_token))
        try:
            return self._run(row, attempt, lease)
        except StaleLease:
            log.warning("effect %s (%s): came back after its lease had lapsed", effect_id, row.name)
            self._engine.audit(
                actor="system", act="late_result", target=f"effect:{effect_id}", attempt=attempt.number
            )
            return Performed.LATE

    # -- claim ------------------------------------------------------------------------------------------------

    def _claim(self, effect_id: str) -> tuple[EffectRow, Attempt] | Performed:
        engine = self._engine

        def work(unit: Unit) -> tuple[EffectRow, Attempt] | Performed:
            token = engine.chance.token()
            row = engine.outbox.claim(effect_id, token, unit.now, engine.lease)
            if row is None:
                return Performed.NOTHING
            lease = Lease(effect_id, token)
            if row.name not in self._handlers or row.workflow not in engine.workflows:
                return self._unclaim(row, lease, unit.now, f"this release has no handler for {row.name}")
            flow = unit.registry.workflow(row.workflow)
            subject = unit.registry.read(flow, row.subject_id)
            if subject is None or (row.visit != subject.visit and not row.survives):
                self._settle(lease, EffectState.SKIPPED, unit.now, note="the visit it was owed to is over")
                return Performed.SKIPPED
            state = str(getattr(subject, flow.state_column))
            if not flow.knows(state):
                return self._unclaim(row, lease, unit.now, f"this release does not know the state {state}")
            return row, _attempt(row, subject, engine.clock)

        return engine.run(work)

    def _unclaim(self, row: EffectRow, lease: Lease, now: datetime, why: str) -> Performed:
        """Another release owed it, or moved its subject: leave it to a worker of that one, as it was."""
        # Nothing was called: neither an attempt, nor a doubt, nor the first use of its key.
        untouched = {"first_attempt_at": None} if row.first_attempt_at == now else {}
        self._engine.outbox.put_back(
            lease, now + OTHER_RELEASE_RETRY, attempts=row.attempts - 1, doubts=row.doubts - 1,
            last_error=why, **untouched,
        )  # fmt: skip
        return Performed.NOTHING

    # -- run --------------------------------------------------------------------------------------------------

    def _run(self, row: EffectRow, attempt: Attempt, lease: Lease) -> Performed:
        if attempt.number > row.attempts_max:
            # Every attempt is used up and the last one never reported: find out, then give up.
            return self._give_up(row, attempt, lease, "no attempt reported an outcome", "unknown_outcome")
        try:
            with self._keeper.keeping(lease):
                outcome = self._handlers[row.name].run(attempt)
                assert outcome is not None, "its handler returned nothing"
                reach(Point.HANDLED)
        except ServiceRefused as refusal:
            return self._after_refusal(row, attempt, lease, refusal)
        except ServiceUnavailable as trouble:
            return self._retry(
                row, attempt, lease, str(trouble), code=trouble.code, known=not trouble.outcome_unknown,
                wait_seconds=trouble.retry_after_seconds or 0.0,
            )  # fmt: skip
        except Exception as fault:
            log.exception("effect %s (%s) of %s failed", row.id, row.name, row.subject_id)
            return self._retry(
                row, attempt, lease, f"{type(fault).__name__}: {fault}", code="internal_error", known=False
            )
        except BaseException:
            # The worker is told to stop, or ran out of time: hand it to the next one, doubts and all.
            with suppress(EngineError, peewee.PeeweeException):
                self._put_back(row, lease, self._engine.clock.now(), "the worker was stopped")
            raise
        return self._conclude(row, attempt, lease, outcome)

    def _conclude(self, row: EffectRow, attempt: Attempt, lease: Lease, outcome: Outcome) -> Performed:
        if isinstance(outcome, Again):
            return self._again(row, lease, outcome)
        if isinstance(outcome, Skip):
            return self._skip(lease, outcome)

        def work(unit: Unit) -> Performed:
            if outcome.trigger is not None and _is_over(unit, row):
                note = "done after its visit was over"
                self._must(self._settle(lease, EffectState.SKIPPED, unit.now, note=note, outcome=outcome), lease)
                return Performed.SKIPPED
            self._must(self._settle(lease, EffectState.DONE, unit.now, note=outcome.note, outcome=outcome), lease)
            if outcome.trigger is not None:
                unit.fire(
                    row.workflow, row.subject_id, outcome.trigger,
                    actor=outcome.actor, reason=outcome.reason, facts=outcome.facts,
                )  # fmt: skip
            return Performed.DONE

        try:
            return self._engine.run(work, cause=f"effect:{row.id}")
        except _PASSING:
            raise
        except UnknownState as unknown:
            return self._leave(row, lease, unknown)
        except (GuardRefused, TransitionNotAllowed) as refusal:
            if outcome.on_refusal == "fail":
                return self._fail(row, lease, str(refusal), getattr(refusal, "guard", "not_allowed"))
            note = f"refused: {refusal}"
            return self._alone(lambda unit: self._settle(lease, EffectState.DONE, unit.now, note=note), lease)
        except Exception as fault:
            log.exception("effect %s (%s): '%s' cannot be fired", row.id, row.name, outcome.trigger)
            return self._fail(row, lease, f"{type(fault).__name__}: {fault}", "internal_error")

    def _again(self, row: EffectRow, lease: Lease, outcome: Again) -> Performed:
        def work(unit: Unit) -> Performed:
            if outcome.trigger is not None and _is_over(unit, row):
                self._must(self._settle(lease, EffectState.SKIPPED, unit.now, note="its visit was over"), lease)
                return Performed.SKIPPED
            put = self._engine.outbox.put_back(
                lease, unit.now + outcome.after, attempts=0, doubts=0, waits=row.waits + 1, last_error=outcome.note
            )
            self._must(put, lease)
            if outcome.trigger is not None:
                unit.fire(
                    row.workflow, row.subject_id, outcome.trigger,
                    actor="system", reason=outcome.reason, facts=outcome.facts,
                )  # fmt: skip
            return Performed.AGAIN

        try:
            return self._engine.run(work, cause=f"effect:{row.id}")
        except _PASSING:
            raise
        except UnknownState as unknown:
            return self._leave(row, lease, unknown)
        except Exception as refusal:
            if outcome.trigger is None:
                raise
            # Only waiting was asked for; news that does not fit must not keep it from that.
            log.warning("effect %s (%s): %s", row.id, row.name, refusal, exc_info=True)
            return self._again(row, lease, replace(outcome, trigger=None))

    def _skip(self, lease: Lease, outcome: Skip) -> Performed:
        self._alone(
            lambda unit: self._settle(lease, EffectState.SKIPPED, unit.now, note=outcome.note), lease
        )
        return Performed.SKIPPED

    # -- what went wrong ----------------------------------------------------------------------------------------

    def _after_refusal(self, row: EffectRow, attempt: Attempt, lease: Lease, refusal: ServiceRefused) -> Performed:
        code = refusal.code or "refused"
        if attempt.doubts:
            return self._give_up(row, attempt, lease, str(refusal), code)
        return self._fail(row, lease, str(refusal), code)

    def _retry(
        self, row: EffectRow, attempt: Attempt, lease: Lease, error: str, *,
        code: str | None, known: bool, wait_seconds: float = 0.0,
    ) -> Performed:  # fmt: skip
        if attempt.number >= row.attempts_max:
            if attempt.doubts or not known:
                return self._give_up(row, attempt, lease, error, code or "unavailable")
            return self._fail(row, lease, error, code or "unavailable")
        effect = self._effects[row.name]
        delay = min(effect.retry_seconds_max, effect.retry_seconds * 2 ** (attempt.number - 1))
        delay = max(min(wait_seconds, RETRY_AFTER_MAX_SECONDS), delay * (0.5 + self._engine.chance.jitter()))
        due_at = self._engine.clock.now() + timedelta(seconds=delay)
        doubts = attempt.doubts if known else attempt.doubts + 1
        return self._put_back(row, lease, due_at, error, doubts=doubts)

    def _give_up(self, row: EffectRow, attempt: Attempt, lease: Lease, error: str, code: str) -> Performed:
        """Law 5: an unknown outcome is looked up before a failure trigger fires, for as long as it takes."""
        lookup = self._handlers[row.name].lookup
        if lookup is None:
            return self._fail(row, lease, error, code)
        try:
            with self._keeper.keeping(lease):
                found = lookup(attempt)
        except Exception as trouble:
            log.warning("effect %s (%s) cannot be looked up", row.id, row.name, exc_info=True)
            return self._give_up_later(row, lease, f"{error}; cannot be looked up: {trouble}")
        if found is None:
            return self._fail(row, lease, error, code)
        return self._conclude(row, attempt, lease, found)

    def _give_up_later(self, row: EffectRow, lease: Lease, error: str) -> Performed:
        due_at = self._engine.clock.now() + timedelta(seconds=self._effects[row.name].retry_seconds_max)
        # As many attempts as allowed: the next claim gives up again and does not call anew.
        return self._put_back(row, lease, due_at, error, attempts=max(row.attempts, row.attempts_max))

    def _leave(self, row: EffectRow, lease: Lease, unknown: UnknownState) -> Performed:
        """It is done, but what it causes happens in a state that another release knows: let that one do it again.

        No attempt is counted, however long both releases run; the doubt stays, so that it looks first.
        """
        due_at = self._engine.clock.now() + OTHER_RELEASE_RETRY
        return self._put_back(row, lease, due_at, str(unknown), attempts=row.attempts - 1)

    def _put_back(
        self, row: EffectRow, lease: Lease, due_at: datetime, error: str, **columns: object
    ) -> Performed:
        self._alone(lambda unit: self._engine.outbox.put_back(lease, due_at, last_error=error, **columns), lease)
        log.info("effect %s (%s) of %s: %s; again at %s", row.id, row.name, row.subject_id, error, due_at)
        return Performed.RETRY

    def _fail(self, row: EffectRow, lease: Lease, error: str, code: str) -> Performed:
        """Settle it as failed and fire its failure trigger, in one commit; record it if even that is refused."""
        effect = self._effects[row.name]
        log.warning("effect %s (%s) of %s failed for good: %s", row.id, row.name, row.subject_id, error)

        def work(unit: Unit) -> Performed:
            over = effect.failure is not None and _is_over(unit, row)
            state = EffectState.SKIPPED if over else EffectState.FAILED
            self._must(self._settle(lease, state, unit.now, error=error), lease)
            if effect.failure is not None and not over:
                unit.fire(
                    row.workflow, row.subject_id, effect.failure,
                    actor="system", reason=error,
                    facts={"code": code, "effect": row.name, "inputs": json.loads(row.inputs)},
                )  # fmt: skip
            return Performed.SKIPPED if over else Performed.FAILED

        try:
            return self._engine.run(work, cause=f"effect:{row.id}")
        except _PASSING:
            raise
        except UnknownState as unknown:
            return self._give_up_later(row, lease, f"{error}; and {unknown}")
        except (GuardRefused, TransitionNotAllowed, UnknownSubject) as refusal:
            text = f"{error}; and its failure trigger was refused: {refusal}"
            self._alone(lambda unit: self._settle(lease, EffectState.FAILED, unit.now, error=text), lease)
            return Performed.FAILED
        except Exception as fault:
            # A fault of ours: what failed must not be forgotten because its trigger is broken.
            log.exception("effect %s (%s): '%s' cannot be fired", row.id, row.name, effect.failure)
            return self._give_up_later(row, lease, f"{error}; and its failure trigger broke: {fault}")

    # -- small parts --------------------------------------------------------------------------------------------

    def _settle(
        self, lease: Lease, state: EffectState, now: datetime, *,
        note: str = "", error: str | None = None, outcome: Done | None = None,
    ) -> bool:  # fmt: skip
        kept: dict[str, object] = {"note": note} if note else {}
        if outcome is not None and outcome.trigger is not None:
            kept["trigger"] = outcome.trigger
        settled = self._engine.outbox.settle(lease, state, now, outcome=to_json(kept), error=error)
        reach(Point.EFFECT_SETTLED)
        return settled

    def _alone(self, write: Callable[[Unit], bool], lease: Lease) -> Performed:
        def work(unit: Unit) -> Performed:
            self._must(write(unit), lease)
            return Performed.DONE

        return self._engine.run(work)

    @staticmethod
    def _must(held: bool, lease: Lease) -> None:
        if not held:
            raise StaleLease(lease.effect_id)


def _is_over(unit: Unit, row: EffectRow) -> bool:
    """Law 9: whether the visit that it was owed to has ended, told under the subject's lock."""
    return bool(unit.lock(row.workflow, row.subject_id).visit != row.visit and not row.survives)


def _attempt(row: EffectRow, subject: Any, clock: Clock) -> Attempt:
    assert row.first_attempt_at is not None
    return Attempt(
        id=row.id, name=row.name, workflow=row.workflow, subject_id=row.subject_id, row=subject,
        inputs=json.loads(row.inputs), number=row.attempts, doubts=row.doubts - 1, waits=row.waits,
        owed_at=row.created_at, first_attempt_at=row.first_attempt_at, clock=clock,
    )  # fmt: skip
