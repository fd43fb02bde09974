"""Owns `smi simulate`: seeded runs of the whole system in a world that fails. Called by main.py."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smi_workflow.cli.own import load_own
from smi_workflow.cli.screen import FAILED, speaking_plainly
from smi_workflow.errors import ConfigError
from smi_workflow.simulation.faults import RATES, read_rates
from smi_workflow.simulation.own import OwnWorkflow
from smi_workflow.simulation.sale import Sale
from smi_workflow.simulation.scenario import Build
from smi_workflow.simulation.shrink import shrink
from smi_workflow.simulation.simulation import Report
from smi_workflow.simulation.simulation import simulate as run_seed

SEEDS_PER_PROCESS = 20

EXAMPLES = """
Examples:

  smi simulate                                  one seed, 250 sales, every fault at once
  smi simulate --seed 7 --jobs 1 --story        the story of one sale, turn by turn
  smi simulate --seeds 20 --processes 2         twenty seeds, two at a time
  smi simulate --faults all,-skew,crash=0.01    all faults but clock skew, and more crashes
  smi simulate --workflow parcels:SCENARIO      a workflow of your own (README, "A workflow of your own")
"""


def simulate(
    seed: Annotated[int | None, typer.Option(help="Decides everything; by default another one each time.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many sales (or subjects) each seed begins.")] = 250,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, one after the other from --seed.")] = 1,
    faults: Annotated[str, typer.Option(help=f"all, none, or of: {', '.join(RATES)}.")] = "all",
    processes: Annotated[int, typer.Option(min=1, help="Seeds that run at the same time.")] = 1,
    workflow: Annotated[str | None, typer.Option(help="module:NAME of an OwnWorkflow; default the shop.")] = None,
    report: Annotated[Path | None, typer.Option(help="Append one JSON line per seed to this file.")] = None,
    story: Annotated[bool, typer.Option("--story", help="Print every turn (of one seed).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: the totals as JSON.")] = False,
) -> None:
    """Run the whole system in a simulated world where everything breaks, and check every invariant at every step.

    The same seed gives the same run, to the byte. Exit 0: all is well; 1: an invariant was violated.
    """
    first = seed if seed is not None else int(time.time())
    with speaking_plainly():
        rates = read_rates(faults.split(","))
        build = find_build(workflow)
    began = time.perf_counter()
    reports: list[Report] = []
    console = Console(stderr=True)
    with _progress(console, quiet=as_json) as progress:
        task = progress.add_task(f"seed {first}", total=seeds)
        for done in _runs(build, range(first, first + seeds), jobs, rates, processes, keep_story=story):
            reports.append(done)
            progress.update(task, advance=1, description=f"seed {done.seed}")
            if report is not None:
                with report.open("a") as file:
                    file.write(json.dumps(_as_line(done)) + "\n")
    failed = [one for one in sorted(reports, key=lambda one: one.seed) if one.failure is not None]
    totals = _totals(reports, time.perf_counter() - began)
    if story and len(reports) == 1:
        sys.stdout.write("\n".join(reports[0].story) + "\n")
    if as_json:
        sys.stdout.write(json.dumps({**totals, "failed": [_as_line(one) for one in failed]}) + "\n")
    else:
        _print_totals(Console(), totals)
    if failed:
        if not as_json:
            _explain(Console(), failed[0], rates, build, faults, workflow)
        raise typer.Exit(FAILED)


def find_build(name: str | None) -> Build:
    """The world to simulate: the shop, or `module:NAME`.

    Raises:
        ConfigError: there is no such thing, or it is none.
    """
    if name is None:
        return Sale
    found = load_own(name)
    if not isinstance(found, OwnWorkflow):
        raise ConfigError(f"{name} is a {type(found).__name__}: no OwnWorkflow")
    return found


def _runs(
    build: Build, seeds: Iterable[int], jobs: int, rates: dict[str, float], processes: int, *, keep_story: bool
) -> Iterator[Report]:
    run = partial(run_seed, build, count=jobs, rates=rates, keep_story=keep_story)
    if processes == 1:
        for seed in seeds:
            yield run(seed=seed)
        return
    context = multiprocessing.get_context("spawn")
    for some in batched(seeds, SEEDS_PER_PROCESS * processes):
        # Fresh processes now and then, or memory grows; by max_tasks_per_child, Python 3.11 may wait for ever.
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for future in as_completed([pool.submit(run, seed=seed) for seed in some]):
                yield future.result()


def batched(seeds: Iterable[int], size: int) -> Iterator[list[int]]:
    """The seeds in order, so many at a time."""
    left = iter(seeds)
    while some := list(islice(left, size)):
        yield some


def _totals(reports: Iterable[Report], seconds: float) -> dict[str, Any]:
    reports = list(reports)
    faults: Counter[str] = Counter()
    for one in reports:
        faults.update(one.faults)
    subjects = sum(one.count for one in reports)
    busy = sum(one.seconds for one in reports)
    return {
        "seeds": len(reports), "subjects": subjects, "steps": sum(one.steps for one in reports),
        "checks": sum(one.checked for one in reports), "faults": dict(sorted(faults.items())),
        "violations": sum(one.failure is not None for one in reports), "seconds": round(seconds, 1),
        "subjects_per_second": round(subjects / busy, 1) if busy else 0.0,
    }  # fmt: skip


def _print_totals(console: Console, totals: dict[str, Any]) -> None:
    verdict = "[red]violated[/]" if totals["violations"] else "[green]every invariant holds[/]"
    console.print(
        f"{totals['seeds']} seeds, {totals['subjects']:,} sales, {totals['steps']:,} steps, "
        f"{totals['checks']:,} checks, {sum(totals['faults'].values()):,} faults in {totals['seconds']:g} s "
        f"({totals['subjects_per_second']:g} sales a second in one process): {verdict}"
    )
    console.print(
        "faults: " + ", ".join(f"{kind} {count}" for kind, count in totals["faults"].items()), style="dim"
    )


def _explain(
    console: Console, failed: Report, rates: dict[str, float], build: Build, faults: str, workflow: str | None
) -> None:
    assert failed.failure is not None
    console.print(f"\nseed {failed.seed}: {failed.failure}", style="bold red", markup=False)
    console.print("looking for a smaller run that fails in the same way ...", style="dim")
    smallest, needed = shrink(
        failed, rates, lambda seed, count, fewer: run_seed(build, seed=seed, count=count, rates=fewer)
    )
    assert smallest.failure is not None
    for line in smallest.story:
        console.print(line, markup=False, highlight=False)
    named = (
        "all" if needed == read_rates(["all"]) else ",".join(["none", *(f"{k}={v:g}" for k, v in needed.items())])
    )
    more = f" --workflow {workflow}" if workflow else ""
    console.print(f"\n{smallest.failure}", style="bold red", markup=False)
    console.print(
        f"again: smi simulate --seed {smallest.seed} --jobs {smallest.count} --faults {named}{more}\n"
        f"(found with: --seed {failed.seed} --jobs {failed.count} --faults {faults})",
        markup=False,
    )


def _as_line(report: Report) -> dict[str, Any]:
    return {
        "seed": report.seed, "subjects": report.count, "steps": report.steps, "checks": report.checked,
        "seconds": round(report.seconds, 2), "simulated_days": round(report.simulated.total_seconds() / 86_400, 1),
        "digest": report.digest, "faults": report.faults, "triggers": report.triggers,
        "failure": str(report.failure) if report.failure else None,
    }  # fmt: skip


def _progress(console: Console, *, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=quiet or not console.is_terminal,
    )  # fmt: skip
