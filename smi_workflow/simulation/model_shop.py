"""Owns the shop's real handlers and readers, put before the model's providers. Called by model_sale.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from peewee import Model
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from smi_workflow.effects.registry import HANDLERS
from smi_workflow.effects.world import Outside, World
from smi_workflow.engine.attempt import Attempt, Outcome
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.inbox import Reading
from smi_workflow.engine.unit import to_json
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import ServiceRefused, UnknownSubject
from smi_workflow.intake import translators
from smi_workflow.integrations.storage import StoredImage
from smi_workflow.integrations.upsampler_api import Upscale, UpscaleStatus, parse_upscale
from smi_workflow.settings import Settings
from smi_workflow.simulation.model import ModelHandler, ModelLookup, Scene
from smi_workflow.simulation.model_choices import Choices
from smi_workflow.simulation.model_records import Event
from smi_workflow.simulation.model_rows import Query, ReadTable, select
from smi_workflow.simulation.model_steps import SceneClock
from smi_workflow.simulation.model_stripe import Desk, ModelStripe, change

WIDTH, HEIGHT = 20, 10


class Submission(NamedTuple):
    """What Upsampler was given."""

    id: str
    effect_id: str
    status: str = "IN_PROGRESS"


class _Fixed(Settings):
    """Settings that no environment changes: a proof must not depend on who runs it."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def settings(**fields: Any) -> Settings:
    """The settings that the model's shop runs with: the defaults, but for these."""
    needed = {
        "secret_key": ("k" * 32,), "stripe_api_key": "sk_test_model", "stripe_webhook_secret": ("whsec_model",),
        "upsampler_api_key": "model", "admin_email": "owner@example.com",
    }  # fmt: skip
    return _Fixed(**{**needed, **fields})


class ModelUpsampler:
    """Takes images, and is asked about them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def submit(self, *, image_url: str, factor: int, webhook_url: str) -> Upscale:
        """One more submission: Upsampler knows no keys."""

        def do() -> Upscale:
            made = self._desk.scene.outside["submissions"]
            status = self._desk.choices.choose(("IN_PROGRESS", "FAILED"))
            new = Submission(f"up-{len(made) + 1}", urlsplit(webhook_url).path.split("/")[-2], status)
            self._desk.scene.outside["submissions"] = (*made, new)
            return parse_upscale(told_of(new))

        return self._desk.call("upsampler", do)

    def status(self, upscale_id: str) -> Upscale:
        """How far it is."""
        found = next((one for one in self._desk.scene.outside["submissions"] if one.id == upscale_id), None)
        if found is None:
            raise ServiceRefused("upsampler", "no such upscale", code="not_found", status=404)
        return self._desk.call("upsampler", lambda: parse_upscale(told_of(found)), changes=False)


def told_of(one: Submission) -> dict[str, Any]:
    """What Upsampler says of a submission, in answers and callbacks."""
    url = f"https://results.example/{one.id}.png" if one.status == UpscaleStatus.SUCCESS else None
    return {"id": one.id, "status": one.status, "imageUrl": url, "effect_id": one.effect_id}


def finish(scene: Scene, one: Submission, status: str) -> None:
    """Upsampler is done with it, and calls back."""
    done = change(scene, "submissions", one, status=status)
    scene.events.append(Event("upsampler", f"{one.id}:{status}", f"upscale {status}", to_json(told_of(done))))


class ModelStorage:
    """Keeps files by name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def store_image(self, name_stem: str, write: object, *, limits: object, expected_size: Any) -> StoredImage:
        """Fetch, check, store: what arrives may be of another size."""

        def do() -> StoredImage:
            scene = self._desk.scene
            if self._desk.choices.choose((False, True)):
                scene.label += ": what was fetched has another size"
                raise ServiceRefused("storage", "another size", code="wrong_dimensions")
            scene.outside["files"] = tuple(sorted({*scene.outside["files"], f"{name_stem}.png"}))
            return _image(f"{name_stem}.png")

        return self._desk.call("storage", do)

    def describe(self, name: str) -> StoredImage | None:
        """The file, if it is there."""
        return _image(name) if name in self._desk.scene.outside["files"] else None

    def remove(self, name: str) -> bool:
        """The file goes."""
        files = self._desk.scene.outside["files"]
        self._desk.scene.outside["files"] = tuple(one for one in files if one != name)
        return name in files


def _image(name: str) -> StoredImage:
    return StoredImage(name, WIDTH * 4, HEIGHT * 4, "PNG", "image/png", 9, "0" * 64)


class _Letters:
    def write(self, template: str, to: str, context: Mapping[str, object], *, message_id: str) -> str:
        return template


class _Mailer:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def send(self, letter: str) -> None:
        self._desk.call("mail", lambda: None)


class _Receivers:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def post(self, url: str, body: str, **_: object) -> None:
        self._desk.call(f"hook {url}", lambda: None)


class _SceneTables:
    def __init__(self, desk: Desk) -> None:
        self.events = ReadTable(lambda: desk.scene.events)
        self.effects = ReadTable(lambda: desk.scene.effects)
        self.audit = ReadTable(tuple)


class _SceneEngine:
    """What handlers and readers ask the engine for."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.tables = _SceneTables(desk)
        self.registry = self

    def bound(self, model: type[Model]) -> type[Model]:
        return self._desk.scene.bound(model)

    @property
    def workflows(self) -> Mapping[str, Workflow]:
        return self._desk.scene.plan.flows

    def select(
        self, key: object, model: object, build: Callable[[], Query], values: Mapping[str, object]
    ) -> list[Any]:
        return select(build, values)

    def first(self, key: object, model: object, build: Callable[[], Query], values: Mapping[str, object]) -> Any:
        return next(iter(select(build, values)), None)

    def audit(self, **_: object) -> None:
        """What is on record of the machinery decides nothing here."""

    def read(self, workflow: str, key: str) -> Any:
        row = self._desk.scene.find(workflow, key)
        if row is None:
            raise UnknownSubject(workflow, key)
        return row


class _DeskClock:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def now(self) -> datetime:
        found: datetime = SceneClock(self._desk.scene).now()
        return found.astimezone(UTC)


class Shop:
    """The shop's own code, as a scenario wants it: handlers, lookups and readers by name."""

    def __init__(self, policy: Settings) -> None:
        self._desk = Desk()
        engine = cast("Engine", _SceneEngine(self._desk))
        outside = Outside(
            stripe=cast("Any", ModelStripe(self._desk)), upsampler=cast("Any", ModelUpsampler(self._desk)),
            storage=cast("Any", ModelStorage(self._desk)), letters=cast("Any", _Letters()),
            mailer=cast("Any", _Mailer(self._desk)), fetch=cast("Any", None),
            hooks=cast("Any", _Receivers(self._desk)),
        )  # fmt: skip
        self._world = World(
            settings=policy, engine=engine, clock=_DeskClock(self._desk), outside=outside,
            arrivals=cast("Any", None),
        )  # fmt: skip
        read = translators(engine, lambda url: "" if url else "Upsampler names no result")
        self.handlers: dict[str, ModelHandler] = {name: self._asking(run) for name, (run, _) in HANDLERS.items()}
        self.lookups: dict[str, ModelLookup] = {
            name: self._asking(lookup) for name, (_, lookup) in HANDLERS.items() if lookup is not None
        }
        self.readers: dict[str, Callable[[Scene, Event], Reading]] = {
            name: self._reading(reader) for name, reader in read.items()
        }

    def _asking(self, run: Callable[[World, Attempt], Any]) -> Callable[[Scene, Attempt, Choices], Any]:
        def ask(scene: Scene, attempt: Attempt, choices: Choices) -> Outcome | None:
            self._desk.scene, self._desk.choices = scene, choices
            outcome: Outcome | None = run(self._world, attempt)
            return outcome

        return ask

    def _reading(self, read: Callable[[Any], Reading]) -> Callable[[Scene, Event], Reading]:
        def ask(scene: Scene, event: Event) -> Reading:
            self._desk.scene = scene
            return read(event)

        return ask


def stripe_refunded(scene: Scene, intent: str | None) -> int:
    """What Stripe has sent back of one payment."""
    made = scene.outside["refunds"]
    return sum(one.cents for one in made if one.intent == intent and one.status == "succeeded")
