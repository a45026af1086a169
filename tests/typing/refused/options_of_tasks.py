"""Options that the decorator would refuse at decoration."""

from __future__ import annotations

from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition.schedules import Cron, Every


def function(*, name: str) -> None: ...


lambda_task(timeout=5)  # error: call-overload
lambda_task(soft_timeout="5")  # error: call-overload
lambda_task(hard_timeout=5.5)  # error: call-overload
lambda_task(retry_on=(int,))  # error: arg-type
lambda_task(ignore_errors=KeyError)  # error: call-overload
lambda_task(singleton=5)  # error: call-overload
lambda_task(group=5)  # error: call-overload
lambda_task(on_crash="ignore")  # error: call-overload
lambda_task(retry_backoff=2)  # error: call-overload
lambda_task(max_retries="5")  # error: call-overload
lambda_task(expires_in=0.5)  # error: call-overload
lambda_task(aliases=function)  # error: call-overload
lambda_task(sensitive="name")  # error: call-overload
lambda_task(atomic="no")  # error: call-overload
lambda_task(schedule="0 3 * * *")  # error: arg-type
lambda_task(schedule=5)  # error: call-overload
lambda_task("other")  # error: call-overload

Cron(5)  # error: arg-type
Every(5)  # error: arg-type, call-arg
Every(minutes=0.5)  # error: arg-type
Every(minutes=5, missed="twice")  # error: arg-type

LambdaTaskWrapper(function, que="other")  # error: call-arg
LambdaTaskWrapper(function, delay="5")  # error: arg-type
LambdaTaskWrapper(function, retry_on=OSError)  # error: arg-type

task = LambdaTaskWrapper(function)
task.using(delay="5")  # error: arg-type
task.using(group=5)  # error: arg-type
task.using(retry_delay=5)  # error: call-arg
task.using(expires_in=5)  # error: call-arg
task.using(60)  # error: call-arg
