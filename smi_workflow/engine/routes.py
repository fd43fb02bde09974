"""Owns the way of every line and the place of every label in a workflow's picture. Called by drawing.py.

Each line between or outside the rows has a lane of its own, and labels stand in lanes: none meets another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

from smi_workflow.engine.layout import Box, Edge, Places

_LANE = 12
_PERMUTED_MAX = 6

Point = tuple[int, int]


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
    widths: Mapping[str, int], initial: str, edges: Sequence[Edge], measure: Callable[[str, int], int]
) -> Layout:
    """Find a place for everything; the same declaration always gets the same places.

    Args:
        widths: the least width of each state's box, in the order of declaration.
        edges: at most one from a state to another.
        measure: the height that a state's text needs in a box of this width.
    """
    places = Places(widths, initial, edges)
    rows: list[list[Box]] = [[], []]
    for box in places.boxes.values():
        box.height = measure(box.name, box.width)
        rows[box.row].append(box)
    lanes = _lane_order(places)
    straight = [edge for edge in places.between() if edge not in lanes]
    channel = sum(edge.label_height + _LANE for edge in lanes) + (22 if lanes else 12)
    channel += max((edge.label_height + 30 for edge in straight), default=34)
    y = sum(edge.label_height + _LANE for edge in places.within(0))
    beside = [edge for column in range(len(places.path)) for edge in places.beside(column)]
    drop = max([min(64, max(box.height for box in rows[0]) // 2), *(edge.label_height + 10 for edge in beside)])
    back = max((edge.label_height + 22 for edge in beside if len(beside) > 1), default=0)
    for row, least in zip(rows, (drop + back + 14, 0), strict=True):
        height = max((box.height for box in row), default=0)
        for box in row:
            box.y, box.height = y, max(height, least)
        y += max(height, least) + channel
    spine = rows[0][0].y + drop
    lines = [line for column in range(len(places.path)) for line in _beside(places, column, spine)]
    lines += _between(places, lanes, straight, rows[0][0].bottom, rows[0][0].bottom + channel)
    lines += _within(places, 0) + _within(places, 1)
    return _at_origin(Layout(places.path, places.boxes, lines, spine))


def _beside(places: Places, column: int, spine: int) -> list[Line]:
    lines: list[Line] = []
    y = spine
    for edge in sorted(places.beside(column), key=lambda edge: edge.source != places.path[column]):
        left, right = places.boxes[places.path[column]], places.boxes[places.path[column + 1]]
        forth = edge.source == left.name
        if not forth and lines:
            y += edge.label_height + 22
        points = ((left.right, y), (right.x, y))
        label = ((left.right + right.x) // 2 - (4 if forth else -4), y - edge.label_height - 5)
        lines.append(Line(edge, points if forth else points[::-1], label, centred=True))
    return lines


def _lane_order(places: Places) -> list[Edge]:
    """The edges that change columns between the rows, highest lane first, with the fewest crossings."""
    jogs = [edge for edge in places.between() if places.upper[edge] != places.lower[edge]]
    if len(jogs) > _PERMUTED_MAX:
        return jogs

    def crossings(order: Iterable[Edge]) -> int:
        count, order = 0, list(order)
        for above, edge in enumerate(order):
            low, high = sorted((places.upper[edge], places.lower[edge]))
            count += sum(low < places.upper[other] < high for other in order[above + 1 :])
            count += sum(low < places.lower[other] < high for other in order[:above])
        return count

    return list(min(permutations(jogs), key=crossings))


def _between(places: Places, lanes: list[Edge], straight: list[Edge], top: int, bottom: int) -> list[Line]:
    lines: list[Line] = []
    levels: dict[Edge, int] = {}
    y = top + 10
    for edge in lanes:
        y += edge.label_height + _LANE
        levels[edge] = y
    for edge in straight:
        points = ((places.upper[edge], top), (places.upper[edge], bottom))
        label = (places.upper[edge] + 9, bottom - 20 - edge.label_height)
        lines.append(Line(edge, points if edge.source in places.column else points[::-1], label, centred=False))
    for edge, level in levels.items():
        up, down = places.upper[edge], places.lower[edge]
        # Lines that pass this label's height: all straight ones, and the ends of those in other lanes.
        passing = [places.upper[other] for other in straight]
        passing += [places.upper[o] for o in lanes if levels[o] > level]
        passing += [places.lower[o] for o in lanes if levels[o] < level]
        low, high = sorted((up, down))
        stops = [low, *sorted(x for x in passing if low < x < high), high]
        widest = max(pairwise(stops), key=lambda pair: pair[1] - pair[0])
        points4 = ((up, top), (up, level), (down, level), (down, bottom))
        label = (sum(widest) // 2, level - edge.label_height - 5)
        lines.append(Line(edge, points4 if edge.source in places.column else points4[::-1], label, centred=True))
    return lines


def _within(places: Places, row: int) -> list[Line]:
    """Arcs over the main row, or under the lower one; shorter ones lie inside longer ones."""
    edges = places.within(row)
    ends: dict[str, list[tuple[int, int, int, Edge, int]]] = {name: [] for name in places.boxes}
    for index, edge in enumerate(edges):
        pair = [places.boxes[edge.source], places.boxes[edge.target]]
        for end, (mine, other) in enumerate((pair, pair[::-1])):
            side = (other.x > mine.x) - (other.x < mine.x)
            ends[mine.name].append((side, -other.x, index * (side or end), edge, end))
    ports: dict[tuple[Edge, int], int] = {}
    for name, found in ends.items():
        for place, (*_, edge, end) in enumerate(sorted(found, key=lambda item: item[:3])):
            box = places.boxes[name]
            ports[edge, end] = box.x + box.width * (place + 1) // (len(found) + 1)
    lines, away = [], 8
    for edge in sorted(edges, key=lambda edge: abs(ports[edge, 1] - ports[edge, 0])):
        start, stop = ports[edge, 0], ports[edge, 1]
        away += _LANE
        wall = places.boxes[edge.source].y if row == 0 else places.boxes[edge.source].bottom
        level = wall - away if row == 0 else wall + away
        points = ((start, wall), (start, level), (stop, level), (stop, wall))
        lift = level - edge.label_height - 5 if row == 0 else level + 3
        lines.append(Line(edge, points, ((start + stop) // 2, lift), centred=True))
        away += edge.label_height
    return lines


def _at_origin(found: Layout) -> Layout:
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
