"""Cancel invocations in the table of records, whose primary key decides between cancelling and the first claim."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from django.db import IntegrityError, OperationalError, connections, transaction

from lambda_tasks import failpoints
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.database.errors import is_conflict
from lambda_tasks.exceptions import TaskCancelled
from lambda_tasks.jobs import Job, Run
from lambda_tasks.models import CancelRequest, TaskReason, TaskRecord, TaskStatus
from lambda_tasks.outcomes import Cancellation, Finished, Prevented, Requested, TooLate
from lambda_tasks.recording.masking import masked
from lambda_tasks.recording.tracebacks import traceback_text
from lambda_tasks.stores.rows import NOT_ENDED
from lambda_tasks.wire import ids

#: How often cancelling starts again because a worker was faster.
_ATTEMPTS: Final = 3


def cancel(database: str, message_id: str, waiting: Job | None) -> Cancellation:
    """Cancel an invocation, as `BaseStore.cancel()` describes."""
    for _ in range(_ATTEMPTS):
        latest = TaskRecord.objects.using(database).chain(message_id).last()
        if latest is None:
            if _insert(database, _first(message_id, waiting)):
                return Prevented(message_id)
        elif str(latest.root_id or latest.pk) != message_id:
            return cancel(database, str(latest.root_id), waiting)
        elif latest.status in (TaskStatus.SUCCESS, TaskStatus.FAILED):
            return TooLate()
        elif latest.status == TaskStatus.RUNNING:
            if latest.claim is not None or latest.lease_until is None:
                break  # workers of versions without claims write no lease
            if _end_released(database, latest):
                return Prevented(str(latest.pk))
        elif _insert(database, retry := _retry_of(latest)):
            return Prevented(retry["id"])
    # Also if a strict isolation level hides the record of a worker that was faster.
    _request(database, message_id)
    return Requested()


def is_requested(database: str, root_id: str) -> bool:
    """Return whether a started invocation, or the chain of retries that it began, was requested to end."""
    return bool(CancelRequest.objects.using(database).filter(pk=root_id).exists())


def finished(run: Run) -> Finished:
    """Return the answer to the claim of an invocation that was cancelled before anything but its id was known.

    Complete its record from its message.
    """
    # Without the status and the reason, whose indexes PostgreSQL might read instead of the primary key.
    TaskRecord.objects.using(run.database).filter(pk=run.message_id, claim=None, task_name="").update(
        task_name=run.task_name,
        kwargs=run.recorded_kwargs,
        queue=run.queue,
        n_retries=run.n_retries,
        root_id=run.root_id,
    )
    return Finished(TaskStatus.FAILED)


def _first(message_id: str, waiting: Job | None) -> dict[str, Any]:
    """Return the columns of an invocation without a record, as far as they are known."""
    if waiting is None:
        return {"id": message_id, "root_id": message_id}
    # Without its task, it is unknown which arguments are sensitive.
    kwargs = {} if waiting.task is None else masked(waiting.message.kwargs, waiting.task.sensitive)
    return {
        "id": message_id,
        "task_name": waiting.task_name,
        "kwargs": kwargs,
        "n_retries": waiting.message.n_retries,
        "root_id": waiting.root_id,
        "queue": waiting.queue,
    }


def _retry_of(record: TaskRecord) -> dict[str, Any]:
    root_id = str(record.root_id or record.pk)
    return {
        "id": ids.retry_id(root_id, record.n_retries + 1),
        "task_name": record.task_name,
        "kwargs": record.kwargs,
        "n_retries": record.n_retries + 1,
        "root_id": root_id,
        "queue": record.queue,
    }


def _insert(database: str, columns: dict[str, Any]) -> bool:
    """Record an invocation that has not started as FAILED. Return False if a worker has claimed it."""
    failpoints.reached("cancel:before_write")
    cancelled = TaskCancelled("cancelled: the task was cancelled before it started.")
    try:
        with transaction.atomic(using=database):  # a savepoint in a transaction, which a refused INSERT would break
            TaskRecord.objects.using(database).create(
                status=TaskStatus.FAILED,
                reason=TaskReason.CANCELLED,
                traceback=traceback_text(cancelled),
                start_time=DatabaseNow(),
                end_time=DatabaseNow(),
                **columns,
            )
    except IntegrityError:
        visible = TaskRecord.objects.using(database).filter(pk=columns["id"]).exists()
        if not visible and not connections[database].in_atomic_block:
            raise  # not a duplicate: the database refuses the row itself
        return False
    failpoints.reached("cancel:after_write")
    return True


def _end_released(database: str, record: TaskRecord) -> bool:
    """Record an invocation as FAILED that waits for its lock or its next delivery. Return False if it is claimed."""
    failpoints.reached("cancel:before_write")
    cancelled = TaskCancelled("cancelled: the task was cancelled while it waited.")
    try:
        with transaction.atomic(using=database):  # a strict isolation level refuses to write what a worker has changed
            ended = TaskRecord.objects.using(database).filter(NOT_ENDED, pk=record.pk, claim=None)
            updated = ended.update(
                status=TaskStatus.FAILED,
                reason=TaskReason.CANCELLED,
                traceback=traceback_text(cancelled),
                end_time=DatabaseNow(),
            )
    except OperationalError as error:
        if not is_conflict(error):
            raise
        return False
    failpoints.reached("cancel:after_write")
    return bool(updated)


def _request(database: str, root_id: str) -> None:
    """Request that a started invocation ends. A second request changes nothing."""
    CancelRequest.objects.using(database).bulk_create(
        [CancelRequest(root_id=UUID(root_id), requested_at=DatabaseNow())], ignore_conflicts=True
    )
    failpoints.reached("cancel:after_request")


def refuse(job: Job, error: Exception, database: str) -> None:
    """Record an invocation that cannot be sent as FAILED, unless it has a record."""
    task = job.task
    hidden = [] if task is None else [job.message.kwargs[name] for name in task.sensitive if name in job.message.kwargs]
    record = TaskRecord(
        **_first(job.message_id, job),
        status=TaskStatus.FAILED,
        reason=TaskReason.ERROR,
        traceback=traceback_text(error, hiding=hidden),
        start_time=DatabaseNow(),
        end_time=DatabaseNow(),
    )
    TaskRecord.objects.using(database).bulk_create([record], ignore_conflicts=True)
