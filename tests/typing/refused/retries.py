"""Policies and requested retries that would be refused when they are created."""

from __future__ import annotations

from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.exceptions import RetryLater
from lambda_tasks.execution.current import current_task

RetryPolicy((OSError,))  # error: call-arg
RetryPolicy(on=OSError)  # error: arg-type
RetryPolicy(on=(int,))  # error: arg-type
RetryPolicy(delay="30")  # error: arg-type
RetryPolicy(backoff="2")  # error: arg-type
RetryPolicy(max_age="6h")  # error: arg-type
RetryPolicy(retries=5)  # error: call-arg

policy = RetryPolicy(on=(OSError,))
policy.delay = 5  # error: misc

lambda_task(retry=5)  # error: call-overload
lambda_task(retry=RetryPolicy)  # error: call-overload
lambda_task(retry=[policy])  # error: call-overload
lambda_task(retry={"OSError": policy})  # error: dict-item
lambda_task(retry={OSError: 30})  # error: dict-item

RetryLater(delay="30")  # error: arg-type
RetryLater(reason=None)  # error: arg-type

attempt = current_task().attempt  # error: union-attr
if task := current_task():
    task.attempt = 2  # error: misc
    task.request_id = None  # error: misc
