"""Owns what admins do, at any moment and not always wisely. Called by sale.py."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from smi_workflow.errors import SmiError
from smi_workflow.jobs.model import LOST, JobStatus
from smi_workflow.simulation.shop import Shop
from smi_workflow.simulation.stage import Unreachable

ACTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("retry", {}),
    ("retry", {}),
    ("retry", {"override": True}),
    ("refund", {}),
    ("refund", {"amount_cents": 100}),
    ("refund", {"amount_cents": 10**9}),
    ("resend", {}),
    ("renew_download", {}),
    ("amend", {"fields": {"email": "amended@example.org"}}),
    ("amend", {"fields": {"paid_cents": 1}}),
    ("correct_costs", {"costs": {"upsampler_cost": Decimal("0.60"), "credits_required": 15}}),
    ("correct_costs", {"costs": {"customer_price": Decimal("0.01")}}),
    ("erase", {}),
    ("purge", {}),
    ("fail", {"code": "stopped_by_admin"}),
    ("return_payment", {}),
    ("refund retry", {}),
    ("refund retry", {}),
    ("refund settle_elsewhere", {}),
    ("alert close", {}),
    *(("override", {"target": target, "effects": effects}) for target in JobStatus for effects in (True, False)),
)

# Some are left lying, as people do.
ALERTS_CLOSED = 3


class Admins:
    """Everybody who may act."""

    def __init__(self, shop: Shop, count: int) -> None:
        self._shop = shop
        self._stage = shop.stage
        self._count = count

    def act(self) -> None:
        """Now and then, over the days that the trouble lasts."""
        stage = self._stage
        long = stage.random.choice((3_600.0, 86_400.0, 345_600.0)) + 60.0 * self._count
        # Whoever sweeps up at the end: what nobody could apply for three days has been raised by then.
        self._shop.employ("the trouble lasts", self._close_alerts, after=long)
        for number in range(self._count):
            if stage.faults.strikes("admin"):
                moment = stage.random.uniform(0, 60.0 * self._count) * stage.random.choice((1, 1, 1, 5))
                self._shop.employ(f"admin {number}", self._act_once, after=moment + 0.002)

    def _act_once(self) -> None:
        shop, stage = self._shop, self._stage
        if stage.random.random() < 0.1:
            self._mind_schedule()
            return
        job_ids = list(shop.sizes)
        if not job_ids:
            return
        # Mostly one that something is going on with.
        among = job_ids[-6:] if stage.random.random() < 0.7 else job_ids
        job_id = among[stage.random.randrange(len(among))]
        trigger, facts = self._choose()
        try:
            web = shop.web()
            with stage.inside(web):
                workflow, key, trigger, facts = self._aim(job_id, trigger, facts)
                engine, flow = shop.apps[web.release].engine, shop.app.engine.workflows[workflow]
                expected = None
                if stage.random.random() < 0.3:
                    expected = str(getattr(engine.read(workflow, key), flow.state_column))
                stage.turn(f"looks at {key[:8]}")
                stage.tell(f"{stage.agent().name} wants {trigger} {facts} for {workflow} {key}")
                engine.fire(
                    workflow, key, trigger, actor="admin:jane", reason="simulated", facts=facts,
                    expected_state=expected,
                    idempotency_key=f"{stage.agent().name}" if stage.random.random() < 0.3 else None,
                )  # fmt: skip
        except (SmiError, Unreachable) as refusal:
            stage.tell(f"admin is told: {refusal}")

    def _aim(self, job_id: str, trigger: str, facts: dict[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
        """What an act is about: the job, or one of the things that wait for somebody to act on them."""
        tables = self._shop.app.job_tables
        workflow, _, named = trigger.rpartition(" ")
        if trigger == "return_payment":
            strange = [row for row in tables.payments.select().order_by(tables.payments.id) if row.role != "sale"]
            if strange:
                payment = strange[self._stage.random.randrange(len(strange))]
                return "job", payment.job_id, trigger, {"payment_intent_id": payment.payment_intent_id}
        if workflow == "refund":
            lost = list(tables.refunds.select().order_by(tables.refunds.id))
            lost = [row for row in lost if row.state in LOST] or lost
            if lost:
                return workflow, lost[self._stage.random.randrange(len(lost))].refund_id, named, facts
        if workflow == "alert":
            alerts = list(tables.alerts.select().order_by(tables.alerts.id))
            if alerts:
                return workflow, alerts[self._stage.random.randrange(len(alerts))].alert_id, named, facts
        if trigger == "resend":
            jobs = tables.jobs
            done = list(jobs.select().where(jobs.status == JobStatus.COMPLETED).order_by(jobs.id))
            job_id = done[self._stage.random.randrange(len(done))].job_id if done else job_id
        return "job", job_id, "notice_failed" if workflow else trigger, facts

    def _close_alerts(self) -> None:
        alerts = self._shop.app.job_tables.alerts
        for alert in list(alerts.select().where(alerts.state == "open").order_by(alerts.id).limit(ALERTS_CLOSED)):
            self._fire_at("alert", alert.alert_id, "close")

    def _mind_schedule(self) -> None:
        """Somebody runs periodic work by hand, or pauses it for a while; whoever pauses it remembers."""
        random, stage = self._stage.random, self._stage
        trigger = random.choice(("run", "run", "pause", "resume", "finish", "fail", "progressed"))
        if self._fire_schedule(trigger) and trigger == "pause":
            stage.sleep(random.choice((10.0, 3_600.0, 200_000.0)))
            while not self._fire_schedule("resume"):
                if self._shop.app.engine.read("schedule", "reconcile").state != "paused":
                    return
                stage.sleep(60.0)

    def _fire_schedule(self, trigger: str) -> bool:
        return self._fire_at("schedule", "reconcile", trigger)

    def _fire_at(self, workflow: str, key: str, trigger: str) -> bool:
        shop, stage = self._shop, self._stage
        try:
            web = shop.web()
            with stage.inside(web):
                shop.apps[web.release].engine.fire(
                    workflow, key, trigger, actor="admin:jane", reason="simulated"
                )
        except (SmiError, Unreachable) as refusal:
            stage.tell(f"admin is told: {refusal}")
            return False
        return True

    def _choose(self) -> tuple[str, dict[str, Any]]:
        random = self._stage.random
        if random.random() < 0.85:
            return ACTS[random.randrange(len(ACTS))]
        # By hand, and without knowing what it needs.
        triggers = self._shop.app.engine.workflows["job"].triggers()
        return triggers[random.randrange(len(triggers))], {}
