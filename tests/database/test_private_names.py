"""Canaries for the private names of other projects that the library rests on.

Each test provokes the real thing and asserts the meaning that the library relies on. Most of these names are read with
a default, so a change of them would pass unnoticed. docs/architecture.md lists all private names.
"""

from __future__ import annotations

import copy
import importlib
import re
import resource
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from django.core.cache import caches
from django.db import DatabaseError, IntegrityError, OperationalError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import SQLiteCursorWrapper
from django.db.utils import ConnectionHandler
from django.test import TestCase

from lambda_tasks.contrib import postgres as postgres_plugin
from lambda_tasks.database import errors, guards
from lambda_tasks.database.errors import is_conflict, is_lock_timeout
from lambda_tasks.database.infrastructure import is_infrastructure, is_read_only
from lambda_tasks.database.private_names import initialized_connections
from lambda_tasks.limits import alarms
from lambda_tasks.models import TaskRecord
from tests import services
from tests.conftest import Sqs
from tests.services import Missing, Server
from tests.settings import SERVERS

PACKAGE: Final = Path(__file__).parents[2] / "lambda_tasks"
#: The file that reads the private names of Django.
DJANGO: Final = "database/private_names.py"
#: Seconds to wait for another thread.
PATIENCE: Final = 30

on_each_database = pytest.mark.databases(transaction=True)
on_postgres = pytest.mark.databases("postgres", transaction=True)
on_mariadb = pytest.mark.databases("mariadb", transaction=True)


@dataclass(frozen=True, slots=True, repr=False)
class Private:
    """A private name, and the files of the package that use it; as the message of an assertion, it tells both."""

    name: str
    files: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"{self.name} means something else now: {', '.join(f'lambda_tasks/{file}' for file in self.files)} uses it"
        )

    def of(self, owner: Any) -> Any:
        """Return the attribute of `owner` that has the name."""
        assert hasattr(owner, self.name), f"{type(owner).__name__} lacks it. {self}"
        return getattr(owner, self.name)


NAMES: Final[list[Private]] = []


def private(name: str, *files: str) -> Private:
    NAMES.append(Private(name, files))
    return NAMES[-1]


FROM_TESTCASE: Final = private("_from_testcase", DJANGO)
ROLLBACK_EXC: Final = private("rollback_exc", DJANGO)
RUN_ON_COMMIT: Final = private("run_on_commit", DJANGO)
SAVEPOINT_IDS: Final = private("savepoint_ids", DJANGO)
CLOSED: Final = private("closed_in_transaction", DJANGO)
ERRORS_OCCURRED: Final = private("errors_occurred", DJANGO)
IS_MARIADB: Final = private("mysql_is_mariadb", DJANGO)
ISOLATION_LEVEL: Final = private("isolation_level", DJANGO)
WORK_ITEM: Final = private("_WorkItem", "limits/alarms.py")
CURSOR_FACTORY: Final = private("cursor_factory", "database/guards.py")
STATUS: Final = private("transaction_status", "database/guards.py", "database/errors.py", "contrib/postgres.py")
SERVER_STATUS: Final = private("server_status", "database/guards.py")
USER_AGENT: Final = private("user_agent", "backends/sqs.py")
TOKEN: Final = private("token", "locks/cache.py")
TABLE: Final = private("_table", DJANGO)
CACHE: Final = private("_cache", DJANGO)
IN_MEMORY: Final = private("is_in_memory_db", "database/aside.py")
CONVERT_QUERY: Final = private("convert_query", "database/sqlite_cursor.py")
SET_HANDLER: Final = private("_signal", "limits/alarms.py")
CONNECTIONS: Final = private("_connections", DJANGO)


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.name)
def test_files_use_the_name(name: Private) -> None:
    assert [file for file in name.files if name.name not in (PACKAGE / file).read_text()] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.files == (DJANGO,)], ids=lambda name: name.name)
def test_one_file_reads_the_name(name: Private) -> None:
    read = re.compile(rf"\.{name.name}\b|\"{name.name}\"")
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if read.search(path.read_text())]
    assert files == [DJANGO]


def record(number: int) -> TaskRecord:
    return TaskRecord(pk=f"00000000-0000-0000-0000-{number:012}", task_name="a.b", kwargs={}, status="RUNNING")


def run(connection: BaseDatabaseWrapper, *statements: str) -> Any:
    """Execute the statements, and return the first column of the first row of the last one, if it has any."""
    with connection.cursor() as cursor:
        for sql in statements:
            cursor.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


# Django's transactions


class TestBlocksOfTestCase(TestCase):
    databases = frozenset(["default", "sqlite"])

    def test_only_own_blocks_are_marked(self) -> None:
        for alias in self.databases:
            with transaction.atomic(using=alias), transaction.atomic(using=alias):
                marks = [FROM_TESTCASE.of(block) for block in connections[alias].atomic_blocks]
            assert marks == [True, True, False, False], FROM_TESTCASE


@pytest.mark.databases("sqlite")
def test_initialized_connections_are_those_of_django(database: str) -> None:
    handler = ConnectionHandler({"default": connections.settings[database], "other": connections.settings[database]})
    assert not hasattr(CONNECTIONS.of(handler), "other"), CONNECTIONS
    assert handler["other"] is CONNECTIONS.of(handler).other is handler.all(initialized_only=True)[0], CONNECTIONS
    assert initialized_connections() == connections.all(initialized_only=True), CONNECTIONS


@pytest.mark.once
def test_query_for_sqlite_depends_only_on_its_text() -> None:
    with closing(sqlite3.connect(":memory:")) as driver:
        one, other = (driver.cursor(factory=SQLiteCursorWrapper) for _ in range(2))
        sql = "SELECT '100%%', %s"
        assert CONVERT_QUERY.of(one)(sql) == CONVERT_QUERY.of(other)(sql) == "SELECT '100%', ?", CONVERT_QUERY
        assert one.execute(sql, [7]).fetchone() == ("100%", 7)


@pytest.mark.once
def test_handler_is_set_by_the_module_in_c() -> None:
    """It returns the handler itself, and for the default and for ignoring a signal an integer."""
    c_module = importlib.import_module(SET_HANDLER.name)
    assert alarms._set_handler is c_module.signal, SET_HANDLER
    outer = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        assert c_module.signal(signal.SIGALRM, print) == int(signal.SIG_IGN), SET_HANDLER
        assert c_module.signal(signal.SIGALRM, int(signal.SIG_DFL)) is print, SET_HANDLER
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL, SET_HANDLER
    finally:
        signal.signal(signal.SIGALRM, outer)


@on_each_database
class TestTransactions:
    @pytest.fixture
    def connection(self, database: str) -> Iterator[Any]:
        connections[database].close()  # it may have had errors in an earlier test
        yield connections[database]
        connections[database].close()

    def test_rollback_exc_is_the_caught_error(self, database: str, connection: Any) -> None:
        for _ in range(2):  # Django never forgets the first one, so the second must replace it
            with transaction.atomic(using=database):
                record(1).save(using=database, force_insert=True)
                with pytest.raises(IntegrityError) as caught:
                    record(1).save(using=database, force_insert=True)
                assert connection.needs_rollback
                assert ROLLBACK_EXC.of(connection) is caught.value, ROLLBACK_EXC
                transaction.set_rollback(True, using=database)

    @pytest.mark.parametrize("robust", [False, True])
    def test_callback_is_second_in_its_entry(self, database: str, connection: Any, robust: bool) -> None:
        called: list[str] = []

        def callback() -> None:
            called.append("callback")

        with transaction.atomic(using=database):
            connection.on_commit(callback, robust=robust)
            with suppress(RuntimeError), transaction.atomic(using=database):
                connection.on_commit(lambda: called.append("rolled back"))
                assert len(RUN_ON_COMMIT.of(connection)) == 2, RUN_ON_COMMIT
                raise RuntimeError
            entries = RUN_ON_COMMIT.of(connection)
            assert [callback for _, callback, *_ in entries] == [callback], RUN_ON_COMMIT
        assert called == ["callback"]
        assert (entries, RUN_ON_COMMIT.of(connection)) == ([], []), RUN_ON_COMMIT
        assert RUN_ON_COMMIT.of(connection) is not entries, RUN_ON_COMMIT

    def test_savepoint_ids_are_of_inner_blocks(self, database: str, connection: Any) -> None:
        seen = []
        with transaction.atomic(using=database):
            seen.append(bool(SAVEPOINT_IDS.of(connection)))
            for savepoint in (True, False):
                with transaction.atomic(using=database, savepoint=savepoint):
                    seen.append(bool(SAVEPOINT_IDS.of(connection)))
                seen.append(bool(SAVEPOINT_IDS.of(connection)))
        assert seen == [False, True, False, True, False], SAVEPOINT_IDS

    def test_closed_in_transaction_stays_until_reconnecting(self, database: str, connection: Any) -> None:
        seen = []
        with transaction.atomic(using=database):
            run(connection, "SELECT 1")
            seen.append(CLOSED.of(connection))
            connection.close()
            seen.append(CLOSED.of(connection))
        seen.append(CLOSED.of(connection))
        run(connection, "SELECT 1")
        seen.append(CLOSED.of(connection))
        assert seen == [False, True, True, False], CLOSED

    def test_errors_occurred_until_the_check(self, database: str, connection: Any) -> None:
        connection.ensure_connection()
        assert ERRORS_OCCURRED.of(connection) is False, ERRORS_OCCURRED
        with pytest.raises(DatabaseError):
            run(connection, "SELECT nothing FROM nowhere")
        assert ERRORS_OCCURRED.of(connection) is True, ERRORS_OCCURRED
        session = connection.connection
        connection.close_if_unusable_or_obsolete()
        assert ERRORS_OCCURRED.of(connection) is False, ERRORS_OCCURRED
        assert connection.connection in (session, None)

    def test_errors_occurred_not_for_refused_rows(self, database: str, connection: Any) -> None:
        record(1).save(using=database, force_insert=True)
        with pytest.raises(IntegrityError):
            record(1).save(using=database, force_insert=True)
        assert ERRORS_OCCURRED.of(connection) is False, ERRORS_OCCURRED


# Django's backends and caches


@on_mariadb
class TestMySQLWrapper:
    def test_it_knows_mariadb_from_mysql(self, database: str) -> None:
        version = run(connections[database], "SELECT VERSION()")
        assert IS_MARIADB.of(connections[database]) is ("MariaDB" in version), IS_MARIADB

    @pytest.mark.parametrize("level", ["read committed", "Repeatable Read", "serializable", "default"])
    def test_isolation_level_is_that_of_the_session(self, database: str, level: str) -> None:
        options = {} if level == "default" else {"isolation_level": level}
        with sessions(database, options) as (one, _):
            expected = run(one, "SELECT @@SESSION.tx_isolation").replace("-", " ").lower()
            assert ISOLATION_LEVEL.of(one) == expected, ISOLATION_LEVEL


@on_each_database
def test_database_cache_has_its_table(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache: Any = caches["database"]
    monkeypatch.setattr(type(router), "db_for_write", lambda *_, **__: database)
    cache.set("canary", 1)
    table = connections[router.db_for_write(cache.cache_model_class)].ops.quote_name(TABLE.of(cache))
    with connections[database].cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table} WHERE cache_key = %s", [cache.make_and_validate_key("canary")])
        assert cursor.fetchone()[0] == 1, TABLE
    cache.delete("canary")


def test_redis_cache_has_its_client(redis_url: str) -> None:
    cache: Any = caches["core"]
    cache.set("canary", 1)
    client, key = CACHE.of(cache).get_client("canary", write=True), cache.make_and_validate_key("canary")
    assert client.get(key) == b"1", CACHE
    cache.delete("canary")
    assert client.get(key) is None, CACHE


# Drivers and clients


def test_synchronous_work_of_coroutines_has_its_frame() -> None:
    from asgiref import current_thread_executor
    from asgiref.sync import async_to_sync, sync_to_async

    code = WORK_ITEM.of(current_thread_executor).run.__code__

    def is_in_stack() -> bool:
        frame: Any = sys._getframe()
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        return frame is not None

    async def work() -> bool:
        return await sync_to_async(is_in_stack, thread_sensitive=True)()

    assert async_to_sync(work)(), WORK_ITEM
    assert not is_in_stack(), WORK_ITEM


@on_postgres
class TestPsycopg:
    def test_cursor_factory_makes_every_cursor(self, database: str) -> None:
        connection = connections[database]
        connection.ensure_connection()
        driver: Any = connection.connection
        base, seen = CURSOR_FACTORY.of(driver), []

        class Cursor(base):  # type: ignore[misc]
            def execute(self, *args: Any, **options: Any) -> Any:
                seen.append(args[0])
                return super().execute(*args, **options)

        vars(driver)[CURSOR_FACTORY.name] = Cursor
        try:
            run(connection, "SELECT 1")
            driver.execute("SELECT 2")
            with driver.cursor() as cursor:
                cursor.execute("SELECT 3")
        finally:
            vars(driver)[CURSOR_FACTORY.name] = base
        assert seen == ["SELECT 1", "SELECT 2", "SELECT 3"], CURSOR_FACTORY

    def test_transaction_status_is_that_of_libpq(self, database: str) -> None:
        connection = connections[database]
        connection.ensure_connection()
        pgconn: Any = connection.connection.pgconn
        info: Any = connection.connection.info
        assert STATUS.of(pgconn) == guards._IDLE, STATUS
        with transaction.atomic(using=database):
            run(connection, "SELECT 1")
            assert STATUS.of(pgconn) not in (guards._IDLE, errors._IN_ERROR, postgres_plugin._ACTIVE), STATUS
            with pytest.raises(DatabaseError):
                run(connection, "SELECT nothing")
            assert STATUS.of(pgconn) == STATUS.of(info) == errors._IN_ERROR, STATUS
            transaction.set_rollback(True, using=database)
        assert STATUS.of(pgconn) == guards._IDLE, STATUS
        pgconn.send_query(b"SELECT 1")
        assert STATUS.of(pgconn) == postgres_plugin._ACTIVE, STATUS
        while pgconn.get_result() is not None:
            pass
        assert STATUS.of(pgconn) == guards._IDLE, STATUS


@on_mariadb
def test_server_status_of_pymysql(database: str) -> None:
    connection = connections[database]

    def in_transaction() -> bool:
        return bool(SERVER_STATUS.of(connection.connection) & guards._IN_TRANSACTION)

    write = "UPDATE lambda_tasks_taskrecord SET n_retries = n_retries + 1"
    run(connection, write)
    assert not in_transaction(), SERVER_STATUS
    with transaction.atomic(using=database):
        for sql in (write, "SELECT 1"):
            run(connection, sql)
            assert in_transaction(), SERVER_STATUS
    assert not in_transaction(), SERVER_STATUS
    with transaction.atomic(using=database):
        run(connection, write)
        connection.connection.query("COMMIT")
        assert not in_transaction(), SERVER_STATUS


@pytest.mark.parametrize(("name", "in_memory"), [(":memory:", True), ("file.sqlite3", False)])
def test_sqlite_wrapper_knows_a_database_in_memory(name: str, in_memory: bool) -> None:
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": name}
    assert IN_MEMORY.of(ConnectionHandler({"default": settings})["default"])() is in_memory, IN_MEMORY


def test_user_agent_is_sent_as_given(sqs: Sqs) -> None:
    import boto3
    from botocore.config import Config

    def sent_by(client: Any) -> str:
        sent: list[bytes | str] = []
        client.meta.events.register("before-send.sqs", lambda request, **_: sent.append(request.headers["User-Agent"]))
        client.list_queues()
        (agent,) = sent
        return agent.decode() if isinstance(agent, bytes) else agent

    with closing(boto3.client("sqs", endpoint_url=sqs.endpoint)) as model:
        composed = USER_AGENT.of(model.meta.config)
        parts = {part for part in composed.split() if not part.startswith("m/")}  # these name features of a request
        assert any(part.startswith("Boto3/") for part in parts), USER_AGENT
        assert parts <= set(sent_by(model).split()), USER_AGENT
    with closing(boto3.client("sqs", endpoint_url=sqs.endpoint, config=Config(user_agent=composed))) as client:
        # boto3 adds its name of botocore once more.
        assert sent_by(client).startswith(composed), USER_AGENT


def test_token_of_a_redis_lock_owns_it(redis_url: str) -> None:
    import redis

    with closing(redis.Redis.from_url(redis_url)) as client:
        options: dict[str, Any] = {"timeout": 30, "blocking_timeout": 0, "thread_local": False}
        held, again = (client.lock("canary of locks", **options) for _ in range(2))
        assert held.acquire(token="ours")
        try:
            assert TOKEN.of(held.local) == b"ours", TOKEN
            assert not again.acquire(token="ours")
            again.local.token = b"another"
            assert not again.owned(), TOKEN
            again.local.token = b"ours"
            assert again.owned(), TOKEN
            assert again.reacquire(), TOKEN
        finally:
            held.release()


# What servers say


@contextmanager
def sessions(database: str | dict[str, Any], options: dict[str, Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """Give two sessions of a database through Django, which are closed at the end."""
    settings = copy.deepcopy(connections[database].settings_dict if isinstance(database, str) else database)
    settings["OPTIONS"] = {**settings.get("OPTIONS", {}), **(options or {})}
    handler = ConnectionHandler({"default": settings, "other": settings})
    try:
        yield handler["default"], handler["other"]
    finally:
        drivers = [session.connection for session in handler.all(initialized_only=True)]
        handler.close_all()
        for driver in drivers:
            if isinstance(driver, sqlite3.Connection):
                driver.close()  # Django keeps databases in memory open


Provoke = Callable[[Any, Any], Any]


def provoked(provoke: Provoke, one: Any, other: Any) -> DatabaseError:
    with pytest.raises(DatabaseError) as caught:
        provoke(one, other)
    return caught.value


def meaning(error: DatabaseError) -> str:
    """Return the names of the functions that recognize `error`."""
    functions = (is_conflict, is_lock_timeout, is_infrastructure, is_read_only)
    return " ".join(function.__name__ for function in functions if function(error))


ERRORS: Final = "database/errors.py or database/infrastructure.py of lambda_tasks knows this error by another code"


def locked(connection: Any, *statements: str) -> None:
    run(connection, "BEGIN", *statements, "UPDATE canary SET n = n + 1 WHERE id = 1")


class Other(threading.Thread):
    """Executes a statement on a session of the driver, in another thread, and swallows its error."""

    def __init__(self, connection: Any, sql: str, *, after: float = 0.0) -> None:
        super().__init__(daemon=True)
        self._driver, self._sql, self._after = connection.connection, sql, after
        self.start()

    def run(self) -> None:
        time.sleep(self._after)
        with suppress(Exception), self._driver.cursor() as cursor:
            cursor.execute(self._sql)


def deadlock(one: Any, other: Any) -> None:
    """Let two transactions wait for each other; MariaDB gives up the smaller one, PostgreSQL the one that notices."""
    run(other, "BEGIN", "UPDATE canary SET n = n + 1 WHERE id > 1")
    if one.vendor == "postgresql":
        run(one, "SET deadlock_timeout = 50")
    locked(one)
    waiting = Other(other, "UPDATE canary SET n = n + 1 WHERE id = 1")
    try:
        time.sleep(0.2)
        run(one, "UPDATE canary SET n = n + 1 WHERE id = 2")
    finally:
        with suppress(DatabaseError):
            run(one, "ROLLBACK")
        waiting.join(PATIENCE)


def mariadb_lock_timeout(one: Any, other: Any) -> None:
    locked(other)
    run(one, "SET innodb_lock_wait_timeout = 0", "UPDATE canary SET n = 1 WHERE id = 1")


def mariadb_statement_time(one: Any, other: Any) -> None:
    locked(other)
    run(one, "SET STATEMENT max_statement_time = 0.1 FOR UPDATE canary SET n = 1 WHERE id = 1")


def mariadb_killed_query(one: Any, other: Any) -> None:
    locked(other)
    killer = Other(other, f"KILL QUERY {run(one, 'SELECT CONNECTION_ID()')}", after=0.3)
    try:
        run(one, "UPDATE canary SET n = 1 WHERE id = 1")
    finally:
        killer.join(PATIENCE)


def mariadb_full_table(one: Any, other: Any) -> None:
    run(one, "SET max_heap_table_size = 16384", "CREATE TEMPORARY TABLE heap (x CHAR(250)) ENGINE = MEMORY")
    for _ in range(1000):
        run(one, "INSERT INTO heap VALUES ('x')")


SNAPSHOT: Final = (
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT",
)


def mariadb_altered_table(one: Any, other: Any) -> None:
    run(one, *SNAPSHOT)
    run(other, "ALTER TABLE canary ADD COLUMN m INTEGER, ALGORITHM = COPY")
    run(one, "SELECT * FROM canary")


def mariadb_old_snapshot(one: Any, other: Any) -> None:
    run(one, "SET innodb_snapshot_isolation = ON", *SNAPSHOT)
    run(other, "UPDATE canary SET n = n + 1 WHERE id = 1")
    run(one, "UPDATE canary SET n = n + 1 WHERE id = 1")


def postgres_lock_timeout(one: Any, other: Any) -> None:
    locked(other)
    run(one, "SET lock_timeout = 50", "UPDATE canary SET n = 1 WHERE id = 1")


def postgres_nowait(one: Any, other: Any) -> None:
    locked(other)
    run(one, "SELECT * FROM canary WHERE id = 1 FOR UPDATE NOWAIT")


def postgres_statement_timeout(one: Any, other: Any) -> None:
    run(one, "SET statement_timeout = 50", "SELECT pg_sleep(5)")


def postgres_read_only(one: Any, other: Any) -> None:
    run(one, "SET default_transaction_read_only = on", "UPDATE canary SET n = 1")


def postgres_serialization(one: Any, other: Any) -> None:
    run(one, "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT * FROM canary")
    run(other, "UPDATE canary SET n = n + 1 WHERE id = 1")
    run(one, "UPDATE canary SET n = n + 1 WHERE id = 1")


def postgres_missing_file(one: Any, other: Any) -> None:
    run(one, "SELECT pg_read_file('missing file')")


def postgres_temporary_files(one: Any, other: Any) -> None:
    run(one, "SET work_mem = '64kB'", "SET temp_file_limit = '100kB'")
    run(one, "SELECT count(*) FROM (SELECT n FROM generate_series(1, 200000) AS n ORDER BY -n) AS sorted")


@pytest.fixture
def canary_table(database: str) -> Iterator[str]:
    """Make a table of a few rows that sessions can fight for."""
    with sessions(database) as (one, _):
        make_canary_table(one)
    yield database
    with sessions(database) as (one, _):
        run(one, "DROP TABLE canary")


def make_canary_table(connection: Any) -> None:
    kind = " ENGINE = InnoDB" if connection.vendor == "mysql" else ""
    run(connection, f"CREATE TABLE canary (id INTEGER PRIMARY KEY, n INTEGER){kind}")
    run(connection, f"INSERT INTO canary VALUES {', '.join(f'({number}, 0)' for number in range(1, 30))}")


@on_mariadb
class TestMariaDB:
    @pytest.mark.parametrize(
        ("provoke", "code", "known_by"),
        [
            (deadlock, 1213, "is_conflict"),
            (mariadb_old_snapshot, 1020, "is_conflict"),
            (mariadb_lock_timeout, 1205, "is_lock_timeout is_infrastructure"),
            (mariadb_statement_time, 1969, "is_infrastructure"),
            (mariadb_killed_query, 1317, "is_infrastructure"),
            (mariadb_full_table, 1114, "is_infrastructure"),
            (mariadb_altered_table, 1412, "is_infrastructure"),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_error_has_its_number(self, canary_table: str, provoke: Provoke, code: int, known_by: str) -> None:
        with sessions(canary_table) as (one, other):
            other.ensure_connection()
            error = provoked(provoke, one, other)
        assert (error.args[0], meaning(error)) == (code, known_by), f"{ERRORS}: {error}"


@on_postgres
class TestPostgreSQL:
    @pytest.mark.parametrize(
        ("provoke", "code", "known_by"),
        [
            (deadlock, "40P01", "is_conflict"),
            (postgres_serialization, "40001", "is_conflict"),
            (postgres_lock_timeout, "55P03", "is_lock_timeout is_infrastructure"),
            (postgres_nowait, "55P03", "is_lock_timeout is_infrastructure"),
            (postgres_statement_timeout, "57014", "is_infrastructure"),
            (postgres_read_only, "25006", "is_infrastructure is_read_only"),
            (postgres_missing_file, "58P01", "is_infrastructure"),
            (postgres_temporary_files, "53400", "is_infrastructure"),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_error_has_its_sqlstate(self, canary_table: str, provoke: Provoke, code: str, known_by: str) -> None:
        with sessions(canary_table) as (one, other):
            of_superuser = provoke in (deadlock, postgres_missing_file, postgres_temporary_files)
            if of_superuser and run(one, "SHOW is_superuser") != "on":
                pytest.skip("only a superuser may change the settings or read the file")
            other.ensure_connection()
            error = provoked(provoke, one, other)
        assert (errors.sqlstate(error), meaning(error)) == (code, known_by), f"{ERRORS}: {error}"


# A server whose global settings may be changed


@pytest.fixture(scope="module")
def own_mariadb(django_db_setup: None, django_db_blocker: Any) -> dict[str, Any]:
    """Start a MariaDB server for these tests alone, and return the settings of a user who is not its administrator."""
    if isinstance(SERVERS["MariaDB"], Missing):
        pytest.skip(str(SERVERS["MariaDB"]))
    started = next((start for binaries in services._mariadb_binaries() if (start := _started(binaries))), None)
    if started is None:
        pytest.skip("no programs of MariaDB that start a server of these tests' own")
    settings = services.django_database(started, name="mysql")
    with django_db_blocker.unblock(), sessions(settings) as (root, _):
        run(root, "CREATE DATABASE canary", "USE canary")
        make_canary_table(root)
        run(root, "CREATE USER plain IDENTIFIED BY 'secret'", "GRANT ALL ON canary.* TO plain")
        run(root, "GRANT RELOAD ON *.* TO plain")
    return {**settings, "root": settings, "USER": "plain", "PASSWORD": "secret", "NAME": "canary"}


def _started(binaries: services.Binaries) -> Server | None:
    with suppress(services.NotStarted, OSError):
        return Server("MariaDB", binaries.start(), "", "")
    return None


@contextmanager
def set_globally(own: dict[str, Any], variable: str, value: int) -> Iterator[None]:
    with sessions(own["root"]) as (root, _):
        before = run(root, f"SELECT @@GLOBAL.{variable}")
        run(root, f"SET GLOBAL {variable} = {value}")
        try:
            yield
        finally:
            run(root, f"SET GLOBAL {variable} = {before}")


@pytest.mark.django_db(transaction=True)
class TestOwnMariaDB:
    def test_server_that_is_read_only(self, own_mariadb: dict[str, Any]) -> None:
        with set_globally(own_mariadb, "read_only", 1), sessions(own_mariadb) as (one, other):
            error = provoked(lambda *_: run(one, "UPDATE canary SET n = 1"), one, other)
        assert (error.args[0], meaning(error)) == (1290, "is_infrastructure is_read_only"), f"{ERRORS}: {error}"

    def test_server_with_too_many_connections(self, own_mariadb: dict[str, Any]) -> None:
        def connect_often(one: Any, other: Any) -> None:
            handler = ConnectionHandler({"default": own_mariadb, **{str(n): own_mariadb for n in range(20)}})
            try:
                for alias in handler:
                    handler[alias].ensure_connection()
            finally:
                handler.close_all()

        with set_globally(own_mariadb, "max_connections", 10):
            error = provoked(connect_often, None, None)
        assert (error.args[0], meaning(error)) == (1040, "is_infrastructure"), f"{ERRORS}: {error}"

    def test_global_read_lock(self, own_mariadb: dict[str, Any]) -> None:
        with sessions(own_mariadb) as (one, other):
            locks = ["FLUSH TABLES WITH READ LOCK", "UPDATE canary SET n = 1"]
            error = provoked(lambda *_: run(one, *locks), one, other)
        assert (error.args[0], meaning(error)) == (1223, "is_infrastructure"), f"{ERRORS}: {error}"


# SQLite


def sqlite_locked_database(one: Any, other: Any) -> None:
    run(other, "BEGIN IMMEDIATE")
    run(one, "BEGIN IMMEDIATE")


def sqlite_locked_table(one: Any, other: Any) -> None:
    with one.cursor() as cursor:
        cursor.execute("SELECT id FROM canary")
        cursor.fetchone()
        run(one, "DROP TABLE canary")


def sqlite_locked_schema(one: Any, other: Any) -> None:
    run(other, "BEGIN", "CREATE TABLE another (id INTEGER)")
    run(one, "SELECT * FROM canary")


def sqlite_input_output(one: Any, other: Any) -> None:
    """Forbid this process to write files that are larger than one page."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        run(one, "INSERT INTO canary VALUES (100, 1)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sqlite_full(one: Any, other: Any) -> None:
    run(one, "PRAGMA max_page_count = 1", "CREATE TABLE large (x TEXT)")
    for _ in range(100):
        run(one, f"INSERT INTO large VALUES ('{'x' * 4096}')")


def sqlite_read_only(one: Any, other: Any) -> None:
    run(one, "PRAGMA query_only = ON", "UPDATE canary SET n = 1")


@pytest.mark.django_db(transaction=True)
class TestSQLite:
    @pytest.mark.parametrize(
        ("provoke", "text", "known_by"),
        [
            (sqlite_locked_database, "database is locked", "is_conflict is_infrastructure"),
            (sqlite_locked_table, "database table is locked", "is_infrastructure"),
            (sqlite_locked_schema, "database schema is locked: main", "is_infrastructure"),
            (sqlite_input_output, "disk I/O error", "is_infrastructure"),
            (sqlite_full, "database or disk is full", "is_infrastructure"),
            (sqlite_read_only, "attempt to write a readonly database", "is_infrastructure is_read_only"),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_error_has_its_text(self, tmp_path: Path, provoke: Provoke, text: str, known_by: str) -> None:
        shared = provoke is sqlite_locked_schema  # sessions lock the schema only in a cache that they share
        name = f"file:{tmp_path.name}?mode=memory&cache=shared" if shared else str(tmp_path / "canary.sqlite3")
        settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": {"timeout": 0, "uri": shared}}
        with sessions(settings) as (one, other):
            make_canary_table(one)
            error = provoked(provoke, one, other)
        assert (error.args[0], meaning(error)) == (text, known_by), f"{ERRORS}: {error}"

    def test_missing_directory(self, tmp_path: Path) -> None:
        settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "missing" / "canary.sqlite3")}
        with sessions(settings) as (one, other):
            error = provoked(lambda *_: run(one, "SELECT 1"), one, other)
        assert isinstance(error, OperationalError)
        assert (error.args[0], meaning(error)) == ("unable to open database file", "is_infrastructure"), ERRORS
