"""The model's small interpreter against the real engine: the same walk gives the same rows, history and effects.

Walks are random but seeded: triggers with facts that may or may not fit, and effects that come to every kind of
end. What is compared is everything but ids and times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any

import pytest
from peewee import Model

from smi_workflow.engine.attempt import Again, Done, Handler, Outcome
from smi_workflow.engine.database import bind, open_database
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.leases import LeaseKeeper
from smi_workflow.engine.perform import Performer
from smi_workflow.engine.tables import Tables
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import EngineError, InvalidInput, ServiceRefused, ServiceUnavailable
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.model import Dispute, Job, Payment, Refund
from smi_workflow.jobs.refunds import REFUND
from smi_workflow.simulation.model import START, Plan, Scenario, Scene
from smi_workflow.simulation.model_records import CLAIMED, KEPT, Applied, OpenEffect
from smi_workflow.simulation.model_shop import settings
from smi_workflow.simulation.model_steps import successors
from tests.support.desks import job_columns
from tests.support.engines import CountingChance, HandClock
from tests.support.loans import FINE, LOAN, Fine, Loan

STEPS = 25
End = Outcome | Exception
Facts = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What a walk is made of: subjects, the triggers to try with their facts, what effects may come to."""

    flows: tuple[Workflow, ...]
    models: tuple[type[Model], ...]
    columns: Facts
    tries: tuple[tuple[str, str, Facts], ...]
    ends: Callable[[str, Any], Sequence[End]]
    policy: object = None


@dataclass
class Script:
    """What the next attempt comes to, for both sides."""

    end: End = field(default_factory=Done)
    meanwhile: Callable[[], object] | None = None

    def run(self, *given: object) -> Outcome:
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            happens()
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


class Pair:
    """The engine on SQLite, and the model, walking together."""

    def __init__(self, world: World) -> None:
        self.world, self.clock, self.script = world, HandClock(START), Script()
        self.database = open_database("sqlite:///:memory:")
        self.tables = Tables.bound_to(self.database, "t_")
        self.models = {model: bind(model, self.database, "t_") for model in world.models}
        self.database.create_tables([*self.tables.all(), *self.models.values()])
        self.engine = Engine(
            self.database, self.tables, world.flows, self.models, clock=self.clock,
            chance=CountingChance("0" * 24), ring=lambda *rung: None, policy=world.policy,
        )  # fmt: skip
        effects = {name for flow in world.flows for name in flow.effects()}
        handlers = {name: Handler(self.script.run) for name in effects}
        self.performer = Performer(self.engine, handlers, LeaseKeeper(self.engine))
        first = world.flows[0].name
        self.scene = Scene(
            Plan(
                Scenario(
                    name="contract", workflows=world.flows, policy=world.policy,
                    begin=lambda scene: None, handlers=dict.fromkeys(effects, self.script.run), in_flight=1,
                    tables=tuple(model for model in world.models if model not in {f.model for f in world.flows}),
                )
            )
        )  # fmt: skip
        self.history: list[tuple[str, str, str, str]] = []
        self.engine.start(first, dict(world.columns), actor="buyer")
        self.scene.start(first, dict(world.columns), actor="buyer")
        self._remember()

    # -- steps --------------------------------------------------------------------------------------------------

    def fire(self, workflow: str, trigger: str, facts: Facts, actor: str) -> None:
        """Fire both; they apply it, or refuse it for the same reason."""
        keys = [str(key) for key in self.scene.rows(workflow)]
        if not keys:
            return
        place = len(keys) - 1
        real_key = self.real_keys(workflow)[place]
        answers = []
        made = self.scene.fork()
        for fire, key in ((self.engine.fire, real_key), (made.fire, keys[place])):
            try:
                fire(workflow, key, trigger, actor=actor, reason="a walk", facts=facts)
                answers.append("applied")
            except (EngineError, InvalidInput) as refusal:
                answers.append(type(refusal).__name__ + str(getattr(refusal, "guard", "")))
        assert answers[0] == answers[1], (trigger, answers)
        if answers[0] == "applied":
            self.scene = made
            self._remember()

    def wander(self, random: Random) -> None:
        """Run any open effect to any end; sometimes somebody fires between the call and its commit."""
        open_effects = [item for item in self.scene.effects if item.state != KEPT]
        if not open_effects:
            return
        chosen = random.choice(open_effects)
        end = random.choice(list(self.world.ends(chosen.effect.name, self.scene)))
        self.perform(chosen, end, random.choice(self.world.tries) if random.random() < 0.3 else None)

    def perform(self, chosen: OpenEffect, end: End, meanwhile: tuple[str, str, Facts] | None) -> None:
        """Run one open effect on both sides, to the same end."""
        real = self.real_effects()[self.scene.effects.index(chosen)]
        self.clock.time = max(self.clock.time, chosen.due_at, real.due_at) + timedelta(seconds=1)
        self.scene.now = self.clock.time
        self.script.end = end
        claimed = self._step(chosen.id, CLAIMED) if meanwhile is not None else None
        if claimed is not None and meanwhile is not None:
            self.scene = claimed
            self.script.meanwhile = partial(self.fire, *meanwhile, "stripe")
        self.performer.perform(real.id)
        found = self._step(chosen.id, None)
        if found is not None:
            self.scene = found
            self._remember()

    def _step(self, effect_id: str, state: str | None) -> Scene | None:
        """The model's step for this effect, when no attempt is the last: to its end, or into this state."""
        alone = self.scene.fork()
        alone.events = []
        # The others wait aside, so that exactly one effect can be run.
        alone.effects = [
            item if item.id == effect_id else item._replace(state=f"{item.state} aside") for item in alone.effects
        ]
        for found in successors(alone):
            if state is None or any(item.state == state for item in found.effects):
                found.effects = [item._replace(state=item.state.removesuffix(" aside")) for item in found.effects]
                return found
        return None

    # -- what both say --------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        done = [one for one in self.scene.log if isinstance(one, Applied)]
        self.history += [(one.workflow, one.trigger, one.from_state, one.to_state) for one in done]
        self.scene.log = []

    def real_keys(self, workflow: str) -> list[str]:
        """Subjects in the order they were made."""
        flow = self.engine.workflows[workflow]
        table: Any = self.models[flow.model]
        return [str(getattr(row, flow.key)) for row in table.select().order_by(table.id)]

    def real_effects(self) -> list[Any]:
        """What the engine owes, oldest first."""
        table = self.tables.effects
        return list(table.select().where(table.state.in_(("due", "claimed"))).order_by(table.id))

    def compare(self) -> None:
        """Everything but ids and times is the same."""
        names: dict[str, str] = {}
        for flow in self.world.flows:
            modelled = [str(key) for key in self.scene.rows(flow.name)]
            real = self.real_keys(flow.name)
            assert len(real) == len(modelled)
            names |= dict(zip(modelled, real, strict=True))
        for model in self.world.models:
            table: Any = self.models[model]
            mine = [_plain(row.__dict__, names) for row in self.scene.tables[model].values()]
            theirs = [_plain(row.__data__, {}) for row in table.select().order_by(table.id)]
            wanted = [{name: row.get(name) for name in theirs[index]} for index, row in enumerate(mine)]
            assert wanted == theirs, model.__name__
        mine_owed = [
            (e.effect.name, e.workflow, names[e.subject_id], e.visit, e.is_timer, _inputs(e.inputs, names))
            for e in self.scene.effects
        ]
        theirs_owed = [
            (e.name, e.workflow, e.subject_id, e.visit, e.is_timer, _inputs(e.inputs, {}))
            for e in self.real_effects()
        ]
        assert sorted(map(repr, mine_owed)) == sorted(map(repr, theirs_owed))
        table = self.tables.transitions
        rows = [(t.workflow, t.trigger, t.from_state, t.to_state) for t in table.select().order_by(table.id)]
        # Within one commit the model notes an inner trigger when it is done, the engine likewise.
        assert sorted(rows) == sorted(self.history)

    def close(self) -> None:
        self.database.close()


def _plain(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A row without its number; instants are there or not; decimals and words as text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("id", "deadline_ran", "_frozen"):
            continue
        if isinstance(value, datetime):
            found[name] = "an instant"
        elif value is None or isinstance(value, bool):
            found[name] = value
        elif isinstance(value, int | float) or not isinstance(value, str):
            found[name] = float(value)
        else:
            found[name] = names.get(str(value), str(value))
    return found


def _inputs(text: str, names: dict[str, str]) -> str:
    return repr(sorted((name, names.get(str(value), value)) for name, value in json.loads(text).items()))


# -- the two worlds -----------------------------------------------------------------------------------------------


def _usual_ends(name: str, scene: Scene) -> list[End]:
    lost = ServiceUnavailable("x", "no answer", outcome_unknown=True)
    return [Done(), Again(timedelta(minutes=5), "later"), ServiceRefused("x", "no", code="no"), lost]


def _loan_ends(name: str, scene: Scene) -> list[End]:
    good = Done("lend", {"barcode": "ok"})
    return [*_usual_ends(name, scene), good, Done("lend", {"barcode": "no"}), Done("lose", on_refusal="skip"),
            Again(timedelta(days=1), "", "renew"), Done("renew", on_refusal="skip")]  # fmt: skip


LOANS = World(
    flows=(LOAN, FINE), models=(Loan, Fine), columns={"loan_id": "l1", "reader": "jane"},
    tries=(
        ("loan", "lend", {"barcode": "ok"}), ("loan", "lend", {"barcode": "no"}), ("loan", "lend", {}),
        ("loan", "renew", {}), ("loan", "give_back", {}), ("loan", "cancel", {}), ("loan", "reserve_again", {}),
        ("loan", "lose", {}), ("loan", "waive", {}), ("loan", "found", {}), ("fine", "pay", {}),
        ("loan", "fly", {}),
    ),
    ends=_loan_ends,
)  # fmt: skip

PAYMENT: Facts = {
    "session_id": "cs_1", "payment_intent_id": "pi_1", "amount_cents": 384, "currency": "usd", "livemode": False,
    "email": None,
}  # fmt: skip
STARTED: Facts = {"upsampler_job_id": "up-1", "submit_effect_id": "e1", "credits_used": None}
TOLD: Facts = {**STARTED, "image_url": "https://r.example/1.png", "url_refusal": ""}
FILE: Facts = {"file_name": "r.png", "width": 80, "height": 40, "format": "PNG", "size_bytes": 9, "sha256": "0"}
BACK: Facts = {"stripe_refund_id": "re_1", "amount_cents": 100, "currency": "usd"}
WAYS: dict[str, list[tuple[str, Facts]]] = {
    "create_checkout": [("checkout_opened", {"session_id": "cs_1", "checkout_url": "https://pay.example"})],
    "payment_deadline": [("abandon", {"session_status": "expired"}), ("payment_received", PAYMENT)],
    "submit_upscale": [("upscale_started", STARTED)],
    "poll_upscale": [("upscale_delivered", TOLD), ("fail", {"code": "upsampler_failed"})],
    "upscale_deadline": [("fail", {"code": "upsampler_timeout"})],
    "fetch_result": [("complete", FILE), ("complete", {**FILE, "width": 1})],
    "refund_due": [("refund", {"code": "outage"})],
    "submit_refund": [("succeed", BACK), ("submitted", BACK), ("succeed", {**BACK, "amount_cents": 384})],
    "check_refund": [("succeed", BACK), ("fail", {"code": "x"})],
    "send_download_link": [("notice_sent", {})],
}


def _sale_ends(name: str, scene: Scene) -> list[End]:
    ways = [Done(trigger, facts, actor="stripe", on_refusal="skip") for trigger, facts in WAYS.get(name, [])]
    # What is likely to lead somewhere is tried most.
    return [*_usual_ends(name, scene), *ways * 4]


SALE = World(
    flows=(JOB, REFUND), models=(Job, Refund, Payment, Dispute),
    columns={**job_columns("job-1"), "created_at": START},
    tries=(
        ("job", "checkout_opened", WAYS["create_checkout"][0][1]), ("job", "payment_received", PAYMENT),
        ("job", "payment_received", {**PAYMENT, "amount_cents": 1}),
        ("job", "payment_unexpected", {**PAYMENT, "payment_intent_id": "pi_2", "amount_cents": 100}),
        ("job", "payment_processing", {}), ("job", "payment_declined", {}), ("job", "payment_failed", {}),
        ("job", "abandon", {"session_status": "expired"}), ("job", "upscale_started", STARTED),
        ("job", "upscale_delivered", TOLD), ("job", "complete", FILE), ("job", "fail", {"code": "outage"}),
        ("job", "retry", {}), ("job", "retry", {"override": True}), ("job", "refund", {}),
        ("job", "refund", {"amount_cents": 100}), ("job", "refund", {"amount_cents": 999}),
        ("job", "refund_settled", {
            "amount_cents": 100, "is_ours": False, "stripe_refund_id": "re_9", "payment_intent_id": "pi_1",
            "currency": "usd", "role": "sale",
        }),
        ("job", "dispute_opened", {"dispute_id": "dp", "withdrawn_cents": 384}),
        ("job", "dispute_closed", {"dispute_id": "dp", "withdrawn_cents": 0}),
        ("job", "dispute_opened", {"dispute_id": "dp_2", "withdrawn_cents": 100}),
        ("job", "charge_noted", {"payment_intent_id": "pi_1", "charge_id": "ch_1"}),
        ("job", "refunds_differ", {"payment_intent_id": "pi_1"}),
        ("job", "return_payment", {"payment_intent_id": "pi_2"}),
        ("job", "return_payment", {"payment_intent_id": "pi_2", "amount_cents": 60}),
        ("refund", "retry", {}), ("refund", "settle_elsewhere", {}), ("refund", "pending", BACK),
        ("refund", "cancel", {"code": "x", "stripe_refund_id": "re_1"}),
        ("job", "override", {"target": "completed"}), ("job", "override", {"target": "pending", "effects": True}),
        ("job", "renew_download", {}), ("job", "resend", {}), ("job", "erase", {}), ("job", "purge", {}),
        ("job", "amend", {"fields": {"post_id": 7}}), ("refund", "succeed", BACK),
        ("refund", "fail", {"code": "x"}), ("refund", "overdue", {}), ("refund", "submitted", BACK),
    ),
    ends=_sale_ends, policy=settings(),
)  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("world", [LOANS, SALE], ids=["loans", "sale"])
def test_engine_and_model_walk_alike(world: World, seed: int) -> None:
    random, pair = Random(seed), Pair(world)
    for _ in range(STEPS):
        if random.random() < 0.5:
            workflow, trigger, facts = random.choice(world.tries)
            pair.fire(workflow, trigger, facts, random.choice(("stripe", "system", "admin:jane")))
        else:
            pair.wander(random)
        pair.compare()
    pair.close()
    assert len(pair.history) > 1


@pytest.mark.parametrize("meanwhile", ["reserve_again", "cancel", "lose", "waive"])
@pytest.mark.parametrize("end", range(4))
def test_a_worker_that_reports_late_does_the_same_in_both(end: int, meanwhile: str) -> None:
    ends: list[End] = [
        Done("lend", {"barcode": "ok"}),
        Done("lend", {"barcode": "no"}),
        Again(timedelta(hours=1), "", "reserve_again"),
        ServiceRefused("x", "no", code="no"),
    ]
    pair = Pair(LOANS)
    fetch = next(item for item in pair.scene.effects if item.effect.name == "fetch_book")
    pair.perform(fetch, ends[end], ("loan", meanwhile, {}))
    pair.compare()
    assert ("loan", meanwhile) in [(workflow, trigger) for workflow, trigger, _, _ in pair.history]
    pair.close()
