"""The pipeline that runs one invocation: resolve → lock → timeout → atomic → classify → record.

What it promises: a task's writes to its record's database take effect exactly once, together with its
SUCCESS; anything else that it does may happen more than once, and has a stable id to make it idempotent.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from django.db import InterfaceError, OperationalError, connections, transaction

from lambda_tasks import outgoing
from lambda_tasks.exceptions import (
    LeaseLost,
    LockUnavailable,
    MaxRetriesExceededError,
    Redeliver,
    TaskCrashedError,
    lock_error,
)
from lambda_tasks.jobs import Run
from lambda_tasks.logging import run_logger, task_logger
from lambda_tasks.outcomes import Busy, Claimed, Failed, Finished, Ignored, Outcome, Retry, Skipped, Succeeded
from lambda_tasks.plugins import ask, hooks, notify
from lambda_tasks.settings import MAX_DELAY, app_settings
from lambda_tasks.strategies import get_lock, get_store
from lambda_tasks.timeouts import (
    KILL_GRACE,
    WATCHDOG_DELAY,
    HardTimeLimitExceeded,
    NoLimits,
    SoftTimeLimitExceeded,
    TimeLimits,
)
from lambda_tasks.tracebacks import begin_at_task

if TYPE_CHECKING:
    from lambda_tasks.decorators import LambdaTaskWrapper
    from lambda_tasks.messages import SQSLambdaTaskMessage

T = TypeVar("T")

#: Documented: the key under which a singleton task is locked.
LOCK_KEY: Final = "lambda_tasks.singleton_lock.{task_name}"
#: Seconds that a lease outlives the moment at which the watchdog has surely ended the process.
LEASE_MARGIN: Final = 5.0
#: Seconds of an invocation that are kept for recording the outcome.
RECORDING_RESERVE: Final = 1.0
#: Seconds that the record of a task that is about to be killed may take.
_LAST_WORDS: Final = 0.8


def execute(
    message: SQSLambdaTaskMessage,
    *,
    message_id: str,
    root_id: str | None = None,
    queue: str | None = None,
    attributes: Mapping[str, str] | None = None,
    deadline: float | None = None,
    task: LambdaTaskWrapper[..., Any] | None = None,
    limited: bool = True,
) -> Outcome | Skipped:
    """Run `message` and return how it ended, or `Skipped` if an earlier delivery had ended it.

    `queue` is the name of the queue that it came from, by default the task's; a retry goes there.
    `attributes` are what the producer's plugins have sent beside it, for the plugins here.
    `deadline` is the moment by `time.monotonic()` at which the process will be ended from outside; the
    time limits are clamped to it. `limited=False` keeps no time limits, as in eager mode.

    Raises `Redeliver` if the message must stay on the queue: the invocation runs elsewhere, or its
    database or its queue went away. Raises whatever is wrong with the message itself before anything
    is recorded.
    """
    with task_logger.bound(message_id, task_name=message.task_name):
        run = prepare(message, message_id, root_id, queue, attributes, deadline, task)
        match claim(run):
            case Skipped() as skipped:
                return skipped
            case given_up:
                outcome = given_up or attempt(run, limited=limited)
        settle(run, outcome)
        _log_outcome(run, outcome)
        notify(hooks().lambda_task_finished, run=run, outcome=outcome)
        _raise_interrupt(outcome)
        return outcome


def resolve(task_name: str) -> LambdaTaskWrapper[..., Any]:
    """Return the task, asking the plugins before the registry; raises `UnknownTask`."""
    return hooks().lambda_task_resolve(task_name=task_name)  # type: ignore[return-value]  # the default never gives None


def prepare(
    message: SQSLambdaTaskMessage,
    message_id: str,
    root_id: str | None = None,
    queue: str | None = None,
    attributes: Mapping[str, str] | None = None,
    deadline: float | None = None,
    task: LambdaTaskWrapper[..., Any] | None = None,
) -> Run:
    """Resolve the task and read its arguments; nothing is written yet."""
    task = task or resolve(message.task_name)
    refuse_misconfiguration(task)
    soft, hard = clamped(*task.timeouts(), deadline)
    return Run(
        message=message,
        message_id=message_id,
        root_id=root_id or message_id,
        task=task,
        queue=queue or task.queue,
        attributes=attributes or {},
        arguments=task.signature.decode(message.kwargs),
        soft_timeout=soft,
        hard_timeout=hard,
        lease=hard + KILL_GRACE + WATCHDOG_DELAY + LEASE_MARGIN,
        database=get_store().database,
    )


def refuse_misconfiguration(task: LambdaTaskWrapper[..., Any]) -> None:
    """Raise `ImproperlyConfigured` for what would be met after the claim: it is no fault of the task's."""
    for name in ("max_retries", "max_takeovers"):
        getattr(app_settings, name)
    if task.singleton:
        get_lock().ensure_configured()


def clamped(soft: float, hard: float, deadline: float | None) -> tuple[float, float]:
    """Return the limits, shortened so that the hard one with its grace ends before `deadline`."""
    if deadline is None:
        return soft, hard
    left = max(deadline - time.monotonic() - KILL_GRACE - RECORDING_RESERVE, 0.1)
    if left >= hard:
        return soft, hard
    return min(soft, 0.9 * left), left


def claim(run: Run) -> Failed | Skipped | None:
    """Make the invocation ours: None means that it is to be run now.

    Raises `Redeliver` while another worker holds it.
    """
    match on_sound_connection(run, lambda: get_store().claim(run)):
        case Claimed(takeovers):
            run.takeovers = takeovers
            return _crashed_too_often(run)
        case Finished(status):
            run_logger.info("%s has ended before as %s; the delivery is acknowledged.", run.task_name, status)
            notify(hooks().lambda_task_skipped, message_id=run.message_id, reason="finished")
            return Skipped("finished")
        case Busy(seconds):
            notify(hooks().lambda_task_skipped, message_id=run.message_id, reason="running")
            raise Redeliver(f"{run.task_name} is running in another worker", visible_in=seconds)


def _crashed_too_often(run: Run) -> Failed | None:
    if not run.takeovers:
        return None
    if run.task.on_crash == "fail":
        return Failed(TaskCrashedError("crashed: its worker died, and on_crash='fail' forbids another try."))
    if run.takeovers > app_settings.max_takeovers:
        return Failed(
            TaskCrashedError(
                f"crashed: {run.takeovers} workers died while they ran it (LAMBDA_TASKS_MAX_TAKEOVERS is "
                f"{app_settings.max_takeovers})."
            )
        )
    run_logger.warning("%s is taken over: worker %d died while it ran it.", run.task_name, run.takeovers)
    return None


def attempt(run: Run, *, limited: bool) -> Outcome:
    """Lock, timeout, atomic, call and SUCCESS; or what the error means."""
    notify(hooks().lambda_task_started, run=run)
    connection = connections[run.database]
    session = None
    try:
        # The lock goes around COMMIT, so that the next holder sees what this one wrote. The clock
        # starts outside of the transaction, so that BEGIN counts, and no alarm meets COMMIT.
        with held_lock(run), time_limits(run, limited) as limits, transaction.atomic(using=run.database):
            session = connection.connection
            transaction.on_commit(run.mark_committed, using=run.database)  # before the task's own callbacks
            with limits.armed():
                result = hooks().lambda_task_call(run=run)
            outcome = Succeeded(result)
            get_store().record(run, outcome)  # commits or rolls back with the work
        return outcome
    except BaseException as error:
        if run.committed:
            run_logger.exception("%s is committed; what was to follow its commit failed.", run.task_name)
            return outcome
        begin_at_task(error)
        return after_error(run, error, session)


def after_error(run: Run, error: BaseException, session: object) -> Outcome:
    """Return what `error` means; raises `Redeliver` if it is no doing of the task's."""
    connection = connections[run.database]
    if isinstance(error, LeaseLost):
        raise Redeliver(f"{run.task_name} was taken over or its record deleted: rolled back") from error
    if isinstance(error, SoftTimeLimitExceeded | HardTimeLimitExceeded):
        if not connection.in_atomic_block:
            # The alarm may have struck inside a query: nobody knows what the driver expects next.
            connection.close()
    elif _connection_lost(run, error, session):
        return after_lost_connection(run, error)
    return classify(run, error)


def _connection_lost(run: Run, error: BaseException, session: object) -> bool:
    """Tell whether the transaction's own session with the database is gone.

    Django closes a connection on which not even ROLLBACK works, so another session, or none, is a sign
    for any error; an error of the database may come before it is noticed.
    """
    of_database = isinstance(error, OperationalError | InterfaceError)
    if session is None:
        return of_database
    connection = connections[run.database]
    return connection.connection is not session or (of_database and not connection.is_usable())


def after_lost_connection(run: Run, error: BaseException) -> Outcome:
    """Find out on a new connection whether COMMIT went through before the old one was lost.

    A lost connection is the infrastructure's failure, not the task's: if nothing was committed, the
    claim is given back and the message with it.
    """
    connections[run.database].close()
    try:
        if get_store().has_succeeded(run):
            run_logger.warning("%s is committed; only the answer to COMMIT was lost.", run.task_name)
            run.mark_committed()
            return Succeeded()
        get_store().release(run)
    except Exception as second:
        raise Redeliver(f"the database went away under {run.task_name}, and stays away") from second
    raise Redeliver(f"the database went away under {run.task_name}") from error


@contextmanager
def held_lock(run: Run) -> Iterator[None]:
    """Hold the lock of a singleton task; an error on release never changes the outcome.

    Raises `LockError` if another invocation holds it, `LockUnavailable` if the lock's server is away.
    """
    if not run.task.singleton:
        yield
        return
    key = LOCK_KEY.format(task_name=run.task_name)
    lock = get_lock()
    try:
        acquired = lock.acquire(key, token=run.message_id, timeout=run.task.timeouts()[1])
    except Exception as error:
        raise LockUnavailable(f"The lock {key!r} could not be asked for: {error}") from error
    if not acquired:
        raise lock_error(f"The lock {key!r} is held by another invocation.")
    try:
        yield
    finally:
        try:
            lock.release(key, token=run.message_id)
        except Exception:
            run_logger.exception("The lock %r could not be released; it ends by itself.", key)


def time_limits(run: Run, limited: bool) -> TimeLimits | NoLimits:
    """Return the limits of the run; what outlives them is recorded and ended with its process."""
    if not limited:
        return NoLimits()
    return TimeLimits(run.soft_timeout, run.hard_timeout, on_overrun=lambda: end_process(run))


def end_process(run: Run) -> None:
    """Record the run as FAILED on a connection of its own, and end the process.

    The main thread's connection may be in the middle of a query; another thread has another one.
    """
    error = HardTimeLimitExceeded(
        f"The hard timeout of {run.hard_timeout:g} s is over, and the task did not end when it was interrupted: "
        "its process was ended."
    )
    last_words = threading.Thread(target=get_store().record, args=(run, Failed(error)), daemon=True)
    last_words.start()
    last_words.join(_LAST_WORDS)
    run_logger.critical("%s ignores its hard timeout; the process ends.", run.task_name)
    os._exit(1)


def classify(run: Run, error: BaseException) -> Outcome:
    """Return what `error` means to this task; that its retries are exhausted is decided here alone."""
    outcome = ask(hooks().lambda_task_classify, Ignored | Retry | Failed, run=run, error=error)
    if isinstance(outcome, Retry) and run.n_retries >= app_settings.max_retries:
        exhausted = MaxRetriesExceededError(
            f"{run.task_name} wants to be retried after {run.n_retries} retries, and LAMBDA_TASKS_MAX_RETRIES is "
            f"{app_settings.max_retries}. The last error was {type(error).__name__}."
        )
        exhausted.__cause__ = error
        return Failed(exhausted)
    return cast("Outcome", outcome)


def settle(run: Run, outcome: Outcome) -> None:
    """Write everything that is written outside of the task's transaction.

    A retry is sent first and recorded second: a worker that dies in between sends it again, under the
    same id. In the other order it would be lost.
    """
    match outcome:
        case Succeeded():
            return  # it stands already, with the work
        case Retry(delay=delay):
            send_retry(run, delay)
    try:
        on_sound_connection(run, lambda: get_store().record(run, outcome))
    except LeaseLost as error:
        raise Redeliver(f"{run.task_name} was taken over or its record deleted before it was settled") from error
    except (OperationalError, InterfaceError) as error:
        raise Redeliver(f"the end of {run.task_name} could not be recorded") from error


def send_retry(run: Run, delay: int) -> None:
    """Send the next retry; if that fails, give the claim back and leave the message on the queue."""
    try:
        outgoing.send_now(run.retry_job(min(delay, MAX_DELAY)))
    except Exception as error:
        run_logger.exception("The retry of %s could not be sent; its message stays on the queue.", run.task_name)
        get_store().release(run)
        raise Redeliver(f"the retry of {run.task_name} could not be sent") from error


def on_sound_connection(run: Run, action: Callable[[], T]) -> T:
    """Do `action`; if the connection has died unnoticed, as over a freeze, once more on a new one."""
    connection = connections[run.database]
    try:
        return action()
    except (OperationalError, InterfaceError):
        if connection.in_atomic_block:
            raise
        connection.close()
        return action()


def _raise_interrupt(outcome: Outcome) -> None:
    """Pass on Ctrl-C, after it is recorded; SystemExit ends the task and not the worker."""
    if isinstance(outcome, Failed) and isinstance(outcome.error, KeyboardInterrupt):
        raise outcome.error


def _log_outcome(run: Run, outcome: Outcome) -> None:
    match outcome:
        case Succeeded():
            run_logger.info("%s succeeded in %.3f s.", run.task_name, run.duration)
        case Ignored(error):
            run_logger.info("%s raised %s, which it ignores.", run.task_name, type(error).__name__)
        case Retry(error, delay):
            run_logger.warning("%s raised %s; retried in %d s.", run.task_name, type(error).__name__, delay)
        case Failed(error):
            run_logger.error("%s failed.", run.task_name, exc_info=error)
