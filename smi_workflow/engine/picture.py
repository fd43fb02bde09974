"""Owns the pictures of a declared workflow: Mermaid text, and a standalone SVG. Called by the cli, web/ and the README.

Both are made from the declaration alone, so that they cannot lie; the same declaration gives the same bytes.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from smi_workflow.engine.declaration import ANYWHERE, Move, Owed
from smi_workflow.engine.layout import LINE_PX, Box, Edge, Layout, Line, Point, lay_out
from smi_workflow.engine.workflow import Workflow, guard_name

_MERMAID_WORDS = {"end", "state", "note", "class", "default", "style", "direction", "as"}
_MARGIN = 32
_HEADER_PX = 84
_START_PX = 92
_INSET = 16
_ROUND = 13

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
.smi-flow .main .bar,.smi-flow .badge.main{fill:#4a7fe0}
.smi-flow .goal .bar,.smi-flow .badge.goal{fill:#2c9a4b}
.smi-flow .aside .bar,.smi-flow .badge.aside{fill:#cf8a1d}
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


def mermaid(flow: Workflow) -> str:
    """Write the workflow as a Mermaid state diagram.

    Returns: `stateDiagram-v2` text; triggers that stay stand in their state, those of every state in one note.
    """
    ids = {state.name: _mermaid_id(state.name) for state in flow.states}
    lines = ["stateDiagram-v2", f"    [*] --> {ids[flow.initial]} : {_mermaid_text(flow.started_by)}"]
    for state in flow.states:
        lines += [f"    {ids[state.name]} : {_mermaid_text(text)}" for text in (str(state.name), state.meaning)]
        stays = _staying(flow, state.name)
        if stays:
            lines.append(f"    {ids[state.name]} : {_mermaid_text('stays: ' + ', '.join(stays))}")
    for edge in edges_of(flow):
        label = "<br/>".join(_mermaid_text(trigger) for trigger in edge.triggers)
        lines.append(f"    {ids[edge.source]} --> {ids[edge.target]} : {label}")
    lines += [f"    {ids[name]} --> [*]" for name in _final(flow)]
    note = _everywhere(flow)
    if note:
        lines.append(f"    note right of {ids[flow.initial]}")
        lines.append("        In every state")
        lines += [f"        {_mermaid_text(text)}" for text in note]
        lines.append("    end note")
    return "\n".join(lines) + "\n"


def svg(flow: Workflow, *, lit: Mapping[str, int] | None = None, current: str | None = None) -> str:
    """Draw the workflow as a standalone SVG that follows the reader's light or dark scheme.

    Args:
        lit: how many subjects are in each state; shown as numbers, empty states fade.
        current: the state that one subject is in; marked.
    Returns: one `<svg>` element without scripts, fonts or links; fit for a file and for a page.
    """
    return _Drawing(flow, lit, current).text()


def edges_of(flow: Workflow) -> list[Edge]:
    """What leads from one declared state to another, moves of every state left out; in the table's order."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for move in flow.moves:
        if move.source != ANYWHERE and move.to is not None:
            for source in move.sources(flow.states):
                found.setdefault((str(source), str(move.to)), {})[move.trigger] = None
    return [Edge(source, target, tuple(triggers)) for (source, target), triggers in found.items()]


def _staying(flow: Workflow, state: str) -> list[str]:
    moves = [m for m in flow.moves if m.to is None and m.source != ANYWHERE and state in m.sources(flow.states)]
    return list(dict.fromkeys(move.trigger for move in moves))


def _owed(flow: Workflow, state: str) -> list[Owed]:
    """What may be owed during a stay: by the state, by what enters it, by what happens in it."""
    found = list(next(s for s in flow.states if s.name == state).owes)
    for move in flow.moves:
        stays = move.to is None and state in move.sources(flow.states)
        if move.source != ANYWHERE and (stays or move.to == state):
            found += move.owes
    unique = {item.effect.name: item for item in reversed(found)}
    return sorted(reversed(unique.values()), key=lambda item: item.is_timer)


def _final(flow: Workflow) -> list[str]:
    left = {edge.source for edge in edges_of(flow) if edge.source != edge.target}
    return [state.name for state in flow.states if state.name not in left]


def _everywhere(flow: Workflow) -> list[str]:
    """The moves that every state knows, told in words: those that lead on, then those that stay."""
    moves = [move for move in flow.moves if move.source == ANYWHERE]
    leading: dict[str, list[Move]] = {}
    for move in moves:
        if move.to is not None:
            leading.setdefault(move.trigger, []).append(move)
    told = []
    for trigger, group in leading.items():
        targets = list(dict.fromkeys(str(move.to) for move in group))
        named = "any named state" if len(targets) == len(flow.states) > 1 else ", ".join(targets)
        guards = list(dict.fromkeys(guard_name(guard) for move in group for guard in move.guards))
        told.append(f"{trigger} → {named}" + (f" [{', '.join(guards)}]" if guards else ""))
    stays = list(dict.fromkeys(move.trigger for move in moves if move.to is None))
    return told + ([f"stays: {', '.join(stays)}"] if stays else [])


def _mermaid_id(name: str) -> str:
    plain = re.sub(r"\W", "_", str(name))
    return f"{plain}_" if plain.lower() in _MERMAID_WORDS else plain


def _mermaid_text(text: str) -> str:
    # Mermaid's own entities: these characters would end the text, or begin markup.
    return re.sub(r'[#;:<>&"]', lambda found: f"#{ord(found[0])};", " ".join(text.split()))


@dataclass(slots=True)
class _Drawing:
    flow: Workflow
    lit: Mapping[str, int] | None
    current: str | None

    def text(self) -> str:
        flow = self.flow
        plan = lay_out([str(s.name) for s in flow.states], str(flow.initial), edges_of(flow), self._box_height)
        left, top = _MARGIN + _START_PX, _HEADER_PX
        inner = max(plan.right + _START_PX, 560)
        notes = self._notes(inner)
        body = [self._line(line, plan) for line in plan.lines]
        body += [self._box(box, self._kind(box.name, plan)) for box in plan.boxes.values()]
        body.append(self._start(plan))
        notes_y = top + plan.bottom + 34
        height = notes_y + notes[1] + 62
        width = inner + 2 * _MARGIN
        states = "; ".join(f"{s.name}: {s.meaning}" for s in flow.states)
        moves = "; ".join(f"{e.source} to {e.target} by {', '.join(e.triggers)}" for e in edges_of(flow))
        slug = re.sub(r"\W", "-", flow.name)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="smi-flow" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" role="img" aria-labelledby="{slug}-title {slug}-desc">',
            f'<title id="{slug}-title">{escape(f"The life of a {flow.name}")}</title>',
            f'<desc id="{slug}-desc">{escape(f"States: {states}. Moves: {moves}.")}</desc>',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="14"/>',
            self._header(),
            f'<g transform="translate({left} {top})">',
            *body,
            "</g>",
            f'<g transform="translate({_MARGIN} {notes_y})">{notes[0]}</g>',
            f'<g transform="translate({_MARGIN} {height - 34})">{self._legend(plan)}</g>',
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    # -- the parts --------------------------------------------------------------------------------------------

    def _header(self) -> str:
        counted = f"{len(self.flow.states)} states, {len(self.flow.triggers())} triggers"
        return _words(_MARGIN, 44, f"The life of a {self.flow.name}", "ink", 20, bold=True) + _words(
            _MARGIN, 64, counted, "soft", 12
        )

    def _kind(self, name: str, plan: Layout) -> str:
        if name not in plan.path:
            return "aside"
        return "goal" if name == plan.path[-1] else "main"

    def _content(self, name: str, width: int) -> tuple[list[str], list[tuple[str, str]]]:
        """The lines of a box: its meaning, wrapped; then small print, each line with its icon."""
        state = self.flow.state(name)
        meaning = textwrap.wrap(state.meaning, max(12, int((width - 2 * _INSET) / 6.7)))
        room = width - 2 * _INSET - 16
        small = [(_CLOCK if owed.is_timer else _ARROW, owed.effect.name) for owed in _owed(self.flow, name)]
        stays = ", ".join(_staying(self.flow, name))
        wrapped = textwrap.wrap(stays, max(12, int(room / 6.7)), break_long_words=False)
        small += [(_LOOP if index == 0 else "", line) for index, line in enumerate(wrapped)]
        return meaning, small

    def _box_height(self, name: str, width: int) -> int:
        meaning, small = self._content(name, width)
        return 36 + 16 * len(meaning) + (14 + 16 * len(small) if small else 0) + 8

    def _box(self, box: Box, kind: str) -> str:
        meaning, small = self._content(box.name, box.width)
        count = None if self.lit is None else self.lit.get(box.name, 0)
        quiet = " quiet" if count == 0 else ""
        parts = [f'<g class="{kind}{quiet}" transform="translate({box.x} {box.y})">']
        if box.name == self.current:
            parts.append(f'<rect class="halo" x="-4" y="-4" width="{box.width + 8}" height="{box.height + 8}" rx="14"/>')
        parts.append(f'<rect class="box" width="{box.width}" height="{box.height}" rx="10"/>')
        parts.append(_words(_INSET, 27, box.name, "ink", 15, bold=True))
        y = 47
        for line in meaning:
            parts.append(_words(_INSET, y, line, "soft", 12))
            y += 16
        if small:
            parts.append(f'<path class="rule" d="M{_INSET} {y - 4}H{box.width - _INSET}"/>')
            y += 14
        for icon, line in small:
            if icon:
                parts.append(f'<g class="icon" transform="translate({_INSET + 5} {y - 4})">{icon}</g>')
            parts.append(_words(_INSET + 17, y, line, "soft mono", 11))
            y += 16
        if count is not None:
            wide = 14 + 8 * len(str(count))
            parts.append(
                f'<rect class="bar" x="{box.width - wide - 10}" y="-11" width="{wide}" height="22" rx="11"/>'
                + _words(box.width - 10 - wide // 2, 4, str(count), "count", 12, bold=True, anchor="middle")
            )
        return "".join(parts) + "</g>"

    def _line(self, line: Line, plan: Layout) -> str:
        edge = line.edge
        story = edge.source in plan.path and edge.target in plan.path[1:]
        if story and plan.path.index(edge.target) == plan.path.index(edge.source) + 1:
            kind = "story"
        else:
            kind = "away" if edge.target not in plan.path else "back"
        anchor = "middle" if line.centred else "start"
        x, y = line.label
        labels = [
            _words(x, y + LINE_PX * place + 11, trigger, "label mono", 11, anchor=anchor)
            for place, trigger in enumerate(edge.triggers)
        ]
        return f'<g class="{kind}">{_arrow(line.points)}{"".join(labels)}</g>'

    def _start(self, plan: Layout) -> str:
        label = _words(-50, plan.spine - 10, self.flow.started_by, "label mono", 11, anchor="middle")
        dot = f'<circle class="ink" cx="-84" cy="{plan.spine}" r="7"/>'
        return f'<g class="story">{dot}{_arrow(((-77, plan.spine), (0, plan.spine)))}{label}</g>'

    def _notes(self, width: int) -> tuple[str, int]:
        """The moves of every state, in a panel; its text and its height."""
        told = [textwrap.wrap(text, int((width - 2 * _INSET) / 6.75), subsequent_indent="    ") for text in _everywhere(self.flow)]
        lines = [line for wrapped in told for line in wrapped]
        if not lines:
            return "", 0
        height = 44 + 17 * len(lines)
        parts = [f'<rect class="panel" width="{width}" height="{height}" rx="10"/>']
        parts.append(_words(_INSET, 25, "In every state", "ink", 13, bold=True))
        parts += [_words(_INSET, 46 + 17 * place, line, "soft mono", 11) for place, line in enumerate(lines)]
        return "".join(parts), height

    def _legend(self, plan: Layout) -> str:
        entries = [("main", "main story"), ("goal", "its end"), ("aside", "aside")]
        kinds = {self._kind(name, plan) for name in plan.boxes}
        parts, x = [], 0
        for kind, word in entries:
            if kind in kinds:
                parts.append(f'<g class="{kind}" transform="translate({x} -10)"><rect class="box" width="18" height="13" rx="4"/></g>')
                parts.append(_words(x + 25, 1, word, "soft", 12))
                x += 25 + math.ceil(6.7 * len(word)) + 22
        for icon, word in ((_ARROW, "effect owed"), (_CLOCK, "timer"), (_LOOP, "triggers that stay in the state")):
            parts.append(f'<g class="icon" transform="translate({x + 5} -4)">{icon}</g>')
            parts.append(_words(x + 17, 1, word, "soft", 12))
            x += 17 + math.ceil(6.7 * len(word)) + 22
        return "".join(parts)


def _words(x: int, y: int, text: str, kind: str, size: int, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class={quoteattr(kind)} x="{x}" y="{y}" font-size="{size}"{weight}{place}>{escape(str(text))}</text>'


def _arrow(points: tuple[Point, ...]) -> str:
    """A line with rounded corners that ends in an arrowhead."""
    (x1, y1), (x2, y2) = points[-2:]
    dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
    # The line stops inside the head, or it would blunt the tip.
    *corners, _ = points
    path = [f"M{points[0][0]} {points[0][1]}"]
    for before, corner, after in zip(corners, points[1:-1], points[2:], strict=False):
        path.append(_corner(before, corner, after))
    path.append(f"L{x2 - 7 * dx} {y2 - 7 * dy}")
    base_x, base_y = x2 - 9 * dx, y2 - 9 * dy
    tip = f"M{x2 - dx} {y2 - dy}L{base_x + 5 * dy} {base_y + 5 * dx}L{base_x - 5 * dy} {base_y - 5 * dx}Z"
    return f'<path class="line" d="{"".join(path)}"/><path class="tip" d="{tip}"/>'


def _corner(before: Point, corner: Point, after: Point) -> str:
    x, y = corner
    into = _toward(corner, before)
    out = _toward(corner, after)
    return f"L{into[0]} {into[1]}Q{x} {y} {out[0]} {out[1]}"


def _toward(start: Point, end: Point) -> Point:
    """A point on the way, as far from the start as a rounded corner reaches."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    reach = min(_ROUND, max(abs(dx), abs(dy)) // 2)
    return start[0] + reach * ((dx > 0) - (dx < 0)), start[1] + reach * ((dy > 0) - (dy < 0))


def _unused(_: Iterable[object]) -> None: ...
