"""Owns `smi graph`. Called by main.py. Needs no settings and no database."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from smi_workflow import app
from smi_workflow.cli.screen import print_json
from smi_workflow.engine.picture import mermaid, svg
from smi_workflow.engine.workflow import Workflow

WORKFLOWS: dict[str, Workflow] = {flow.name: flow for flow in app.WORKFLOWS}


class Format(StrEnum):
    """How the picture is written."""

    MERMAID = "mermaid"
    SVG = "svg"
    JSON = "json"


def graph(
    workflow: str = typer.Argument("job", help=", ".join(WORKFLOWS)),
    form: Format = typer.Option(Format.MERMAID, "--format", "-f", help="mermaid, svg or json"),
    output: Path | None = typer.Option(None, "--output", "-o", help="A file instead of the screen."),
    as_json: bool = typer.Option(False, "--json", help="Same as --format json."),
) -> None:
    """Draw a workflow from its declaration.

    Example: `smi graph job --format svg -o life.svg`
    """
    if workflow not in WORKFLOWS:
        raise typer.BadParameter(f"there is no workflow {workflow}; there are: {', '.join(WORKFLOWS)}")
    flow = WORKFLOWS[workflow]
    if as_json or form is Format.JSON:
        print_json(_described(flow))
        return
    text = svg(flow) if form is Format.SVG else mermaid(flow)
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text, encoding="utf-8")


def _described(flow: Workflow) -> dict[str, object]:
    return {
        "name": flow.name,
        "fingerprint": flow.fingerprint,
        "initial": flow.initial,
        "states": [{"name": item.name, "meaning": item.meaning, "waiting": item.waiting} for item in flow.states],
        "moves": [
            {"trigger": move.trigger, "from": list(move.sources(flow.states)), "to": move.to, "by": move.by}
            for move in flow.moves
        ],
    }
