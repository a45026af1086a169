"""If Django compiled SQL in another way, the ORM would run the statements that the library writes itself.

The compiler's results are changed by fakes. A fake that stands for another text changes what is executed, too.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from django.db import DatabaseError, connections, transaction
from django.db.models import DurationField, F
from django.db.models.sql.compiler import SQLCompiler, SQLDeleteCompiler, SQLInsertCompiler, SQLUpdateCompiler

from lambda_tasks.backends.batches import _Deleting, _Locking, _numbered
from lambda_tasks.backends.memory import event_record
from lambda_tasks.backends.outbox import _inserting
from lambda_tasks.database import statements
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.database.statements import (
    Insertion,
    OrmCall,
    OrmInsertion,
    Slot,
    Statement,
    deletion,
    insertion,
    insertion_of_many,
    selection,
    update,
)
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.stores.rows import claiming, claiming_asynchronously, ending, ending_with_reason
from tests.courier import note, rows, use_outbox

FIELDS = {field.name: field for field in OutboxMessage._meta.concrete_fields}
COMPILERS = (SQLCompiler, SQLDeleteCompiler, SQLInsertCompiler, SQLUpdateCompiler)

Change = Callable[[Any], Any]

on_each_database = pytest.mark.databases()


@pytest.fixture(autouse=True)
def _unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "_warned", set())


def change_results(monkeypatch: pytest.MonkeyPatch, change: Change, *, executed: bool) -> None:
    """Change what `as_sql()` of Django's compilers returns, to Django itself only if `executed`."""
    for compiler in COMPILERS:
        if "as_sql" not in vars(compiler):
            continue
        _change_results_of(compiler, monkeypatch, change, executed)


def _change_results_of(compiler: Any, monkeypatch: pytest.MonkeyPatch, change: Change, executed: bool) -> None:
    as_sql, execute_sql, executing = compiler.as_sql, compiler.execute_sql, []

    def changed(self: Any, *args: Any, **options: Any) -> Any:
        compiled = as_sql(self, *args, **options)
        return compiled if executing and not executed else change(compiled)

    def execute(self: Any, *args: Any, **options: Any) -> Any:
        executing.append(True)
        try:
            return execute_sql(self, *args, **options)
        finally:
            executing.pop()

    monkeypatch.setattr(compiler, "as_sql", changed)
    monkeypatch.setattr(compiler, "execute_sql", execute)


def each(change: Callable[[str, Any], Any]) -> Change:
    """Return a change of results from a change of one statement."""
    return lambda compiled: [change(*each) for each in compiled] if isinstance(compiled, list) else change(*compiled)


def another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = each(lambda sql, params: (sql.replace("VALUES (", "VALUES\n(").replace("FROM ", "FROM\n"), params))
    change_results(monkeypatch, text, executed=True)


def another_separator(monkeypatch: pytest.MonkeyPatch) -> None:
    text = each(lambda sql, params: (sql.replace("), (", "),\n("), params))
    change_results(monkeypatch, text, executed=True)


def several_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    several: Change = lambda compiled: compiled * 2 if isinstance(compiled, list) else [compiled, compiled]  # noqa: E731
    change_results(monkeypatch, several, executed=False)


def no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    change_results(monkeypatch, lambda compiled: None, executed=False)


def parameters_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have INSERT take the parameters of all rows by column, as PostgreSQL's UNNEST does."""

    def by_column(compiled: Any) -> Any:
        if not isinstance(compiled, list):
            return compiled
        ((sql, params),) = compiled
        first, second = params[: len(params) // 2], params[len(params) // 2 :]
        return [(sql, tuple(chain(*zip(first, second, strict=True))))] if first == second else compiled

    change_results(monkeypatch, by_column, executed=False)


def parameters_that_wrap_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = each(lambda sql, params: (sql, tuple([param] if isinstance(param, Slot) else param for param in params)))
    change_results(monkeypatch, wrapped, executed=False)


def values_without_their_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Django read the value of a `Value`, and not call its `as_sql()`."""

    def as_sql(self: Slot, compiler: Any, connection: Any) -> Any:
        return "%s", [self.output_field.get_db_prep_save(self.value, connection=connection)]

    monkeypatch.setattr(Slot, "as_sql", as_sql)


for_all = [several_statements, no_list, parameters_that_wrap_slots, values_without_their_expression]
for_rows = [*for_all, another_text, another_separator, parameters_by_column]

in_each_way = pytest.mark.parametrize("change", for_all)
in_each_way_for_rows = pytest.mark.parametrize("change", for_rows)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lambda_tasks.database"]


def key(number: int) -> str:
    return str(uuid.UUID(int=number))


def message(number: int, **values: Any) -> dict[str, Any]:
    columns = {"id": key(number), "task_name": "a.b", "queue": "q", "body": str(number)}
    return {**columns, "attributes": {"n": "100 %s"}, "due_in": timedelta(seconds=number), **values}


def one_message(connection: Any) -> OutboxMessage:
    columns = {name: Slot(name, FIELDS[name]) for name in ("id", "task_name", "queue", "body", "attributes")}
    return OutboxMessage(**columns, created_at=DatabaseNow(), due_at=DatabaseNow() + Slot("due_in", DurationField()))


def insert_many(connection: Any) -> Insertion | OrmInsertion:
    return insertion_of_many(one_message(connection), connection, anew=("body",))


def fill(database: str, count: int) -> None:
    """Put messages into the table that are due."""
    table = OutboxMessage.objects.using(database)
    times = {"created_at": DatabaseNow(), "due_at": DatabaseNow()}
    table.bulk_create(
        OutboxMessage(pk=key(n), task_name="a.b", queue="q", body=str(n), attributes={}, **times) for n in range(count)
    )


@on_each_database
def test_own_statements_are_not_fallbacks(database: str, caplog: pytest.LogCaptureFixture) -> None:
    connection = connections[database]
    with transaction.atomic(using=database):
        written = [
            write(connection)
            for write in (
                claiming,
                claiming_asynchronously,
                ending,
                ending_with_reason,
                _inserting,
                _Locking(3),
                _Deleting(3),
            )
        ]
    assert {type(each) for each in written} == {Statement, Insertion}
    assert warnings_in(caplog) == []


@on_each_database
@in_each_way_for_rows
class TestManyRows:
    @pytest.fixture(autouse=True)
    def _changed(self, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
        change(monkeypatch)

    def test_rows_are_stored(self, database: str, caplog: pytest.LogCaptureFixture) -> None:
        connection = connections[database]
        messages = [message(n, body=f"%s %% O'Brien \\ ü 😀 {n}") for n in range(5)]
        for some in (messages[:1], messages[1:3], messages[3:]):
            inserting = insert_many(connection)
            assert isinstance(inserting, OrmInsertion)
            assert inserting.run(connection, some) == len(some)
        found = list(OutboxMessage.objects.using(database).order_by("id"))
        assert [(str(each.pk), each.body, each.attributes) for each in found] == [
            (row["id"], row["body"], row["attributes"]) for row in messages
        ]
        assert [round((each.due_at - each.created_at).total_seconds()) for each in found] == [0, 1, 2, 3, 4]
        assert {(each.attempts, each.error, each.holder, each.run_at) for each in found} == {(0, "", None, None)}
        (warning,) = warnings_in(caplog)
        assert warning.startswith("Django compiles the INSERT of many rows of lambda_tasks.OutboxMessage in an")

    def test_existing_row_is_updated(self, database: str) -> None:
        connection = connections[database]
        insert_many(connection).run(connection, [message(1, body="old", task_name="old"), message(2, body="other")])
        insert_many(connection).run(connection, [message(1, body="new", task_name="new"), message(3)])
        found = OutboxMessage.objects.using(database).order_by("id")
        assert [(each.body, each.task_name) for each in found] == [("new", "old"), ("other", "a.b"), ("3", "a.b")]


KEYS = {"a": key(1), "b": key(3), "c": key(9)}


@on_each_database
@in_each_way
class TestOneStatement:
    @pytest.fixture(autouse=True)
    def _changed(self, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, database: str) -> None:
        fill(database, 5)
        change(monkeypatch)

    @pytest.fixture
    def chosen(self, database: str) -> Any:
        return OutboxMessage.objects.using(database).filter(pk__in=[Slot(name, FIELDS["id"]) for name in "abc"])

    def left(self, database: str) -> list[str]:
        return [each.body for each in OutboxMessage.objects.using(database).order_by("id")]

    def test_insertion_stores_its_row(self, database: str, caplog: pytest.LogCaptureFixture) -> None:
        connection = connections[database]
        for number in (7, 8):
            inserting = insertion(one_message(connection), connection)
            assert isinstance(inserting, OrmCall)
            assert inserting.run(connection, message(number)) == 1
        assert self.left(database) == ["0", "1", "2", "3", "4", "7", "8"]
        assert len(warnings_in(caplog)) == 1

    def test_update_changes_its_rows(self, database: str, chosen: Any, caplog: pytest.LogCaptureFixture) -> None:
        connection = connections[database]
        for text in ("x", "y"):
            updating = update(chosen, connection, body=Slot("body", FIELDS["body"]), attempts=F("attempts") + 1)
            assert isinstance(updating, OrmCall)
            assert updating.run(connection, {**KEYS, "body": text}) == 2
        assert self.left(database) == ["0", "y", "2", "y", "4"]
        assert len(warnings_in(caplog)) == 1

    def test_selection_returns_its_rows(self, database: str, chosen: Any, caplog: pytest.LogCaptureFixture) -> None:
        connection = connections[database]
        selecting = selection(chosen.order_by("id").values("body", "attempts"), connection)
        assert isinstance(selecting, OrmCall)
        assert selecting.rows(connection, KEYS) == [("1", 0), ("3", 0)]
        assert selecting.rows(connection, {**KEYS, "c": key(4)}) == [("1", 0), ("3", 0), ("4", 0)]
        assert len(warnings_in(caplog)) == 1

    def test_deletion_deletes_its_rows(self, database: str, chosen: Any, caplog: pytest.LogCaptureFixture) -> None:
        connection = connections[database]
        deleting = deletion(chosen, connection)
        assert isinstance(deleting, OrmCall)
        assert deleting.run(connection, KEYS) == 2
        assert self.left(database) == ["0", "2", "4"]
        assert len(warnings_in(caplog)) == 1


@on_each_database
def test_warning_names_sql_and_hides_values(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_text(monkeypatch)
    connection = connections[database]
    record = one_message(connection)
    record.error = "a value"
    insertion_of_many(record, connection)
    (warning,) = warnings_in(caplog)
    assert "INSERT INTO" in warning
    assert "VALUES" in warning
    assert "\n" not in warning
    assert "a value" not in warning
    assert caplog.records[0].levelno == logging.WARNING


class TestLocking:
    """Locking messages, whose SELECT gets a hint on MariaDB."""

    @on_each_database
    def test_hint_is_left_out(
        self, database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(database, 3)
        another_text(monkeypatch)
        connection = connections[database]
        for count in (2, 3):
            with transaction.atomic(using=database):
                locking = _Locking(count)(connection)
                assert isinstance(locking, Statement)
                assert "FORCE" not in locking.sql
                found = locking.rows(connection, _numbered([key(n) for n in range(1, 1 + count)]))
            assert {str(uuid.UUID(str(pk))) for (pk,) in found} == {key(n) for n in range(1, min(3, 1 + count))}
        expected = ["Django compiles the SELECT that locks messages in an unexpected way"]
        assert [each.split(",")[0] for each in warnings_in(caplog)] == (expected if database == "mariadb" else [])

    @pytest.mark.databases("postgres", "mariadb", transaction=True)
    @pytest.mark.parametrize("change", [*for_all, another_text])
    def test_locked_rows_are_skipped(
        self, database: str, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(database, 4)
        change(monkeypatch)
        keys = [key(n) for n in range(4)]
        held, over = threading.Event(), threading.Event()

        def lock(some: list[str]) -> set[str]:
            locking = _Locking(len(some))(connections[database])
            return {str(uuid.UUID(str(pk))) for (pk,) in locking.rows(connections[database], _numbered(some))}

        def hold_one() -> None:
            with transaction.atomic(using=database):
                lock(keys[:1])
                held.set()
                over.wait(30)
            connections[database].close()

        other = threading.Thread(target=hold_one)
        other.start()
        try:
            assert held.wait(30)
            with transaction.atomic(using=database):
                assert lock(keys) == set(keys[1:])
        finally:
            over.set()
            other.join()


@pytest.mark.databases(transaction=True)
@pytest.mark.parametrize("change", for_rows)
class TestOutbox:
    """The outbox of callers, which is written in their COMMIT."""

    def test_messages_leave_with_the_commit(
        self, database: str, settings: Any, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        courier = use_outbox(settings, database)
        change(monkeypatch)
        with transaction.atomic(using=database):
            for number in range(3):
                note.using(database=database).execute_on_commit(number=number)
        assert courier.sent == [0, 1, 2]
        assert rows(database) == []

    def test_rollback_leaves_nothing(
        self, database: str, settings: Any, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        courier = use_outbox(settings, database)
        change(monkeypatch)
        with pytest.raises(RuntimeError, match="stop"), transaction.atomic(using=database):
            note.using(database=database).execute_on_commit(number=1)
            raise RuntimeError("stop")
        assert (courier.sent, rows(database)) == ([], [])

    def test_refused_insert_rolls_everything_back(
        self, database: str, settings: Any, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        courier = use_outbox(settings, database)
        change(monkeypatch)

        def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if "lambda_tasks_outboxmessage" in sql and sql.startswith("INSERT"):
                sql = sql.replace("lambda_tasks_outboxmessage", "missing_table")
            return execute(sql, params, many, context)

        connection = connections[database]
        with (
            pytest.raises(DatabaseError, match="missing_table"),
            connection.execute_wrapper(refuse),
            transaction.atomic(using=database),
        ):
            TaskRecord.objects.using(database).create(pk=key(1), task_name="a.b", kwargs={}, status="RUNNING")
            note.using(database=database).execute_on_commit(number=1)
        assert not connection.in_atomic_block
        assert connection.get_autocommit()
        assert TaskRecord.objects.using(database).count() == 0
        assert (courier.sent, rows(database)) == ([], [])


@lambda_task
def double(*, number: int) -> int:
    return 2 * number


@pytest.mark.databases(transaction=True)
@pytest.mark.parametrize("change", for_all)
class TestTasks:
    """The claim and the end of a task."""

    def test_task_runs_and_is_recorded(
        self, database: str, settings: Any, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Without durable claims, PostgreSQL's COMMIT does not wait for the disk.
        options = {"database": database, "durable_claims": False}
        settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": options}
        change(monkeypatch)
        job = Job.of_call(double._call((), {"number": 21}), queue="default", delay=0, task=double, database=database)
        event = {"Records": [event_record(job)] * 2}
        assert handler(event, None) == {"batchItemFailures": []}
        record = TaskRecord.objects.using(database).get(pk=job.message_id)
        assert (record.status, record.result, record.kwargs) == ("SUCCESS", 42, {"number": 21})
        assert record.lease_until is not None
        assert record.start_time is not None
        assert record.lease_until > record.start_time
