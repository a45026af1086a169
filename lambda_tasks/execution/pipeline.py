"""Run one invocation through the pipeline: resolve → claim → lock → limit → transaction → classify → record.

A task's writes to its record's database take effect exactly once, together with its SUCCESS. All other effects of a
task may happen more than once, and the task can use its stable id to make them idempotent.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks import failpoints
from lambda_tasks.database.errors import (
    close_broken_connections,
    is_conflict,
    refuse_manual_commits,
    transaction_broken,
)
from lambda_tasks.database.guards import Guard
from lambda_tasks.database.private_names import closed_in_transaction, entries_on_commit, error_caught_in
from lambda_tasks.definition.keys import locks
from lambda_tasks.exceptions import (
    ArgumentsMissing,
    LockUnavailable,
    Redeliver,
    RetryLater,
    TaskCancelled,
    TransactionBroken,
)
from lambda_tasks.execution.arguments import arguments_of
from lambda_tasks.execution.attempt import Attempt, Stage
from lambda_tasks.execution.claiming import claim
from lambda_tasks.execution.errors import after_error, log_failed_callback, settle_in_doubt
from lambda_tasks.execution.fetching import fetched, has_ended, readable
from lambda_tasks.execution.locking import held_lock, lock_in_transaction
from lambda_tasks.execution.resolving import resolve
from lambda_tasks.execution.settling import committed, end_flow, resume_flow, settle, write
from lambda_tasks.execution.strangers import Watch, stop_watching
from lambda_tasks.execution.waiting import wait_for_lock
from lambda_tasks.jobs import Run, log_error
from lambda_tasks.limits import watchdog
from lambda_tasks.limits.alarms import KILL_GRACE, WATCHDOG_DELAY, HardTimeLimitExceeded, NoLimits, TimeLimits
from lambda_tasks.logging import FAILED_FIELDS, Fields, run_logger, task_logger, trace_id
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Skipped, Succeeded, Wait
from lambda_tasks.plugins import first, hooks, notify
from lambda_tasks.recording.storable import printable
from lambda_tasks.recording.tracebacks import begin_at_task, dropped_text
from lambda_tasks.sending.outgoing import NotedNames
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_lock, get_store

if TYPE_CHECKING:
    from typing import TypedDict

    from typing_extensions import Unpack

    from lambda_tasks.definition.task import Task
    from lambda_tasks.wire.deliveries import Delivery
    from lambda_tasks.wire.invocation import Invocation

    class WorkerDetails(TypedDict, total=False):
        """What a worker knows besides the delivery, all optional."""

        #: The time, by `time.monotonic()`, at which Lambda ends the process. Time limits are clamped to it.
        deadline: float | None
        #: The task, if the caller has resolved it.
        task: Task | None
        #: The id of the Lambda invocation.
        request_id: str | None

    class Details(WorkerDetails, total=False):
        """Properties of a delivery other than its message and its id, all optional."""

        #: The id of the first invocation of the chain of retries. Without it, the message is the first.
        root_id: str | None
        #: The name of the queue that the message came from, to which a retry is sent. The default is the task's queue.
        queue: str | None
        #: The message attributes that the producer's plugins have added.
        attributes: Mapping[str, str]
        #: False disables time limits, as in eager mode.
        limited: bool
        #: When the first invocation of the chain was sent, in seconds since 1970. A message without it never expires.
        first_sent: float | None
        #: When the queue accepted this message, in seconds since 1970.
        sent_at: float | None
        #: The time for which a schedule has sent the chain, in seconds since 1970.
        scheduled_for: float | None
        #: The mark of an invocation that others follow, as in its message.
        flow: str
        #: The message group.
        group: str | None
        #: Whether the message was received before, so that it probably has a record.
        redelivered: bool


#: Seconds between the latest moment at which the watchdog ends the process and the end of the lease.
LEASE_MARGIN: Final = 5.0
#: Seconds of an invocation that are reserved for recording the outcome.
RECORDING_RESERVE: Final = 1.0
#: How often a task is immediately rerun after its transaction conflicted with another one.
MAX_RERUNS: Final = 3
#: The number of characters of a reason for a retry that a line of the log shows.
_SHOWN_REASON: Final = 500
#: Seconds that recording a task may take whose process is about to be ended.
_LAST_WORDS: Final = 0.8


def execute(message: Invocation, *, message_id: str, **details: Unpack[Details]) -> Outcome | Skipped:
    """Run `message` and return its outcome, or `Skipped` if an earlier delivery has ended it, or if it waits.

    Raise `Redeliver` if the message must stay on the queue: the invocation runs elsewhere, or its database or its
    queue is unavailable. Errors in the message itself are raised before anything is recorded.
    """
    with task_logger.bound(message_id, partial(log_fields, message, message_id, details)):
        try:
            run = prepare(message, message_id=message_id, **details)
        except ArgumentsMissing:
            if has_ended(message_id):
                return Skipped("finished")
            raise
        attempt = Attempt(run)
        refusal = claim(attempt)
        if isinstance(refusal, Skipped):
            if attempt.run.is_followed:
                resume_flow(attempt.run, look=True)
            return refusal
        try:
            outcome = perform(attempt) if refusal is None else refusal
            if isinstance(outcome, Wait):
                return wait_for_lock(attempt, outcome)
            outcome = settle_in_doubt(attempt, outcome) if attempt.in_doubt else settle(attempt, outcome)
        except Redeliver as redeliver:
            extend_pause(redeliver, attempt)
            notify(hooks().lambda_task_returned, run=attempt.run, error=redeliver)
            raise
        _log_outcome(attempt.run, outcome)
        notify(hooks().lambda_task_finished, run=attempt.run, outcome=outcome)
        if attempt.run.is_followed and not isinstance(outcome, Retry):
            resume_flow(attempt.run)
        _raise_interrupt(outcome)
        return outcome


def execute_delivery(message: Invocation, delivery: Delivery, **details: Unpack[WorkerDetails]) -> Outcome | Skipped:
    """Run `message`, which is the body of `delivery`, in the same way."""
    return execute(
        message,
        message_id=delivery.message_id,
        root_id=delivery.root_id,
        queue=delivery.queue,
        attributes=delivery.attributes,
        first_sent=delivery.first_sent,
        sent_at=delivery.sent_at,
        scheduled_for=delivery.scheduled_for,
        flow=delivery.flow,
        group=delivery.group,
        redelivered=delivery.receives > 1,
        **details,
    )


def log_fields(message: Invocation, message_id: str, details: Details) -> Fields:
    """Return the fields of the log lines of an invocation, except for its message id."""
    task = details.get("task")
    return {
        "task_name": message.task_name,
        "queue": details.get("queue") or (None if task is None else task.queue),
        "attempt": message.n_retries + 1,
        "root_id": (message.n_retries and details.get("root_id")) or message_id,
        "aws_request_id": details.get("request_id"),
        "trace_id": trace_id(details.get("attributes") or {}),
    }


def prepare(message: Invocation, *, message_id: str, **details: Unpack[Details]) -> Run:
    """Resolve the task and decode its arguments, without writing to the database."""
    deadline = details.get("deadline")
    task = details.get("task") or resolve(message.task_name, deadline)
    database = get_store().database
    connection = connections[database]
    refuse_misconfiguration(task, connection)
    if message.stored is not None:
        message = fetched(message)
    if task.sensitive:
        message = readable(message, task)
    soft, hard = clamped(*task.timeouts(), deadline)
    return Run(
        message=message,
        message_id=message_id,
        # A first invocation is always its own root, whatever its message contains: the root owns a singleton's lock.
        root_id=(message.n_retries and details.get("root_id")) or message_id,
        task=task,
        queue=details.get("queue") or task.queue,
        attributes=details.get("attributes") or {},
        arguments=arguments_of(task, message.kwargs, warn=True),
        soft_timeout=soft,
        hard_timeout=hard,
        lease=lease_for(hard),
        database=database,
        nested=connection.in_atomic_block,
        deadline=deadline,
        limited=details.get("limited", True),
        first_sent=details.get("first_sent"),
        sent_at=details.get("sent_at"),
        scheduled_for=details.get("scheduled_for"),
        flow=(flow := details.get("flow", "")),
        group=details.get("group"),
        is_followed=flow != "" or task.is_followed,
        forgets=(task.record or app_settings.record) == "failures",
        redelivered=details.get("redelivered", False),
        request_id=details.get("request_id"),
    )


def lease_for(hard_timeout: float) -> float:
    """Return how many seconds a run with this hard timeout holds its claim, even if its worker dies."""
    return hard_timeout + KILL_GRACE + WATCHDOG_DELAY + watchdog.SLACK + LEASE_MARGIN


def refuse_misconfiguration(task: Task, connection: BaseDatabaseWrapper) -> None:
    """Raise `ImproperlyConfigured` before the claim for errors in the settings, which are not the task's fault."""
    for name in ("max_retries", "max_takeovers"):
        getattr(app_settings, name)
    refuse_manual_commits(connection)
    if locks(task):
        get_lock().ensure_configured()


def clamped(soft: float, hard: float, deadline: float | None) -> tuple[float, float]:
    """Return the limits, shortened so that the hard limit and its grace period end before `deadline`."""
    if deadline is None:
        return soft, hard
    left = max(deadline - time.monotonic() - KILL_GRACE - RECORDING_RESERVE, 0.1)
    if left >= hard:
        return soft, hard
    return min(soft, 0.9 * left), left


def extend_pause(redeliver: Redeliver, attempt: Attempt) -> None:
    """Extend the pause of a message that must be redelivered to the end of its claim, unless the pause is exact."""
    if not redeliver.exact:
        # An earlier delivery would only use up a receive, since the lease has not expired.
        redeliver.visible_in = max(redeliver.visible_in or 0.0, attempt.lease_left)


def perform(attempt: Attempt) -> Outcome | Wait:
    """Run the task under its lock and its time limits, and return its outcome."""
    run = attempt.run
    notify(hooks().lambda_task_started, run=run)
    limits = time_limits(attempt)
    try:
        # The lock includes COMMIT, so that its next holder sees the writes of this run. The clock starts outside of
        # the transaction, so that BEGIN counts, and an alarm never interrupts COMMIT.
        with held_lock(attempt), limits, NotedNames(attempt.enqueued):
            work(attempt, limits)
    except failpoints.WorkerKilled:
        raise  # a process that was killed records nothing
    except BaseException as error:
        if not attempt.committed:
            begin_at_task(error)
            outcome = after_error(attempt, error, limits)
            attempt.run = attempt.rolled_back_run
            return outcome
        log_failed_callback(attempt.run, error)
    finally:
        if not attempt.in_doubt:
            attempt.following = []  # do not keep the jobs of a rolled-back transaction alive
        if limits.interrupted:
            # The alarm may have interrupted a query on any connection, and the task may have continued without it.
            close_broken_connections()
    return attempt.success


def work(attempt: Attempt, limits: TimeLimits | NoLimits) -> None:
    """Run the task's transaction, and rerun it after a deadlock or another conflict with a concurrent transaction."""
    run = attempt.run
    if not run.task.atomic:
        # Imported here, because most tasks do not need it.
        from lambda_tasks.execution.autocommit import run_in_autocommit

        run_in_autocommit(attempt, limits)
        return
    for conflicts in count(1):
        try:
            transact(attempt, limits)
        except OperationalError as error:
            if attempt.committed or conflicts > MAX_RERUNS or not _may_run_again(run, error, conflicts):
                raise
            text = run.scrubbed(str(error))
            run_logger.warning("%s conflicted with another transaction (%s) and is run again.", run.task_name, text)
            # The task may have modified its arguments, for example with pop().
            attempt.enqueued.clear()
            run = attempt.run = replace(run, arguments=arguments_of(run.task, run.message.kwargs))
        else:
            return


def _may_run_again(run: Run, error: OperationalError, attempts: int) -> bool:
    # In a caller's transaction, as in eager mode, the caller would have to rerun its whole transaction.
    alone = not connections[run.database].in_atomic_block
    # The limits apply to all attempts together. An attempt that exceeds them is a failure of the task; a retry is not.
    in_time = not run.limited or run.duration * (attempts + 1) / attempts < run.soft_timeout
    return alone and in_time and is_conflict(error) and run.task.on_crash == "retry"


def transact(attempt: Attempt, limits: TimeLimits | NoLimits) -> None:
    """Call the task and record its SUCCESS, in one transaction."""
    run = attempt.run
    failpoints.reached("task:before_begin")
    connection = connections[run.database]
    attempt.stage = Stage.BEGIN
    attempt.following = []
    alone = not connection.in_atomic_block
    earlier = error_caught_in(connection)
    with transaction.atomic(using=run.database):
        attempt.session = connection.connection
        connection.on_commit(partial(committed, attempt, limits))  # before the task's own callbacks
        lock_in_transaction(attempt)
        failpoints.reached("task:enter")
        attempt.called = True
        attempt.stage = Stage.CALL
        guard = Guard(connection, run.task_name)
        with guard, Watch(run, limits), limits.armed():
            result = first(hooks().lambda_task_call, run=run)
        guard.ensure_unbroken()  # before RECORD: an error that the task has swallowed belongs to its CALL stage
        attempt.stage = Stage.RECORD
        failpoints.reached("task:leave")
        refuse_broken_transaction(run, connection, earlier)
        if alone:  # otherwise the list also contains the caller's callbacks
            attempt.following = entries_on_commit(connection)
        if run.is_followed:
            end_flow(run, Succeeded(result))
        attempt.success = Succeeded(result)
        end_transaction(attempt, alone=alone)
    failpoints.reached("finish:after_commit")


def end_transaction(attempt: Attempt, *, alone: bool) -> None:
    """Record SUCCESS as the last statement of the task's transaction, and COMMIT with it if the store can."""
    run, store = attempt.run, get_store()
    if alone:
        attempt.stage = Stage.END
        if store.record_and_commit(run, attempt.success):
            return
        attempt.stage = Stage.RECORD
    store.record(run, attempt.success)  # commits or rolls back with the work
    attempt.stage = Stage.COMMIT
    failpoints.reached("finish:before_commit")


def refuse_broken_transaction(run: Run, connection: BaseDatabaseWrapper, earlier: object) -> None:
    """Raise `TransactionBroken` with a remedy, before the database raises an error without one.

    Django keeps the error that broke a transaction until another one does: `earlier` is that of an earlier task.
    """
    if closed_in_transaction(connection):
        raise TransactionBroken(
            f"{run.task_name} has closed the database connection of its transaction, which rolled the transaction "
            "back. A task must not close this connection."
        )
    if not transaction_broken(connection):
        return
    caught = error_caught_in(connection)
    raise TransactionBroken(
        f"{run.task_name} has caught a database error that broke its transaction. Inside the `try` block, wrap the "
        "statements that may fail in their own `with transaction.atomic():`."
    ) from (None if caught is earlier else caught)


def time_limits(attempt: Attempt) -> TimeLimits | NoLimits:
    """Return the time limits of the run. If it ignores them, it is recorded as failed and its process is ended."""
    run = attempt.run
    if not run.limited:
        return NoLimits()
    return TimeLimits(
        run.soft_timeout,
        run.hard_timeout,
        on_overrun=lambda: end_process(attempt.rolled_back_run),
        deadline=run.deadline,
    )


def end_process(run: Run) -> None:
    """Record the run as FAILED on a separate connection, and end the process.

    The main thread's connection may be in the middle of a query, so another thread with its own connection is used.
    """
    error = HardTimeLimitExceeded(
        f"The hard timeout of {run.hard_timeout:g} s has expired, and the task did not end when it was interrupted, "
        "so its process was ended."
    )
    stop_watching()
    last_words = threading.Thread(target=write, args=(run, Failed(error), None), daemon=True)
    last_words.start()
    last_words.join(_LAST_WORDS)
    run_logger.critical("%s ignores its hard timeout, so its process is ended.", run.task_name)
    os._exit(1)


def _raise_interrupt(outcome: Outcome) -> None:
    """Raise a recorded KeyboardInterrupt again. SystemExit ends the task, but not the worker."""
    if isinstance(outcome, Failed) and isinstance(outcome.error, KeyboardInterrupt):
        raise outcome.error


def _log_outcome(run: Run, outcome: Outcome) -> None:
    match outcome:
        case Succeeded():
            run_logger.info("%s succeeded in %.3f s.", run.task_name, run.duration)
        case Ignored(skipped=True):
            run_logger.info("%s is skipped, because another run holds its lock.", run.task_name)
        case Ignored(error):
            name = type(error).__name__
            run_logger.info("%s raised %s, which it ignores, after %.3f s.", run.task_name, name, run.duration)
        case Retry(RetryLater(reason=reason), delay):
            because = f": {printable(run.scrubbed(reason), max_length=_SHOWN_REASON)}" if reason else "."
            run_logger.info("%s asks to run again in %d s%s", run.task_name, delay, because)
        case Retry(LockUnavailable() as error, delay):
            reason = printable(run.scrubbed(str(error)), max_length=_SHOWN_REASON)
            run_logger.warning("%s is retried in %d s, and was not run: %s", run.task_name, delay, reason)
        case Retry(error, delay):
            sentence = "%s raised %s after %.3f s; retried in %d s."
            run_logger.warning(sentence, run.task_name, type(error).__name__, run.duration, delay)
        case Failed(TaskCancelled()):
            run_logger.info("%s was cancelled after %.3f s.", run.task_name, run.duration)
        case Failed(error):
            sentence = "%s failed after %.3f s."
            log_error(run_logger, run, sentence, run.task_name, run.duration, error=error, extra=FAILED_FIELDS)
    if run.dropped_tasks:
        level = logging.INFO if isinstance(outcome, Retry) else logging.WARNING  # a retry enqueues them again
        run_logger.log(level, "%s: %s", run.task_name, dropped_text(run.dropped_tasks))
