"""What a task costs its database: which statements, in which order, and not one more."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend
from tests.app.models import Effect

PLAIN = ["INSERT", "BEGIN", "UPDATE", "COMMIT"]


@lambda_task
def do_nothing() -> None: ...


@lambda_task
def leave_effect(*, name: str) -> int:
    Effect.objects.using(os.environ["COST_DATABASE"]).create(name=name)
    return 42


@lambda_task(singleton=True)
def alone() -> None: ...


@lambda_task(ignore_errors=(KeyError,))
def ignore() -> None:
    raise KeyError("x")


@lambda_task(retry_on=(KeyError,))
def ask_for_retry() -> None:
    raise KeyError("x")


@lambda_task
def fail() -> None:
    raise ValueError("x")


@pytest.fixture
def records(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Makes records of an event, of tasks whose records are kept in `database`; the connection is open."""
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

        def make(task: LambdaTaskWrapper[..., Any], times: int = 1, **arguments: Any) -> list[dict[str, Any]]:
            for _ in range(times):
                task.execute_on_commit(**arguments)
            made: list[dict[str, Any]] = backend.take_records()
            return made

        # What is done once in a process, or once for a connection, is not what a task costs.
        assert handler({"Records": make(do_nothing)}, None) == {"batchItemFailures": []}
        yield make
    connections[database].close()


def verbs(database: str, records: list[dict[str, Any]]) -> list[str]:
    """Run the batch and return the first word of each statement, as Django has sent them."""
    with CaptureQueriesContext(connections[database]) as queries:
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
    # Of a statement that MariaDB has refused its driver does not tell the text; here that is a second INSERT.
    return ["INSERT" if query["sql"] == "None" else query["sql"].split()[0] for query in queries]


@pytest.mark.databases(transaction=True)
class TestStatements:
    def test_a_task_that_does_nothing(self, database: str, records: Any) -> None:
        assert verbs(database, records(do_nothing, times=10)) == PLAIN * 10

    def test_what_a_task_does_itself_stands_between_begin_and_the_update(self, database: str, records: Any) -> None:
        assert verbs(database, records(leave_effect, name="a")) == ["INSERT", "BEGIN", "INSERT", "UPDATE", "COMMIT"]

    def test_a_singleton_costs_the_database_nothing_more_where_its_lock_is_elsewhere(
        self, database: str, records: Any
    ) -> None:
        assert verbs(database, records(alone)) == PLAIN

    @pytest.mark.parametrize("task", [ignore, ask_for_retry, fail], ids=lambda task: task.__name__)
    def test_a_task_that_raises(self, database: str, records: Any, task: Any) -> None:
        assert verbs(database, records(task)) == ["INSERT", "BEGIN", "ROLLBACK", "UPDATE"]

    def test_a_copy_of_what_has_ended(self, database: str, records: Any) -> None:
        batch = records(do_nothing)
        verbs(database, batch)
        # Received for the first time, as a copy that SQS made of it; then as one that comes again.
        assert verbs(database, batch) == ["INSERT", "SELECT"]
        batch[0]["attributes"]["ApproximateReceiveCount"] = "2"
        assert verbs(database, batch) == ["SELECT"]

    def test_a_message_that_comes_again_without_a_record_is_looked_for_once(self, database: str, records: Any) -> None:
        batch = records(do_nothing)
        batch[0]["attributes"]["ApproximateReceiveCount"] = "2"
        assert verbs(database, batch) == ["SELECT", *PLAIN]


@contextmanager
def wire(database: str, file: Path) -> Iterator[list[str]]:
    """Have libpq itself note every message to the server; the list is filled on leaving."""
    pgconn = connections[database].connection.pgconn
    asked: list[str] = []
    with file.open("w") as output:
        pgconn.trace(output.fileno())
        try:
            yield asked
        finally:
            pgconn.untrace()
    for line in file.read_text().splitlines():
        # A line: the time, F for the frontend, the size, the kind of the message and its text.
        if found := re.search(r'\tF\t\d+\t(Query|Parse|Execute|Bind)\b\t?\s*"?(\w*)', line):
            asked.append(found[2] if found[1] == "Query" else found[1])


@pytest.mark.databases("postgres", transaction=True)
class TestWire:
    """Whatever Django's log of queries leaves out: what libpq sent."""

    def test_postgresql_hears_four_statements_for_each_task(self, database: str, records: Any, tmp_path: Path) -> None:
        batch = records(do_nothing, times=10)
        with wire(database, tmp_path / "trace") as asked:
            handler({"Records": batch}, None)
        assert asked == PLAIN * 10
        assert set(TaskRecord.objects.using(database).values_list("status", flat=True)) == {"SUCCESS"}

    def test_a_health_check_is_one_statement_for_a_batch(
        self, database: str, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connections[database].settings_dict, "CONN_HEALTH_CHECKS", True)
        connections[database].close()
        connections[database].connect()
        batch = records(do_nothing, times=3)
        with wire(database, tmp_path / "trace") as asked:
            handler({"Records": batch}, None)
        assert asked == ["SELECT", *PLAIN * 3]

    def test_a_claim_that_does_not_wait_for_the_disk_is_one_message_too(
        self, database: str, records: Any, tmp_path: Path
    ) -> None:
        store = {
            "BACKEND": "lambda_tasks.stores.orm.ORMStore",
            "OPTIONS": {"database": database, "durable_claims": False},
        }
        batch = records(do_nothing, times=2)
        with override_settings(LAMBDA_TASKS_STORE=store), wire(database, tmp_path / "trace") as asked:
            handler({"Records": batch}, None)
        assert asked == ["SET", "BEGIN", "UPDATE", "COMMIT"] * 2


@pytest.mark.databases(transaction=True)
class TestConnections:
    def test_a_batch_has_one_connection_and_keeps_none_that_is_not_to_be_kept(
        self, database: str, records: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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

    def test_one_that_is_to_be_kept_is_there_for_the_next_batch(self, database: str, records: Any) -> None:
        connection = connections[database]
        before = connection.connection
        assert before is not None
        handler({"Records": records(do_nothing)}, None)
        assert connection.connection is before
