"""Functions with Django's `@task`, from Django 6.0 or later or from the package `django-tasks`."""

from __future__ import annotations

from typing import Any

from lambda_tasks import RetryLater
from lambda_tasks.contrib.django_tasks import lambda_options
from lambda_tasks.contrib.django_tasks.compat import Task
from tests.app.models import Effect

try:
    from django.tasks import task
except ModuleNotFoundError:
    from django_tasks import task

__all__ = ["Task", "task"]


class OutOfStock(Exception):
    """An error of a task, whose path is that of a class outside of the builtins."""


@task
def add(first: int, second: int = 1) -> int:
    return first + second


@task
def first_delayed() -> None:
    """Do nothing. In tests, its first call has a time."""


@task
def collect(first: Any, /, *rest: Any, last: Any = None, **others: Any) -> list[Any]:
    return [first, list(rest), last, others]


@task
async def add_async(first: int, second: int = 1) -> int:
    await Effect.objects.acreate(name=f"async {first}")
    return first + second


@task
def fail(message: str) -> None:
    Effect.objects.create(name="never seen")
    raise OutOfStock(message)


@task
@lambda_options(retry_on=(OutOfStock,), max_retries=2)
def fail_and_retry(message: str) -> None:
    raise OutOfStock(message)


@task(takes_context=True)
@lambda_options(retry_on=(OutOfStock,), max_retries=5)
def attempt_until(context: Any, attempt: int) -> list[Any]:
    if context.attempt < attempt:
        raise OutOfStock(f"attempt {context.attempt}")
    result = context.task_result
    return [result.id, context.attempt, [error.exception_class_path for error in result.errors], result.args]


@task(takes_context=True)
async def context_of_coroutine(context: Any) -> str:
    return str(context.task_result.id)


@task
def ask_for_later() -> None:
    raise RetryLater(delay=1)


@lambda_options(group="key")
@task
def of_tenant(key: str) -> None: ...


@lambda_options(unique="key")
@task
def once(key: str, note: str = "") -> str:
    return note


@task
@lambda_options(unique="key", on_duplicate="replace")
def latest(key: str, note: str = "") -> str:
    return note


@task
@lambda_options(singleton="key", on_contention="skip")
def exclusive(key: str) -> None: ...


@task
@lambda_options(sensitive=("token",))
def secret(token: str) -> None:
    raise ValueError(f"{token} is wrong")
