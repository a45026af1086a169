"""Recover tasks whose worker died and whose message is gone.

A worker that dies leaves its record RUNNING. The message comes back when its visibility timeout expires, and the next
worker takes over the record. If the message is gone (deleted by hand, expired, or in the dead letter queue), no worker
takes over. `reap()` then resolves the record, so that it does not stay RUNNING.
"""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from django.db import connections, transaction

from lambda_tasks import failpoints
from lambda_tasks.database.errors import DATABASE_ERRORS
from lambda_tasks.definition.groups import group_if_valid
from lambda_tasks.exceptions import TaskLostError, UnknownTask
from lambda_tasks.execution import resolving
from lambda_tasks.flows import ending, recovery, rows
from lambda_tasks.jobs import Job, Run, carries_first_sent
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.logging import FAILED_FIELDS, Fields, run_logger, task_logger
from lambda_tasks.outcomes import Failed, Lost
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.recording.masking import MASK
from lambda_tasks.sending import outgoing
from lambda_tasks.settings import LambdaTasksSettings, app_settings
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.visibility import lost_after

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task
    from lambda_tasks.stores.base import BaseStore

#: The number of records that `reap()` handles in one transaction, unless it is called inside a transaction.
BATCH_SIZE: Final = 1_000


@dataclass(slots=True)
class Reaped:
    """How many invocations were sent again, failed, or could not be sent, which the next `reap()` tries again."""

    sent_again: int = 0
    failed: int = 0
    unsent: int = 0
    #: False if the time or the limit was used up before all lost invocations were handled.
    complete: bool = True

    @property
    def total(self) -> int:
        return self.sent_again + self.failed + self.unsent


def reap(*, older_than: int | None = None, seconds: float = float("inf"), limit: float = float("inf")) -> Reaped:
    """Recover the invocations whose lease expired more than `older_than` seconds ago, and return how many.

    By default, `older_than` is the longest visibility timeout that a queue should have, which follows
    LAMBDA_TASKS_MAX_TIMEOUT: 5,700 seconds without this setting.

    Each invocation is sent again under its own id, so that it runs once even if its first message still arrives.
    It is recorded as FAILED with the reason `lost` instead if `on_crash="fail"` forbids another attempt, if its
    workers died too often, or if its message cannot be recreated (unknown task, masked arguments). Messages are sent
    when the transaction commits: the transaction of a batch, or the one in which this function is called.

    `reap()` returns early after `seconds`, or after `limit` invocations. Any number of processes can call it in
    parallel. If the queue rejects messages, boto3's exception is raised after all other messages of the transaction
    were sent. A `reap()` that starts `older_than` seconds later finds the rejected ones again.

    Raise ValueError if `older_than` is negative.
    """
    if older_than is None:
        older_than = lost_after()
    if older_than < 0:
        raise ValueError(f"older_than must be 0 or more seconds, not {older_than}.")
    deadline = monotonic() + seconds
    reaped = Reaped()
    store = get_store()
    last = ""
    while True:
        with transaction.atomic(using=store.database):
            # All reapers lock records in the order of their ids, so that they cannot deadlock.
            batch = store.lost(older_than=older_than, limit=BATCH_SIZE, after=last)
            # A message that is still in the outbox is on its way, so its invocation is not lost.
            kept = get_backend().kept([lost.message_id for lost in batch])
            for lost in batch:
                if lost.message_id in kept:
                    continue
                if monotonic() >= deadline or reaped.total >= limit:
                    reaped.complete = False
                    return reaped
                _settle_alone(store, lost, older_than, reaped)
        if not batch:
            recovery.recover(store.database, seconds=deadline - monotonic())
            return reaped
        last = batch[-1].message_id


def _settle_alone(store: BaseStore, lost: Lost, older_than: int, reaped: Reaped) -> None:
    """Recover one invocation. Log its errors, so that they do not affect other invocations."""
    settled = Reaped()
    try:
        with transaction.atomic(using=store.database):
            _settle(store, lost, older_than, settled)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if isinstance(error, DATABASE_ERRORS) and not connections[store.database].is_usable():
            raise  # the other invocations would fail too
        with task_logger.bound(lost.message_id, partial(_log_fields, lost)):
            run_logger.exception("%s is lost and cannot be recovered now. It stays RUNNING.", lost.task_name)
        settled = Reaped(unsent=1)
    reaped.sent_again += settled.sent_again
    reaped.failed += settled.failed
    reaped.unsent += settled.unsent


def _settle(store: BaseStore, lost: Lost, older_than: int, reaped: Reaped) -> None:
    with task_logger.bound(lost.message_id, partial(_log_fields, lost)):
        task, trouble = _find_task(lost)
        if reason := _reason_to_give_up(lost, task, trouble):
            outcome = Failed(TaskLostError(f"lost: {reason}"))
            if store.give_up(lost, outcome, older_than=older_than):
                reaped.failed += 1
                _end_flow(store, lost, task, outcome)
                told = None if task is None else FAILED_FIELDS
                run_logger.error("%s is lost and is recorded as FAILED: %s", lost.task_name, reason, extra=told)
                if task is not None:
                    _tell_plugins(store, _run(store, lost, task), outcome)
            return
        if not store.offer(lost, older_than=older_than):
            return  # its worker is alive after all, or another reaper has recovered it
        if trouble is not None:
            _withdraw(lost)  # a deployment that is repaired later must not use up takeovers
        if _send(store, lost, task, trouble):
            reaped.sent_again += 1
        else:
            reaped.unsent += 1


def _log_fields(lost: Lost) -> Fields:
    return {
        "task_name": lost.task_name,
        "queue": lost.queue,
        "attempt": lost.n_retries + 1,
        "root_id": lost.root_id,
    }


def _end_flow(store: BaseStore, lost: Lost, task: Task | None, outcome: Failed) -> None:
    """Keep or note what follows the lost task. Its worker cannot do that."""
    if not rows.are_in(store.database):
        return
    end = ending.End(
        root_id=lost.root_id,
        task_name=lost.task_name,
        task=task,
        flow=recovery.mark_of(lost.root_id, store.database),
        database=store.database,
        succeeded=False,
        error=ending.error_text(outcome.error),
    )
    ending.end(end)
    transaction.on_commit(partial(ending.resume, end.root_id, end.flow, end.database), using=end.database, robust=True)


def _find_task(lost: Lost) -> tuple[Task | None, Exception | None]:
    try:
        return resolving.resolve(lost.task_name), None
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # importing the task's module may raise anything
        return None, error


def _reason_to_give_up(lost: Lost, task: Task | None, trouble: Exception | None) -> str | None:
    """Return why the invocation fails, or None if it can be sent again."""
    if isinstance(trouble, UnknownTask):
        return f"its worker died, and its task is now unknown. {trouble}"
    if reason := _waited_too_long(lost, task):
        return reason
    if task is not None and task.on_crash == "fail" and lost.waited is None:
        return "its worker died, and on_crash='fail' forbids another attempt."
    if lost.waited is None and lost.takeovers >= app_settings.max_takeovers:
        return (
            f"it was taken over or lost {lost.takeovers + 1} times "
            f"(LAMBDA_TASKS_MAX_TAKEOVERS is {app_settings.max_takeovers}), and its message did not come back."
        )
    if reason := _unusable(lost):
        return f"its worker died, and no message can be created from its record: {reason}."
    sensitive = () if task is None else task.sensitive
    # Other arguments may have been sensitive when the record was written.
    masked = sorted(name for name, value in lost.kwargs.items() if name in sensitive or value == MASK)
    if masked:
        return f"its worker died, and its record lacks the sensitive arguments to send it again: {', '.join(masked)}."
    return None


def _waited_too_long(lost: Lost, task: Task | None) -> str | None:
    """Return why an invocation that waits for its lock fails; it is sent again, without a limit, during `max_wait`."""
    if task is None or lost.waited is None or lost.waited <= task.max_wait:
        return None
    return (
        f"it has waited {lost.waited:.0f} s for its lock (its max_wait is {task.max_wait:g} s), and its message did "
        "not come back."
    )


def _unusable(lost: Lost) -> str | None:
    """Return why no message can be created from the record, which a user may have edited, or None if one can."""
    if not isinstance(lost.kwargs, dict):
        return f"kwargs must be an object, not {type(lost.kwargs).__name__}"
    return _message(lost).problem()


def _send(store: BaseStore, lost: Lost, task: Task | None, trouble: Exception | None) -> bool:
    """Send the invocation when the transaction commits. Return False if that fails, so that a later reap retries."""
    try:
        if trouble is not None:
            raise trouble
        assert task is not None
        with transaction.atomic(using=store.database):  # a plugin's failed query must not break the transaction
            job = _job(lost, task, store.database)
            outgoing.prepare(job)
            outgoing.leave_on_commit(job)  # its unique key is already its own
            failpoints.reached("enqueue:before_commit")
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        run_logger.exception("%s is lost and cannot be sent again now. It stays RUNNING.", lost.task_name)
        return False
    run_logger.warning(
        "%s is lost and is sent again to queue %r. It was taken over or lost %d times so far.",
        lost.task_name,
        job.queue,
        lost.takeovers + 1,
    )
    return True


def _job(lost: Lost, task: Task, database: str) -> Job:
    return Job(
        message=_message(lost),
        message_id=lost.message_id,
        root_id=lost.root_id,
        queue=_queue(lost, task),
        task=task,
        first_sent=_first_sent(lost) if carries_first_sent(task, lost.root_id) else None,
        flow=recovery.mark_of(lost.root_id, database) if rows.are_in(database) else "",
        scheduled_for=_scheduled_for(lost, task),
        group=group_if_valid(task, _message(lost)),
        database=database,
        unsent=partial(_withdraw, lost),
    )


def _withdraw(lost: Lost) -> None:
    """Take back the counted takeover of a message that was not sent, so that an outage does not use up takeovers."""
    try:
        get_store().withdraw(lost)
    except DATABASE_ERRORS:
        run_logger.exception("A takeover of %s is counted, although its message was not sent.", lost.task_name)


def _first_sent(lost: Lost) -> float | None:
    """Return when the chain was first sent. `expires_in` counts from then, and not from the new message."""
    # An id that the library did not create, such as a schedule's, contains no time. The start of the run is then
    # the earliest known time.
    return ids.made_at(lost.root_id) or lost.started_at


def _scheduled_for(lost: Lost, task: Task) -> float | None:
    if not task.schedule:
        return None
    from lambda_tasks.operations.schedules import scheduled_time  # few tasks have a schedule

    return scheduled_time(task, lost.root_id, lost.started_at)


def _message(lost: Lost) -> Invocation:
    return Invocation(lost.task_name, lost.kwargs, lost.n_retries)


def _queue(lost: Lost, task: Task) -> str:
    """Return the queue that the message came from, or the task's queue if the settings no longer contain it."""
    known = LambdaTasksSettings.queues.is_set and lost.queue in app_settings.queues
    return lost.queue if known else task.queue


def _run(store: BaseStore, lost: Lost, task: Task) -> Run:
    """Return the lost run for `lambda_task_finished`. Its arguments are not validated."""
    soft, hard = task.timeouts()
    # Not validated either, so that plugins are called whatever the record contains.
    kwargs = lost.kwargs if isinstance(lost.kwargs, dict) else {}
    return Run(
        message=Invocation(lost.task_name, kwargs, lost.n_retries),
        message_id=lost.message_id,
        root_id=lost.root_id,
        task=task,
        queue=_queue(lost, task),
        arguments={},
        soft_timeout=soft,
        hard_timeout=hard,
        lease=0,
        database=store.database,
        takeovers=lost.takeovers + 1,
        scheduled_for=_scheduled_for(lost, task),
    )


def _tell_plugins(store: BaseStore, run: Run, outcome: Failed) -> None:
    told = partial(notify, hooks().lambda_task_finished, run=run, outcome=outcome)
    transaction.on_commit(partial(copy_context().run, told), using=store.database)
