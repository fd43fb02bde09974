"""Owns what the fuzz tests share with pytest: the seed is printed, the shop is closed at the end.

Called by pytest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz.fuzzed import SEED, WIDE
from tests.fuzz.shop import close_shop


@pytest.fixture(scope="session", autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_shop()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how to see the same examples again."""
    if WIDE:
        terminalreporter.write_line(f"fuzzing: other examples each time; SMI_FUZZ_SEED={SEED} repeats these")
