"""Owns the proof that the embedded broker outlives every death but its last user's. Called by pytest."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from smi_workflow.errors import ConfigError
from smi_workflow.integrations.broker import Doorbell, make_broker
from smi_workflow.integrations.consumer import BlockingRedisBroker
from smi_workflow.integrations.embedded_broker import embedded_broker_url, ensure_embedded_broker

PATIENCE_SECONDS = 30.0
USER = """
import sys, time
from pathlib import Path
from smi_workflow.integrations.embedded_broker import ensure_embedded_broker
broker = ensure_embedded_broker(Path(sys.argv[1]))
print(broker.url, flush=True)
sys.stdin.read()
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.02)


def keepers(var_dir: Path) -> list[psutil.Process]:
    folder = str((var_dir / "broker").resolve())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and "smi_workflow.integrations.embedded_broker" in process.cmdline()[-2:-1]:
                found += [process] if process.cmdline()[-1] == folder else []
    return found


def servers(var_dir: Path) -> list[psutil.Process]:
    """By the folder they work in, so that a server without a keeper is seen too."""
    folder = str((var_dir / "broker").resolve())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            serves = process.name() in ("valkey-server", "redis-server")
            if serves and process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(folder):
                found.append(process)
    return found


def answers(url: str) -> bool:
    client = redis.Redis.from_url(url)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def kill_server(var_dir: Path) -> None:
    (server,) = servers(var_dir)
    server.kill()
    server.wait(PATIENCE_SECONDS)


def queued(url: str, queue: str) -> int:
    client = redis.Redis.from_url(url)
    try:
        return int(client.llen(f"dramatiq:{queue}"))
    finally:
        client.close()


def start_user(var_dir: Path) -> tuple[subprocess.Popen[str], str]:
    user = subprocess.Popen(
        [sys.executable, "-c", USER, str(var_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert user.stdout is not None
    return user, user.stdout.readline().strip()


def end_user(user: subprocess.Popen[str], how: signal.Signals) -> None:
    user.send_signal(how)
    user.communicate()


@pytest.fixture
def var_dir() -> Iterator[Path]:
    """A folder with a short path; afterwards nothing may be left running in it."""
    with tempfile.TemporaryDirectory(prefix="smi-") as folder:
        yield Path(folder)
        wait_until(lambda: not keepers(Path(folder)) and not servers(Path(folder)), "everything stopped")


def test_it_starts_rings_and_says_what_it_is(var_dir: Path) -> None:
    embedded = ensure_embedded_broker(var_dir)
    doorbell = Doorbell(make_broker(embedded.url))

    assert doorbell.ring("effect-1", "run_effect", "effects")

    assert queued(embedded.url, "effects") == 1
    assert embedded.url == embedded_broker_url(var_dir)
    assert embedded.description.startswith(("Valkey ", "Redis "))
    assert embedded.description.endswith(f"(embedded, {var_dir / 'broker'})")
    assert (var_dir / "broker").stat().st_mode & 0o777 == 0o700
    doorbell.close()
    embedded.release()
    embedded.release()


def test_messages_survive_the_servers_death(var_dir: Path) -> None:
    embedded = ensure_embedded_broker(var_dir)
    doorbell = Doorbell(make_broker(embedded.url))
    assert doorbell.ring("effect-1", "run_effect", "effects")

    kill_server(var_dir)

    wait_until(lambda: answers(embedded.url), "server up again")
    assert queued(embedded.url, "effects") == 1
    wait_until(lambda: doorbell.ring("effect-2", "run_effect", "effects"), "doorbell works again")
    doorbell.close()
    embedded.release()


def test_a_wiped_data_folder_means_an_empty_restart(var_dir: Path) -> None:
    embedded = ensure_embedded_broker(var_dir)
    doorbell = Doorbell(make_broker(embedded.url))
    assert doorbell.ring("effect-1", "run_effect", "effects")

    shutil.rmtree(var_dir / "broker" / "appendonlydir")
    kill_server(var_dir)

    wait_until(lambda: answers(embedded.url), "server up again")
    assert queued(embedded.url, "effects") == 0
    doorbell.close()
    embedded.release()


@pytest.mark.parametrize("killed", [True, False], ids=["server killed", "server alive"])
def test_the_whole_folder_may_be_wiped(var_dir: Path, killed: bool) -> None:
    embedded = ensure_embedded_broker(var_dir)
    (old_server,) = servers(var_dir)

    shutil.rmtree(var_dir / "broker")
    if killed:
        old_server.kill()

    wait_until(lambda: answers(embedded.url), "a server on the same address")
    wait_until(lambda: len(keepers(var_dir)) == 1 and len(servers(var_dir)) == 1, "one of each")
    assert servers(var_dir)[0].pid != old_server.pid
    embedded.release()


def test_a_damaged_append_only_file_is_given_up(var_dir: Path) -> None:
    embedded = ensure_embedded_broker(var_dir)
    for file in (var_dir / "broker" / "appendonlydir").glob("*.manifest"):
        file.write_text("this is no manifest\n")

    kill_server(var_dir)

    wait_until(lambda: answers(embedded.url), "server up again")
    embedded.release()


def test_a_deleted_socket_is_made_again(var_dir: Path) -> None:
    embedded = ensure_embedded_broker(var_dir)

    (var_dir / "broker" / "broker.sock").unlink()

    wait_until(lambda: answers(embedded.url), "server reachable again")
    embedded.release()


def test_a_killed_keeper_takes_the_server_along_and_is_replaced(var_dir: Path) -> None:
    embedded = ensure_embedded_broker(var_dir)
    doorbell = Doorbell(make_broker(embedded.url))
    assert doorbell.ring("effect-1", "run_effect", "effects")
    (keeper,) = keepers(var_dir)
    (server,) = servers(var_dir)

    keeper.kill()

    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "server gone")
    wait_until(lambda: answers(embedded.url), "another keeper's server")
    assert [process.pid for process in keepers(var_dir)] not in ([], [keeper.pid])
    assert queued(embedded.url, "effects") == 1
    doorbell.close()
    embedded.release()


def test_two_processes_share_one_and_the_last_one_ends_it(var_dir: Path) -> None:
    first, first_url = start_user(var_dir)
    second, second_url = start_user(var_dir)
    assert first_url == second_url
    assert answers(first_url)
    (keeper,) = keepers(var_dir)
    (server,) = servers(var_dir)

    end_user(first, signal.SIGTERM)
    third, third_url = start_user(var_dir)
    end_user(second, signal.SIGKILL)

    assert answers(third_url)
    assert [process.pid for process in keepers(var_dir)] == [keeper.pid]
    assert [process.pid for process in servers(var_dir)] == [server.pid]
    end_user(third, signal.SIGKILL)
    wait_until(lambda: not keepers(var_dir) and not servers(var_dir), "everything stopped")
    assert not answers(third_url)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_keeper_and_last_user_killed_together_leave_no_server(var_dir: Path) -> None:
    user, _ = start_user(var_dir)
    (keeper,) = keepers(var_dir)

    user.send_signal(signal.SIGSTOP)
    keeper.kill()
    end_user(user, signal.SIGKILL)

    wait_until(lambda: not keepers(var_dir) and not servers(var_dir), "everything stopped")


def test_processes_that_start_at_once_agree(var_dir: Path) -> None:
    users = [
        subprocess.Popen(
            [sys.executable, "-c", USER, str(var_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(5)
    ]
    urls = {user.stdout.readline().strip() for user in users if user.stdout is not None}

    assert len(urls) == 1
    assert answers(urls.pop())
    assert (len(keepers(var_dir)), len(servers(var_dir))) == (1, 1)
    for user in users:
        end_user(user, signal.SIGKILL)


def test_it_starts_again_while_the_last_one_is_ending(var_dir: Path) -> None:
    for _ in range(3):
        embedded = ensure_embedded_broker(var_dir)
        assert answers(embedded.url)
        embedded.release()
        with contextlib.suppress(redis.RedisError):
            wait_until(lambda url=embedded.url: not answers(url), "server ending")  # type: ignore[misc]


def test_a_long_path_gets_a_port_and_a_password(var_dir: Path) -> None:
    deep = var_dir / ("a long path " * 10).strip()
    assert embedded_broker_url(deep) is None
    embedded = ensure_embedded_broker(deep)
    password = embedded.url.split(":")[2].split("@")[0]
    port = int(embedded.url.split(":")[3].split("/")[0])

    assert answers(embedded.url)
    assert not answers(f"redis://127.0.0.1:{port}/0")
    assert embedded_broker_url(deep) == embedded.url
    assert (deep / "broker" / "address").stat().st_mode & 0o777 == 0o600
    for process in keepers(deep) + servers(deep):
        assert password not in " ".join(process.cmdline())

    (keeper,) = keepers(deep)
    keeper.kill()
    wait_until(lambda: keepers(deep) and answers(embedded.url), "same port and password again")
    shutil.rmtree(deep / "broker")
    wait_until((deep / "broker" / "address").exists, "address written again")
    wait_until(lambda: keepers(deep) and answers(embedded.url), "same port and password after a wipe")
    embedded.release()
    wait_until(lambda: not keepers(deep), "keeper gone")
    again = ensure_embedded_broker(deep)
    assert again.url == embedded.url
    again.release()
    wait_until(lambda: not keepers(deep) and not servers(deep), "everything stopped")


def test_a_taken_port_is_exchanged(var_dir: Path) -> None:
    deep = var_dir / ("x" * 100)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        (deep / "broker").mkdir(parents=True)
        (deep / "broker" / "address").write_text(f"{stranger.getsockname()[1]} old-password\n")

        embedded = ensure_embedded_broker(deep)

        assert f":{stranger.getsockname()[1]}/" not in embedded.url
        assert answers(embedded.url)
        embedded.release()
        wait_until(lambda: not keepers(deep) and not servers(deep), "everything stopped")


def test_a_folder_that_cannot_be_used_is_a_config_error(var_dir: Path) -> None:
    (var_dir / "broker").write_text("a file is in the way")

    with pytest.raises(ConfigError, match="embedded broker cannot use"):
        ensure_embedded_broker(var_dir)


def test_a_server_that_does_not_start_is_a_config_error_with_its_log(var_dir: Path) -> None:
    (var_dir / "broker" / "broker.sock").mkdir(parents=True)

    with pytest.raises(ConfigError, match="did not start") as caught:
        ensure_embedded_broker(var_dir)

    assert any("ended with 1" in line or "Unix socket" in line for line in caught.value.problems)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_needs_no_root(var_dir: Path) -> None:
    os.chown(var_dir, 65534, 65534)
    script = USER.replace("sys.stdin.read()", "broker.release()")
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(var_dir)}
    command = [sys.executable, "-c", script, str(var_dir)]
    try:
        user = subprocess.run(
            command, user=65534, group=65534, extra_groups=[], env=environment, capture_output=True, cwd="/"
        )
    except PermissionError:
        pytest.skip("another user cannot run this Python")

    assert (user.returncode, user.stderr) == (0, b"")
    assert user.stdout.startswith(b"unix://")


def test_the_broker_it_gives_is_the_waiting_one(var_dir: Path) -> None:
    embedded = ensure_embedded_broker(var_dir)
    broker = make_broker(embedded.url)

    assert isinstance(broker, BlockingRedisBroker)
    assert broker.client.client_getname() == f"smi-{os.getpid()}"
    broker.close()
    embedded.release()
