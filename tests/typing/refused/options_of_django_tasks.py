"""Options of Django's tasks that the decorator would refuse at decoration."""

from __future__ import annotations

from lambda_tasks.contrib.django_tasks import lambda_options

lambda_options(retires=5)  # error: call-arg
lambda_options(max_retries="5")  # error: arg-type
lambda_options(on_crash="ignore")  # error: arg-type


@lambda_options(delay=5)
def pack(order_id: int) -> str:
    return f"order {order_id}"


pack("1")  # error: arg-type
