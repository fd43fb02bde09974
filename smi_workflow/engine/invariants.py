"""Owns the list of what is always true of any workflow, and the running of such lists.

Called by `smi doctor`, the simulator and tests.

Example:
    for violation in Invariants(engine, ENGINE_INVARIANTS).everywhere():
        print(violation.invariant, violation.text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from smi_workflow.engine.checking import Invariant, View, Violation, some_keys, unique
from smi_workflow.engine.effect_invariants import EFFECT_INVARIANTS
from smi_workflow.engine.event_invariants import EVENT_INVARIANTS
from smi_workflow.engine.fire import Engine
from smi_workflow.engine.history_invariants import HISTORY_INVARIANTS
from smi_workflow.engine.owed_invariants import OWED
from smi_workflow.engine.rules import Rules

__all__ = ["ENGINE_INVARIANTS", "Invariant", "Invariants", "View", "Violation"]

ENGINE_INVARIANTS: tuple[Invariant, ...] = (*HISTORY_INVARIANTS, OWED, *EFFECT_INVARIANTS, *EVENT_INVARIANTS)


class Invariants:
    """Judges one engine's database by a list of invariants. It reads, and changes nothing.

    Args:
        exists: whether a file of this name is in the storage; without it, files are not looked for.
        at_rest: nothing is under way and everything due has been worked on.
    """

    def __init__(
        self,
        engine: Engine,
        invariants: Sequence[Invariant],
        *,
        exists: Callable[[str], bool] | None = None,
        at_rest: bool = False,
    ) -> None:
        self.invariants = tuple(invariants)
        self._engine = engine
        self._exists = exists
        self._at_rest = at_rest
        self._rules = {name: Rules(flow) for name, flow in engine.workflows.items()}
        self._judges = [(item.name, item.of_subject) for item in invariants if item.of_subject is not None]

    def of_subject(self, workflow: str, key: str) -> list[Violation]:
        """What is wrong with one subject, as it is committed now."""
        view = self.view()
        return [
            Violation(name, workflow, key, text)
            for name, judge in self._judges
            for text in judge(view, workflow, key)
        ]

    def everywhere(self, *, sample: int | None = None, limit: int = 100) -> Iterator[Violation]:
        """What is wrong anywhere.

        Args:
            sample: judge so many subjects of each workflow, chosen at random, instead of all of them; what only
                whole tables could tell, rows that belong to nobody for instance, is not looked for then.
            limit: at most so many violations of each invariant.
        """
        for item in self.invariants:
            yield from self.of_invariant(item, sample=sample, limit=limit)

    def of_invariant(self, item: Invariant, *, sample: int | None = None, limit: int = 100) -> Iterator[Violation]:
        """Where one invariant does not hold; see `everywhere`."""
        view = self.view(limit)
        found: Iterator[Violation] = iter(())
        if sample is not None and item.of_subject is not None:
            found = _of_some(view, item, sample)
        elif item.everywhere is not None:
            found = item.everywhere(view)
        return islice(unique(found), limit)

    def view(self, limit: int = 100) -> View:
        """What the checks look at, with nothing read yet."""
        return View(self._engine, self._engine.clock.now(), self._exists, self._at_rest, limit, self._rules)


def _of_some(view: View, item: Invariant, sample: int) -> Iterator[Violation]:
    judge = item.of_subject
    assert judge is not None
    for workflow in view.rules:
        for key in some_keys(view, workflow, sample):
            for text in judge(view.anew(), workflow, key):
                yield Violation(item.name, workflow, key, text)
