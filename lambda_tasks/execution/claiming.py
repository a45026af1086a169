"""Claim an invocation, so that only one worker runs it, and refuse runs that must not start."""

from __future__ import annotations

import time
from dataclasses import replace

from django.db import InternalError, OperationalError, connections

from lambda_tasks import failpoints
from lambda_tasks.database.errors import LOCKED_PAUSE, is_conflict, is_lock_timeout, on_sound_connection
from lambda_tasks.database.infrastructure import is_read_only
from lambda_tasks.exceptions import Redeliver, TaskCancelled, TaskCrashedError, TaskExpiredError
from lambda_tasks.execution.attempt import Attempt
from lambda_tasks.execution.settling import give_back_if_possible, pause_after
from lambda_tasks.fitting import misfit_of_ids
from lambda_tasks.jobs import Run
from lambda_tasks.logging import run_logger
from lambda_tasks.outcomes import Busy, Claim, Claimed, Failed, Finished, Mismatch, Skipped
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_store


def claim(attempt: Attempt) -> Failed | Skipped | None:
    """Claim the invocation for this worker. Return None if it must run now, or the reason why it must not.

    Raise `Redeliver` while another worker holds the claim, and for a message that contradicts the records.
    """
    run = attempt.run
    if reason := misfit_of_ids(run):
        raise _mismatch(run, reason)
    failpoints.reached("claim:before")
    match _answer_to_claim(run):
        case Claimed(takeovers, waited, first):
            failpoints.reached("claim:after")
            attempt.claimed = True
            if takeovers or waited:
                run = attempt.run = replace(run, takeovers=takeovers, waited=waited)
            return _crashed_too_often(run) or _expired(run) or _cancelled(attempt, first=first)
        case Finished(status):
            run_logger.info("%s has already ended as %s; the delivery is acknowledged.", run.task_name, status)
            notify(hooks().lambda_task_skipped, message_id=run.message_id, reason="finished")
            return Skipped("finished")
        case Busy(seconds, locked):
            notify(hooks().lambda_task_skipped, message_id=run.message_id, reason="running")
            raise Redeliver(f"{run.task_name} is running in another worker", visible_in=seconds, exact=not locked)
        case Mismatch(reason):
            raise _mismatch(run, reason)


def _answer_to_claim(run: Run) -> Claim:
    """Ask the store. A conflict or a lock timeout leaves only this message on its queue, not the whole batch."""
    try:
        return on_sound_connection(run.database, lambda: get_store().claim(run))
    except InternalError as error:
        if is_read_only(error):
            raise OperationalError(*error.args) from error  # the handler treats it as an outage, as on other databases
        raise
    except OperationalError as error:
        if is_conflict(error):
            # The database works, but other workers were faster twice.
            raise Redeliver(f"several workers are claiming {run.task_name} concurrently", visible_in=0) from error
        if is_lock_timeout(error):
            # Another worker has written the outcome of this invocation, but has not reached its COMMIT.
            reason = f"another worker is recording the outcome of {run.task_name}"
            raise Redeliver(reason, visible_in=LOCKED_PAUSE) from error
        raise


def _mismatch(run: Run, reason: str) -> Redeliver:
    """Return the exception that leaves a message with another invocation's id on the queue."""
    notify(hooks().lambda_task_skipped, message_id=run.message_id, reason="mismatch")
    return Redeliver(f"{run.task_name} is not run, since {reason}")


def _crashed_too_often(run: Run) -> Failed | None:
    if not run.takeovers:
        return None
    if run.task.on_crash == "fail":
        return Failed(TaskCrashedError("crashed: its worker died, and on_crash='fail' forbids another attempt."))
    if run.takeovers > app_settings.max_takeovers:
        return Failed(
            TaskCrashedError(
                f"crashed: {run.takeovers} workers died while they ran it, or lost their database session "
                f"(LAMBDA_TASKS_MAX_TAKEOVERS is {app_settings.max_takeovers})."
            )
        )
    run_logger.warning(
        "%s is taken over: worker %d died while it ran the task, or lost its database session.",
        run.task_name,
        run.takeovers,
    )
    return None


def _cancelled(attempt: Attempt, *, first: bool) -> Failed | None:
    """Return a failure if the task was cancelled during an earlier run. A first run of a first invocation has none.

    If the database refuses to answer, release the claim, which would otherwise count as that of a dead worker.
    """
    run = attempt.run
    if first and not run.n_retries and not run.takeovers:
        return None
    # Imported here, because most invocations do not need it.
    from lambda_tasks.execution.cancelled import is_requested

    try:
        requested = is_requested(run)
    except Exception as error:
        if connections[run.database].in_atomic_block:
            raise  # in a caller's transaction, as in eager mode, the claim is rolled back
        give_back_if_possible(attempt)
        reason = f"the database does not tell whether {run.task_name} was cancelled"
        raise Redeliver(reason, visible_in=pause_after(error)) from error
    if not requested:
        return None
    return Failed(TaskCancelled(f"cancelled: {run.task_name} was cancelled during an earlier run, and not run again."))


def _expired(run: Run) -> Failed | None:
    """Return a failure if the message has waited longer than the task's `expires_in`."""
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
