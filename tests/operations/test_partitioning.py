"""The table of records is partitioned by day while tasks run, and old days are dropped."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connections, transaction
from django.test import override_settings

from lambda_tasks import tasks
from lambda_tasks.backends.memory import event_record
from lambda_tasks.contrib.health import check_tables
from lambda_tasks.database import partitions
from lambda_tasks.database.online import build_index, drop_index
from lambda_tasks.database.partitions import rows
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.management import partition as command
from lambda_tasks.models import OutboxMessage, TaskProgress, TaskRecord, TaskStatus
from lambda_tasks.operations.partitioning import converting, creating, steps
from lambda_tasks.operations.partitioning.steps import TABLE
from lambda_tasks.operations.reaping import reap
from lambda_tasks.tasks import cleanup_task_records, count_old_records
from lambda_tasks.wire.ids import new_message_id, retry_id
from tests.app.models import Effect
from tests.faults.workers import in_another_worker, job_of, stored_in
from tests.partitions import partitioned, restore

ALIAS: Final = "postgres"
pytestmark = [pytest.mark.databases(ALIAS, transaction=True)]
DAY: Final = timedelta(days=1)


@lambda_task
def example(*, name: str) -> str:
    Effect.objects.using(ALIAS).create(name=name)
    return name


@pytest.fixture(autouse=True)
def _store(database: str) -> Iterator[None]:
    with stored_in(database):
        yield


@pytest.fixture(autouse=True)
def _few_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fewer partitions, which takes less time."""
    monkeypatch.setattr(creating, "DAYS_AHEAD", 2)
    monkeypatch.setattr(command, "DAYS", 2)


@pytest.fixture
def table(database: str) -> Iterator[None]:
    """Partition the table, as far as a test does not do it."""
    with partitioned(database):
        yield


@pytest.fixture
def restored(database: str) -> Iterator[None]:
    yield
    restore(database)


def records() -> Any:
    return TaskRecord.objects.using(ALIAS)


def id_of(age: timedelta) -> UUID:
    """Return an id that was made so long ago."""
    moment = int((datetime.now(timezone.utc) - age).timestamp() * 1000)
    return UUID(int=moment << 80 | 0x7 << 76 | 0b10 << 62 | uuid4().int & (2**62 - 1))


def record(age: timedelta, *, pk: UUID | None = None, **fields: Any) -> TaskRecord:
    start = datetime.now(timezone.utc) - age
    values: dict[str, Any] = {"task_name": example.name, "status": TaskStatus.SUCCESS, "start_time": start}
    made: TaskRecord = records().create(id=pk or id_of(age), **values | fields)
    return made


def names() -> set[str]:
    return {each.name.removeprefix(f"{TABLE}_") for each in partitions.partitions_of(connections[ALIAS], TABLE)}


def day(age: timedelta) -> str:
    return f"{datetime.now(timezone.utc) - age:%Y%m%d}"


def partition_of(made: TaskRecord) -> str:
    [(name,)] = rows(connections[ALIAS], f"SELECT tableoid::regclass::text FROM {TABLE} WHERE id = %s", [made.pk])
    return str(name).removeprefix(f"{TABLE}_")


def create_partition(age: timedelta) -> None:
    of_day = partitions.of_day(TABLE, (datetime.now(timezone.utc) - age).date())
    for statement in partitions.creation(connections[ALIAS], TABLE, of_day):
        rows(connections[ALIAS], statement)


def partition(*arguments: str) -> str:
    output = io.StringIO()
    call_command("lambda_tasks", "partition", *arguments, stdout=output)
    return output.getvalue()


class TestBounds:
    @pytest.mark.parametrize(
        "moment", [datetime(2026, 11, 30, tzinfo=timezone.utc), datetime(1970, 1, 1, tzinfo=timezone.utc)]
    )
    def test_day_begins_with_its_first_id(self, moment: datetime) -> None:
        first = partitions.first_id(moment.date())
        assert first.int >> 80 == moment.timestamp() * 1000
        assert first.int & (2**80 - 1) == 0

    def test_id_lies_in_the_partition_of_its_day(self) -> None:
        today = partitions.of_day(TABLE, datetime.now(timezone.utc).date())
        assert today.low is not None
        assert today.high is not None
        assert today.low <= UUID(new_message_id()) < today.high

    def test_bounds_are_read_as_written(self, table: None) -> None:
        found = {each.name: each for each in partitions.partitions_of(connections[ALIAS], TABLE)}
        assert found == {each.name: each for each in [*partitions.of_rest(TABLE), *_expected_days()]}


def _expected_days() -> list[partitions.Partition]:
    today = datetime.now(timezone.utc).date()
    return partitions.of_days(TABLE, today, today + timedelta(days=creating.DAYS_AHEAD))


class TestConverting:
    def test_records_go_to_the_partitions_of_their_days(self, restored: None) -> None:
        made = {
            day(timedelta(0)): record(timedelta(0)),
            day(3 * DAY): record(3 * DAY),
            "default": record(50 * DAY),
            "untimed": record(timedelta(0), pk=UUID(int=2**128 - 5)),
        }
        before = list(records().order_by("pk").values())
        assert "4 records copied" in partition()
        assert {partition_of(each): each for each in made.values()} == made
        assert list(records().order_by("pk").values()) == before

    def test_indexes_keep_their_names(self, restored: None) -> None:
        before = set(partitions.indexes_of(connections[ALIAS], TABLE))
        partition()
        assert set(partitions.indexes_of(connections[ALIAS], TABLE)) == before

    def test_command_can_be_repeated(self, table: None) -> None:
        assert partition() == "All partitions of the next 2 days exist.\n"
        assert json.loads(partition("--days", "3", "--format", "json"))["created"] == [f"{TABLE}_{day(-3 * DAY)}"]

    def test_interrupted_conversion_continues(self, restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(converting, "BATCH_SIZE", 2)
        made = [record(timedelta(0)) for _ in range(5)]

        def interrupt(number: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            converting.convert(connections[ALIAS], report=interrupt)
        made.append(record(timedelta(0)))
        sizes: list[int] = []
        assert converting.convert(connections[ALIAS], report=sizes.append)
        assert sizes == [2, 2, 2]
        assert set(records().all()) == set(made)
        assert not converting.convert(connections[ALIAS])

    def test_writes_during_the_copy_are_repeated(self, restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(converting, "BATCH_SIZE", 2)
        made = [record(timedelta(0)) for _ in range(6)]
        writes = iter(
            [
                lambda: records().filter(pk__in=[made[0].pk, made[5].pk]).update(status="FAILED"),
                lambda: records().filter(pk__in=[made[1].pk, made[4].pk]).delete(),
                lambda: made.append(record(timedelta(0), task_name="new")),
            ]
        )
        converting.convert(connections[ALIAS], report=lambda number: in_another_worker(next(writes, int)))
        left = {made[index].pk: "SUCCESS" for index in (2, 3, 6)} | {made[index].pk: "FAILED" for index in (0, 5)}
        assert dict(records().values_list("pk", "status")) == left

    def test_copied_record_may_change_before_its_batch_ends(self, restored: None) -> None:
        """The trigger has written the new row before the copy inserts the old one."""
        made = record(timedelta(0))
        for statement in converting.preparation(connections[ALIAS]):
            rows(connections[ALIAS], statement)
        copy, old = f'"{converting.COPY}"', f"SELECT * FROM {TABLE}"
        rows(connections[ALIAS], f"CREATE TABLE batch AS {old}")
        try:
            records().update(status="FAILED")
            statement = converting.copying(connections[ALIAS]).replace(f'FROM "{TABLE}" WHERE', "FROM batch WHERE")
            rows(connections[ALIAS], statement, [UUID(int=0)])
            assert rows(connections[ALIAS], f"SELECT status FROM {copy} WHERE id = %s", [made.pk]) == [("FAILED",)]
        finally:
            rows(connections[ALIAS], "DROP TABLE batch")

    def test_tasks_run_during_the_conversion(self, restored: None) -> None:
        jobs = [job_of(example, new_message_id(), name=str(number)) for number in range(30)]
        failures: list[object] = []

        def work() -> None:
            for job in jobs:
                failures.extend(handler({"Records": [event_record(job)]}, None)["batchItemFailures"])

        worker = threading.Thread(target=in_another_worker, args=(work,))
        worker.start()
        partition()
        worker.join()
        again = {failure["itemIdentifier"] for failure in failures}  # type: ignore[index]
        handler({"Records": [event_record(job) for job in jobs]}, None)
        assert records().filter(status="SUCCESS").count() == 30
        assert Effect.objects.using(ALIAS).count() == 30
        assert not again

    def test_locked_table_is_tried_again(self, restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
        record(timedelta(0))
        monkeypatch.setattr(steps, "LOCK_TIMEOUT", "10ms")
        monkeypatch.setattr(steps, "PAUSE", 0)
        monkeypatch.setattr(steps, "ATTEMPTS", 2)
        begun, end = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic(using=ALIAS):
                records().update(status="FAILED")
                begun.set()
                end.wait(30)

        holder = threading.Thread(target=in_another_worker, args=(hold,))
        holder.start()
        assert begun.wait(30)
        try:
            with pytest.raises(CommandError, match=r"must be free for a moment, .* in all of 2 attempts"):
                partition()
        finally:
            end.set()
            holder.join()
        assert not partitions.is_partitioned(connections[ALIAS], TABLE)

    def test_other_roles_keep_their_permissions(self, restored: None) -> None:
        role = f"reader_{uuid4().hex[:8]}"
        rows(connections[ALIAS], f"CREATE ROLE {role}")
        try:
            rows(connections[ALIAS], f"GRANT SELECT, INSERT ON {TABLE} TO {role}")
            partition()
            allowed = [
                rows(connections[ALIAS], "SELECT has_table_privilege(%s, %s, %s)", [role, TABLE, privilege])[0][0]
                for privilege in ("SELECT", "INSERT", "DELETE")
            ]
            assert allowed == [True, True, False]
        finally:
            rows(connections[ALIAS], f"DROP OWNED BY {role}")
            rows(connections[ALIAS], f"DROP ROLE {role}")

    @pytest.mark.parametrize(
        ("create", "drop", "told"),
        [
            (
                f"CREATE VIEW failures AS SELECT id FROM {TABLE}",
                "DROP VIEW failures",
                "no views of .*, and has failures",
            ),
            (
                f"CREATE TABLE note (record uuid CONSTRAINT of_record REFERENCES {TABLE})",
                "DROP TABLE note",
                "no foreign keys of .*, and has note.of_record",
            ),
        ],
    )
    def test_dependent_object_is_refused(self, restored: None, create: str, drop: str, told: str) -> None:
        rows(connections[ALIAS], create)
        try:
            for arguments in (("--dry-run",), ()):
                with pytest.raises(CommandError, match=told):
                    partition(*arguments)
        finally:
            rows(connections[ALIAS], drop)

    def test_leftover_of_an_earlier_conversion_is_refused(self, restored: None) -> None:
        rows(connections[ALIAS], f"CREATE TABLE {converting.OLD} (LIKE {TABLE})")
        try:
            with pytest.raises(CommandError, match=f"Drop it: DROP TABLE {converting.OLD}"):
                partition()
        finally:
            rows(connections[ALIAS], f"DROP TABLE {converting.OLD}")


class TestPlan:
    def test_printed_statements_convert_the_table(self, restored: None) -> None:
        record(timedelta(0))
        statements = json.loads(partition("--dry-run", "--format", "json"))["sql"]
        assert not partitions.is_partitioned(connections[ALIAS], TABLE)
        with transaction.atomic(using=ALIAS):
            for statement in statements:
                rows(connections[ALIAS], statement.replace("…", f"'{UUID(int=0)}'"))
        assert partitions.is_partitioned(connections[ALIAS], TABLE)
        assert records().count() == 1

    def test_plan_lists_the_missing_partitions(self, table: None) -> None:
        assert partition("--dry-run") == "All of these partitions exist.\n"
        [create, attach] = partition("--dry-run", "--days", "3").splitlines()
        assert create == f'CREATE TABLE "{TABLE}_{day(-3 * DAY)}" (LIKE "{TABLE}" INCLUDING ALL);'
        assert attach.startswith(f'ALTER TABLE "{TABLE}" ATTACH PARTITION "{TABLE}_{day(-3 * DAY)}" FOR VALUES FROM')


class TestRefused:
    @pytest.mark.parametrize("days", ["0", "367"])
    def test_number_of_days_is_limited(self, days: str) -> None:
        with pytest.raises(CommandError, match=f"--days must be from 1 to 366, not {days}"):
            partition("--days", days)

    def test_other_stores_are_named(self) -> None:
        store = "lambda_tasks.stores.null.NullStore"
        with override_settings(LAMBDA_TASKS_STORE=store), pytest.raises(CommandError, match="not NullStore"):
            partition()


class TestNextDays:
    def test_new_partition_takes_its_records_from_the_default(self, table: None) -> None:
        made = record(-5 * DAY)
        assert partition_of(made) == "default"
        partition("--days", "5")
        assert partition_of(made) == day(-5 * DAY)

    def test_many_records_stay_in_the_default(
        self, table: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(creating, "MOST_MOVED", 1)
        made = [record(-3 * DAY) for _ in range(2)]
        partition("--days", "4")
        assert {partition_of(each) for each in made} == {"default"}
        assert day(-4 * DAY) in names()
        assert f"{TABLE}_{day(-3 * DAY)} began without a partition" in caplog.text

    def test_concurrent_commands_do_no_harm(self, table: None) -> None:
        threads = [
            threading.Thread(target=in_another_worker, args=(lambda: partition("--days", "8"),)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(names()) == 9 + 2

    def test_cleanup_makes_the_next_partitions(self, table: None) -> None:
        rows(connections[ALIAS], f"DROP TABLE {TABLE}_{day(-2 * DAY)}")
        cleanup_task_records()
        assert day(-2 * DAY) in names()


class TestDropping:
    @pytest.fixture(autouse=True)
    def _old_day(self, table: None) -> None:
        create_partition(10 * DAY)

    def test_old_day_is_dropped_and_counted(self) -> None:
        kept = record(timedelta(0))
        for _ in range(3):
            record(10 * DAY)
        retry = record(10 * DAY, pk=UUID(retry_id(new_message_id(), 1)))
        assert partition_of(retry) in ("untimed", "default")
        assert count_old_records(retention_days=7) == 4
        assert cleanup_task_records() == 4
        assert day(10 * DAY) not in names()
        assert list(records().all()) == [kept]

    def test_day_is_dropped_when_its_end_is_old(self) -> None:
        assert cleanup_task_records(retention_days=10) == 0
        assert day(10 * DAY) in names()
        assert cleanup_task_records(retention_days=9) == 0
        assert day(10 * DAY) not in names()

    @pytest.mark.parametrize("fields", [{"status": "RUNNING"}, {"start_time": None}, {"age": 2 * DAY}], ids=str)
    def test_day_with_a_needed_record_stays(self, fields: dict[str, Any]) -> None:
        """The record itself is deleted only if it started long ago, as without partitions."""
        age = fields.pop("age", 10 * DAY)
        needed = record(age, pk=id_of(10 * DAY), **fields)
        record(10 * DAY)
        cleanup_task_records()
        assert day(10 * DAY) in names()
        assert set(records().all()) == (set() if needed.status == "RUNNING" else {needed})

    def test_day_with_a_message_in_the_outbox_stays(self) -> None:
        owed = record(10 * DAY)
        now = datetime.now(timezone.utc)
        OutboxMessage.objects.using(ALIAS).create(
            id=owed.pk, task_name=example.name, queue="default", body="{}", created_at=now, due_at=now
        )
        assert cleanup_task_records() == 0
        assert list(records().all()) == [owed]
        OutboxMessage.objects.using(ALIAS).all().delete()
        assert cleanup_task_records() == 1
        assert day(10 * DAY) not in names()

    def test_details_are_deleted_with_their_records(self) -> None:
        made, now = record(10 * DAY), datetime.now(timezone.utc)
        waiting = id_of(10 * DAY)
        for pk in (made.pk, waiting):
            TaskProgress.objects.using(ALIAS).create(id=pk, done=1, updated_at=now)
        assert cleanup_task_records() == 1
        assert [each.pk for each in TaskProgress.objects.using(ALIAS).all()] == [waiting]

    def test_locked_day_is_left_to_the_next_cleanup(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        made, other = record(10 * DAY), record(20 * DAY)
        monkeypatch.setattr(steps, "LOCK_TIMEOUT", "10ms")
        monkeypatch.setattr(steps, "PAUSE", 0)
        with transaction.atomic(using=ALIAS):
            list(records().filter(pk=made.pk))
            assert in_another_worker(cleanup_task_records) == 1
        assert "is locked by other sessions" in caplog.text
        assert list(records().all()) == [made]
        assert other not in records().all()
        assert cleanup_task_records() == 1

    def test_worker_drops_on_another_connection(self) -> None:
        record(10 * DAY)
        handler({"Records": [event_record(job_of(cleanup_task_records, new_message_id()))]}, None)
        assert day(10 * DAY) not in names()
        assert records().get().result == 1

    def test_worker_releases_the_locks_before_its_commit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        record(10 * DAY)
        written: list[TaskRecord] = []

        def write() -> None:
            rows(connections[ALIAS], "SET lock_timeout = '2s'")
            written.append(record(timedelta(0)))

        monkeypatch.setattr(tasks, "_delete_old_keys", lambda days: in_another_worker(write))
        handler({"Records": [event_record(job_of(cleanup_task_records, new_message_id()))]}, None)
        assert len(written) == 1
        assert day(10 * DAY) not in names()

    def test_cleanup_without_ownership_deletes_rows(self, caplog: pytest.LogCaptureFixture) -> None:
        record(10 * DAY)
        role = f"worker_{uuid4().hex[:8]}"
        rows(connections[ALIAS], f"CREATE ROLE {role}")
        try:
            rows(connections[ALIAS], f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
            rows(connections[ALIAS], f"SET ROLE {role}")
            assert cleanup_task_records() == 1
        finally:
            rows(connections[ALIAS], "RESET ROLE")
            rows(connections[ALIAS], f"DROP OWNED BY {role}")
            rows(connections[ALIAS], f"DROP ROLE {role}")
        assert "Run `manage.py lambda_tasks cleanup` as the role that owns the table" in caplog.text
        assert day(10 * DAY) in names()


class TestLibrary:
    """The rest of the library works on a partitioned table."""

    @pytest.fixture(autouse=True)
    def _table(self, table: None) -> None: ...

    def test_task_runs_once(self) -> None:
        message = event_record(job_of(example, new_message_id(), name="a"))
        for _ in range(2):
            assert handler({"Records": [message]}, None) == {"batchItemFailures": []}
        assert Effect.objects.using(ALIAS).count() == 1

    def test_primary_key_refuses_a_second_claim(self) -> None:
        made = record(timedelta(0))
        with pytest.raises(IntegrityError):
            record(timedelta(0), pk=made.pk)

    def test_claim_reads_one_partition(self) -> None:
        plan = rows(connections[ALIAS], f"EXPLAIN SELECT * FROM {TABLE} WHERE id = %s", [new_message_id()])
        text = "\n".join(line for (line,) in plan)
        assert f"Index Scan using {TABLE}_{day(timedelta(0))}" in text
        assert text.count("Scan") == 1

    def test_lost_task_is_sent_again(self, lambda_tasks_queue: Any) -> None:
        old = timedelta(hours=9)
        lost = record(old, status="RUNNING", kwargs={"name": "a"}, claim=uuid4(), queue="default")
        records().update(lease_until=datetime.now(timezone.utc) - timedelta(hours=8), root_id=lost.pk)
        assert reap().sent_again == 1
        assert [job.message_id for job in lambda_tasks_queue.jobs] == [str(lost.pk)]

    def test_tables_are_as_migrated(self) -> None:
        check_tables()
        call_command("migrate", "lambda_tasks", database=ALIAS, verbosity=0)

    def test_later_migration_builds_and_drops_an_index(self) -> None:
        from django.db.models import Index

        index = Index(fields=["queue"], name="lambda_tasks_queue_test")
        with connections[ALIAS].schema_editor(atomic=False) as editor:
            build_index(editor, TaskRecord, index)
            build_index(editor, TaskRecord, index)
        [(valid,)] = rows(
            connections[ALIAS], f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{index.name}'::regclass"
        )
        children = rows(connections[ALIAS], f"SELECT 1 FROM pg_inherits WHERE inhparent = '{index.name}'::regclass")
        assert (valid, len(children)) == (True, len(names()))
        with connections[ALIAS].schema_editor(atomic=False) as editor:
            drop_index(editor, TaskRecord, index)
        assert index.name not in partitions.indexes_of(connections[ALIAS], TABLE)

    def test_interrupted_build_of_an_index_is_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from django.db.models import Index

        index = Index(fields=["queue"], name="lambda_tasks_queue_test")
        rows(connections[ALIAS], f"CREATE INDEX {index.name} ON ONLY {TABLE} (queue)")
        with connections[ALIAS].schema_editor(atomic=False) as editor:
            build_index(editor, TaskRecord, index)
        [(valid,)] = rows(
            connections[ALIAS], f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{index.name}'::regclass"
        )
        assert valid

    def test_column_is_added_to_every_partition(self) -> None:
        rows(connections[ALIAS], f"ALTER TABLE {TABLE} ADD COLUMN extra int")
        partition("--days", "3")
        made = record(timedelta(0))
        assert records().get(pk=made.pk) == made
