"""Say why an invocation has its status: the only place that fills the column `reason`."""

from __future__ import annotations

from typing import Final

from lambda_tasks.exceptions import (
    LockError,
    LockUnavailable,
    MaxRetriesExceededError,
    ResultNotSerializable,
    RetryLater,
    TaskCancelled,
    TaskCrashedError,
    TaskExpiredError,
    TaskLostError,
    TransactionBroken,
)
from lambda_tasks.jobs import Run
from lambda_tasks.limits.alarms import HardTimeLimitExceeded, SoftTimeLimitExceeded
from lambda_tasks.models import TaskReason
from lambda_tasks.outcomes import Ignored, Outcome, Succeeded
from lambda_tasks.settings import app_settings

#: The reasons by the type of the error; the first type that fits decides.
_BY_TYPE: Final = (
    (MaxRetriesExceededError, TaskReason.MAX_RETRIES),
    (TaskExpiredError, TaskReason.EXPIRED),
    (TaskCancelled, TaskReason.CANCELLED),
    (TaskCrashedError, TaskReason.CRASHED),
    (TaskLostError, TaskReason.LOST),
    (ResultNotSerializable, TaskReason.BROKEN),
    (TransactionBroken, TaskReason.BROKEN),
    (RetryLater, TaskReason.RETRY_LATER),
    (LockError, TaskReason.LOCK),
    (LockUnavailable, TaskReason.LOCK),
    (SoftTimeLimitExceeded, TaskReason.SOFT_TIMEOUT),
    (HardTimeLimitExceeded, TaskReason.HARD_TIMEOUT),
)


def reason_of_success(run: Run) -> str | None:
    """Return `not_kept` if the record of a function that has returned is not needed for long, and None otherwise.

    It is needed if it tells about a failure, as those of retries and of crashed workers do, or if others read it: what
    follows the task, and the calls with the same unique key.
    """
    if not run.forgets or run.n_retries or run.takeovers or run.is_followed:
        return None
    if run.task.unique is not False and run.task.unique_for > app_settings.forget_after:
        return None
    return TaskReason.NOT_KEPT


def reason_of(outcome: Outcome) -> str | None:
    """Return why the record of `outcome` gets its status; None for a task that has returned."""
    match outcome:
        case Succeeded():
            return None
        case Ignored(skipped=skipped):
            return TaskReason.SKIPPED if skipped else TaskReason.IGNORED
        case _:
            return next((reason for kind, reason in _BY_TYPE if isinstance(outcome.error, kind)), TaskReason.ERROR)
