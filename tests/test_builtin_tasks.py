"""`cleanup_task_records`: old records go, in batches; never its own, nor one whose message waits to be sent."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone as django_timezone

from lambda_tasks import tasks
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.handler import handler
from lambda_tasks.identity import new_message_id
from lambda_tasks.models import OutboxMessage, SQSLambdaTaskMessage, TaskRecord, TaskStatus
from lambda_tasks.strategies import get_backend
from lambda_tasks.tasks import BATCH_SIZE, cleanup_task_records

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)


def new_record(*, age: timedelta, **fields: Any) -> TaskRecord:
    values: dict[str, Any] = {"task_name": "shop.tasks.send", "status": TaskStatus.SUCCESS}
    return TaskRecord(id=uuid4(), start_time=django_timezone.now() - age, **values | fields)


def record(*, age: timedelta, **fields: Any) -> TaskRecord:
    made = new_record(age=age, **fields)
    made.save(force_insert=True)
    return made


def kept() -> set[TaskRecord]:
    return set(TaskRecord.objects.all())


class TestWhatIsDeleted:
    def test_records_older_than_a_week_unless_it_is_said_otherwise(self) -> None:
        young = [record(age=age) for age in (timedelta(0), 6 * DAY, 7 * DAY - timedelta(minutes=1))]
        for age in (7 * DAY + timedelta(minutes=1), 8 * DAY, 1000 * DAY):
            record(age=age)

        assert cleanup_task_records() == 3
        assert kept() == set(young)

    def test_records_older_than_the_days_that_are_given(self) -> None:
        young = record(age=29 * DAY)
        record(age=31 * DAY)
        assert cleanup_task_records(retention_days=30) == 1
        assert kept() == {young}

    def test_with_no_days_at_all_everything(self) -> None:
        record(age=timedelta(minutes=1))
        assert cleanup_task_records(retention_days=0) == 1
        assert kept() == set()

    def test_what_starts_in_the_future_stays(self) -> None:
        future = record(age=-DAY)
        assert cleanup_task_records(retention_days=0) == 0
        assert kept() == {future}

    @pytest.mark.parametrize("status", TaskStatus)
    def test_whatever_their_status(self, status: TaskStatus) -> None:
        record(age=8 * DAY, status=status)
        assert cleanup_task_records() == 1

    def test_what_never_started_stays(self) -> None:
        waiting = record(age=DAY, status=TaskStatus.RUNNING)
        TaskRecord.objects.update(start_time=None)
        assert cleanup_task_records(retention_days=0) == 0
        assert kept() == {waiting}

    def test_the_time_is_that_of_the_database(self, monkeypatch: pytest.MonkeyPatch) -> None:
        young, _ = record(age=6 * DAY), record(age=8 * DAY)
        now = django_timezone.now()
        monkeypatch.setattr(django_timezone, "now", lambda: now + 1000 * DAY)
        assert cleanup_task_records() == 1
        assert kept() == {young}


def message_of(record: TaskRecord, **fields: Any) -> OutboxMessage:
    """Return the message of an invocation, as it stands in the outbox."""
    values: dict[str, Any] = {"task_name": record.task_name, "queue": "default", "body": "{}"}
    now = django_timezone.now()
    return OutboxMessage(id=record.pk, **values | {"created_at": now, "due_at": now} | fields)


class TestMessagesInTheOutbox:
    """It may have been sent, and its worker's record be all that keeps a second delivery from running."""

    @pytest.mark.parametrize("due_at", [None, django_timezone.now(), django_timezone.now() + DAY], ids=str)
    def test_a_record_stays_while_its_message_is_there(self, due_at: datetime | None) -> None:
        with_message = record(age=8 * DAY)
        record(age=9 * DAY)
        message_of(with_message, due_at=due_at).save(force_insert=True)

        assert cleanup_task_records() == 1
        assert kept() == {with_message}

        OutboxMessage.objects.all().delete()
        assert cleanup_task_records() == 1
        assert kept() == set()

    def test_so_it_does_where_the_outbox_is_off_by_now(self) -> None:
        with_message = record(age=8 * DAY)
        message_of(with_message).save(force_insert=True)
        with override_settings(LAMBDA_TASKS_OUTBOX=False):
            assert cleanup_task_records() == 0
        assert kept() == {with_message}

    @pytest.mark.parametrize("batch_size", [1, 2, 1000])
    @pytest.mark.databases("sqlite", transaction=True)
    def test_so_it_does_if_the_message_is_in_the_outbox_of_another_database(
        self, database: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "BATCH_SIZE", batch_size)
        with_message = [record(age=age * DAY) for age in (8, 10, 11, 14)]
        for age in (9, 12, 13):
            record(age=age * DAY)
        for each in with_message:
            message_of(each).save(using=database, force_insert=True)
        options = {"transport": "lambda_tasks.backends.memory.MemoryBackend", "databases": ["default", database]}
        outbox = {"BACKEND": "lambda_tasks.backends.outbox.OutboxBackend", "OPTIONS": options}

        with override_settings(LAMBDA_TASKS_BACKEND=outbox):
            assert cleanup_task_records() == 3
        assert kept() == set(with_message)


class TestArguments:
    def test_a_negative_number_of_days_is_refused(self) -> None:
        young = record(age=timedelta(minutes=1))
        with pytest.raises(ValueError, match="retention_days is -1; give 0 or more"):
            cleanup_task_records(retention_days=-1)
        assert kept() == {young}

    @pytest.mark.parametrize("days", ["7", 7.5, None, timedelta(days=7), True])
    def test_what_is_no_whole_number_is_refused_at_the_call(self, days: Any) -> None:
        with pytest.raises(InvalidArguments, match="retention_days: Input should be a valid integer"):
            cleanup_task_records.execute_on_commit(retention_days=days)


class TestBatches:
    def test_a_thousand_rows_are_deleted_by_a_statement_the_oldest_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert BATCH_SIZE == 1000
        monkeypatch.setattr(tasks, "BATCH_SIZE", 10)
        TaskRecord.objects.bulk_create(new_record(age=(10 + number) * DAY) for number in range(25))
        young = record(age=DAY)

        with CaptureQueriesContext(connection) as queries:
            assert cleanup_task_records() == 25

        deletes = [query["sql"] for query in queries if query["sql"].startswith("DELETE")]
        assert len(deletes) == 3
        # They are looked for along the index on start_time.
        assert all("ORDER BY" in query["sql"] for query in queries if query["sql"].startswith("SELECT"))
        assert kept() == {young}

    def test_more_than_a_batch_of_real_size(self) -> None:
        TaskRecord.objects.bulk_create((new_record(age=8 * DAY) for _ in range(BATCH_SIZE + 5)), batch_size=500)
        assert cleanup_task_records() == BATCH_SIZE + 5

    def test_rows_that_another_cleanup_has_deleted_do_not_hold_it_up(self) -> None:
        """Under REPEATABLE READ they stay visible, and deleting them deletes nothing."""
        record(age=8 * DAY)

        def pass_over(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("DELETE"):
                sql += " AND 1 = 0"
            return execute(sql, params, many, context)

        with connection.execute_wrapper(pass_over):
            assert cleanup_task_records() == 0


class TestRun:
    """Through the ways in which tasks are run."""

    def test_in_eager_mode_it_deletes_and_returns_the_number_but_keeps_its_own_record(self) -> None:
        record(age=8 * DAY)
        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = cleanup_task_records.execute_on_commit()
        [own] = kept()
        assert (str(own.pk), own.status, own.result) == (handle.message_id, "SUCCESS", 1)

    @pytest.mark.parametrize("days", [0, 7])
    def test_in_a_worker_it_keeps_its_own_record(self, days: int) -> None:
        record(age=8 * DAY)
        handle = cleanup_task_records.execute_on_commit(retention_days=days)
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        records = [event_record(job) for job in backend.jobs if job.message_id == handle.message_id]
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
        [own] = kept()
        assert (str(own.pk), own.status, own.result) == (handle.message_id, "SUCCESS", 1)

    def test_a_record_of_its_own_that_is_very_old_stays_too(self) -> None:
        """As when a worker died in it, and another one takes it over after days."""
        message_id = new_message_id()
        died = record(
            age=30 * DAY, status=TaskStatus.RUNNING, claim=uuid4(), lease_until=django_timezone.now() - 29 * DAY
        )
        TaskRecord.objects.filter(pk=died.pk).update(id=message_id)
        SQSLambdaTaskMessage(task_name=cleanup_task_records.name).execute_immediately(message_id)
        [own] = kept()
        assert (own.status, own.takeovers) == ("SUCCESS", 1)

    def test_a_failure_on_the_way_deletes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is one transaction, like any task."""
        monkeypatch.setattr(tasks, "BATCH_SIZE", 1)
        old = {record(age=8 * DAY), record(age=9 * DAY)}
        deletes = []

        def fail_second(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("DELETE"):
                deletes.append(sql)
                if len(deletes) == 2:
                    raise RuntimeError("not today")
            return execute(sql, params, many, context)

        with connection.execute_wrapper(fail_second):
            SQSLambdaTaskMessage(task_name=cleanup_task_records.name).execute_immediately()
        assert kept() >= old
        assert TaskRecord.objects.get(task_name=cleanup_task_records.name).status == "FAILED"

    def test_its_documented_name_is_stable(self) -> None:
        """Schedules outside of the project name it."""
        assert cleanup_task_records.serialize(retention_days=30)["message"] == {
            "task_name": "lambda_tasks.tasks.cleanup_task_records",
            "kwargs": {"retention_days": 30},
        }


def stored_in(database: str) -> override_settings:
    store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    return override_settings(LAMBDA_TASKS_STORE=store)


@pytest.mark.databases("sqlite", transaction=True)
def test_records_are_deleted_where_the_store_keeps_them(database: str) -> None:
    new_record(age=8 * DAY).save(using=database, force_insert=True)
    here = record(age=8 * DAY)
    with stored_in(database):
        assert cleanup_task_records() == 1
    assert kept() == {here}
    assert not TaskRecord.objects.using(database).exists()


@pytest.mark.databases("sqlite", transaction=True)
def test_what_is_exactly_as_old_as_the_days_that_are_given_stays(database: str) -> None:
    def stop_clock(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        return execute(sql.replace("'NOW'", "'2025-06-08 12:00:00'"), params, many, context)

    noon = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)
    exact = TaskRecord(id=uuid4(), task_name="shop.tasks.send", start_time=noon)
    older = TaskRecord(id=uuid4(), task_name="shop.tasks.send", start_time=noon - timedelta(microseconds=1))
    for made in (exact, older):
        made.save(using=database, force_insert=True)

    with stored_in(database), connections[database].execute_wrapper(stop_clock):
        assert cleanup_task_records(retention_days=7) == 1
    assert set(TaskRecord.objects.using(database)) == {exact}
