"""The invariants of a sale: silent on every honest life, and each finds what is planted for it.

Plants are written behind the machine's back, in a transaction that is rolled back: every one meets the same shop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.app import App
from smi_workflow.engine.invariants import ENGINE_INVARIANTS, Invariants, Violation
from smi_workflow.jobs.attention import ATTENTION
from smi_workflow.jobs.invariants import SALE_INVARIANTS
from tests.histories.lives import LIVES
from tests.support.databases import Databases, kinds
from tests.support.desks import Desk, open_desk
from tests.support.sales import Providers, open_sales, running_providers

ALL = (*ENGINE_INVARIANTS, *SALE_INVARIANTS)
# What speaks of workers that do not run; the lives end in the middle of things, with hours gone by.
OF_LIFE = tuple(item for item in ALL if item.name != "nothing_overdue")
LATER = timedelta(days=10)


# -- honest lives -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    with running_providers(tmp_path_factory.mktemp("providers")) as running:
        yield running


@pytest.mark.parametrize("name", LIVES)
def test_an_honest_life_breaks_nothing(name: str, sqlite_url: str, tmp_path: Path, providers: Providers) -> None:
    with open_sales(sqlite_url, tmp_path, providers) as sales:
        LIVES[name](sales)
        assert violations(sales.app) == []


@pytest.mark.parametrize("name", ["renewed_resent_amended_erased", "refund_lost_and_repeated", "paid_twice"])
def test_an_honest_life_breaks_nothing_on_postgres(
    name: str, postgres_url: str, tmp_path: Path, providers: Providers
) -> None:
    with open_sales(postgres_url, tmp_path, providers) as sales:
        LIVES[name](sales)
        assert violations(sales.app) == []


def test_a_sample_is_judged_by_the_same_rules(sqlite_url: str, tmp_path: Path, providers: Providers) -> None:
    with open_sales(sqlite_url, tmp_path, providers) as sales:
        for _ in range(3):
            sales.completed()
        judged = Invariants(sales.app.engine, OF_LIFE, exists=sales.app.storage.exists)
        assert list(judged.everywhere(sample=2)) == []
        jobs = sales.app.job_tables.jobs
        jobs.update(paid_cents=1).execute()
        assert len([one for one in judged.everywhere(sample=2) if one.invariant == "payments_match"]) >= 2


def violations(app: App, **options: Any) -> list[Violation]:
    """What is found everywhere, and subject by subject."""
    judged = Invariants(app.engine, OF_LIFE, exists=app.storage.exists, **options)
    found = list(judged.everywhere())
    for row in app.job_tables.jobs.select():
        found += judged.of_subject("job", row.job_id)
    for refund in app.job_tables.refunds.select():
        found += judged.of_subject("refund", refund.refund_id)
    return found


# -- a shop to plant in -------------------------------------------------------------------------------------------


@dataclass
class Shop:
    """Jobs in every state, made through the machine; `gone` names the files that are not in the storage."""

    desk: Desk
    jobs: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    @property
    def app(self) -> App:
        return self.desk.app

    def judged(self, invariants: Any = ALL) -> Invariants:
        """The invariants, with a storage that lacks what is gone."""
        return Invariants(self.app.engine, invariants, exists=lambda name: name not in self.gone)

    def job(self, name: str, **columns: Any) -> None:
        """Write a job's columns."""
        self.desk.set(self.jobs[name], **columns)

    def history(self, name: str, of: str, **columns: Any) -> None:
        """Write the columns of a transition, named by its trigger."""
        table = self.app.tables.transitions
        mine = (table.subject_id == self.jobs[name]) & (table.trigger == of)
        assert table.update(**columns).where(mine).execute()

    def effect(self, job: str, effect: str, **columns: Any) -> None:
        """Write an effect's columns."""
        table = self.app.tables.effects
        mine = (table.subject_id == self.jobs[job]) & (table.name == effect)
        assert table.update(**columns).where(mine).execute()

    def payment(self, name: str, **columns: Any) -> None:
        """Write the columns of a job's payment."""
        table = self.app.job_tables.payments
        assert table.update(**columns).where(table.job_id == self.jobs[name]).execute()

    def refund(self, name: str, **columns: Any) -> None:
        """Write the columns of a job's refund."""
        table = self.app.job_tables.refunds
        assert table.update(**columns).where(table.job_id == self.jobs[name]).execute()

    def event(self, name: str, **columns: Any) -> None:
        """Write an event's columns."""
        table = self.app.tables.events
        assert table.update(**columns).where(table.event_id == name).execute()

    def owe(self, job: str, effect: str, **columns: Any) -> None:
        """Write an effect that nobody owed."""
        now = self.desk.clock.now()
        row = {
            "id": "planted", "workflow": "job", "subject_id": self.jobs[job], "visit": 1, "sequence": 1,
            "name": effect, "queue": "notices", "state": "due", "due_at": now, "attempts_max": 6,
            "created_at": now,
        }  # fmt: skip
        self.app.tables.effects.insert(**{**row, **columns}).execute()

    @property
    def now(self) -> Any:
        return self.desk.clock.now()


PAID: dict[str, Any] = {"amount_cents": 384, "currency": "usd", "livemode": False}
STORED: dict[str, Any] = {"width": 80, "height": 40, "format": "PNG", "size_bytes": 9, "sha256": "0" * 64}


def fill(shop: Shop) -> None:
    """One job of each kind; nothing is worked on but what is fired here."""
    desk, jobs = shop.desk, shop.jobs
    jobs["waiting"] = ordered(desk)
    jobs["paid"] = paid(desk)
    jobs["working"] = working(desk)
    jobs["done"] = done(desk)
    jobs["failed"] = paid(desk)
    desk.fire(jobs["failed"], "fail", code="outage", reason="a test")
    jobs["refunded"] = done(desk)
    desk.fire(jobs["refunded"], "refund", actor="admin:jane", reason="goodwill", amount_cents=100)
    settle_refund(desk, jobs["refunded"], 100)
    jobs["purged"] = ordered(desk)
    desk.fire(jobs["purged"], "abandon", session_status="expired")
    desk.fire(jobs["purged"], "purge")
    desk.fire(jobs["purged"], "file_removed")
    jobs["told"] = ordered(desk)
    receive(desk, jobs["told"], "evt_paid")
    jobs["early"] = desk.start()
    receive(desk, jobs["early"], "evt_early")
    receive(desk, jobs["told"], "evt_again")
    desk.app.engine.audit(actor="admin:jane", act="look", target="somewhere")
    effects = desk.app.tables.effects
    submit = effects.get((effects.subject_id == jobs["paid"]) & (effects.name == "submit_upscale"))
    assert desk.app.engine.outbox.claim(submit.id, "token", desk.clock.now(), timedelta(seconds=60))


def ordered(desk: Desk) -> str:
    job_id = desk.start()
    desk.fire(job_id, "checkout_opened", session_id=f"cs_{job_id}", checkout_url="https://pay.example/cs")
    return job_id


def paid(desk: Desk) -> str:
    job_id = ordered(desk)
    facts = {**PAID, "session_id": f"cs_{job_id}", "payment_intent_id": f"pi_{job_id}"}
    desk.fire(job_id, "payment_received", actor="stripe", **facts)
    return job_id


def working(desk: Desk) -> str:
    job_id = paid(desk)
    facts: dict[str, Any] = {"upsampler_job_id": "up", "submit_effect_id": "e", "credits_used": None}
    desk.fire(job_id, "upscale_started", **facts)
    return job_id


def done(desk: Desk) -> str:
    job_id = working(desk)
    told: dict[str, Any] = {
        "upsampler_job_id": "up",
        "submit_effect_id": "e",
        "image_url": "https://up.example/r@2x.png",
    }
    desk.fire(job_id, "upscale_delivered", **told, url_refusal="", credits_used=None)
    desk.fire(job_id, "complete", file_name=f"results/{job_id}.png", **STORED)
    return job_id


def settle_refund(desk: Desk, job_id: str, cents: int) -> None:
    refunds = desk.app.job_tables.refunds
    refund = refunds.get(refunds.job_id == job_id)
    facts = {"stripe_refund_id": f"re_{job_id}", "amount_cents": cents, "currency": "usd"}
    desk.app.engine.fire("refund", refund.refund_id, "succeed", actor="stripe", facts=facts)


def receive(desk: Desk, job_id: str, event_id: str) -> None:
    """Take in and handle the event of the job's payment."""
    session = {
        "id": f"cs_{job_id}", "client_reference_id": job_id, "metadata": {"job_id": job_id}, "charge": None,
        "payment_intent": f"pi_{job_id}", "payment_status": "paid", "amount_total": 384, "currency": "usd",
        "email": "jane@example.com",
    }  # fmt: skip
    kind = "checkout.session.completed"
    payload = {"id": event_id, "type": kind, "livemode": False, "object": session}
    desk.app.inbox.handle(desk.app.inbox.receive("stripe", event_id, kind, json.dumps(payload)).id)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=[pytest.mark.server("mariadb")] if kind == "mariadb" else []) for kind in kinds()
    ],
)
def filled(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """The shop, once for all plants."""
    folder = tmp_path_factory.mktemp("shop")
    with databases.fresh(str(request.param), folder) as url, open_desk(url, folder) as desk:
        shop = Shop(desk)
        fill(shop)
        yield shop


@pytest.fixture
def shop(filled: Shop) -> Iterator[Shop]:
    """The shop, and whatever is done to it is undone."""
    filled.gone.clear()
    with filled.app.database.atomic() as everything:
        yield filled
        everything.rollback()


def test_the_shop_is_in_order(shop: Shop) -> None:
    assert list(shop.judged().everywhere()) == []
    assert [one for job in shop.jobs.values() for one in shop.judged().of_subject("job", job)] == []
    states = {shop.desk.job(job).status for job in shop.jobs.values()}
    assert len(states) == 6
    assert list(shop.judged(ATTENTION).everywhere()) == []


# -- plants -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plant:
    """Something wrong.

    Attributes:
        finds: the invariants that must find it; no others may.
        job: whose fault it is, to be found by looking at that subject alone.
        from_afar: it is found without being told where to look.
    """

    what: str
    do: Callable[[Shop], object]
    finds: str
    job: str | None = None
    from_afar: bool = True

    def __str__(self) -> str:
        return self.what


def remove_history(shop: Shop, name: str, trigger: str) -> None:
    table = shop.app.tables.transitions
    table.delete().where((table.subject_id == shop.jobs[name]) & (table.trigger == trigger)).execute()


def remove_effect(shop: Shop, name: str, effect: str) -> None:
    table = shop.app.tables.effects
    table.delete().where((table.subject_id == shop.jobs[name]) & (table.name == effect)).execute()


def remove_payment(shop: Shop, name: str) -> None:
    table = shop.app.job_tables.payments
    table.delete().where(table.job_id == shop.jobs[name]).execute()


def history_of(shop: Shop, workflow: str, subject: str) -> None:
    rows = {
        "sequence": 1, "trigger": "create", "from_state": "", "to_state": "awaiting_payment", "actor": "buyer",
        "fingerprint": "x", "created_at": shop.now,
    }  # fmt: skip
    shop.app.tables.transitions.insert(workflow=workflow, subject_id=subject, **rows).execute()


def surplus(shop: Shop, name: str) -> None:
    shop.app.job_tables.payments.insert(
        payment_intent_id="pi_more", job_id=shop.jobs[name], cents=384, currency="usd", livemode=False,
        role="surplus", created_at=shop.now,
    ).execute()  # fmt: skip


def double(shop: Shop, name: str, effect: str) -> None:
    """The same effect once more."""
    table = shop.app.tables.effects
    row: Any = table.select().where((table.subject_id == shop.jobs[name]) & (table.name == effect)).dicts().get()
    table.insert(**{**row, "id": "twice"}).execute()


def misdirect(shop: Shop) -> None:
    """One job's effect was written to another, which has its own: as many as before."""
    table = shop.app.tables.effects
    mine = (table.subject_id == shop.jobs["done"]) & (table.name == "pending_deadline")
    assert table.update(subject_id=shop.jobs["refunded"]).where(mine).execute()


def refund_in_full(shop: Shop, actor: str, **columns: Any) -> None:
    """Money and goods: the partial refund was the whole price, and so says every row."""
    shop.refund("refunded", cents=384)
    shop.payment("refunded", refunded_cents=384)
    shop.job("refunded", refunded_cents=384, refund_amount="3.84", **columns)
    shop.history("refunded", "refund", actor=actor)


def wait_long(shop: Shop) -> None:
    shop.history("paid", "payment_received", created_at=shop.now - LATER)
    shop.job("paid", paid_at=shop.now - LATER)


def lose_file(shop: Shop, **columns: Any) -> None:
    shop.gone.add(f"results/{shop.jobs['done']}.png")
    shop.job("done", version=shop.desk.job(shop.jobs["done"]).version, **columns)


def come_back(shop: Shop) -> None:
    """The buyer is amended after the purge."""
    now = shop.now
    shop.app.tables.transitions.insert(
        workflow="job", subject_id=shop.jobs["purged"], sequence=6, trigger="amend", from_state="abandoned",
        to_state="abandoned", actor="admin:jane", fingerprint="o", created_at=now,
    ).execute()  # fmt: skip
    shop.job("purged", email="jane@example.com", version=6)


def lose_source(shop: Shop) -> None:
    shop.gone.add(f"sources/{shop.jobs['working']}.png")


def blame_event(shop: Shop) -> None:
    events = shop.app.tables.events
    applied = events.get(events.event_id == "evt_paid")
    shop.history("told", "checkout_opened", caused_by=f"event:{applied.id}")


ADDRESS = "ask jane.doe@example.com"
OVERDUE = timedelta(hours=1)

PLANTS = (
    # history_gapless
    Plant(
        "a transition is gone", lambda s: remove_history(s, "done", "checkout_opened"), "history_gapless", "done"
    ),
    Plant(
        "no history at all",
        lambda s: remove_history(s, "early", "create"),
        "history_gapless effects_owed",
        "early",
    ),
    Plant("the version ran ahead", lambda s: s.job("done", version=99), "history_gapless", "done"),
    Plant("a state by hand", lambda s: s.job("waiting", status="abandoned"), "history_gapless", "waiting"),
    Plant(
        "a visit by hand", lambda s: s.job("purged", visit=4), "history_gapless timers_end_with_visit", "purged"
    ),
    Plant(
        "two transitions that do not meet",
        lambda s: s.history("done", "upscale_started", from_state="failed", fingerprint="older"),
        "history_gapless",
        "done",
    ),
    Plant("history of nobody", lambda s: history_of(s, "job", "ghost"), "history_gapless"),
    # history_legal
    Plant(
        "a trigger that leads elsewhere",
        lambda s: s.history("done", "checkout_opened", trigger="retry"),
        "history_legal",
        "done",
    ),
    Plant(
        "an unknown trigger",
        lambda s: s.history("waiting", "checkout_opened", trigger="magic"),
        "history_legal",
        "waiting",
    ),
    # effects_owed
    Plant("an effect is gone", lambda s: remove_effect(s, "done", "pending_deadline"), "effects_owed", "done"),
    Plant(
        "an effect of a stay is gone", lambda s: remove_effect(s, "done", "fetch_result"), "effects_owed", "done"
    ),
    Plant("an effect from nowhere", lambda s: s.owe("done", "tell_admin", sequence=99), "effects_owed", "done"),
    Plant("an effect that nobody owes", lambda s: s.owe("done", "purge_job"), "effects_owed", "done"),
    Plant(
        "an effect of a later visit", lambda s: s.effect("done", "submit_upscale", visit=9), "effects_owed", "done"
    ),
    Plant("an effect owed twice", lambda s: double(s, "done", "send_download_link"), "effects_owed", "done"),
    Plant("an effect of another job", misdirect, "effects_owed"),
    # leases
    Plant(
        "a claim without a lease", lambda s: s.effect("paid", "submit_upscale", lease_token=None), "leases", "paid"
    ),
    Plant(
        "a lease without an end", lambda s: s.effect("paid", "submit_upscale", lease_until=None), "leases", "paid"
    ),
    Plant(
        "a lease for days",
        lambda s: s.effect("paid", "submit_upscale", lease_until=s.now + LATER),
        "leases",
        "paid",
    ),
    Plant(
        "a lease on what waits",
        lambda s: s.effect("working", "poll_upscale", lease_token="t"),
        "leases",
        "working",
    ),
    Plant(
        "done without an attempt",
        lambda s: s.effect("done", "send_download_link", state="done", settled_at=s.now),
        "leases",
        "done",
    ),
    Plant(
        "due with every attempt used up",
        lambda s: s.effect("done", "send_download_link", attempts=150),
        "leases",
        "done",
    ),
    Plant(
        "more doubts than attempts", lambda s: s.effect("done", "send_download_link", doubts=1), "leases", "done"
    ),
    # effects_settled
    Plant(
        "cancelled at no time",
        lambda s: s.effect("done", "pending_deadline", settled_at=None),
        "effects_settled",
        "done",
    ),
    Plant(
        "due and settled", lambda s: s.effect("done", "warn_expiry", settled_at=s.now), "effects_settled", "done"
    ),
    Plant("in no state", lambda s: s.effect("done", "pending_deadline", state="gone"), "effects_settled", "done"),
    # timers
    Plant(
        "a timer survives its visit",
        lambda s: s.effect("done", "pending_deadline", state="due", settled_at=None),
        "timers_end_with_visit",
        "done",
    ),
    Plant(
        "no deadline any more",
        lambda s: s.effect("waiting", "payment_deadline", state="cancelled", settled_at=s.now),
        "waiting_ends",
        "waiting",
    ),
    Plant(
        "due for an hour",
        lambda s: s.effect("done", "send_download_link", due_at=s.now - OVERDUE),
        "nothing_overdue",
    ),
    Plant(
        "left by its worker",
        lambda s: s.effect("paid", "submit_upscale", lease_until=s.now - OVERDUE),
        "nothing_overdue",
    ),
    Plant(
        "an event that nobody handles", lambda s: s.event("evt_early", due_at=s.now - OVERDUE), "nothing_overdue"
    ),
    # definition
    Plant("an effect of another release", lambda s: s.owe("done", "teleport"), "definition effects_owed", "done"),
    Plant("a workflow of another release", lambda s: history_of(s, "zebra", "z1"), "definition"),
    # events
    Plant(
        "a cause that is not there",
        lambda s: s.history("done", "complete", caused_by="event:nothing"),
        "causes_on_record",
        "done",
    ),
    Plant(
        "an effect that is not there",
        lambda s: s.history("done", "complete", caused_by="effect:nothing"),
        "causes_on_record",
        "done",
        from_afar=False,
    ),
    Plant("an event applied twice", blame_event, "causes_on_record", "told"),
    Plant(
        "an event applied to nothing",
        lambda s: s.history("told", "payment_received", caused_by=None),
        "causes_on_record",
    ),
    Plant("the cause was ignored", lambda s: s.event("evt_paid", state="ignored"), "causes_on_record", "told"),
    Plant(
        "a parked event is forgotten", lambda s: s.job("early", parked_events=0), "events_accounted_for", "early"
    ),
    Plant(
        "an event too many is awaited", lambda s: s.job("done", parked_events=1), "events_accounted_for", "done"
    ),
    Plant("ignored without a reason", lambda s: s.event("evt_again", reason=None), "events_accounted_for"),
    Plant("ignored at no time", lambda s: s.event("evt_again", settled_at=None), "events_accounted_for"),
    Plant("an event in no state", lambda s: s.event("evt_again", state="lost"), "events_accounted_for"),
    # personal data
    Plant(
        "an address in a reason",
        lambda s: s.history("done", "complete", reason=ADDRESS),
        "no_personal_data",
        "done",
    ),
    Plant(
        "an address in an error",
        lambda s: s.effect("done", "send_download_link", last_error=ADDRESS),
        "no_personal_data",
        "done",
    ),
    Plant(
        "an address in the audit",
        lambda s: s.app.tables.audit.update(reason=ADDRESS).execute(),
        "no_personal_data",
    ),
    Plant(
        "an address in an event",
        lambda s: s.event("evt_paid", payload=json.dumps({"email": "j@example.com"})),
        "no_personal_data",
        "told",
    ),
    # payments
    Plant("too little was paid", lambda s: s.payment("done", cents=383), "payments_match", "done"),
    Plant("paid in another currency", lambda s: s.payment("done", currency="eur"), "payments_match", "done"),
    Plant("paid with play money", lambda s: s.payment("done", livemode=True), "payments_match", "done"),
    Plant(
        "paid by another intent", lambda s: s.payment("done", payment_intent_id="pi_x"), "payments_match", "done"
    ),
    Plant("paid without a payment", lambda s: remove_payment(s, "done"), "payments_match", "done"),
    Plant("paid cents by hand", lambda s: s.job("done", paid_cents=385), "payments_match", "done"),
    Plant("another amount is shown", lambda s: s.job("done", amount_charged="3.85"), "payments_match", "done"),
    Plant("a payment without a transition", lambda s: surplus(s, "done"), "payments_match", "done"),
    Plant("unpaid by hand", lambda s: s.job("failed", payment_status="pending"), "payments_match", "failed"),
    # refunds
    Plant(
        "refunded by hand",
        lambda s: s.job("failed", refunded_cents=1, refund_amount="0.01"),
        "refunds_add_up",
        "failed",
    ),
    Plant("on its way by hand", lambda s: s.job("failed", refunding_cents=5), "refunds_add_up", "failed"),
    Plant(
        "the payment counts otherwise",
        lambda s: s.payment("refunded", refunded_cents=99),
        "refunds_add_up",
        "refunded",
    ),
    Plant(
        "another refund is shown", lambda s: s.job("refunded", refund_amount="9.99"), "refunds_add_up", "refunded"
    ),
    Plant("below nothing", lambda s: s.job("failed", disputed_cents=-1), "refunds_add_up", "failed"),
    Plant("refunded in another currency", lambda s: s.refund("refunded", currency="eur"), "refunds_add_up"),
    Plant(
        "refunded, and Stripe knows of nothing",
        lambda s: s.refund("refunded", stripe_refund_id=None),
        "refunds_add_up",
    ),
    # goods or money
    Plant(
        "goods for nothing",
        lambda s: s.job("working", payment_status="pending"),
        "goods_or_money payments_match",
        "working",
    ),
    Plant("goods and money", lambda s: refund_in_full(s, "system"), "goods_or_money", "refunded"),
    # the end
    Plant(
        "nobody will give it back",
        lambda s: s.effect("failed", "refund_due", state="cancelled", settled_at=s.now),
        "paid_job_ends",
        "failed",
    ),
    Plant("paid for ten days", wait_long, "paid_job_ends", "paid"),
    Plant("its file is gone", lose_file, "files_there", "done"),
    Plant("its source is gone", lose_source, "files_there", "working"),
    Plant("no link to its file", lambda s: s.job("done", download_token=None), "files_there", "done"),
    Plant(
        "purged, and known", lambda s: s.job("purged", email="jane@example.com"), "purged_is_forgotten", "purged"
    ),
    Plant(
        "purged, and its page is known",
        lambda s: s.job("purged", image_url="https://x.example/me.png"),
        "purged_is_forgotten",
        "purged",
    ),
    Plant(
        "an address for a reason", lambda s: s.job("done", refund_reason=ADDRESS), "purged_is_forgotten", "done"
    ),
)


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_what_is_planted_is_found_and_nothing_else(shop: Shop, plant: Plant) -> None:
    plant.do(shop)
    found = list(shop.judged().everywhere(sample=None if plant.from_afar else 100))
    assert {one.invariant for one in found} == set(plant.finds.split()), found
    if plant.job is None:
        return
    of_job = shop.judged().of_subject("job", shop.jobs[plant.job])
    assert {one.invariant for one in of_job} == set(plant.finds.split()) - {"definition"}, of_job
    assert {one.subject_id for one in found if one.subject_id} <= {shop.jobs[plant.job]}


def test_every_invariant_has_a_plant() -> None:
    assert {name for plant in PLANTS for name in plant.finds.split()} == {item.name for item in ALL}
    assert len({item.name for item in (*ALL, *ATTENTION)}) == len(ALL) + len(ATTENTION)


@pytest.mark.parametrize(
    "do",
    [
        pytest.param(lambda s: refund_in_full(s, "admin:jane"), id="given back after the delivery"),
        pytest.param(lambda s: refund_in_full(s, "system", overridden=True), id="overridden"),
        pytest.param(
            lambda s: s.history("done", "checkout_opened", trigger="x", fingerprint="o"), id="an older definition"
        ),
        pytest.param(
            lambda s: s.history("done", "complete", reason="see https://x.example/a@2x.png"), id="an @ in a page"
        ),
        pytest.param(lambda s: lose_file(s, upscaled_file_path=None), id="a file removed in time"),
        pytest.param(come_back, id="a purged buyer who came back"),
    ],
)
def test_what_is_on_record_is_no_violation(shop: Shop, do: Callable[[Shop], object]) -> None:
    do(shop)
    assert list(shop.judged().everywhere()) == []


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("events_for_a_person", lambda s: s.event("evt_again", state="needs_person")),
        ("payments_for_a_person", lambda s: surplus(s, "done")),
        ("refunds_for_a_person", lambda s: s.refund("refunded", state="requested")),
        ("money_for_a_person", lambda s: remove_effect(s, "failed", "refund_due")),
        ("receivers_for_a_person", lambda s: s.app.tables.audit.insert(
            actor="system", act="hook_missed", target="hook:0123456789abcdef", created_at=s.app.clock.now()
        ).execute()),
    ],
)
def test_what_waits_for_a_person_is_told(shop: Shop, name: str, do: Callable[[Shop], object]) -> None:
    do(shop)
    if name == "refunds_for_a_person":
        refunds, table = shop.app.job_tables.refunds, shop.app.tables.transitions
        refund = refunds.get(refunds.job_id == shop.jobs["refunded"])
        table.update(trigger="overdue").where(table.subject_id == refund.refund_id).execute()
    assert {one.invariant for one in shop.judged(ATTENTION).everywhere()} == {name}


def test_no_text_of_a_violation_names_a_person(shop: Shop) -> None:
    shop.history("done", "complete", reason=ADDRESS)
    shop.job("purged", email="jane@example.com")
    found = list(shop.judged().everywhere())
    assert len(found) == 2
    assert not [one for one in found if "jane" in one.text]


def test_a_job_that_is_not_there_breaks_nothing(shop: Shop) -> None:
    assert shop.judged().of_subject("job", "nobody") == []


def test_no_more_is_told_than_asked_for(shop: Shop) -> None:
    jobs = shop.app.job_tables.jobs
    jobs.update(version=jobs.version + 7).execute()
    gapless = shop.judged(ENGINE_INVARIANTS[:1])
    assert len(list(gapless.everywhere(limit=3))) == 3
    assert len(list(gapless.everywhere())) == len(shop.jobs)


def test_a_sales_story_with_a_lost_worker_breaks_nothing(
    sqlite_url: str, tmp_path: Path, providers: Providers
) -> None:
    """A worker comes back late, another dies in the middle: what they leave behind is in order."""
    with open_sales(sqlite_url, tmp_path, providers) as sales:
        job = sales.sold()
        sales.perform_late("submit_upscale")
        sales.call_back(sales.upscaled())
        sales.perform_and_die("fetch_result")
        assert violations(sales.app) == []
        sales.advance(minutes=2)
        sales.work()
        assert sales.job(job.job_id).status == "completed"
        assert violations(sales.app) == []
