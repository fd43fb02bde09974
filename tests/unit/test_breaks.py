"""The deliberate breaks still fit the sources that they break."""

from __future__ import annotations

import pytest

from tests.breaks import BREAKS, ROOT, Break


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: f"law {one.law}")
def test_the_line_is_there_once_and_would_change(one: Break) -> None:
    assert (ROOT / one.file).read_text().count(one.line) == 1
    assert one.instead != one.line


def test_every_law_that_code_can_break_is_broken() -> None:
    assert [one.law for one in BREAKS] == list(range(1, 12))
