"""What a chaos run decides by its seed: buyers, faults, and acts of the monkey."""

from __future__ import annotations

import random
import signal
from typing import Any
from unittest.mock import MagicMock

import pytest

from smi_workflow.sandbox.faults import Channel, FaultBook
from tests.chaos.fleet import NAMES
from tests.chaos.monkey import WEIGHTS, Monkey
from tests.chaos.providers import FAULTS
from tests.chaos.shop import PLANS, plan_sale


def test_the_same_seed_plans_the_same_buyers() -> None:
    sales = [plan_sale(7, number, 10) for number in range(400)]
    assert sales == [plan_sale(7, number, 10) for number in range(400)]
    assert sales != [plan_sale(8, number, 10) for number in range(400)]
    assert {sale.plan for sale in sales} == set(PLANS)
    assert len({sale.colour[:2] for sale in sales}) == len({sale.email for sale in sales}) == 400


def test_the_sandbox_knows_every_fault_and_each_kind_of_misbehaviour_is_used() -> None:
    book = FaultBook(1)
    for _, match, fault, probability in FAULTS:
        book.add(match, fault, None, probability)
    channels = {Channel.REQUEST: "path", Channel.WEBHOOK: "webhook", Channel.RESULT: "result",
                Channel.REFUND: "refund", Channel.SMTP: "smtp"}  # fmt: skip
    for channel, key in channels.items():
        shares = [rule for rule in FAULTS if key in rule[1]]
        assert len({rule[2]["kind"] for rule in shares}) >= 3, channel


def test_about_one_in_ten_of_everything_goes_wrong() -> None:
    shares: dict[tuple[str, str], float] = {}
    for server, match, _, probability in FAULTS:
        what = (server, str(match.get("path") or match.get("webhook") or next(iter(match))))
        shares[what] = shares.get(what, 0.0) + probability
    whole = {what: share for what, share in shares.items() if what != ("stripe", "/v1/checkout/sessions")}
    # The two halves of a mail's way are one.
    whole[("mail_http", "smtp")] = whole.pop(("mail_http", "smtp"))
    assert {what for what, share in whole.items() if not 0.085 <= share <= 0.115} == set()


class Parts:
    """A monkey over servers and processes that only note what is done to them."""

    def __init__(self, act: str) -> None:
        self.fleet, self.broker, self.database = (MagicMock(name=name) for name in ("fleet", "broker", "database"))
        for name in ("kill", "kill_child", "terminate", "signal"):
            getattr(self.fleet, name).return_value = True
        self.fleet.age_seconds.return_value = 60.0
        self.broker.is_dead.return_value = self.database.is_dead.return_value = False
        self.monkey = Monkey(
            self.fleet, self.broker, self.database, random.Random(1), pause_seconds=1, lease_seconds=3
        )
        self.done = self.monkey._do(act)

    def calls(self) -> list[tuple[str, Any]]:
        """What was done, looks left out."""
        found = [
            (call[0], call[1]) for part in (self.fleet, self.broker, self.database) for call in part.mock_calls
        ]
        return [call for call in found if call[0] not in ("is_dead", "family", "age_seconds")]


@pytest.mark.parametrize("act", WEIGHTS)
def test_every_act_hurts_something_and_is_undone_in_the_end(act: str) -> None:
    parts = Parts(act)
    assert parts.done
    hurt = parts.calls()
    if "one backend" in act:
        assert parts.database.family.called
        return
    assert len(hurt) == 1
    name, arguments = hurt[0]
    if act.split(": ")[0] in ("worker", "relay", "web", "downloads"):
        assert arguments[0] in NAMES
    parts.monkey.rest()
    undone = [call for call in parts.calls()[1:] if call[0] in ("thaw", "start", "signal")]
    if name in ("freeze", "signal", "shut_down_at_once") or (name == "kill" and not arguments):
        assert len(undone) == 1
    else:
        # Processes that are killed come back by themselves: the fleet looks after them.
        assert undone == []


def test_a_frozen_worker_sleeps_past_its_leases() -> None:
    parts = Parts("worker: frozen past its leases")
    assert parts.calls()[0][1][1] is signal.SIGSTOP
    due = parts.monkey._later[0][0]
    parts.monkey.tick()
    assert parts.monkey._later[0][0] == due
    assert len(parts.calls()) == 1
