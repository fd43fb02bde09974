"""Owns what receivers outside are told of a job, and what they are called. Called by lifecycle.py and effects.

A receiver's URL may carry secrets: rows, messages and logs only ever hold the name that is made of it.
"""

from __future__ import annotations

from typing import Any

from smi_workflow.engine.declaration import Case
from smi_workflow.jobs.model import Job
from smi_workflow.jobs.telling import what_happened
from smi_workflow.jobs.tokens import sign
from smi_workflow.settings import Settings

NAME_LENGTH = 16
# What the audit table calls it when a receiver did not take a message, once a day for each.
HOOK_MISSED = "hook_missed"


def receiver_name(key: bytes, url: str) -> str:
    """What a receiver is called: an HMAC, so that nobody finds out a URL by trying."""
    return sign(key, "hook", url)[:NAME_LENGTH]


def receivers(settings: Settings) -> dict[str, str]:
    """The receivers that are told of what happens now: name → URL."""
    key = settings.secret_keys[0]
    return {receiver_name(key, url): url for url in settings.hook_addresses}


def url_of(settings: Settings, name: str) -> str | None:
    """The URL of a receiver, named under any of our keys; None when it is not in the settings."""
    keys, urls = settings.secret_keys, settings.hook_addresses
    return next((url for key in keys for url in urls if receiver_name(key, url) == name), None)


def messages(case: Case[Job]) -> list[dict[str, object]]:
    """What each receiver is told, frozen as it was: no personal data, no link, so that it may lie in the queue."""
    told = {
        "hook": str(case.hook).removeprefix("smi_"), "sequence": case.row.version, "status": case.state,
        "at": case.now.isoformat(),
    }  # fmt: skip
    return [{**told, "receiver": name} for name in receivers(case.policy)]


def note_failure(case: Case[Job]) -> None:
    """Keep which word was not taken by whom."""
    missed = case.facts["inputs"]
    case.record(receiver=missed["receiver"], hook=missed["hook"], missed=missed["sequence"])


def failure_to_tell(case: Case[Job]) -> dict[str, Any]:
    """What the admin is told; of one receiver no more than once in a while."""
    return {**what_happened(case), "receiver": case.facts["inputs"]["receiver"]}
