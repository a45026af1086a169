"""LAMBDA_TASKS_UNKNOWN_ARGUMENTS: what a worker does with arguments of a newer version of a task."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidArguments, InvalidMessage
from lambda_tasks.handler import handler
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import new_message_id

pytestmark = pytest.mark.django_db(transaction=True)

dropping = override_settings(LAMBDA_TASKS_UNKNOWN_ARGUMENTS="drop")


@lambda_task(retry_on=(ConnectionError,))
def ship(*, order: int, fail: bool = False) -> int:
    if fail:
        raise ConnectionError
    return order


def newer(**kwargs: Any) -> SQSLambdaTaskMessage:
    """Return the message of a newer version, which has the parameter `carrier`."""
    return SQSLambdaTaskMessage(task_name=ship.name, kwargs={"order": 7, "carrier": "post", **kwargs})


def test_unknown_argument_is_refused_by_default() -> None:
    with pytest.raises(InvalidMessage, match="carrier"):
        newer().execute_immediately()
    assert not TaskRecord.objects.exists()


@dropping
def test_unknown_argument_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    key = new_message_id()
    with caplog.at_level(logging.WARNING, "lambda_tasks.executor"):
        newer().execute_immediately(key)
    record = TaskRecord.objects.get(pk=key)
    assert (record.status, record.result) == ("SUCCESS", 7)
    assert record.kwargs == {"order": 7, "carrier": "post"}  # as it was sent
    [line] = [entry.getMessage() for entry in caplog.records if "carrier" in entry.getMessage()]
    assert f"{ship.name} has no parameter for carrier" in line
    assert "post" not in line


@dropping
def test_names_of_dropped_arguments_are_short_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    newer(**{f"x{number}\nCRITICAL{'x' * 300}": 1 for number in range(9)}).execute_immediately()
    [line] = [entry.getMessage() for entry in caplog.records if "has no parameter" in entry.getMessage()]
    assert "\n" not in line
    assert "10 arguments were dropped" in line
    assert len(line) < 800


@dropping
def test_retry_keeps_the_dropped_argument() -> None:
    """A newer worker may run the retry."""
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    backend.jobs.clear()
    newer(fail=True).execute_immediately()
    [job] = backend.take()
    assert job.message.kwargs == {"order": 7, "carrier": "post", "fail": True}


@dropping
def test_other_problems_are_refused_all_the_same() -> None:
    with pytest.raises(InvalidMessage, match="order must be a valid integer, not str"):
        newer(order="7").execute_immediately()
    with pytest.raises(InvalidArguments, match="carrier"):
        ship.execute_on_commit(order=7, carrier="post")  # type: ignore[call-arg]


@dropping
def test_handler_acknowledges_the_message() -> None:
    record = {"messageId": new_message_id(), "body": newer().to_body()}
    assert handler({"Records": [record]}, None) == {"batchItemFailures": []}
