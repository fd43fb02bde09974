"""Owns the exploration: every reachable scene of a scenario once, breadth first, and what is wrong on the way.

Called by model_report.py and tests.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from smi_workflow.simulation.model import Plan, Scenario, Scene
from smi_workflow.simulation.model_key import key_of
from smi_workflow.simulation.model_records import DUE, KEPT, Applied, OpenEffect, Settled
from smi_workflow.simulation.model_steps import Refusals, successors

# Of one kind of fault, the first few are worth a story; the rest say the same.
FAULTS_MAX = 20


# Workflow, state, effect: this effect has taken a subject out of that state.
Movers = set[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Told:
    """One step of a story: what was done, and what came of it."""

    step: str
    came: tuple[str, ...]
    states: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that must not be, and the shortest way there."""

    scenario: str
    invariant: str
    what: str
    story: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What one waiting subject has open: told apart, as many scenes share it."""

    workflow: str
    state: str
    effects: frozenset[str]
    timers: frozenset[str]
    deadline: bool
    deadline_ran: bool


@dataclass(slots=True)
class Exploration:
    """What was found in one scenario."""

    scenario: str
    states: int = 0
    transitions: int = 0
    depth: int = 0
    exhausted: bool = True
    seconds: float = 0.0
    fired: set[tuple[str, str]] = field(default_factory=set)
    settled: set[tuple[str, str]] = field(default_factory=set)
    reached: set[tuple[str, str]] = field(default_factory=set)
    refusals: Refusals = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


class Explorer:
    """Explores one scenario.

    Args:
        depth_max, states_max, seconds_max: where to stop; what was not looked into then is not judged.
    """

    def __init__(
        self, scenario: Scenario, *, depth_max: int = 200, states_max: int = 200_000, seconds_max: float = 3600.0
    ) -> None:
        self._scenario = scenario
        self._depth_max, self._states_max, self._seconds_max = depth_max, states_max, seconds_max
        self._plan = Plan(scenario)
        self.found = Exploration(scenario.name)
        self._seen: dict[int, int] = {}
        # For each state, the one it was first reached from and the number of the step there.
        self._parents, self._steps = array("q"), array("q")
        self._edges = array("q")
        # Where nothing goes on by itself, with the subjects that would wait for an effect that is not run here.
        self._ends: list[tuple[int, list[Waiting]]] = []
        self._cut: list[int] = []
        self._waiting: dict[Waiting, int] = {}
        self.movers: Movers = set()
        self._told: set[tuple[str, str]] = set()

    def run(self) -> Exploration:
        """Explore until there is nothing new, or a bound is reached; `judge` then looks at the whole."""
        # Scenes hold no cycles; looking for some among hundreds of thousands takes longer than all the rest.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._run()
        finally:
            if collecting:
                gc.enable()

    def _run(self) -> Exploration:
        started = time.process_time()
        first = self._begin()
        self._look(first, 0)
        waiting = deque([(0, 0, first)])
        while waiting:
            index, depth, scene = waiting.popleft()
            enough = len(self._seen) >= self._states_max or time.process_time() - started > self._seconds_max
            if enough or depth >= self._depth_max:
                self.found.exhausted = False
                self._cut.append(index)
                continue
            self.found.depth = max(self.found.depth, depth)
            for number, after in enumerate(successors(scene, self.found.refusals)):
                self.found.transitions += 1
                self._note(scene, after)
                place = self._place(after, index, number)
                if place is None:
                    continue
                self._look(after, place)
                waiting.append((place, depth + 1, after))
        self.found.states = len(self._seen)
        self.found.seconds = time.process_time() - started
        return self.found

    def _begin(self) -> Scene:
        scene = Scene(self._plan)
        scene.label = "it begins"
        self._scenario.begin(scene)
        self._seen[hash(key_of(scene))] = 0
        self._parents.append(-1)
        self._steps.append(0)
        self._record(scene.log)
        return scene

    def _place(self, scene: Scene, parent: int, step: int) -> int | None:
        """The new state's number, or None for one that is known."""
        key = hash(key_of(scene))
        known = self._seen.get(key)
        place = len(self._seen) if known is None else known
        self._edges.extend((parent, place))
        if known is not None:
            if self._breaks(scene):
                self._blame(scene, parent, step)
            return None
        self._seen[key] = place
        self._parents.append(parent)
        self._steps.append(step)
        return place

    # -- what holds in each scene ---------------------------------------------------------------------------------

    def _note(self, before: Scene, after: Scene) -> None:
        """Remember what was covered, and which effects have moved a waiting subject on."""
        self._record(after.log)
        names = [item.what for item in after.log if isinstance(item, Settled)]
        if not names:
            return
        left = {(a.workflow, a.subject_id, a.from_state) for a in after.log if isinstance(a, Applied)}
        for workflow, key, state in left:
            flow = self._plan.flow(workflow)
            row, now = before.find(workflow, key), after.find(workflow, key)
            if row is not None and now.visit != row.visit and before.state_of(flow, row) == state:
                self.movers |= {(workflow, state, name) for name in names}

    def _record(self, log: Iterable[Applied | Settled]) -> None:
        for item in log:
            if isinstance(item, Applied):
                self.found.fired.add((item.workflow, item.trigger))
                self.found.reached.add((item.workflow, item.to_state))
            else:
                self.found.settled.add((item.what, item.how.split(":")[0].split(" (")[0]))

    def _breaks(self, scene: Scene) -> bool:
        """Whether the step to a known state was itself wrong."""
        return any(isinstance(item, Settled) and item.broken for item in scene.log) or any(
            check(scene) is not None for check in self._scenario.on_step
        )

    def _blame(self, scene: Scene, parent: int, step: int) -> None:
        for name, what in self._wrong(scene):
            self._fault(name, what, parent, step)

    def _look(self, scene: Scene, place: int) -> None:
        for name, what in self._wrong(scene):
            self._fault(name, what, self._parents[place], self._steps[place])
        idle = self._scenario.idle
        open_effects = [item for item in scene.effects if item.state != KEPT]
        waits = []
        for flow, key, row in scene.subjects():
            state = scene.state_of(flow, row)
            if flow.state(state).waiting:
                waits.append(
                    _waiting(flow.name, state, scene.of_visit(flow.name, key, row.visit), row.deadline_ran)
                )
                self._waiting.setdefault(waits[-1], place)
        if any(item.effect.name not in idle for item in open_effects):
            return
        for check in self._scenario.at_rest if not waits and not scene.events else ():
            wrong = check(scene)
            if wrong is not None:
                self._fault(_named(check), wrong, self._parents[place], self._steps[place])
        if self._scenario.ended(scene):
            self._ends.append((place, waits))

    def _wrong(self, scene: Scene) -> Iterable[tuple[str, str]]:
        for item in scene.log:
            if isinstance(item, Settled) and item.broken:
                yield "nothing_breaks", f"{item.what}: {item.how}"
        for effect in scene.effects:
            if effect.is_timer and effect.state == DUE:
                row = scene.find(effect.workflow, effect.subject_id)
                if row is None or row.visit != effect.visit:
                    name = effect.effect.name
                    yield "leaving_cancels_timers", f"the timer {name} is open although its visit is over"
        for check in (*self._scenario.on_step, *self._scenario.invariants):
            what = check(scene)
            if what is not None:
                yield _named(check), what

    # -- what holds of the whole ------------------------------------------------------------------------------

    def judge(self, movers: Movers) -> None:
        """Look for dead ends, knowing which effects have moved what in this exploration and its siblings."""
        self._check_waiting(movers)
        self._check_ends(movers)

    def _check_waiting(self, movers: Movers) -> None:
        """No state that waits is without something open that can move it."""
        for waiting, place in self._waiting.items():
            able = _able(waiting, movers)
            if not self.found.exhausted:
                # What was not looked into might move it.
                able = set(waiting.effects)
            where = (self._parents[place], self._steps[place])
            if not waiting.effects & able:
                what = f"{waiting.workflow} waits in {waiting.state}, and nothing open can move it"
                self._fault("no_dead_end", f"{what} (open: {_list(waiting.effects)})", *where)
            elif not waiting.deadline_ran and not waiting.deadline and not waiting.timers & able:
                what = f"{waiting.workflow} waits in {waiting.state} without a deadline"
                self._fault("every_wait_has_a_deadline", f"{what} (open: {_list(waiting.effects)})", *where)

    def _check_ends(self, movers: Movers) -> None:
        """From every state an end stays reachable; what was not looked into counts as one."""
        before: dict[int, list[int]] = {}
        for place in range(0, len(self._edges), 2):
            before.setdefault(self._edges[place + 1], []).append(self._edges[place])
        ends = {place for place, waits in self._ends if all(_able(one, movers) for one in waits)}
        good = ends | set(self._cut)
        waiting = list(good)
        while waiting:
            for parent in before.get(waiting.pop(), ()):
                if parent not in good:
                    good.add(parent)
                    waiting.append(parent)
        lost = next((place for place in range(len(self._seen)) if place not in good), None)
        if lost is not None:
            what = "from here no end can be reached any more"
            self._fault("an_end_stays_reachable", what, self._parents[lost], self._steps[lost])

    # -- stories ------------------------------------------------------------------------------------------------

    def _fault(self, invariant: str, what: str, parent: int, step: int) -> None:
        if (invariant, what) in self._told or len(self.found.faults) >= FAULTS_MAX:
            return
        self._told.add((invariant, what))
        self.found.faults.append(Fault(self._scenario.name, invariant, what, self._story(parent, step)))

    def _story(self, parent: int, step: int) -> tuple[Told, ...]:
        """Walk the way once more, by the numbers of its steps."""
        numbers = [step]
        while parent > 0:
            numbers.append(self._steps[parent])
            parent = self._parents[parent]
        scene = Scene(self._plan)
        scene.label = "it begins"
        self._scenario.begin(scene)
        story = [_told(scene)]
        if parent == -1:
            return tuple(story)
        for number in reversed(numbers):
            scene = next(after for index, after in enumerate(successors(scene)) if index == number)
            story.append(_told(scene))
        return tuple(story)


def _able(waiting: Waiting, movers: Movers) -> set[str]:
    """What is open of a waiting subject and has moved one like it before."""
    return {name for name in waiting.effects if (waiting.workflow, waiting.state, name) in movers}


def explore(
    scenarios: Sequence[Scenario], *, depth_max: int = 200, states_max: int = 200_000, seconds_max: float = 3600.0
) -> list[Exploration]:
    """Explore scenarios of the same workflows one after another; what moves a subject in one counts in all.

    Args:
        seconds_max: of processor time, for all of them together.
    """
    explorers = []
    movers: Movers = set()
    for scenario in scenarios:
        explorer = Explorer(scenario, depth_max=depth_max, states_max=states_max, seconds_max=seconds_max)
        seconds_max -= explorer.run().seconds
        movers |= explorer.movers
        explorers.append(explorer)
    for explorer in explorers:
        explorer.judge(movers)
    return [explorer.found for explorer in explorers]


def _waiting(workflow: str, state: str, own: list[OpenEffect], deadline_ran: bool) -> Waiting:
    return Waiting(
        workflow, state, frozenset(e.effect.name for e in own),
        frozenset(e.effect.name for e in own if e.is_timer), any(e.deadline for e in own), deadline_ran,
    )  # fmt: skip


def _told(scene: Scene) -> Told:
    came = []
    for item in scene.log:
        if isinstance(item, Applied):
            leads = f"{item.from_state} → {item.to_state}" if item.from_state != item.to_state else item.to_state
            owed = f"; owes {', '.join(item.owed)}" if item.owed else ""
            came.append(f"{item.workflow}: {item.trigger} ({item.actor}): {leads}{owed}")
        else:
            came.append(f"{item.what}: {item.how}")
    states = ", ".join(f"{flow.name} {scene.state_of(flow, row)}" for flow, _, row in scene.subjects())
    return Told(scene.label, tuple(came), states)


def _named(check: object) -> str:
    return str(getattr(check, "__name__", type(check).__name__))


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
