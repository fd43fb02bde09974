"""Owns the simulated Upsampler. Called by the real handlers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from smi_workflow.errors import ServiceRefused
from smi_workflow.integrations.upsampler_api import UpsamplerClient, Upscale, UpscaleStatus
from smi_workflow.simulation.calls import Caller

Tell = Callable[[str, dict[str, Any]], None]


@dataclass(slots=True)
class Work:
    """One upscale."""

    id: str
    job_id: str
    source_url: str
    factor: int
    webhook_url: str
    status: UpscaleStatus = UpscaleStatus.IN_QUEUE
    image_url: str | None = None
    error: str | None = None


class SimulatedUpsampler(UpsamplerClient):
    """Upsampler, in this thread: it works for a while, then calls back, or does not."""

    def __init__(self, caller: Caller, tell: Tell) -> None:
        self.works: dict[str, Work] = {}
        self._caller = caller
        self._stage = caller.stage
        self._tell = tell

    def submit(self, *, image_url: str, factor: int, webhook_url: str) -> Upscale:
        def take() -> Upscale:
            job_id = image_url.split("/source/")[1].split("/")[0]
            work = Work(f"up_{len(self.works) + 1:08d}", job_id, image_url, factor, webhook_url)
            self.works[work.id] = work
            faults, random = self._stage.faults, self._stage.random
            if faults.strikes("upscale") and random.random() < 0.2:
                work.status, work.error = UpscaleStatus.FAILED, "cannot read the image"
                return self._answer(work)
            wait = random.uniform(0.1, 60) if not faults.strikes("upscale") else random.uniform(60, 3600)
            self._stage.spawn(f"upsampler {work.id}", lambda: self._finish(work), after=wait)
            return self._answer(work)

        return self._caller.call("upsampler", "submit", take, changes=True, may_refuse=True)

    def status(self, upscale_id: str) -> Upscale:
        def look() -> Upscale:
            if upscale_id not in self.works:
                raise ServiceRefused("upsampler", "unknown", code="not_found", status=404)
            return self._answer(self.works[upscale_id])

        return self._caller.call("upsampler", "status", look)

    def _finish(self, work: Work) -> None:
        faults, random = self._stage.faults, self._stage.random
        if faults.strikes("upscale") and random.random() < 0.5:
            work.status, work.error = UpscaleStatus.FAILED, "out of memory"
        else:
            host = "evil.local" if faults.strikes("upscale") and random.random() < 0.1 else "results.example.com"
            work.status, work.image_url = UpscaleStatus.SUCCESS, f"https://{host}/{work.id}.png"
        self._tell(work.webhook_url, self.body(work))

    @staticmethod
    def body(work: Work) -> dict[str, Any]:
        """What a callback says."""
        return {
            "id": work.id, "status": work.status.value, "imageUrl": work.image_url, "creditCost": 16,
            "error": work.error,
        }  # fmt: skip

    @staticmethod
    def _answer(work: Work) -> Upscale:
        cost = Decimal(16) if work.status is UpscaleStatus.SUCCESS else None
        return Upscale(work.id, work.status, work.image_url, cost, work.error)
