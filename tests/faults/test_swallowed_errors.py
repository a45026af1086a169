"""Test tasks that catch a database error and continue."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connections, transaction

from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import TransactionBroken
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases(transaction=True)]


def insert_the_same_row_again(alias: str, key: int) -> None:
    Effect(pk=key, name="twice").save(using=alias, force_insert=True)


def execute_invalid_sql(alias: str, key: int) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")


@lambda_task
def go_on_after_a_duplicate(*, alias: str) -> str:
    effect = Effect.objects.using(alias).create(name="rolled back")
    with suppress(IntegrityError):
        insert_the_same_row_again(alias, effect.pk)
    return "fine, as it seems"


@lambda_task
def go_on_after_a_broken_statement(*, alias: str) -> str:
    Effect.objects.using(alias).create(name="rolled back")
    with suppress(DatabaseError):
        execute_invalid_sql(alias, 0)
    return "fine, as it seems"


@lambda_task
def break_the_transaction_without_the_database(*, alias: str) -> None:
    with suppress(ValueError), transaction.atomic(using=alias, savepoint=False):
        raise ValueError


@lambda_task
def catch_it_around_a_savepoint(*, alias: str) -> str:
    effect = Effect.objects.using(alias).create(name="kept")
    for fail in (insert_the_same_row_again, execute_invalid_sql):
        with suppress(DatabaseError), transaction.atomic(using=alias):
            fail(alias, effect.pk)
    return "fine"


def deliver(task: Any, alias: str) -> TaskRecord:
    """Run `task` as a worker would, on the database of this alias, and return its record."""
    message_id = ids.new_message_id()
    message = Invocation(task_name=task.name, kwargs={"alias": alias})
    job = Job(message=message, message_id=message_id, root_id=message_id)
    assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
    return TaskRecord.objects.using(alias).get(pk=message_id)


@pytest.fixture
def alias(database: str, settings: Any) -> str:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    return database


def test_cause_is_never_an_earlier_tasks_error(alias: str) -> None:
    """Django keeps the last error on the connection, and it may quote arguments of the task that raised it."""
    first = deliver(go_on_after_a_duplicate, alias)
    assert "IntegrityError" in (first.traceback or "")
    second = deliver(break_the_transaction_without_the_database, alias)
    assert (second.status, "TransactionBroken" in (second.traceback or "")) == ("FAILED", True)
    assert "IntegrityError" not in (second.traceback or "")


def test_task_fails_and_its_error_shows_the_remedy(alias: str) -> None:
    record = deliver(go_on_after_a_duplicate, alias)
    assert (record.status, record.result) == ("FAILED", None)
    assert "TransactionBroken" in (record.traceback or "")
    assert "with transaction.atomic()" in (record.traceback or "")
    # The caught error is the cause, and shows the location.
    assert "IntegrityError" in (record.traceback or "")
    assert "insert_the_same_row_again" in (record.traceback or "")
    assert not Effect.objects.using(alias).exists()


@pytest.mark.databases("postgres", transaction=True)
def test_task_that_breaks_its_transaction_by_sql_fails(alias: str) -> None:
    record = deliver(go_on_after_a_broken_statement, alias)
    assert record.status == "FAILED"
    assert "TransactionBroken" in (record.traceback or "")
    assert not Effect.objects.using(alias).exists()


def test_store_without_records_sees_no_success(database: str, settings: Any) -> None:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.null.NullStore", "OPTIONS": {"database": database}}
    message = Invocation(task_name=go_on_after_a_duplicate.name, kwargs={"alias": database})
    outcome = execute(message, message_id=ids.new_message_id())
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, TransactionBroken)


def test_error_caught_around_a_savepoint_is_harmless(alias: str) -> None:
    record = deliver(catch_it_around_a_savepoint, alias)
    assert (record.status, record.result) == ("SUCCESS", "fine")
    assert list(Effect.objects.using(alias).values_list("name", flat=True)) == ["kept"]
