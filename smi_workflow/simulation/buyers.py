"""Owns what buyers do: order, pay, leave, pay twice, go to the bank. Called by sale.py."""

from __future__ import annotations

from functools import partial
from typing import Any

from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import ServiceError, SmiError
from smi_workflow.jobs.model import Job
from smi_workflow.simulation.shop import Shop
from smi_workflow.simulation.stage import Unreachable
from smi_workflow.simulation.stripe_books import Charge, Session

SIZES = ((40, 30), (640, 480), (1000, 900))
BETWEEN_SECONDS = 60.0
PATIENCE = 8


class Buyers:
    """Everybody who buys."""

    def __init__(self, shop: Shop, count: int) -> None:
        self._shop = shop
        self._stage = shop.stage
        self._count = count

    def come(self) -> None:
        """They come one after the other, some at once."""
        moment = 0.0
        for number in range(self._count):
            moment += (
                self._stage.random.expovariate(1 / BETWEEN_SECONDS) if self._stage.random.random() < 0.7 else 0.0
            )
            self._shop.employ(f"buyer {number}", partial(self._buy, number), after=moment + 0.001)

    def _buy(self, number: int) -> None:
        stage, random = self._stage, self._stage.random
        width, height = SIZES[random.randrange(len(SIZES))]
        order = {
            "image_url": f"https://photos.example.org/{width}x{height}.png",
            "resolution": random.choice(("4x", "8x")), "image_width": width, "image_height": height,
            "post_id": number, "email": f"buyer{number}@example.org" if random.random() < 0.7 else None,
        }  # fmt: skip
        if stage.faults.strikes("buyer"):
            stage.spawn(f"buyer {number} clicks twice", lambda: self._click(number, order))
        job = self._order(number, order)
        if job is None or job.checkout_url is None:
            return
        session = self._shop.stripe.books.sessions[job.checkout_url.rsplit("/", 1)[1]]
        self._pay(number, session)

    def _click(self, number: int, order: dict[str, Any]) -> None:
        try:
            self._ask(number, order)
        except (Unreachable, SmiError):
            return

    def _order(self, number: int, order: dict[str, Any]) -> Job | None:
        for _ in range(PATIENCE):
            try:
                job = self._ask(number, order)
            except (Unreachable, ServiceError):
                self._stage.sleep(self._stage.random.uniform(1, 120))
                continue
            except SmiError as refusal:
                self._stage.tell(f"buyer {number} is told: {refusal}")
                return None
            if job.checkout_url is not None:
                return job
            self._stage.sleep(30)
        return None

    def _ask(self, number: int, order: dict[str, Any]) -> Job:
        web = self._shop.web()
        with self._stage.inside(web):
            app = self._shop.apps[web.release]
            job = app.jobs.create_job(order, idempotency_key=f"order {number} {self._stage.seed}")
            self._shop.sizes[job.job_id] = (order["image_width"], order["image_height"])
            reach(Point.MESSAGE_HANDLED)
            return job

    def _pay(self, number: int, session: Session) -> None:
        stage, stripe, faults, random = self._stage, self._shop.stripe, self._stage.faults, self._stage.random
        email = f"payer{number}@example.org"
        stage.sleep(random.uniform(1, 300))
        unusual = random.randrange(8) if faults.strikes("buyer") else None
        charge: Charge | None = None
        if unusual == 0:
            return  # leaves
        if unusual == 1:
            stripe.decline(session)
            stage.sleep(random.uniform(1, 600))
        if unusual == 2:
            # At the last moment, when our own deadline may be faster.
            left = (session.expires_at - stage.time).total_seconds()
            stage.sleep(max(0.001, left + random.uniform(-60, 60)))
        if unusual == 3:
            charge = stripe.pay(session, email=email, cents=session.cents + random.choice((-1, 1, 100)))
        elif unusual == 4:
            charge = stripe.pay(session, email=email, livemode=True)
        elif unusual == 5:
            charge = stripe.pay(session, email=email, delayed=True)
            if charge is not None:
                succeeds = random.random() < 0.6
                stage.spawn(
                    f"bank of buyer {number}", lambda: stripe.settle_delayed(session, succeeded=succeeds),
                    after=random.choice((3_600.0, 259_200.0, 1_123_200.0)),
                )  # fmt: skip
            return
        else:
            charge = stripe.pay(session, email=email)
        if unusual == 6:
            stage.sleep(random.uniform(0.1, 3_600))
            stripe.pay_elsewhere(session, email=email, cents=session.cents)
        if charge is None:
            return
        if unusual == 7:
            stage.sleep(random.choice((0.5, 30.0, 3_600.0)))
            part = charge.cents if random.random() < 0.5 else max(1, charge.cents // 3)
            if charge.refunded_cents + part <= charge.cents and not charge.withdrawn_cents:
                stripe.refund(charge, part, {})
        if faults.strikes("dispute"):
            stage.sleep(random.choice((0.5, 20.0, 7_200.0, 400_000.0)))
            stripe.dispute(charge, withdraws=random.random() < 0.8, won=random.random() < 0.5)
