"""Classify the errors of a run: the task's failure, a retry, an ignored error, or an unavailable database."""

from __future__ import annotations

import threading
from typing import cast

from django.db import connections

from lambda_tasks.database.errors import (
    connection_lost,
    end_session,
    is_conflict,
    is_lock_timeout,
    on_sound_connection,
)
from lambda_tasks.database.infrastructure import is_infrastructure, is_read_only
from lambda_tasks.database.private_names import callbacks_in, closed_in_transaction
from lambda_tasks.exceptions import (
    LeaseLost,
    MaxRetriesExceededError,
    Redeliver,
    TaskCancelled,
    TaskCrashedError,
    TransactionBroken,
)
from lambda_tasks.execution.attempt import Attempt, Stage
from lambda_tasks.execution.settling import committed, give_back, pause_after, settle
from lambda_tasks.jobs import Run, log_error
from lambda_tasks.limits import watchdog
from lambda_tasks.limits.alarms import HardTimeLimitExceeded, NoLimits, SoftTimeLimitExceeded, TimeLimits
from lambda_tasks.logging import run_logger
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Wait
from lambda_tasks.plugins import ask, hooks
from lambda_tasks.sending import outgoing
from lambda_tasks.settings import LambdaTasksSettings, app_settings
from lambda_tasks.strategies import get_backend, get_store


def after_error(attempt: Attempt, error: BaseException, limits: TimeLimits | NoLimits) -> Outcome | Wait:
    """Return the outcome of a run that raised `error`; raise `Redeliver` if the task did not cause the error."""
    run = attempt.run
    connection = connections[run.database]
    if isinstance(error, TransactionBroken) and error.work_may_stand:
        return Failed(error)  # a second run would repeat a part of the work
    if isinstance(error, LeaseLost):
        reason = f"{run.task_name} was taken over, or its record was deleted, and its transaction is rolled back"
        raise Redeliver(reason, exact=True) from error
    if isinstance(error, SoftTimeLimitExceeded | HardTimeLimitExceeded):
        if not connection.in_atomic_block:
            # The alarm may have interrupted a query, which leaves the driver in an unknown state.
            end_session(connection)
    elif closed_in_transaction(connection) and not connection.in_atomic_block:
        pass  # the task itself closed it: this is not an outage, and a rerun would close it again
    elif connection_lost(run.database, error, attempt.session):
        if not limits.interrupted:
            return after_lost_connection(attempt, error)
        # This is not an outage: a rerun would reach the limit again.
        error = lost_to_limit(run, error)
    elif refused_by_database(attempt, error, limits):
        return after_lost_connection(attempt, error)
    return classify(attempt, error)


def refused_by_database(attempt: Attempt, error: BaseException, limits: TimeLimits | NoLimits) -> bool:
    """Return whether the database's state is the cause: of a failed library statement, or of refused task writes."""
    run = attempt.run
    if connections[run.database].in_atomic_block or limits.interrupted:
        return False  # the caller's transaction cannot be redelivered; a limit is the task's own failure
    if attempt.stage is not Stage.CALL:
        return is_infrastructure(error)
    # After a takeover, the transaction of the previous worker may still be open, and hold the rows of this task.
    return is_read_only(error) or (attempt.run.takeovers > 0 and is_lock_timeout(error))


def lost_to_limit(run: Run, error: BaseException) -> SoftTimeLimitExceeded:
    """Return the error of a task that caught the soft limit during a query and then used the broken connection."""
    end_session(connections[run.database])
    limit = SoftTimeLimitExceeded(
        f"The soft timeout of {run.soft_timeout:g} s has expired. The task caught it, but the timeout interrupted a "
        "query, which broke the connection and rolled back the transaction."
    )
    limit.__cause__ = error
    return limit


def after_lost_connection(attempt: Attempt, error: BaseException) -> Outcome:
    """Check on a new connection whether COMMIT succeeded before the old connection was lost.

    A lost connection is an infrastructure failure, not the task's: without a commit, the claim is released and the
    message returns to the queue. Only a task that must not repeat its effects outside of the database fails.
    """
    run = attempt.run
    end_session(connections[run.database])
    try:
        if was_committed(attempt):
            return attempt.success
        attempt.in_doubt = attempt.stage is Stage.END
        if attempt.called and run.task.on_crash == "fail":
            return _crashed_with_connection(run, error)
        cost = cost_its_session(attempt, error)
        if cost and run.takeovers >= app_settings.max_takeovers:
            return _crashed_with_session(run, error)
        give_back(attempt, crashed=cost)
        if attempt.in_doubt and was_committed(attempt):
            return attempt.success
    except Exception as second:
        reason = f"{_what_happened(run, error)}, and its claim could not be released"
        raise Redeliver(reason, visible_in=pause_after(second)) from second
    raise Redeliver(_what_happened(run, error), visible_in=pause_after(error)) from error


def was_committed(attempt: Attempt) -> bool:
    """Return whether the record shows that COMMIT succeeded, and then send what the task has enqueued."""
    run = attempt.run
    # With FOR UPDATE, a strict isolation level refuses to read a row that was committed while it waited.
    if not on_sound_connection(run.database, lambda: get_store().has_succeeded(run)):
        return False
    run_logger.warning("%s is committed; only the response to COMMIT was lost.", run.task_name)
    attempt.committed = True
    send_what_followed(attempt)
    return True


def settle_in_doubt(attempt: Attempt, outcome: Outcome) -> Outcome:
    """Record an outcome, unless the request whose answer was lost has committed in the meantime."""
    try:
        return settle(attempt, outcome)
    except Redeliver as redeliver:
        if isinstance(redeliver.__cause__, LeaseLost) and was_committed(attempt):
            return attempt.success
        raise


def cost_its_session(attempt: Attempt, error: BaseException) -> bool:
    """Return whether the task itself may have caused the loss of its session, if a new connection works.

    If the server ended the session while the function was idle, only the statement after the function notices it. A
    session that ended before the function is indistinguishable if the function's first statement notices it, so it is
    counted, too. A session lost during COMMIT is not counted, and neither is a database that refuses to record the
    outcome.
    """
    if attempt.stage is Stage.CALL:
        return True
    if is_read_only(error):
        return attempt.stage in (Stage.RECORD, Stage.END)
    return attempt.stage is Stage.RECORD and not is_infrastructure(error)


def _crashed_with_session(run: Run, error: BaseException) -> Failed:
    crashed = TaskCrashedError(
        f"crashed: {run.task_name} lost the database session of its transaction, or its worker, "
        f"{run.takeovers + 1} times (LAMBDA_TASKS_MAX_TAKEOVERS is {app_settings.max_takeovers}), and the database "
        "answered a new connection right after the last loss. Usual causes: an idle-in-transaction timeout, a "
        "statement over max_allowed_packet, a forked child process that closes the connection, a statement that "
        "crashes its server process, or writing to a read-only database."
    )
    crashed.__cause__ = error
    return Failed(crashed)


def _crashed_with_connection(run: Run, error: BaseException) -> Failed:
    what = _what_happened(run, error) if is_infrastructure(error) else "it lost its database connection"
    crashed = TaskCrashedError(f"crashed: {what}, and on_crash='fail' forbids another attempt.")
    crashed.__cause__ = error
    return Failed(crashed)


def send_what_followed(attempt: Attempt) -> None:
    """Send the tasks that the committed run enqueued; Django dropped their callbacks with the connection."""
    run = attempt.run
    if threading.current_thread() is threading.main_thread() and TimeLimits.current() is None:
        watchdog.call_off()  # it may still be set for the run, which has committed
    following = [
        callback for callback in callbacks_in(attempt.following) if getattr(callback, "func", None) is not committed
    ]
    try:
        dropped = outgoing.depart(following)
    except Exception as error:
        log_failed_callback(run, error)
        return
    if dropped:
        run_logger.warning(
            "%s lost the response to its COMMIT, so Django dropped its on_commit callbacks. Its tasks are sent, "
            "but %d other callbacks are not called.",
            run.task_name,
            dropped,
        )


def log_failed_callback(run: Run, error: BaseException) -> None:
    sentence = "%s is committed, but an action after the commit failed."
    log_error(run_logger, run, sentence, run.task_name, error=error)


def _what_happened(run: Run, error: BaseException) -> str:
    if is_infrastructure(error):
        return f"the database refused the work of {run.task_name} ({run.scrubbed(str(error)).strip()})"
    return f"{run.task_name} lost its database connection"


def classify(attempt: Attempt, error: BaseException) -> Outcome | Wait:
    """Return the outcome that the plugins choose for `error`, or a failure if the retries are exhausted."""
    run = attempt.run
    if isinstance(error, TaskCancelled):
        return Failed(error)  # whatever types the task retries or ignores
    outcome = ask(hooks().lambda_task_classify, Ignored | Retry | Failed | Wait, run=run, error=error)
    if isinstance(outcome, Retry) and (reached := _reached_limit(attempt, error, outcome.delay)):
        retries = "1 retry" if run.n_retries == 1 else f"{run.n_retries} retries"
        exhausted = MaxRetriesExceededError(
            f"{run.task_name} failed after {retries}, and {reached}. The last error was {type(error).__name__}."
        )
        exhausted.__cause__ = error
        return Failed(exhausted)
    return cast("Outcome | Wait", outcome)


def _reached_limit(attempt: Attempt, error: BaseException, delay: int) -> str | None:
    """Return which limit forbids a retry in `delay` seconds, or None."""
    run = attempt.run
    policy = run.task.retry_policy(error)
    own_error = _is_own_error(attempt, error)
    limit, name = _retry_limit(policy.max_retries, own_error=own_error)
    if run.n_retries >= limit:
        return f"{name} is {limit}"
    if not own_error or run.age is None:
        return None
    age = run.age + delay
    if age <= policy.age_limit:
        return None
    return f"its next retry would start {age:.0f} s after the first invocation (its max_age is {policy.age_limit:g} s)"


def _retry_limit(own: int | None, *, own_error: bool) -> tuple[int, str]:
    """Return the maximum number of retries, and the name of the setting or option that defines it."""
    limit, name = app_settings.max_retries, "LAMBDA_TASKS_MAX_RETRIES"
    if own is not None and (own >= limit or own_error):
        limit, name = own, "its max_retries"
    backend = get_backend()
    most = backend.default_max_retries
    if most is not None and most < limit and not LambdaTasksSettings.max_retries.is_set:
        return most, f"the limit of {type(backend).__name__} without LAMBDA_TASKS_MAX_RETRIES"
    return limit, name


def _is_own_error(attempt: Attempt, error: BaseException) -> bool:
    """Return whether the task's own limits apply to `error`.

    How long another run holds the lock, or Redis is unavailable, does not depend on the task, which was not called.
    """
    return attempt.stage is not Stage.BEGIN and not is_conflict(error)
