"""Owns the pictures of a declared workflow: Mermaid text and standalone SVG. Called by cli/, web/ and the README.

Both are made from the declaration alone, so that they cannot lie; the same declaration gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from smi_workflow.engine.declaration import ANYWHERE, Move
from smi_workflow.engine.drawing import Outline, StateOutline, draw
from smi_workflow.engine.layout import Edge
from smi_workflow.engine.workflow import Workflow, guard_name

_MERMAID_WORDS = {"as", "class", "classdef", "default", "direction", "end", "note", "state", "style"}


def mermaid(flow: Workflow) -> str:
    """Write the workflow as a Mermaid state diagram.

    Returns: `stateDiagram-v2` text. Triggers that stay are told in their state, moves of every state in one note.
    """
    outline = outline_of(flow)
    ids = _mermaid_ids(outline)
    lines = ["stateDiagram-v2", f"    [*] --> {ids[outline.initial]} : {_mermaid_text(outline.started_by)}"]
    for state in outline.states:
        texts = [state.name, state.meaning, *(["stays: " + ", ".join(state.stays)] if state.stays else [])]
        lines += [f"    {ids[state.name]} : {_mermaid_text(text)}" for text in texts]
    for edge in outline.edges:
        label = "<br/>".join(_mermaid_text(trigger) for trigger in edge.triggers)
        lines.append(f"    {ids[edge.source]} --> {ids[edge.target]} : {label}")
    left = {edge.source for edge in outline.edges if edge.source != edge.target}
    lines += [f"    {ids[state.name]} --> [*]" for state in outline.states if state.name not in left]
    if outline.everywhere:
        lines += [f"    note left of {ids[outline.initial]}", "        In every state"]
        lines += [f"        {_mermaid_text(text)}" for text in outline.everywhere]
        lines.append("    end note")
    return "\n".join(lines) + "\n"


def svg(flow: Workflow, *, lit: Mapping[str, int] | None = None, current: str | None = None) -> str:
    """Draw the workflow as a standalone SVG that follows the reader's light or dark scheme.

    Args:
        lit: how many subjects are in each state; shown as numbers, and empty states fade.
        current: the state that one subject is in; marked.
    Returns: one `<svg>` element without scripts, fonts or links: fit for a file and for a page.
    """
    return draw(outline_of(flow), lit, current)


def outline_of(flow: Workflow) -> Outline:
    """What pictures tell of a workflow."""
    return Outline(
        name=flow.name,
        initial=str(flow.initial),
        started_by=flow.started_by,
        triggers=len(flow.triggers()),
        states=tuple(
            StateOutline(str(state.name), state.meaning, _effects(flow, state.name), _staying(flow, state.name))
            for state in flow.states
        ),
        edges=_edges(flow),
        everywhere=_everywhere(flow),
    )


def _edges(flow: Workflow) -> tuple[Edge, ...]:
    """What leads from one declared state to another, in the table's order."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for move in flow.moves:
        if move.source != ANYWHERE and move.to is not None:
            for source in move.sources(flow.states):
                found.setdefault((str(source), str(move.to)), {})[move.trigger] = None
    failures = {effect.failure for effect in flow.effects().values()}
    return tuple(
        Edge(source, target, tuple(triggers), fails=failures.issuperset(triggers))
        for (source, target), triggers in found.items()
    )


def _staying(flow: Workflow, state: str) -> tuple[str, ...]:
    moves = [m for m in flow.moves if m.to is None and m.source != ANYWHERE and state in m.sources(flow.states)]
    return tuple(dict.fromkeys(move.trigger for move in moves))


def _effects(flow: Workflow, state: str) -> tuple[tuple[str, bool], ...]:
    """What may be owed during a stay: by the state, by what enters it, by what happens in it; timers last."""
    owed = [*flow.state(state).owes, *(flow.owed_by(None) if state == flow.initial else ())]
    for move in flow.moves:
        stays = move.to is None and state in move.sources(flow.states)
        if move.source != ANYWHERE and (stays or move.to == state):
            owed += flow.owed_by(move)
    named = dict.fromkeys((item.effect.name, item.is_timer) for item in owed)
    return tuple(sorted(named, key=lambda pair: pair[1]))


def _everywhere(flow: Workflow) -> tuple[str, ...]:
    """The moves that every state knows, in words: those that lead on, then those that stay."""
    moves = [move for move in flow.moves if move.source == ANYWHERE]
    leading: dict[str, list[Move]] = {}
    for move in moves:
        if move.to is not None:
            leading.setdefault(move.trigger, []).append(move)
    told = []
    for trigger, group in leading.items():
        targets = list(dict.fromkeys(str(move.to) for move in group))
        named = "the named state" if len(targets) == len(flow.states) > 1 else ", ".join(targets)
        guards = list(dict.fromkeys(guard_name(guard) for move in group for guard in move.guards))
        told.append(f"{trigger} → {named}" + (f" [{', '.join(guards)}]" if guards else ""))
    stays = list(dict.fromkeys(move.trigger for move in moves if move.to is None))
    return (*told, *([f"stays: {', '.join(stays)}"] if stays else []))


def _mermaid_ids(outline: Outline) -> dict[str, str]:
    """A plain word for each state, unlike Mermaid's own and unlike each other."""
    ids: dict[str, str] = {}
    for state in outline.states:
        plain = re.sub(r"\W", "_", state.name, flags=re.ASCII)
        while plain.lower() in _MERMAID_WORDS or plain in ids.values():
            plain += "_"
        ids[state.name] = plain
    return ids


def _mermaid_text(text: str) -> str:
    # Mermaid's own entities: these characters would end the text or begin markup.
    return re.sub(r'[#;:<>&"]', lambda found: f"#{ord(found[0])};", " ".join(text.split()))
