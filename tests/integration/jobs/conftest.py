"""Owns the fixtures of the jobs' tests: a shop with providers, and one without. Called by pytest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.desks import Desk, open_desk
from tests.support.sales import Providers, Sales, open_sales, running_providers


@pytest.fixture(scope="session")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    """One sandbox for all tests of this folder."""
    with running_providers(tmp_path_factory.mktemp("providers")) as running:
        yield running


@pytest.fixture
def desk(database_url: str, tmp_path: Path) -> Iterator[Desk]:
    """Rows and triggers without providers, once on each kind of database."""
    with open_desk(database_url, tmp_path) as opened:
        yield opened


@pytest.fixture
def sales(sqlite_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop with a sandbox of its own, on SQLite."""
    with open_sales(sqlite_url, tmp_path, providers) as opened:
        yield opened


@pytest.fixture
def sales_everywhere(database_url: str, tmp_path: Path, providers: Providers) -> Iterator[Sales]:
    """A shop with a sandbox of its own, once on each kind of database."""
    with open_sales(database_url, tmp_path, providers) as opened:
        yield opened


@pytest.fixture(scope="module")
def desk_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """An empty database for tests that leave it empty."""
    folder = tmp_path_factory.mktemp("desk")
    with open_desk(f"sqlite:///{folder / 'empty.sqlite3'}", folder) as opened:
        yield opened
