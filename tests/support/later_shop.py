"""Owns a later release of the shop: what is made is reviewed before the buyer gets it. Called by tests.

A state, a trigger and two effects more than today's, and a migration that lets the tables take the state.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from smi_workflow import app as release
from smi_workflow.app import MIGRATIONS, App
from smi_workflow.effects.registry import handlers
from smi_workflow.effects.world import World
from smi_workflow.engine.attempt import Again, Attempt, Done, Handler, Outcome
from smi_workflow.engine.declaration import Effect, Move, State
from smi_workflow.engine.migrate import migrate
from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs.lifecycle import COMPLETED, JOB, PROCESSING
from smi_workflow.jobs.refunds import REFUND

REVIEWING = "reviewing"
HELD = "LATER_REVIEW_HELD"
REVIEW_RESULT = Effect("review_result", queue="upscales", failure="approve")
REVIEW_DEADLINE = Effect("review_deadline", queue="upscales", failure="approve")


def _today() -> tuple[Move, ...]:
    return tuple(
        replace(move, to=REVIEWING, hook=None) if move.trigger == "complete" else move for move in JOB.moves
    )


LATER_JOB: Workflow = replace(
    JOB,
    states=(
        *JOB.states,
        State(
            REVIEWING,
            "somebody looks at it",
            waiting=True,
            owes=(
                REVIEW_RESULT.now(),
                REVIEW_DEADLINE.later(lambda case: timedelta(hours=1), deadline=True),
            ),
        ),
    ),
    moves=(
        *_today(),
        # What the earlier release has begun, and a worker of it may be about to say.
        Move("approve", REVIEWING, COMPLETED, by="effect", hook="smi_job_completed"),
        Move("approve", PROCESSING, None),
        Move("fail", REVIEWING, "failed", by="admin"),
    ),
)


def review(world: World, attempt: Attempt) -> Outcome:
    """It looks good, unless a test has put up a sign that nobody may look yet."""
    if Path(os.environ.get(HELD, os.devnull)).is_file():
        return Again(timedelta(seconds=1), "nobody may look yet")
    return Done("approve", reason="it looks good")


def more_handlers(world: World) -> dict[str, Handler]:
    """Today's, and those of the review."""
    known = handlers(world)
    for name in ("review_result", "review_deadline"):
        known[name] = Handler(lambda attempt: review(world, attempt))
    return known


class LaterApp(App):
    """The App as the later release wires it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with patch.object(release, "handlers", more_handlers):
            super().__init__(*args, workflows=(LATER_JOB, REFUND), **kwargs)


def migrate_to_later(app: App, folder: Path) -> Path:
    """Bring the tables to the later release's; returns the folder of its migrations."""
    later = folder / "later_migrations"
    shutil.copytree(MIGRATIONS, later, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).parent / "migrations" / "0099_reviewing.py", later)
    migrate(app.database, later, prefix=app.settings.table_prefix)
    return later
