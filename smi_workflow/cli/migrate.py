"""Owns `smi migrate`. Called by main.py."""

from __future__ import annotations

from smi_workflow.app import MIGRATIONS
from smi_workflow.cli.screen import Json, console, print_json, speaking_plainly
from smi_workflow.engine.database import open_database
from smi_workflow.engine.migrate import migrate as apply_migrations
from smi_workflow.settings import load_settings


def migrate(as_json: bool = Json) -> None:
    """Bring the database's tables up to date; safe to run at any time, by any number of processes.

    Example: `SMI_DATABASE_URL=postgresql://smi@db/shop smi migrate`
    """
    with speaking_plainly():
        settings = load_settings()
        database = open_database(settings.database_url)
        try:
            applied = apply_migrations(
                database, MIGRATIONS, prefix=settings.table_prefix, wordpress_tables=settings.wordpress_tables
            )
        finally:
            database.close()
    if as_json:
        print_json({"applied": list(applied)})
    elif applied:
        console.print(f"Applied: [green]{', '.join(applied)}[/]")
    else:
        console.print("The database is up to date.")
