"""Owns choosing: one run asks what happens, and every answer is tried in turn. Called by model_steps.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Choices:
    """What one run chooses: first as it is told, then the first option each time."""

    def __init__(self, told: tuple[int, ...] = ()) -> None:
        self._told = told
        self.taken: list[tuple[int, int]] = []

    def choose(self, options: Sequence[T]) -> T:
        """One of these; the first is the plain course of things."""
        place = len(self.taken)
        index = self._told[place] if place < len(self._told) else 0
        self.taken.append((index, len(options)))
        return options[index]


def every(run: Callable[[Choices], R]) -> Iterator[R]:
    """Run it once for each way to choose; it must do the same thing when it chooses the same."""
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        told = waiting.pop()
        choices = Choices(told)
        yield run(choices)
        taken = [index for index, _ in choices.taken]
        for place in range(len(told), len(taken)):
            count = choices.taken[place][1]
            waiting += [(*taken[:place], index) for index in range(count - 1, 0, -1)]
