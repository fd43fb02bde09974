"""The bound for the taking in of webhooks: a Flask view that inserts one row with one durable commit, and no more.

Called by gunicorn, for intake.py: `benchmarks.bare:create_app()`. It checks nothing, and uses the raw driver.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

import psycopg
from flask import Flask, Response, jsonify, request

TABLE = "CREATE TABLE IF NOT EXISTS bare (id TEXT PRIMARY KEY, body TEXT NOT NULL)"
_of_thread = threading.local()


def create_app() -> Flask:
    """One route, one row."""
    site = Flask("bare")
    insert = _inserter(os.environ["SMI_DATABASE_URL"])

    @site.post("/webhooks/stripe")
    def take() -> Response:
        insert(uuid.uuid4().hex, request.get_data(as_text=True))
        return jsonify(received=True)

    @site.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    return site


def _inserter(url: str) -> Callable[[str, str], object]:
    """Insert and commit; a connection per thread, set as ours are."""

    def sqlite(row_id: str, body: str) -> object:
        connection = getattr(_of_thread, "connection", None)
        if connection is None:
            connection = sqlite3.connect(urlsplit(url).path.removeprefix("/"), timeout=5, isolation_level=None)
            connection.execute("PRAGMA journal_mode=wal")
            connection.execute("PRAGMA synchronous=full")
            connection.execute(TABLE)
            _of_thread.connection = connection
        return connection.execute("INSERT INTO bare VALUES (?, ?)", (row_id, body))

    def postgres(row_id: str, body: str) -> object:
        connection = getattr(_of_thread, "connection", None)
        if connection is None:
            connection = psycopg.connect(url, autocommit=True)
            _of_thread.connection = connection
        return connection.execute("INSERT INTO bare VALUES (%s, %s)", (row_id, body))

    if url.startswith("sqlite"):
        return sqlite
    with psycopg.connect(url, autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(1)")
        first.execute(TABLE)
    return postgres
