"""Owns the fixtures of the engine's law tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.engine.racers import Crew


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Processes to race with and to kill."""
    found = Crew()
    yield found
    found.close()
