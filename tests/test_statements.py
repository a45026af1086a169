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

from lambda_tasks.models import DatabaseNow, TaskRecord, TaskStatus
from lambda_tasks.stores.statements import Slot, Statement, Statements, insertion, update
from lambda_tasks.strategies import get_store

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
def test_an_insert_stores_what_the_orm_stores(database: str, values: dict[str, Any]) -> None:
    by_statement, by_orm = row(**values), row(**values)
    assert Statements().run(insert_row, by_statement, using=database) == 1
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
def test_an_update_stores_what_the_orm_stores(database: str, values: dict[str, Any]) -> None:
    records = TaskRecord.objects.using(database)
    statements, one = Statements(), row()
    statements.run(insert_row, one, using=database)

    def end(connection: Any) -> Statement:
        mine = records.filter(pk=slot("id"), claim=slot("claim"), status=TaskStatus.RUNNING)
        columns = {name: slot(name) for name in ("kwargs", "result", "traceback")}
        return update(mine, connection, status=TaskStatus.SUCCESS, n_retries=F("n_retries") + 1, **columns)

    other = {**one, **values, "claim": uuid.uuid4()}
    assert statements.run(end, other, using=database) == 0
    assert stored(database, one["id"])["status"] == TaskStatus.RUNNING
    mine = {**one, **values}
    assert statements.run(end, mine, using=database) == 1
    expected = {**mine, "status": TaskStatus.SUCCESS, "n_retries": 1}
    assert stored(database, one["id"]) == {name: expected[name] for name in COLUMNS}


@on_each_database
def test_ids_may_be_texts_as_they_are_in_messages(database: str) -> None:
    values = row()
    texts = {**values, "id": str(values["id"]), "root_id": str(values["root_id"]), "claim": str(values["claim"])}
    Statements().run(insert_row, texts, using=database)
    assert stored(database, values["id"])["claim"] == values["claim"]


@on_each_database
def test_a_moment_is_computed_by_the_database_each_time(database: str) -> None:
    statements = Statements()
    for lease in (timedelta(seconds=309.25), timedelta(days=3), timedelta(seconds=-1)):
        values = row(lease=lease)
        statements.run(insert_row, values, using=database)
        record = TaskRecord.objects.using(database).annotate(now=DatabaseNow()).get(pk=values["id"])
        assert record.lease_until is not None
        assert abs(record.lease_until - record.now - lease) < timedelta(minutes=1)


@on_each_database
def test_what_the_database_refuses_is_djangos_error_and_ends_the_transaction(database: str) -> None:
    statements, values = Statements(), row()
    statements.run(insert_row, values, using=database)
    with pytest.raises(IntegrityError), transaction.atomic(using=database):
        statements.run(insert_row, values, using=database)
    with transaction.atomic(using=database):
        try:
            with transaction.atomic(using=database, savepoint=False):
                statements.run(insert_row, values, using=database)
        except IntegrityError:
            # Caught without a savepoint: as after the ORM's, Django lets nothing more through.
            assert connections[database].needs_rollback
        transaction.set_rollback(True, using=database)


@on_each_database
def test_it_is_written_once_for_a_connection_and_goes_through_djangos_cursor(database: str) -> None:
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
            statements.run(writer, row(), using=database)
    assert written == [connections[database]]
    assert len(queries) == 3
    assert len(set(seen)) == 1
    assert seen[0].startswith("INSERT INTO")


@pytest.mark.django_db(databases=["sqlite"], transaction=True)
def test_each_thread_has_statements_of_its_own_and_they_go_with_its_connection() -> None:
    statements = Statements()
    written: list[Any] = []

    def writer(connection: Any) -> Statement:
        written.append(connection.alias)
        return Statement("SELECT 1", ())

    def use() -> None:
        statements.run(writer, {}, using="sqlite")
        connections["sqlite"].close()

    for _ in range(2):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert written == ["sqlite", "sqlite"]
    gc.collect()
    assert len(statements._written) == 0


@pytest.mark.parametrize("setting", [{"USE_TZ": False}, {"TIME_ZONE": "Asia/Tokyo"}], ids=["USE_TZ", "TIME_ZONE"])
def test_a_store_writes_them_again_when_the_zone_of_its_connection_changes(setting: dict[str, Any]) -> None:
    before = get_store()
    with override_settings(**setting):
        assert get_store() is not before
