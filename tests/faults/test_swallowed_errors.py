"""A task that catches an error of the database, and goes on as if nothing had happened."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connections, transaction

from lambda_tasks import identity
from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import TransactionBroken
from lambda_tasks.executor import execute
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed
from tests.app.models import Effect

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases(transaction=True)]


def insert_the_same_row_again(alias: str, key: int) -> None:
    Effect(pk=key, name="twice").save(using=alias, force_insert=True)


def ask_for_nothing(alias: str, key: int) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")


@lambda_task
def go_on_after_a_row_that_is_there(*, alias: str) -> str:
    effect = Effect.objects.using(alias).create(name="rolled back")
    with suppress(IntegrityError):
        insert_the_same_row_again(alias, effect.pk)
    return "fine, as it seems"


@lambda_task
def go_on_after_a_broken_statement(*, alias: str) -> str:
    Effect.objects.using(alias).create(name="rolled back")
    with suppress(DatabaseError):
        ask_for_nothing(alias, 0)
    return "fine, as it seems"


@lambda_task
def catch_it_around_a_savepoint(*, alias: str) -> str:
    effect = Effect.objects.using(alias).create(name="kept")
    for fail in (insert_the_same_row_again, ask_for_nothing):
        with suppress(DatabaseError), transaction.atomic(using=alias):
            fail(alias, effect.pk)
    return "fine"


def deliver(task: Any, alias: str) -> TaskRecord:
    """Run `task` as a worker would, on the database of this alias, and return its record."""
    message_id = identity.new_message_id()
    message = SQSLambdaTaskMessage(task_name=task.name, kwargs={"alias": alias})
    job = Job(message=message, message_id=message_id, root_id=message_id)
    assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
    return TaskRecord.objects.using(alias).get(pk=message_id)


@pytest.fixture
def alias(database: str, settings: Any) -> str:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    return database


def test_the_task_has_failed_and_is_told_what_to_do(alias: str) -> None:
    record = deliver(go_on_after_a_row_that_is_there, alias)
    assert (record.status, record.result) == ("FAILED", None)
    assert "TransactionBroken" in (record.traceback or "")
    assert "with transaction.atomic()" in (record.traceback or "")
    # And where: the error that was caught is the cause.
    assert "IntegrityError" in (record.traceback or "")
    assert "insert_the_same_row_again" in (record.traceback or "")
    assert not Effect.objects.using(alias).exists()


@pytest.mark.databases("postgres", transaction=True)
def test_so_has_one_that_spoiled_its_transaction_past_the_orm(alias: str) -> None:
    record = deliver(go_on_after_a_broken_statement, alias)
    assert record.status == "FAILED"
    assert "TransactionBroken" in (record.traceback or "")
    assert not Effect.objects.using(alias).exists()


def test_a_store_that_writes_nothing_does_not_take_it_for_a_success(database: str, settings: Any) -> None:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.null.NullStore", "OPTIONS": {"database": database}}
    message = SQSLambdaTaskMessage(task_name=go_on_after_a_row_that_is_there.name, kwargs={"alias": database})
    outcome = execute(message, message_id=identity.new_message_id())
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, TransactionBroken)


def test_caught_around_a_savepoint_it_does_no_harm(alias: str) -> None:
    record = deliver(catch_it_around_a_savepoint, alias)
    assert (record.status, record.result) == ("SUCCESS", "fine")
    assert list(Effect.objects.using(alias).values_list("name", flat=True)) == ["kept"]
