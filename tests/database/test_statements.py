"""Statements that are written once do what the ORM's own would do, on every database."""

from __future__ import annotations

import gc
import threading
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction
from django.db.models import DurationField, F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.database.slots import Slot
from lambda_tasks.database.statements import (
    Insertion,
    Statement,
    Statements,
    deletion,
    insertion,
    insertion_of_many,
    selection,
    update,
)
from lambda_tasks.models import OutboxMessage, TaskRecord, TaskStatus

FIELDS = {field.name: field for field in TaskRecord._meta.concrete_fields}

#: What the ORM and a statement are given alike, and what each column then has.
ROWS: list[dict[str, Any]] = [
    {"kwargs": {}, "result": None, "traceback": None},
    {
        "kwargs": {"a": [1, 2.5, None, True, {"b": "ü 😀"}]},
        "result": {"x": "100 %s %% %(y)s"},
        "traceback": "50 % of it",
    },
    {"kwargs": {"quote": 'O\'Brien \\ "x"'}, "result": "a text", "traceback": ""},
    {"kwargs": {"n": 2**53}, "result": [], "traceback": "x" * 100_000},
    {"kwargs": {}, "result": False, "traceback": "line\nline\ttab"},
    {"kwargs": {}, "result": 0, "traceback": None},
]
COLUMNS = ("id", "task_name", "kwargs", "status", "result", "traceback", "claim", "root_id", "n_retries")

on_each_database = pytest.mark.databases()


def slot(column: str) -> Slot:
    return Slot(column, FIELDS[column])


def insert_row(connection: Any) -> Statement:
    lease = DatabaseNow() + Slot("lease", DurationField())
    return insertion(TaskRecord(**{column: slot(column) for column in COLUMNS}, lease_until=lease), connection)


def row(**values: Any) -> dict[str, Any]:
    key = uuid.uuid4()
    return {
        "id": key,
        "task_name": "shop.tasks.send",
        "kwargs": {},
        "status": TaskStatus.RUNNING,
        "result": None,
        "traceback": None,
        "claim": uuid.uuid4(),
        "root_id": key,
        "n_retries": 0,
        "lease": timedelta(seconds=309.25),
        **values,
    }


def stored(database: str, key: Any) -> dict[str, Any]:
    return dict(TaskRecord.objects.using(database).values(*COLUMNS).get(pk=key))


@on_each_database
@pytest.mark.parametrize("values", ROWS)
def test_insert_stores_the_same_as_the_orm(database: str, values: dict[str, Any]) -> None:
    by_statement, by_orm = row(**values), row(**values)
    assert Statements().run(insert_row, by_statement, connections[database]) == 1
    orm = {name: value for name, value in by_orm.items() if name != "lease"}
    TaskRecord.objects.using(database).create(**orm)
    # The driver's own view of the columns: JSON must be written alike, not only read alike.
    columns = [FIELDS[name].column for name in COLUMNS if name not in ("id", "claim", "root_id")]
    with connections[database].cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM lambda_tasks_taskrecord")
        first, second = cursor.fetchall()
    assert first == second
    assert stored(database, by_statement["id"]) == {name: by_statement[name] for name in COLUMNS}


@on_each_database
@pytest.mark.parametrize("values", ROWS)
def test_update_stores_the_same_as_the_orm(database: str, values: dict[str, Any]) -> None:
    records = TaskRecord.objects.using(database)
    statements, one = Statements(), row()
    statements.run(insert_row, one, connections[database])

    def end(connection: Any) -> Statement:
        mine = records.filter(pk=slot("id"), claim=slot("claim"), status=TaskStatus.RUNNING)
        columns = {name: slot(name) for name in ("kwargs", "result", "traceback")}
        return update(mine, connection, status=TaskStatus.SUCCESS, n_retries=F("n_retries") + 1, **columns)

    other = {**one, **values, "claim": uuid.uuid4()}
    assert statements.run(end, other, connections[database]) == 0
    assert stored(database, one["id"])["status"] == TaskStatus.RUNNING
    mine = {**one, **values}
    assert statements.run(end, mine, connections[database]) == 1
    expected = {**mine, "status": TaskStatus.SUCCESS, "n_retries": 1}
    assert stored(database, one["id"]) == {name: expected[name] for name in COLUMNS}


@on_each_database
def test_ids_may_be_strings(database: str) -> None:
    values = row()
    texts = {**values, "id": str(values["id"]), "root_id": str(values["root_id"]), "claim": str(values["claim"])}
    Statements().run(insert_row, texts, connections[database])
    assert stored(database, values["id"])["claim"] == values["claim"]


@on_each_database
def test_times_are_computed_by_the_database(database: str) -> None:
    statements = Statements()
    for lease in (timedelta(seconds=309.25), timedelta(days=3), timedelta(seconds=-1)):
        values = row(lease=lease)
        statements.run(insert_row, values, connections[database])
        record = TaskRecord.objects.using(database).annotate(now=DatabaseNow()).get(pk=values["id"])
        assert record.lease_until is not None
        assert abs(record.lease_until - record.now - lease) < timedelta(minutes=1)


@on_each_database
def test_database_error_is_djangos_and_breaks_the_transaction(database: str) -> None:
    statements, values = Statements(), row()
    statements.run(insert_row, values, connections[database])
    with pytest.raises(IntegrityError), transaction.atomic(using=database):
        statements.run(insert_row, values, connections[database])
    with transaction.atomic(using=database):
        try:
            with transaction.atomic(using=database, savepoint=False):
                statements.run(insert_row, values, connections[database])
        except IntegrityError:
            # Caught without a savepoint: as after the ORM's, Django lets nothing more through.
            assert connections[database].needs_rollback
        transaction.set_rollback(True, using=database)


@on_each_database
def test_statement_is_compiled_once_per_connection(database: str) -> None:
    """It is executed by Django's cursor."""
    written, seen = [], []

    def writer(connection: Any) -> Statement:
        written.append(connection)
        return insert_row(connection)

    def look(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    statements = Statements()
    with CaptureQueriesContext(connections[database]) as queries, connections[database].execute_wrapper(look):
        for _ in range(3):
            statements.run(writer, row(), connections[database])
    assert written == [connections[database]]
    assert len(queries) == 3
    assert len(set(seen)) == 1
    assert seen[0].startswith("INSERT INTO")


@pytest.mark.django_db(databases=["sqlite"], transaction=True)
def test_each_thread_has_its_own_statements() -> None:
    """They are freed with its connection."""
    statements = Statements()
    written: list[Any] = []

    def writer(connection: Any) -> Statement:
        written.append(connection.alias)
        return Statement("SELECT 1", ())

    def use() -> None:
        statements.run(writer, {}, connections["sqlite"])
        connections["sqlite"].close()

    for _ in range(2):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert written == ["sqlite", "sqlite"]
    gc.collect()
    assert len(statements._written) == 0


def test_time_zone_change_recompiles_statements() -> None:
    connection = connections["sqlite"]
    statements = Statements()
    before = statements.of(insert_row, connection)
    assert statements.of(insert_row, connection) is before
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        there = statements.of(insert_row, connection)
        assert there is not before
        assert "+540 minutes" in there.sql
    assert statements.of(insert_row, connection) is before


# Many rows, selections and deletions


def insert_messages(connection: Any) -> Insertion:
    columns = {name: Slot(name, MESSAGE_FIELDS[name]) for name in ("id", "task_name", "queue", "body", "attributes")}
    due_at = DatabaseNow() + Slot("due_in", DurationField())
    message = OutboxMessage(**columns, created_at=DatabaseNow(), due_at=due_at)
    return insertion_of_many(message, connection, anew=("body",))


def message(number: int, **values: Any) -> dict[str, Any]:
    columns = {"id": str(uuid.UUID(int=number)), "task_name": "a.b", "queue": "q", "body": str(number)}
    return {**columns, "attributes": {"n": "100 %s"}, "due_in": timedelta(seconds=number), **values}


MESSAGE_FIELDS = {field.name: field for field in OutboxMessage._meta.concrete_fields}


@on_each_database
class TestManyRows:
    @pytest.fixture
    def messages(self, database: str) -> Any:
        return OutboxMessage.objects.using(database).order_by("id")

    def insert(self, database: str, rows: list[dict[str, Any]]) -> None:
        insert_messages(connections[database]).run(connections[database], rows)

    @pytest.mark.parametrize("count", [1, 2, 3, 60])
    def test_many_rows_are_one_insert(self, database: str, messages: Any, count: int) -> None:
        rows = [message(number, body=f"%s %% O'Brien \\ ü 😀 {number}") for number in range(count)]
        with CaptureQueriesContext(connections[database]) as queries:
            self.insert(database, rows)
        assert len(queries) == 1
        assert [(str(found.pk), found.body, found.attributes) for found in messages] == [
            (row["id"], row["body"], row["attributes"]) for row in rows
        ]
        assert [round((found.due_at - found.created_at).total_seconds()) for found in messages] == list(range(count))
        assert {(found.attempts, found.error, found.holder) for found in messages} == {(0, "", None)}

    def test_existing_row_gets_the_updated_columns(self, database: str, messages: Any) -> None:
        self.insert(database, [message(1, body="old", task_name="old"), message(2, body="other")])
        self.insert(database, [message(1, body="new", task_name="new"), message(3)])
        assert [(found.body, found.task_name) for found in messages] == [("new", "old"), ("other", "a.b"), ("3", "a.b")]

    def test_rows_are_selected_and_deleted_by_key(self, database: str, messages: Any) -> None:
        self.insert(database, [message(number) for number in range(5)])
        connection = connections[database]
        chosen = messages.filter(pk__in=[Slot(name, MESSAGE_FIELDS["id"]) for name in ("a", "b", "c")])
        keys = {name: str(uuid.UUID(int=number)) for name, number in (("a", 1), ("b", 3), ("c", 9))}
        rows = selection(chosen.values("body"), connection).rows(connection, keys)
        assert [tuple(row) for row in rows] == [("1",), ("3",)]
        assert deletion(chosen.order_by(), connection).run(connection, keys) == 2
        assert [found.body for found in messages] == ["0", "2", "4"]
