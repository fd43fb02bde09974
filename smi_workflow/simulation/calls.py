"""Owns what may befall a call to a provider: refused, unanswered, slow, interrupted. Called by the providers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from smi_workflow.errors import ServiceRefused, ServiceUnavailable
from smi_workflow.simulation.stage import Interrupted, Stage

T = TypeVar("T")


class Caller:
    """Makes calls the way a network would."""

    def __init__(self, stage: Stage, lease_seconds: float) -> None:
        self.stage = stage
        self._slow_seconds = lease_seconds * 2.5

    def call(
        self, service: str, name: str, act: Callable[[], T], *, changes: bool = False, may_refuse: bool = False
    ) -> T:
        """Make one call: others go on before it is sent and after it is answered."""
        stage, faults = self.stage, self.stage.faults
        stage.check_call(name)
        stage.turn(f"{service} {name}: sent")
        if faults.strikes("slow"):
            stage.sleep(stage.random.uniform(1, self._slow_seconds))
        if faults.strikes("unavailable"):
            stage.tell(f"{service} {name}: unavailable")
            wait = stage.random.choice((None, None, 5.0, 120.0))
            raise ServiceUnavailable(service, "HTTP 503", code="http_503", status=503, retry_after_seconds=wait)
        if may_refuse and faults.strikes("refuse"):
            stage.tell(f"{service} {name}: refused")
            raise ServiceRefused(service, "HTTP 400", code="bad_request", status=400)
        answer = act()
        if faults.strikes("slow"):
            stage.sleep(stage.random.uniform(1, self._slow_seconds))
        if stage.agent().process is not None and faults.strikes("stop"):
            raise Interrupted
        stage.turn(f"{service} {name}: answered")
        if faults.strikes("unanswered"):
            stage.tell(f"{service} {name}: the answer is lost")
            raise ServiceUnavailable(service, "no answer", code="no_answer", outcome_unknown=changes)
        return answer
