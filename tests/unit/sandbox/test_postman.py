"""Owns the checks of when callbacks go out. Called by pytest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smi_workflow.sandbox.background import Crew
from smi_workflow.sandbox.faults import Fault
from smi_workflow.sandbox.postman import Letter, Postman


class PaperCrew(Crew):
    """Writes down what is to be done when, and does it only on request."""

    def __init__(self) -> None:
        super().__init__("paper", threads=0)
        self.jobs: list[tuple[float, Callable[[], None]]] = []

    def after(self, seconds: float, job: Callable[[], None]) -> None:
        self.jobs.append((seconds, job))

    def waits(self) -> list[float]:
        return [seconds for seconds, _ in self.jobs]


def unreachable() -> Letter:
    # Not a URL that requests can use: it fails before it opens a socket.
    return Letter("nowhere", lambda: (b"{}", {}))


@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        (None, [0.0]),
        (Fault("delay", seconds=60), [60]),
        (Fault("duplicate", copies=3), [0.0, 0.0, 0.0]),
        (Fault("lost"), []),
    ],
)
def test_a_letter_goes_out_when_it_should(fault: Fault | None, waits: list[float]) -> None:
    crew = PaperCrew()
    Postman(crew).send(unreachable(), fault)
    assert crew.waits() == waits


def test_waits_double_up_to_half_a_minute_and_end() -> None:
    crew = PaperCrew()
    Postman(crew, first_wait_seconds=0.5, give_up_seconds=40).send(unreachable())
    waits: list[float] = []
    while crew.jobs:
        seconds, job = crew.jobs.pop()
        waits.append(seconds)
        if len(waits) < 12:
            job()
    assert waits == [0.0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    crew = PaperCrew()
    Postman(crew, first_wait_seconds=0.5, give_up_seconds=0.1).send(unreachable())
    crew.jobs.pop()[1]()
    assert crew.jobs == []


def test_an_early_letter_was_tried_when_send_returns() -> None:
    crew = PaperCrew()
    letter = unreachable()
    Postman(crew).send(letter, Fault("early"))
    assert [attempt["outcome"] for attempt in letter.attempts] == ["failed"]
    assert crew.waits() == [0.5]
