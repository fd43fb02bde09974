"""Owns the simulated disk, network and mail server. Called by the real handlers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import BinaryIO

from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.fetching import Fetched, FetchPolicy
from smi_workflow.integrations.hooks import HookPoster
from smi_workflow.integrations.letters import Letter
from smi_workflow.integrations.mailer import Mailer
from smi_workflow.integrations.storage import FileStorage, ImageLimits, StoredImage
from smi_workflow.simulation.calls import Caller
from smi_workflow.simulation.upsampler import Work


class SimulatedNetwork:
    """Serves the strangers' images, which are `<width>x<height>` in their URL, and Upsampler's results."""

    def __init__(self, caller: Caller, works: Mapping[str, Work], sizes: Mapping[str, tuple[int, int]]) -> None:
        self._caller = caller
        self._works = works
        self._sizes = sizes

    def __call__(self, url: str, into: BinaryIO, policy: FetchPolicy, *, service: str) -> Fetched:
        """Download it: what arrives is the size of the image, in words."""

        def serve() -> str:
            name = url.rsplit("/", 1)[1].removesuffix(".png")
            if service == "source":
                return name
            work = self._works[name]
            width, height = self._sizes[work.job_id]
            faults = self._caller.stage.faults
            factor = work.factor - 1 if faults.strikes("upscale") and faults.random.random() < 0.3 else work.factor
            return f"{width * factor}x{height * factor}"

        content = self._caller.call(service, "fetch", serve, may_refuse=service == "source")
        into.write(content.encode())
        return Fetched(url, "image/png", len(content), content)


class SimulatedStorage(FileStorage):
    """A disk that may be full, and that keeps what was placed."""

    def __init__(self, caller: Caller) -> None:
        self.files: dict[str, StoredImage] = {}
        self._caller = caller

    def store_image(
        self, name_stem: str, write: Callable[[BinaryIO], object], *, limits: ImageLimits,
        expected_size: tuple[int, int] | None = None,
    ) -> StoredImage:  # fmt: skip
        buffer = io.BytesIO()
        write(buffer)
        if self._caller.stage.faults.strikes("disk"):
            raise ServiceUnavailable("storage", "the disk failed: no space left", code="disk_failed")
        reach(Point.FILE_WRITTEN)
        width, height = (int(side) for side in buffer.getvalue().decode().split("x"))
        if expected_size not in (None, (width, height)):
            raise ServiceRefused("storage", f"it is {width}x{height}", code="wrong_dimensions")
        stored = StoredImage(f"{name_stem}.png", width, height, "PNG", "image/png", 9, "0" * 64)
        self.files[stored.name] = stored
        reach(Point.FILE_PLACED)
        return stored

    def describe(self, name: str) -> StoredImage | None:
        return self.files.get(name) or self.files.get(f"{name}.png")

    def exists(self, name: str) -> bool:
        return name in self.files

    def remove(self, name: str) -> bool:
        reach(Point.FILE_REMOVED)
        return self.files.pop(name, None) is not None


class SimulatedReceivers(HookPoster):
    """The shop's own receiver of hooks, mostly there; what it took, in the order that it came: id and body."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(())
        self.taken: list[tuple[str, str]] = []
        self._caller = caller

    def post(self, url: str, body: str, *, receiver: str, message_id: str, now: datetime) -> None:
        self._caller.call(
            f"hook {receiver}", "post", lambda: self.taken.append((message_id, body)),
            changes=True, may_refuse=True,
        )  # fmt: skip


class SimulatedMailer(Mailer):
    """A mail server that takes letters, mostly."""

    def __init__(self, caller: Caller) -> None:
        self.sent: list[Letter] = []
        self._caller = caller

    def send(self, letter: Letter) -> None:
        self._caller.call("smtp", "send", lambda: self.sent.append(letter), changes=True, may_refuse=True)
