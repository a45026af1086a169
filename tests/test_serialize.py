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
    def test_it_is_the_documented_one(self) -> None:
        payload = send_welcome_email.serialize(user_id=42, template="welcome")
        assert payload == {
            "message": {
                "task_name": "tests.test_serialize.send_welcome_email",
                "kwargs": {"user_id": 42, "template": "welcome"},
            },
            "delay": 0,
            "queue": "default",
        }
        assert [list(payload), list(payload["message"])] == [["message", "delay", "queue"], ["task_name", "kwargs"]]

    def test_it_has_the_queue_and_the_delay_of_the_task_or_of_this_call(self) -> None:
        for task, routing in (
            (change_prices, {"delay": 30, "queue": "other"}),
            (change_prices.using(delay=0), {"delay": 0, "queue": "other"}),
            (change_prices.using(queue="default"), {"delay": 30, "queue": "default"}),
        ):
            payload = task.serialize(prices={})
            assert {name: payload[name] for name in routing} == routing

    def test_it_consists_of_what_json_knows(self) -> None:
        payload = change_prices.serialize(prices=PRICES, notify=("a", "b"))
        assert json.loads(json.dumps(payload, allow_nan=False)) == payload
        assert payload["message"]["kwargs"] == {
            "prices": {str(KEY): {"amount": "9.90", "since": "2025-01-01T00:00:00Z"}},
            "notify": ["a", "b"],
        }

    def test_what_happens_to_the_arguments_afterwards_does_not_change_it(self) -> None:
        @lambda_task
        def keep(*, names: list[str]) -> None: ...

        names = ["a"]
        payload = keep.serialize(names=names)
        names.append("b")
        assert payload["message"]["kwargs"] == {"names": ["a"]}

    def test_the_number_of_the_retry_stands_in_it_only_where_there_is_one(self) -> None:
        first = SQSLambdaTaskMessage(task_name="shop.tasks.send")
        assert first.model_dump(mode="json") == {"task_name": "shop.tasks.send", "kwargs": {}}
        assert first.next_retry().model_dump(mode="json") == {
            "task_name": "shop.tasks.send",
            "kwargs": {},
            "n_retries": 1,
        }

    def test_nothing_is_sent(self) -> None:
        change_prices.serialize(prices=PRICES)
        assert queue() == []


class TestChecks:
    def test_it_refuses_the_arguments_that_a_send_refuses(self) -> None:
        wrong: Any = "42"
        with pytest.raises(InvalidArguments, match="user_id: Input should be a valid integer"):
            send_welcome_email.serialize(user_id=wrong, template="welcome")

    def test_it_asks_no_settings(self) -> None:
        """A program that only writes payloads need not know the queues; sending checks them."""
        with override_settings():
            from django.conf import settings

            del settings.LAMBDA_TASKS_QUEUES
            assert change_prices.serialize(prices={})["queue"] == "other"


@pytest.mark.django_db(transaction=True)
class TestSendingLater:
    @pytest.mark.parametrize("payload", [json.dumps, lambda payload: payload], ids=["from text", "from the dict"])
    def test_it_is_the_invocation_that_the_call_would_have_sent(self, payload: Any) -> None:
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

    def test_the_worker_runs_it_with_the_arguments_that_were_given(self) -> None:
        handle = SQSLambdaTask.model_validate(change_prices.serialize(prices=PRICES)).execute_on_commit()
        assert handler({"Records": [event_record(job) for job in queue()]}, None) == {"batchItemFailures": []}
        assert TaskRecord.objects.get(pk=handle.message_id).result == f"{KEY}: 9.90 since 2025"

    def test_it_waits_for_the_commit(self) -> None:
        task = SQSLambdaTask.model_validate(send_welcome_email.serialize(user_id=1, template="a"))
        with transaction.atomic():
            task.execute_on_commit()
            assert queue() == []
        assert len(queue()) == 1

    def test_each_send_is_an_invocation_of_its_own(self) -> None:
        task = SQSLambdaTask.model_validate(send_welcome_email.serialize(user_id=1, template="a"))
        ids = {task.execute_on_commit().message_id for _ in range(3)}
        assert len(ids) == 3

    def test_a_task_that_this_process_does_not_know_can_be_forwarded(self) -> None:
        payload = {"message": {"task_name": "another.project.tasks.do", "kwargs": {"n": 1}}, "delay": 5}
        SQSLambdaTask.model_validate(payload).execute_on_commit()
        assert [(job.task_name, job.queue, job.delay, job.task) for job in queue()] == [
            ("another.project.tasks.do", "default", 5, None)
        ]

    def test_a_delay_that_sqs_does_not_take_is_refused_at_the_call_where_no_outbox_keeps_it(self) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            payload = send_welcome_email.using(delay=901).serialize(user_id=1, template="a")
        task = SQSLambdaTask.model_validate(payload)
        with pytest.raises(InvalidArguments, match=r"send_welcome_email: delay is 901; .* LAMBDA_TASKS_OUTBOX = True"):
            task.execute_on_commit()
        assert queue() == []
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            handle = task.execute_on_commit()
            assert handle.status == "WAITING"
        assert queue() == []

    def test_a_queue_that_is_not_in_the_settings_is_refused_at_the_call(self) -> None:
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
    def test_a_payload_of_another_shape_is_refused(self, change: dict[str, Any]) -> None:
        payload = send_welcome_email.serialize(user_id=1, template="a") | change
        with pytest.raises(ValidationError):
            SQSLambdaTask.model_validate(payload)

    def test_the_body_of_a_message_has_the_same_rules_and_its_error_quotes_no_argument(self) -> None:
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
            with pytest.raises(InvalidMessage, match="is no invocation of a task") as caught:
                SQSLambdaTaskMessage.from_body(body)
            assert "hunter2" not in str(caught.value)

    @pytest.mark.django_db(transaction=True)
    def test_arguments_that_do_not_fit_the_task_are_refused_by_the_worker_before_anything_is_recorded(self) -> None:
        payload = {"message": {"task_name": send_welcome_email.name, "kwargs": {"user_id": "hunter2"}}}
        task = SQSLambdaTask.model_validate(payload)
        with pytest.raises(InvalidMessage, match="template: Field required") as caught:
            task.message.execute_immediately()
        assert "hunter2" not in str(caught.value)
        assert not TaskRecord.objects.exists()
