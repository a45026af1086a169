"""Test statements that the database refuses because of its own state: a lock, a full disk, a demoted server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, InternalError, OperationalError, connections

from lambda_tasks import failpoints
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.database.errors import LOCKED_PAUSE
from lambda_tasks.database.infrastructure import is_infrastructure, is_read_only
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire.ids import new_message_id, retry_id
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect

on_all = pytest.mark.databases("sqlite", "postgres", "mariadb", transaction=True)
on_postgres = pytest.mark.databases("postgres", transaction=True)
on_servers = pytest.mark.databases("postgres", "mariadb", transaction=True)

#: The names that tasks were called with, in order.
ran: list[str] = []
#: An additional action of a task, by its name, executed once.
meanwhile: dict[str, Callable[[], object]] = {}


class WatchedBackend(MemoryBackend):
    def __init__(self) -> None:
        super().__init__()
        self.postponed: list[float] = []

    def postpone(self, records: Any) -> None:
        self.postponed.extend(seconds for _, seconds in records)


def nothing() -> None: ...


@lambda_task
def leave(*, name: str) -> None:
    ran.append(name)
    effects().create(name=name)
    meanwhile.pop(name, nothing)()


@lambda_task(on_crash="fail")
def leave_but_once(*, name: str) -> None:
    leave(name=name)


@lambda_task
def leave_and_fail(*, name: str) -> None:
    leave(name=name)
    raise ValueError(name)


@lambda_task(on_crash="fail")
def leave_and_fail_but_once(*, name: str) -> None:
    leave_and_fail(name=name)


@lambda_task(retry_on=(ValueError,))
def leave_and_retry(*, name: str) -> None:
    leave_and_fail(name=name)


@lambda_task
def write_elsewhere_late(*, name: str) -> None:
    """Write after the test has made the database read-only."""
    ran.append(name)
    meanwhile.pop(name, nothing)()
    effects().create(name=name)


@pytest.fixture(autouse=True)
def _tasks_work_here(request: pytest.FixtureRequest, settings: Any) -> Iterator[None]:
    if "database" not in request.fixturenames:
        yield
        return
    database = request.getfixturevalue("database")
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.WatchedBackend"
    ran.clear()
    meanwhile.clear()
    yield
    connections[database].close()


def effects() -> Any:
    return Effect.objects.using(get_store().database)


def records() -> Any:
    return TaskRecord.objects.using(get_store().database)


def backend() -> WatchedBackend:
    chosen = get_backend()
    assert isinstance(chosen, WatchedBackend)
    return chosen


def state() -> tuple[list[str], str]:
    """Return the committed effects, and the status of the only record."""
    return sorted(effects().values_list("name", flat=True)), records().get().status


def message_of(task: Any, name: str = "a") -> dict[str, Any]:
    task.execute_on_commit(name=name)
    [job] = backend().take()
    return event_record(job)


def deliver(message: dict[str, Any], receives: int = 1) -> bool:
    """Deliver the message to the handler, and return whether it stays on the queue."""
    attributes = {**message["attributes"], "ApproximateReceiveCount": str(receives)}
    return bool(handler({"Records": [{**message, "attributes": attributes}]}, None)["batchItemFailures"])


def at(monkeypatch: pytest.MonkeyPatch, point: str, action: Callable[[], object]) -> None:
    """Execute `action` when the failpoint is reached for the first time."""
    left = [action]

    def reached(name: str) -> None:
        if name == point and left:
            left.pop()()

    monkeypatch.setattr(failpoints, "reached", reached)


def expire_leases() -> None:
    records().filter(status="RUNNING").update(lease_until=DatabaseNow())


@contextmanager
def another_connection() -> Iterator[Any]:
    with closing(connections.create_connection(get_store().database)) as another:
        yield another


#: The errors that servers raise, as Django shows them: the class, the driver's SQLSTATE or number, and the message.
REFUSALS = {
    "lock_timeout": ("55P03", OperationalError("canceling statement due to lock timeout")),
    "statement_timeout": ("57014", OperationalError("canceling statement due to statement timeout")),
    "disk full": ("53100", OperationalError("could not extend file")),
    "out of memory": ("53200", OperationalError("out of memory")),
    "too many connections": ("53300", OperationalError("sorry, too many clients already")),
    "configured limit": ("53400", OperationalError("temporary file size exceeds temp_file_limit")),
    "error while reading": ("58030", OperationalError("could not read block 0")),
    "demoted": ("25006", InternalError("cannot execute UPDATE in a read-only transaction")),
    "MariaDB's lock_wait_timeout": (None, OperationalError(1205, "Lock wait timeout exceeded")),
    "MariaDB is demoted": (None, OperationalError(1290, "running with the --read-only option")),
    "MariaDB's super_read_only": (None, OperationalError(1290, "running with the --super-read-only option")),
    "MySQL's read-only mode": (None, OperationalError(1836, "Running in read-only mode")),
    "MariaDB's disk is full": (None, OperationalError(1021, "Disk full")),
    "MariaDB's table is full": (None, OperationalError(1114, "The table is full")),
    "MariaDB's max_statement_time": (None, OperationalError(1969, "Query execution was interrupted")),
    "MySQL's max_execution_time": (None, OperationalError(3024, "Query execution was interrupted")),
    "SQLite's disk": (None, OperationalError("disk I/O error")),
    "SQLite's disk is full": (None, OperationalError("database or disk is full")),
    "SQLite's file is read-only": (None, OperationalError("attempt to write a readonly database")),
    "SQLite's table is locked": (None, OperationalError("database table is locked: lambda_tasks_taskrecord")),
}


class DriverError(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__()
        self.sqlstate = sqlstate


@pytest.fixture(params=REFUSALS)
def refusal(request: pytest.FixtureRequest) -> DatabaseError:
    sqlstate, error = REFUSALS[request.param]
    refused = type(error)(*error.args)
    refused.__cause__ = DriverError(sqlstate)
    return refused


def raising(error: BaseException) -> Callable[[], object]:
    def refuse() -> None:
        raise error

    return refuse


@pytest.mark.databases("sqlite", transaction=True)
class TestLibraryStatements:
    """A statement that is refused outside the task's function is not the task's fault."""

    @pytest.mark.parametrize("point", ["task:leave", "finish:before_commit"])
    def test_refused_end_gives_the_message_back(
        self, database: str, point: str, refusal: DatabaseError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = message_of(leave)
        at(monkeypatch, point, raising(refusal))
        assert deliver(message)
        assert (state(), records().get().claim) == (([], "RUNNING"), None)
        counted = point == "task:leave" and is_read_only(refusal)
        assert records().get().takeovers == int(counted)

        assert not deliver(message, receives=2)
        assert (ran, state()) == (["a", "a"], (["a"], "SUCCESS"))

    def test_refused_end_fails_an_unrepeatable_task(
        self, database: str, refusal: DatabaseError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at(monkeypatch, "task:leave", raising(refusal))
        assert not deliver(message_of(leave_but_once))
        assert (ran, state()) == (["a"], ([], "FAILED"))
        assert "crashed: the database refused" in records().get().traceback

    def test_refused_begin_lets_an_unrepeatable_task_run_later(
        self, database: str, refusal: DatabaseError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = message_of(leave_but_once)
        at(monkeypatch, "task:enter", raising(refusal))
        assert deliver(message)
        assert not deliver(message, receives=2)
        assert (ran, state()) == (["a"], (["a"], "SUCCESS"))

    def test_refused_cancel_check_lets_an_unrepeatable_retry_run(
        self, database: str, refusal: DatabaseError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A retry looks for a request to cancel after its claim, before it is called."""
        root = new_message_id()
        retry = Invocation(leave_but_once.name, {"name": "a"}, 1)
        message = event_record(Job(retry, retry_id(root, 1), root_id=root))
        with monkeypatch.context() as refused:
            refused.setattr(type(get_store()), "cancel_requested", lambda *_: raising(refusal)())
            assert deliver(message)
        assert (state(), records().get().claim, records().get().takeovers) == (([], "RUNNING"), None, 0)
        assert not deliver(message, receives=2)
        assert (ran, state()) == (["a"], (["a"], "SUCCESS"))

    def test_constraint_violation_at_commit_fails_the_task(
        self, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at(monkeypatch, "finish:before_commit", raising(IntegrityError("FOREIGN KEY constraint failed")))
        assert not deliver(message_of(leave))
        assert state() == ([], "FAILED")

    @pytest.mark.parametrize("task", [leave_and_fail, leave_and_retry])
    def test_refused_record_of_a_failure_keeps_the_message(
        self, database: str, task: Any, refusal: DatabaseError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = message_of(task)
        at(monkeypatch, "settle:before_write", nothing)
        refuse_writes_of_ends(monkeypatch, refusal)
        assert deliver(message)
        given_back = records().get().claim is None
        assert (state(), given_back) == (([], "RUNNING"), task is leave_and_fail)

    def test_refused_record_does_not_repeat_an_unrepeatable_task(
        self, database: str, refusal: DatabaseError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = message_of(leave_and_fail_but_once)
        with monkeypatch.context() as refused:
            refuse_writes_of_ends(refused, refusal)
            assert deliver(message)
        assert deliver(message, receives=2)
        expire_leases()
        assert not deliver(message, receives=3)
        assert (ran, state()) == (["a"], ([], "FAILED"))


def refuse_writes_of_ends(monkeypatch: pytest.MonkeyPatch, error: DatabaseError) -> None:
    monkeypatch.setattr(type(get_store()), "_end", lambda *_, **__: raising(error)())
    monkeypatch.setattr(type(get_store()), "_end_with_retry", lambda *_, **__: raising(error)())


@on_postgres
class TestLockedTable:
    """A migration holds the table of records for longer than lock_timeout."""

    @pytest.fixture
    def lock(self, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        connection = connections[database]
        connection.close()
        options = {**connection.settings_dict["OPTIONS"], "options": "-c lock_timeout=100ms"}
        monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
        with another_connection() as other:
            other.set_autocommit(False)

            def lock() -> None:
                with other.cursor() as cursor:
                    cursor.execute("LOCK TABLE lambda_tasks_taskrecord IN ACCESS EXCLUSIVE MODE")

            lock.free = other.rollback  # type: ignore[attr-defined]
            yield lock

    @pytest.mark.parametrize("task", [leave, leave_and_fail])
    def test_end_is_recorded_after_the_table_is_unlocked(self, lock: Any, task: Any) -> None:
        message = message_of(task)
        meanwhile["a"] = lock
        assert deliver(message)
        lock.free()
        assert records().get().status == "RUNNING"
        assert all(seconds >= LOCKED_PAUSE for seconds in backend().postponed)

        expire_leases()
        assert not deliver(message, receives=2)
        assert state() == ((["a"], "SUCCESS") if task is leave else ([], "FAILED"))

    def test_early_unlock_lets_the_next_delivery_run(self, lock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        message = message_of(leave)
        meanwhile["a"] = lock
        at(monkeypatch, "release:before", nothing)
        real = type(get_store()).has_succeeded

        def has_succeeded(*args: Any) -> bool:
            lock.free()
            return real(*args)

        monkeypatch.setattr(type(get_store()), "has_succeeded", has_succeeded)
        assert deliver(message)
        assert records().get().claim is None
        assert backend().postponed[0] >= LOCKED_PAUSE
        assert not deliver(message, receives=2)
        assert (ran, state(), records().get().takeovers) == (["a", "a"], (["a"], "SUCCESS"), 0)

    def test_lock_timeout_on_the_tasks_own_table_fails(self, database: str) -> None:
        meanwhile["a"] = raising(_error_of_server("55P03", OperationalError("canceling statement due to lock timeout")))
        assert not deliver(message_of(leave))
        assert state() == ([], "FAILED")

    def test_lock_timeout_after_a_takeover_is_redelivered(self, lock: Any, database: str) -> None:
        """The lock may be that of the previous worker, whose transaction is still open."""
        meanwhile["a"] = lambda: (lock(), records().count())
        message = message_of(leave)
        assert deliver(message)  # its failure cannot be recorded either
        lock.free()
        expire_leases()
        meanwhile["a"] = raising(_error_of_server("55P03", OperationalError("canceling statement due to lock timeout")))
        assert deliver(message, receives=2)
        expire_leases()
        assert not deliver(message, receives=3)
        assert state() == (["a"], "SUCCESS")


def _error_of_server(sqlstate: str, error: DatabaseError) -> DatabaseError:
    error.__cause__ = DriverError(sqlstate)
    return error


@on_postgres
class TestReadOnly:
    def test_task_on_a_demoted_server_runs_again(self, database: str) -> None:
        message = message_of(write_elsewhere_late)

        def demote() -> None:
            with connections[database].cursor() as cursor:
                cursor.execute("SET transaction_read_only = on")

        meanwhile["a"] = demote
        assert deliver(message)
        assert (ran, state()) == (["a"], ([], "RUNNING"))
        assert not deliver(message, receives=2)
        assert (ran, state()) == (["a", "a"], (["a"], "SUCCESS"))

    def test_claim_on_a_demoted_server_counts_as_outage(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        connection = connections[database]
        connection.close()
        options = {**connection.settings_dict["OPTIONS"], "options": "-c default_transaction_read_only=on"}
        message = message_of(leave)
        with monkeypatch.context() as demoted:
            demoted.setitem(connection.settings_dict, "OPTIONS", options)
            assert deliver(message)
        connection.close()
        assert len(backend().postponed) == 1
        assert not deliver(message, receives=2)


class TestIsInfrastructure:
    def test_refusals_are_recognized(self, refusal: DatabaseError) -> None:
        assert is_infrastructure(refusal)

    @pytest.mark.parametrize(
        "error",
        [
            OperationalError("no such table: app_effect"),
            OperationalError(1290, "running with the --secure-file-priv option"),
            OperationalError(1054, "Unknown column"),
            IntegrityError("database or disk is full"[:0]),
            InternalError("current transaction is aborted"),
            OperationalError(),
            ValueError("database is locked"),
        ],
    )
    def test_errors_of_statements_are_not_recognized(self, error: Exception) -> None:
        assert not is_infrastructure(error)
        assert not is_read_only(error)
