"""Run ended invocations again: the same task and arguments under a new id, with a row that links both records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import transaction

from lambda_tasks import registry
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.database.dividing import divided
from lambda_tasks.database.errors import DATABASE_ERRORS
from lambda_tasks.definition.groups import group_if_valid
from lambda_tasks.exceptions import CannotRunAgain, DuplicateTask, InvalidMessage, UnknownTask
from lambda_tasks.execution.arguments import arguments_of
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord, TaskRerun, TaskStatus
from lambda_tasks.recording.masking import MASK
from lambda_tasks.sending import outgoing
from lambda_tasks.settings import LambdaTasksSettings, app_settings
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.db.models import QuerySet

    from lambda_tasks.definition.task import Task
    from lambda_tasks.handles import TaskHandle

_MAX_USERNAME = 255


def run_again(record: TaskRecord, *, using: str | None = None, username: str = "") -> TaskHandle[Any]:
    """Enqueue the task of an ended record again: the same arguments, a new id, and no retries used up yet.

    The message is sent to the record's queue, or to the task's queue if the settings no longer contain that one, when
    the transaction on the database `using` commits, or immediately if none is open. `using` is by default the database
    from which the record was read. A `TaskRerun` is inserted in the same transaction. If the queue rejects the message,
    the row is deleted again, and boto3's exception is raised, as by `execute_on_commit()`. A run by a schedule keeps
    its scheduled time.

    Raise `CannotRunAgain`, and write nothing, if `problem_of()` finds a reason, or if the task has `unique`, and
    another call with the same key waits or runs.
    """
    database = using or _database(record)
    with transaction.atomic(using=database):
        job = _job(record, database)
        outgoing.prepare(job)
        try:
            handle = outgoing.accept(job, partial(_leave, database))
        except DuplicateTask as duplicate:
            handle = duplicate.handle
        if not handle.created:  # inside of the block, so that a call which has taken over the arguments is undone
            raise CannotRunAgain(
                f"{record} cannot be run again now: {handle.message_id}, which waits or runs, has the same unique key. "
                "Wait until it has ended, or cancel it."
            )
        TaskRerun.objects.using(database).create(
            pk=job.message_id, original_id=record.pk, rerun_at=DatabaseNow(), username=username[:_MAX_USERNAME]
        )
    return handle


@dataclass(frozen=True, slots=True)
class Again:
    """The result of running one of many records again: the id of the new invocation, or the problem."""

    record: TaskRecord
    new_id: str | None = None
    problem: str = ""


def run_all_again(records: Sequence[TaskRecord], *, using: str | None = None, username: str = "") -> list[Again]:
    """Run each of the records again that can be, as `run_again()` does, in one transaction on the database `using`.

    The messages leave together. The result has an entry for each record, in their order, also for those that are
    refused, and for those whose message the queue rejects. Raise only errors of the database, which undo everything.
    """
    database = using or get_store().database
    done: list[Again] = []
    try:
        with transaction.atomic(using=database):
            done += [_one_of_many(record, database, username) for record in records]
    except DATABASE_ERRORS:
        raise
    except Exception as error:  # from the queue, after the commit
        linked = TaskRerun.objects.using(database).values_list("pk", flat=True)
        new_ids = [each.new_id for each in done if each.new_id]
        sent = {str(pk) for some in divided(new_ids) for pk in linked.filter(pk__in=some)}
        return [_unsent(each, error) if each.new_id and each.new_id not in sent else each for each in done]
    return done


def problem_of(record: TaskRecord) -> str | None:
    """Return why `run_again()` would refuse `record`, as a sentence with a remedy; None if it would not.

    It imports the module of the task, and reads the outbox only if arguments are masked. The key of a task with
    `unique` is not looked at.
    """
    try:
        _job(record, _database(record))
    except CannotRunAgain as error:
        return str(error)
    return None


def rerun_of(record: TaskRecord) -> TaskRerun | None:
    """Return the row that names the record that this one repeats; None if `run_again()` did not enqueue it.

    For a retry, it is the row of the first invocation of its chain. This is one query.
    """
    rows: QuerySet[TaskRerun] = TaskRerun.objects.using(_database(record)).filter(pk=record.root_id or record.pk)
    return rows.first()


def reruns(record: TaskRecord) -> QuerySet[TaskRerun]:
    """Return the rows of the invocations that do this record again, the latest first."""
    rows: QuerySet[TaskRerun] = TaskRerun.objects.using(_database(record)).filter(original_id=record.pk)
    latest_first: QuerySet[TaskRerun] = rows.order_by("-rerun_at", "-pk")
    return latest_first


def _one_of_many(record: TaskRecord, database: str, username: str) -> Again:
    try:
        return Again(record, run_again(record, using=database, username=username).message_id)
    except DATABASE_ERRORS:
        raise
    except CannotRunAgain as error:
        return Again(record, problem=str(error))
    except Exception as error:  # from the settings, or from a plugin
        return Again(record, problem=f"{record} cannot be run again: {error}")


def _unsent(again: Again, error: Exception) -> Again:
    return Again(again.record, problem=f"{again.record} was not sent: {type(error).__name__}: {error}")


def _database(record: TaskRecord) -> str:
    return record._state.db or get_store().database


def _leave(database: str, job: Job) -> None:
    """Send the job when its transaction commits, and delete its row if the queue does not accept it."""
    undo = None if get_backend().keeps else partial(_forget, database, job.message_id, job.unsent)
    outgoing.leave_on_commit(replace(job, unsent=undo))


def _forget(database: str, message_id: str, unsent: Callable[[], object] | None) -> None:
    if unsent is not None:
        unsent()
    TaskRerun.objects.using(database).filter(pk=message_id).delete()


def _job(record: TaskRecord, database: str) -> Job:
    if record.status not in (TaskStatus.SUCCESS, TaskStatus.FAILED):
        raise CannotRunAgain(
            f"{record} cannot be run again, because it has not ended. Wait for it, or for the last of its retries; or "
            "cancel it first."
        )
    task = _task(record)
    message = Invocation(task.name, _kwargs(record, task))
    job = Job.of_call(message, queue=_queue(record, task), delay=0, task=None, database=database)
    # The operator cannot correct a wrong group, unlike the caller of a task.
    job = replace(job, task=task, group=group_if_valid(task, message))
    return replace(job, scheduled_for=_scheduled_for(record, task)) if task.schedule else job


def _task(record: TaskRecord) -> Task:
    try:
        return registry.find_task(record.task_name)
    except UnknownTask as error:
        raise CannotRunAgain(f"{record} cannot be run again. {error}") from error
    except Exception as error:  # importing the task's module may raise anything
        raise CannotRunAgain(
            f"{record} cannot be run again, because the module of its task cannot be imported: "
            f"{type(error).__name__}: {error}. Correct the module."
        ) from error


def _kwargs(record: TaskRecord, task: Task) -> dict[str, Any]:
    kwargs: Any = record.kwargs
    if isinstance(kwargs, dict):
        # Other arguments may have been sensitive when the record was written.
        masked = sorted(name for name, value in kwargs.items() if name in task.sensitive or value == MASK)
        if masked:
            kwargs = _kept_kwargs(record, masked)
    problem = Invocation(task.name, kwargs).problem()
    if problem is None:
        try:
            arguments_of(task, kwargs)
        except InvalidMessage as error:
            problem = str(error)
    if problem is not None:
        raise CannotRunAgain(
            f"{record} cannot be run again: {problem.rstrip('.')}. Call the task with the arguments that it takes now."
        )
    return kwargs  # type: ignore[no-any-return]  # checked above


def _kept_kwargs(record: TaskRecord, masked: list[str]) -> dict[str, Any]:
    """Return the arguments in the message of the record, if the outbox still has it."""
    from lambda_tasks.wire.encryption import decrypted  # few tasks have such arguments

    job = get_backend().find(str(record.pk))
    if job is None or MASK in job.message.kwargs.values():
        raise CannotRunAgain(
            f"{record} cannot be run again, because the record masks sensitive arguments: {', '.join(masked)}. Call "
            "the task with their values."
        )
    return decrypted(job.message, masked).kwargs


def _queue(record: TaskRecord, task: Task) -> str:
    known = LambdaTasksSettings.queues.is_set and record.queue in app_settings.queues
    return record.queue if known else task.queue


def _scheduled_for(record: TaskRecord, task: Task) -> float | None:
    from lambda_tasks.operations.schedules import scheduled_time  # few tasks have a schedule

    started = record.start_time.timestamp() if record.start_time is not None else None
    return scheduled_time(task, str(record.root_id or record.pk), started)
