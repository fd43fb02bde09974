"""Owns the list of what is always true of a sale. Called by `smi doctor`, the simulator and tests."""

from __future__ import annotations

from smi_workflow.engine.checking import Invariant
from smi_workflow.jobs.money_invariants import MONEY_INVARIANTS
from smi_workflow.jobs.record_invariants import RECORD_INVARIANTS

SALE_INVARIANTS: tuple[Invariant, ...] = (*MONEY_INVARIANTS, *RECORD_INVARIANTS)
