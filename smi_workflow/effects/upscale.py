"""Owns what is asked of Upsampler, and the fetching of its result. Called by perform.py.

Upsampler knows no idempotency keys: a crash between its answer and our commit submits once more. That costs
credits and harms nobody: both results are of the same image, and the first one to arrive is taken.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, Literal

from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome
from smi_workflow.engine.database import Slot
from smi_workflow.engine.tables import EventState
from smi_workflow.errors import ServiceRefused
from smi_workflow.integrations.fetching import check_url
from smi_workflow.integrations.storage import StoredImage
from smi_workflow.integrations.upsampler_api import Upscale, UpscaleStatus, failure_code

POLL_GROWTH = 1.5
POLL_LONGEST = timedelta(minutes=5)


def submit_upscale(world: World, attempt: Attempt) -> Outcome:
    """Hand our copy of the image to Upsampler, unless an earlier attempt did and its callback tells us so."""
    adopted = adopt_submission(world, attempt)
    if adopted is not None:
        return adopted
    answer = world.upsampler.submit(
        image_url=world.source_url(attempt.subject_id),
        factor=attempt.row.factor,
        webhook_url=world.callback_url(attempt.id),
    )
    if answer.status is UpscaleStatus.FAILED:
        raise ServiceRefused("upsampler", answer.error or "failed at once", code=failure_code(answer.error))
    return _started(attempt, answer.id, answer)


def adopt_submission(world: World, attempt: Attempt) -> Outcome | None:
    """A callback that waits for us proves that an earlier attempt got through; its result is as good."""
    events = world.engine.tables.events

    def build() -> Any:
        parked = (events.state == EventState.PARKED) & (events.provider == "upsampler")
        of_subject = (events.workflow == Slot("workflow")) & (events.subject_id == Slot("subject_id"))
        return events.select().where(of_subject & parked)

    waiting = {"workflow": attempt.workflow, "subject_id": attempt.subject_id}
    for event in world.engine.registry.select("parked callbacks", events, build, waiting):
        told = json.loads(event.payload)
        if told["effect_id"] == attempt.id:
            return _started(attempt, told["id"], None)
    return None


def pending_deadline(world: World, attempt: Attempt) -> Outcome:
    """Paid, but never handed to Upsampler."""
    return Done("fail", {"code": "pending_timeout"}, reason="Upsampler could not be given the image in time")


def poll_upscale(world: World, attempt: Attempt) -> Outcome:
    """Ask, in case the callback is lost; ever more rarely."""
    if attempt.row.upsampler_job_id is None:
        return Done(note="nothing was ever submitted")
    answer = world.upsampler.status(attempt.row.upsampler_job_id)
    if answer.status in (UpscaleStatus.IN_QUEUE, UpscaleStatus.IN_PROGRESS):
        wait = timedelta(seconds=world.settings.poll_seconds * POLL_GROWTH ** min(attempt.waits + 1, 20))
        return Again(min(wait, max(POLL_LONGEST, timedelta(seconds=world.settings.poll_seconds))), answer.status)
    return _ended(world, attempt, answer)


def upscale_deadline(world: World, attempt: Attempt) -> Outcome:
    """Too long: ask once more, then give up."""
    if attempt.row.upsampler_job_id is None:
        # An admin put it here.
        return Done("fail", {"code": "never_submitted"}, reason="nothing was ever submitted to Upsampler")
    answer = world.upsampler.status(attempt.row.upsampler_job_id)
    if answer.status in (UpscaleStatus.IN_QUEUE, UpscaleStatus.IN_PROGRESS):
        reason = f"Upsampler was still {answer.status} after {world.settings.processing_timeout_minutes:g} minutes"
        return Done("fail", {"code": "upsampler_timeout"}, reason=reason)
    # Nobody asks after this: a result that cannot be used must end the job.
    return _ended(world, attempt, answer, on_refusal="fail")


def fetch_result(world: World, attempt: Attempt) -> Outcome:
    """Fetch, check and store the result, unless an earlier attempt did; the file is named after the effect."""
    found = find_result(world, attempt) if attempt.doubts else None
    if found is not None:
        return found
    stored = world.storage.store_image(
        _result_name(attempt),
        lambda file: world.outside.fetch(attempt.inputs["url"], file, world.result_policy(), service="result"),
        limits=world.result_limits(),
        expected_size=attempt.row.expected_size,
    )
    return _stored(stored)


def find_result(world: World, attempt: Attempt) -> Outcome | None:
    """Whether an earlier attempt stored the file before it died."""
    for ending in ("png", "jpg", "webp"):
        stored = world.storage.describe(f"{_result_name(attempt)}.{ending}")
        if stored is not None:
            return _stored(stored)
    return None


def fetch_deadline(world: World, attempt: Attempt) -> Outcome:
    """The result was announced, but could not be fetched in time."""
    return Done("fail", {"code": "fetch_timeout"}, reason="the result could not be fetched in time")


def remove_file(world: World, attempt: Attempt) -> Outcome:
    """Row first, file after: nobody is sent to a file that is gone."""
    removed = world.storage.remove(attempt.inputs["file_name"])
    return Done("file_removed", note="removed" if removed else "was gone already", on_refusal="skip")


def url_refusal(world: World, url: str | None) -> str:
    """Why a result must not be fetched from there; empty when it may."""
    if not url:
        return "Upsampler names no result"
    try:
        check_url(url, world.result_policy(), service="result")
    except ServiceRefused as refusal:
        return str(refusal)
    return ""


def _started(attempt: Attempt, upsampler_job_id: str, answer: Upscale | None) -> Outcome:
    facts = {
        "upsampler_job_id": upsampler_job_id,
        "submit_effect_id": attempt.id,
        "credits_used": answer.credit_cost if answer is not None else None,
    }
    return Done("upscale_started", facts, actor="upsampler")


def _ended(
    world: World, attempt: Attempt, answer: Upscale, on_refusal: Literal["fail", "skip"] = "skip"
) -> Outcome:
    if answer.status is UpscaleStatus.FAILED:
        reason = answer.error or "Upsampler gives no reason"
        return Done(
            "fail", {"code": failure_code(answer.error)}, actor="upsampler", reason=reason, on_refusal="skip"
        )
    facts = {
        "upsampler_job_id": answer.id,
        "submit_effect_id": attempt.row.submit_effect_id,
        "image_url": answer.image_url,
        "url_refusal": url_refusal(world, answer.image_url),
        "credits_used": answer.credit_cost,
    }
    return Done("upscale_delivered", facts, actor="upsampler", on_refusal=on_refusal)


def _stored(image: StoredImage) -> Outcome:
    facts = {
        "file_name": image.name, "width": image.width, "height": image.height, "format": image.format,
        "size_bytes": image.size_bytes, "sha256": image.sha256,
    }  # fmt: skip
    return Done("complete", facts)


def _result_name(attempt: Attempt) -> str:
    return f"results/{attempt.subject_id[:2]}/{attempt.subject_id}/{attempt.id}"
