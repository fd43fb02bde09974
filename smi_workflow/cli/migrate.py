"""Owns `smi migrate`. Called by main.py."""

from __future__ import annotations

import typer
from peewee import Database

from smi_workflow.app import MIGRATIONS
from smi_workflow.cli.screen import Json, console, print_json, speaking_plainly
from smi_workflow.engine.database import open_database
from smi_workflow.engine.migrate import migrate as apply_migrations
from smi_workflow.engine.migrate import roll_back, status, would_roll_back
from smi_workflow.settings import Settings, load_settings


def migrate(
    back_to: str | None = typer.Option(
        None, "--back-to", metavar="NAME", help="Undo every migration after this one. What they added is gone."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be done, and change nothing."),
    as_json: bool = Json,
) -> None:
    """Bring the database's tables up to date; safe to run at any time, by any number of processes.

    Before an older release is put back, `--back-to` undoes what the newer one added: run it with the newer
    release, whose files know how, once its processes have stopped.

    Examples:

    `SMI_DATABASE_URL=postgresql://smi@db/shop smi migrate`

    `smi migrate --back-to 0001_initial --dry-run`
    """
    with speaking_plainly():
        settings = load_settings()
        database = open_database(settings.database_url)
        try:
            names = _carry_out(database, settings, back_to, dry_run)
        finally:
            database.close()
    if as_json:
        told: dict[str, object] = {"undone" if back_to is not None else "applied": list(names)}
        print_json({**told, "dry_run": True} if dry_run else told)
    elif names:
        verb = "Undone" if back_to is not None else "Applied"
        console.print(f"{f'Would be {verb.lower()}' if dry_run else verb}: [green]{', '.join(names)}[/]")
    elif back_to is not None:
        console.print(f"The database is at {back_to} already.")
    else:
        console.print("The database is up to date.")


def _carry_out(database: Database, settings: Settings, back_to: str | None, dry_run: bool) -> tuple[str, ...]:
    prefix, wordpress_tables = settings.table_prefix, settings.wordpress_tables
    if back_to is None:
        if dry_run:
            return status(database, MIGRATIONS, prefix=prefix).pending
        return apply_migrations(database, MIGRATIONS, prefix=prefix, wordpress_tables=wordpress_tables)
    if dry_run:
        return would_roll_back(database, MIGRATIONS, prefix=prefix, to=back_to)
    return roll_back(database, MIGRATIONS, prefix=prefix, to=back_to, wordpress_tables=wordpress_tables)
