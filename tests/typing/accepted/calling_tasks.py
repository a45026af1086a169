"""What a project writes, and what the type checker makes of it."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from typing_extensions import assert_type

from lambda_tasks import lambda_task
from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.handles import TaskHandle
from lambda_tasks.models import (
    MaxRetriesExceededError,
    SQSLambdaTask,
    SQSLambdaTaskMessage,
    TaskRecord,
    TaskStatus,
)
from lambda_tasks.tasks import cleanup_task_records


class RateLimited(Exception):
    pass


@lambda_task
def plain(*, user_id: int, template: str = "welcome") -> str:
    return f"{user_id} {template}"


@lambda_task()
def with_brackets(*, key: UUID | None) -> None: ...


@lambda_task(
    soft_timeout=60,
    hard_timeout=None,
    queue="high_memory",
    ignore_errors={KeyError},
    retry_on=[RateLimited, OSError],
    retry_delay=30,
    singleton=True,
    delay=900,
    group="price",
    on_crash="fail",
    record="failures",
    retry_backoff=True,
    max_retries=10,
    expires_in=3600,
    aliases=["shop.tasks.with_many_options"],
    sensitive=("since",),
)
def with_options(*, since: datetime, price: Decimal) -> list[int]:
    return []


@lambda_task(retry_on=(error for error in (RateLimited,)), max_retries=None, expires_in=None)
def without_parameters() -> None: ...


@lambda_task(queue="other")
async def asynchronous(*, number: int) -> int:
    return number


def function(*, name: str) -> bytes:
    return name.encode()


made = LambdaTaskWrapper(function, queue="other", ignore_errors=(KeyError,))

assert_type(plain(user_id=1), str)
assert_type(plain(user_id=1, template="a"), str)
assert_type(with_options(since=datetime.now(), price=Decimal(1)), list[int])  # noqa: DTZ005
coroutine: Coroutine[Any, Any, int] = asynchronous(number=1)
assert_type(made(name="Ada"), bytes)
assert_type(cleanup_task_records(retention_days=30), int)
without_parameters()

assert_type(plain.execute_on_commit(user_id=1), TaskHandle[str])
assert_type(plain.execute_on_commit(user_id=1).cancel(), bool)
assert_type(plain.execute_on_commit(user_id=1).message_id, str)
assert_type(with_brackets.execute_on_commit(key=None), TaskHandle[None])
assert_type(asynchronous.execute_on_commit(number=1), TaskHandle[int])
assert_type(made.execute_on_commit(name="Ada"), TaskHandle[bytes])
without_parameters.execute_on_commit()
cleanup_task_records.execute_on_commit()

assert_type(plain.serialize(user_id=1), dict[str, Any])
plain.using(delay=60, queue="other").execute_on_commit(user_id=1, template="a")
assert_type(plain.using(queue="other")(user_id=1), str)
assert_type(plain.timeouts(), tuple[int, int])
assert_type(plain.retry_on, tuple[type[BaseException], ...])
assert_type(plain.name, str)
assert_type(plain.aliases, tuple[str, ...])
assert_type(plain.max_retries, int | None)
assert_type(plain.expires_in, int | None)
assert_type(plain.retry_backoff, bool)

assert_type(SQSLambdaTask.model_validate(plain.serialize(user_id=1)).execute_on_commit(), TaskHandle[Any])
assert_type(SQSLambdaTaskMessage(task_name="shop.tasks.plain", kwargs={"user_id": 1}).n_retries, int)
failed = TaskRecord.objects.filter(
    status=TaskRecord.TaskStatus.FAILED, pk=plain.execute_on_commit(user_id=1).message_id
)
chain = TaskRecord.objects.using("default").chain(plain.execute_on_commit(user_id=1).message_id)
latest = TaskRecord.objects.latest()
same = TaskRecord.TaskStatus.FAILED == TaskStatus.FAILED

with suppress(MaxRetriesExceededError):
    SQSLambdaTaskMessage(task_name="shop.tasks.plain").execute_immediately()


class Sender:
    """Keeps a task of any signature."""

    def __init__(self, task: LambdaTaskWrapper[..., Any]) -> None:
        self.task = task

    def send(self, **arguments: Any) -> TaskHandle:
        return self.task.execute_on_commit(**arguments)


Sender(plain).send(user_id=1)
