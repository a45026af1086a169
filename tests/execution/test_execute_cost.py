"""The cost of a task for its database: exactly these statements, in this order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.database.aside import AsideThread
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.exceptions import RetryLater
from lambda_tasks.execution.current import current_task
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend
from tests.app.models import Effect
from tests.calls import counted
from tests.courier import COURIER, OUTBOX, note

#: The most function calls of a plain task, a few more than it needs. Databases convert and guard in different ways.
MOST_CALLS = {"sqlite": 263, "postgresql": 249, "mysql": 248}
PLAIN = ["INSERT", "BEGIN", "UPDATE", "COMMIT"]
#: The requests to PostgreSQL: the UPDATE is a part of a query, and COMMIT is sent with it.
REQUESTS = ["INSERT", "BEGIN", "WITH"]


@lambda_task
def do_nothing() -> None: ...


@lambda_task
def leave_effect(*, name: str) -> int:
    Effect.objects.using(os.environ["COST_DATABASE"]).create(name=name)
    return 42


@lambda_task(atomic=False)
def commit_as_it_goes(*, name: str) -> None:
    Effect.objects.using(os.environ["COST_DATABASE"]).create(name=name)


@lambda_task(singleton=True)
def alone() -> None: ...


@lambda_task(ignore_errors=(KeyError,))
def ignore() -> None:
    raise KeyError("x")


@lambda_task(retry_on=(KeyError,))
def ask_for_retry() -> None:
    raise KeyError("x")


@lambda_task(retry=RetryPolicy(on=(KeyError,), max_age=60))
def ask_for_retry_by_policy() -> None:
    raise KeyError("x")


@lambda_task
def ask_for_later() -> None:
    raise RetryLater(delay=5, reason="not ready")


@lambda_task
def look_around() -> None:
    task = current_task()
    assert task is not None
    assert (task.attempt, task.is_last_attempt) == (1, True)


@lambda_task
def report_progress() -> None:
    task = current_task()
    assert task is not None
    for number in range(100):
        task.progress(number)


@lambda_task
def fail() -> None:
    raise ValueError("x")


@pytest.fixture
def records(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Return a factory of event records for tasks whose records are kept in `database`; the connection is open."""
    monkeypatch.setenv("COST_DATABASE", database)
    # As in a warm container.
    monkeypatch.setitem(connections[database].settings_dict, "CONN_MAX_AGE", 600)
    with override_settings(
        LAMBDA_TASKS_BACKEND="lambda_tasks.backends.memory.MemoryBackend",
        LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock",
        LAMBDA_TASKS_STORE={"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}},
    ):
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        vars(connections[database]).pop("commit", None)  # by a test with an outbox

        def make(task: LambdaTaskWrapper[..., Any], times: int = 1, **arguments: Any) -> list[dict[str, Any]]:
            for _ in range(times):
                task.execute_on_commit(**arguments)
            made: list[dict[str, Any]] = backend.take_records()
            return made

        # Exclude the statements that run once for a process or a connection.
        assert handler({"Records": make(do_nothing)}, None) == {"batchItemFailures": []}
        yield make
    connections[database].close()


def verbs(database: str, records: list[dict[str, Any]]) -> list[str]:
    """Run the batch and return the first word of each statement that Django has sent."""
    with CaptureQueriesContext(connections[database]) as queries:
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
    # MariaDB's driver does not report a statement that the server refused; here that is a second INSERT.
    sent = ["INSERT" if query["sql"] == "None" else query["sql"] for query in queries]
    return ["UPDATE" if sql.startswith("WITH ended AS (UPDATE ") else sql.split()[0] for sql in sent]


@pytest.mark.databases(transaction=True)
class TestStatements:
    def test_empty_task(self, database: str, records: Any) -> None:
        assert verbs(database, records(do_nothing, times=10)) == PLAIN * 10

    def test_statements_of_a_task_precede_the_update(self, database: str, records: Any) -> None:
        assert verbs(database, records(leave_effect, name="a")) == ["INSERT", "BEGIN", "INSERT", "UPDATE", "COMMIT"]

    def test_singleton_with_external_lock_adds_no_statements(self, database: str, records: Any) -> None:
        assert verbs(database, records(alone)) == PLAIN

    def test_current_task_adds_no_statements(self, database: str, records: Any) -> None:
        assert verbs(database, records(look_around)) == PLAIN

    def test_progress_adds_no_statements_to_the_connection(self, database: str, records: Any) -> None:
        assert verbs(database, records(report_progress)) == PLAIN

    def test_task_without_progress_reads_no_other_table(self, database: str, records: Any) -> None:
        batch = records(do_nothing)
        with CaptureQueriesContext(connections[database]) as queries:
            handler({"Records": batch}, None)
        assert [query["sql"] for query in queries if "progress" in query["sql"].lower()] == []

    @pytest.mark.parametrize("task", [ignore, fail], ids=lambda task: task.__name__)
    def test_task_that_raises(self, database: str, records: Any, task: Any) -> None:
        assert verbs(database, records(task)) == ["INSERT", "BEGIN", "ROLLBACK", "UPDATE"]

    @pytest.mark.parametrize(
        "task", [ask_for_retry, ask_for_retry_by_policy, ask_for_later], ids=lambda task: task.__name__
    )
    def test_retry_adds_the_query_for_cancelling(self, database: str, records: Any, task: Any) -> None:
        assert verbs(database, records(task)) == ["INSERT", "BEGIN", "ROLLBACK", "SELECT", "UPDATE"]

    def test_task_without_transaction(self, database: str, records: Any) -> None:
        assert verbs(database, records(commit_as_it_goes, name="a")) == ["INSERT", "INSERT", "UPDATE"]

    def test_copy_of_a_finished_task(self, database: str, records: Any) -> None:
        batch = records(do_nothing)
        verbs(database, batch)
        # The first receive of SQS's copy of the message, then another receive.
        assert verbs(database, batch) == ["INSERT", "SELECT"]
        batch[0]["attributes"]["ApproximateReceiveCount"] = "2"
        assert verbs(database, batch) == ["SELECT"]

    def test_redelivered_message_without_record_adds_one_query(self, database: str, records: Any) -> None:
        batch = records(do_nothing)
        batch[0]["attributes"]["ApproximateReceiveCount"] = "2"
        assert verbs(database, batch) == ["SELECT", *PLAIN]


@contextmanager
def wire(database: str, file: Path) -> Iterator[list[str]]:
    """Have libpq trace every message to the server; the list is filled on leaving."""
    pgconn = connections[database].connection.pgconn
    asked: list[str] = []
    with file.open("w") as output:
        pgconn.trace(output.fileno())
        try:
            yield asked
        finally:
            pgconn.untrace()
    for line in file.read_text().splitlines():
        # A line has the time, F for the frontend, the size, the type of the message and its content.
        if found := re.search(r'\tF\t\d+\t(Query|Parse|Execute|Bind)\b\t?\s*"?(\w*)', line):
            asked.append(found[2] if found[1] == "Query" else found[1])


@pytest.mark.databases("postgres", transaction=True)
class TestWire:
    """Count the messages that libpq sends, including those that Django does not log."""

    def test_postgresql_receives_three_requests_per_task(self, database: str, records: Any, tmp_path: Path) -> None:
        batch = records(do_nothing, times=10)
        with wire(database, tmp_path / "trace") as asked:
            handler({"Records": batch}, None)
        assert asked == REQUESTS * 10
        assert set(TaskRecord.objects.using(database).values_list("status", flat=True)) == {"SUCCESS"}

    def test_outbox_costs_no_request_without_messages(self, database: str, records: Any, tmp_path: Path) -> None:
        batch = records(do_nothing, times=3)
        outbox = {"BACKEND": OUTBOX, "OPTIONS": {"transport": COURIER, "databases": [database]}}
        with override_settings(LAMBDA_TASKS_BACKEND=outbox):
            with transaction.atomic(using=database):  # from now on, the connection's commit() writes the outbox
                note.using(database=database).execute_on_commit(number=1)
            with wire(database, tmp_path / "trace") as asked:
                handler({"Records": batch}, None)
        assert [request for request in asked if request != "SELECT"] == REQUESTS * 3

    def test_health_check_is_one_statement_per_batch(
        self, database: str, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connections[database].settings_dict, "CONN_HEALTH_CHECKS", True)
        connections[database].close()
        connections[database].connect()
        batch = records(do_nothing, times=3)
        with wire(database, tmp_path / "trace") as asked:
            handler({"Records": batch}, None)
        assert asked == ["SELECT", *REQUESTS * 3]

    def test_claim_without_durability_is_one_message(self, database: str, records: Any, tmp_path: Path) -> None:
        store = {
            "BACKEND": "lambda_tasks.stores.orm.ORMStore",
            "OPTIONS": {"database": database, "durable_claims": False},
        }
        batch = records(do_nothing, times=2)
        with override_settings(LAMBDA_TASKS_STORE=store), wire(database, tmp_path / "trace") as asked:
            handler({"Records": batch}, None)
        assert asked == ["SET", "BEGIN", "WITH"] * 2


@pytest.mark.databases(transaction=True)
class TestCalls:
    def test_plain_task_calls_few_functions(self, database: str, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Options that a task does not use must not cost it anything, and CPU time alone is too noisy to hold that.

        If a change needs more calls for each task, look first whether it can do its work once per process, per batch
        or per task definition, or only for the tasks that ask for it.
        """
        # Without those of other tests, each of which is looked at before a message.
        only = [connections[database]]
        monkeypatch.setattr(connections, "all", lambda **_: only)
        monkeypatch.setattr("lambda_tasks.handler.initialized_connections", lambda: only)
        for wrapped in ("commit", "run_and_clear_commit_hooks"):  # by a test that has enqueued tasks
            monkeypatch.delitem(vars(connections[database]), wrapped, raising=False)
        first, batch = records(do_nothing, times=10), records(do_nothing, times=10)
        assert handler({"Records": first}, None) == {"batchItemFailures": []}
        with counted() as calls:
            assert handler({"Records": batch}, None) == {"batchItemFailures": []}
        assert sum(calls.values()) / 10 <= MOST_CALLS[connections[database].vendor], calls.most_common()


@pytest.mark.databases(transaction=True)
class TestConnections:
    def test_batch_uses_one_connection(self, database: str, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without persistent connections it is closed afterwards."""
        connection, sessions = connections[database], []
        monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
        connection.close()
        batch = records(do_nothing, times=3)
        connection.close()

        def look(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
            sessions.append(connection.connection)
            return execute(sql, params, many, context)

        with connection.execute_wrapper(look):
            handler({"Records": batch}, None)
        assert len(sessions) >= 6
        assert len(set(map(id, sessions))) == 1
        assert connection.connection is None

    def test_only_reports_open_another_connection(
        self, database: str, records: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[AsideThread[Any]] = []
        start = AsideThread.start
        monkeypatch.setattr(AsideThread, "start", lambda thread: (started.append(thread), start(thread)))
        handler({"Records": records(do_nothing)}, None)
        assert started == []
        handler({"Records": records(report_progress)}, None)
        assert len(started) == (0 if database == "sqlite" else 1)  # a hundred reports in one second

    def test_persistent_connection_is_reused_by_the_next_batch(self, database: str, records: Any) -> None:
        connection = connections[database]
        before = connection.connection
        assert before is not None
        handler({"Records": records(do_nothing)}, None)
        assert connection.connection is before
