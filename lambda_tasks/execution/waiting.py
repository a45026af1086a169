"""Let an invocation wait for its lock without using up retries: it is sent again, and its claim is released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from django.db import InternalError, transaction

from lambda_tasks import failpoints
from lambda_tasks.database.errors import DATABASE_ERRORS, on_sound_connection
from lambda_tasks.exceptions import LeaseLost, LockError, Redeliver, lock_error
from lambda_tasks.execution.settling import give_back_if_possible, pause_after
from lambda_tasks.foundation.forks import random
from lambda_tasks.logging import run_logger
from lambda_tasks.outcomes import Failed, Ignored, Skipped, Wait
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.sending import outgoing
from lambda_tasks.strategies import get_backend, get_store, longest_delay

if TYPE_CHECKING:
    from lambda_tasks.execution.attempt import Attempt
    from lambda_tasks.jobs import Job, Run

#: Each wait is about half as long as the invocation has waited so far, between these numbers of seconds.
SHARE: Final = 0.5
SHORTEST: Final = 1.0
LONGEST: Final = 300.0
#: The maximum jitter, as a fraction of the wait.
JITTER: Final = 0.25


def after_contention(run: Run, error: LockError) -> Ignored | Wait | Failed | None:
    """Return what the task's `on_contention` requires if other runs hold its lock, or None for a retry.

    A task cannot wait in eager mode, which does not wait for delays, and with a store that cannot tell how long an
    invocation has waited. It is retried instead.
    """
    if run.task.on_contention == "skip":
        return Ignored(error, skipped=True)
    if run.task.on_contention == "retry" or not run.limited or not get_store().waits:
        return None
    left = run.task.max_wait - run.waited
    if left <= 0:
        failure = lock_error(
            f"{run.task_name} has waited {run.waited:.0f} s for its lock, and its max_wait is {run.task.max_wait:g} s."
        )
        failure.__cause__ = error
        return Failed(failure)
    return Wait(error, next_wait(run.waited, left))


def next_wait(waited: float, left: float) -> int:
    """Return the seconds until the next attempt of an invocation that has waited, and may wait `left` seconds more."""
    seconds = min(max(waited * SHARE, SHORTEST), LONGEST) * random.uniform(1 - JITTER, 1 + JITTER)
    return max(round(min(seconds, left)), 1)


def wait_for_lock(attempt: Attempt, wait: Wait) -> Skipped:
    """Send the invocation again, and release its claim, so that the next delivery tries to acquire the lock.

    It is sent first and released second. If the worker dies in between, two messages of one invocation exist, of which
    one runs; in the other order, none might exist. A transport that keeps jobs does both in one transaction.
    """
    run = attempt.run
    job = run.same_job(min(wait.delay, longest_delay()))
    kept = job if get_backend().keeps else None
    failpoints.reached("wait:before_send")
    try:
        # Plugins are not called: the message has their attributes, and was sent before.
        get_backend().validate(job)
        if kept is None:
            outgoing.dispatch([job])
    except Exception as error:
        run_logger.exception("%s waits for its lock, and cannot be sent again now.", run.task_name)
        give_back_if_possible(attempt)
        raise Redeliver(f"{run.task_name} waits for its lock, and could not be sent again") from error
    failpoints.reached("wait:between")
    try:
        on_sound_connection(run.database, lambda: _release(run, job.delay, kept))
    except LeaseLost as error:
        reason = f"{run.task_name} was taken over, or its record was deleted, before it could wait for its lock"
        raise Redeliver(reason, exact=True) from error
    except (*DATABASE_ERRORS, InternalError) as error:
        reason = f"the claim of {run.task_name}, which waits for its lock, could not be released"
        raise Redeliver(reason, visible_in=pause_after(error)) from error
    attempt.claimed = False
    failpoints.reached("wait:after_release")
    run_logger.info("%s waits for its lock, and is delivered again in %d s.", run.task_name, job.delay)
    notify(hooks().lambda_task_skipped, message_id=run.message_id, reason="waiting")
    return Skipped("waiting")


def _release(run: Run, seconds: int, kept: Job | None) -> None:
    """Release the claim, and in the same transaction keep the message, if the transport keeps jobs."""
    if kept is None:
        get_store().wait(run, seconds=seconds)
        return
    with transaction.atomic(using=run.database):
        get_store().wait(run, seconds=seconds)  # first: if the claim is lost, the message is not kept
        outgoing.leave_on_commit(kept)
