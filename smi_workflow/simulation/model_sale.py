"""Owns the scenarios of the sale: what buyers, Stripe, Upsampler and admins may do, and how often.

Called by model_report.py and tests. All of it at once would never end; each scenario gives one part of the world
room to misbehave, and is explored to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs.alerts import ALERT
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.model import Dispute, JobStatus, Payment, PaymentRole
from smi_workflow.jobs.refunds import REFUND
from smi_workflow.simulation import model_sale_checks as checks
from smi_workflow.simulation.model import START, Act, Scenario, Scene
from smi_workflow.simulation.model_plain import fires, plain_scenario
from smi_workflow.simulation.model_shop import HEIGHT, WIDTH, Shop, Submission, finish, settings
from smi_workflow.simulation.model_stripe import (
    JOB_ID,
    PRICE,
    Charge,
    MadeRefund,
    Session,
    add_refund,
    change,
    expire,
    left,
    pay,
    tell,
    tell_dispute,
    tell_refund,
    tell_session,
)

PART = 100
Names = frozenset[str]
NOTICES = frozenset({"tell_admin", "send_hook", "send_download_link", "send_failure_notice", "send_refund_notice"})
TOLD = frozenset({"tell_admin"})
RECEIVERS = ("https://one.example/hook", "https://two.example/hook")
# What comes after the sale, and what only asks again: left out where something else is looked at.
LINKS = frozenset({"warn_expiry", "expire_download"})
LATER = LINKS | {"purge_job", "remove_file"}
ASKING = frozenset({"refund_overdue", "expire_session"})
SLOW = ASKING | {"poll_upscale"}
WORK = frozenset({"submit_upscale", "pending_deadline"})
EARLY = LATER | WORK | {"refund_overdue"}
QUIET = LATER | SLOW | {"pending_deadline", "upscale_deadline", "fetch_deadline"}
PROMPT, ALL = frozenset({"upsampler"}), frozenset({"upsampler", "stripe"})
# Columns for people and reports: no guard, condition or handler decides on them.
FOR_PEOPLE = frozenset(
    {"refund_reason", "amount_charged", "refund_amount", "refunded_at", "credits_used", "failed_at", "paid_at",
     "processing_started_at", "completed_at", "created_at", "updated_at", "reason", "download_token",
     "email_sent", "checkout_url", "upscaled_url"}
)  # fmt: skip
BOOKS: Mapping[str, object] = {
    "sessions": (), "charges": (), "refunds": (), "submissions": (), "files": (), "overdrawn": False,
}  # fmt: skip


def sale_scenarios(job: Workflow = JOB, refund: Workflow = REFUND) -> tuple[Scenario, ...]:
    """Every scenario of the sale; together they fire each trigger and settle each effect."""

    def scenario(
        name: str, begin: Callable[[Scene], None], *, eager: Names = NOTICES, idle: Names = frozenset(),
        prompt: Names = frozenset(), hold: bool = False, hooks: tuple[str, ...] = (), in_flight: int = 0,
        **budget: int,
    ) -> Scenario:  # fmt: skip
        secret = ("whsec_" + "bW9kZWwg" * 4,)
        policy = settings(
            unexpected_payment="hold" if hold else "refund", hook_urls=hooks, hook_secret=secret
        )
        shop = Shop(policy)
        return Scenario(
            name=name, workflows=(job, refund), begin=begin, tables=(Payment, Dispute), policy=policy,
            outside=BOOKS, acts=ACTS, budget=budget, handlers=shop.handlers, lookups=shop.lookups,
            readers=shop.readers, invariants=checks.ALWAYS, on_step=checks.ON_STEP, at_rest=checks.AT_REST,
            ended=checks.sale_is_over, eager=eager, idle=idle, prompt=prompt, patient=_patient(job, refund),
            ignored=FOR_PEOPLE, kept=frozenset({"submit_upscale"}), clocks=frozenset({"download_expires_at"}),
            in_flight=in_flight,
        )  # fmt: skip

    return (
        scenario("hooks", order, idle=QUIET, prompt=ALL, hooks=RECEIVERS, faults=1),
        scenario("checkout", order, idle=LINKS | WORK, slow=1, declines=1, faults=2),
        scenario("strange payments", order, idle=EARLY, strange=1, faults=1, sinks=1),
        scenario("strange payments, held", order, idle=LATER | WORK | SLOW, hold=True, strange=2, returns=1),
        scenario("payments told piece by piece", order, idle=EARLY | SLOW, strange=1, charges=0),
        scenario("unpaid retries", order, idle=EARLY, slow=1, admin_retry=1),
        scenario("upscale", paid, idle=LATER | ASKING, faults=1, late=0),
        scenario("upscale again", paid, idle=LATER | SLOW, prompt=ALL, admin_retry=1, late=0),
        scenario("delivery", delivered, eager=TOLD, faults=1, admin_files=2),
        scenario("refunds", paid, idle=QUIET, prompt=ALL, admin_refund=2),
        scenario("refunds in trouble", delivered, idle=LATER, admin_refund=1, sinks=1, faults=2),
        scenario("refunds that fail", paid, idle=QUIET, prompt=PROMPT, admin_refund=1, sinks=1),
        scenario("refunds at Stripe", paid, idle=QUIET, prompt=PROMPT, admin_refund=1, foreign=1),
        scenario("refunds nobody tells of", delivered, idle=QUIET, admin_refund=1, mute=1),
        scenario("refunds tried again", delivered, idle=QUIET, prompt=PROMPT, admin_refund=1, sinks=1, lost=2,
                 buyers=1),
        scenario("lost refunds of strange money", order, idle=EARLY | SLOW, prompt=ALL, strange=1, sinks=1, lost=1,
                 returns=1),
        scenario("refunds told twice", delivered, idle=QUIET, admin_refund=1, foreign=1, sinks=1, copies=2),
        scenario("chargebacks", paid, idle=QUIET, prompt=PROMPT, dispute=3),
        scenario("chargebacks and refunds", paid, idle=QUIET, prompt=ALL, admin_refund=1, dispute=3),
        scenario("retries", paid, idle=QUIET, prompt=ALL, admin_retry=2, admin_fail=1),
        scenario("retries and refunds", paid, idle=QUIET, prompt=ALL, admin_retry=1, admin_fail=1, admin_refund=1),
        scenario("overrides at the checkout", order, idle=EARLY, admin_override=1, faults=1),
        scenario("overrides", order, idle=LATER | SLOW, prompt=ALL, admin_override=1),
        scenario("two overrides", paid, idle=QUIET, prompt=ALL, admin_override=2),
        scenario("by hand", paid, idle=QUIET, prompt=ALL, by_hand=1, admin_refund=1),
        scenario("late workers", order, idle=LATER | SLOW | WORK, slow=1, in_flight=1),
        scenario("late workers, paid", paid, idle=QUIET, prompt=ALL, admin_refund=1, admin_fail=1, in_flight=1),
        plain_scenario([ALERT]),
    )


def _patient(*flows: Workflow) -> frozenset[str]:
    return frozenset(name for flow in flows for name, effect in flow.effects().items() if effect.attempts >= 1000)


def order(scene: Scene) -> None:
    """A job has been ordered; its checkout is to be opened."""
    columns = {
        "job_id": JOB_ID, "image_url": "https://example.com/p.png", "image_width": WIDTH, "image_height": HEIGHT,
        "resolution": "4x", "currency": "usd", "markup_percentage": 500, "livemode": False,
        "amount_due_cents": PRICE, "source_file": "sources/job-1.png", "email": "jane@example.com",
        "created_at": START,
    }  # fmt: skip
    scene.start("job", columns, actor="buyer")


def paid(scene: Scene) -> None:
    """A job has been ordered and paid."""
    order(scene)
    opened = {"session_id": "cs_1", "checkout_url": "https://pay.example/cs_1"}
    scene.settle(next(item for item in scene.effects if item.effect.name == "create_checkout"))
    scene.fire("job", JOB_ID, "checkout_opened", actor="system", facts=opened)
    session = Session("cs_1", "create_checkout-1", "complete", "paid", "pi_1")
    scene.outside["sessions"] = (session,)
    scene.outside["charges"] = (Charge("pi_1", PRICE),)
    facts = {
        "session_id": session.id, "payment_intent_id": session.intent, "amount_cents": PRICE, "currency": "usd",
        "livemode": False, "email": None,
    }  # fmt: skip
    scene.fire("job", JOB_ID, "payment_received", actor="stripe", facts=facts)


def delivered(scene: Scene) -> None:
    """A job has been ordered, paid, upscaled and stored."""
    paid(scene)
    submit = next(item for item in scene.effects if item.effect.name == "submit_upscale")
    scene.settle(submit)
    scene.outside["submissions"] = (Submission("up-1", submit.id, "SUCCESS"),)
    started = {"upsampler_job_id": "up-1", "submit_effect_id": submit.id}
    scene.fire("job", JOB_ID, "upscale_started", actor="upsampler", facts=started)
    told = {**started, "image_url": "https://results.example/up-1.png", "url_refusal": ""}
    scene.fire("job", JOB_ID, "upscale_delivered", actor="upsampler", facts=told)
    fetch = next(item for item in scene.effects if item.effect.name == "fetch_result")
    scene.settle(fetch)
    name = f"results/jo/{JOB_ID}/{fetch.id}.png"
    scene.outside["files"] = (name,)
    stored = {
        "file_name": name, "width": WIDTH * 4, "height": HEIGHT * 4, "format": "PNG", "size_bytes": 9,
        "sha256": "",
    }  # fmt: skip
    scene.fire("job", JOB_ID, "complete", actor="system", facts=stored)


# -- buyers and Stripe ------------------------------------------------------------------------------------------

Finds = Callable[[Scene], Any]


def _when(label: str, kind: str, finds: Finds, do: Callable[[Scene, Any], object]) -> Act:
    """Something that is done to whatever `finds` finds."""
    return Act(label, kind, lambda scene: finds(scene) is not None, _doing(finds, do))


def _doing(finds: Finds, do: Callable[[Scene, Any], object]) -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        do(scene, finds(scene))

    return run


def _session(status: str, payment_status: str = "unpaid") -> Finds:
    def find(scene: Scene) -> Session | None:
        wanted = (status, payment_status)
        return next((s for s in scene.outside["sessions"] if (s.status, s.payment_status) == wanted), None)

    return find


def _charge(dispute: str) -> Finds:
    def find(scene: Scene) -> Charge | None:
        return next((one for one in scene.outside["charges"] if one.dispute == dispute), None)

    return find


def _made(status: str) -> Finds:
    def find(scene: Scene) -> MadeRefund | None:
        return next((one for one in scene.outside["refunds"] if one.status == status), None)

    return find


def _refundable(scene: Scene) -> Charge | None:
    return next((one for one in scene.outside["charges"] if left(scene, one) > PART), None)


def _working(scene: Scene) -> Any:
    """What Upsampler works on; what it says of work nobody waits for is looked at in one scenario only."""
    if "late" not in scene.plan.scenario.budget and checks.job_of(scene).status not in ("pending", "processing"):
        return None
    return next((one for one in scene.outside["submissions"] if one.status == "IN_PROGRESS"), None)


def _pay_slowly(scene: Scene, one: Session) -> None:
    waiting = change(scene, "sessions", one, status="complete")
    tell_session(scene, "completed", waiting)


def _fail_slowly(scene: Scene, one: Session) -> None:
    failed = change(scene, "sessions", one, payment_status="failed")
    tell_session(scene, "async_payment_failed", failed)


def _decline(scene: Scene, one: Session) -> None:
    number = scene.spent.get("declines", 0)
    tell(scene, "payment_intent.payment_failed", id=f"pi_declined_{number}", metadata={"job_id": JOB_ID})


def _pay_elsewhere(scene: Scene, one: Session) -> None:
    other = Session(f"cs_other_{scene.spent.get('strange', 0)}", "other")
    scene.outside["sessions"] = (*scene.outside["sessions"], other)
    pay(scene, other)


def _ask_buyer(scene: Scene, one: MadeRefund) -> None:
    tell_refund(scene, "updated", change(scene, "refunds", one, status="pending"))


def _call_off(scene: Scene, one: MadeRefund) -> None:
    tell_refund(scene, "updated", change(scene, "refunds", one, status="canceled"))


def _settle(scene: Scene, one: MadeRefund) -> None:
    tell_refund(scene, "updated", change(scene, "refunds", one, status="succeeded"))


def _sink(scene: Scene, one: MadeRefund) -> None:
    tell_refund(scene, "failed", change(scene, "refunds", one, status="failed"))


def _dispute(kind: str, dispute: str) -> Callable[[Scene, Charge], None]:
    def do(scene: Scene, one: Charge) -> None:
        taken = one.cents if dispute == "withdrawn" else 0
        new = change(scene, "charges", one, dispute=dispute, withdrawn_cents=taken)
        tell_dispute(scene, kind, new, dispute)

    return do


def _any_session(scene: Scene) -> Session | None:
    return scene.outside["sessions"][0] if scene.outside["sessions"] else None


_BUYER = (
    _when("the buyer pays", "", _session("open"), pay),
    _when("the buyer pays by bank debit, which takes days", "slow", _session("open"), _pay_slowly),
    _when("the bank debit succeeds", "", _session("complete"), pay),
    _when("the bank debit fails", "", _session("complete"), _fail_slowly),
    _when("the buyer's card is declined", "declines", _session("open"), _decline),
    _when("the checkout session ends by itself", "", _session("open"), expire),
    _when("another amount is paid", "strange", _session("open"), lambda s, one: pay(s, one, cents=999)),
    _when("another currency is paid", "strange", _session("open"), lambda s, one: pay(s, one, currency="eur")),
    _when("it is paid in live mode", "strange", _session("open"), lambda s, one: pay(s, one, livemode=True)),
    _when("somebody pays in another session of this job", "strange", _any_session, _pay_elsewhere),
)
_STRIPE = (
    _when("Stripe settles a refund", "", _made("pending"), _settle),
    _when("the bank refuses a refund that was pending", "sinks", _made("pending"), _sink),
    _when("the buyer says where a refund may go", "buyers", _made("requires_action"), _ask_buyer),
    _when("a refund is called off that waits for the buyer", "", _made("requires_action"), _call_off),
    _when("the bank sends a settled refund back", "sinks", _made("succeeded"), _sink),
    _when("somebody refunds a part at Stripe's own pages", "foreign", _refundable,
          lambda scene, one: _foreign(scene, one, PART)),
    _when("somebody refunds all that is left at Stripe's own pages", "foreign", _refundable,
          lambda scene, one: _foreign(scene, one, left(scene, one))),
    _when("somebody refunds a part at Stripe's own pages, and only the charge tells of it", "mute", _refundable,
          lambda scene, one: _foreign(scene, one, PART, mute=True)),
    _when("the buyer disputes the payment", "dispute", _charge("none"), _dispute("created", "opened")),
    _when("the bank withdraws the money", "dispute", _charge("opened"), _dispute("funds_withdrawn", "withdrawn")),
    _when("the bank gives the money back", "dispute", _charge("withdrawn"),
          _dispute("funds_reinstated", "reinstated")),
    _when("Upsampler is done", "", _working, lambda scene, one: finish(scene, one, "SUCCESS")),
    _when("Upsampler fails", "", _working, lambda scene, one: finish(scene, one, "FAILED")),
)  # fmt: skip


def _foreign(scene: Scene, one: Charge, cents: int, *, mute: bool = False) -> None:
    add_refund(scene, one.intent, cents, "succeeded", {}, mute=mute)


def _strange_payment(scene: Scene) -> Any:
    rows = scene.tables[Payment].values()
    return next((row for row in rows if row.__dict__["role"] != PaymentRole.SALE), None)


def _return(scene: Scene, payment: Any) -> None:
    facts = {"payment_intent_id": payment.payment_intent_id}
    scene.fire("job", JOB_ID, "return_payment", actor="admin:jane", reason="it fits no sale", facts=facts)


# -- admins -----------------------------------------------------------------------------------------------------


_ADMIN = (
    fires("job", "retry", "admin_retry"),
    fires("job", "retry", "admin_retry", reason="a gift", override=True),
    fires("job", "fail", "admin_fail", reason="by hand", code="by_hand"),
    fires("job", "refund", "admin_refund", amount_cents=PART),
    fires("job", "refund", "admin_refund"),
    fires("job", "refund", "admin_refund", amount_cents=PRICE + 1),
    fires("job", "refund", "admin_refund", amount_cents=PRICE),
    *(fires("job", "override", "admin_override", reason="by hand", target=str(target)) for target in JobStatus),
    *(
        fires("job", "override", "admin_override", reason="by hand", target=str(target), effects=True)
        for target in JobStatus
    ),
    fires("refund", "retry", "lost"),
    fires("refund", "settle_elsewhere", "lost", reason="by bank transfer"),
    _when("an admin gives back what fits no sale", "returns", _strange_payment, _return),
    fires("job", "renew_download", "admin_files"),
    fires("job", "resend", "admin_files"),
    fires("job", "amend", "admin_files", fields={"post_id": 7}),
    fires("job", "correct_costs", "admin_files", costs={"credits_required": 15}),
    fires("job", "erase", "admin_files", reason="she asked for it"),
)
# What only effects and providers can know: an admin who says so must not be believed.
_SAID: dict[str, Any] = {"refund_id": "r", "amount_cents": PART, "currency": "usd", "is_ours": True}
_BY_HAND = (
    fires("job", "payment_received", "by_hand", session_id="cs_1", payment_intent_id="pi_9", amount_cents=PRICE,
          currency="usd", livemode=False, email=None),
    fires("job", "upscale_started", "by_hand", upsampler_job_id="up-9", submit_effect_id="submit_upscale-1"),
    fires("job", "complete", "by_hand", file_name="x.png", width=WIDTH * 4, height=HEIGHT * 4, format="PNG",
          size_bytes=9, sha256=""),
    fires("job", "refund_settled", "by_hand", **_SAID),
    fires("job", "refund_failed", "by_hand", **_SAID),
    fires("job", "dispute_opened", "by_hand", dispute_id="dp", withdrawn_cents=PRICE),
    fires("job", "dispute_closed", "by_hand", dispute_id="dp", withdrawn_cents=0),
)  # fmt: skip
ACTS = (*_BY_HAND, *_BUYER, *_STRIPE, *_ADMIN)
