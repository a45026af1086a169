"""`current_task()`: what a running task can know about itself."""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from lambda_tasks.execution.strangers import watch_of_caller
from lambda_tasks.limits.alarms import TimeLimits
from lambda_tasks.settings import app_settings
from lambda_tasks.wire import ids

if TYPE_CHECKING:
    from lambda_tasks.execution.strangers import Watch


def current_task() -> CurrentTask | None:
    """Return the task that the calling code belongs to, or None outside of a task.

    Functions that a task calls, its coroutines, threads of `asgiref.sync` and, in a worker, threads that it starts
    belong to the task. A task that is called directly has no invocation of its own, and gets that of its caller.
    """
    watch = watch_of_caller()
    return None if watch is None else CurrentTask(watch)


class CurrentTask:
    """An invocation that is running. All attributes are read-only."""

    __slots__ = ("_watch",)
    _watch: Watch

    def __init__(self, watch: Watch) -> None:
        object.__setattr__(self, "_watch", watch)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of the current task cannot be changed.")

    def __repr__(self) -> str:
        return f"<CurrentTask {self.task_name} [{self.message_id}], attempt {self.attempt}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CurrentTask) and self._watch is other._watch

    def __hash__(self) -> int:
        return hash(self._watch)

    @property
    def message_id(self) -> str:
        """The id of this invocation, and the primary key of its record. A retry has another one."""
        return self._watch.run.message_id

    @property
    def root_id(self) -> str:
        """The id of the first invocation of the chain of retries, which is the same in all of its retries."""
        return self._watch.run.root_id

    @property
    def task_name(self) -> str:
        """The name of the task in the message."""
        return self._watch.run.task_name

    @property
    def queue(self) -> str:
        """The name of the queue that the message came from."""
        return self._watch.run.queue

    @property
    def group(self) -> str | None:
        """The message group, such as that of a tenant, which retries have as well; None without one."""
        return self._watch.run.group

    @property
    def attempt(self) -> int:
        """1 for the first invocation of the chain, and one more for each retry."""
        return self._watch.run.n_retries + 1

    @property
    def is_last_attempt(self) -> bool:
        """Whether an error in this attempt would not be retried, whichever error it is.

        That is so if the task has no retries, or if `max_retries` or `max_age` allows no further one. The decisions of
        plugins and a `RetryLater` that the task's policies do not list are not considered.
        """
        run = self._watch.run
        for policy in run.task.retry_policies():
            limit = app_settings.max_retries if policy.max_retries is None else policy.max_retries
            age_of_retry = (run.age or 0.0) + policy.shortest_delay(run.n_retries)
            if run.n_retries < limit and age_of_retry <= policy.age_limit:
                return False
        return True

    @property
    def sent_at(self) -> datetime | None:
        """When the first invocation of the chain was enqueued, in UTC; None if that is unknown."""
        run = self._watch.run
        return _in_utc(ids.made_at(run.root_id) or run.first_sent)

    @property
    def received_at(self) -> datetime:
        """When the worker received this invocation, in UTC."""
        return datetime.fromtimestamp(self._watch.run.received, timezone.utc)

    @property
    def scheduled_for(self) -> datetime | None:
        """The time for which a schedule has sent the invocation, in UTC; None if no schedule has."""
        return _in_utc(self._watch.run.scheduled_for)

    @property
    def request_id(self) -> str | None:
        """The id of the Lambda invocation, as in Lambda's own log lines; None outside of Lambda."""
        return self._watch.run.request_id

    @property
    def cancelled(self) -> bool:
        """Whether a request to cancel the invocation exists. The task should then raise `TaskCancelled`.

        This makes at most one query a second, on a separate connection.
        """
        from lambda_tasks.execution.cancelled import is_cancelled  # only tasks that ask pay for the import

        return is_cancelled(self._watch.run)

    def progress(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report how much of the work is done, for `handle.progress` and the admin.

        Call it as often as you like: at most one report a second is stored, and always the first one and that with
        `done == total`. It is stored outside of the task's transaction, so that others see it while the task runs. An
        error of the database is logged and does not affect the task. On SQLite, only reports of tasks with
        `atomic=False` are stored. A note longer than 255 characters is cut off.

        Raises TypeError or ValueError unless the numbers are integers from 0, and the note a string.
        """
        from lambda_tasks.execution.progress import report  # only tasks that report pay for the import

        report(self._watch.run, done, total, note)

    async def aprogress(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report how much of the work is done, as `progress()` does, without blocking the event loop."""
        from asgiref.sync import sync_to_async

        await sync_to_async(self.progress)(done, total, note)

    def seconds_left(self) -> float:
        """Return the seconds until the soft timeout; 0 after it, and infinity without time limits."""
        limits = self._watch.limits
        return max(limits.seconds_left, 0.0) if isinstance(limits, TimeLimits) else math.inf

    def seconds_left_in_invocation(self) -> float:
        """Return the seconds until Lambda ends the invocation; 0 after that, and infinity outside of Lambda.

        The rest of the batch and the recording of the outcome need some of them.
        """
        deadline = self._watch.run.deadline
        return math.inf if deadline is None else max(deadline - time.monotonic(), 0.0)


def _in_utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
