"""Owns the tests of where a picture's boxes, lines and labels go, whatever is declared. Called by pytest."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from smi_workflow.engine.layout import Edge, main_path
from smi_workflow.engine.picture import outline_of
from smi_workflow.engine.routes import Layout, Line, lay_out
from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.refunds import REFUND
from tests.support.loans import LOAN

Area = tuple[int, int, int, int]


def edge(source: str, target: str, *triggers: str) -> Edge:
    return Edge(source, target, triggers or ("go",))


def graph(seed: int) -> tuple[dict[str, int], list[Edge]]:
    """States with the least widths of their boxes, and edges between them: any, also what nobody would declare."""
    chance = random.Random(seed)
    names = [f"s{index}" for index in range(chance.randint(1, 9))]
    found: dict[tuple[str, str], Edge] = {}
    for _ in range(chance.randint(0, 2 * len(names))):
        pair = chance.choice(names), chance.choice(names)
        labels = ["t" * chance.randint(3, 20) for _ in range(chance.randint(1, 4))]
        found[pair] = Edge(*pair, tuple(labels))
    return {name: chance.randint(206, 320) for name in names}, list(found.values())


def declared(flow: Workflow) -> tuple[dict[str, int], list[Edge]]:
    return {str(state.name): 206 for state in flow.states}, list(outline_of(flow).edges)


GRAPHS = [declared(flow) for flow in (JOB, REFUND, LOAN)] + [graph(seed) for seed in range(600)]


def placed(widths: dict[str, int], edges: list[Edge]) -> Layout:
    return lay_out(widths, next(iter(widths)), edges, lambda name, width: 60 + 20 * (len(name) + width % 7))


def label_area(line: Line) -> Area:
    left = line.label[0] - (line.edge.label_width // 2 if line.centred else 0)
    return left, line.label[1], left + line.edge.label_width, line.label[1] + line.edge.label_height


def meet(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def legs(line: Line) -> list[Area]:
    """The straight parts of a line, one pixel wide."""
    return [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for (a, b), (c, d) in pairwise(line.points)]


def inside(area: Area) -> Area:
    return area[0] + 1, area[1] + 1, area[2], area[3]


def test_nothing_covers_anything() -> None:
    for widths, edges in GRAPHS:
        _check_cover(placed(widths, edges))


def _check_cover(layout: Layout) -> None:
    boxes = [(box.x, box.y, box.right, box.bottom) for box in layout.boxes.values()]
    labels = [label_area(line) for line in layout.lines]
    assert not any(meet(*pair) for pair in combinations(boxes, 2))
    assert not any(meet(*pair) for pair in combinations(labels, 2))
    assert not any(meet(label, box) for label in labels for box in boxes)
    assert not any(meet(leg, inside(box)) for line in layout.lines for leg in legs(line) for box in boxes)
    for area in (*boxes, *labels, *(leg for line in layout.lines for leg in legs(line))):
        assert min(area) >= 0
        assert area[2] <= layout.right + 1
        assert area[3] <= layout.bottom + 1


def test_each_edge_is_one_line_from_box_to_box_and_no_two_run_together() -> None:
    for widths, edges in GRAPHS:
        layout = placed(widths, edges)
        assert sorted((line.edge for line in layout.lines), key=repr) == sorted(edges, key=repr)
        _check_lines(layout)


def _check_lines(layout: Layout) -> None:
    for line in layout.lines:
        for point, name in ((line.points[0], line.edge.source), (line.points[-1], line.edge.target)):
            box = layout.boxes[name]
            on_side = point[0] in (box.x, box.right) and box.y < point[1] < box.bottom
            on_top = point[1] in (box.y, box.bottom) and box.x < point[0] < box.right
            assert on_side or on_top
    for one, other in combinations(layout.lines, 2):
        for leg, another in ((a, b) for a in legs(one) for b in legs(other)):
            if meet(leg, another):
                # They cross in one point, and do not share a stretch.
                assert min(leg[2], another[2]) - max(leg[0], another[0]) == 1
                assert min(leg[3], another[3]) - max(leg[1], another[1]) == 1


@pytest.mark.parametrize(
    ("flow", "path"),
    [
        (JOB, ("awaiting_payment", "pending", "processing", "completed")),
        (REFUND, ("requested", "submitted", "pending", "succeeded")),
        (LOAN, ("reserved", "lent", "returned")),
    ],
    ids=lambda value: value.name if isinstance(value, Workflow) else "",
)
def test_the_main_path_is_the_story_that_is_told(flow: Workflow, path: tuple[str, ...]) -> None:
    names = [str(state.name) for state in flow.states]
    assert main_path(names, str(flow.initial), outline_of(flow).edges) == path


def test_the_main_path_does_not_end_in_a_failure() -> None:
    edges = [edge("a", "b"), Edge("b", "x", ("fail",), fails=True)]
    assert main_path(("a", "b", "x"), "a", edges) == ("a", "b")
    assert main_path(("a", "b", "x"), "a", [edge("a", "b"), edge("b", "x")]) == ("a", "b", "x")


def test_the_main_path_is_one_straight_line_from_left_to_right() -> None:
    names = ("a", "b", "c", "x")
    layout = placed(dict.fromkeys(names, 206), [edge("a", "b"), edge("b", "c"), edge("b", "x"), edge("c", "a")])
    ahead = [line for line in layout.lines if (line.edge.source, line.edge.target) in pairwise("abc")]
    assert {y for line in ahead for _, y in line.points} == {layout.spine}
    assert all(line.points[0][0] < line.points[-1][0] for line in ahead)
    assert layout.boxes["x"].y > layout.boxes["b"].bottom


def test_a_loop_in_the_declaration_does_not_lengthen_the_main_path() -> None:
    edges = [edge("a", "b"), edge("b", "a"), edge("b", "b"), edge("b", "c"), edge("c", "a")]
    assert main_path(("a", "b", "c"), "a", edges) == ("a", "b", "c")


def test_a_state_below_stands_under_its_partner_with_straight_lines() -> None:
    edges = [edge("a", "b"), edge("b", "c"), edge("b", "x", "fail", "refund"), edge("x", "b", "retry")]
    layout = placed(dict.fromkeys("abcx", 206), edges)
    down, up = (line for line in layout.lines if "x" in (line.edge.source, line.edge.target))
    assert len(down.points) == len(up.points) == 2
    assert layout.boxes["x"].x == layout.boxes["b"].x


def test_lanes_are_ordered_so_that_lines_cross_least() -> None:
    edges = [edge(*pair) for pair in ("ab", "bc", "cd", "bx", "ax")] + [edge("d", "x", "one", "two")]
    layout = placed(dict.fromkeys("abcdx", 206), edges)
    crossings = [
        (first.edge, second.edge)
        for first, second in combinations(layout.lines, 2)
        if any(meet(one, other) for one in legs(first) for other in legs(second))
    ]
    assert crossings == []


def test_wide_boxes_below_push_columns_apart() -> None:
    widths = {"a": 206, "x": 700, "y": 206, "b": 206, "c": 206}
    layout = placed(widths, [edge(*pair) for pair in ("ab", "bc", "ax", "by")])
    assert layout.boxes["x"].right < layout.boxes["y"].x
    assert [len(line.points) for line in layout.lines] == [2, 2, 2, 2]
