"""Test tasks that end their transaction with COMMIT, ROLLBACK, DDL, a script, the driver, or a deadlock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import psycopg.sql
import pytest
from django.db import Error, OperationalError, connections, transaction

from lambda_tasks.backends.memory import event_record
from lambda_tasks.database.guards import Guard, ending_in
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect

pytestmark = [pytest.mark.databases(transaction=True)]
on_postgres = pytest.mark.databases("postgres", transaction=True)
on_mariadb = pytest.mark.databases("mariadb", transaction=True)
on_servers = pytest.mark.databases("postgres", "mariadb", transaction=True)

#: The actions of the task between its two writes.
between: list[Callable[[], object]] = []
ran: list[str] = []


def alias() -> str:
    return os.environ["ENDED_DATABASE"]


def effects() -> Any:
    return Effect.objects.using(alias())


def names() -> list[str]:
    return sorted(effects().values_list("name", flat=True))


def execute(sql: str) -> None:
    with connections[alias()].cursor() as cursor:
        cursor.execute(sql)


def execute_by_driver(sql: str) -> None:
    connections[alias()].connection.cursor().execute(sql)


@lambda_task(retry_on=(Exception,), max_retries=5)
def write_twice(*, fail: bool = False) -> str:
    ran.append("write_twice")
    effects().create(name="first")
    between[0]()
    effects().create(name="second")
    if fail:
        raise ValueError("after the second")
    return "fine"


@lambda_task(retry_on=(Exception,), max_retries=5)
def only_between(*, fail: bool = False) -> str:
    between[0]()
    effects().create(name="second")
    if fail:
        raise ValueError("after the second")
    return "fine"


@lambda_task
def do_nothing_else() -> str:
    effects().create(name="first")
    between[0]()
    return "fine"


@pytest.fixture(autouse=True)
def _records(database: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    monkeypatch.setenv("ENDED_DATABASE", database)
    ran.clear()
    yield
    between.clear()


def deliver(action: Callable[[], object], task: Any = write_twice, **kwargs: Any) -> TaskRecord:
    between[:] = [action]
    message_id = ids.new_message_id()
    job = Job(Invocation(task_name=task.name, kwargs=kwargs), message_id, root_id=message_id)
    assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
    return TaskRecord.objects.using(alias()).get(pk=message_id)


def assert_refused(record: TaskRecord, words: str) -> None:
    assert f"must not execute {words}" in (record.traceback or "")
    assert record.status == "RETRYING"  # as the task requests for any error
    assert names() == []


class TestRefused:
    @pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK", " \n-- now\n/* and */ commit work;"])
    def test_raw_end_is_refused(self, database: str, sql: str) -> None:
        assert_refused(deliver(lambda: execute(sql)), "ROLLBACK" if "ROLL" in sql else "COMMIT")

    @on_servers
    @pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN"])
    def test_raw_end_by_a_driver_cursor_is_refused(self, database: str, sql: str) -> None:
        assert_refused(deliver(lambda: execute_by_driver(sql)), sql.split(maxsplit=1)[0])

    @on_servers
    @pytest.mark.parametrize("method", ["commit", "rollback"])
    def test_method_of_the_driver_is_refused(self, database: str, method: str) -> None:
        def call() -> None:
            getattr(connections[database].connection, method)()

        assert_refused(deliver(call), method.upper())

    @on_postgres
    def test_composed_query_of_psycopg_is_refused(self, database: str) -> None:
        query: Any = psycopg.sql.SQL("{}").format(psycopg.sql.SQL("COMMIT"))
        assert_refused(deliver(lambda: execute_by_driver(query)), "COMMIT")

    @on_postgres
    @pytest.mark.parametrize(
        "sql",
        [
            "COMMIT; BEGIN",
            "SELECT 1; ROLLBACK; BEGIN;",
            "SELECT ';'; /* ; */ END; BEGIN",
            "PREPARE TRANSACTION 'x'",
            "ABORT",
        ],
    )
    def test_script_is_refused(self, database: str, sql: str) -> None:
        assert "must not execute" in (deliver(lambda: execute(sql)).traceback or "")
        assert "must not execute" in (deliver(lambda: execute_by_driver(sql)).traceback or "")
        assert names() == []

    @on_mariadb
    @pytest.mark.parametrize(
        "sql",
        [
            "TRUNCATE TABLE app_effect",
            "CREATE TABLE IF NOT EXISTS ended (a INT)",
            "/*! DROP TABLE IF EXISTS ended */",
            "ALTER TABLE app_effect COMMENT 'x'",
            "BEGIN",
            "start  transaction",
            "SET autocommit = 1",
            "SET @a = 'b, c', LOCAL autocommit = 1",
            "SET @@local.autocommit = 1",
            "SET STATEMENT max_statement_time = 5 FOR TRUNCATE TABLE app_effect",
            "SET STATEMENT max_statement_time = 5 FOR COMMIT",
            "ANALYZE TABLE app_effect",
            "LOCK TABLES app_effect WRITE",
        ],
    )
    def test_implicit_commit_is_refused(self, database: str, sql: str) -> None:
        assert "must not execute" in (deliver(lambda: execute(sql)).traceback or "")
        assert "must not execute" in (deliver(lambda: execute_by_driver(sql)).traceback or "")
        assert names() == []

    def test_task_that_catches_the_refusal_succeeds(self, database: str) -> None:
        def commit() -> None:
            with suppress(Error):
                execute("COMMIT")

        assert deliver(commit).status == "SUCCESS"
        assert names() == ["first", "second"]


class TestNotRefused:
    def test_savepoints_are_allowed(self, database: str) -> None:
        def roll_back_to_savepoint() -> None:
            execute("SAVEPOINT here")
            effects().create(name="undone")
            execute("ROLLBACK TO SAVEPOINT here")
            with suppress(ValueError), transaction.atomic(using=database):
                effects().create(name="undone too")
                raise ValueError

        assert deliver(roll_back_to_savepoint).status == "SUCCESS"
        assert names() == ["first", "second"]

    @on_postgres
    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT '; COMMIT;'",
            "SELECT $$; COMMIT; $$; SELECT 1",
            "CREATE TEMPORARY TABLE ended (a int) ON COMMIT DROP",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE SQL BEGIN ATOMIC SELECT 1; SELECT 2; END",
            "TRUNCATE app_effect",
        ],
    )
    def test_harmless_statement_is_allowed_on_postgresql(self, database: str, sql: str) -> None:
        record = deliver(lambda: execute(sql))
        assert (record.status, record.traceback) == ("SUCCESS", None)

    @on_mariadb
    @pytest.mark.parametrize(
        "sql", ["CREATE TEMPORARY TABLE IF NOT EXISTS ended_t (a INT)", "DROP TEMPORARY TABLE IF EXISTS ended_t"]
    )
    def test_temporary_table_is_allowed_on_mariadb(self, database: str, sql: str) -> None:
        assert deliver(lambda: execute(sql)).status == "SUCCESS"
        assert names() == ["first", "second"]

    @on_mariadb
    def test_truncate_as_the_first_statement_is_allowed(self, database: str) -> None:
        effects().create(name="old")
        assert deliver(lambda: execute("TRUNCATE TABLE app_effect"), only_between).status == "SUCCESS"
        assert names() == ["second"]

    @on_postgres
    def test_block_of_psycopg_is_a_savepoint(self, database: str) -> None:
        def write_in_block() -> None:
            with connections[database].connection.transaction():
                effects().create(name="block")

        assert deliver(write_in_block, only_between, fail=True).status == "RETRYING"
        assert names() == []
        assert deliver(write_in_block, only_between).status == "SUCCESS"
        assert names() == ["block", "second"]

    def test_driver_is_restored(self, database: str) -> None:
        connection = connections[database]
        connection.ensure_connection()
        driver = connection.connection
        before = dict(getattr(driver, "__dict__", {}))
        wrappers = list(connection.execute_wrappers)
        with transaction.atomic(using=database), Guard(connection, "a task"), Guard(connection, "another"):
            execute("SELECT 1")
        after = dict(getattr(driver, "__dict__", {}))
        assert after.keys() == before.keys()
        for name in {"cursor_factory", "query", "commit"} & before.keys():
            assert after[name] is before[name]
        assert connection.execute_wrappers == wrappers


class TestNoticed:
    """If the end of a transaction cannot be refused, the task is FAILED and not rerun, and its record says so."""

    @pytest.mark.databases("sqlite", transaction=True)
    @pytest.mark.parametrize("fail", [False, True])
    @pytest.mark.parametrize("task", [write_twice, only_between])
    def test_executescript_fails_the_task(self, database: str, fail: bool, task: Any) -> None:
        def run_script() -> None:
            with connections[database].cursor() as cursor:
                cursor.executescript("UPDATE app_effect SET name = name;")

        record = deliver(run_script, task, fail=fail)
        assert record.status == "FAILED"
        assert "was ended by a statement that bypassed Django, such as executescript()" in (record.traceback or "")
        assert "is not run again" in (record.traceback or "")
        assert ("after the second" in (record.traceback or "")) is fail

    @pytest.mark.databases("sqlite", transaction=True)
    def test_commit_of_the_driver_fails_the_task(self, database: str) -> None:
        def commit() -> None:
            connections[database].connection.commit()

        record = deliver(commit)
        assert record.status == "FAILED"
        assert "may be committed" in (record.traceback or "")

    @on_mariadb
    @pytest.mark.parametrize("fail", [False, True])
    def test_procedure_that_commits_fails_the_task(self, database: str, fail: bool) -> None:
        execute("CREATE OR REPLACE PROCEDURE ended_commit() BEGIN COMMIT; END")
        record = deliver(lambda: execute("CALL ended_commit()"), fail=fail)
        assert record.status == "FAILED"
        assert "was ended by CALL ended_commit before the task finished" in (record.traceback or "")

    @on_mariadb
    def test_procedure_with_its_own_settings_is_noticed(self, database: str) -> None:
        execute("CREATE OR REPLACE PROCEDURE ended_commit() BEGIN COMMIT; END")
        record = deliver(lambda: execute("SET STATEMENT max_statement_time = 5 FOR CALL ended_commit()"))
        assert record.status == "FAILED"
        assert "was ended by SET STATEMENT before the task finished" in (record.traceback or "")

    @on_mariadb
    def test_procedure_without_a_commit_is_allowed(self, database: str) -> None:
        execute("CREATE OR REPLACE PROCEDURE ended_nothing() BEGIN SET @a = 1; END")
        assert deliver(lambda: execute("CALL ended_nothing()")).status == "SUCCESS"
        assert deliver(lambda: execute("CALL ended_nothing()"), only_between).status == "SUCCESS"
        assert names() == ["first", "second", "second"]

    @on_postgres
    def test_autocommit_of_the_driver_fails_the_task(self, database: str) -> None:
        def switch() -> None:
            connections[database].connection.autocommit = True

        record = deliver(switch, only_between)
        assert (record.status, "may be committed" in (record.traceback or "")) == ("FAILED", True)


@on_mariadb
class TestDeadlocks:
    @pytest.mark.parametrize("by", [execute, execute_by_driver])
    def test_swallowed_deadlock_runs_the_task_again(self, database: str, by: Callable[[str], None]) -> None:
        effects().bulk_create([Effect(pk=1001, name="row"), Effect(pk=1002, name="row")])
        first_held, second_held = threading.Event(), threading.Event()
        threads: list[threading.Thread] = []

        def other() -> None:
            try:
                with transaction.atomic(using=database), suppress(OperationalError):
                    # With more changes, so that InnoDB keeps this transaction.
                    effects().bulk_create([Effect(name="heavy") for _ in range(200)])
                    execute("SELECT * FROM app_effect WHERE id = 1002 FOR UPDATE")
                    second_held.set()
                    first_held.wait(9)
                    execute("SELECT * FROM app_effect WHERE id = 1001 FOR UPDATE")
                    transaction.set_rollback(True, using=database)
            finally:
                connections[database].close()

        def cross() -> None:
            if threads:
                return
            threads.append(threading.Thread(target=other))
            threads[0].start()
            assert second_held.wait(9)
            by("SELECT * FROM app_effect WHERE id = 1001 FOR UPDATE")
            first_held.set()
            with suppress(Exception):
                by("SELECT * FROM app_effect WHERE id = 1002 FOR UPDATE")

        record = deliver(cross)
        threads[0].join()
        assert (record.status, len(ran)) == ("SUCCESS", 2)
        assert names() == ["first", "row", "row", "second"]

    def test_lock_timeout_with_a_rollback_retries_the_task(
        self, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As with innodb_rollback_on_timeout, which cannot be set on a running server."""
        monkeypatch.setattr(Guard, "_rolls_back_on_timeout", lambda guard: True)
        assert self.wait_for_lock(database).status == "RETRYING"
        assert names() == ["row"]

    def test_swallowed_lock_timeout_without_a_rollback_is_allowed(self, database: str) -> None:
        assert self.wait_for_lock(database).status == "SUCCESS"
        assert names() == ["first", "row", "second"]

    def test_swallowed_lock_timeout_of_the_orm_shows_remedy(self, database: str) -> None:
        record = self.wait_for_lock(database, by_orm=True)
        assert "with transaction.atomic()" in (record.traceback or "")
        assert names() == ["row"]

    def wait_for_lock(self, database: str, *, by_orm: bool = False) -> TaskRecord:
        effects().create(pk=1001, name="row")
        other = connections[database].copy()

        def wait() -> None:
            with suppress(OperationalError):
                execute("SET innodb_lock_wait_timeout = 1")
                if by_orm:
                    Effect(pk=1001, name="changed").save(using=database, force_update=True)
                execute("SELECT * FROM app_effect WHERE id = 1001 FOR UPDATE")

        try:
            other.set_autocommit(False)
            with other.cursor() as cursor:
                cursor.execute("SELECT * FROM app_effect WHERE id = 1001 FOR UPDATE")
            return deliver(wait, do_nothing_else if by_orm else write_twice)
        finally:
            other.close()


@pytest.mark.parametrize(
    ("sql", "vendor", "words"),
    [
        (b"commit", "mysql", "COMMIT"),
        ("(((COMMIT", "postgresql", "COMMIT"),
        ("-- only a comment", "postgresql", None),
        ("ROLLBACK WORK TO here", "mysql", None),
        ("ROLLBACK TRANSACTION TO SAVEPOINT here", "postgresql", None),
        ("rollback transaction", "postgresql", "ROLLBACK"),
        ("BEGIN NOT ATOMIC SELECT 1; COMMIT; END", "mysql", "COMMIT"),
        ("CREATE OR REPLACE TEMPORARY TABLE t (a INT)", "mysql", None),
        ("CREATE OR REPLACE TABLE t (a INT)", "mysql", "CREATE"),
        ("/*M!100100 DROP TABLE t */", "mysql", "DROP"),
        ("ANALYZE SELECT 1", "mysql", None),
        ("SET @@session.autocommit=1", "mysql", "SET @@SESSION.AUTOCOMMIT"),
        ("SET `autocommit` = 1", "mysql", "SET `AUTOCOMMIT"),
        ("SET @a = 'secret', autocommit = 1", "mysql", "SET AUTOCOMMIT"),
        ("SET @a = ', autocommit = 1'", "mysql", None),
        ("SET GLOBAL autocommit = 1", "mysql", None),
        ("SET STATEMENT sql_mode = 'a FOR b' FOR DROP TABLE t", "mysql", "DROP"),
        ("SET STATEMENT max_statement_time = 1 FOR SELECT 1 FOR UPDATE", "mysql", None),
        ("SELECT 1; SET STATEMENT max_statement_time = 1 FOR COMMIT", "mysql", "COMMIT"),
        ("CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END", "sqlite", None),
        ("UPDATE a SET b = 'x; COMMIT'", "mysql", None),
        ("ENDLESS", "postgresql", None),
        (None, "postgresql", None),
    ],
)
def test_statements_that_end_a_transaction_are_recognized(
    database: str, sql: Any, vendor: str, words: str | None
) -> None:
    assert ending_in(sql, vendor) == words
