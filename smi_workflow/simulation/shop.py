"""Owns the simulated shop: both releases of the real code, and the providers around them. Called by sale.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import SecretStr

from smi_workflow.app import MIGRATIONS, WORKFLOWS, App
from smi_workflow.effects.world import Outside
from smi_workflow.engine.declaration import Owed
from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariant
from smi_workflow.engine.migrate import migrate
from smi_workflow.engine.points import Point, reach
from smi_workflow.engine.workflow import Workflow
from smi_workflow.intake import STRIPE, UPSAMPLER, reduce_stripe_event
from smi_workflow.integrations.letters import LetterWriter
from smi_workflow.jobs.invariants import SALE_INVARIANTS
from smi_workflow.jobs.schedule import set_up_schedules
from smi_workflow.settings import Settings
from smi_workflow.simulation.calls import Caller
from smi_workflow.simulation.files import (
    SimulatedMailer,
    SimulatedNetwork,
    SimulatedReceivers,
    SimulatedStorage,
)
from smi_workflow.simulation.scenario import Props, Release
from smi_workflow.simulation.stage import Process, Unreachable
from smi_workflow.simulation.stripe import SimulatedStripe
from smi_workflow.simulation.stripe_books import Told
from smi_workflow.simulation.upsampler import SimulatedUpsampler

# What these tell stands in an object that is asked for, so that it is found even if Stripe lists no event.
IN_OBJECTS = (
    "checkout.session.completed", "checkout.session.expired", "refund.", "charge.refund.", "charge.dispute.funds_"
)  # fmt: skip


class Shop:
    """The sale's world."""

    def __init__(self, props: Props) -> None:
        self.stage = props.stage
        self.settings = settings_of(props)
        caller = Caller(props.stage, self.settings.lease_seconds)
        self.sizes: dict[str, tuple[int, int]] = {}
        self.stripe = SimulatedStripe(caller, self._tell_stripe)
        self.upsampler = SimulatedUpsampler(caller, self._tell_upsampler)
        self.mailer = SimulatedMailer(caller)
        self.storage = SimulatedStorage(caller)
        self.receivers = SimulatedReceivers(caller)
        outside = Outside(
            stripe=self.stripe, upsampler=self.upsampler, storage=self.storage, letters=LetterWriter(),
            mailer=self.mailer, hooks=self.receivers,
            fetch=SimulatedNetwork(caller, self.upsampler.works, self.sizes),
        )  # fmt: skip
        self.apps = {
            name: App(
                self.settings,
                ring=props.broker.ring,
                clock=props.clock,
                chance=props.chance,
                outside=outside,
                workflows=workflows,
                keeper=props.keeper,
                pause=props.stage.sleep,
            )
            for name, workflows in (("present", WORKFLOWS), ("older", OLDER))
        }
        self.app = self.apps["present"]
        migrate(self.app.database, MIGRATIONS, prefix=self.settings.table_prefix)
        for app in self.apps.values():
            # The simulated crashes are not power cuts: the file need not reach the disk.
            app.database.execute_sql("PRAGMA synchronous = OFF")  # type: ignore[no-untyped-call]
        self.releases: Mapping[str, Release] = {
            name: Release(
                app.engine, app.performer, app.inbox,
                partial(set_up_schedules, app.engine) if "schedule" in app.engine.workflows else bool,
            )
            for name, app in self.apps.items()
        }
        self.perpetual = frozenset({"schedule"})
        self.invariants: Sequence[Invariant] = (*ENGINE_INVARIANTS, *SALE_INVARIANTS)
        self.exists: Callable[[str], bool] | None = self.storage.exists
        self.busy = 0
        self._events = 0

    def is_finished(self) -> bool:
        """Whether buyers and admins have done what they wanted to."""
        return self.busy == 0

    # -- who does what --------------------------------------------------------------------------------------------

    def employ(self, name: str, script: Any, after: float) -> None:
        """Let somebody outside act, and wait for it before the calm."""
        self.busy += 1

        def run() -> None:
            try:
                script()
            finally:
                self.busy -= 1

        self.stage.spawn(name, run, after=after)

    def web(self) -> Process:
        """A web process that answers.

        Raises:
            Unreachable: none does.
        """
        webs = [one for one in self.stage.processes if one.name.startswith("web") and self.stage.is_up(one)]
        if not webs:
            raise Unreachable("web")
        return webs[self.stage.random.randrange(len(webs))]

    # -- events ---------------------------------------------------------------------------------------------------

    def _tell_stripe(self, kind: str, body: dict[str, Any]) -> None:
        self._events += 1
        event = {
            "id": f"evt_{self._events:08d}", "type": kind, "livemode": bool(body.get("livemode")),
            "data": {"object": body},
        }  # fmt: skip
        told = Told(event, self.stage.time)

        def take(app: App) -> None:
            kept = json.dumps(reduce_stripe_event(event), allow_nan=False)
            app.inbox.receive(STRIPE, str(event["id"]), kind, kept)
            told.is_delivered = True

        arrives = self._post(f"stripe {kind} {event['id']}", take)
        session = self.stripe.books.sessions.get(str(body["id"]))
        asked_for = kind.startswith(IN_OBJECTS) and (session is None or session.ours)
        if arrives or not asked_for or not self.stage.faults.strikes("event_gone"):
            self.stripe.books.events.append(told)

    def _tell_upsampler(self, webhook_url: str, body: dict[str, Any]) -> None:
        effect_id = webhook_url.rsplit("/", 2)[1]
        kept = json.dumps({"effect_id": effect_id, **body, "creditCost": str(body["creditCost"])})

        def take(app: App) -> None:
            app.inbox.receive(UPSAMPLER, f"{body['id']}:{body['status']}", str(body["status"]), kept)

        self._post(f"upsampler {body['id']} {body['status']}", take)

    def _post(self, name: str, take: Any) -> bool:
        """Send it off; False when it never arrives."""
        faults, random = self.stage.faults, self.stage.random
        waits = [random.uniform(0, 5)]
        if faults.strikes("webhook_late"):
            waits = [random.choice((0.0, 60.0, 7_200.0, 200_000.0))]
        if faults.strikes("webhook_twice"):
            waits.append(random.uniform(0, 600))
        if faults.strikes("webhook_lost"):
            waits = []
            self.stage.tell(f"{name} is lost")
        for wait in waits:
            self.stage.spawn(f"postman with {name}", partial(self._deliver, take), after=max(wait, 0.001))
        return bool(waits)

    def _deliver(self, take: Any) -> None:
        """A provider tries until it is answered."""
        wait = 5.0
        while True:
            try:
                web = self.web()
                with self.stage.inside(web):
                    take(self.apps[web.release])
                    reach(Point.EVENT_KEPT)
                return
            except Unreachable:
                self.stage.sleep(wait)
                wait = min(wait * 2, 3_600.0)


def settings_of(props: Props) -> Settings:
    """The shop's settings; the environment plays no part."""
    return Settings(
        _env_file=None,  # type: ignore[call-arg]
        var_dir=props.folder, database_url=f"sqlite:///{props.folder / 'simulation.sqlite3'}",
        secret_key=(SecretStr("simulated " * 4),), result_hosts=("*.example.com",),
        stripe_api_key=SecretStr("sk_test_simulated"), stripe_webhook_secret=(SecretStr("whsec_simulated"),),
        upsampler_api_key=SecretStr("simulated"),
        public_url="https://shop.example.com", admin_email="admin@shop.example.com",
        hook_urls=(SecretStr("https://hooks.example.com/of?key=secret"),),
        hook_secret=(SecretStr("whsec_" + "c2ltdWxhdGVk" * 3),),
        # What fits no sale waits for an admin in some of these worlds.
        unexpected_payment="hold" if props.stage.seed % 4 == 0 else "refund",
        stripe_api_base="https://stripe.example.com", upsampler_api_base="https://upsampler.example.com",
        # By the hour it would be most of what a run of weeks consists of.
        reconcile_minutes=props.stage.random.choice((240, 1440)),
    )  # fmt: skip


def without(flow: Workflow, *, effect: str, trigger: str) -> Workflow:
    """The workflow as it was before it had this effect and this trigger."""

    def keep(owes: tuple[Owed, ...]) -> tuple[Owed, ...]:
        return tuple(item for item in owes if item.effect.name != effect)

    return Workflow(
        name=flow.name, model=flow.model, key=flow.key, state_column=flow.state_column, initial=flow.initial,
        states=tuple(replace(state, owes=keep(state.owes)) for state in flow.states),
        moves=tuple(
            replace(move, owes=keep(move.owes), cancels=tuple(one for one in move.cancels if one.name != effect))
            for move in flow.moves
            if move.trigger != trigger
        ),
        started_by=flow.started_by, start_hook=flow.start_hook, announces=flow.announces, parent=flow.parent,
        touched_column=flow.touched_column,
    )  # fmt: skip


# It knew no periodic work at all.
OLDER = (
    without(WORKFLOWS[0], effect="warn_expiry", trigger="resend"),
    *(flow for flow in WORKFLOWS[1:] if flow.name != "schedule"),
)
