"""Value objects for the outcomes of an invocation, and for the results of a claim."""

from __future__ import annotations

from dataclasses import field
from datetime import datetime
from typing import Any, TypeAlias

from lambda_tasks.exceptions import TaskCancelled
from lambda_tasks.foundation.frozen import frozen


@frozen
class Succeeded:
    """The task returned. Its writes and its SUCCESS are committed together."""

    result: Any

    def __init__(self, result: Any = None) -> None:
        vars(self).update(result=result)


@frozen
class Ignored:
    """The task raised an exception of a type in its `ignore_errors`: SUCCESS, with its writes rolled back."""

    error: BaseException
    #: Whether the function was not called, because another run holds the lock of a task with `on_contention="skip"`.
    skipped: bool = False


@frozen
class Retry:
    """The task will be run again as a new invocation, in `delay` seconds at the earliest."""

    error: BaseException
    delay: int = 0

    def __post_init__(self) -> None:
        delay: object = self.delay  # comes from a plugin, so its type is not certain
        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
            raise ValueError(f"The delay of a retry must be an integer of 0 or more seconds, not {self.delay!r}.")


@frozen
class Failed:
    """The task failed and will not be retried. Its writes are rolled back."""

    error: BaseException


Outcome: TypeAlias = Succeeded | Ignored | Retry | Failed


def error_of(outcome: object) -> BaseException | None:
    """Return the error of a task that failed. None for other outcomes, and for a task that was cancelled."""
    if isinstance(outcome, Failed) and not isinstance(outcome.error, TaskCancelled):
        return outcome.error
    return None


@frozen
class Wait:
    """Another run holds the lock. The same invocation is delivered again in `delay` seconds at the earliest."""

    error: BaseException
    delay: int


@frozen
class Skipped:
    """Nothing was run: an earlier delivery has already finished the invocation, or it waits for its lock."""

    reason: str


@frozen
class Claimed:
    """This worker holds the invocation. `takeovers` is the number of workers that died while they held it."""

    takeovers: int
    #: Seconds since the invocation began to wait for its lock; 0 if it did not wait.
    waited: float
    #: False if an earlier run has held the invocation, so that it may have been requested to end.
    first: bool = field(compare=False)

    def __init__(self, takeovers: int = 0, waited: float = 0.0, first: bool = True) -> None:
        vars(self).update(takeovers=takeovers, waited=waited, first=first)


@frozen
class Finished:
    """The invocation has already ended, with this status."""

    status: str


@frozen
class Busy:
    """Another worker holds the invocation, for at most `seconds` more unless it renews its lease.

    `locked` is true if `seconds` is an estimate, because that worker's open transaction locks the record.
    """

    seconds: float
    locked: bool = False


@frozen
class Mismatch:
    """The message does not belong to the invocation or the chain of retries whose id it has. Nothing is changed."""

    reason: str


Claim: TypeAlias = Claimed | Finished | Busy | Mismatch


@frozen
class Prevented:
    """No worker ran the invocation, or the next retry of its chain, and none will. Its record is FAILED."""

    #: The id of what never runs: that of the retry, if the first invocation has already asked for one.
    message_id: str


@frozen
class Requested:
    """A worker has started the invocation. It may end by itself, and its retries and takeovers do not run."""


@frozen
class TooLate:
    """The invocation had already ended."""


Cancellation: TypeAlias = Prevented | Requested | TooLate


@frozen
class Lost:
    """An invocation that is recorded as RUNNING, although the lease of its worker expired long ago."""

    message_id: str
    root_id: str
    task_name: str
    #: The arguments in the record: a JSON object, unless a program other than this library wrote it.
    kwargs: Any = field(repr=False)
    n_retries: int
    #: The number of workers that died earlier while they ran it.
    takeovers: int
    #: The queue that it came from; empty if that is not recorded.
    queue: str
    #: The claim of its worker; None if the worker released it.
    claim: str | None = field(repr=False)
    #: When its last worker started it, in seconds since 1970.
    started_at: float | None = None
    #: Seconds since it began to wait for its lock, if it waits and no worker has claimed it; otherwise None.
    waited: float | None = None


@frozen
class Progress:
    """How far a chain of retries has come, by the newest of its records."""

    status: str
    n_retries: int = 0
    #: Seconds since the newest invocation ended; 0 if it runs, or if that is unknown.
    idle: float = 0.0


@frozen
class Latest:
    """The newest invocation of a chain of retries, by its record."""

    message_id: str
    #: The first invocation of the chain.
    root_id: str
    status: str
    #: Why it has its status; empty if nothing but the status is known.
    reason: str = ""
    #: The result as JSON values.
    result: Any = field(default=None, repr=False)
    traceback: str = field(default="", repr=False)
    task_name: str = ""
    #: The record itself, for `TaskFailed.record`.
    record: Any = field(default=None, repr=False, compare=False)


@frozen
class ReportedProgress:
    """How much of its work a task has done, as it has last reported by `current_task().progress()`."""

    done: int
    #: None if the task does not know it.
    total: int | None = None
    note: str = ""
    #: When it was written, by the database's clock; None before that.
    updated: datetime | None = field(default=None, compare=False)

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1; None if the total is unknown."""
        if self.total is None:
            return None
        return min(self.done / self.total, 1.0) if self.total else 1.0
