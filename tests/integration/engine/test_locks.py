"""Law 2: guards see the truth. The row lock, the version check and the unique history row, each by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.engine import database as database_module
from smi_workflow.engine.database import is_sqlite, open_database, transaction
from smi_workflow.engine.unit import Unit
from smi_workflow.errors import GuardRefused, TransitionConflict, TransitionNotAllowed
from tests.integration.engine.racers import Crew
from tests.support.engines import GOOD, Bench, Opener, taped

PATIENCE_SECONDS = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll; a test that would wait for ever fails instead."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def impatient(database_url: str, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench that waits for locks for a moment only."""
    monkeypatch.setattr(database_module, "LOCK_WAIT_SECONDS", 1 if database_url.startswith("mysql") else 0.1)
    return opened(database_url)


def forge_history(bench: Bench, sequence: int) -> None:
    bench.engine.tables.transitions.insert(
        workflow="loan", subject_id="l1", sequence=sequence, trigger="waive", from_state="reserved",
        to_state="reserved", actor="forger", fingerprint="0", created_at=bench.clock.now(),
    ).execute()  # fmt: skip


def test_a_transaction_holds_the_file_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 2, on SQLite: what another process reads before it writes would be stale, so it may not even begin."""
    monkeypatch.setattr(database_module, "LOCK_WAIT_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path / 'file.sqlite3'}"
    # Two of them, as two processes have: neither knows of the other's turn.
    with closing(open_database(url)) as ours, closing(open_database(url)) as theirs:
        with transaction(ours), pytest.raises(TransitionConflict), transaction(theirs):
            pass
        with transaction(theirs):
            pass


def test_a_turn_that_never_comes_is_a_conflict(
    tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 2, on SQLite: threads wait for each other before they wait for the file, and not for ever."""
    bench = impatient(f"sqlite:///{tmp_path / 'turn.sqlite3'}", opened, monkeypatch)
    bench.start()
    outcome: list[object] = []

    def second() -> None:
        try:
            bench.fire("lend")
        except TransitionConflict as conflict:
            outcome.append(str(conflict))
        finally:
            bench.close()

    with transaction(bench.database):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(PATIENCE_SECONDS)
    assert outcome == ["another thread holds the database"]
    bench.fire("lend")


def test_a_second_transaction_waits_and_then_sees_the_new_state(bench: Bench) -> None:
    """Law 2, the row lock: the other waits, sees the new state, and is refused with the reason."""
    bench.start()
    locked, release = threading.Event(), threading.Event()

    def hold(unit: Unit) -> None:
        unit.lock("loan", "l1")
        locked.set()
        assert release.wait(PATIENCE_SECONDS)
        unit.fire("loan", "l1", "lend", actor="system", facts=GOOD)

    outcome: list[object] = []

    def first() -> None:
        bench.engine.run(hold)
        bench.close()

    def second() -> None:
        try:
            bench.fire("lend")
        except TransitionNotAllowed as refusal:
            outcome.append(refusal.state)
        finally:
            bench.close()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert locked.wait(PATIENCE_SECONDS)
    threads[1].start()
    try:
        if bench.url.startswith("postgres"):
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            wait_until(lambda: bool(bench.database.execute_sql(waiting).fetchone()[0]))  # type: ignore[no-untyped-call]
        assert outcome == []
        assert bench.loan().state == "reserved"
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert outcome == ["lent"]
    assert bench.history() == [("create", "", "reserved"), ("lend", "reserved", "lent")]


def test_a_lock_that_cannot_be_had_is_a_typed_conflict(
    database_url: str, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 2: a lock time-out is told as a conflict, and everything works again once the lock is free."""
    bench = impatient(database_url, opened, monkeypatch)
    bench.start()
    holder = open_database(database_url)
    begin = ("IMMEDIATE",) if is_sqlite(holder) else ()
    try:
        with holder.atomic(*begin):
            if not is_sqlite(holder):
                holder.execute_sql("SELECT * FROM t_loans WHERE loan_id = 'l1' FOR UPDATE")  # type: ignore[no-untyped-call]
            with pytest.raises(TransitionConflict):
                bench.fire("lend")
            assert bench.database.transaction_depth() == 0
    finally:
        holder.close()
    assert bench.fire("lend").to_state == "lent"


def test_the_version_check_alone_refuses_a_stale_write(bench: Bench) -> None:
    """Law 2, the version: a writer that takes no lock has moved the row meanwhile."""
    bench.start()
    seen: list[int] = []

    def work(unit: Unit) -> None:
        seen.append(unit.lock("loan", "l1").version)
        bench.loans.update(version=bench.loans.version + 1).where(bench.loans.loan_id == "l1").execute()
        unit.fire("loan", "l1", "lend", actor="system", facts=GOOD)

    with pytest.raises(TransitionConflict, match="loan l1 is no longer at version 1"):
        bench.engine.run(work)
    assert seen == [1, 1, 1]
    assert bench.loan().version == 1
    assert bench.history() == [("create", "", "reserved")]


def test_the_unique_history_row_alone_refuses_a_duplicate(bench: Bench) -> None:
    """Law 2, (workflow, subject, sequence): the same step of one life cannot be written twice."""
    bench.start()
    forge_history(bench, 2)
    before = bench.dump()
    with pytest.raises(TransitionConflict, match="another process holds or has written the row"):
        bench.fire("lend")
    assert bench.dump() == before
    bench.start("l2")
    assert bench.fire("lend", "l2").sequence == 2


def test_a_parent_is_locked_before_its_child(bench: Bench) -> None:
    """Law 1: every writer takes the loan's lock before the fine's, whichever it is about."""
    bench.lent()
    bench.fire("lose")

    def locks(tape: Sequence[str]) -> list[str]:
        reads = [line for line in tape if line.startswith("SELECT")]
        if not is_sqlite(bench.database):
            reads = [line for line in reads if line.endswith("FOR UPDATE")]
        return [name for line in reads for name in ("t_loans", "t_fines") if f"FROM {name} " in line]

    with taped(bench.database) as tape:
        bench.engine.fire("fine", "f-l1", "pay", actor="system")
    # Without row locks (SQLite), the fine is read twice: to learn its parent, and again under the lock.
    expected = ["t_fines", "t_loans", "t_fines"] if is_sqlite(bench.database) else ["t_loans", "t_fines"]
    assert locks(tape) == expected
    columns = {"fine_id": "f-2", "loan_id": "l1", "cents": 1}
    with taped(bench.database) as tape:
        bench.engine.start("fine", columns, actor="system")
    assert locks(tape) == ["t_loans"]


def test_guards_run_under_the_lock_and_see_the_row_as_it_is(bench: Bench) -> None:
    """Law 2: what was blocked after the caller had looked is blocked."""
    seen = bench.start()
    bench.loans.update(blocked=True).execute()
    assert seen.blocked is False
    with pytest.raises(GuardRefused):
        bench.fire("lend")


# -- races between processes ------------------------------------------------------------------------------------


def race(
    bench: Bench, crew: Crew, tmp_path: Path, members: int, remove: Sequence[str] = (), patience: float = 0.3
) -> list[dict[str, Any]]:
    """Let processes lend one book at once, each held right after reading until the others have read it too."""
    folder = tmp_path / "met"
    folder.mkdir()
    meet = {"folder": str(folder), "members": members, "patience_seconds": patience}
    command = {"do": "fire", "url": bench.url, "trigger": "lend", "remove": list(remove), "meet": meet}
    return crew.run(*[command] * members)


def test_exactly_one_of_many_processes_wins(bench: Bench, crew: Crew, tmp_path: Path) -> None:
    """Law 2: two racers or more: one wins; the others see the new state and are refused with it."""
    bench.start()
    answers = race(bench, crew, tmp_path, members=4)
    assert [answer for answer in answers if "value" in answer] == [{"value": 2}]
    refused = [answer for answer in answers if "error" in answer]
    assert [(answer["error"], answer["state"]) for answer in refused] == [("TransitionNotAllowed", "lent")] * 3
    assert bench.history() == [("create", "", "reserved"), ("lend", "reserved", "lent")]
    assert len(bench.effects("send_slip")) == 1


@pytest.mark.parametrize("kept", ["lock", "version", "unique"])
def test_each_protection_alone_lets_one_win(
    postgres_url: str, opened: Opener, crew: Crew, tmp_path: Path, kept: str
) -> None:
    """Law 2: the lock, the version and the unique row each suffice; together they are belt and braces."""
    bench = opened(postgres_url)
    bench.start()
    if kept != "unique":
        drop_unique(bench)
    patience = 0.3 if kept == "lock" else PATIENCE_SECONDS
    removed = [name for name in ("lock", "version") if name != kept]
    answers = race(bench, crew, tmp_path, members=2, remove=removed, patience=patience)
    assert sorted(answer.get("error", "won") for answer in answers) == ["TransitionNotAllowed", "won"]
    assert bench.history() == [("create", "", "reserved"), ("lend", "reserved", "lent")]


def test_without_any_protection_both_win(postgres_url: str, opened: Opener, crew: Crew, tmp_path: Path) -> None:
    """The races above can fail: with all three taken away, a book is lent twice."""
    bench = opened(postgres_url)
    bench.start()
    drop_unique(bench)
    answers = race(bench, crew, tmp_path, members=2, remove=["lock", "version"], patience=PATIENCE_SECONDS)
    assert answers == [{"value": 2}, {"value": 2}]
    assert bench.history() == [("create", "", "reserved")] + [("lend", "reserved", "lent")] * 2
    assert len(bench.effects("send_slip")) == 2


def drop_unique(bench: Bench) -> None:
    table = bench.engine.tables.transitions
    [index] = [i for i in bench.database.get_indexes("t_smi_transitions") if i.columns[-1] == "sequence"]
    assert index.unique
    bench.database.execute_sql(f"DROP INDEX {index.name}")  # type: ignore[no-untyped-call]
    assert table.select().count() == 1
