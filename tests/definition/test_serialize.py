"""`task.serialize()`: an invocation as a plain dict, to be kept, looked at, and sent later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings
from pydantic import ValidationError

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidArguments, InvalidMessage, UnknownQueue
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import SQSLambdaTask, SQSLambdaTaskMessage, TaskRecord
from lambda_tasks.strategies import get_backend

KEY = UUID("01931a6e-8d7b-7c10-9b1f-5b6a1f6c2d10")


@dataclass
class Price:
    amount: Decimal
    since: datetime


@lambda_task
def send_welcome_email(*, user_id: int, template: str) -> str:
    return f"{template} to {user_id}"


@lambda_task(queue="other", delay=30)
def change_prices(*, prices: dict[UUID, Price], notify: tuple[str, ...] = ()) -> str:
    return ", ".join(f"{key}: {price.amount} since {price.since:%Y}" for key, price in prices.items())


PRICES = {KEY: Price(Decimal("9.90"), datetime(2025, 1, 1, tzinfo=timezone.utc))}


@pytest.fixture(autouse=True)
def _empty_queue() -> None:
    queue().clear()


def queue() -> list[Job]:
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    return backend.jobs


class TestShape:
    def test_payload_has_the_documented_shape(self) -> None:
        payload = send_welcome_email.serialize(user_id=42, template="welcome")
        assert payload == {
            "message": {
                "task_name": "tests.definition.test_serialize.send_welcome_email",
                "kwargs": {"user_id": 42, "template": "welcome"},
            },
            "delay": 0,
            "queue": "default",
        }
        assert [list(payload), list(payload["message"])] == [["message", "delay", "queue"], ["task_name", "kwargs"]]

    def test_payload_contains_queue_and_delay(self) -> None:
        """They are those of `using()`, or else of the task."""
        for task, routing in (
            (change_prices, {"delay": 30, "queue": "other"}),
            (change_prices.using(delay=0), {"delay": 0, "queue": "other"}),
            (change_prices.using(queue="default"), {"delay": 30, "queue": "default"}),
        ):
            payload = task.serialize(prices={})
            assert {name: payload[name] for name in routing} == routing

    def test_payload_contains_only_json_types(self) -> None:
        payload = change_prices.serialize(prices=PRICES, notify=("a", "b"))
        assert json.loads(json.dumps(payload, allow_nan=False)) == payload
        assert payload["message"]["kwargs"] == {
            "prices": {str(KEY): {"amount": "9.90", "since": "2025-01-01T00:00:00Z"}},
            "notify": ["a", "b"],
        }

    def test_later_changes_of_arguments_have_no_effect(self) -> None:
        @lambda_task
        def keep(*, names: list[str]) -> None: ...

        names = ["a"]
        payload = keep.serialize(names=names)
        names.append("b")
        assert payload["message"]["kwargs"] == {"names": ["a"]}

    def test_only_retries_contain_their_number(self) -> None:
        first = SQSLambdaTaskMessage(task_name="shop.tasks.send")
        assert first.model_dump(mode="json") == {"task_name": "shop.tasks.send", "kwargs": {}}
        assert first.next_retry().model_dump(mode="json") == {
            "task_name": "shop.tasks.send",
            "kwargs": {},
            "n_retries": 1,
        }

    def test_serialize_sends_nothing(self) -> None:
        change_prices.serialize(prices=PRICES)
        assert queue() == []


class TestChecks:
    def test_invalid_arguments_are_refused(self) -> None:
        wrong: Any = "42"
        with pytest.raises(InvalidArguments, match="user_id must be a valid integer"):
            send_welcome_email.serialize(user_id=wrong, template="welcome")

    def test_queue_is_not_checked(self) -> None:
        """A program that only writes payloads need not know the queues, which are checked on sending."""
        with override_settings():
            from django.conf import settings

            del settings.LAMBDA_TASKS_QUEUES
            assert change_prices.serialize(prices={})["queue"] == "other"


@pytest.mark.django_db(transaction=True)
class TestSendingLater:
    @pytest.mark.parametrize("payload", [json.dumps, lambda payload: payload], ids=["from text", "from the dict"])
    def test_payload_sends_the_same_invocation_as_a_call(self, payload: Any) -> None:
        change_prices.execute_on_commit(prices=PRICES)
        kept = payload(change_prices.serialize(prices=PRICES))

        task = SQSLambdaTask.model_validate_json(kept) if isinstance(kept, str) else SQSLambdaTask.model_validate(kept)
        handle = task.execute_on_commit()

        called, sent = queue()
        assert (sent.body, sent.queue, sent.delay, sent.task) == (
            called.body,
            called.queue,
            called.delay,
            called.task,
        )
        assert sent.message_id == handle.message_id != called.message_id

    def test_worker_runs_it_with_its_arguments(self) -> None:
        handle = SQSLambdaTask.model_validate(change_prices.serialize(prices=PRICES)).execute_on_commit()
        assert handler({"Records": [event_record(job) for job in queue()]}, None) == {"batchItemFailures": []}
        assert TaskRecord.objects.get(pk=handle.message_id).result == f"{KEY}: 9.90 since 2025"

    def test_payload_is_sent_after_the_commit(self) -> None:
        task = SQSLambdaTask.model_validate(send_welcome_email.serialize(user_id=1, template="a"))
        with transaction.atomic():
            task.execute_on_commit()
            assert queue() == []
        assert len(queue()) == 1

    def test_each_send_is_a_separate_invocation(self) -> None:
        task = SQSLambdaTask.model_validate(send_welcome_email.serialize(user_id=1, template="a"))
        ids = {task.execute_on_commit().message_id for _ in range(3)}
        assert len(ids) == 3

    def test_unknown_task_can_be_forwarded(self) -> None:
        payload = {"message": {"task_name": "another.project.tasks.do", "kwargs": {"n": 1}}, "delay": 5}
        SQSLambdaTask.model_validate(payload).execute_on_commit()
        assert [(job.task_name, job.queue, job.delay, job.task) for job in queue()] == [
            ("another.project.tasks.do", "default", 5, None)
        ]

    def test_long_delay_requires_the_outbox(self) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            payload = send_welcome_email.using(delay=901).serialize(user_id=1, template="a")
        task = SQSLambdaTask.model_validate(payload)
        with pytest.raises(InvalidArguments, match=r"send_welcome_email: delay must be .* not 901. .*_OUTBOX = True"):
            task.execute_on_commit()
        assert queue() == []
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            handle = task.execute_on_commit()
            assert handle.status == "WAITING"
        assert queue() == []

    def test_unknown_queue_is_refused_at_the_call(self) -> None:
        payload = send_welcome_email.using(queue="gone").serialize(user_id=1, template="a")
        with pytest.raises(UnknownQueue, match=r"'gone' is not in LAMBDA_TASKS_QUEUES.*send_welcome_email") as caught:
            SQSLambdaTask.model_validate(payload).execute_on_commit()
        assert isinstance(caught.value, ImproperlyConfigured)


class TestRefusedPayloads:
    @pytest.mark.parametrize(
        "change",
        [
            {"delay": 31_536_001},
            {"delay": -1},
            {"delay": "5"},
            {"delay": 1.5},
            {"delay": True},
            {"queue": ""},
            {"queue": None},
            {"priority": 1},
            {"message": {"task_name": "no_module", "kwargs": {}}},
            {"message": {"task_name": "shop..send", "kwargs": {}}},
            {"message": {"task_name": "shop.tasks send", "kwargs": {}}},
            {"message": {"task_name": "shop." + "x" * 255, "kwargs": {}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": []}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {"a": {1, 2}}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {"a": Decimal(1)}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {"a": "\x00"}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {"a": [{"\x00": 1}]}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {"a": ["\ud800"]}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {"\udfffa": 1}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {"a": float("nan")}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {"a": [float("-inf")]}}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {}, "n_retries": -1}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {}, "n_retries": 2**31}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {}, "n_retries": True}},
            {"message": {"task_name": "shop.tasks.send", "kwargs": {}, "args": []}},
            {"message": {"kwargs": {}}},
            {"message": None},
        ],
        ids=str,
    )
    def test_malformed_payload_is_refused(self, change: dict[str, Any]) -> None:
        payload = send_welcome_email.serialize(user_id=1, template="a") | change
        with pytest.raises(ValidationError):
            SQSLambdaTask.model_validate(payload)

    def test_malformed_body_is_refused_without_quoting_arguments(self) -> None:
        for body in (
            "",
            "{",
            "[]",
            "null",
            '{"task_name": "shop.tasks.send", "kwargs": {"a": "hunter2"}, "more": 1}',
            '{"task_name": 5, "kwargs": {"password": "hunter2"}}',
            '{"task_name": "shop.tasks.send", "kwargs": {"a": "hunter2\\u0000"}}',
            '{"task_name": "shop.tasks.send", "kwargs": {"a": "hunter2", "b": NaN}}',
            '{"task_name": "shop.tasks.send", "kwargs": {"a": "hunter2", "b": -Infinity}}',
            '{"task_name": "shop.tasks.send", "kwargs": {"a": "hunter2 \\ud800"}}',
        ):
            with pytest.raises(InvalidMessage, match="is not a valid task invocation") as caught:
                SQSLambdaTaskMessage.from_body(body)
            assert "hunter2" not in str(caught.value)

    @pytest.mark.django_db(transaction=True)
    def test_worker_refuses_invalid_arguments_without_a_record(self) -> None:
        payload = {"message": {"task_name": send_welcome_email.name, "kwargs": {"user_id": "hunter2"}}}
        task = SQSLambdaTask.model_validate(payload)
        with pytest.raises(InvalidMessage, match="template is missing") as caught:
            task.message.execute_immediately()
        assert "hunter2" not in str(caught.value)
        assert not TaskRecord.objects.exists()
