"""Owns fresh, empty databases for tests: SQLite, PostgreSQL, MariaDB. Called by conftest.py.

PostgreSQL is started once a session, when first asked for, unless SMI_TEST_POSTGRES_URL names a server of yours;
MariaDB needs SMI_TEST_MARIADB_URL. Both are URLs of an administrator, who may create databases.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from peewee import Database

from smi_workflow.engine.database import open_database
from tests.support.postgres import PostgresServer

KINDS = ("sqlite", "postgres", "mariadb")


class Databases:
    """What one test session may use."""

    def __init__(self) -> None:
        self._server: PostgresServer | None = None

    @contextmanager
    def fresh(self, kind: str, folder: Path) -> Iterator[str]:
        """The URL of an empty database that is gone afterwards; skips, or in CI fails, where there is none."""
        if kind == "sqlite":
            yield f"sqlite:///{folder / 'test.sqlite3'}"
            return
        admin_url = self._postgres() if kind == "postgres" else self._mariadb()
        name = f"smi_test_{secrets.token_hex(6)}"
        options = " CHARACTER SET utf8mb4" if kind == "mariadb" else ""
        _administer(admin_url, f"CREATE DATABASE {name}{options}")
        try:
            yield urlunsplit(urlsplit(admin_url)._replace(path=f"/{name}"))
        finally:
            _administer(admin_url, f"DROP DATABASE {name}" + (" WITH (FORCE)" if kind == "postgres" else ""))

    def close(self) -> None:
        """Stop what was started."""
        if self._server is not None:
            self._server.close()

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

    def _mariadb(self) -> str:
        given = os.environ.get("SMI_TEST_MARIADB_URL")
        if not given:
            _absent("set SMI_TEST_MARIADB_URL to test on MariaDB", os.environ.get("CI_WIDE") == "true")
        return str(given)


def _absent(message: str, is_required: bool) -> None:
    if is_required:
        pytest.fail(message)
    pytest.skip(message)


def _administer(url: str, statement: str) -> None:
    database: Database = open_database(url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/mysql")
    try:
        database.execute_sql(statement)  # type: ignore[no-untyped-call]
    finally:
        database.close()
