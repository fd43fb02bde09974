"""Owns the fixtures that every test may ask for: databases, and an engine over each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import KINDS, Databases
from tests.support.engines import Bench, open_bench


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """The database servers of this session, started when first asked for."""
    found = Databases()
    yield found
    found.close()


@pytest.fixture
def sqlite_url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    """A fresh SQLite file."""
    with databases.fresh("sqlite", tmp_path) as url:
        yield url


@pytest.fixture
def postgres_url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    """A fresh PostgreSQL database."""
    with databases.fresh("postgres", tmp_path) as url:
        yield url


@pytest.fixture
def mariadb_url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    """A fresh MariaDB database."""
    with databases.fresh("mariadb", tmp_path) as url:
        yield url


@pytest.fixture(
    params=[
        pytest.param(kind, marks=[pytest.mark.server("mariadb")] if kind == "mariadb" else []) for kind in KINDS
    ]
)
def database_url(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> Iterator[str]:
    """A fresh database, once of each kind."""
    with databases.fresh(str(request.param), tmp_path) as url:
        yield url


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    """The loans workflow on an engine, once on each kind of database."""
    found = open_bench(database_url)
    yield found
    found.close()
