"""Owns the `smi` command: gathers the groups. Called from the shell."""

from __future__ import annotations

import typer

from smi_workflow.cli import demo, doctor, fire, graph, jobs, migrate, reconcile, schedules, simulate, up, verify

app = typer.Typer(
    name="smi",
    help="Sell AI-upscaled images: run the system, look into jobs, and move them safely.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(migrate.migrate)
app.command()(up.up)
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command()(graph.graph)
app.command()(fire.fire)
app.command()(reconcile.reconcile)
app.command()(verify.verify)
app.command(epilog=simulate.EXAMPLES)(simulate.simulate)
app.add_typer(jobs.app, name="jobs")
app.add_typer(schedules.app, name="schedules")


def main() -> None:
    """The entry point of the `smi` script."""
    app()
