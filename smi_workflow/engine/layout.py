"""Owns where the boxes, lines and labels of a workflow's picture go. Called by picture.py.

The main story, the longest way forward in the order of declaration, is one straight row; every other state stands
below it. So each line runs beside its neighbour's box, above the row, between the rows or below them, in a lane of
its own: no line crosses a box and no label meets another, whatever is declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations

LABEL_PX = 7.25
LINE_PX = 15

_PAD = 20
_JOG = 24
_MIN_WIDTH = 206
_MIN_GAP = 72
_LANE = 12
_PERMUTED_MAX = 6

Point = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Edge:
    """The triggers that lead from one state to another."""

    source: str
    target: str
    triggers: tuple[str, ...]

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
    width: int = _MIN_WIDTH
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


@dataclass(frozen=True, slots=True)
class Line:
    """One edge as drawn, from source to target, and its label: the middle or the left end of its upper side."""

    edge: Edge
    points: tuple[Point, ...]
    label: Point
    centred: bool


@dataclass(slots=True)
class Layout:
    """The whole picture, its upper left corner at (0, 0)."""

    path: tuple[str, ...]
    boxes: dict[str, Box]
    lines: list[Line]
    spine: int = 0
    right: int = 0
    bottom: int = 0


def lay_out(
    names: Sequence[str], initial: str, edges: Sequence[Edge], measure: Callable[[str, int], int]
) -> Layout:
    """Find a place for everything; the same declaration always gets the same places.

    Args:
        names: every state, in the order of declaration.
        edges: at most one for each pair of states.
        measure: the height that a state's text needs in a box of this width.
    """
    return _Builder(names, initial, edges, measure).build()


def main_story(names: Sequence[str], initial: str, edges: Iterable[Edge]) -> tuple[str, ...]:
    """The longest way from the first state on to later declared ones; of equals, the first declared."""
    order = {name: index for index, name in enumerate(names)}
    ahead: dict[str, set[str]] = {name: set() for name in names}
    for edge in edges:
        if order[edge.target] > order[edge.source]:
            ahead[edge.source].add(edge.target)
    longest: dict[str, tuple[str, ...]] = {}
    for name in reversed(names):
        ways = [longest[target] for target in sorted(ahead[name], key=order.__getitem__)]
        longest[name] = (name, *max(ways, key=len, default=()))
    return longest[initial]


@dataclass(slots=True)
class _Builder:
    names: Sequence[str]
    initial: str
    edges: Sequence[Edge]
    measure: Callable[[str, int], int]
    path: tuple[str, ...] = ()
    column: dict[str, int] = field(default_factory=dict)
    boxes: dict[str, Box] = field(default_factory=dict)
    # Where an edge between the rows leaves the upper box and the lower one.
    upper: dict[Edge, int] = field(default_factory=dict)
    lower: dict[Edge, int] = field(default_factory=dict)
    runs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def build(self) -> Layout:
        self.path = main_story(self.names, self.initial, self.edges)
        self.column = {name: index for index, name in enumerate(self.path)}
        self.boxes = {name: Box(name, 0 if name in self.column else 1) for name in self.names}
        self._find_runs()
        self._place_columns()
        self._place_the_rest()
        return self._draw()

    # -- which edge runs where --------------------------------------------------------------------------------

    def _between(self) -> list[Edge]:
        return [edge for edge in self.edges if self.boxes[edge.source].row != self.boxes[edge.target].row]

    def _beside(self, column: int) -> list[Edge]:
        """Edges between this column's state and the next one's, either way."""
        pair = set(self.path[column : column + 2])
        return [edge for edge in self.edges if {edge.source, edge.target} == pair and len(pair) == 2]

    def _within(self, row: int) -> list[Edge]:
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
        weights: dict[str, dict[int, int]] = {name: {} for name in self.names if name not in self.column}
        for edge in self._between():
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
        return [edge for edge in self._between() if name in self._ends(edge)]

    def _jogs(self, name: str, *, to_the_right: bool) -> list[Edge]:
        """Edges between the rows that are not straight, ordered so that those of one side do not cross."""
        found = []
        for edge in self._of(name):
            up, down = self._ends(edge)
            other = down if name == up else up
            if self.column[up] not in self.runs[down] and (self._rank(other) >= self._rank(name)) == to_the_right:
                found.append((self._rank(other), edge))
        return [edge for _, edge in sorted(found, key=lambda pair: pair[0])]

    # -- places -----------------------------------------------------------------------------------------------

    def _place_columns(self) -> None:
        cursor, shelf = 0, -(10**6)
        for index, name in enumerate(self.path):
            box = self.boxes[name]
            before, after = self._jogs(name, to_the_right=False), self._jogs(name, to_the_right=True)
            straight = [edge for edge in self._of(name) if index in self.runs[self._ends(edge)[1]]]
            slots = sum(edge.label_width + 20 for edge in straight)
            need = 2 * _PAD + _JOG * (len(before) + len(after)) + slots
            box.width = max(_MIN_WIDTH, need)
            first = _PAD + _JOG * len(before) + (box.width - need) // 2
            below = next((self.boxes[down] for down, run in self.runs.items() if index in run), None)
            opens = below is not None and self.runs[below.name][0] == index
            if below is not None and opens:
                reach = first - _PAD - _JOG * len(self._jogs(below.name, to_the_right=False))
                cursor = max(
                    cursor, shelf + _MIN_GAP // 2 - min(reach, 0 if len(self.runs[below.name]) == 1 else reach)
                )
            box.x = cursor
            for place, edge in enumerate(before):
                self.upper[edge] = box.x + _PAD + _JOG * place
            for place, edge in enumerate(after):
                self.upper[edge] = box.right - _PAD - _JOG * (len(after) - 1 - place)
            offset = box.x + first
            for edge in straight:
                self.upper[edge] = self.lower[edge] = offset
                offset += edge.label_width + 20
            if below is not None:
                if opens:
                    self._open_below(below, box.x + first, box)
                if self.runs[below.name][-1] == index:
                    shelf = self._close_below(below, offset, box)
            beside = [edge.label_width + 36 for edge in self._beside(index)]
            cursor = box.right + max([_MIN_GAP, *beside])

    def _open_below(self, below: Box, first: int, above: Box) -> None:
        arriving = self._jogs(below.name, to_the_right=False)
        for place, edge in enumerate(arriving):
            self.lower[edge] = first - _JOG * (len(arriving) - place)
        below.x = first - _PAD - _JOG * len(arriving)
        if len(self.runs[below.name]) == 1:
            below.x = min(below.x, above.x)

    def _close_below(self, below: Box, offset: int, above: Box) -> int:
        leaving = self._jogs(below.name, to_the_right=True)
        for place, edge in enumerate(leaving):
            self.lower[edge] = offset + _JOG * place
        right = max(offset + _JOG * len(leaving), below.x + _MIN_WIDTH)
        if len(self.runs[below.name]) == 1:
            right = max(right, above.right)
        below.width = right - below.x
        return right

    def _place_the_rest(self) -> None:
        """Lower states that own no column go where there is room, as near to their partners as can be."""
        taken = [self.boxes[name] for name, run in self.runs.items() if run]
        for name in sorted((name for name, run in self.runs.items() if not run), key=self._rank):
            box = self.boxes[name]
            mine = self._jogs(name, to_the_right=False) + self._jogs(name, to_the_right=True)
            box.width = max(_MIN_WIDTH, 2 * _PAD + _JOG * len(mine))
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
            for place, edge in enumerate(mine):
                self.lower[edge] = box.x + box.width * (place + 1) // (len(mine) + 1)

    # -- lines ------------------------------------------------------------------------------------------------

    def _draw(self) -> Layout:
        rows: list[list[Box]] = [[], []]
        for box in self.boxes.values():
            box.height = self.measure(box.name, box.width)
            rows[box.row].append(box)
        lanes = self._lane_order()
        straight = [edge for edge in self._between() if edge not in lanes]
        channel = sum(edge.label_height + _LANE for edge in lanes) + (22 if lanes else 12)
        channel += max((edge.label_height + 30 for edge in straight), default=34)
        y = sum(edge.label_height + _LANE for edge in self._within(0)) + (14 if self._within(0) else 0)
        spine = y
        for row in rows:
            height = max((box.height for box in row), default=0)
            for box in row:
                box.y, box.height = y, height
            y += height + channel
        spine = rows[0][0].y + self._spine_offset(rows[0][0].height)
        lines = [line for column in range(len(self.path)) for line in self._draw_beside(column, spine)]
        lines += self._draw_between(lanes, straight, rows[0][0].bottom, rows[0][0].bottom + channel)
        lines += self._draw_within(0) + self._draw_within(1)
        return self._at_origin(Layout(self.path, self.boxes, lines, spine))

    def _spine_offset(self, height: int) -> int:
        """How far down the main row its lines run: room for their labels above, and for a line back below."""
        labels = [edge.label_height for column in range(len(self.path)) for edge in self._beside(column)]
        return max(min(height // 2, 64), *(label + 8 for label in labels)) if labels else min(height // 2, 64)

    def _draw_beside(self, column: int, spine: int) -> list[Line]:
        lines, y = [], spine
        for edge in sorted(self._beside(column), key=lambda edge: edge.source != self.path[column]):
            left, right = self.boxes[self.path[column]], self.boxes[self.path[column + 1]]
            forth = edge.source == left.name
            if not forth and lines:
                y += edge.label_height + 22
            points = ((left.right, y), (right.x, y))
            label = ((left.right + right.x) // 2 - (4 if forth else -4), y - edge.label_height - 5)
            lines.append(Line(edge, points if forth else points[::-1], label, centred=True))
        return lines

    def _lane_order(self) -> list[Edge]:
        """The edges that change columns between the rows, highest lane first, with the fewest crossings."""
        jogs = [edge for edge in self._between() if self.upper[edge] != self.lower[edge]]
        if len(jogs) > _PERMUTED_MAX:
            return jogs

        def crossings(order: Sequence[Edge]) -> int:
            count = 0
            for above, edge in enumerate(order):
                low, high = sorted((self.upper[edge], self.lower[edge]))
                count += sum(low < self.upper[other] < high for other in order[above + 1 :])
                count += sum(low < self.lower[other] < high for other in order[:above])
            return count

        return list(min((list(order) for order in permutations(jogs)), key=crossings))

    def _draw_between(self, lanes: list[Edge], straight: list[Edge], top: int, bottom: int) -> list[Line]:
        lines: list[Line] = []
        levels: dict[Edge, int] = {}
        y = top + 10
        for edge in lanes:
            y += edge.label_height + _LANE
            levels[edge] = y
        for edge in straight:
            points = ((self.upper[edge], top), (self.upper[edge], bottom))
            label = (self.upper[edge] + 9, bottom - 20 - edge.label_height)
            lines.append(Line(edge, points if edge.source in self.column else points[::-1], label, centred=False))
        for edge, level in levels.items():
            up, down = self.upper[edge], self.lower[edge]
            # Lines that pass this label's height: all straight ones, and the ends of those in other lanes.
            passing = [self.upper[other] for other in straight]
            passing += [self.upper[o] for o in lanes if levels[o] > level]
            passing += [self.lower[o] for o in lanes if levels[o] < level]
            low, high = sorted((up, down))
            stops = [low, *sorted(x for x in passing if low < x < high), high]
            widest = max(pairwise(stops), key=lambda pair: pair[1] - pair[0])
            points4 = ((up, top), (up, level), (down, level), (down, bottom))
            label = (sum(widest) // 2, level - edge.label_height - 5)
            lines.append(Line(edge, points4 if edge.source in self.column else points4[::-1], label, centred=True))
        return lines

    def _draw_within(self, row: int) -> list[Line]:
        """Arcs over the main row, or under the lower one; shorter ones lie inside longer ones."""
        edges = self._within(row)
        ends: dict[str, list[tuple[int, int, int, Edge, int]]] = {name: [] for name in self.names}
        for index, edge in enumerate(edges):
            pair = [self.boxes[edge.source], self.boxes[edge.target]]
            for end, (mine, other) in enumerate((pair, pair[::-1])):
                side = (other.x > mine.x) - (other.x < mine.x)
                ends[mine.name].append((side, -other.x, index * (side or end), edge, end))
        ports: dict[tuple[Edge, int], int] = {}
        for name, found in ends.items():
            for place, (*_, edge, end) in enumerate(sorted(found, key=lambda item: item[:3])):
                box = self.boxes[name]
                ports[edge, end] = box.x + box.width * (place + 1) // (len(found) + 1)
        lines, away = [], 8
        for edge in sorted(edges, key=lambda edge: abs(ports[edge, 1] - ports[edge, 0])):
            start, stop = ports[edge, 0], ports[edge, 1]
            away += _LANE
            wall = self.boxes[edge.source].y if row == 0 else self.boxes[edge.source].bottom
            level = wall - away if row == 0 else wall + away
            points = ((start, wall), (start, level), (stop, level), (stop, wall))
            lift = level - edge.label_height - 5 if row == 0 else level + 3
            lines.append(Line(edge, points, ((start + stop) // 2, lift), centred=True))
            away += edge.label_height
        return lines

    def _at_origin(self, found: Layout) -> Layout:
        """Move everything so that nothing lies left of or above (0, 0)."""
        xs, ys = [], []
        for line in found.lines:
            x = line.label[0] - (line.edge.label_width // 2 if line.centred else 0)
            xs += [x, x + line.edge.label_width, *(point[0] for point in line.points)]
            ys += [line.label[1], line.label[1] + line.edge.label_height, *(point[1] for point in line.points)]
        for box in found.boxes.values():
            xs += [box.x, box.right]
            ys += [box.y, box.bottom]
        dx, dy = -min(xs), -min(ys)
        for box in found.boxes.values():
            box.x, box.y = box.x + dx, box.y + dy
        found.lines = [
            Line(
                line.edge,
                tuple((x + dx, y + dy) for x, y in line.points),
                (line.label[0] + dx, line.label[1] + dy),
                line.centred,
            )
            for line in found.lines
        ]
        found.spine, found.right, found.bottom = found.spine + dy, max(xs) + dx, max(ys) + dy
        return found
