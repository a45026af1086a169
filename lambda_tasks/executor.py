"""The pipeline that runs one invocation: resolve → lock → timeout → atomic → classify → record.

What it promises: a task's writes to its record's database take effect exactly once, together with its
SUCCESS; anything else that it does may happen more than once, and has a stable id to make it idempotent.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks import outgoing, points, watchdog
from lambda_tasks.databases import (
    DATABASE_ERRORS,
    LOCKED_PAUSE,
    close_broken_connections,
    connection_lost,
    is_conflict,
    is_lock_timeout,
    on_sound_connection,
    transaction_broken,
)
from lambda_tasks.exceptions import (
    InvalidArguments,
    LeaseLost,
    LockUnavailable,
    MaxRetriesExceededError,
    MessageTooLarge,
    Redeliver,
    TaskCrashedError,
    TaskExpiredError,
    TransactionBroken,
)
from lambda_tasks.jobs import Job, Run
from lambda_tasks.logging import run_logger, task_logger
from lambda_tasks.outcomes import Busy, Claimed, Failed, Finished, Ignored, Outcome, Retry, Skipped, Succeeded
from lambda_tasks.plugins import ask, hooks, notify
from lambda_tasks.settings import app_settings
from lambda_tasks.singletons import held_lock, lock_in_transaction
from lambda_tasks.strategies import get_backend, get_lock, get_store, longest_delay
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
    from lambda_tasks.plain import Invocation

#: Seconds that a lease outlives the moment at which the watchdog has surely ended the process.
LEASE_MARGIN: Final = 5.0
#: Seconds of an invocation that are kept for recording the outcome.
RECORDING_RESERVE: Final = 1.0
#: How often a task is run again at once that the database gave up in favour of another transaction.
MAX_RERUNS: Final = 3
#: Seconds that the record of a task that is about to be killed may take.
_LAST_WORDS: Final = 0.8


def execute(
    message: SQSLambdaTaskMessage | Invocation,
    *,
    message_id: str,
    root_id: str | None = None,
    queue: str | None = None,
    attributes: Mapping[str, str] | None = None,
    deadline: float | None = None,
    task: LambdaTaskWrapper[..., Any] | None = None,
    limited: bool = True,
    first_sent: float | None = None,
    redelivered: bool = False,
) -> Outcome | Skipped:
    """Run `message` and return how it ended, or `Skipped` if an earlier delivery had ended it.

    `queue` is the name of the queue that it came from, by default the task's; a retry goes there.
    `attributes` are what the producer's plugins have sent beside it, for the plugins here.
    `deadline` is the moment by `time.monotonic()` at which the process will be ended from outside; the
    time limits are clamped to it. `limited=False` keeps no time limits, as in eager mode. `first_sent`
    is when the first invocation of the chain was sent, in seconds since 1970; without it nothing expires.
    `redelivered` says that the message was received before, so that a record of it is to be expected.

    Raises `Redeliver` if the message must stay on the queue: the invocation runs elsewhere, or its
    database or its queue went away. Raises whatever is wrong with the message itself before anything
    is recorded.
    """
    with task_logger.bound(message_id, task_name=message.task_name):
        run = prepare(message, message_id, root_id, queue, attributes, deadline, task)
        run.first_sent = first_sent
        run.limited = limited
        run.redelivered = redelivered
        match claim(run):
            case Skipped() as skipped:
                return skipped
            case given_up:
                outcome = given_up or attempt(run)
        outcome = settle(run, outcome)
        _log_outcome(run, outcome)
        notify(hooks().lambda_task_finished, run=run, outcome=outcome)
        _raise_interrupt(outcome)
        return outcome


def resolve(task_name: str) -> LambdaTaskWrapper[..., Any]:
    """Return the task, asking the plugins before the registry; raises `UnknownTask`."""
    return hooks().lambda_task_resolve(task_name=task_name)  # type: ignore[return-value]  # the default never gives None


def prepare(
    message: SQSLambdaTaskMessage | Invocation,
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
        lease=hard + KILL_GRACE + WATCHDOG_DELAY + watchdog.SLACK + LEASE_MARGIN,
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
    points.reached("claim:before")
    try:
        answer = on_sound_connection(run.database, lambda: get_store().claim(run))
    except OperationalError as error:
        if is_conflict(error):
            # The database is there; only others were faster, twice.
            raise Redeliver(f"{run.task_name} is claimed by several workers at once", visible_in=0) from error
        if is_lock_timeout(error):
            # Another worker has written the end of the same invocation, and does not come to its COMMIT.
            raise Redeliver(f"{run.task_name} is being ended by another worker", visible_in=LOCKED_PAUSE) from error
        raise
    match answer:
        case Claimed(takeovers):
            points.reached("claim:after")
            run.takeovers = takeovers
            return _crashed_too_often(run) or _expired(run)
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


def _expired(run: Run) -> Failed | None:
    """Say that the message has waited longer than the task's `expires_in`, if it has."""
    if run.task.expires_in is None or run.first_sent is None:
        return None
    age = time.time() - run.first_sent
    if age <= run.task.expires_in:
        return None
    return Failed(
        TaskExpiredError(
            f"expired: {run.task_name} was sent {age:.0f} s ago, and its expires_in is {run.task.expires_in} s; "
            "it was not run."
        )
    )


def attempt(run: Run) -> Outcome:
    """Lock, timeout, atomic, call and SUCCESS; or what the error means."""
    notify(hooks().lambda_task_started, run=run)
    limits = time_limits(run)
    try:
        # The lock goes around COMMIT, so that the next holder sees what this one wrote. The clock
        # starts outside of the transaction, so that BEGIN counts, and no alarm meets COMMIT.
        with held_lock(run), limits:
            work(run, limits)
    except BaseException as error:
        if not run.committed:
            begin_at_task(error)
            return after_error(run, error, limits)
        sentence = "%s is committed; what was to follow its commit failed."
        run.log_error(run_logger, logging.ERROR, sentence, run.task_name, error=error)
    finally:
        if limits.interrupted:
            # The alarm may have struck in a query on any connection, and the task may have gone on without it.
            close_broken_connections()
    return run.success


def work(run: Run, limits: TimeLimits | NoLimits) -> None:
    """Do the task's transaction; again from its beginning where the database gave it up for another one's sake."""
    for conflicts in count(1):
        try:
            transact(run, limits)
        except OperationalError as error:
            if run.committed or conflicts > MAX_RERUNS or not _may_run_again(run, error, conflicts):
                raise
            text = run.scrubbed(str(error))
            run_logger.warning("%s met another transaction (%s) and is run again.", run.task_name, text)
            # Those that it has may be changed: emptied by a pop(), say.
            run.arguments = run.task.signature.decode(run.message.kwargs)
        else:
            return


def _may_run_again(run: Run, error: OperationalError, tries: int) -> bool:
    # Inside of a caller's transaction, as in eager mode, that one would have to begin again.
    alone = not connections[run.database].in_atomic_block
    # The limits are those of all tries together: one too many would be the task's failure, a retry is not.
    in_time = not run.limited or run.duration * (tries + 1) / tries < run.soft_timeout
    return alone and in_time and is_conflict(error) and run.task.on_crash == "retry"


def transact(run: Run, limits: TimeLimits | NoLimits) -> None:
    """Call the task and write its SUCCESS, in one transaction."""
    points.reached("task:before_begin")
    connection = connections[run.database]
    with transaction.atomic(using=run.database):
        run.session = connection.connection
        connection.on_commit(run.mark_committed)  # before the task's own callbacks
        lock_in_transaction(run)
        points.reached("task:enter")
        run.called = True
        with limits.armed():
            result = hooks().lambda_task_call(run=run)
        points.reached("task:leave")
        refuse_broken_transaction(run, connection)
        run.success = Succeeded(result)
        get_store().record(run, run.success)  # commits or rolls back with the work
        points.reached("finish:before_commit")
    points.reached("finish:after_commit")


def refuse_broken_transaction(run: Run, connection: BaseDatabaseWrapper) -> None:
    """Say what is wrong before the database does, whose words tell nobody what to do."""
    if connection.closed_in_transaction:
        raise TransactionBroken(
            f"{run.task_name} has closed the database connection that its transaction was on, and with it the "
            "transaction. Close other connections, or none."
        )
    if not transaction_broken(connection):
        return
    raise TransactionBroken(
        f"{run.task_name} has caught an error of the database, and its transaction did not survive that. "
        "Put what may fail into a `with transaction.atomic():` of its own, inside of the `try`."
    ) from getattr(connection, "rollback_exc", None)


def after_error(run: Run, error: BaseException, limits: TimeLimits | NoLimits) -> Outcome:
    """Return what `error` means; raises `Redeliver` if it is no doing of the task's."""
    connection = connections[run.database]
    if isinstance(error, LeaseLost):
        raise Redeliver(f"{run.task_name} was taken over or its record deleted: rolled back") from error
    if isinstance(error, SoftTimeLimitExceeded | HardTimeLimitExceeded):
        if not connection.in_atomic_block:
            # The alarm may have struck inside a query: nobody knows what the driver expects next.
            connection.close()
    elif connection.closed_in_transaction and not connection.in_atomic_block:
        pass  # by the task itself: no outage, and it would do so again
    elif connection_lost(run.database, error, run.session):
        if not limits.interrupted:
            return after_lost_connection(run, error)
        # No outage: running it again would lead here again.
        error = lost_to_limit(run, error)
    return classify(run, error)


def lost_to_limit(run: Run, error: BaseException) -> SoftTimeLimitExceeded:
    """Return what a task failed with that caught the soft limit in a query, and then needed the connection."""
    connections[run.database].close()
    limit = SoftTimeLimitExceeded(
        f"The soft timeout of {run.soft_timeout:g} s is over. The task caught it, but the query that it interrupted "
        "has cost the connection, and with it the transaction."
    )
    limit.__cause__ = error
    return limit


def after_lost_connection(run: Run, error: BaseException) -> Outcome:
    """Find out on a new connection whether COMMIT went through before the old one was lost.

    A lost connection is the infrastructure's failure, not the task's: if nothing was committed, the
    claim is given back and the message with it. Only a task that must not repeat what it did outside fails.
    """
    connections[run.database].close()
    try:
        # With FOR UPDATE, a strict isolation level refuses to read what was committed while it waited.
        if on_sound_connection(run.database, lambda: get_store().has_succeeded(run)):
            run_logger.warning("%s is committed; only the answer to COMMIT was lost.", run.task_name)
            run.mark_committed()
            return run.success
        if run.called and run.task.on_crash == "fail":
            return _crashed_with_connection(error)
        give_back(run)
    except Exception as second:
        raise Redeliver(f"the database went away under {run.task_name}, and stays away") from second
    raise Redeliver(f"the database went away under {run.task_name}") from error


def _crashed_with_connection(error: BaseException) -> Failed:
    crashed = TaskCrashedError("crashed: it lost its database, and on_crash='fail' forbids another try.")
    crashed.__cause__ = error
    return Failed(crashed)


def time_limits(run: Run) -> TimeLimits | NoLimits:
    """Return the limits of the run; what outlives them is recorded and ended with its process."""
    if not run.limited:
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
    limit, where = _retry_limit(run, error)
    if isinstance(outcome, Retry) and run.n_retries >= limit:
        exhausted = MaxRetriesExceededError(
            f"{run.task_name} wants to be retried after {run.n_retries} retries, and {where} is {limit}. "
            f"The last error was {type(error).__name__}."
        )
        exhausted.__cause__ = error
        return Failed(exhausted)
    return cast("Outcome", outcome)


def _retry_limit(run: Run, error: BaseException) -> tuple[int, str]:
    """Return how many retries a chain may have, and what says so.

    The task's own limit is about its own errors: how long Redis is away says nothing about the task.
    """
    own, of_all = run.task.max_retries, app_settings.max_retries
    if own is not None and (own >= of_all or not (isinstance(error, LockUnavailable) or is_conflict(error))):
        return own, "its max_retries"
    return of_all, "LAMBDA_TASKS_MAX_RETRIES"


def settle(run: Run, outcome: Outcome) -> Outcome:
    """Write everything that is written outside of the task's transaction, and return how it ended.

    A retry is sent first and recorded second: a worker that dies in between sends it again, under the
    same id. In the other order it would be lost. A transport that keeps jobs has it kept with the record,
    in one transaction. A retry that no queue will ever take is a failure.
    """
    kept: Job | None = None
    match outcome:
        case Succeeded():
            return outcome  # it stands already, with the work
        case Retry(delay=delay):
            retry = run.retry_job(min(delay, longest_delay()))
            kept = retry if get_backend().keeps else None
            if refusal := send_retry(run, retry):
                outcome, kept = Failed(refusal), None
    settled = outcome
    points.reached("settle:before_write")
    try:
        on_sound_connection(run.database, lambda: write(run, settled, kept))
    except LeaseLost as error:
        raise Redeliver(f"{run.task_name} was taken over or its record deleted before it was settled") from error
    except DATABASE_ERRORS as error:
        raise Redeliver(f"the end of {run.task_name} could not be recorded") from error
    points.reached("settle:after_write")
    return settled


def write(run: Run, outcome: Outcome, kept: Job | None) -> None:
    """Record `outcome`, and in the same transaction the retry that the transport keeps, if it does."""
    if kept is None:
        get_store().record(run, outcome)
        return
    with transaction.atomic(using=run.database):
        get_store().record(run, outcome)  # first: without the claim, nothing is kept
        outgoing.leave_on_commit(kept)


def send_retry(run: Run, retry: Job) -> MessageTooLarge | InvalidArguments | None:
    """Send the next retry, or return why it can never be sent; one that is to be kept is only checked.

    If it cannot be sent now, the claim is given back, and the message stays on the queue.
    """
    points.reached("retry:before_send")
    try:
        outgoing.prepare(retry)
        if not get_backend().keeps:
            outgoing.dispatch([retry])
    except (MessageTooLarge, InvalidArguments) as refusal:
        return refusal  # as it will be each time, and the task would run each time
    except Exception as error:
        run_logger.exception("The retry of %s could not be sent; its message stays on the queue.", run.task_name)
        give_back(run)
        raise Redeliver(f"the retry of {run.task_name} could not be sent") from error
    points.reached("retry:between")
    return None


def give_back(run: Run) -> None:
    """Give the claim back, so that the next delivery may take it at once."""
    points.reached("release:before")
    on_sound_connection(run.database, lambda: get_store().release(run))


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
            run.log_error(run_logger, logging.ERROR, "%s failed.", run.task_name, error=error)
