"""`expires_in`: messages that have waited too long on the queue are not run; their records show it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.models import SQSLambdaTaskMessage, TaskRecord
from lambda_tasks.outcomes import Failed
from lambda_tasks.strategies import get_backend
from tests.app.models import Effect

pytestmark = pytest.mark.django_db(transaction=True)


class Busy(Exception):
    pass


@lambda_task(expires_in=600)
def remind(*, name: str) -> None:
    Effect.objects.create(name=name)


@lambda_task(expires_in=600, retry_on=[Busy], retry_delay=60)
def stumble() -> None:
    Effect.objects.create(name="rolled back")
    raise Busy


@lambda_task
def patient(*, name: str) -> None:
    Effect.objects.create(name=name)


@pytest.fixture(autouse=True)
def _empty_queue() -> None:
    backend().jobs.clear()


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def sent(task: Any, /, *, ago: float, **kwargs: Any) -> dict[str, Any]:
    """Return the record of a message that SQS accepted this many seconds ago."""
    task.execute_on_commit(**kwargs)
    return aged(event_record(backend().take()[-1]), ago=ago)


def aged(record: dict[str, Any], *, ago: float) -> dict[str, Any]:
    moment = str(int((time.time() - ago) * 1000))
    return record | {"attributes": {**record["attributes"], "SentTimestamp": moment}}


def acknowledged(record: dict[str, Any]) -> bool:
    return handler({"Records": [record]}, None) == {"batchItemFailures": []}


def effects() -> int:
    return Effect.objects.count()


class TestExpired:
    def test_expired_message_is_acknowledged_and_fails(self) -> None:
        assert acknowledged(sent(remind, ago=700, name="a"))
        assert effects() == 0
        record = TaskRecord.objects.get()
        assert record.status == "FAILED"
        assert f"TaskExpiredError: expired: {remind.name} was sent 700 s ago, and its expires_in is 600 s" in (
            record.traceback
        )

    def test_copy_of_an_expired_message_changes_nothing(self) -> None:
        record = sent(remind, ago=700, name="a")
        assert acknowledged(record)
        assert acknowledged(record)
        assert TaskRecord.objects.count() == 1

    def test_younger_message_runs(self) -> None:
        assert acknowledged(sent(remind, ago=500, name="a"))
        assert effects() == 1

    def test_late_copy_does_not_expire_finished_work(self) -> None:
        record = sent(remind, ago=0, name="a")
        assert acknowledged(record)
        assert acknowledged(aged(record, ago=7_000))
        assert TaskRecord.objects.get().status == "SUCCESS"

    def test_message_without_the_option_never_expires(self) -> None:
        assert acknowledged(sent(patient, ago=1_000_000, name="a"))
        assert effects() == 1

    def test_slow_clock_expires_nothing(self) -> None:
        """The worker's clock is behind the clock of SQS."""
        assert acknowledged(sent(remind, ago=-30, name="a"))
        assert effects() == 1

    @pytest.mark.parametrize("timestamp", [None, "", "soon", "-5", "9" * 5_000, 5], ids=lambda value: repr(value)[:9])
    def test_message_without_a_timestamp_runs(self, timestamp: Any) -> None:
        record = sent(remind, ago=700, name="a")
        attributes = {"SentTimestamp": timestamp, "ApproximateReceiveCount": timestamp}
        assert acknowledged(record | {"attributes": attributes})
        assert effects() == 1

    def test_plugins_receive_only_the_finish(self) -> None:
        heard = []

        class Listening:
            @hookimpl
            def lambda_task_started(self) -> None:
                heard.append("started")

            @hookimpl
            def lambda_task_finished(self, outcome: Any) -> None:
                assert isinstance(outcome, Failed)
                heard.append(type(outcome.error).__name__)

        with override_settings(LAMBDA_TASKS_PLUGINS=[Listening()]):
            assert acknowledged(sent(remind, ago=700, name="a"))
        assert heard == ["TaskExpiredError"]


class TestRetries:
    def test_retries_are_as_old_as_the_first_invocation(self) -> None:
        assert acknowledged(sent(stumble, ago=500))
        [retry] = backend().take_records()
        first_sent = int(retry["messageAttributes"]["lambda_tasks.first_sent"]["stringValue"]) / 1000
        assert 490 < time.time() - first_sent < 530

        # SQS has just accepted the retry, and 110 s have passed.
        early = str(int((first_sent - 110) * 1000))
        retry["messageAttributes"]["lambda_tasks.first_sent"]["stringValue"] = early
        assert acknowledged(retry)
        assert backend().jobs == []
        assert list(TaskRecord.objects.order_by("n_retries").values_list("status", flat=True)) == ["RETRYING", "FAILED"]
        assert "expired: " in TaskRecord.objects.get(n_retries=1).traceback

    def test_first_sent_is_copied_to_each_retry(self) -> None:
        assert acknowledged(sent(stumble, ago=300))
        [first] = backend().take_records()
        assert acknowledged(aged(first, ago=10))
        [second] = backend().take_records()
        name = "lambda_tasks.first_sent"
        assert second["messageAttributes"][name] == first["messageAttributes"][name]

    def test_other_tasks_do_not_carry_first_sent(self) -> None:
        @lambda_task(retry_on=[Busy])
        def task() -> None:
            raise Busy

        assert acknowledged(sent(task, ago=300))
        [retry] = backend().take_records()
        assert "lambda_tasks.first_sent" not in retry["messageAttributes"]

    def test_plugins_do_not_see_first_sent(self) -> None:
        seen = []

        class Listening:
            @hookimpl
            def lambda_task_started(self, run: Any) -> None:
                seen.append(dict(run.attributes))

        with override_settings(LAMBDA_TASKS_PLUGINS=[Listening()]):
            acknowledged(sent(stumble, ago=0))
            acknowledged(backend().take_records()[0])
        assert seen == [{}, {}]


class TestImmediateExecution:
    def test_eager_mode_never_expires(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True, LAMBDA_TASKS_MAX_RETRIES=2):
            remind.execute_on_commit(name="a")
            stumble.execute_on_commit()
        assert effects() == 1
        assert not TaskRecord.objects.filter(traceback__contains="expired").exists()

    def test_execute_immediately_never_expires(self) -> None:
        SQSLambdaTaskMessage(task_name=remind.name, kwargs={"name": "a"}).execute_immediately()
        assert effects() == 1
