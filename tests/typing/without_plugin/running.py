"""Running tasks, followers, chains and groups."""

from __future__ import annotations

from typing_extensions import assert_type

from lambda_tasks import ERROR, RESULT, TASK_ID, FlowHandle, RetryLater, RetryPolicy, chain, group, lambda_task
from lambda_tasks.execution.current import CurrentTask, current_task
from lambda_tasks.handles import TaskHandle
from lambda_tasks.models import OutboxMessage, TaskRecord, TaskSchedule


class Busy(Exception):
    pass


@lambda_task(retry=RetryPolicy(on=(Busy,), max_retries=5))
def resize(*, path: str) -> int:
    task = current_task()
    assert_type(task, CurrentTask | None)
    if task and task.is_last_attempt:
        assert_type(task.attempt, int)
        assert_type(task.cancelled, bool)
        task.progress(1, total=2)
        raise RetryLater(delay=30)
    return len(path)


@lambda_task
def publish(*, size: int) -> None: ...


@lambda_task
def report(*, task_id: str, error: str) -> None: ...


handle = resize.using(queue="images", on_failure=report.invocation(task_id=TASK_ID, error=ERROR)).execute_on_commit(
    path="a"
)
assert_type(handle, TaskHandle[int])
assert_type(handle.result(), int)
if progress := handle.progress:
    assert_type(progress.fraction, float | None)
flow = chain(resize.invocation(path="a"), publish.invocation(size=RESULT)).execute_on_commit()
assert_type(flow, FlowHandle)
assert_type(group([resize.invocation(path="a")]).execute_on_commit(), FlowHandle)
assert_type(OutboxMessage.objects.get(pk=handle.message_id), OutboxMessage)
assert_type(TaskSchedule.objects.filter(paused=True).first(), TaskSchedule | None)
assert_type(TaskRecord.objects.all().cancel(), int)
