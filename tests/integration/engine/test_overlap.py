"""A deploy that overlaps: workers of two releases over one database, the later with a state and an effect more.

Nothing is lost, nothing fails for it, no attempt is used up: what a release does not know it leaves to the other.
Called by pytest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from smi_workflow.engine.attempt import Again, Attempt, Done
from smi_workflow.engine.inbox import Fire
from smi_workflow.engine.relay import Relay
from smi_workflow.engine.tables import EffectRow, EventRow
from smi_workflow.errors import ServiceRefused, UnknownState
from tests.support.engines import Bench, Opener
from tests.support.loans import FINE
from tests.support.releases import EARLIER, LATER


@dataclass
class Deploy:
    """The earlier and the later release at work on one database, by one clock."""

    old: Bench
    new: Bench

    def torn(self) -> None:
        """A loan that the later release has put where the earlier one knows nothing."""
        self.new.lent()
        self.new.fire("tear")

    def untouched(self, before: EffectRow) -> None:
        """Assert that an effect is as it was, but for the time at which it is due and for why."""
        after = self.new.engine.tables.effects.get_by_id(before.id)
        names = ("state", "attempts", "doubts", "waits", "first_attempt_at", "lease_token", "settled_at", "inputs")
        assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
        assert after.due_at == self.new.clock.now() + timedelta(seconds=30)
        assert "this release" in (after.last_error or "")

    def wait(self, **parts: float) -> None:
        """Let time go by for both."""
        self.old.clock.advance(**parts)
        self.new.clock.time = self.old.clock.time


@pytest.fixture
def deploy(database_url: str, opened: Opener) -> Deploy:
    new = opened(database_url, chance_prefix="n", workflows=(LATER, FINE))
    old = opened(database_url, create=False, chance_prefix="o", workflows=(EARLIER, FINE))
    return Deploy(old, new)


def never(attempt: Attempt) -> Done:
    raise AssertionError(f"{attempt.name} was run by a release that knows too little")


def on_post(otherwise: str) -> Callable[[EventRow], Fire]:
    def read(row: EventRow) -> Fire:
        trigger = json.loads(row.payload)["trigger"]
        return Fire("loan", "l1", trigger, "reader", otherwise=otherwise)  # type: ignore[arg-type]

    return read


# -- effects ---------------------------------------------------------------------------------------------------


def test_an_effect_that_only_the_later_release_knows_is_left_to_it(deploy: Deploy) -> None:
    deploy.torn()
    owed = deploy.new.effect("mend")
    for _ in range(5):
        assert deploy.old.performer().perform(owed.id) == "nothing to do"
        deploy.untouched(owed)
        deploy.wait(seconds=30)
    attempts: list[Attempt] = []

    def mend(attempt: Attempt) -> Done:
        attempts.append(attempt)
        return Done("mended")

    assert deploy.new.performer(mend=mend).perform(owed.id) == "done"
    assert [(one.number, one.doubts, one.first_attempt_at) for one in attempts] == [(1, 0, deploy.new.clock.now())]
    assert deploy.old.loan().state == "lent"


def test_a_doubtful_attempt_of_the_later_release_is_kept_by_the_earlier(deploy: Deploy) -> None:
    deploy.torn()
    owed = deploy.new.effect("mend")

    def die(attempt: Attempt) -> Done:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy.new.performer(mend=die).perform(owed.id)
    deploy.wait(seconds=31)
    doubtful = deploy.new.effect("mend")
    assert (doubtful.attempts, doubtful.doubts) == (1, 1)
    assert deploy.old.performer().perform(owed.id) == "nothing to do"
    deploy.untouched(doubtful)


def test_a_known_effect_of_an_unknown_state_is_left_to_the_later_release(deploy: Deploy) -> None:
    deploy.torn()
    deploy.wait(days=4)
    owed = deploy.new.effect("remind")
    assert owed.visit == deploy.new.loan().visit
    assert deploy.old.performer(remind=never).perform(owed.id) == "nothing to do"
    deploy.untouched(owed)
    deploy.wait(seconds=30)
    assert deploy.new.performer(remind=lambda attempt: Done("lose")).perform(owed.id) == "done"
    assert deploy.old.loan().state == "lost"


def test_an_effect_that_survived_into_an_unknown_state_is_left_to_the_later_release(deploy: Deploy) -> None:
    deploy.new.lent()
    deploy.new.fire("praise")
    deploy.new.fire("tear")
    owed = deploy.new.effect("praise")
    assert deploy.old.performer(praise=never).perform(owed.id) == "nothing to do"
    deploy.untouched(owed)
    deploy.wait(seconds=30)
    assert deploy.new.performer().perform(owed.id) == "done"


@pytest.mark.parametrize(
    "outcome",
    [Done("waive"), Done("waive", on_refusal="skip"), Again(timedelta(hours=1), trigger="waive")],
    ids=["done", "done or skip", "again"],
)
def test_what_an_earlier_worker_did_while_the_subject_moved_on_is_done_again(deploy: Deploy, outcome: Any) -> None:
    deploy.new.lent()
    deploy.new.fire("praise")
    owed = deploy.new.effect("praise")

    def praise(attempt: Attempt) -> Any:
        deploy.new.fire("tear")
        return outcome

    assert deploy.old.performer(praise=praise).perform(owed.id) == "to be retried"
    left = deploy.new.effect("praise")
    assert (left.state, left.attempts, left.doubts) == ("due", 0, 1)
    assert "loan l1 is in_repair, a state that this release does not know" in (left.last_error or "")
    deploy.wait(seconds=30)
    attempts: list[Attempt] = []

    def again(attempt: Attempt) -> Done:
        attempts.append(attempt)
        return Done("waive")

    assert deploy.new.performer(praise=again).perform(owed.id) == "done"
    assert [(one.number, one.doubts) for one in attempts] == [(1, 1)]
    assert deploy.new.history()[-1] == ("waive", "in_repair", "in_repair")


def test_a_failure_that_cannot_be_told_here_is_told_by_the_later_release(deploy: Deploy) -> None:
    deploy.new.lent()
    deploy.new.fire("praise")
    owed = deploy.new.effect("praise")

    def refused(attempt: Attempt) -> Done:
        deploy.new.fire("tear")
        raise ServiceRefused("post", "no such address")

    assert deploy.old.performer(praise=refused).perform(owed.id) == "to be retried"
    left = deploy.new.effect("praise")
    assert (left.state, left.settled_at) == ("due", None)
    deploy.wait(seconds=(left.due_at - deploy.old.clock.now()).total_seconds())
    assert deploy.new.performer(praise=never).perform(owed.id) == "failed"
    assert deploy.new.history()[-1] == ("waive", "in_repair", "in_repair")


def test_an_earlier_relay_rings_for_what_it_does_not_know(deploy: Deploy) -> None:
    deploy.torn()
    deploy.wait(seconds=2)
    Relay(deploy.old.engine, deploy.old.inbox(on_post("park")), timedelta(seconds=5)).sweep()
    assert "mend" in deploy.old.bells.names()


def test_a_queue_that_only_the_later_release_has_is_swept_by_its_relay(deploy: Deploy) -> None:
    deploy.torn()
    deploy.new.fire("scan")
    deploy.wait(seconds=2)
    for bench, rings in ((deploy.old, False), (deploy.new, True)):
        bench.bells.rung.clear()
        Relay(bench.engine, bench.inbox(on_post("park")), timedelta(seconds=5)).sweep()
        assert ("scan" in bench.bells.names()) is rings


# -- triggers and events ---------------------------------------------------------------------------------------


def test_an_earlier_release_refuses_to_move_what_it_does_not_know(deploy: Deploy) -> None:
    deploy.torn()
    before = deploy.new.dump()
    for trigger in ("give_back", "waive", "mended"):
        with pytest.raises(UnknownState, match="loan l1 is in_repair, a state that this release does not know"):
            deploy.old.fire(trigger)
    assert deploy.new.dump() == before
    assert deploy.old.engine.explain("loan", "l1") == []


def test_a_child_cannot_tell_a_parent_that_this_release_does_not_know(deploy: Deploy) -> None:
    deploy.new.lent()
    deploy.new.engine.start("fine", {"fine_id": "f1", "loan_id": "l1", "cents": 5}, actor="system")
    deploy.new.fire("tear")
    before = deploy.new.dump()
    with pytest.raises(UnknownState):
        deploy.old.engine.fire("fine", "f1", "pay", actor="system")
    assert deploy.new.dump() == before


@pytest.mark.parametrize("otherwise", ["park", "ignore"])
def test_an_event_that_an_earlier_worker_cannot_apply_waits_for_a_later_one(
    deploy: Deploy, otherwise: str
) -> None:
    deploy.torn()
    told = deploy.old.inbox(on_post(otherwise)).receive("post", "e1", "found", '{"trigger": "waive"}')
    assert deploy.old.inbox(on_post(otherwise)).handle(told.id) == "parked"
    waiting = deploy.new.event(told.id)
    assert (waiting.workflow, waiting.subject_id) == ("loan", "l1")
    assert "does not know" in (waiting.reason or "")
    assert deploy.new.inbox(on_post(otherwise)).handle(told.id) == "applied"
    assert deploy.new.history()[-1] == ("waive", "in_repair", "in_repair")
    assert deploy.new.loan().parked_events == 0


def test_an_event_that_waits_is_woken_when_the_later_release_moves_on(deploy: Deploy) -> None:
    deploy.torn()
    inbox = deploy.old.inbox(on_post("ignore"))
    told = inbox.receive("post", "e1", "found", '{"trigger": "give_back"}')
    assert inbox.handle(told.id) == "parked"
    deploy.new.fire("mended")
    assert [event.id for event in inbox.due(deploy.old.clock.now(), 10)] == [told.id]
    assert inbox.handle(told.id) == "applied"
    assert deploy.new.loan().state == "returned"


def test_an_event_of_a_provider_that_only_the_later_release_reads_waits_for_it(deploy: Deploy) -> None:
    deploy.torn()
    told = deploy.new.inbox(on_post("park")).receive("courier", "e1", "x", "{}")
    assert deploy.old.inbox(on_post("park")).handle(told.id) == "parked"


# -- there and back --------------------------------------------------------------------------------------------


def test_rolled_back_and_deployed_again_nothing_is_missing(deploy: Deploy) -> None:
    deploy.torn()
    told = deploy.old.inbox(on_post("ignore")).receive("post", "e1", "found", '{"trigger": "waive"}')
    # Days with the earlier release alone: it tries everything that is due, again and again.
    for _ in range(20):
        deploy.wait(hours=2)
        deploy.old.inbox(on_post("ignore")).handle(told.id)
        for due in deploy.new.engine.tables.effects.select().where(
            deploy.new.engine.tables.effects.state.in_(("due", "claimed"))
        ):
            deploy.old.performer(remind=never).perform(due.id)
    mend = deploy.new.effect("mend")
    assert (mend.state, mend.attempts, mend.doubts) == ("due", 0, 0)
    deploy.wait(hours=1)
    assert deploy.new.inbox(on_post("ignore")).handle(told.id) == "applied"
    assert deploy.new.performer(mend=lambda attempt: Done("mended")).perform(mend.id) == "done"
    assert deploy.old.loan().state == "lent"
    prints = {row.trigger: row.fingerprint for row in deploy.old.engine.history("loan", "l1")}
    assert set(prints.values()) == {LATER.fingerprint}
    deploy.old.fire("give_back")
    assert deploy.old.engine.history("loan", "l1")[-1].fingerprint == EARLIER.fingerprint != LATER.fingerprint
