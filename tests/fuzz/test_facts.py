"""Facts, reasons and orders by hand and from programs: refused by name, never a fault.

Called by pytest, atheris.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from smi_workflow.cli.fire import _read_facts
from smi_workflow.errors import InvalidInput, SmiError
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.model import JobStatus
from smi_workflow.jobs.refunds import REFUND
from tests.fuzz.fuzzed import fuzzed
from tests.fuzz.made_up import cents, currencies, ids, json_values, maybe, objects, texts
from tests.fuzz.shop import no_faults, shop

FACTS: dict[str, st.SearchStrategy[Any]] = {
    "session_id": ids("cs_1"),
    "checkout_url": texts,
    "payment_intent_id": ids("pi-job-2"),
    "amount_cents": cents,
    "currency": currencies,
    "livemode": st.booleans(),
    "email": texts,
    "session_status": ids("expired"),
    "code": texts,
    "effect": texts,
    "upsampler_job_id": texts,
    "submit_effect_id": ids("e1"),
    "image_url": texts,
    "url_refusal": texts | st.just(""),
    "credits_used": st.integers() | st.decimals(),
    "file_name": texts,
    "width": st.just(80),
    "height": st.just(40),
    "format": texts,
    "size_bytes": st.integers(),
    "sha256": texts,
    "override": st.booleans(),
    "effects": st.booleans(),
    "target": st.sampled_from(list(JobStatus)) | texts,
    "fields": objects({"email": texts, "post_id": st.integers(), "attachment_id": st.integers()}),
    "token_generation": st.integers(0, 3),
    "is_ours": st.booleans(),
    "role": ids("sale", "surplus"),
    "refund_id": texts,
    "stripe_refund_id": texts,
    "charge_id": texts,
    "was_settled": st.booleans(),
    "withdrawn_cents": cents,
    "dispute_id": texts,
}
facts = st.fixed_dictionaries({}, optional={name: maybe(value) for name, value in FACTS.items()})
actors = st.sampled_from(["admin:jane", "admin:jane", "system", "stripe"])


def fire(workflow: str, subject: str, trigger: str, actor: str, reason: str, given: dict[str, Any]) -> None:
    made = shop()
    made.reset()
    try:
        made.app.engine.fire(workflow, subject, trigger, actor=actor, reason=reason, facts=given)
    except SmiError:
        return
    # What was written can be read, and counted with.
    row = made.app.engine.read(workflow, subject)
    if workflow == "job":
        assert isinstance(row.refundable_cents, int)
        assert isinstance(row.expected_size[0], int)
        made.app.jobs.explain(subject)
    assert made.app.engine.history(workflow, subject)[-1].trigger == trigger


@fuzzed(
    600, number=st.integers(0, 7), trigger=st.sampled_from(JOB.triggers()), actor=actors, reason=texts, given=facts
)
def test_a_job_takes_facts_or_refuses_them(
    number: int, trigger: str, actor: str, reason: str, given: dict[str, Any]
) -> None:
    fire("job", shop().job_ids[number], trigger, actor, reason, given)


@fuzzed(
    200,
    number=st.integers(0, 1),
    trigger=st.sampled_from(REFUND.triggers()),
    actor=actors,
    reason=texts,
    given=facts,
)
def test_a_refund_takes_facts_or_refuses_them(
    number: int, trigger: str, actor: str, reason: str, given: dict[str, Any]
) -> None:
    fire("refund", shop().refund_ids[number], trigger, actor, reason, given)


@fuzzed(100, subject=texts, trigger=texts, actor=texts, reason=texts)
def test_no_name_is_a_fault(subject: str, trigger: str, actor: str, reason: str) -> None:
    fire("job", subject, trigger, actor, reason, {})
    fire("job", shop().job_ids[0], "resend", actor, reason, {})


@fuzzed(200, given=st.lists(texts | st.builds("{}={}".format, texts, texts | json_values.map(str)), max_size=4))
def test_facts_of_a_command_line_are_read_or_refused(given: list[str]) -> None:
    try:
        found = _read_facts(given)
    except InvalidInput:
        return
    assert len(found) <= len(given)


@fuzzed(
    200,
    order=objects(
        {
            "image_url": texts,
            "resolution": st.sampled_from(["4x", "8x", "2x"]),
            "image_width": st.integers(0, 10_000),
            "image_height": st.integers(0, 10_000),
            "post_id": st.integers(),
            "attachment_id": st.integers(),
            "email": texts,
        }
    ),
    key=st.none() | texts,
)
def test_an_order_of_a_program_is_taken_or_refused(order: dict[str, Any], key: str | None) -> None:
    made = shop()
    made.reset()
    try:
        made.app.jobs.create_job(order, actor="buyer", idempotency_key=key)
    except SmiError:
        return
    raise AssertionError("there is no image anywhere")


@fuzzed(100, message_id=st.text(st.characters(exclude_categories=["Cs"])) | st.just("e1"))
def test_a_message_that_names_nothing_does_nothing(message_id: str) -> None:
    made = shop()
    made.reset()
    with no_faults():
        assert made.app.inbox.handle(message_id) is None
        assert made.app.performer.perform(message_id) == "nothing to do"
