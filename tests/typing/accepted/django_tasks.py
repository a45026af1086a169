"""Options of Django's tasks."""

from __future__ import annotations

from typing_extensions import assert_type

from lambda_tasks import Every, RetryPolicy
from lambda_tasks.contrib.django_tasks import lambda_options


@lambda_options(retry=RetryPolicy(on=(OSError,)), singleton="order_id", sensitive=["token"], schedule=Every(hours=1))
def pack(order_id: int = 0, *, token: str = "") -> str:
    return f"order {order_id}"


assert_type(pack(1, token="x"), str)
