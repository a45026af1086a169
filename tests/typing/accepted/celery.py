"""Tasks of `lambda_tasks.contrib.celery` keep the types of their functions, without `self` if they are bound."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from typing_extensions import assert_type

from lambda_tasks.contrib.celery import (
    AsyncResult,
    ChainResult,
    GroupResult,
    Retry,
    Signature,
    Task,
    chain,
    get_task_logger,
    group,
    shared_task,
)
from lambda_tasks.handles import TaskHandle

logger = get_task_logger(__name__)


@shared_task
def add(x: int, y: int = 0) -> int:
    return x + y


@shared_task(queue="other", autoretry_for=(OSError,), retry_backoff=5, ignore_result=True, singleton=True)
def fetch(url: str) -> str:
    return url


@shared_task(bind=True, max_retries=5)
def charge(self: Task, order_id: int) -> str:
    try:
        logger.info("attempt %s of %s", self.request.retries, self.max_retries)
        return fetch(f"order {order_id}")
    except OSError as error:
        raise self.retry(exc=error, countdown=10)  # noqa: B904, as people write it
    except Retry:
        raise


assert_type(add(1, y=2), int)
assert_type(add.delay(1, y=2), AsyncResult[int])
assert_type(add.delay(1).get(timeout=5), int)
assert_type(charge.delay(7), AsyncResult[str])
assert_type(charge.apply_async((7,), countdown=5, queue="other", expires=60), AsyncResult[str])
assert_type(add.apply_async(args=[1], kwargs={"y": 2}, eta=datetime.now()), AsyncResult[int])  # noqa: DTZ005
assert_type(fetch.s("a"), Signature[str])
assert_type(fetch.s("a").set(countdown=5).delay(), AsyncResult[str])
assert_type((add.s(1) | fetch.s()).delay(), ChainResult[str])
assert_type((add.s(1) | fetch.s()).delay().get(), str)
assert_type(chain(add.s(1), fetch.s())(), ChainResult[Any])
assert_type(group(add.s(n) for n in range(3)).delay(), GroupResult)
assert_type(group(add.s(1), add.s(2)).delay().get(), list[Any])
assert_type(AsyncResult("019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10"), AsyncResult[Any])
assert_type(fetch.AsyncResult("019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10"), AsyncResult[str])
assert_type(add.execute_on_commit(1, y=2), TaskHandle[int])
