"""Owns the list of handlers: effect's name → code. Called by app.py; perform.py checks that none is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from smi_workflow.effects import hook, notice, payment, periodic, upscale
from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Attempt, Handler, Outcome

Run = Callable[[World, Attempt], Outcome]
Lookup = Callable[[World, Attempt], Outcome | None]

HANDLERS: Mapping[str, tuple[Run, Lookup | None]] = {
    "create_checkout": (payment.create_checkout, payment.find_checkout),
    "payment_deadline": (payment.payment_deadline, None),
    "expire_session": (payment.expire_session, None),
    "refund_due": (payment.refund_due, None),
    "submit_refund": (payment.submit_refund, payment.find_refund),
    "check_refund": (payment.check_refund, None),
    "find_refunds": (payment.find_refunds, None),
    "refund_overdue": (payment.refund_overdue, None),
    "submit_upscale": (upscale.submit_upscale, upscale.adopt_submission),
    "pending_deadline": (upscale.pending_deadline, None),
    "poll_upscale": (upscale.poll_upscale, None),
    "upscale_deadline": (upscale.upscale_deadline, None),
    "fetch_result": (upscale.fetch_result, upscale.find_result),
    "fetch_deadline": (upscale.fetch_deadline, None),
    "remove_file": (upscale.remove_file, None),
    "send_download_link": (notice.send_download_link, None),
    "warn_expiry": (notice.warn_expiry, None),
    "expire_download": (notice.expire_download, None),
    "send_failure_notice": (notice.send_failure_notice, None),
    "send_refund_notice": (notice.send_refund_notice, None),
    "tell_admin": (notice.tell_admin, None),
    "send_hook": (hook.send_hook, None),
    "purge_job": (notice.purge_job, None),
    "schedule_due": (periodic.schedule_due, None),
    "run_schedule": (periodic.run_schedule, None),
    "schedule_deadline": (periodic.schedule_deadline, None),
}


def handlers(world: World) -> dict[str, Handler]:
    """Every handler, given its world."""
    return {
        name: Handler(partial(run, world), partial(lookup, world) if lookup is not None else None)
        for name, (run, lookup) in HANDLERS.items()
    }
