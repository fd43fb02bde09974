"""A process kills itself at a named point of a sale, is started again, and all books are as if it had not died.

crash_points.txt lists every passing of every point; a test compares it with sales of today, so that no gap goes
unnoticed. By default one passing of each point is tried. SMI_TEST_CRASH_POINTS=all tries them all, =third a third,
another one each day; SMI_TEST_CRASH_DATABASE=postgresql does it on PostgreSQL instead of SQLite.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import date
from functools import partial
from typing import Any

import pytest

from smi_workflow.engine.points import Point
from tests.support.crash_allowed import differences
from tests.support.crash_run import CrashRun, recorded_cases, running_crashes
from tests.support.crash_sales import SALES, Case
from tests.support.crashing import UNKNOWN
from tests.support.databases import Databases

RECORDED = recorded_cases()
AMOUNT = os.environ.get("SMI_TEST_CRASH_POINTS") or "sample"
DATABASE = os.environ.get("SMI_TEST_CRASH_DATABASE") or "sqlite"
KINDS = {"sqlite": "sqlite", "postgresql": "postgres"}
DAY = date.today().toordinal()
LANES = {"sample": 5, "third": 6, "all": 8}


def chosen() -> list[Case]:
    """The cases of this run."""
    if AMOUNT == "all":
        return RECORDED
    if AMOUNT == "third":
        return RECORDED[DAY % 3 :: 3]
    assert AMOUNT == "sample", "SMI_TEST_CRASH_POINTS must be sample, third or all"
    first: dict[str, Case] = {}
    for case in RECORDED:
        first.setdefault(case.point, case)
    return list(first.values())


@pytest.fixture(scope="module")
def crashes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, databases: Databases
) -> Iterator[CrashRun]:
    """All cases that were collected, on their way."""
    collected = [getattr(item, "callspec", None) for item in request.session.items]
    found = [each.params.get("case") for each in collected if each is not None]
    wanted = [case for case in found if isinstance(case, Case)]
    which = f"third number {DAY % 3}, by the day" if AMOUNT == "third" else AMOUNT
    rest = "" if AMOUNT == "all" else "; SMI_TEST_CRASH_POINTS=all tries every one"
    plugins = request.config.pluginmanager
    terminal, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    if terminal is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(
                f"\ncrash points: {len(wanted)} of {len(RECORDED)} passings ({which}) on {DATABASE}{rest}"
            )
    fresh: Any = partial(databases.fresh, KINDS[DATABASE])
    with running_crashes(tmp_path_factory.mktemp("crashes"), fresh, LANES[AMOUNT], wanted) as run:
        yield run


def test_every_point_is_passed_by_some_sale() -> None:
    assert {case.point for case in RECORDED} == set(Point)
    assert {case.point for case in chosen()} == set(Point) or AMOUNT == "third"


@pytest.mark.parametrize("sale", [sale.name for sale in SALES])
def test_a_sale_passes_where_it_was_recorded(crashes: CrashRun, sale: str) -> None:
    passed = set(crashes.undisturbed[sale].result().passed)
    assert not [case for case in passed if case.activity == UNKNOWN], "the probe cannot tell what happens there"
    recorded = {case for case in RECORDED if case.sale == sale}
    how = "if that is meant: python -m tests.support.crash_run writes it down anew"
    assert sorted(map(str, passed - recorded)) == [], f"new passings; {how}"
    assert sorted(map(str, recorded - passed)) == [], f"no longer passed; {how}"


@pytest.mark.parametrize("case", chosen(), ids=str)
def test_a_crash_leaves_the_books_as_they_would_be(crashes: CrashRun, case: Case) -> None:
    expected = crashes.undisturbed[case.sale].result().books
    outcome = crashes.crashed[case].result()
    assert outcome.has_crashed, f"nobody died at {case}:\n{outcome.story}"
    found = differences(case, expected, outcome)
    assert not found, "\n".join(["the crash left", *found, "after", *outcome.story.splitlines()])
