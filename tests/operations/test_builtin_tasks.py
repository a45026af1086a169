"""`cleanup_task_records` deletes old records in batches, but not its own or those whose message is unsent."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone as django_timezone

from lambda_tasks import tasks
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.handler import handler
from lambda_tasks.models import OutboxMessage, SQSLambdaTaskMessage, TaskRecord, TaskStatus
from lambda_tasks.operations import forgetting
from lambda_tasks.operations.forgetting import BATCH_SIZE
from lambda_tasks.strategies import get_backend
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.wire.ids import new_message_id

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


class TestDeletedRecords:
    def test_records_older_than_a_week_by_default(self) -> None:
        young = [record(age=age) for age in (timedelta(0), 6 * DAY, 7 * DAY - timedelta(minutes=1))]
        for age in (7 * DAY + timedelta(minutes=1), 8 * DAY, 1000 * DAY):
            record(age=age)

        assert cleanup_task_records() == 3
        assert kept() == set(young)

    def test_records_older_than_the_given_days(self) -> None:
        young = record(age=29 * DAY)
        record(age=31 * DAY)
        assert cleanup_task_records(retention_days=30) == 1
        assert kept() == {young}

    def test_record_with_a_future_start_stays(self) -> None:
        future = record(age=-DAY)
        assert cleanup_task_records(retention_days=1) == 0
        assert kept() == {future}

    @pytest.mark.parametrize("status", TaskStatus)
    def test_every_status_is_deleted(self, status: TaskStatus) -> None:
        record(age=8 * DAY, status=status)
        assert cleanup_task_records() == 1

    def test_record_that_never_started_stays(self) -> None:
        waiting = record(age=8 * DAY, status=TaskStatus.RUNNING)
        TaskRecord.objects.update(start_time=None)
        assert cleanup_task_records(retention_days=1) == 0
        assert kept() == {waiting}

    def test_age_is_measured_by_the_database_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        young, _ = record(age=6 * DAY), record(age=8 * DAY)
        now = django_timezone.now()
        monkeypatch.setattr(django_timezone, "now", lambda: now + 1000 * DAY)
        assert cleanup_task_records() == 1
        assert kept() == {young}


def message_of(record: TaskRecord, **fields: Any) -> OutboxMessage:
    """Return the message of an invocation as the outbox stores it."""
    values: dict[str, Any] = {"task_name": record.task_name, "queue": "default", "body": "{}"}
    now = django_timezone.now()
    return OutboxMessage(id=record.pk, **values | {"created_at": now, "due_at": now} | fields)


class TestMessagesInTheOutbox:
    """The message may have been sent, and only the worker's record prevents a second delivery from running."""

    @pytest.mark.parametrize(
        "due_at", [None, django_timezone.now(), django_timezone.now() + DAY], ids=["dead", "due", "later"]
    )
    def test_record_stays_while_its_message_exists(self, due_at: datetime | None) -> None:
        with_message = record(age=8 * DAY)
        record(age=9 * DAY)
        message_of(with_message, due_at=due_at).save(force_insert=True)

        assert cleanup_task_records() == 1
        assert kept() == {with_message}

        OutboxMessage.objects.all().delete()
        assert cleanup_task_records() == 1
        assert kept() == set()

    def test_record_stays_after_the_outbox_is_disabled(self) -> None:
        with_message = record(age=8 * DAY)
        message_of(with_message).save(force_insert=True)
        with override_settings(LAMBDA_TASKS_OUTBOX=False):
            assert cleanup_task_records() == 0
        assert kept() == {with_message}

    @pytest.mark.parametrize("batch_size", [1, 2, 1000])
    @pytest.mark.databases("sqlite", transaction=True)
    def test_record_stays_for_an_outbox_elsewhere(
        self, database: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message is in the outbox of another database."""
        monkeypatch.setattr(forgetting, "BATCH_SIZE", batch_size)
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
    @pytest.mark.parametrize("days", [0, -1, 36_501, 10**12])
    def test_days_outside_the_range_are_refused(self, days: int) -> None:
        """Zero days would delete the records of running tasks."""
        old = record(age=1000 * DAY)
        with pytest.raises(
            ValueError, match=f"retention_days must be a whole number of days from 1 to 36500, not {days}"
        ):
            cleanup_task_records(retention_days=days)
        assert kept() == {old}

    def test_longest_retention_deletes_nothing(self) -> None:
        record(age=1000 * DAY)
        assert cleanup_task_records(retention_days=36_500) == 0

    @pytest.mark.parametrize("days", ["7", 7.5, None, timedelta(days=7), True])
    def test_non_integer_days_are_refused(self, days: Any) -> None:
        with pytest.raises(TypeError, match="retention_days must be a whole number of days from 1 to 36500, not "):
            cleanup_task_records(retention_days=days)

    @pytest.mark.parametrize("days", ["7", 7.5, None, timedelta(days=7), True])
    def test_non_integer_days_are_refused_at_the_call(self, days: Any) -> None:
        with pytest.raises(InvalidArguments, match="retention_days must be a valid integer"):
            cleanup_task_records.execute_on_commit(retention_days=days)


class TestCommand:
    def test_command_deletes_records_and_reports_the_number(self, capsys: pytest.CaptureFixture[str]) -> None:
        young = [record(age=DAY), record(age=8 * DAY)]
        record(age=31 * DAY)
        call_command("lambda_tasks", "cleanup", "--days", "30")
        assert kept() == set(young)
        call_command("lambda_tasks", "cleanup")
        assert kept() == {young[0]}
        assert capsys.readouterr().out == "1 record deleted.\n" * 2

    def test_dry_run_counts_and_deletes_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        records = [record(age=age * DAY) for age in (1, 8, 9)]
        call_command("lambda_tasks", "cleanup", "--dry-run")
        assert kept() == set(records)
        assert capsys.readouterr().out == "2 records would be deleted.\n"

    @pytest.mark.databases("sqlite", transaction=True)
    def test_dry_run_subtracts_spared_records(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """They have messages in the outboxes, of which one is in another database."""
        monkeypatch.setattr(forgetting, "BATCH_SIZE", 1)
        records = [record(age=age * DAY) for age in (8, 9, 10, 11)]
        message_of(records[0]).save(force_insert=True)
        for each in records[1:3]:
            message_of(each).save(using=database, force_insert=True)
        options = {"transport": "lambda_tasks.backends.memory.MemoryBackend", "databases": ["default", database]}
        outbox = {"BACKEND": "lambda_tasks.backends.outbox.OutboxBackend", "OPTIONS": options}
        with override_settings(LAMBDA_TASKS_BACKEND=outbox):
            assert tasks.count_old_records(retention_days=7) == 1
            assert cleanup_task_records() == 1

    @pytest.mark.parametrize("options", [[], ["--dry-run"]])
    def test_zero_days_are_refused(self, options: list[str]) -> None:
        record(age=1000 * DAY)
        with pytest.raises(CommandError, match=r"^--days must be a whole number of days from 1 to 36500, not 0"):
            call_command("lambda_tasks", "cleanup", "--days=0", *options)
        assert len(kept()) == 1


class TestBatches:
    def test_oldest_thousand_rows_are_deleted_per_statement(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert BATCH_SIZE == 1000
        monkeypatch.setattr(forgetting, "BATCH_SIZE", 10)
        TaskRecord.objects.bulk_create(new_record(age=(10 + number) * DAY) for number in range(25))
        young = record(age=DAY)

        with CaptureQueriesContext(connection) as queries:
            assert cleanup_task_records() == 25

        table = connection.ops.quote_name(TaskRecord._meta.db_table)
        deletes = [query["sql"] for query in queries if query["sql"].startswith(f"DELETE FROM {table}")]
        assert len(deletes) == 3
        # The statement finds them through the index on start_time.
        selects = [
            query["sql"] for query in queries if query["sql"].startswith("SELECT") and f"FROM {table}" in query["sql"]
        ]
        assert all("ORDER BY" in select for select in selects)
        assert kept() == {young}

    def test_cleanup_deletes_more_than_one_full_batch(self) -> None:
        TaskRecord.objects.bulk_create((new_record(age=8 * DAY) for _ in range(BATCH_SIZE + 5)), batch_size=500)
        assert cleanup_task_records() == BATCH_SIZE + 5

    def test_rows_deleted_by_another_cleanup_are_skipped(self) -> None:
        """Under REPEATABLE READ they remain visible, and deleting them affects no row."""
        record(age=8 * DAY)

        def pass_over(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("DELETE"):
                sql += " AND 1 = 0"
            return execute(sql, params, many, context)

        with connection.execute_wrapper(pass_over):
            assert cleanup_task_records() == 0


class TestRun:
    """Run the task in each of the ways in which tasks run."""

    def test_eager_cleanup_keeps_its_own_record(self) -> None:
        record(age=8 * DAY)
        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = cleanup_task_records.execute_on_commit()
        [own] = kept()
        assert (str(own.pk), own.status, own.result) == (handle.message_id, "SUCCESS", 1)

    @pytest.mark.parametrize("days", [1, 7])
    def test_worker_cleanup_keeps_its_own_record(self, days: int) -> None:
        record(age=8 * DAY)
        handle = cleanup_task_records.execute_on_commit(retention_days=days)
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        records = [event_record(job) for job in backend.jobs if job.message_id == handle.message_id]
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
        [own] = kept()
        assert (str(own.pk), own.status, own.result) == (handle.message_id, "SUCCESS", 1)

    def test_old_record_of_the_cleanup_itself_stays(self) -> None:
        """A worker may die during the cleanup, and another one take it over days later."""
        message_id = new_message_id()
        died = record(
            age=30 * DAY,
            task_name=cleanup_task_records.name,
            status=TaskStatus.RUNNING,
            claim=uuid4(),
            lease_until=django_timezone.now() - 29 * DAY,
        )
        TaskRecord.objects.filter(pk=died.pk).update(id=message_id)
        SQSLambdaTaskMessage(task_name=cleanup_task_records.name).execute_immediately(message_id)
        [own] = kept()
        assert (own.status, own.takeovers) == ("SUCCESS", 1)

    def test_failure_midway_deletes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The cleanup is one transaction, like any task."""
        monkeypatch.setattr(forgetting, "BATCH_SIZE", 1)
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

    def test_documented_name_is_stable(self) -> None:
        """Schedules outside of the project refer to this name."""
        assert cleanup_task_records.serialize(retention_days=30)["message"] == {
            "task_name": "lambda_tasks.tasks.cleanup_task_records",
            "kwargs": {"retention_days": 30},
        }


def stored_in(database: str) -> override_settings:
    store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    return override_settings(LAMBDA_TASKS_STORE=store)


@pytest.mark.databases("sqlite", transaction=True)
def test_records_are_deleted_in_the_stores_database(database: str) -> None:
    new_record(age=8 * DAY).save(using=database, force_insert=True)
    here = record(age=8 * DAY)
    with stored_in(database):
        assert cleanup_task_records() == 1
    assert kept() == {here}
    assert not TaskRecord.objects.using(database).exists()


@pytest.mark.databases("sqlite", transaction=True)
def test_record_exactly_as_old_as_given_stays(database: str) -> None:
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
