"""Each record says why it has its status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import (
    LockError,
    LockUnavailable,
    MaxRetriesExceededError,
    ResultNotSerializable,
    RetryLater,
    TaskCancelled,
    TaskCrashedError,
    TaskExpiredError,
    TaskLostError,
    TransactionBroken,
)
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.models import TaskReason, TaskRecord
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.stores.reasons import reason_of
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation


class Away(Exception):
    pass


@lambda_task
def returning() -> int:
    return 1


@lambda_task(ignore_errors=(Away,))
def ignoring() -> None:
    raise Away


@lambda_task
def failing() -> None:
    raise Away


@lambda_task(retry_on=(Away,))
def retrying() -> None:
    raise Away


@lambda_task(retry_on=(Away,), max_retries=0)
def exhausted() -> None:
    raise Away


@lambda_task
def unserialisable() -> object:
    return object()


def record_of(task: Any) -> TaskRecord:
    message_id = ids.new_message_id()
    execute(Invocation(task.name, {}), message_id=message_id, task=task, limited=False)
    return TaskRecord.objects.get(pk=message_id)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("task", "status", "reason"),
    [
        (returning, "SUCCESS", ""),
        (ignoring, "SUCCESS", "ignored"),
        (failing, "FAILED", "error"),
        (retrying, "RETRYING", "error"),
        (exhausted, "FAILED", "max_retries"),
        (unserialisable, "FAILED", "broken"),
    ],
    ids=lambda value: getattr(value, "name", "").rpartition(".")[2] or None,
)
def test_record_has_the_reason_of_its_status(task: Any, status: str, reason: str) -> None:
    record = record_of(task)
    assert (record.status, record.reason) == (status, reason)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MaxRetriesExceededError("no more"), TaskReason.MAX_RETRIES),
        (TaskExpiredError("old"), TaskReason.EXPIRED),
        (TaskCancelled("cancelled"), TaskReason.CANCELLED),
        (TaskCrashedError("crashed"), TaskReason.CRASHED),
        (TaskLostError("lost"), TaskReason.LOST),
        (ResultNotSerializable("object"), TaskReason.BROKEN),
        (TransactionBroken("broken"), TaskReason.BROKEN),
        (RetryLater(), TaskReason.RETRY_LATER),
        (LockError("held"), TaskReason.LOCK),
        (LockUnavailable("away"), TaskReason.LOCK),
        (SoftTimeLimitExceeded("soft"), TaskReason.SOFT_TIMEOUT),
        (HardTimeLimitExceeded("hard"), TaskReason.HARD_TIMEOUT),
        (Away(), TaskReason.ERROR),
        (KeyboardInterrupt(), TaskReason.ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
@pytest.mark.parametrize("outcome", [Failed, Retry])
def test_reason_is_that_of_the_error(
    outcome: Callable[[BaseException], Outcome], error: BaseException, reason: TaskReason
) -> None:
    assert reason_of(outcome(error)) == reason


def test_success_has_no_reason() -> None:
    assert reason_of(Succeeded(1)) is None
    assert reason_of(Ignored(LockError("held"))) == TaskReason.IGNORED


def test_every_reason_fits_its_column() -> None:
    length = TaskRecord._meta.get_field("reason").max_length
    assert length is not None
    assert all(len(reason) <= length for reason in TaskReason.values)
