"""Owns what handlers may reach: the clients, the storage, the settings.

Built by app.py; handed to every handler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO, Protocol

from smi_workflow.engine.attempt import Attempt
from smi_workflow.engine.clock import Clock
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Inbox
from smi_workflow.integrations.fetching import Fetched, FetchPolicy
from smi_workflow.integrations.hooks import HookPoster
from smi_workflow.integrations.letters import LetterWriter, make_message_id
from smi_workflow.integrations.mailer import Mailer
from smi_workflow.integrations.storage import FileStorage, ImageLimits
from smi_workflow.integrations.stripe_api import StripeApi
from smi_workflow.integrations.upsampler_api import UpsamplerClient
from smi_workflow.jobs.hooks import HOOK_MISSED
from smi_workflow.jobs.tokens import sign, sign_until
from smi_workflow.settings import Settings

SOURCE_LINK_LIFE = timedelta(hours=48)


class Fetch(Protocol):
    """Downloads a URL under a policy; `fetching.fetch` does."""

    def __call__(self, url: str, into: BinaryIO, policy: FetchPolicy, *, service: str) -> Fetched: ...


@dataclass(frozen=True, slots=True)
class Outside:
    """The clients of everything beyond this process and its database."""

    stripe: StripeApi
    upsampler: UpsamplerClient
    storage: FileStorage
    letters: LetterWriter
    mailer: Mailer
    fetch: Fetch
    hooks: HookPoster


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Where what a provider tells is taken in, also when we had to ask for it.

    Attributes:
        reduce: cuts one of Stripe's events down to what is kept; InvalidInput for what is none.
        kinds: the types of events that are worth taking in.
    """

    inbox: Inbox
    reduce: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    kinds: Sequence[str]


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a handler may use."""

    settings: Settings
    engine: Engine
    clock: Clock
    outside: Outside
    arrivals: Arrivals

    @property
    def stripe(self) -> StripeApi:
        return self.outside.stripe

    @property
    def upsampler(self) -> UpsamplerClient:
        return self.outside.upsampler

    @property
    def storage(self) -> FileStorage:
        return self.outside.storage

    def source_policy(self) -> FetchPolicy:
        """How a stranger's image may be fetched."""
        return FetchPolicy(
            allow_private=self.settings.allow_private_addresses,
            max_bytes=self.settings.source_bytes_max,
            total_timeout_seconds=self.settings.fetch_timeout_seconds,
        )

    def result_policy(self) -> FetchPolicy:
        """How Upsampler's result may be fetched."""
        return FetchPolicy(
            allow_private=self.settings.allow_private_addresses,
            hosts=self.settings.result_hosts,
            max_bytes=self.settings.result_bytes_max,
            total_timeout_seconds=self.settings.result_timeout_seconds,
        )

    def result_limits(self) -> ImageLimits:
        """How large a result may be."""
        return ImageLimits(max_bytes=self.settings.result_bytes_max, max_pixels=self.settings.output_pixels_max)

    def source_url(self, job_id: str) -> str:
        """Our copy of the source, for Upsampler; signed, and over after two days."""
        until = self.clock.now() + SOURCE_LINK_LIFE
        return (
            f"{self.settings.downloads_url}/source/{job_id}/"
            f"{sign_until(self.settings.secret_keys[0], 'source', until, job_id)}"
        )

    def callback_url(self, effect_id: str) -> str:
        """Where Upsampler reports; nobody else knows it."""
        signature = sign(self.settings.secret_keys[0], "upsampler", effect_id)
        return f"{self.settings.public_url}/webhooks/upsampler/{effect_id}/{signature}"

    def has_missed_of_late(self, receiver: str, within: timedelta) -> bool:
        """Whether it stands on record already that this receiver of hooks does not take them."""
        audit = self.engine.tables.audit
        recent = audit.select(audit.id).where(
            (audit.target == f"hook:{receiver}")
            & (audit.act == HOOK_MISSED)
            & (audit.created_at > self.clock.now() - within)
        )
        return bool(recent.exists())

    def note_missed(self, receiver: str) -> None:
        """Put it on record, once the admin is told; dying before it tells once more, no worse."""
        self.engine.audit(actor="system", act=HOOK_MISSED, target=f"hook:{receiver}")

    def send(self, attempt: Attempt, template: str, to: str, context: Mapping[str, Any]) -> None:
        """Write and send one mail; its Message-ID stays the same however often it is sent."""
        message_id = make_message_id(attempt.id, self.settings.mail_from)
        letter = self.outside.letters.write(template, to, context, message_id=message_id)
        self.outside.mailer.send(letter)
