"""Owns empty databases for tests: SQLite, PostgreSQL, MariaDB. Called by conftest.py.

PostgreSQL is started once a session, when first asked for, unless SMI_TEST_POSTGRES_URL names a server of yours;
MariaDB needs SMI_TEST_MARIADB_URL. Both are URLs of an administrator, who may create databases.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from smi_workflow.engine.database import open_database
from tests.support.postgres import PostgresServer

# Emptying a database costs a tenth of creating one.
EMPTY_POSTGRES = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid()",
    "DROP SCHEMA public CASCADE",
    "CREATE SCHEMA public",
)


class Databases:
    """What one test session may use."""

    def __init__(self) -> None:
        self._server: PostgresServer | None = None
        self._pool: list[str] = []

    @contextmanager
    def fresh(self, kind: str, folder: Path) -> Iterator[str]:
        """The URL of an empty database, yours alone; skips, or in CI fails, where there is no such server."""
        if kind == "sqlite":
            yield f"sqlite:///{folder / 'test.sqlite3'}"
        elif kind == "postgres":
            url = self._pool.pop() if self._pool else _create(self._postgres())
            yield url
            _administer(url, *EMPTY_POSTGRES)
            self._pool.append(url)
        else:
            url = _create(_mariadb(), "CHARACTER SET utf8mb4")
            yield url
            _administer(url, f"DROP DATABASE {urlsplit(url).path.strip('/')}")

    def close(self) -> None:
        """Remove what was created and stop what was started."""
        if self._server is not None:
            self._server.close()
            return
        for url in self._pool:
            _administer(self._postgres(), f"DROP DATABASE {urlsplit(url).path.strip('/')} WITH (FORCE)")

    def _postgres(self) -> str:
        given = os.environ.get("SMI_TEST_POSTGRES_URL")
        if given:
            return given
        if self._server is None:
            try:
                self._server = PostgresServer()
            except FileNotFoundError as missing:
                _absent(f"{missing}; install it, or set SMI_TEST_POSTGRES_URL", os.environ.get("CI") == "true")
                raise
        return self._server.url("postgres")


def kinds() -> list[str]:
    """The databases that tests are run on."""
    wide = "SMI_TEST_MARIADB_URL" in os.environ or os.environ.get("CI_WIDE") == "true"
    return ["sqlite", "postgres", "mariadb"] if wide else ["sqlite", "postgres"]


def _mariadb() -> str:
    given = os.environ.get("SMI_TEST_MARIADB_URL")
    if not given:
        _absent("set SMI_TEST_MARIADB_URL to test on MariaDB", os.environ.get("CI_WIDE") == "true")
    return str(given)


def _absent(message: str, is_required: bool) -> None:
    if is_required:
        pytest.fail(message)
    pytest.skip(message)


def _create(admin_url: str, options: str = "") -> str:
    name = f"smi_test_{secrets.token_hex(6)}"
    _administer(admin_url, f"CREATE DATABASE {name} {options}")
    return urlunsplit(urlsplit(admin_url)._replace(path=f"/{name}"))


def _administer(url: str, *statements: str) -> None:
    parts = urlsplit(url)
    if not parts.path.strip("/"):
        # Either server must be told a database to connect to.
        url = urlunsplit(parts._replace(path="/postgres" if parts.scheme.startswith("postgres") else "/mysql"))
    with closing(open_database(url)) as database:
        for statement in statements:
            database.execute_sql(statement)  # type: ignore[no-untyped-call]
