"""Wrong arguments and options of `lambda_tasks.contrib.celery` are refused."""

from __future__ import annotations

from lambda_tasks.contrib.celery import Task, shared_task


@shared_task
def add(x: int, y: int = 0) -> int:
    return x + y


@shared_task(bind=True)
def charge(self: Task, order_id: int) -> str:
    return str(order_id)


add.delay("1")  # error: arg-type
add.delay(1, z=2)  # error: call-arg
charge.delay()  # error: call-arg
charge.delay("7")  # error: arg-type
add.apply_async((1,), priority=3)  # error: call-arg
add.apply_async((1,), countdown="soon")  # error: arg-type
answer: str = add.delay(1).get()  # error: assignment
shared_task(rate_limit="10/m")  # error: call-overload
