"""Implement the hooks that find, call and classify tasks by default, if no other plugin returns a value."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from lambda_tasks import registry
from lambda_tasks.database.errors import is_conflict
from lambda_tasks.definition.keys import locks
from lambda_tasks.exceptions import LockError, LockUnavailable, ResultNotSerializable, RetryLater
from lambda_tasks.execution.coroutines import run_coroutine
from lambda_tasks.execution.waiting import after_contention
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.limits.alarms import HardTimeLimitExceeded, SoftTimeLimitExceeded
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Wait
from lambda_tasks.plugins import ask, hooks
from lambda_tasks.strategies import longest_delay

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task
    from lambda_tasks.jobs import Run


@hookimpl(trylast=True)
def lambda_task_resolve(task_name: str) -> Task:
    return registry.find_task(task_name)


@hookimpl(trylast=True)
def lambda_task_call(run: Run) -> object:
    function = run.task.function
    if run.task.is_coroutine:
        # Bind the arguments here, because they may have the names of async_to_sync's own parameters.
        return run_coroutine(partial(function, **run.arguments), {})
    return function(**run.arguments)


@hookimpl(trylast=True)
def lambda_task_classify(run: Run, error: BaseException) -> Outcome | Wait:
    task = run.task
    if isinstance(error, ResultNotSerializable):
        return Failed(error)
    if isinstance(error, RetryLater):
        return _retry(run, error)  # whichever types the task ignores: it asked for the retry
    if isinstance(error, LockError) and error.contended and (outcome := after_contention(run, error)):
        return outcome
    if _listed(error, task.ignore_errors):
        return Ignored(error)
    if isinstance(error, LockUnavailable) or (locks(task) and isinstance(error, LockError)):
        return _retry(run, error)
    retried = task.retried_types(error)
    if _listed(error, retried) and not _is_unnamed_limit(error, retried):
        return _retry(run, error)
    if is_conflict(error) and task.on_crash == "retry":
        return _retry(run, error)
    return Failed(error)


@hookimpl(trylast=True)
def lambda_task_retry_delay(run: Run, error: BaseException) -> int:
    # Only a process that retries a task needs it.
    from lambda_tasks.execution.retry_after import requested_delay

    if isinstance(error, RetryLater) and error.delay is not None:
        return math.ceil(error.delay)
    policy = run.task.retry_policy(error)
    if isinstance(error, LockUnavailable):
        # An outage must not use up the retries.
        return min(math.ceil(policy.seconds) + policy.spread() * (1 << min(run.n_retries, 10)), policy.longest_wait)
    delay = policy.random_delay(run.n_retries)
    if requested := min(requested_delay(error), policy.longest_request):
        delay = max(delay, math.ceil(requested) + (policy.spread() if policy.jitter else 0))
    return delay


def _retry(run: Run, error: BaseException) -> Retry:
    seconds = ask(hooks().lambda_task_retry_delay, int, run=run, error=error)
    return Retry(error, delay=min(max(int(seconds), 0), longest_delay()))


def _listed(error: BaseException, types: tuple[type[BaseException], ...]) -> bool:
    # An unavailable lock server is not an error of the task, whichever types the task lists.
    return isinstance(error, types) and not isinstance(error, LockUnavailable)


def _is_unnamed_limit(error: BaseException, types: tuple[type[BaseException], ...]) -> bool:
    """Return whether `error` is a time limit that `types` lists only through a base class.

    `retry_on=(Exception,)` means the task's own errors: a task that exceeded a time limit would do so again, and
    occupy a worker each time.
    """
    limits = (SoftTimeLimitExceeded, HardTimeLimitExceeded)
    return isinstance(error, limits) and not any(issubclass(t, limits) and isinstance(error, t) for t in types)
