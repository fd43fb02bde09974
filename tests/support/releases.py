"""Owns a later release of the loans workflow: a state, its triggers and two effects more than today's.

Called by the tests of overlapping deploys.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from smi_workflow.engine.declaration import Effect, Move, State
from tests.support.loans import LOAN, REMIND, inputs

# It survives its visit, and its failure is told in any state.
PRAISE = Effect("praise", queue="post", failure="waive", survives=True, attempts=2)
MEND = Effect("mend", queue="desk", failure="waive", attempts=2)
SCAN = Effect("scan", queue="scanner", harmless="the shelf is looked through each year")

# Today's: as the tests know it, with an effect that survives.
EARLIER = replace(
    LOAN, moves=(*LOAN.moves, Move("praise", ("reserved", "lent"), None, owes=(PRAISE.now(inputs),)))
)
LATER = replace(
    EARLIER,
    states=(
        *EARLIER.states,
        State(
            "in_repair",
            "torn, being mended",
            waiting=True,
            owes=(MEND.now(inputs), REMIND.later(lambda case: timedelta(days=3), deadline=True)),
        ),
    ),
    moves=(
        *EARLIER.moves,
        Move("tear", ("reserved", "lent"), "in_repair", hook="book_torn"),
        Move("mended", "in_repair", "lent"),
        Move("lose", "in_repair", "lost"),
        Move("scan", ("lent", "in_repair"), None, owes=(SCAN.now(),)),
    ),
)
