"""Statistics for operators: what each counts, on every database, and how many records it reads at most."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from django.db import connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from lambda_tasks.models import OutboxMessage, TaskReason, TaskRecord, TaskStatus
from lambda_tasks.operations import statistics
from lambda_tasks.operations.queues import depths
from lambda_tasks.operations.statistics import (
    counts,
    durations,
    error_class,
    outboxes,
    running,
    throughput,
    top_errors,
    window,
)
from lambda_tasks.wire.ids import new_message_id
from tests.conftest import Sqs
from tests.courier import use_outbox
from tests.faults.workers import stored_in

EVERYWHERE: Final = pytest.mark.databases(transaction=True)
HOUR: Final = timedelta(hours=1)


@pytest.fixture
def store(database: str) -> Iterator[str]:
    with stored_in(database):
        yield database


def id_made_at(moment: datetime) -> UUID:
    """Return a UUIDv7 of this time."""
    return UUID(int=int(moment.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | uuid4().int & (2**62 - 1))


def record(store: str, start: datetime, *, waited: float = 0.0, ran: float | None = 1.0, **fields: Any) -> TaskRecord:
    values: dict[str, Any] = {
        "id": id_made_at(start - timedelta(seconds=waited)),
        "task_name": "shop.tasks.send",
        "status": TaskStatus.SUCCESS,
        "start_time": start,
        "end_time": None if ran is None else start + timedelta(seconds=ran),
    }
    return TaskRecord.objects.using(store).create(**values | fields)


@EVERYWHERE
class TestRecords:
    def test_statuses_are_counted(self, store: str) -> None:
        now = window().now
        for hours in (0.5, 2, 3, 30):
            record(store, now - hours * HOUR)
        record(store, now - 2 * HOUR, status=TaskStatus.FAILED)
        found = {count.status: (count.last_hour, count.in_window) for count in counts(window())}
        assert found == {"RUNNING": (0, 0), "SUCCESS": (1, 3), "FAILED": (0, 1), "RETRYING": (0, 0)}

    def test_buckets_cover_the_window_without_gaps(self, store: str) -> None:
        of = window(hours=6)
        for hours in (0.001, 2.5, 2.51, 7):
            record(store, of.now - hours * HOUR)
        record(store, of.now - 2.5 * HOUR, status=TaskStatus.FAILED)
        record(store, of.now - 2.5 * HOUR, status=TaskStatus.RETRYING)
        buckets = throughput(of, seconds=3600)
        assert [each.at for each in buckets] == [buckets[0].at + number * HOUR for number in range(len(buckets))]
        assert buckets[0].at <= of.since < buckets[0].at + HOUR
        assert buckets[-1].at <= of.now < buckets[-1].at + HOUR
        (busy,) = [each for each in buckets if each.at <= of.now - 2.5 * HOUR < each.at + HOUR]
        assert (busy.failed, busy.retried, busy.succeeded + busy.failed + busy.retried) == (1, 1, busy.started)
        assert sum(each.started for each in buckets) == 5

    def test_durations_are_percentiles_of_each_task(self, store: str) -> None:
        now = window().now
        for number in range(1, 6):
            record(store, now - HOUR, waited=10 * number, ran=number)
        record(store, now - HOUR, task_name="shop.tasks.other", id=uuid4(), ran=None, status=TaskStatus.RUNNING)
        first, second = durations(window())
        assert (first.task_name, first.count) == ("shop.tasks.send", 5)
        assert (first.running_p50, first.running_max) == (pytest.approx(3), pytest.approx(5))
        assert first.running_p95 == pytest.approx(4.8)
        assert first.waiting_p50 == pytest.approx(30, abs=0.01)
        assert first.waiting_max == pytest.approx(50, abs=0.01)
        assert (second.count, second.running_p50, second.waiting_max) == (1, None, None)

    def test_clock_ahead_makes_no_negative_wait(self, store: str) -> None:
        record(store, window().now - HOUR, waited=-5)
        assert durations(window())[0].waiting_p50 == 0

    def test_errors_are_grouped_by_task_and_class(self, store: str) -> None:
        now = window().now
        failed: dict[str, Any] = {"status": TaskStatus.FAILED, "reason": TaskReason.ERROR}
        for minutes in (5, 3, 4):
            text = f"Traceback …\n  File …\nshop.errors.Refused: order {minutes}\n"
            last = record(store, now - timedelta(minutes=minutes), traceback=text, **failed)
        record(store, now - HOUR, traceback="KeyError", **failed)
        record(store, now - 30 * HOUR, traceback="OSError", **failed)
        refused, missing = top_errors(window())
        assert (refused.error, refused.count, refused.reason) == ("Refused", 3, "error")
        assert refused.latest_id != last.pk
        assert (missing.error, missing.count) == ("KeyError", 1)

    def test_oldest_running_record_is_found(self, store: str) -> None:
        assert running(window()) == statistics.Running()
        now = window().now
        oldest = record(store, now - 50 * HOUR, status=TaskStatus.RUNNING, ran=None)
        record(store, now - HOUR, status=TaskStatus.RUNNING, ran=None)
        found = running(window())
        assert (found.count, found.oldest_id, found.oldest_task) == (2, oldest.pk, "shop.tasks.send")
        assert found.since == now - 50 * HOUR

    def test_window_ends_where_records_become_too_many(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, "MOST_RECORDS", 3)
        now = window().now
        for minutes in range(1, 6):
            record(store, now - timedelta(minutes=minutes))
        of = window()
        assert not of.complete
        assert of.since == now - timedelta(minutes=3)
        assert sum(count.in_window for count in counts(of)) == 3

    def test_each_statistic_is_few_queries(self, store: str) -> None:
        record(store, window().now - HOUR)
        of = window()
        with CaptureQueriesContext(connections[store]) as queries:
            counts(of)
            throughput(of)
            durations(of)
            top_errors(of)
        assert len(queries) == 4
        # The plan on a small table does not show it: only with this condition, an index has all that they need.
        assert [" IN (" in query["sql"] for query in queries] == [True, True, False, False]


@EVERYWHERE
def test_outbox_has_a_number_and_an_age(store: str, settings: Any) -> None:
    use_outbox(settings, store)
    now = window().now
    for due in (now - HOUR, now + HOUR, None):
        OutboxMessage.objects.using(store).create(id=new_message_id(), created_at=now - 2 * HOUR, due_at=due)
    (found,) = outboxes(window())
    assert (found.database, found.waiting, found.dead) == (store, 2, 1)
    assert (found.oldest, found.due_since) == (now - 2 * HOUR, now - HOUR)


@pytest.mark.django_db
class TestTime:
    def test_local_time_is_understood(self) -> None:
        with override_settings(USE_TZ=False, TIME_ZONE="America/New_York"):
            of = window()
            record("default", of.now - HOUR, waited=2)
            assert sum(count.in_window for count in counts(window())) == 1
            assert durations(window())[0].waiting_p50 == pytest.approx(2, abs=0.01)
            assert of.now.tzinfo is None

    def test_settings_without_an_outbox_have_none(self) -> None:
        assert outboxes(window()) == []


@pytest.mark.parametrize(
    ("text", "reason", "name"),
    [
        ("Traceback …\nshop.errors.Refused: no\n", "error", "Refused"),
        (
            "…\nKeyError: 7\n\nThe above exception was the direct cause of the following exception:\n\nMax: 3",
            "max_retries",
            "KeyError",
        ),
        ("a sentence without a class", "error", ""),
        (None, "error", ""),
    ],
)
def test_class_of_an_error_is_read(text: str | None, reason: str, name: str) -> None:
    assert error_class(text, reason=reason) == name


class TestDepths:
    def test_queues_and_dead_letter_queues_are_counted(self, sqs: Sqs) -> None:
        dead = sqs.client.create_queue(QueueName="dead")["QueueUrl"]
        arn = sqs.client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": 3}}'
        sqs.client.set_queue_attributes(QueueUrl=sqs.queues["default"], Attributes={"RedrivePolicy": policy})
        sqs.client.send_message(QueueUrl=dead, MessageBody="x")
        sqs.client.send_message(QueueUrl=sqs.queues["default"], MessageBody="x", DelaySeconds=60)
        default, other = depths()
        assert (default.visible, default.delayed, default.in_flight) == (0, 1, 0)
        assert (default.dead_letter_queue, default.dead) == ("dead", 1)
        assert (other.visible, other.dead_letter_queue, other.problem) == (0, None, "")

    def test_missing_queues_are_problems(self, sqs: Sqs, settings: Any) -> None:
        url = sqs.queues["default"].replace("default", "gone")
        settings.LAMBDA_TASKS_QUEUES = {"default": url, "bad": "bad"}
        gone, bad = depths()
        assert "NonExistentQueue" in gone.problem
        assert (gone.visible, bad.problem.startswith("The URL must be")) == (None, True)

    @pytest.mark.parametrize("changes", [{"LAMBDA_TASKS_EAGER": True}, {"LAMBDA_TASKS_QUEUES": None}])
    def test_settings_that_use_no_queue_have_none(self, sqs: Sqs, settings: Any, changes: dict[str, Any]) -> None:
        for name, value in changes.items():
            if value is None:
                delattr(settings, name)
            else:
                setattr(settings, name, value)
        assert depths() == []
