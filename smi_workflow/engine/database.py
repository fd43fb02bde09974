"""Owns connections, transactions and their conflicts on SQLite, PostgreSQL and MariaDB. Called by the engine.

Every write transaction of the system is opened here: on SQLite it takes the write lock at once (a deferred
read-then-write fails without waiting), on the servers rows are locked with FOR UPDATE.
"""

from __future__ import annotations

import re
import select
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from urllib.parse import parse_qsl, unquote, urlsplit

import peewee
from peewee import Database, Field, Model, MySQLDatabase, PostgresqlDatabase, SqliteDatabase, TextField, Value

from smi_workflow.errors import ConfigError, EngineError, TransitionConflict

_V = TypeVar("_V")
_M = TypeVar("_M", bound=Model)

LOCK_WAIT_SECONDS = 5
_FOUND_ROWS = 2  # of the MySQL protocol's client flags
_STAMP = "%Y-%m-%d %H:%M:%S.%f"
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


if TYPE_CHECKING:
    # peewee's fields are generic in its stubs only.
    class UtcDateTimeField(Field[_V]):
        @overload
        def __new__(cls, *args: Any, null: Literal[True], **kwargs: Any) -> UtcDateTimeField[datetime | None]: ...
        @overload
        def __new__(cls, *args: Any, null: Literal[False] = ..., **kwargs: Any) -> UtcDateTimeField[datetime]: ...
        def __new__(cls, *args: Any, **kwargs: Any) -> Any: ...

    class LongTextField(TextField[_V]):
        @overload
        def __new__(cls, *args: Any, null: Literal[True], **kwargs: Any) -> LongTextField[str | None]: ...
        @overload
        def __new__(cls, *args: Any, null: Literal[False] = ..., **kwargs: Any) -> LongTextField[str]: ...
        def __new__(cls, *args: Any, **kwargs: Any) -> Any: ...

else:

    class UtcDateTimeField(Field):
        """An instant: aware UTC in Python, UTC without offset in the table, microseconds kept."""

        field_type = "UTCDATETIME"

        def db_value(self, value):
            """The text that sorts like time in SQLite and that the servers read as a timestamp."""
            return stamp(value) if isinstance(value, datetime) else value

        def python_value(self, value):
            """The aware instant."""
            return read_stamp(value)

    class LongTextField(TextField):
        """Text that may pass 64 KiB, where MySQL's TEXT ends."""

        field_type = "LONGTEXT"


def stamp(value: datetime) -> str:
    """Write an aware datetime as the databases keep it."""
    if value.tzinfo is None:
        raise ValueError(f"a datetime without a time zone: {value!r}")
    return value.astimezone(UTC).strftime(_STAMP)


def read_stamp(value: object) -> datetime | None:
    """Read what a database kept; the opposite of `stamp`."""
    if value is None:
        return None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise TypeError(f"not a timestamp: {value!r}")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def readable(text: str) -> str:
    """The text without what a database cannot keep: NUL (PostgreSQL) and halves of surrogate pairs (all)."""
    return _UNWRITABLE.sub("\ufffd", text)


class _Healing(Database):
    """A database whose threads drop a connection that the server has ended, before they use it where possible.

    A server that restarts so costs an idle thread nothing; one that was in the middle of something, one error.
    `_descriptor` is the connection's socket, -1 when it is closed.
    """

    _descriptor: Callable[[Any], int]

    def begin(self, *args: Any) -> None:
        """Open a transaction."""
        self._leave_the_dead()
        super().begin(*args)

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """Execute one statement."""
        if not self.transaction_depth():
            self._leave_the_dead()
        try:
            return super().execute_sql(sql, params)  # type: ignore[no-untyped-call]
        except (peewee.OperationalError, peewee.InterfaceError):
            if not self.transaction_depth() and not self.is_connection_usable():
                _drop_connection(self)
            raise

    def _leave_the_dead(self) -> None:
        # Nobody has asked, and yet there is something to read: the server's farewell. No round trip tells it.
        if not self._state.closed and _is_readable(self._descriptor(self._state.conn)):  # type: ignore[attr-defined]
            _drop_connection(self)


class _Sqlite(SqliteDatabase):
    """A file that one writes at a time: the threads of a process take turns here.

    Whoever finds the file locked is put to sleep by SQLite, longer each time, and overtaken by those who come just
    in time; a thread that waits for its turn is woken at once. Processes still meet at the file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The simulation's processes share a thread, and must not wait here for each other.
        self._turn = threading.RLock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the thread that writes.

        Raises:
            TransitionConflict: another one takes too long.
        """
        if not self._turn.acquire(timeout=LOCK_WAIT_SECONDS):
            raise TransitionConflict("another thread holds the database")
        try:
            yield
        finally:
            self._turn.release()


class _Postgres(_Healing, PostgresqlDatabase):
    def _descriptor(self, connection: Any) -> int:
        return -1 if connection.closed else int(connection.fileno())


class _MariaDb(_Healing, MySQLDatabase):
    def _descriptor(self, connection: Any) -> int:
        return int(connection._sock.fileno()) if connection.open else -1


def _is_readable(descriptor: int) -> bool:
    """Whether reading from it would give something at once, its end included; what is closed has ended."""
    if descriptor < 0:
        return True
    watch = select.poll()
    watch.register(descriptor, select.POLLIN)
    return bool(watch.poll(0))


def open_database(url: str) -> Database:
    """Prepare a database; it connects on first use, once per thread.

    Args:
        url: sqlite:///relative.db, sqlite:////absolute.db, postgresql://user:pw@host/db, mysql:// or mariadb://.
    Raises:
        ConfigError: another scheme, no URL at all, or a file's folder that cannot be made.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Not its text: that may repeat a password.
        raise ConfigError("SMI_DATABASE_URL cannot be read; percent-encode user and password") from None
    scheme = parts.scheme.split("+")[0]
    if scheme == "sqlite":
        path = unquote(parts.path).removeprefix("/") or ":memory:"
        if path != ":memory:":
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                problem = "set SMI_VAR_DIR or SMI_DATABASE_URL to a place of yours"
                raise ConfigError(f"the database's folder cannot be made: {error}", [problem]) from error
        return _Sqlite(
            path,
            timeout=LOCK_WAIT_SECONDS,
            # FULL: a commit we answered 2xx for survives a power cut, which NORMAL does not promise in WAL mode.
            pragmas={"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1, "cache_size": -32_000},
            field_types={"UTCDATETIME": "DATETIME", "LONGTEXT": "TEXT"},
        )
    server: dict[str, Any] = {
        "host": unquote(parts.hostname) if parts.hostname else None,
        "port": port,
        "user": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        **_options(parts.query),
    }
    server = {name: value for name, value in server.items() if value is not None}
    name = unquote(parts.path).strip("/")
    if scheme in ("postgresql", "postgres"):
        # Ours before the URL's, which may refine them; UTC so that no driver shifts a timestamp.
        options = f"-c lock_timeout={LOCK_WAIT_SECONDS}s -c timezone=UTC {server.pop('options', '')}".strip()
        return _Postgres(
            name,
            prefer_psycopg3=True,
            options=options,
            field_types={"UTCDATETIME": "TIMESTAMP", "LONGTEXT": "TEXT"},
            **server,
        )
    if scheme in ("mysql", "mariadb"):
        return _MariaDb(
            name,
            mariadb=True,
            # Report the rows that matched, as the other databases do, and not only those that changed.
            client_flag=_FOUND_ROWS,
            # READ COMMITTED: after a row lock is granted, later reads must see what the winner committed.
            init_command=(
                f"SET SESSION innodb_lock_wait_timeout={LOCK_WAIT_SECONDS}, time_zone='+00:00', "
                "sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', tx_isolation='READ-COMMITTED'"
            ),
            field_types={"UTCDATETIME": "DATETIME(6)"},
            **server,
        )
    raise ConfigError(f"SMI_DATABASE_URL: cannot use scheme {parts.scheme!r}; sqlite, postgresql or mysql")


def _options(query: str) -> dict[str, object]:
    """What a URL refines, in the drivers' words: not what a connection of ours must be.

    Raises:
        ConfigError: an option that is not the URL's to set, or a time-out that is no number.
    """
    options: dict[str, object] = dict(parse_qsl(query))
    taken = options.keys() & {"prefer_psycopg3", "mariadb", "client_flag", "init_command", "field_types"}
    seconds = str(options.get("connect_timeout", "5"))
    if taken or not (seconds.isascii() and seconds.isdigit()):
        name = ", ".join(sorted(taken)) or "connect_timeout"
        raise ConfigError(f"SMI_DATABASE_URL cannot set {name} like this")
    return {**options, "connect_timeout": int(seconds)}


def is_sqlite(database: Database) -> bool:
    """True where one writer at a time holds the whole file."""
    return isinstance(database, SqliteDatabase)


def table_settings(database: Database) -> tuple[str, ...]:
    """What ends a CREATE TABLE: MariaDB must tell letters and trailing spaces apart, as the others do.

    Providers' ids are case-sensitive; with its default collation a second event would pass for the first.
    """
    if isinstance(database, MySQLDatabase):
        return ("DEFAULT CHARACTER SET utf8mb4", "COLLATE utf8mb4_nopad_bin")
    return ()


def bind(model: type[_M], database: Database, prefix: str) -> type[_M]:
    """A copy of a declared model that belongs to one database and one table prefix.

    Models are declared without a database, so that a process may hold several (tests, imports) and no
    global state decides which one a row goes to.
    """
    table = prefix + str(model._meta.table_name)
    options = {"database": database, "table_name": table, "legacy_table_names": False}
    meta = type("Meta", (), {**options, "table_settings": table_settings(database)})
    return type(model.__name__, (model,), {"Meta": meta, "__module__": model.__module__})


@contextmanager
def transaction(database: Database, *, of_one_statement: bool = False) -> Iterator[None]:
    """One write transaction: the engine's door.

    Args:
        of_one_statement: the database begins and commits it by itself, which saves two round trips. Whatever is
            written within is committed as soon as it has been executed.
    Raises:
        EngineError: one is open already in this thread; nested, it would silently become a savepoint.
        TransitionConflict: a lock could not be had in time, or a unique row of ours was written first.
    """
    if database.transaction_depth():
        raise EngineError("the engine was called inside an open transaction; commit first")
    try:
        with _turn(database), nullcontext() if of_one_statement else _begun(database):
            yield
    except peewee.DatabaseError as error:
        if _is_conflict(error):
            raise TransitionConflict(f"another process holds or has written the row: {error}") from error
        raise
    except peewee.InterfaceError:
        _drop_connection(database)
        raise
    finally:
        if not is_sqlite(database) and not database.is_closed() and not database.is_connection_usable():
            _drop_connection(database)


def _turn(database: Database) -> AbstractContextManager[None]:
    return database.turn() if isinstance(database, _Sqlite) else nullcontext()


def _begun(database: Database) -> AbstractContextManager[Any]:
    begun: AbstractContextManager[Any] = database.atomic("IMMEDIATE") if is_sqlite(database) else database.atomic()
    return begun


def _drop_connection(database: Database) -> None:
    """Forget a connection that its server has ended; the next use opens another."""
    try:
        database.close()
    except peewee.PeeweeException:
        database._state.reset()  # type: ignore[attr-defined]  # a connection too broken to be closed


# Lock not available, deadlock, serialization failure; and unique violation: every unique key that a
# transition writes is ours (subject and sequence, idempotency key), so it means that somebody was first.
_CONFLICT_SQLSTATES = {"55P03", "40P01", "40001", "23505"}
_CONFLICT_MYSQL = {1205, 1213, 1020, 1062}
_CONFLICT_SQLITE = {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY}


def _is_conflict(error: peewee.DatabaseError) -> bool:
    """Whether trying again may help, told by the driver's code and never by its text."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, sqlite3.Error):
        code = cause.sqlite_errorcode
        return code in _CONFLICT_SQLITE or (code & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    if getattr(cause, "sqlstate", None) in _CONFLICT_SQLSTATES:
        return True
    return bool(cause and cause.args and cause.args[0] in _CONFLICT_MYSQL)


class Slot(Value):
    """A place in a compiled statement that `Statement.run` fills by name."""

    def __init__(self, name: str) -> None:
        super().__init__(_Name(name), converter=False)


class _Name(str):
    """Marks a parameter as a name to fill in, and not a constant of the query."""

    __slots__ = ()


class Statement:
    """A peewee query compiled once and run many times with other values.

    Building the same query through the model layer costs several times the database's own work; compiled,
    it costs a list and a call. Values go in as the drivers take them: datetimes through `stamp`.
    """

    def __init__(self, database: Database, query: Any) -> None:
        self._database = database
        self.sql, parameters = query.sql()
        self._parameters = [(isinstance(item, _Name), item) for item in parameters]

    def run(self, values: Mapping[str, object]) -> Any:
        """Execute with these values; returns the driver's cursor."""
        filled = [values[item] if is_name else item for is_name, item in self._parameters]
        return self._database.execute_sql(self.sql, filled)  # type: ignore[no-untyped-call]


def rows_as(model: type[_M], names: Sequence[str], converters: Sequence[Any], cursor: Any) -> list[_M]:
    """Turn a cursor's tuples into model instances without the query layer."""
    made = []
    for record in cursor.fetchall():
        data = {
            name: (convert(value) if convert is not None and value is not None else value)
            for name, convert, value in zip(names, converters, record, strict=True)
        }
        made.append(model(__no_default__=1, **data))
    return made
