"""The simulation: the same seed gives the same run, everything that is declared happens, and faults are found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from smi_workflow.app import WORKFLOWS
from smi_workflow.cli import simulate as cli
from smi_workflow.cli.main import app as smi
from smi_workflow.effects.reconcile import Reconciler
from smi_workflow.effects.registry import HANDLERS
from smi_workflow.engine.attempt import Attempt, Done, Handler, Outcome
from smi_workflow.engine.outbox import Outbox
from smi_workflow.errors import InvalidInput
from smi_workflow.intake import StripeReader
from smi_workflow.integrations.stripe_api import StripeApi
from smi_workflow.jobs import changes
from smi_workflow.simulation.faults import RATES, read_rates
from smi_workflow.simulation.own import OwnWorkflow, OwnWorld
from smi_workflow.simulation.sale import Sale
from smi_workflow.simulation.shrink import shrink
from smi_workflow.simulation.simulation import Report, simulate
from smi_workflow.simulation.stripe import SimulatedStripe
from tests.support.contracts import REPOSITORY
from tests.support.loans import FINE, LOAN, Fine, Loan

WIDE = os.environ.get("CI_WIDE") == "true"
FIXED = range(1, 13 if WIDE else 5)
JOBS = 250 if WIDE else 60
ALL = read_rates(["all"])


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    """Fixed seeds, and others each time: the message of a failure names the seed."""
    fresh = int(time.time())
    seeds = [*FIXED, *range(fresh, fresh + (8 if WIDE else 2))]
    return [simulate(Sale, seed=seed, count=JOBS, rates=ALL) for seed in seeds]


def test_every_invariant_holds_at_every_step_of_every_seed(reports: list[Report]) -> None:
    failed = [f"seed {one.seed}, {one.count} sales: {one.failure}" for one in reports if one.failure is not None]
    assert not failed, "\n".join(failed)
    assert all(one.steps > 100 * one.count and one.checked > 10 * one.count for one in reports)


def test_nothing_is_declared_that_the_simulation_cannot_produce() -> None:
    """Whoever adds a trigger, an effect or an event type must let the simulation produce it."""
    triggers: Counter[str] = Counter()
    effects: Counter[str] = Counter()
    events: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    # Rare things must happen within few sales: everything unusual is made usual.
    often = {**ALL, "buyer": 0.7, "refund": 0.5, "dispute": 0.3, "admin": 1.0, "upscale": 0.2, "flush": 0.002,
             "event_gone": 0.9, "webhook_lost": 0.2}
    for seed in range(31, 31 + 40):
        report = simulate(Sale, seed=seed, count=60, rates=often)
        assert report.failure is None, f"seed {seed}: {report.failure}"
        triggers.update(report.triggers)
        effects.update({name.split(" ")[0]: count for name, count in report.effects.items()})
        events.update({name.split(" ")[0]: count for name, count in report.events.items()})
        faults.update(report.faults)
        if not _missing(triggers, effects, events, faults):
            break
    assert not _missing(triggers, effects, events, faults)


def _missing(
    triggers: Counter[str], effects: Counter[str], events: Counter[str], faults: Counter[str]
) -> dict[str, set[str]]:
    declared = {f"{flow.name} {name}" for flow in WORKFLOWS for name in (*flow.triggers(), flow.started_by)}
    readers = set(_stripe_kinds())
    missing = {
        "triggers": declared - set(triggers), "effects": set(HANDLERS) - set(effects),
        "events": (readers | {"SUCCESS", "FAILED"}) - set(events), "faults": set(RATES) - set(faults),
    }  # fmt: skip
    return {kind: names for kind, names in missing.items() if names}


def _stripe_kinds() -> list[str]:
    reader = StripeReader.__new__(StripeReader)
    with patch.object(StripeReader, "_engine", None, create=True):
        StripeReader.__init__(reader, None)  # type: ignore[arg-type]  # only its table of readers is looked at
    return list(reader._readers)


def test_every_call_to_stripe_is_simulated() -> None:
    public = {name for name in vars(StripeApi) if not name.startswith("_")}
    assert public - set(vars(SimulatedStripe)) == set()


def test_the_same_seed_gives_the_same_run_byte_for_byte() -> None:
    """In other processes too, and whatever the order of their sets."""
    told = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", "from smi_workflow.cli.main import main; main()"]
        arguments = ["simulate", "--seed", "77", "--jobs", "25", "--story"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [*command, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told.add(done.stdout[: done.stdout.index("1 seeds, ")])
    assert len(told) == 1
    assert len(told.pop().splitlines()) > 2000
    assert simulate(Sale, seed=78, count=5, rates=ALL).digest != simulate(Sale, seed=79, count=5, rates=ALL).digest


def test_more_seeds_than_a_process_takes_are_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are replaced now and then; a long run must not end in waiting for the ones that have gone."""
    monkeypatch.setattr(cli, "SEEDS_PER_PROCESS", 1)
    given = ["simulate", "--seed", "5", "--seeds", "5", "--jobs", "1", "--processes", "2", "--json"]
    done = CliRunner().invoke(smi, given)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["seeds"] == 5


def test_a_fault_is_found_told_and_made_smaller() -> None:
    """Every payment is put down one cent too low: who sees it, and with how few sales?"""

    def insert_wrong(case: Any, role: Any) -> None:
        kept = case.facts
        case.facts = {**kept, "amount_cents": kept["amount_cents"] - 1}
        try:
            insert(case, role)
        finally:
            case.facts = kept

    insert = changes._insert_payment
    often = {**ALL, "buyer": 1.0}
    with patch.object(changes, "_insert_payment", insert_wrong):
        failed = simulate(Sale, seed=1, count=40, rates=often)
        smallest, needed = shrink(
            failed, often, lambda seed, count, rates: simulate(Sale, seed=seed, count=count, rates=rates)
        )
    assert failed.failure is not None
    assert smallest.failure is not None
    assert smallest.failure.name == failed.failure.name
    assert (smallest.count, needed) == (1, {})
    assert smallest.failure.subject is not None
    assert any("handle_event" in line for line in smallest.story)


def test_what_is_lost_for_good_is_found_by_the_schedule_and_by_nothing_else() -> None:
    """Half of all webhooks never arrive, and of every third of these Stripe lists no event either."""
    lossy = {"webhook_lost": 0.5, "event_gone": 0.3, "buyer": 0.5, "dispute": 0.3, "refund": 0.3, "upscale": 0.3}
    for seed in range(1, 4):
        report = simulate(Sale, seed=seed, count=25, rates=lossy)
        assert report.failure is None, f"seed {seed}: {report.failure}"
        assert report.faults["event_gone"] > 3
    with patch.object(Reconciler, "go_on", lambda self, run, **_: True):
        report = simulate(Sale, seed=1, count=25, rates=lossy)
    assert report.failure is not None


def test_a_fault_that_is_only_logged_is_found() -> None:
    def breaks(self: Outbox, *_: object) -> None:
        raise ZeroDivisionError("planted")

    with patch.object(Outbox, "cancel", breaks):
        report = simulate(Sale, seed=1, count=3, rates={})
    assert report.failure is not None
    assert report.failure.name == "no fault of our own"
    assert "planted" in report.failure.text


# -- any workflow ------------------------------------------------------------------------------------------------


def handlers(world: OwnWorld) -> dict[str, Handler]:
    """What the library's effects do."""

    def fetch_book(attempt: Attempt) -> Outcome:
        shelf = world.call("robot", "fetch", lambda: world.random.randrange(9))
        return Done("lend", {"barcode": "ok", "shelf": shelf})

    def send(attempt: Attempt) -> Outcome:
        world.call("post", attempt.name, lambda: None)
        return Done()

    run = {"fetch_book": fetch_book, "remind": lambda attempt: Done("lose")}
    return {name: Handler(run.get(name, send)) for flow in (LOAN, FINE) for name in flow.effects()}


def live(world: OwnWorld, number: int) -> None:
    """A reader reserves a book, and brings it back or does not."""
    key = f"loan-{number}"
    world.start("loan", {"loan_id": key})
    world.sleep(world.random.uniform(1, 5_000))
    # Nobody renews: in this library a renewal ends the reminder, and nothing would end the wait.
    if world.random.random() < 0.3:
        world.fire("loan", key, "cancel")
        world.sleep(world.random.uniform(1, 500_000))
    if world.random.random() < 0.7:
        world.fire("loan", key, "give_back")


LIBRARY = OwnWorkflow(workflows=(LOAN, FINE), models=(Loan, Fine), handlers=handlers, live=live)


def test_any_workflow_can_be_simulated() -> None:
    often = {**ALL, "crash": 0.01, "kill": 0.002, "lose": 0.1}
    reports = [simulate(LIBRARY, seed=seed, count=40, rates=often) for seed in (1, 2)]
    assert [report.failure for report in reports] == [None, None]
    fired = {name for report in reports for name in report.triggers}
    assert {"loan lend", "loan give_back", "loan lose", "fine create"} <= fired
    with patch.object(Outbox, "cancel_timers", lambda *_: None):
        report = simulate(LIBRARY, seed=1, count=40, rates=often)
    assert report.failure is not None
    assert report.failure.name == "timers_end_with_visit"


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_reports_and_keeps_a_line_per_seed(tmp_path: Path) -> None:
    kept = tmp_path / "report.jsonl"
    done = CliRunner().invoke(
        smi, ["simulate", "--seed", "3", "--seeds", "2", "--jobs", "3", "--json", "--report", str(kept)]
    )
    assert done.exit_code == 0, done.output
    totals = json.loads(done.stdout)
    assert (totals["seeds"], totals["subjects"], totals["violations"]) == (2, 6, 0)
    assert [json.loads(line)["seed"] for line in kept.read_text().splitlines()] == [3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--faults", "weather"], "there is no 'weather'"),
        (["--workflow", "nope:X"], "No module named 'nope'"),
        (["--workflow", "nope"], "takes MODULE:ATTRIBUTE"),
        (["--workflow", "json:dumps"], "no OwnWorkflow"),
    ],
)
def test_bad_input_is_told_in_a_line_and_not_in_a_trace(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(smi, ["simulate", *arguments])
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert isinstance(done.exception, SystemExit)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weather"], "there is no 'weather'; there are: crash, "),
        (["crash=much"], "'much' is not a share"),
        (["crash=2"], "crash must be 0 to 1, not 2"),
    ],
)
def test_faults_are_read_strictly(words: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_rates(words)


def test_faults_are_read() -> None:
    assert read_rates(["none"]) == {}
    assert read_rates(["all", "-skew"]) == {**RATES, "skew": 0.0}
    assert read_rates(["crash", "kill=0.5"]) == {"crash": RATES["crash"], "kill": 0.5}
