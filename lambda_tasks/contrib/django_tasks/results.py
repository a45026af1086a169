"""Results of calls, from the row that the call has written and from the records of its attempts."""

from __future__ import annotations

from typing import Any

from lambda_tasks.contrib.django_tasks.adapters import find_adapter
from lambda_tasks.contrib.django_tasks.calls import BACKEND, about_call
from lambda_tasks.contrib.django_tasks.compat import AnyTaskResult, TaskResult, TaskResultDoesNotExist, TaskResultStatus
from lambda_tasks.contrib.django_tasks.values import enqueued_at, errors_of, task_for, was_started, worker_ids
from lambda_tasks.models import EnqueuedTask, TaskRecord, TaskStatus
from lambda_tasks.strategies import get_store


def find_result(root_id: str) -> AnyTaskResult:
    """Return the result of the chain of retries that began with the invocation `root_id`, in two queries.

    The call exists if its transaction has committed. Raise `TaskResultDoesNotExist` for other ids, and for those of
    tasks without `@task`.
    """
    database = get_store().database
    call = EnqueuedTask.objects.using(database).filter(pk=root_id).first()
    records = list(TaskRecord.objects.using(database).chain(root_id))
    known: EnqueuedTask | TaskRecord | None = call or next(iter(records), None)
    adapter = None if known is None else find_adapter(known.task_name)
    if known is None or adapter is None:
        raise TaskResultDoesNotExist(root_id)
    alias = str(call.backend if call else about_call(known.kwargs).get(BACKEND, "default"))
    args, kwargs = adapter.signature.passed(known.kwargs)
    task = task_for(
        adapter.task,
        backend=alias,
        queue_name=call.queue_name if call else "",
        run_after=call.run_after if call else None,
    )
    result: AnyTaskResult = TaskResult(
        task=task,
        id=root_id,
        status=_status(records),
        enqueued_at=enqueued_at(root_id),
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=errors_of(records),
        worker_ids=worker_ids(records),
        **_times(records),
    )
    if result.status == TaskResultStatus.SUCCESSFUL:
        object.__setattr__(result, "_return_value", records[-1].result)
    return result


def _status(records: list[TaskRecord]) -> Any:
    """Return the status of the newest record. A task that waits for its lock or its next attempt is ready again."""
    if not records:
        return TaskResultStatus.READY
    newest = records[-1]
    if newest.status == TaskStatus.RUNNING:
        return TaskResultStatus.READY if newest.claim is None else TaskResultStatus.RUNNING
    return {
        str(TaskStatus.SUCCESS): TaskResultStatus.SUCCESSFUL,
        str(TaskStatus.FAILED): TaskResultStatus.FAILED,
    }.get(newest.status, TaskResultStatus.READY)


def _times(records: list[TaskRecord]) -> dict[str, Any]:
    started = [record.start_time for record in records if record.start_time and was_started(record)]
    ended = _status(records) in (TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED)
    return {
        "started_at": started[0] if started else None,
        "last_attempted_at": started[-1] if started else None,
        "finished_at": records[-1].end_time if ended else None,
    }
