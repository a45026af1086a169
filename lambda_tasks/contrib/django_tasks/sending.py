"""From `enqueue()` to the transport: the row of the call and its message belong to the caller's transaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from django.db import connections, transaction
from django.utils import timezone

from lambda_tasks.contrib.django_tasks.adapters import DjangoTask
from lambda_tasks.contrib.django_tasks.compat import (
    AnyTask,
    AnyTaskResult,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    normalize_json,
    task_enqueued,
)
from lambda_tasks.contrib.django_tasks.results import find_result
from lambda_tasks.contrib.django_tasks.values import enqueued_at
from lambda_tasks.database.commits import open_transaction
from lambda_tasks.database.errors import DATABASE_ERRORS
from lambda_tasks.jobs import SENT, Job
from lambda_tasks.models import EnqueuedTask
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.recording.masking import masked
from lambda_tasks.sending import outgoing
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire.invocation import Invocation

logger = get_logger("lambda_tasks.contrib.django_tasks")


def send(
    task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any], *, adapter: DjangoTask, queue: str, sender: type
) -> AnyTaskResult:
    """Send a call of `task` when the caller's transaction commits, or now without one, and return its result.

    `queue` is the name in LAMBDA_TASKS_QUEUES, and `sender` that of the signal.
    """
    positional, named = _as_json(args, kwargs)
    database = open_transaction()
    job = Job.of_call(
        Invocation(adapter.name, adapter.signature.encode_call(positional, named, backend=task.backend)),
        queue=queue,
        delay=_delay_of(task, adapter),
        task=adapter,
        database=database,
    )
    result = _ready(task, job.message_id, positional, named)
    outgoing.prepare(job)
    with _transaction_of_call(database):
        handle = outgoing.accept(job, partial(_leave, result=result, sender=sender))
    if not handle.created:
        return _existing(task, handle.message_id, job, result)
    if handle.state is not None and handle.state.value == SENT and not get_backend().leaves_process:
        result.refresh()  # in eager mode, the task has run
    return result


def _as_json(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    normalize: Any = normalize_json
    return normalize(args), normalize(kwargs)


def _ready(task: AnyTask, result_id: str, args: list[Any], kwargs: dict[str, Any]) -> AnyTaskResult:
    return TaskResult(
        task=task,
        id=result_id,
        status=TaskResultStatus.READY,
        enqueued_at=enqueued_at(result_id),
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=task.backend,
        errors=[],
        worker_ids=[],
    )


def _delay_of(task: AnyTask, adapter: DjangoTask) -> int:
    if task.run_after is None:
        return int(adapter.delay)
    return max(math.ceil((task.run_after - timezone.now()).total_seconds()), 0)


def _transaction_of_call(database: str) -> AbstractContextManager[Any]:
    """Open a transaction unless the caller has one, so that the row of the call and its message commit together."""
    connection = connections[database]
    if connection.in_atomic_block or not connection.get_autocommit():
        return nullcontext()
    return transaction.atomic(using=database)


def _leave(job: Job, *, result: AnyTaskResult, sender: type) -> None:
    store = get_store().database
    if store == job.database:
        _write_row(job, result)
    else:
        # Another database cannot roll back with the caller's transaction. The callback comes before that of the job.
        transaction.on_commit(partial(_write_row, job, result), using=job.database)
    task_enqueued.send(sender, task_result=result)
    if not get_backend().keeps:  # a transport that keeps jobs sends them later
        job = replace(job, unsent=partial(_delete_row, job.message_id, job.unsent))
    outgoing.leave_on_commit(job)


def _write_row(job: Job, result: AnyTaskResult) -> None:
    assert result.enqueued_at is not None  # the id of a call contains its time
    EnqueuedTask.objects.using(get_store().database).create(
        id=job.message_id,
        task_name=job.task_name,
        kwargs=_recorded(job),
        backend=result.backend,
        queue_name=result.task.queue_name,
        run_after=result.task.run_after,
        enqueued_at=result.enqueued_at,
    )


def _recorded(job: Job) -> dict[str, Any]:
    assert job.task is not None
    return masked(job.message.kwargs, job.task.sensitive)


def _delete_row(message_id: str, then: Callable[[], object] | None) -> None:
    """Delete the row of a call that the transport has refused: no worker will run it."""
    try:
        EnqueuedTask.objects.using(get_store().database).filter(pk=message_id).delete()
    except DATABASE_ERRORS:
        logger.exception("The task with the result %s is not sent, but its result stays READY.", message_id)
    if then is not None:
        then()


def _existing(task: AnyTask, message_id: str, job: Job, result: AnyTaskResult) -> AnyTaskResult:
    """Return the result of the earlier call that holds the unique key, with the arguments of `job` if it got them."""
    assert job.task is not None
    if job.task.on_duplicate == "replace":
        EnqueuedTask.objects.using(get_store().database).filter(pk=message_id).update(kwargs=_recorded(job))
    try:
        return find_result(message_id)
    except TaskResultDoesNotExist:  # no worker has claimed it, and a schedule or another database has sent it
        return _ready(task, message_id, result.args, result.kwargs)
