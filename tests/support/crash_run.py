"""Owns a run over many crash points: lanes side by side, one case after the other in each. Called by tests.

Run as a program (`python -m tests.support.crash_run`) it writes down anew where each sale passes: do that when a
point was added or has moved, and read the difference.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from PIL import Image

from smi_workflow.integrations.embedded_broker import ensure_embedded_broker
from tests.support.crash_sales import EVENTS, SALES, SIZE, Case, Lane, Outcome, Sale
from tests.support.crashing import WarmParent
from tests.support.receivers import running_receiver
from tests.support.sandbox import running_sandbox, running_site

RECORDED = Path(__file__).parents[1] / "acceptance" / "crash_points.txt"
# A passing may be missed when the machine stalls and another process is quicker; three times running it is not.
TRIES = 3
# The broker has sixteen databases, one for each lane.
LANES_MAX = 16

T = TypeVar("T")
Databases = Callable[[Path], AbstractContextManager[str]]


def recorded_cases() -> list[Case]:
    """Every passing of every point in the sales, as recorded."""
    lines = [line.split() for line in RECORDED.read_text().splitlines() if line and not line.startswith("#")]
    return [Case(sale, role, activity, point, int(number)) for sale, role, activity, point, number in lines]


class CrashRun:
    """Undisturbed sales first, then the cases; results come as they are ready."""

    def __init__(self, lanes: Sequence[Lane], cases: Sequence[Case]) -> None:
        self.undisturbed: Mapping[str, Future[Outcome]] = {sale.name: Future() for sale in SALES}
        self.crashed: Mapping[Case, Future[Outcome]] = {case: Future() for case in cases}
        self._known: Mapping[str, set[Case]] = {
            sale.name: {case for case in recorded_cases() if case.sale == sale.name} for sale in SALES
        }
        self._sales: SimpleQueue[Sale] = SimpleQueue()
        for sale in SALES:
            self._sales.put(sale)
        self._cases: SimpleQueue[Case] = SimpleQueue()
        for case in sorted(cases, key=lambda case: [sale.name for sale in SALES].index(case.sale)):
            self._cases.put(case)
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=lane.folder.name) for lane in lanes
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing new, and wait for what has begun."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _work(self, lane: Lane) -> None:
        try:
            for sale in _taken(self._sales):
                self._settle(self.undisturbed[sale.name], partial(self._watch, lane, sale))
            # Nobody dies before it is known how a sale goes on a quiet machine.
            for future in self.undisturbed.values():
                future.exception()
            by_name = {sale.name: sale for sale in SALES}
            for case in _taken(self._cases):
                self._settle(self.crashed[case], partial(self._crash, lane, by_name[case.sale], case))
        except CancelledError:
            pass
        finally:
            lane.app.database.close()

    def _settle(self, future: Future[Outcome], make: Callable[[], Outcome]) -> None:
        if self._stopped.is_set():
            future.cancel()
            return
        try:
            future.set_result(make())
        except BaseException as error:  # noqa: BLE001  # it belongs to the test that asks for this result
            future.set_exception(error)

    def _watch(self, lane: Lane, sale: Sale) -> Outcome:
        for _ in range(TRIES):
            outcome = lane.sell(sale, None)
            if set(outcome.passed) == self._known[sale.name]:
                break
        return outcome

    @staticmethod
    def _crash(lane: Lane, sale: Sale, case: Case) -> Outcome:
        for _ in range(TRIES):
            outcome = lane.sell(sale, case)
            if outcome.has_crashed:
                break
        return outcome


def _taken(queue: SimpleQueue[T]) -> Iterator[T]:
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return


@contextmanager
def running_crashes(folder: Path, databases: Databases, lanes: int, cases: Sequence[Case]) -> Iterator[CrashRun]:
    """Everything it takes, ended at the end.

    Args:
        databases: gives each lane's folder an empty database.
    """
    assert lanes <= LANES_MAX
    with ExitStack() as opened:
        site, receiver = opened.enter_context(running_site()), opened.enter_context(running_receiver())
        picture = folder / "photo.png"
        Image.effect_noise(SIZE, 80).convert("RGB").save(picture)
        site.files["/photo.png"] = picture.read_bytes()
        broker = ensure_embedded_broker(folder)
        opened.callback(broker.release)
        parent = WarmParent(folder)
        opened.callback(parent.close)
        made = []
        for number in range(lanes):
            own = folder / f"lane-{number}"
            own.mkdir()
            url = opened.enter_context(databases(own))
            sandbox = opened.enter_context(
                running_sandbox(own / "sandbox", webhook_events=EVENTS, upsampler_work_seconds=0.3)
            )
            lane = Lane(
                own, sandbox, receiver, parent, f"{site.url}/photo.png", SMI_DATABASE_URL=url,
                SMI_BROKER_URL=f"{broker.url.removesuffix('0')}{number}",
            )  # fmt: skip
            opened.callback(lane.stop)
            made.append(lane)
        run = CrashRun(made, cases)
        opened.callback(run.stop)
        yield run


@contextmanager
def sqlite_in(folder: Path) -> Iterator[str]:
    """A fresh SQLite file."""
    yield f"sqlite:///{folder / 'smi.sqlite3'}"


def record() -> int:
    """Write down where each sale passes today."""
    with tempfile.TemporaryDirectory() as folder, running_crashes(Path(folder), sqlite_in, len(SALES), ()) as run:
        passed = [case for sale in SALES for case in run.undisturbed[sale.name].result().passed]
    head = "# sale, process, what it does there, point, which time; written by python -m tests.support.crash_run\n"
    lines = [f"{case.sale} {case.role} {case.activity} {case.point} {case.number}\n" for case in passed]
    RECORDED.write_text(head + "".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(record())
