"""Owns where the boxes of a workflow's picture stand and where lines leave them. Called by routes.py.

The main path, the longest way forward in the order of declaration, is one straight row; every other state stands
below it. So each line runs from box to neighbouring box, above the upper row, between the rows or below the lower
one: none has to cross a box, whatever is declared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

LABEL_PX = 7.25
LINE_PX = 15

_PAD = 20
_JOG = 24
_MIN_GAP = 72
_FAR = 10**6


@dataclass(frozen=True, slots=True)
class Edge:
    """The triggers that lead from one state to another; `fails` where each is what a failed effect fires."""

    source: str
    target: str
    triggers: tuple[str, ...]
    fails: bool = False

    @property
    def label_width(self) -> int:
        """Its label's width in pixels, one trigger on a line."""
        return math.ceil(max(map(len, self.triggers)) * LABEL_PX)

    @property
    def label_height(self) -> int:
        """Its label's height in pixels."""
        return len(self.triggers) * LINE_PX


@dataclass(slots=True)
class Box:
    """One state's place; row 0 is the main story."""

    name: str
    row: int
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def middle(self) -> int:
        return self.x + self.width // 2


def main_path(names: Sequence[str], initial: str, edges: Iterable[Edge]) -> tuple[str, ...]:
    """The longest way from the first state on to later declared ones, failures left out; of equals, the first."""
    order = {name: index for index, name in enumerate(names)}
    ahead: dict[str, set[str]] = {name: set() for name in names}
    for edge in edges:
        if order[edge.target] > order[edge.source] and not edge.fails:
            ahead[edge.source].add(edge.target)
    longest: dict[str, tuple[str, ...]] = {}
    for name in reversed(names):
        ways = [longest[target] for target in sorted(ahead[name], key=order.__getitem__)]
        longest[name] = (name, *max(ways, key=len, default=()))
    return longest[initial]


def _slot(edge: Edge) -> int:
    """The width that a straight line between the rows needs with its label."""
    return edge.label_width + 20


@dataclass(slots=True)
class Places:
    """Where everything stands from left to right; the same declaration always gets the same places.

    Args:
        widths: the least width of each state's box, in the order of declaration.
        edges: at most one from a state to another.
    Attributes:
        path: the states of the upper row.
        column: where in that row a state is.
        upper: where an edge between the rows leaves or enters the upper box.
        lower: the same at the lower box; equal where the line is straight.
        runs: the one or two columns, if any, that a lower box stands under.
    """

    widths: Mapping[str, int]
    initial: str
    edges: Sequence[Edge]
    path: tuple[str, ...] = field(init=False)
    column: dict[str, int] = field(init=False)
    boxes: dict[str, Box] = field(init=False)
    upper: dict[Edge, int] = field(init=False, default_factory=dict)
    lower: dict[Edge, int] = field(init=False, default_factory=dict)
    runs: dict[str, tuple[int, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.path = main_path(tuple(self.widths), self.initial, self.edges)
        self.column = {name: index for index, name in enumerate(self.path)}
        self.boxes = {
            name: Box(name, 0 if name in self.column else 1, width=self.widths[name]) for name in self.widths
        }
        self._find_runs()
        self._place_columns()
        self._place_the_rest()

    def between(self) -> list[Edge]:
        """Edges from one row to the other."""
        return [edge for edge in self.edges if self.boxes[edge.source].row != self.boxes[edge.target].row]

    def beside(self, column: int) -> list[Edge]:
        """Edges between this column's state and the next one's, either way."""
        pair = set(self.path[column : column + 2])
        return [edge for edge in self.edges if {edge.source, edge.target} == pair and len(pair) == 2]

    def within(self, row: int) -> list[Edge]:
        """Edges of a row that need a lane above or below it, the shortest first."""
        mine = [e for e in self.edges if self.boxes[e.source].row == self.boxes[e.target].row == row]
        if row == 0:
            mine = [e for e in mine if abs(self.column[e.source] - self.column[e.target]) != 1]
        return mine

    def _ends(self, edge: Edge) -> tuple[str, str]:
        """The upper and the lower state of an edge between the rows."""
        up, down = edge.source, edge.target
        return (up, down) if up in self.column else (down, up)

    def _find_runs(self) -> None:
        """Stand each lower state under the one or two columns it has most to do with: straight lines."""
        weights: dict[str, dict[int, int]] = {name: {} for name in self.widths if name not in self.column}
        for edge in self.between():
            up, down = self._ends(edge)
            weights[down][self.column[up]] = weights[down].get(self.column[up], 0) + len(edge.triggers)
        owners: dict[int, str] = {}
        for index in range(len(self.path)):
            heaviest = max(weights, key=lambda name: weights[name].get(index, 0), default=None)
            if heaviest is not None and index in weights[heaviest]:
                owners[index] = heaviest
        for name, weight in weights.items():
            mine = [index for index in sorted(weight) if owners.get(index) == name]
            options: list[tuple[int, ...]] = [(index,) for index in mine]
            options += [(index, index + 1) for index in mine if index + 1 in mine]
            self.runs[name] = max(options, key=lambda run: sum(weight[i] for i in run), default=())

    def _rank(self, name: str) -> float:
        """Where a state stands from left to right, before there are pixels."""
        if name in self.column:
            return self.column[name]
        columns = self.runs[name] or [self.column[self._ends(e)[0]] for e in self._of(name)]
        return sum(columns) / len(columns) if columns else float(len(self.path))

    def _of(self, name: str) -> list[Edge]:
        return [edge for edge in self.between() if name in self._ends(edge)]

    def _jogs(self, name: str, *, to_the_right: bool) -> list[Edge]:
        """Edges between the rows that are not straight, ordered so that those of one side do not cross."""
        found = []
        for edge in self._of(name):
            up, down = self._ends(edge)
            other = down if name == up else up
            if self.column[up] not in self.runs[down] and (self._rank(other) >= self._rank(name)) == to_the_right:
                found.append((self._rank(other), edge))
        return [edge for _, edge in sorted(found, key=lambda pair: pair[0])]

    def _place_columns(self) -> None:
        """The main row from left to right; each column takes the width that the lines below it need."""
        cursor, shelf = 0, -_FAR
        for index, name in enumerate(self.path):
            box = self.boxes[name]
            before, after = self._jogs(name, to_the_right=False), self._jogs(name, to_the_right=True)
            straight = [edge for edge in self._of(name) if index in self.runs[self._ends(edge)[1]]]
            need = 2 * _PAD + _JOG * (len(before) + len(after)) + sum(map(_slot, straight))
            box.width = max(box.width, need)
            first = _PAD + _JOG * len(before) + (box.width - need) // 2
            below = next((self.boxes[down] for down, run in self.runs.items() if index in run), None)
            arriving: list[Edge] = []
            if below is not None and self.runs[below.name][0] == index:
                arriving = self._jogs(below.name, to_the_right=False)
                below.x = first - _JOG * (len(before) + len(arriving)) - _PAD
                if len(self.runs[below.name]) == 1:
                    below.x = min(below.x, 0)
                cursor = max(cursor, shelf + _MIN_GAP // 2 - below.x)
                below.x += cursor
            box.x = cursor
            # From left to right: what the lower box receives, what this one does, straight lines, and so back.
            x = box.x + first - _JOG * (len(before) + len(arriving))
            x = self._side_by_side(self.lower, arriving, x)
            x = self._side_by_side(self.upper, before, x)
            for edge in straight:
                self.upper[edge] = self.lower[edge] = x
                x += _slot(edge)
            x = self._side_by_side(self.upper, after, x)
            if below is not None and self.runs[below.name][-1] == index:
                leaving = self._jogs(below.name, to_the_right=True)
                x = self._side_by_side(self.lower, leaving, x)
                aligned = box.right if len(self.runs[below.name]) == 1 else 0
                below.width = max(x + (_PAD - _JOG if leaving else 0), aligned, below.x + below.width) - below.x
                shelf = below.right
            gap = max([_MIN_GAP, *(edge.label_width + 36 for edge in self.beside(index))])
            cursor = max(box.right + gap, x + self._reach(index + 1))

    def _reach(self, index: int) -> int:
        """How far to the left of a column the box below it receives lines."""
        opened = [down for down, run in self.runs.items() if run and run[0] == index]
        return sum(_JOG * len(self._jogs(down, to_the_right=False)) for down in opened)

    def _side_by_side(self, ports: dict[Edge, int], edges: list[Edge], x: int) -> int:
        for edge in edges:
            ports[edge] = x
            x += _JOG
        return x

    def _place_the_rest(self) -> None:
        """Lower states that own no column go where there is room, as near to their partners as can be."""
        taken = [self.boxes[name] for name, run in self.runs.items() if run]
        for name in sorted((name for name, run in self.runs.items() if not run), key=self._rank):
            box = self.boxes[name]
            mine = self._jogs(name, to_the_right=False) + self._jogs(name, to_the_right=True)
            box.width = max(box.width, 2 * _PAD + _JOG * len(mine))
            partners = [self.boxes[self._ends(edge)[0]].middle for edge in mine] or [
                self.boxes[self.path[-1]].middle
            ]
            wanted = sum(partners) // len(partners) - box.width // 2
            gap = _MIN_GAP // 2
            options = [
                wanted,
                *(b.right + gap for b in taken),
                *(b.x - gap - box.width for b in taken if b.x > box.width),
            ]
            free = [x for x in options if all(x >= b.right + gap or x + box.width + gap <= b.x for b in taken)]
            box.x = min(free, key=lambda x: (abs(x - wanted), x))
            taken.append(box)
            used = {*self.upper.values(), *self.lower.values()}
            for place, edge in enumerate(mine):
                x = box.x + box.width * (place + 1) // (len(mine) + 1)
                # Two lines at the same x might run into each other.
                self.lower[edge] = next(x + d for d in range(_FAR) if not used & set(range(x + d - 4, x + d + 5)))
                used.add(self.lower[edge])
