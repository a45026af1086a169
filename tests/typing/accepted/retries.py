"""Policies, requested retries and the running task, as a project writes them."""

from __future__ import annotations

from datetime import datetime, timedelta

from typing_extensions import assert_type

from lambda_tasks import RetryLater, RetryPolicy, current_task, lambda_task
from lambda_tasks.execution.current import CurrentTask


class RateLimited(Exception):
    pass


patient = RetryPolicy(
    on=(RateLimited, OSError),
    max_retries=5,
    max_age=timedelta(hours=6),
    delay=30,
    max_delay=timedelta(minutes=15),
    backoff=2.5,
    jitter=0.25,
)
eager = RetryPolicy(on=(RateLimited,), max_retries=None, max_age=None, delay=0.5, backoff=True, jitter=False)


@lambda_task(retry=patient)
def with_policy(*, user_id: int) -> int:
    task = current_task()
    assert_type(task, CurrentTask | None)
    if task is None:
        raise RetryLater
    assert_type(task.attempt, int)
    assert_type(task.is_last_attempt, bool)
    assert_type(task.message_id, str)
    assert_type(task.sent_at, datetime | None)
    assert_type(task.received_at, datetime)
    assert_type(task.scheduled_for, datetime | None)
    assert_type(task.request_id, str | None)
    assert_type(task.cancelled, bool)
    if task.seconds_left() < 5 or task.seconds_left_in_invocation() < 5:
        raise RetryLater(delay=timedelta(minutes=1), reason="too little time")
    return user_id


@lambda_task(retry={RateLimited: patient, OSError: eager})
def with_policies() -> None:
    raise RetryLater(delay=30)


@lambda_task(retry=None)
def without_policy() -> None: ...


assert_type(patient.on, tuple[type[BaseException], ...])
with_policy.using(delay=5).execute_on_commit(user_id=1)
