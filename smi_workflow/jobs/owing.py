"""Owns the conditions and inputs of what a job owes. Called by lifecycle.py."""

from __future__ import annotations

from typing import Any

from smi_workflow.engine.declaration import Case
from smi_workflow.jobs import guards
from smi_workflow.jobs.model import Job, JobStatus


def has_no_checkout(case: Case[Job]) -> bool:
    return bool(case.row.stripe_checkout_session_id is None)


def checkout_terms(case: Case[Job]) -> dict[str, object]:
    """Frozen, for every attempt must ask Stripe for the same: a deploy between two may change the settings."""
    pages = {"success_url": case.policy.success_url, "cancel_url": case.policy.cancel_url}
    return {
        **{name: url.replace("{JOB_ID}", case.row.job_id) for name, url in pages.items()},
        "open_hours": case.policy.payment_timeout_hours,
    }


def checkout_may_be_open(case: Case[Job]) -> bool:
    known = case.row.stripe_checkout_session_id is not None and case.facts.get("session_status") != "expired"
    return known and case.state != JobStatus.AWAITING_PAYMENT and not guards.is_paid(case)


def another_checkout_is_open(case: Case[Job]) -> bool:
    """An admin had the job begin anew while its checkout was being opened: there are two."""
    return case.row.stripe_checkout_session_id not in (None, case.facts["session_id"])


def the_other_checkout(case: Case[Job]) -> dict[str, object]:
    return {"session_id": case.facts["session_id"]}


def money_is_held(case: Case[Job]) -> bool:
    return bool(case.row.refundable_cents > 0)


def money_came_back(case: Case[Job]) -> bool:
    """A bank returns what it had withdrawn, to a shop that has delivered nothing: it goes on to the buyer."""
    returned = case.facts["withdrawn_cents"] == 0
    return returned and case.state == JobStatus.FAILED and money_is_held(case)


def refund_is_full(case: Case[Job]) -> bool:
    return case.facts.get("amount_cents") in (None, case.row.refundable_cents)


def is_counted(case: Case[Job]) -> bool:
    """A settled refund of ours is among those under way, unless a person gave the money back in another way."""
    return bool(case.facts["is_ours"] and not case.facts.get("elsewhere"))


def settled_refund_ends_the_sale(case: Case[Job]) -> bool:
    """All of the money is back. But who overrode while it was on its way meant the buyer to have both."""
    if case.facts.get("role", "sale") != "sale" or (is_counted(case) and case.row.overridden):
        return False
    not_counted = 0 if is_counted(case) else case.facts["amount_cents"]
    return bool(case.row.refundable_cents <= not_counted)


def is_paid_back_by_stripe(case: Case[Job]) -> bool:
    return case.facts.get("elsewhere") is not True


def funds_are_withdrawn(case: Case[Job]) -> bool:
    return bool(case.facts["withdrawn_cents"]) and case.facts.get("role", "sale") == "sale"


def without_override(case: Case[Job]) -> bool:
    return case.facts.get("override") is not True


def only_deadlines(case: Case[Job]) -> bool:
    return case.facts.get("effects") is not True


def result_url(case: Case[Job]) -> dict[str, object]:
    return {"url": case.facts["image_url"]}


def link_generation(case: Case[Job]) -> dict[str, object]:
    return {"token_generation": case.row.token_generation}


def kept_source(case: Case[Job]) -> dict[str, object]:
    return {"file_name": case.row.source_file}


def delayed(case: Case[Job]) -> dict[str, object]:
    return {"delayed": case.trigger == "payment_processing"}


def removed_file(case: Case[Job]) -> dict[str, object]:
    return {"file_name": case.metadata["file_name"]}


def refunded_amount(case: Case[Job]) -> dict[str, object]:
    return {"amount_cents": case.facts["amount_cents"], "currency": case.facts.get("currency", case.row.currency)}


def stripe_would_not_refund(case: Case[Job]) -> bool:
    """No bank has lost it: our call came to nothing, and somebody may have been faster, without our being told."""
    return "effect" in case.facts


def payment_to_look_into(case: Case[Job]) -> dict[str, object]:
    return {"payment_intent_id": case.facts["payment_intent_id"]}


def to(target: JobStatus) -> Any:
    def is_the_target(case: Case[Job]) -> bool:
        return bool(case.facts["target"] == target)

    return is_the_target
