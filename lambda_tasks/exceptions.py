"""All errors and warnings that the library defines, except for the two time limit errors in `lambda_tasks.timeouts`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.transaction import TransactionManagementError


class LambdaTasksError(Exception):
    """Base class of the library's own errors."""


class InvalidSetting(ImproperlyConfigured, ValueError):
    """A LAMBDA_TASKS_… setting has an invalid value."""


class InvalidArguments(LambdaTasksError, TypeError, ValueError):
    """The arguments of a call do not match the task's annotations, or would not arrive as they were sent."""


class InvalidContext(LambdaTasksError, TypeError, ValueError):
    """A value of LAMBDA_TASKS_CONTEXT cannot travel with a message, or one that has arrived cannot be set."""


class InvalidMessage(LambdaTasksError, ValueError):
    """A message from the queue is not a valid task invocation."""


class ArgumentsMissing(InvalidMessage):
    """The arguments of a message are stored outside of it, and are missing, or were changed."""


class ArgumentsUnreadable(InvalidMessage):
    """Arguments of a message are encrypted, and no key in LAMBDA_TASKS_ENCRYPTION_KEYS can decrypt them."""


class InvalidSignature(InvalidMessage):
    """A message is not signed, or not by a key in LAMBDA_TASKS_SIGNING_KEYS."""


class InvalidEvent(LambdaTasksError, ValueError):
    """The handler received an invalid event. Any response to it would delete messages."""


class MessageTooLarge(LambdaTasksError, ValueError):
    """The body and attributes of a message are larger than the queue accepts."""


class UnknownTask(LambdaTasksError, LookupError):
    """No task of that name is registered or found in a module that may be imported."""


class UnknownQueue(LambdaTasksError, ImproperlyConfigured):
    """A queue is not in LAMBDA_TASKS_QUEUES."""


class AmbiguousTransaction(LambdaTasksError):
    """Transactions are open on several databases, and the call does not specify to which one its message belongs."""


class UnknownDatabase(LambdaTasksError, ImproperlyConfigured):
    """A message would be stored in a database that has no outbox."""


class MaxRetriesExceededError(LambdaTasksError):
    """The task needs one more retry than its `max_retries` or LAMBDA_TASKS_MAX_RETRIES allows."""


class TaskCrashedError(LambdaTasksError):
    """Workers died while they ran the task, more often than the limit allows."""


class TaskExpiredError(LambdaTasksError):
    """The message was older than the task's `expires_in` when a worker received it."""


class TaskLostError(LambdaTasksError):
    """The worker died, the message was not redelivered, and the task is not sent again."""


class TaskCancelled(LambdaTasksError):
    """The task was cancelled. A task may raise it to end as cancelled, after its `current_task().cancelled` is true."""


class TaskFailed(LambdaTasksError):
    """The task whose result was requested has failed.

    `record` is its `TaskRecord`, or that of its last retry, `traceback` the text of the traceback in it, and `reason`
    one of `TaskReason`.
    """

    __module__ = "lambda_tasks"  # where users import it from, and what tracebacks show

    def __init__(self, message: str, *, record: Any = None, traceback: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.record = record
        self.traceback = traceback
        self.reason = reason


class ResultUnavailable(LambdaTasksError):
    """The task will not end while its caller waits: the transaction that sends it is open, or was rolled back."""


class CannotPartition(LambdaTasksError):
    """The table of records cannot be partitioned, or not now."""


class CannotRunAgain(LambdaTasksError, ValueError):
    """A record cannot be run again: it has not ended, its task is unknown, or its arguments are masked or outdated."""


class ResultNotSerializable(LambdaTasksError):
    """The return value of the task cannot be stored as JSON."""


class TransactionBroken(LambdaTasksError, TransactionManagementError):
    """The task damaged or ended its own transaction, or tried to end it, or left one open with `atomic=False`."""

    #: Whether the transaction ended early, so that a part of the work may be committed. The task is then FAILED and
    #: never retried, regardless of its `retry_on` and `ignore_errors`.
    work_may_stand = False


class LeaseLost(LambdaTasksError):
    """Another worker has taken over the invocation, or its record was deleted."""


class Redeliver(LambdaTasksError):
    """The invocation is not finished, so its message must not be acknowledged.

    `visible_in` is the number of seconds after which another attempt makes sense, if known. The message is not
    redelivered earlier than that, and the delay grows with each receive. With `exact=True`, another worker holds the
    invocation, and the delay does not grow: the message is redelivered after `visible_in` seconds, or when the queue's
    visibility timeout ends.
    """

    def __init__(self, reason: str, *, visible_in: float | None = None, exact: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.visible_in = visible_in
        self.exact = exact


class RetryLater(Exception):
    """Raised in a task that cannot run yet, to run it again later. It is not an error.

        if not report.is_ready():
            raise RetryLater(delay=30, reason="the report is not ready")

    `delay` is a number of seconds or a timedelta. Without it, the task's own retry delay applies. Delays longer than
    15 minutes are shortened to that, unless the outbox is on. `reason` is shown in the log and in the record.

    The task's writes are rolled back. The retry counts towards `max_retries` and `max_age`. It does not depend on
    `retry_on` and `ignore_errors`.

    Raises TypeError or ValueError for an invalid delay or reason.
    """

    __module__ = "lambda_tasks"  # where users import it from, and what tracebacks show

    def __init__(self, delay: float | timedelta | None = None, reason: str = "") -> None:
        from lambda_tasks.recording.described import described

        # A caller may pass anything, which must not fail later, when the retry is sent.
        seconds: Any = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if isinstance(seconds, bool) or not isinstance(seconds, int | float | None):
            raise TypeError(f"delay must be a number of seconds or a timedelta, not {described(delay)}.")
        if seconds is not None and not 0 <= seconds < math.inf:  # also refuses NaN
            raise ValueError(f"delay must be a finite number of at least 0 seconds, not {delay!r}.")
        if not isinstance(reason, str):
            raise TypeError(f"reason must be a string, not {described(reason)}.")
        super().__init__(delay, reason)
        #: Seconds until the retry; None for the task's own delay.
        self.delay = seconds
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class LockError(LambdaTasksError):
    """Another invocation holds the lock of a singleton task."""

    #: Whether the task's own lock was held, so that its function was not called.
    contended = False


class LockUnavailable(LambdaTasksError):
    """It is unknown whether the lock of a singleton task is free, for example because the server did not respond."""


class UnreachableTask(LambdaTasksError, TypeError):
    """No worker can import the task, because it is defined inside a function or a class, or is a lambda."""


class DuplicateTask(LambdaTasksError):
    """A call of a task with `on_duplicate="raise"` has the unique key of a call that waits or runs.

    `handle` is the handle of that call.
    """

    def __init__(self, message: str, handle: Any) -> None:
        super().__init__(message, handle)
        self.handle = handle

    def __str__(self) -> str:
        return str(self.args[0])


class UnreachableTaskWarning(UserWarning):
    """A task is sent, but a worker cannot find its function by name."""


def lock_error(message: str) -> LockError:
    """Return a `LockError` that is also an instance of redis-py's `LockError`, if redis-py is loaded.

    A task may list either class in `ignore_errors`. A task that lists redis-py's class has imported redis-py already,
    so this function does not import it.
    """
    redis_exceptions = sys.modules.get("redis.exceptions")
    kind = LockError if redis_exceptions is None else _both_lock_errors(redis_exceptions.LockError)
    error = kind(message)
    error.contended = True
    return error


@lru_cache(maxsize=1)
def _both_lock_errors(foreign: type[Exception]) -> type[LockError]:
    return type("LockError", (LockError, foreign), {"__module__": __name__, "__doc__": LockError.__doc__})


def is_lock_error_type(error_type: type[BaseException]) -> bool:
    """Tell whether `error_type` is the library's `LockError` or redis-py's."""
    redis_exceptions = sys.modules.get("redis.exceptions")
    return issubclass(error_type, LockError) or (
        redis_exceptions is not None and error_type is redis_exceptions.LockError
    )


def exception_types(value: object, name: str) -> tuple[type[BaseException], ...]:
    """Return the exception types in `value`, the value of the option `name`, or raise TypeError."""
    constraint = f"{name} must be a tuple of exception types, as in {name}=(ConnectionError,)"
    if not isinstance(value, Iterable):
        raise TypeError(f"{constraint}, not {value!r}.")
    types = tuple(value)
    for item in types:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise TypeError(f"{constraint}. It contains {item!r}.")
    return types


def refuse_to_ignore_retries(ignored: Iterable[type[BaseException]]) -> None:
    """Raise TypeError if `ignore_errors` lists `RetryLater`, which is never ignored."""
    for error_type in ignored:
        if issubclass(error_type, RetryLater):
            raise TypeError(
                f"ignore_errors must not contain {error_type.__name__}, because a task that raises it is always "
                "retried. Remove it, and return from the task instead of raising it."
            )
