"""Owns the tests of migrating: the tables that come of it, the lock, crashes, other releases. Called by pytest."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peewee
import pytest
from peewee import Database, MySQLDatabase

import smi_workflow
from smi_workflow.engine.database import open_database
from smi_workflow.engine.migrate import MigrationStatus, check_current, migrate, roll_back, status
from smi_workflow.errors import ConfigError, EngineError, SmiError, TransitionConflict
from smi_workflow.jobs.model import JobTables
from tests.support.schemas import models, rows, schema

FOLDER = Path(smi_workflow.__file__).parent / "migrations"
ALL = tuple(sorted(path.stem for path in FOLDER.glob("[0-9]*.py")))
NOW = datetime(2026, 3, 1, tzinfo=UTC)

SEED_COLUMNS = (
    "id", "job_id", "post_id", "attachment_id", "image_url", "image_width", "image_height", "resolution", "status",
    "stripe_payment_intent_id", "stripe_checkout_session_id", "payment_status", "paid_at", "amount_charged",
    "amount_cost", "credits_used", "refunded_at", "refund_amount", "refund_reason", "upsampler_job_id",
    "upscaled_url", "upscaled_file_path", "download_token", "download_expires_at", "email_sent", "created_at",
    "updated_at", "processing_started_at", "completed_at", "failed_at", "email",
)  # fmt: skip
SEED_INDEXES = (
    (("job_id",), True), (("post_id",), False), (("attachment_id",), False), (("post_id", "attachment_id"), False),
    (("status",), False), (("payment_status",), False), (("download_token",), False), (("created_at",), False),
)  # fmt: skip
WAITING_JOBS = "SELECT * FROM wp_smi_jobs WHERE status = 'pending' ORDER BY created_at ASC"
EXPIRED_JOBS = (
    "SELECT * FROM wp_smi_jobs WHERE download_expires_at < '2026-03-01' AND upscaled_file_path IS NOT NULL"
)
REVENUE = (
    "SELECT SUM(amount_charged) AS revenue, COUNT(*) AS completed_jobs FROM wp_smi_jobs"
    " WHERE status = 'completed' AND created_at >= '2026-02-01'"
)

CREATE_ONE = """
def up(migrator, db):
    db.execute_sql(f"CREATE TABLE {migrator.table_prefix}extra (id INTEGER)")

def down(migrator, db):
    db.execute_sql(f"DROP TABLE {migrator.table_prefix}extra")
"""
CREATE_THEN_CRASH = """
def up(migrator, db):
    db.execute_sql(f"CREATE TABLE {migrator.table_prefix}extra (id INTEGER)")
    db.execute_sql("SELECT * FROM no_such_table")
"""
MIGRATE_MEANWHILE = """
from pathlib import Path

from smi_workflow.engine.database import open_database
from smi_workflow.engine.migrate import migrate

def up(migrator, db):
    other = open_database({url!r})
    try:
        migrate(other, Path(__file__).parent, prefix=migrator.table_prefix, wait_seconds=0)
    finally:
        other.close()
"""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = open_database(database_url)
    yield found
    found.close()


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Database]:
    found = open_database(sqlite_url)
    yield found
    found.close()


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder of migrations that a test fills."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    return folder


def job(**changed: object) -> dict[str, object]:
    columns: dict[str, object] = {
        "job_id": "j-1", "image_url": "https://example.com/a.jpg", "image_width": 10, "image_height": 10,
        "resolution": "4x", "created_at": NOW, "updated_at": NOW, "currency": "usd", "markup_percentage": 500,
        "livemode": False, "amount_due_cents": 100, "source_file": "a.jpg",
    }  # fmt: skip
    return columns | changed


# -- the tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["wp_", "", "a_prefix_of_32_characters_length"])
def test_the_tables_are_those_of_the_models(database: Database, prefix: str) -> None:
    migrate(database, FOLDER, prefix=prefix)
    migrated = schema(database, prefix)
    undo_all(database, prefix)
    assert schema(database, prefix) == []
    for model in models(database, prefix):
        # One by one: PostgreSQL numbers names that are too long in the order they are made.
        database.create_tables([model])
    declared = schema(database, prefix)
    assert sorted(set(migrated) ^ set(declared), key=repr) == []
    assert {row[0] for row in migrated} == {model._meta.table_name for model in models(database, prefix)}


def test_wordpress_ids_are_opaque_where_wordpress_is_not(sqlite: Database) -> None:
    migrate(sqlite, FOLDER, prefix="wp_", wordpress_tables=True)
    migrate(sqlite, FOLDER, prefix="xy_")
    assert str(schema(sqlite, "wp_")) == str(schema(sqlite, "xy_")).replace("xy_", "wp_")


@pytest.mark.server("mariadb")
def test_a_deleted_wordpress_post_leaves_its_jobs(mariadb_url: str) -> None:
    database = open_database(mariadb_url)
    posts = "CREATE TABLE wp_posts (ID BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY)"
    database.execute_sql(posts)  # type: ignore[no-untyped-call]
    migrate(database, FOLDER, prefix="wp_", wordpress_tables=True)
    jobs = JobTables.bound_to(database, "wp_").jobs
    database.execute_sql("INSERT INTO wp_posts (ID) VALUES (7)")  # type: ignore[no-untyped-call]
    jobs.create(**job(post_id=7, attachment_id=7))
    with pytest.raises(peewee.IntegrityError):
        jobs.create(**job(job_id="j-2", post_id=8))
    database.execute_sql("DELETE FROM wp_posts")  # type: ignore[no-untyped-call]
    assert rows(database, "SELECT job_id, post_id, attachment_id FROM wp_smi_jobs") == [("j-1", None, None)]
    database.close()


def test_every_column_and_index_of_the_seeds_is_there(database: Database) -> None:
    migrate(database, FOLDER, prefix="wp_")
    assert set(SEED_COLUMNS) <= {column.name for column in database.get_columns("wp_smi_jobs")}
    indexes = {(tuple(index.columns), bool(index.unique)) for index in database.get_indexes("wp_smi_jobs")}
    assert set(SEED_INDEXES) <= indexes


@pytest.mark.parametrize(
    "wrong",
    [{"status": "shipped"}, {"payment_status": "maybe"}, {"resolution": "16x"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_database_refuses_words_that_nobody_declared(database: Database, wrong: dict[str, object]) -> None:
    migrate(database, FOLDER, prefix="wp_")
    jobs = JobTables.bound_to(database, "wp_").jobs
    jobs.create(**job())
    # MariaDB reports a failed check as an operational error.
    with pytest.raises((peewee.IntegrityError, peewee.OperationalError)):
        jobs.create(**job(job_id="j-2", **wrong))
    assert jobs.select().count() == 1


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(WAITING_JOBS, id="waiting"),
        pytest.param(EXPIRED_JOBS, id="expired"),
        pytest.param(REVENUE, id="revenue"),
    ],
)
def test_the_seeds_queries_use_an_index(sqlite: Database, query: str) -> None:
    migrate(sqlite, FOLDER, prefix="wp_")
    plan = [row[3] for row in rows(sqlite, f"EXPLAIN QUERY PLAN {query}")]
    assert plan[0].startswith("SEARCH wp_smi_jobs USING INDEX")


def undo_all(database: Database, prefix: str) -> tuple[str, ...]:
    """Undo one migration at a time; returns them in that order."""
    undone: tuple[str, ...] = ()
    while one := roll_back(database, FOLDER, prefix=prefix, to=None):
        undone += one
    return undone


# -- applying and undoing ------------------------------------------------------------------------------------


def test_migrating_twice_changes_nothing_the_second_time(database: Database) -> None:
    assert status(database, FOLDER, prefix="wp_") == MigrationStatus((), ALL, ())
    assert migrate(database, FOLDER, prefix="wp_") == ALL
    assert status(database, FOLDER, prefix="wp_") == MigrationStatus(ALL, (), ())
    assert migrate(database, FOLDER, prefix="wp_") == ()


def test_down_then_up_again(database: Database) -> None:
    migrate(database, FOLDER, prefix="wp_")
    before = schema(database, "wp_")
    assert undo_all(database, "wp_") == ALL[::-1]
    assert [name for name in database.get_tables() if "smi_" in name] == ["wp_smi_migrations"]
    assert roll_back(database, FOLDER, prefix="wp_", to=None) == ()
    assert migrate(database, FOLDER, prefix="wp_") == ALL
    assert schema(database, "wp_") == before


def test_rolling_back_to_a_name_keeps_it(sqlite: Database, scripts: Path) -> None:
    for name in ("0001_one", "0002_two", "0003_three"):
        (scripts / f"{name}.py").write_text("def up(m, db): pass\ndef down(m, db): pass\n")
    migrate(sqlite, scripts, prefix="wp_")
    assert roll_back(sqlite, scripts, prefix="wp_", to="0003_three") == ()
    assert roll_back(sqlite, scripts, prefix="wp_", to="0001_one") == ("0003_three", "0002_two")
    assert status(sqlite, scripts, prefix="wp_").applied == ("0001_one",)
    with pytest.raises(ConfigError, match="0002_two is not applied"):
        roll_back(sqlite, scripts, prefix="wp_", to="0002_two")


def test_two_prefixes_share_a_database(database: Database) -> None:
    migrate(database, FOLDER, prefix="wp_")
    migrate(database, FOLDER, prefix="staging_")
    JobTables.bound_to(database, "wp_").jobs.create(**job())
    assert undo_all(database, "staging_") == ALL[::-1]
    assert status(database, FOLDER, prefix="wp_").applied == ALL
    assert JobTables.bound_to(database, "wp_").jobs.select().count() == 1


def test_another_programs_table_is_refused_before_anything_is_made(database: Database) -> None:
    plugin = "CREATE TABLE wp_smi_jobs (id INTEGER, job_id VARCHAR(255), status VARCHAR(20))"
    database.execute_sql(plugin)  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError, match="SMI_TABLE_PREFIX") as caught:
        migrate(database, FOLDER, prefix="wp_")
    assert "wp_smi_jobs exists already and lacks amount_charged" in str(caught.value)
    assert not database.table_exists("wp_smi_transitions")
    assert migrate(database, FOLDER, prefix="shop_") == ALL


# -- crashes -------------------------------------------------------------------------------------------------


def test_what_a_crash_left_half_made_is_completed(database: Database) -> None:
    migrate(database, FOLDER, prefix="wp_")
    whole = schema(database, "wp_")
    undo_all(database, "wp_")
    made_before_the_crash = models(database, "wp_")[:5]
    for model in made_before_the_crash:
        model._schema.create_table()  # type: ignore[attr-defined]
    made_before_the_crash[0]._schema.create_indexes()  # type: ignore[attr-defined]
    assert migrate(database, FOLDER, prefix="wp_") == ALL
    assert schema(database, "wp_") == whole


def test_a_script_that_fails_is_told_and_runs_again_once_repaired(database: Database, scripts: Path) -> None:
    script = scripts / "0001_extra.py"
    script.write_text(CREATE_THEN_CRASH)
    with pytest.raises(ConfigError, match=r"cannot migrate the database: .*no_such_table") as caught:
        migrate(database, scripts, prefix="wp_")
    assert isinstance(caught.value.__cause__, peewee.DatabaseError)
    assert status(database, scripts, prefix="wp_").pending == ("0001_extra",)
    if isinstance(database, MySQLDatabase):
        return
    assert not database.table_exists("wp_extra")
    script.write_text(CREATE_ONE)
    assert migrate(database, scripts, prefix="wp_") == ("0001_extra",)


# -- two at once ---------------------------------------------------------------------------------------------


def _migrate_with_others(url: str, barrier: Any, results: Any) -> None:
    database = open_database(url)
    barrier.wait(30)
    try:
        results.put(migrate(database, FOLDER, prefix="wp_"))
    except SmiError as error:
        results.put(repr(error))
    database.close()


def test_processes_that_migrate_at_once_all_succeed_and_one_does_the_work(database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_migrate_with_others, args=(database_url, barrier, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(outcomes, key=repr) == [ALL, (), ()]
    database = open_database(database_url)
    assert sorted(rows(database, "SELECT name FROM wp_smi_migrations")) == [(name,) for name in ALL]
    database.close()


def test_whoever_waited_long_enough_is_told_that_another_migrates(
    database_url: str, database: Database, scripts: Path
) -> None:
    (scripts / "0001_slow.py").write_text(MIGRATE_MEANWHILE.format(url=database_url))
    with pytest.raises(TransitionConflict, match="another process is migrating"):
        migrate(database, scripts, prefix="wp_")
    (scripts / "0001_slow.py").write_text(CREATE_ONE)
    assert migrate(database, scripts, prefix="wp_", wait_seconds=0) == ("0001_slow",)


def test_migrating_inside_a_transaction_is_refused(sqlite: Database) -> None:
    with sqlite.atomic(), pytest.raises(EngineError, match="open transaction"):
        migrate(sqlite, FOLDER, prefix="wp_")


def test_a_database_in_memory_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = open_database("sqlite:///:memory:")
    assert migrate(database, FOLDER, prefix="wp_") == ALL
    assert list(tmp_path.iterdir()) == []
    database.close()


# -- other releases ------------------------------------------------------------------------------------------


def test_a_fresh_database_is_not_set_up(database: Database) -> None:
    with pytest.raises(ConfigError, match=r"not set up: run `smi migrate`\n  - 0001_initial"):
        check_current(database, FOLDER, prefix="wp_")


def test_an_older_database_is_not_current(sqlite: Database, scripts: Path) -> None:
    (scripts / "0001_one.py").write_text("def up(m, db): pass\n")
    migrate(sqlite, scripts, prefix="wp_")
    (scripts / "0002_two.py").write_text("def up(m, db): pass\n")
    with pytest.raises(ConfigError, match=r"not current: run `smi migrate`") as caught:
        check_current(sqlite, scripts, prefix="wp_")
    assert caught.value.problems == ("0002_two",)


def test_a_newer_database_is_tolerated_on_record(
    database: Database, scripts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ALL:
        (scripts / f"{name}.py").write_text((FOLDER / f"{name}.py").read_text())
    (scripts / "0100_newer.py").write_text(CREATE_ONE)
    migrate(database, scripts, prefix="wp_")
    assert status(database, FOLDER, prefix="wp_") == MigrationStatus(ALL, (), ("0100_newer",))
    check_current(database, FOLDER, prefix="wp_")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the database was migrated by a newer release: 0100_newer"
    ]
    assert migrate(database, FOLDER, prefix="wp_") == ()
    with pytest.raises(ConfigError, match="0100_newer"):
        roll_back(database, FOLDER, prefix="wp_", to=None)


def test_an_unreachable_database_is_a_setting_to_correct(tmp_path: Path) -> None:
    database = open_database(f"postgresql://nobody@/none?host={tmp_path}")
    for act in (check_current, migrate, status):
        with pytest.raises(ConfigError, match="database"):
            act(database, FOLDER, prefix="wp_")


def test_a_missing_folder_is_named(sqlite: Database, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        status(sqlite, tmp_path / "nowhere", prefix="wp_")
