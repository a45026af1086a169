"""Arguments that are too large for a message: stored before the COMMIT, read by the worker, deleted much later."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import boto3
import botocore
import pytest
from botocore.exceptions import ClientError
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from lambda_tasks import RetryLater
from lambda_tasks.backends import bucket
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.backends.unused_arguments import KEPT_DAYS
from lambda_tasks.database.clock import from_now
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import (
    ArgumentsMissing,
    InvalidArguments,
    InvalidMessage,
    InvalidSetting,
    MessageTooLarge,
    UnknownDatabase,
)
from lambda_tasks.execution.current import current_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.local.event_source import build_record
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import OutboxMessage, StoredArguments, TaskRecord, TaskStatus
from lambda_tasks.operations.reaping import reap
from lambda_tasks.operations.rerunning import run_again
from lambda_tasks.outcomes import Succeeded
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.tasks import delete_old_records
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.stored import Stored
from tests.app.models import Effect
from tests.conftest import Sqs
from tests.faults.workers import lost_record, stored_in

on_each_database = pytest.mark.databases(transaction=True)
on_one_database = pytest.mark.databases("sqlite", transaction=True)

#: The limit of these tests, so that their arguments need not have a megabyte, and a string above it.
LIMIT: Final = 6_000
LARGE: Final = '注\u00e9😀\\"\n' * 600
DAY: Final = 86_400
BOTOCORE: Final = tuple(int(part) for part in botocore.__version__.split(".")[:2])
BUCKET: Final = "shop-arguments"


@lambda_task
def measure(*, text: str, times: int = 1) -> int:
    """Take an effect, and return the length of the text."""
    Effect.objects.using(get_store().database).create(name="measured")
    return len(text) * times


@lambda_task(max_retries=3)
def measure_later(*, text: str) -> int:
    task = current_task()
    assert task is not None
    if task.attempt < 3:
        raise RetryLater(delay=0)
    return len(text)


@lambda_task(unique=True, on_duplicate="replace")
def measure_latest(*, text: str) -> int:
    return len(text)


@lambda_task(sensitive=("text",))
def keep_quiet(*, text: str) -> int:
    return len(text)


@pytest.fixture
def store(database: str, sqs: Sqs) -> Iterator[str]:
    with stored_in(database):
        yield database


def use(settings: Any, places: Any = "database", **options: Any) -> None:
    settings.LAMBDA_TASKS_BACKEND = {
        "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
        "OPTIONS": {"large_arguments": places, "max_message_bytes": LIMIT, **options},
    }


@pytest.fixture
def in_database(store: str, settings: Any) -> str:
    """Store large arguments in the database of the test, and return its alias."""
    use(settings)
    return store


@pytest.fixture
def in_bucket(store: str, settings: Any, sqs: Sqs) -> Any:
    """Store large arguments in a bucket of moto, and return a client."""
    client = boto3.client("s3", endpoint_url=sqs.endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    use(settings, f"s3://{BUCKET}/large")
    return client


def call(task: Any, **arguments: Any) -> str:
    handle = task.using(database=get_store().database).execute_on_commit(**arguments)
    return str(handle.message_id)


def record_from(message: dict[str, Any]) -> dict[str, Any]:
    return build_record(message, queue_arn="arn:aws:sqs:us-east-1:123456789012:default")


def work(sqs: Sqs, *, times: int = 1) -> list[dict[str, Any]]:
    """Run all messages of the queue, and return them. Those that are acknowledged are deleted."""
    messages = sqs.receive()
    records = [record_from(message) for message in messages]
    for _ in range(times):
        failed = handler({"Records": records}, None)["batchItemFailures"]
    kept = {failure["itemIdentifier"] for failure in failed}
    for message in messages:
        if message["MessageId"] not in kept:
            sqs.client.delete_message(QueueUrl=sqs.queues["default"], ReceiptHandle=message["ReceiptHandle"])
    return messages


def rows() -> Any:
    return StoredArguments.objects.using(get_store().database)


def record_of(message_id: str) -> TaskRecord:
    return TaskRecord.objects.using(get_store().database).get(pk=message_id)


def age(days: float) -> None:
    rows().update(used_at=from_now(-days * DAY))


def objects(client: Any) -> list[str]:
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


class TestMessage:
    @on_each_database
    def test_worker_gets_the_stored_arguments(self, in_database: str, sqs: Sqs) -> None:
        message_id = call(measure, text=LARGE)
        [message] = work(sqs)
        assert len(message["Body"]) < 400
        assert json.loads(message["Body"])["stored"]["place"] == f"database:{in_database}"
        record = record_of(message_id)
        assert (record.status, record.result, record.kwargs) == (TaskStatus.SUCCESS, len(LARGE), {"text": LARGE})

    @on_one_database
    def test_small_arguments_stay_in_the_message(self, in_database: str, sqs: Sqs) -> None:
        with CaptureQueriesContext(connections[in_database]) as queries:
            call(measure, text="small")
        assert len(queries) == 0
        [message] = work(sqs)
        assert json.loads(message["Body"]) == {"task_name": measure.name, "kwargs": {"text": "small"}}

    @on_one_database
    def test_default_refuses_large_arguments(self, store: str, settings: Any) -> None:
        use(settings, None)
        with pytest.raises(MessageTooLarge, match=r"at most 6,000 bytes .* or set the option large_arguments"):
            call(measure, text=LARGE)
        assert not rows().exists()

    @on_one_database
    def test_limit_of_stored_arguments(self, in_database: str, settings: Any) -> None:
        use(settings, max_large_bytes=1_048_576)
        with pytest.raises(MessageTooLarge, match=r"at most 1,048,576 bytes .* raise the option max_large_bytes"):
            call(measure, text="x" * 1_048_576)
        assert not rows().exists()

    @on_one_database
    def test_attributes_of_a_plugin_do_not_move(self, in_database: str) -> None:
        job = Job(Invocation("shop.tasks.pack", {"text": LARGE}), "1", "1", attributes={"note": "x" * LIMIT})
        with pytest.raises(MessageTooLarge, match="at most 6,000 bytes"):
            get_backend().validate(job)

    @on_one_database
    def test_megabytes_of_japanese_text(self, in_database: str, settings: Any, sqs: Sqs) -> None:
        use(settings, max_message_bytes=1_048_576)
        text = "注" * 349_000
        call(measure, text=text)
        assert not rows().exists()  # three bytes for each character, and not six for its escape
        message_id = call(measure, text=text + "注" * 1_000)
        [row] = rows()
        work(sqs)
        assert len(row.content.encode()) == 1_050_000 + len('{"text":""}')
        assert record_of(message_id).result == 350_000

    @on_one_database
    def test_messages_leave_ten_at_a_time(self, in_database: str, sqs: Sqs) -> None:
        with transaction.atomic(using=in_database):
            calls = [call(measure, text=LARGE) for _ in range(12)]
        assert rows().count() == 12
        assert len(work(sqs)) == 10
        assert len(work(sqs)) == 2
        assert [record_of(message_id).status for message_id in calls] == [TaskStatus.SUCCESS] * 12

    @on_one_database
    def test_body_is_read_with_its_arguments(self, in_database: str, sqs: Sqs) -> None:
        call(measure, text=LARGE)
        [received] = sqs.receive()
        message = SQSLambdaTaskMessage.from_body(received["Body"])
        assert message.kwargs == {"text": LARGE}
        assert message.execute_immediately() == Succeeded(len(LARGE))


class TestTransaction:
    @on_each_database
    def test_rollback_leaves_nothing(self, in_database: str, sqs: Sqs) -> None:
        with suppress(ZeroDivisionError), transaction.atomic(using=in_database):
            call(measure, text=LARGE)
            assert rows().count() == 1
            raise ZeroDivisionError
        assert not rows().exists()
        assert work(sqs) == []

    @on_each_database
    def test_rollback_of_a_savepoint_leaves_nothing(self, in_database: str, sqs: Sqs) -> None:
        with transaction.atomic(using=in_database):
            call(measure, text=LARGE, times=2)
            with suppress(ZeroDivisionError), transaction.atomic(using=in_database):
                call(measure, text=LARGE)
                raise ZeroDivisionError
        assert rows().count() == 1
        assert len(work(sqs)) == 1

    @pytest.mark.django_db(databases=["default", "sqlite"], transaction=True)
    def test_database_without_the_table_is_refused(self, sqs: Sqs, settings: Any) -> None:
        use(settings)
        remedy = r"databases that do: default\. Pass using\(database='default'\)"
        with stored_in("default"), transaction.atomic(using="sqlite"), pytest.raises(UnknownDatabase, match=remedy):
            measure.using(database="sqlite").execute_on_commit(text=LARGE)

    @on_one_database
    def test_call_past_the_transaction_is_refused(self, in_database: str, sqs: Sqs) -> None:
        with suppress(InvalidArguments), transaction.atomic(using=in_database):
            measure.using(database=in_database).execute_now(text=LARGE)
        assert work(sqs) == []
        measure.using(database=in_database).execute_now(text=LARGE)
        assert len(work(sqs)) == 1


class TestLaterMessages:
    @on_each_database
    def test_retries_send_the_reference_again(self, in_database: str, sqs: Sqs) -> None:
        message_id = call(measure_later, text=LARGE)
        bodies = [json.loads(message["Body"]) for _ in range(3) for message in work(sqs)]
        assert [body.get("n_retries", 0) for body in bodies] == [0, 1, 2]
        assert len({json.dumps(body["stored"], sort_keys=True) for body in bodies}) == 1
        assert rows().count() == 1
        chain = TaskRecord.objects.using(in_database).chain(message_id).order_by("n_retries")
        assert [each.status for each in chain] == ["RETRYING", "RETRYING", "SUCCESS"]

    @on_one_database
    def test_record_is_run_again_with_a_copy(self, in_database: str, sqs: Sqs) -> None:
        call(measure, text=LARGE)
        work(sqs)
        rows().all().delete()
        again = run_again(TaskRecord.objects.using(in_database).get(), using=in_database)
        work(sqs)
        assert record_of(str(again.message_id)).result == len(LARGE)

    @on_one_database
    def test_lost_task_is_sent_with_a_copy(self, in_database: str, sqs: Sqs) -> None:
        message_id = lost_record(measure, kwargs={"text": LARGE})
        assert reap().sent_again == 1
        assert rows().count() == 1
        work(sqs)
        assert record_of(message_id).result == len(LARGE)


class TestRedelivery:
    @on_one_database
    def test_second_delivery_finds_the_arguments(self, in_database: str, sqs: Sqs) -> None:
        call(measure, text=LARGE)
        work(sqs, times=2)
        assert rows().count() == 1
        assert Effect.objects.using(in_database).count() == 1

    @on_each_database
    def test_ended_task_needs_no_arguments(self, in_database: str, sqs: Sqs) -> None:
        call(measure, text=LARGE)
        [message] = sqs.receive()
        record = record_from(message)
        assert handler({"Records": [record]}, None) == {"batchItemFailures": []}
        rows().all().delete()
        assert handler({"Records": [record]}, None) == {"batchItemFailures": []}
        assert Effect.objects.using(in_database).count() == 1

    @on_each_database
    def test_missing_arguments_leave_the_message_on_the_queue(
        self, in_database: str, sqs: Sqs, caplog: pytest.LogCaptureFixture
    ) -> None:
        message_id = call(measure, text=LARGE)
        [row] = rows()
        rows().all().delete()
        with caplog.at_level(logging.ERROR, "lambda_tasks"):
            [message] = work(sqs)
        assert not TaskRecord.objects.using(in_database).filter(pk=message_id).exists()
        assert "The arguments are missing: " in caplog.text
        assert f"bytes in database:{in_database}, key {row.pk} does not exist" in caplog.text
        assert LARGE[:5] not in caplog.text
        # Once they are restored, the message runs.
        row.save(using=in_database, force_insert=True)
        handler({"Records": [record_from(message)]}, None)
        assert record_of(message_id).result == len(LARGE)

    @on_one_database
    def test_changed_arguments_are_refused(self, in_database: str, sqs: Sqs, caplog: pytest.LogCaptureFixture) -> None:
        message_id = call(measure, text=LARGE)
        rows().update(content='{"text":"forged"}')
        work(sqs)
        assert "were changed after the call" in caplog.text
        assert not TaskRecord.objects.using(in_database).filter(pk=message_id).exists()

    @on_one_database
    def test_worker_without_the_option_reads_the_database(self, in_database: str, sqs: Sqs, settings: Any) -> None:
        message_id = call(measure, text=LARGE)
        use(settings, None)
        work(sqs)
        assert record_of(message_id).status == TaskStatus.SUCCESS

    @on_one_database
    def test_unknown_place_is_refused(self, in_database: str) -> None:
        for place, problem in (
            ("database:elsewhere", "which is not in DATABASES of this worker"),
            ("s3://another/prefix", "which is not in the option large_arguments"),
        ):
            stored = Stored.of("{}", place=place, key="019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10")
            with pytest.raises(ArgumentsMissing, match=problem):
                get_backend().fetch(stored)


class TestCleanup:
    @on_each_database
    def test_unused_arguments_are_deleted(self, in_database: str) -> None:
        call(measure, text=LARGE)
        age(KEPT_DAYS - 1)
        delete_old_records(7)
        assert rows().count() == 1
        age(KEPT_DAYS + 1)
        delete_old_records(60)
        assert rows().count() == 1
        delete_old_records(7)
        assert not rows().exists()

    @on_each_database
    def test_delivery_keeps_them(self, in_database: str, sqs: Sqs) -> None:
        call(measure, text=LARGE)
        age(KEPT_DAYS + 1)
        work(sqs)
        delete_old_records(7)
        assert rows().count() == 1

    @on_one_database
    def test_delivery_writes_at_most_once_a_day(self, in_database: str, sqs: Sqs) -> None:
        call(measure, text=LARGE)
        with CaptureQueriesContext(connections[in_database]) as queries:
            work(sqs)
        assert not [query for query in queries if "UPDATE" in query["sql"] and "stored" in query["sql"]]

    @on_one_database
    def test_delayed_message_counts_from_its_delivery(self, in_database: str) -> None:
        measure.using(delay=900, database=in_database).execute_on_commit(text=LARGE)
        assert rows().filter(used_at__gt=from_now(800)).exists()


class TestOutbox:
    @pytest.fixture(autouse=True)
    def _outbox(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True

    @on_each_database
    def test_row_refers_to_the_arguments(self, in_database: str, sqs: Sqs) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SQSBackend, "send", lambda self, jobs: iter(()))
            message_id = call(measure, text=LARGE)
        message = OutboxMessage.objects.using(in_database).get()
        assert len(message.body) < 400
        OutboxMessage.objects.using(in_database).update(due_at=from_now(0))
        assert get_backend().relay().sent == 1  # type: ignore[attr-defined]
        work(sqs)
        assert record_of(message_id).result == len(LARGE)

    @on_each_database
    def test_waiting_message_keeps_its_arguments(self, in_database: str) -> None:
        measure.using(delay=90 * DAY, database=in_database).execute_on_commit(text=LARGE)
        age(KEPT_DAYS + 1)
        delete_old_records(7)
        assert rows().count() == 1
        OutboxMessage.objects.using(in_database).all().delete()
        delete_old_records(7)
        assert not rows().exists()

    @on_one_database
    def test_relay_marks_arguments_as_used(self, in_database: str) -> None:
        measure.using(delay=90 * DAY, database=in_database).execute_on_commit(text=LARGE)
        age(KEPT_DAYS + 1)
        message = OutboxMessage.objects.using(in_database).get()
        get_backend().send_now([message.pk], using=in_database)  # type: ignore[attr-defined]
        delete_old_records(7)
        assert rows().count() == 1

    @on_each_database
    def test_replaced_call_gets_the_new_arguments(self, in_database: str, sqs: Sqs) -> None:
        handle = measure_latest.using(delay=5_000, database=in_database).execute_on_commit(text=LARGE)
        measure_latest.using(delay=5_000, database=in_database).execute_on_commit(text=LARGE + LARGE)
        message = OutboxMessage.objects.using(in_database).get()
        assert str(message.pk) == str(handle.message_id)
        get_backend().send_now([message.pk], using=in_database)  # type: ignore[attr-defined]
        work(sqs)
        assert record_of(str(message.pk)).result == 2 * len(LARGE)

    @on_one_database
    def test_kept_message_has_its_arguments(self, in_database: str) -> None:
        message_id = str(
            keep_quiet.using(delay=90 * DAY, database=in_database).execute_on_commit(text=LARGE).message_id
        )
        job = get_backend().find(message_id)
        assert job is not None
        assert job.message.kwargs == {"text": LARGE}


class TestBucket:
    @on_one_database
    def test_worker_gets_the_stored_arguments(self, in_bucket: Any, sqs: Sqs) -> None:
        message_id = call(measure, text=LARGE)
        [key] = objects(in_bucket)
        [message] = work(sqs)
        stored = json.loads(message["Body"])["stored"]
        assert (stored["place"], key) == (f"s3://{BUCKET}/large", f"large/{stored['key']}.json")
        assert not rows().exists()
        assert record_of(message_id).result == len(LARGE)

    @on_one_database
    def test_arguments_are_stored_before_the_commit(self, in_bucket: Any, sqs: Sqs, store: str) -> None:
        with suppress(ZeroDivisionError), transaction.atomic(using=store):
            call(measure, text=LARGE)
            assert len(objects(in_bucket)) == 1
            raise ZeroDivisionError
        assert work(sqs) == []

    @on_one_database
    def test_missing_object_leaves_the_message_on_the_queue(
        self, in_bucket: Any, sqs: Sqs, caplog: pytest.LogCaptureFixture
    ) -> None:
        call(measure, text=LARGE)
        in_bucket.delete_object(Bucket=BUCKET, Key=objects(in_bucket)[0])
        work(sqs)
        assert "A lifecycle rule has deleted it, or the prefix has changed." in caplog.text
        assert sqs.depth()["in_flight"] == 1

    @on_one_database
    def test_unavailable_bucket_leaves_the_message_on_the_queue(
        self, in_bucket: Any, sqs: Sqs, caplog: pytest.LogCaptureFixture
    ) -> None:
        message_id = call(measure, text=LARGE)
        key = objects(in_bucket)[0]
        content = in_bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        in_bucket.delete_object(Bucket=BUCKET, Key=key)
        in_bucket.delete_bucket(Bucket=BUCKET)
        [message] = work(sqs)
        assert "could not be run" in caplog.text
        in_bucket.create_bucket(Bucket=BUCKET)
        in_bucket.put_object(Bucket=BUCKET, Key=key, Body=content)
        handler({"Records": [record_from(message)]}, None)
        assert record_of(message_id).status == TaskStatus.SUCCESS

    @on_one_database
    def test_call_fails_if_the_bucket_refuses(self, in_bucket: Any, sqs: Sqs, store: str) -> None:
        in_bucket.delete_bucket(Bucket=BUCKET)
        with pytest.raises(ClientError), transaction.atomic(using=store):
            call(measure, text=LARGE)
        assert work(sqs) == []

    @pytest.mark.skipif(BOTOCORE < (1, 36), reason="moto answers CopyObject with an error of its own to older botocore")
    @on_one_database
    def test_old_object_is_copied_to_itself(self, in_bucket: Any, sqs: Sqs, monkeypatch: Any) -> None:
        in_bucket.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        for renewed_after, versions in ((DAY, 1), (-1, 2)):
            monkeypatch.setattr(bucket, "RENEWED_AFTER", renewed_after)
            message_id = call(measure, text=LARGE)
            work(sqs)
            assert record_of(message_id).status == TaskStatus.SUCCESS
            latest = max(objects(in_bucket))
            found = in_bucket.list_object_versions(Bucket=BUCKET, Prefix=latest)["Versions"]
            assert len(found) == versions
            assert len({each["ETag"] for each in found}) == 1

    @on_one_database
    def test_former_places_are_read(self, in_bucket: Any, sqs: Sqs, settings: Any) -> None:
        first = call(measure, text=LARGE)
        use(settings, ["database", f"s3://{BUCKET}/large/"])
        second = call(measure, text=LARGE)
        assert rows().count() == 1
        work(sqs)
        assert {record_of(message_id).status for message_id in (first, second)} == {TaskStatus.SUCCESS}

    @on_one_database
    def test_delay_beyond_the_lifecycle_is_refused(self, in_bucket: Any, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True
        with pytest.raises(InvalidArguments, match="must have a delay of at most 1209600 seconds, not 1209601"):
            measure.using(delay=14 * DAY + 1).execute_on_commit(text=LARGE)
        assert objects(in_bucket) == []


class TestOption:
    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ("disk", '"database" or "s3://bucket/prefix", not \'disk\''),
            ([], "or a list of them, not \\[\\]"),
            (5, "or a list of them, not 5"),
            (["database", 5], 'must be "database" or "s3://bucket/prefix", not 5'),
            ("s3://UPPER", "large_arguments contains an address that is not s3:// with a valid name"),
        ],
    )
    def test_invalid_place_is_refused(self, settings: Any, value: Any, problem: str) -> None:
        use(settings, value)
        with pytest.raises(InvalidSetting, match=problem):
            get_backend()

    def test_limit_is_at_least_that_of_sqs(self, settings: Any) -> None:
        use(settings, max_large_bytes=1_000)
        with pytest.raises(InvalidSetting, match="max_large_bytes must be an integer of at least 1048576, not 1000"):
            get_backend()


class TestReference:
    GOOD: Final = Stored.of("{}", place="database:default", key="019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10").to_json()

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"place": "file:///etc"}, "stored: place: must be a string that begins with database: or s3://"),
            ({"place": 5}, "stored: place: must be"),
            ({"key": "../secret"}, "stored: key: must be a UUID"),
            ({"bytes": True}, "stored: bytes: must be an integer"),
            ({"sha256": "0"}, "stored: sha256: must be 64 hexadecimal digits"),
            ({"more": 1}, "stored: must be an object with bytes, key, place, sha256"),
        ],
    )
    def test_malformed_reference_is_refused(self, change: dict[str, Any], problem: str) -> None:
        body = json.dumps({"task_name": "a.b", "stored": self.GOOD | change})
        with pytest.raises(InvalidMessage, match=problem):
            Invocation.of_body(body)

    def test_reference_excludes_arguments(self) -> None:
        with pytest.raises(InvalidMessage, match="stored: must be left out of a message with kwargs"):
            Invocation.of_body(json.dumps({"task_name": "a.b", "kwargs": {}, "stored": self.GOOD}))

    def test_reference_is_written_as_it_was_read(self) -> None:
        body = json.dumps({"task_name": "a.b", "stored": self.GOOD, "n_retries": 2}, separators=(",", ":"))
        assert Invocation.of_body(body).to_body() == body

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', '{"a": "\\u0000"}', "[" * 100_000])
    def test_stored_text_is_checked(self, text: str) -> None:
        with pytest.raises(InvalidMessage, match=r"The stored arguments of a\.b are invalid: "):
            Invocation("a.b").with_stored(text)
