"""Owns the search for a smaller run that fails in the same way. Called by cli/simulate.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from smi_workflow.simulation.simulation import Report

Run = Callable[[int, int, Mapping[str, float]], Report]
COUNTS = (1, 2, 3, 5, 10, 20, 40)
SEEDS_EACH = 6


def shrink(failed: Report, rates: Mapping[str, float], run: Run) -> tuple[Report, dict[str, float]]:
    """Find fewer subjects, then fewer kinds of fault, with which the same thing goes wrong.

    Args:
        failed: the run to make smaller.
        run: seed, count and rates → a report.
    Returns: the smallest failing run found, and the faults it needs.
    """
    assert failed.failure is not None
    name, best, needed = failed.failure.name, failed, dict(rates)

    def again(count: int, fewer: Mapping[str, float]) -> Report | None:
        for offset in range(SEEDS_EACH):
            report = run(best.seed + offset, count, fewer)
            if report.failure is not None and report.failure.name == name:
                return report
        return None

    for count in COUNTS:
        if count >= best.count:
            break
        found = again(count, needed)
        if found is not None:
            best = found
            break
    for kind in sorted(needed):
        fewer = {one: rate for one, rate in needed.items() if one != kind}
        found = again(best.count, fewer) if kind in best.faults else run(best.seed, best.count, fewer)
        if found is not None and found.failure is not None and found.failure.name == name:
            best, needed = found, fewer
    return best, needed
