"""Owns the word to receivers outside. Called by perform.py."""

from __future__ import annotations

import json
from datetime import timedelta

from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Again, Attempt, Done, Outcome, Skip
from smi_workflow.jobs.hooks import url_of

# A new receiver is owed a word by whoever was started first with it, and may reach a worker that was not yet.
SETTINGS_SPREAD, SETTINGS_LOOK = timedelta(hours=1), timedelta(minutes=1)


def send_hook(world: World, attempt: Attempt) -> Outcome:
    """One receiver is told of one transition; the message and its id are the same each time."""
    told = attempt.inputs
    url = url_of(world.settings, told["receiver"])
    if url is None:
        unknown = f"receiver {told['receiver']} is not in SMI_HOOK_URLS"
        if attempt.clock.now() - attempt.owed_at < SETTINGS_SPREAD:
            return Again(SETTINGS_LOOK, unknown)
        return Skip(unknown)
    world.outside.hooks.post(
        url, body_of(attempt), receiver=told["receiver"], message_id=attempt.id, now=attempt.clock.now()
    )
    return Done(note="taken")


def body_of(attempt: Attempt) -> str:
    """What a receiver reads. `sequence` counts the transitions of a job, so that they can be put in order."""
    told = attempt.inputs
    data = {"job_id": attempt.subject_id, "sequence": told["sequence"], "status": told["status"]}
    return json.dumps({"type": told["hook"], "timestamp": told["at"], "data": data}, separators=(",", ":"))
