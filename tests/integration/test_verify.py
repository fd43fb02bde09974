"""`smi verify`, run as a person runs it. Called by pytest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from smi_workflow.cli.main import app as cli

Smi = Callable[..., Result]

# A workflow of one's own, in a file beside which `smi` is called.
PARCELS = """
from datetime import timedelta
from peewee import CharField
from smi_workflow.engine.attempt import Done
from smi_workflow.engine.declaration import Effect, Move, State
from smi_workflow.engine.tables import Subject
from smi_workflow.engine.workflow import Workflow
from smi_workflow.simulation.model_plain import plain_scenario


class Parcel(Subject):
    parcel_id = CharField(64, unique=True)
    state = CharField(20)
    address = CharField(100)


def address_is_known(case):
    return None if case.row.address and case.facts["stamped"] else "nobody knows where it goes"


CALL = Effect("call_courier", "shipping", failure="give_up")
CHASE = Effect("chase", "shipping", failure="give_up")
PARCEL = Workflow(
    name="parcel", model=Parcel, key="parcel_id", state_column="state", initial="packed",
    states=(
        State("packed", "waits", waiting=True,
              owes=(CALL.now(), CHASE.later(lambda case: timedelta(days=3), deadline=True))),
        State("sent", "on its way"),
        State("returned", "came back"),
    ),
    moves=(Move("send", "packed", "sent", (address_is_known,)), Move("give_up", "packed", "returned")),
)
SCENARIO = plain_scenario([PARCEL], facts={"send": [{"stamped": True}]})
GRUMPY = plain_scenario([PARCEL], facts={"send": [{"stamped": True}]}, outcomes={"chase": [Done()]})
NONSENSE = 7
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    for name in [name for name in os.environ if name.startswith("SMI_")]:
        monkeypatch.delenv(name)
    (tmp_path / "own_parcels.py").write_text(PARCELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(cli, ["verify", *arguments], env={"COLUMNS": "200"})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return run


def test_the_sale_is_verified_without_settings_or_database(smi: Smi, tmp_path: Path) -> None:
    done = smi("--states-max", "150", "--json")
    assert done.exit_code == 0, done.stdout
    told = json.loads(done.stdout)
    assert told["faults"] == []
    assert told["exhausted"] is False
    assert len(told["scenarios"]) > 10
    assert all(one["transitions"] >= one["states"] - 1 for one in told["scenarios"])
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["own_parcels.py"]


def test_a_workflow_of_ones_own(smi: Smi) -> None:
    done = smi("--workflow", "own_parcels:PARCEL")
    assert done.exit_code == 0, done.stdout
    assert "No fault found." in done.stdout
    assert "never fired: parcel's send (stamped: 'send' needs this fact, and it was not given)" in done.stdout


def test_a_scenario_of_ones_own(smi: Smi) -> None:
    told = json.loads(smi("-w", "own_parcels:SCENARIO", "--json").stdout)
    assert (told["exhausted"], told["faults"], told["never_fired"]) == (True, [], [])


def test_a_fault_is_told_as_a_story_and_by_the_exit_code(smi: Smi) -> None:
    done = smi("-w", "own_parcels:GRUMPY")
    assert done.exit_code == 1
    lines = [line.strip() for line in done.stdout.splitlines()]
    stuck = "parcel waits in packed, and nothing open can move it (open: nothing)"
    start = lines.index(f"FAULT no_dead_end: {stuck}")
    assert lines[start + 1 : start + 4] == [
        "(scenario: parcel)",
        "1. it begins",
        "parcel: create (system):  → packed; owes call_courier, chase",
    ]
    assert "parcel's effect chase runs" in done.stdout
    told = json.loads(smi("-w", "own_parcels:GRUMPY", "--json").stdout)
    assert stuck in [fault["what"] for fault in told["faults"]]
    assert told["faults"][0]["story"][0]["step"] == "it begins"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("own_parcels", "MODULE:ATTRIBUTE"),
        ("own_parcels:NOTHING", "NOTHING"),
        ("no_such_module:PARCEL", "no_such_module"),
        ("own_parcels:NONSENSE", "neither a Workflow nor a Scenario"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(smi: Smi, name: str, problem: str) -> None:
    done = smi("-w", name)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
