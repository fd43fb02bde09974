"""Owns the fixtures that every test may ask for: databases, and an engine over each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import Databases, kinds
from tests.support.engines import Bench, open_bench

for size in ("COLUMNS", "LINES"):
    # Test processes beside each other are told how wide the terminal is; what is tested must not depend on it.
    os.environ.pop(size, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What a test logs may hold halves of characters, which no pipe between two test processes carries."""
    report: pytest.TestReport = yield  # type: ignore[assignment]  # what a wrapper is sent
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report  # type: ignore[return-value]


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
    """An empty PostgreSQL database."""
    with databases.fresh("postgres", tmp_path) as url:
        yield url


@pytest.fixture
def mariadb_url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    """An empty MariaDB database."""
    with databases.fresh("mariadb", tmp_path) as url:
        yield url


@pytest.fixture(
    params=[
        pytest.param(kind, marks=[pytest.mark.server("mariadb")] if kind == "mariadb" else []) for kind in kinds()
    ]
)
def database_url(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> Iterator[str]:
    """An empty database, once of each kind that there is."""
    with databases.fresh(str(request.param), tmp_path) as url:
        yield url


@pytest.fixture
def opened() -> Iterator[Callable[..., Bench]]:
    """`open_bench`, and everything that it opened is closed at the end."""
    benches: list[Bench] = []

    def open_and_remember(*args: Any, **kwargs: Any) -> Bench:
        benches.append(open_bench(*args, **kwargs))
        return benches[-1]

    yield open_and_remember
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(database_url: str, opened: Callable[..., Bench]) -> Bench:
    """The loans workflow on an engine, once on each kind of database."""
    return opened(database_url)
