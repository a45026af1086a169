"""How tasks are found, called and judged where no other plugin has an answer."""

from __future__ import annotations

import random
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from lambda_tasks import registry
from lambda_tasks.coroutines import run_coroutine
from lambda_tasks.databases import is_conflict
from lambda_tasks.exceptions import LockError, LockUnavailable, ResultNotSerializable
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry
from lambda_tasks.plugins import ask, hooks
from lambda_tasks.settings import MAX_DELAY
from lambda_tasks.strategies import longest_delay
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded

if TYPE_CHECKING:
    from lambda_tasks.decorators import LambdaTaskWrapper
    from lambda_tasks.jobs import Run


@hookimpl(trylast=True)
def lambda_task_resolve(task_name: str) -> LambdaTaskWrapper[..., Any]:
    return registry.find_task(task_name)


@hookimpl(trylast=True)
def lambda_task_call(run: Run) -> object:
    function = run.task.function
    if iscoroutinefunction(function):
        # Bound here, because parameters may have names that async_to_sync takes for its own.
        return run_coroutine(partial(function, **run.arguments), {})
    return function(**run.arguments)


@hookimpl(trylast=True)
def lambda_task_classify(run: Run, error: BaseException) -> Outcome:
    task = run.task
    if isinstance(error, ResultNotSerializable):
        return Failed(error)
    if _listed(error, task.ignore_errors):
        return Ignored(error)
    if isinstance(error, LockUnavailable) or (task.singleton and isinstance(error, LockError)):
        return _retry(run, error)
    if _listed(error, task.retry_on) and not _is_unnamed_limit(error, task.retry_on):
        return _retry(run, error)
    if is_conflict(error) and task.on_crash == "retry":
        return _retry(run, error)
    return Failed(error)


@hookimpl(trylast=True)
def lambda_task_retry_delay(run: Run, error: BaseException) -> int:
    # The jitter spreads out what failed together.
    jitter = round(random.uniform(1, 5))
    # Only who asks for more than SQS waits gets more.
    most = longest_delay() if run.task.retry_delay > MAX_DELAY else MAX_DELAY
    if isinstance(error, LockUnavailable):
        jitter *= 2 ** min(run.n_retries, 10)  # an outage must not use up the retries
    elif run.task.retry_backoff:
        # Ten doublings of a second are more than SQS waits.
        longest = max(run.task.retry_delay, MAX_DELAY)
        return random.randint(1, min(run.task.retry_delay * 2 ** min(run.n_retries, 10), longest))
    return min(run.task.retry_delay + jitter, most)


def _retry(run: Run, error: BaseException) -> Retry:
    seconds = ask(hooks().lambda_task_retry_delay, int, run=run, error=error)
    return Retry(error, delay=min(max(int(seconds), 0), longest_delay()))


def _listed(error: BaseException, types: tuple[type[BaseException], ...]) -> bool:
    # That the lock's server is away is no error of the task's, whatever the task lists.
    return isinstance(error, types) and not isinstance(error, LockUnavailable)


def _is_unnamed_limit(error: BaseException, types: tuple[type[BaseException], ...]) -> bool:
    """Tell whether `error` is a time limit that only a wider type stands for.

    `retry_on=(Exception,)` means the task's own errors: a task that took too long would take too long
    again, and hold a worker each time.
    """
    limits = (SoftTimeLimitExceeded, HardTimeLimitExceeded)
    return isinstance(error, limits) and not any(issubclass(t, limits) and isinstance(error, t) for t in types)
