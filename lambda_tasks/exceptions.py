"""Every error and warning that the library raises on purpose.

The two time limit errors live in `lambda_tasks.timeouts`, beside what raises them.
"""

from __future__ import annotations

import sys
from functools import lru_cache

from django.core.exceptions import ImproperlyConfigured
from django.db.transaction import TransactionManagementError


class LambdaTasksError(Exception):
    """Base class of the library's own errors."""


class InvalidSetting(ImproperlyConfigured, ValueError):
    """A LAMBDA_TASKS_… setting has a value that cannot work."""


class InvalidArguments(LambdaTasksError, TypeError, ValueError):
    """The arguments of a call do not fit the task, or would not arrive as they were sent."""


class InvalidMessage(LambdaTasksError, ValueError):
    """A message from the queue is no invocation of a task."""


class InvalidEvent(LambdaTasksError, ValueError):
    """An event of Lambda's that cannot be answered without deleting messages."""


class MessageTooLarge(LambdaTasksError, ValueError):
    """Body and attributes of a message are larger than the queue takes."""


class UnknownTask(LambdaTasksError, LookupError):
    """No task of that name is registered, nor found in a module that may be imported."""


class UnknownQueue(LambdaTasksError, ImproperlyConfigured):
    """A queue is not in LAMBDA_TASKS_QUEUES."""


class UnknownDatabase(LambdaTasksError, ImproperlyConfigured):
    """A message would be kept in a database that has no outbox."""


class MaxRetriesExceededError(LambdaTasksError):
    """The task asked for another retry than its `max_retries` or LAMBDA_TASKS_MAX_RETRIES allows."""


class TaskCrashedError(LambdaTasksError):
    """The worker died under the task, more often than it may be started again."""


class TaskExpiredError(LambdaTasksError):
    """The message was older than the task's `expires_in` allows when a worker had it."""


class TaskLostError(LambdaTasksError):
    """Nobody runs the task any more, its message did not come back, and it is not sent again."""


class ResultNotSerializable(LambdaTasksError):
    """What the task returned cannot be stored as JSON."""


class TransactionBroken(LambdaTasksError, TransactionManagementError):
    """The task has caught an error of the database, and its transaction can only be rolled back."""


class LeaseLost(LambdaTasksError):
    """Another worker has taken the invocation over, or its record was deleted."""


class Redeliver(LambdaTasksError):
    """The invocation is not settled: its message must not be acknowledged.

    `visible_in` says in how many seconds another try makes sense; None leaves it to the queue.
    """

    def __init__(self, reason: str, *, visible_in: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.visible_in = visible_in


class LockError(LambdaTasksError):
    """The lock of a singleton task is held by another invocation."""


class LockUnavailable(LambdaTasksError):
    """The lock of a singleton task could be neither taken nor refused: its server did not answer."""


class UnreachableTaskWarning(UserWarning):
    """A task is sent to a worker that will not find its function."""


def lock_error(message: str) -> LockError:
    """Return a `LockError` that is redis-py's error of the same name too, where redis-py is loaded.

    A task may list either class in `ignore_errors`. Whoever names redis-py's has imported it; nobody
    else pays for the import.
    """
    redis_exceptions = sys.modules.get("redis.exceptions")
    if redis_exceptions is None:
        return LockError(message)
    return _both_lock_errors(redis_exceptions.LockError)(message)


@lru_cache(maxsize=1)
def _both_lock_errors(foreign: type[Exception]) -> type[LockError]:
    return type("LockError", (LockError, foreign), {"__module__": __name__, "__doc__": LockError.__doc__})


def is_lock_error_type(error_type: type[BaseException]) -> bool:
    """Tell whether `error_type` is the library's `LockError`, or redis-py's."""
    redis_exceptions = sys.modules.get("redis.exceptions")
    return issubclass(error_type, LockError) or (
        redis_exceptions is not None and error_type is redis_exceptions.LockError
    )
