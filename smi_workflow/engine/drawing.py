"""Owns the drawing of an outline as SVG: boxes, text, colours of both schemes. Called by picture.py."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape

from smi_workflow.engine.layout import LINE_PX, Box, Edge
from smi_workflow.engine.routes import Layout, Line, Point, lay_out

_MARGIN = 28
_HEADER_PX = 84
_START_PX = 72
_WIDTH_PX = 206
_INSET = 16
_ROUND = 13
_ROW_PX = 17
_ICON_PX = 17
_BADGE_PX = 44
_COLUMN_PX = 170
_GUTTER_PX = 14
# Widths of a letter, as the widest of the named fonts needs them.
_NAME_PX = 10.2
_TEXT_PX = 7.1
_SMALL_PX = 7.25

_CLOCK = '<circle r="4.6"/><path d="M0-2.6V.2L1.9 1.4"/>'
_ARROW = '<path d="M-4.6 0H4M.8-3.2 4 0 .8 3.2"/>'
_LOOP = '<path d="M3.6-2.6A4.5 4.5 0 1 0 4.5.6M4.2-5.2V-2.2H1.2"/>'

_STYLE = """
.smi-flow{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
.smi-flow .mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.smi-flow .page{fill:#fff;stroke:#d8dee4}
.smi-flow .panel{fill:#f6f8fa;stroke:#d8dee4}
.smi-flow .ink{fill:#1f2328}
.smi-flow .soft{fill:#59636e}
.smi-flow .rule{stroke:#1f2328;stroke-opacity:.13}
.smi-flow .icon{fill:none;stroke:#59636e;stroke-width:1.3;stroke-linecap:round;stroke-linejoin:round}
.smi-flow .box{stroke-width:1.5}
.smi-flow .main .box{fill:#eef4ff;stroke:#4a7fe0}
.smi-flow .goal .box{fill:#eafaf0;stroke:#2c9a4b}
.smi-flow .aside .box{fill:#fff6e6;stroke:#cf8a1d}
.smi-flow .bar{stroke:none}
.smi-flow .main .bar{fill:#4a7fe0}
.smi-flow .goal .bar{fill:#2c9a4b}
.smi-flow .aside .bar{fill:#cf8a1d}
.smi-flow .count{fill:#fff}
.smi-flow .halo{fill:none;stroke-width:5;stroke-opacity:.35}
.smi-flow .main .halo{stroke:#4a7fe0}
.smi-flow .goal .halo{stroke:#2c9a4b}
.smi-flow .aside .halo{stroke:#cf8a1d}
.smi-flow .quiet{opacity:.5}
.smi-flow .line{fill:none;stroke-width:1.6}
.smi-flow .story .line{stroke:#4a7fe0;stroke-width:2.4}
.smi-flow .away .line{stroke:#cf8a1d}
.smi-flow .back .line{stroke:#7b8794}
.smi-flow .story .tip{fill:#4a7fe0}
.smi-flow .away .tip{fill:#cf8a1d}
.smi-flow .back .tip{fill:#7b8794}
.smi-flow .label{fill:#1f2328;stroke:#fff;stroke-width:4;stroke-linejoin:round;paint-order:stroke}
@media (prefers-color-scheme:dark){
.smi-flow .page{fill:#0d1117;stroke:#30363d}
.smi-flow .panel{fill:#151b23;stroke:#30363d}
.smi-flow .ink{fill:#e6edf3}
.smi-flow .soft{fill:#9aa5b1}
.smi-flow .rule{stroke:#e6edf3;stroke-opacity:.16}
.smi-flow .icon{stroke:#9aa5b1}
.smi-flow .main .box{fill:#121f38;stroke:#5b93f5}
.smi-flow .goal .box{fill:#0f2a1a;stroke:#3fb55f}
.smi-flow .aside .box{fill:#2d2110;stroke:#d99a2b}
.smi-flow .main .bar{fill:#5b93f5}
.smi-flow .goal .bar{fill:#3fb55f}
.smi-flow .aside .bar{fill:#d99a2b}
.smi-flow .story .line{stroke:#5b93f5}
.smi-flow .away .line{stroke:#d99a2b}
.smi-flow .back .line{stroke:#8b97a4}
.smi-flow .story .tip{fill:#5b93f5}
.smi-flow .away .tip{fill:#d99a2b}
.smi-flow .back .tip{fill:#8b97a4}
.smi-flow .label{fill:#e6edf3;stroke:#0d1117}
}
"""


@dataclass(frozen=True, slots=True)
class StateOutline:
    """What a picture says of one state.

    Attributes:
        effects: name and whether it is a timer, of each that may be owed during a stay.
        stays: triggers that do not leave it.
    """

    name: str
    meaning: str
    effects: tuple[tuple[str, bool], ...]
    stays: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """What a picture says of a workflow.

    Attributes:
        everywhere: the moves of every state, told in words.
        triggers: how many are declared.
    """

    name: str
    initial: str
    started_by: str
    triggers: int
    states: tuple[StateOutline, ...]
    edges: tuple[Edge, ...]
    everywhere: tuple[str, ...]


def draw(outline: Outline, lit: Mapping[str, int] | None, current: str | None) -> str:
    """Draw an outline; the same outline always gives the same bytes.

    Args:
        lit: how many subjects are in each state; None leaves numbers out.
        current: the state to mark.
    Returns: one standalone `<svg>` element.
    """
    return _Drawing(outline, lit, current).text()


@dataclass(slots=True)
class _Drawing:
    outline: Outline
    lit: Mapping[str, int] | None
    current: str | None
    plan: Layout = field(init=False)

    def text(self) -> str:
        outline = self.outline
        widths = {state.name: _least_width(state) for state in outline.states}
        self.plan = lay_out(widths, outline.initial, outline.edges, self._box_height)
        start = max(_START_PX, math.ceil(len(outline.started_by) * _SMALL_PX) + 30)
        inner = max(self.plan.right + start, 640 if self.lit is None else 860)
        panel, panel_height = self._panel(inner)
        panel_y = _HEADER_PX + self.plan.bottom + (34 if panel else 12)
        width, height = inner + 2 * _MARGIN, panel_y + panel_height + 62
        slug = re.sub(r"\W", "-", outline.name)
        title = escape(f"The life of a {outline.name}")
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="smi-flow" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img" aria-labelledby="{slug}-title {slug}-desc">',
            f'<title id="{slug}-title">{title}</title>',
            f'<desc id="{slug}-desc">{escape(self._described())}</desc>',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="14"/>',
            *self._header(),
            f'<g transform="translate({_MARGIN + start} {_HEADER_PX})">',
            *(self._line(line) for line in self.plan.lines),
            # After all lines, so that none is drawn through a word.
            *(self._label(line) for line in self.plan.lines),
            self._start(start),
            *(self._box(self.plan.boxes[state.name], state) for state in outline.states),
            "</g>",
            f'<g transform="translate({_MARGIN} {panel_y})">{panel}</g>',
            f'<g transform="translate({_MARGIN} {height - 30})">{self._legend()}</g>',
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _described(self) -> str:
        """The picture in words, for those who do not see it."""
        states = "; ".join(f"{state.name}: {state.meaning}" for state in self.outline.states)
        moves = "; ".join(
            f"{edge.source} to {edge.target} by {', '.join(edge.triggers)}" for edge in self.outline.edges
        )
        return f"States: {states}. Moves: {moves}. In every state: {'; '.join(self.outline.everywhere) or 'none'}."

    def _header(self) -> list[str]:
        counts = ((len(self.outline.states), "state"), (self.outline.triggers, "trigger"))
        counted = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
        return [
            _words(_MARGIN, 44, f"The life of a {self.outline.name}", "ink", 21, bold=True),
            _words(_MARGIN, 65, counted, "soft", 13),
        ]

    def _kind(self, name: str) -> str:
        if name not in self.plan.path:
            return "aside"
        return "goal" if name == self.plan.path[-1] else "main"

    def _content(self, state: StateOutline, width: int) -> tuple[list[str], int, list[list[tuple[str, str]]]]:
        """What a box says: its meaning, wrapped; then rows of small print, in columns of some width."""
        room = width - 2 * _INSET
        widest = max([_COLUMN_PX, *(_small_width(name) + _GUTTER_PX for name, _ in state.effects)])
        columns = max(1, room // widest)
        small = [(_CLOCK if is_timer else _ARROW, name) for name, is_timer in state.effects]
        letters = _fits(room // columns - _ICON_PX, _SMALL_PX)
        stays = textwrap.wrap(", ".join(state.stays), letters, break_long_words=False, break_on_hyphens=False)
        small += [("" if place else _LOOP, line) for place, line in enumerate(stays)]
        rows = math.ceil(len(small) / columns)
        return (
            textwrap.wrap(state.meaning, _fits(room, _TEXT_PX)),
            room // columns,
            [small[row::rows] for row in range(rows)],
        )

    def _box_height(self, name: str, width: int) -> int:
        state = next(state for state in self.outline.states if state.name == name)
        meaning, _, small = self._content(state, width)
        return 46 + _ROW_PX * len(meaning) + (15 + _ROW_PX * len(small) if small else 0)

    def _box(self, box: Box, state: StateOutline) -> str:
        meaning, column, small = self._content(state, box.width)
        count = None if self.lit is None else self.lit.get(box.name, 0)
        quiet = " quiet" if count == 0 and box.name != self.current else ""
        parts = [f'<g class="{self._kind(box.name)}{quiet}" transform="translate({box.x} {box.y})">']
        if box.name == self.current:
            size = f'width="{box.width + 10}" height="{box.height + 10}"'
            parts.append(f'<rect class="halo" x="-5" y="-5" {size} rx="15"/>')
        parts.append(f'<rect class="box" width="{box.width}" height="{box.height}" rx="10"/>')
        parts.append(_words(_INSET, 28, box.name, "ink", 16, bold=True))
        y = 48
        for line in meaning:
            parts.append(_words(_INSET, y, line, "soft", 13))
            y += _ROW_PX
        if small:
            parts.append(f'<path class="rule" d="M{_INSET} {y - 5}H{box.width - _INSET}"/>')
            y += 14
        for row in small:
            for place, (icon, line) in enumerate(row):
                x = _INSET + place * column
                parts.append(_icon(icon, x, y))
                parts.append(_words(x + _ICON_PX, y, line, "soft mono", 12))
            y += _ROW_PX
        if count is not None:
            wide = 14 + 8 * len(str(count))
            pill = f'x="{box.width - wide - 11}" y="11" width="{wide}" height="22"'
            parts.append(f'<rect class="bar" {pill} rx="11"/>')
            parts.append(
                _words(box.width - 11 - wide // 2, 26, str(count), "count", 12, bold=True, anchor="middle")
            )
        return "".join(parts) + "</g>"

    def _line(self, line: Line) -> str:
        edge, path = line.edge, self.plan.path
        if edge.target not in path:
            kind = "away"
        else:
            kind = "story" if (edge.source, edge.target) in pairwise(path) else "back"
        return f'<g class="{kind}">{_arrow(line.points)}</g>'

    def _label(self, line: Line) -> str:
        x, y = line.label
        anchor = "middle" if line.centred else "start"
        return "".join(
            _words(x, y + 11 + LINE_PX * place, trigger, "label mono", 12, anchor=anchor)
            for place, trigger in enumerate(line.edge.triggers)
        )

    def _start(self, room: int) -> str:
        """The dot that every picture of states begins with."""
        x, y = self.plan.boxes[self.outline.initial].x, self.plan.spine
        dot = f'<circle class="ink" cx="{x - room + 7}" cy="{y}" r="7"/>'
        label = _words(x - room // 2 + 2, y - 10, self.outline.started_by, "label mono", 12, anchor="middle")
        return f'<g class="story">{dot}{_arrow(((x - room + 14, y), (x, y)))}{label}</g>'

    def _panel(self, width: int) -> tuple[str, int]:
        """The moves of every state, and how high the panel is."""
        letters = _fits(width - 2 * _INSET, _SMALL_PX)
        lines = [
            line
            for text in self.outline.everywhere
            for line in textwrap.wrap(text, letters, subsequent_indent="    ", break_on_hyphens=False)
        ]
        if not lines:
            return "", 0
        height = 46 + 18 * len(lines)
        parts = [f'<rect class="panel" width="{width}" height="{height}" rx="10"/>']
        parts.append(_words(_INSET, 26, "In every state", "ink", 14, bold=True))
        parts += [_words(_INSET, 48 + 18 * place, line, "soft mono", 12) for place, line in enumerate(lines)]
        return "".join(parts), height

    def _legend(self) -> str:
        parts, x = [], 0
        kinds = {self._kind(state.name) for state in self.outline.states}
        for kind, word in (("main", "main path"), ("goal", "goal"), ("aside", "off the path")):
            if kind in kinds:
                swatch = '<rect class="box" width="18" height="13" rx="4"/>'
                parts.append(f'<g class="{kind}" transform="translate({x} -11)">{swatch}</g>')
                parts.append(_words(x + 25, 0, word, "soft", 13))
                x += 25 + math.ceil(_TEXT_PX * len(word)) + 22
        for icon, word in ((_ARROW, "effect owed"), (_CLOCK, "timer"), (_LOOP, "triggers that stay in the state")):
            parts.append(_icon(icon, x, 0) + _words(x + _ICON_PX, 0, word, "soft", 13))
            x += _ICON_PX + math.ceil(_TEXT_PX * len(word)) + 22
        if self.lit is not None:
            parts.append(_words(x, 0, "numbers: how many are there now", "soft", 13))
        return "".join(parts)


def _least_width(state: StateOutline) -> int:
    """The width below which some word would leave the box."""
    words = [*(name for name, _ in state.effects), *state.stays]
    name = math.ceil(len(state.name) * _NAME_PX)
    return max([_WIDTH_PX, 2 * _INSET + name + _BADGE_PX, *(2 * _INSET + _small_width(word) for word in words)])


def _small_width(word: str) -> int:
    return _ICON_PX + math.ceil(len(word) * _SMALL_PX)


def _fits(room_px: int, letter_px: float) -> int:
    """How many letters a line may have."""
    return max(1, int(room_px / letter_px))


def _words(x: int, y: int, text: str, kind: str, size: int, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{x}" y="{y}" font-size="{size}"{weight}{place}>{escape(text)}</text>'


def _icon(icon: str, x: int, baseline: int) -> str:
    return f'<g class="icon" transform="translate({x + 5} {baseline - 4})">{icon}</g>' if icon else ""


def _arrow(points: tuple[Point, ...]) -> str:
    """A line with rounded corners that ends in an arrowhead."""
    (x1, y1), (x2, y2) = points[-2:]
    dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
    way = [f"M{points[0][0]} {points[0][1]}"]
    for before, (x, y), after in zip(points, points[1:-1], points[2:], strict=False):
        (x_in, y_in), (x_out, y_out) = _toward((x, y), before), _toward((x, y), after)
        way.append(f"L{x_in} {y_in}Q{x} {y} {x_out} {y_out}")
    # The line stops inside the head, or it would blunt the tip.
    way.append(f"L{x2 - 7 * dx} {y2 - 7 * dy}")
    left, right = (x2 - 9 * dx + 5 * dy, y2 - 9 * dy + 5 * dx), (x2 - 9 * dx - 5 * dy, y2 - 9 * dy - 5 * dx)
    tip = f"M{x2 - dx} {y2 - dy}L{left[0]} {left[1]}L{right[0]} {right[1]}Z"
    return f'<path class="line" d="{"".join(way)}"/><path class="tip" d="{tip}"/>'


def _toward(start: Point, end: Point) -> Point:
    """A point on the way, as far from the start as a rounded corner reaches."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    reach = min(_ROUND, max(abs(dx), abs(dy)) // 2)
    return start[0] + reach * ((dx > 0) - (dx < 0)), start[1] + reach * ((dy > 0) - (dy < 0))
