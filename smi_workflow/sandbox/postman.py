"""Owns callbacks to the shop: POSTed from the background until they are taken. Called by Stripe and Upsampler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

from smi_workflow.sandbox.background import Crew
from smi_workflow.sandbox.faults import Fault

WAIT_SECONDS_MAX = 30.0


@dataclass(slots=True)
class Letter:
    """One callback. `render` gives body and headers afresh for each attempt."""

    url: str
    render: Callable[[], tuple[bytes, dict[str, str]]]
    delivered: Callable[[], None] = lambda: None
    attempts: list[dict[str, Any]] = field(default_factory=list)


class Postman:
    """Delivers letters; waits 0.5 s, 1 s, 2 s … in between, and gives up in the end."""

    def __init__(
        self,
        crew: Crew,
        *,
        first_wait_seconds: float = 0.5,
        give_up_seconds: float = 300.0,
        timeout_seconds: float = 10.0,
    ) -> None:
        self._crew = crew
        self._first_wait_seconds = first_wait_seconds
        self._give_up_seconds = give_up_seconds
        self._timeout_seconds = timeout_seconds
        self._local = threading.local()

    def send(self, letter: Letter, fault: Fault | None = None) -> None:
        """Hand a letter in; with an `early` fault its first attempt is over when this returns.

        Args:
            fault: lost, duplicate, early or delay.
        """
        began = time.monotonic()
        kind = fault.kind if fault is not None else ""
        if fault is not None and kind == "lost":
            letter.attempts.append({"at": time.time(), "outcome": "lost"})
            return
        if kind == "early":
            self._attempt(letter, began)
            return
        wait_seconds = fault.seconds if fault is not None and kind == "delay" else 0.0
        self._crew.after(wait_seconds, lambda: self._attempt(letter, began))
        if fault is not None and kind == "duplicate":
            for _ in range(fault.copies - 1):
                self._crew.after(wait_seconds, lambda: self._copy(letter))

    def _attempt(self, letter: Letter, began: float) -> None:
        if self._try_once(letter):
            return
        failures = sum(1 for attempt in letter.attempts if attempt["outcome"] != "delivered")
        wait_seconds = min(self._first_wait_seconds * 2 ** min(failures - 1, 20), WAIT_SECONDS_MAX)
        if time.monotonic() + wait_seconds - began <= self._give_up_seconds:
            self._crew.after(wait_seconds, lambda: self._attempt(letter, began))

    def _copy(self, letter: Letter) -> None:
        self._try_once(letter)

    def _try_once(self, letter: Letter) -> bool:
        body, headers = letter.render()
        attempt: dict[str, Any] = {"at": time.time(), "url": letter.url}
        try:
            answer = self._session().post(
                letter.url, data=body, headers=headers, timeout=self._timeout_seconds, allow_redirects=False
            )
            attempt["status"] = answer.status_code
            taken = 200 <= answer.status_code < 300
        except requests.RequestException as error:
            attempt["error"] = type(error).__name__
            taken = False
        attempt["outcome"] = "delivered" if taken else "failed"
        if taken:
            letter.delivered()
        letter.attempts.append(attempt)
        return taken

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            # A proxy from the environment must not get between two servers on loopback.
            session.trust_env = False
        return session
