"""Hold the lock of a task that must not run too often at a time: around its transaction, and inside of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from time import monotonic
from typing import Final

from lambda_tasks import failpoints
from lambda_tasks.definition.keys import LOCK_KEY, locks, slots
from lambda_tasks.exceptions import LockError, LockUnavailable, lock_error
from lambda_tasks.execution.attempt import Attempt
from lambda_tasks.jobs import Run, log_error
from lambda_tasks.logging import run_logger
from lambda_tasks.strategies import get_lock

__all__ = ["LOCK_KEY", "held_lock", "lock_in_transaction"]

#: The key that the transactions of one invocation and of its retries lock, but no others.
CHAIN_KEY: Final = "lambda_tasks.singleton_chain.{root_id}"
#: The context of a task without a lock.
_WITHOUT_LOCK: Final = nullcontext()


def held_lock(attempt: Attempt) -> AbstractContextManager[None]:
    """Return a context that holds the lock of the run's task, or one of its locks, if the task has one.

    An error on release never changes the outcome. Entering raises `LockError` if other invocations hold all locks, and
    `LockUnavailable` if the lock server is unavailable, unless the lock's `fail_open` lets the task run without it.
    """
    return _held_slot(attempt) if locks(attempt.run.task) else _WITHOUT_LOCK


@contextmanager
def _held_slot(attempt: Attempt) -> Iterator[None]:
    with ExitStack() as held:
        attempt.lock_keys = _take_slot(attempt.run, held)
        yield


def _take_slot(run: Run, held: ExitStack) -> tuple[str, ...]:
    """Acquire the first free lock, have `held` release it, and return its keys."""
    choices = slots(run.task, run.message.kwargs, run.arguments, root_id=run.root_id)
    for keys in choices:
        with ExitStack() as taken:
            try:
                for key in keys:
                    taken.enter_context(_held(run, key))
            except LockError:
                if len(choices) == 1:
                    raise
                continue
            held.push(taken.pop_all())
            return keys
    raise lock_error(f"All {len(choices)} locks of {run.task_name} are held by other invocations.")


@contextmanager
def _held(run: Run, key: str) -> Iterator[None]:
    lock = get_lock()
    timeout = run.task.timeouts()[1]
    failpoints.reached("lock:before_acquire")
    until = monotonic() + timeout
    try:
        # One token for a chain of retries: a lock whose response was lost does not block the next attempt.
        acquired = lock.acquire(key, token=run.root_id, timeout=timeout)
    except Exception as error:
        if not lock.fail_open:
            raise LockUnavailable(f"The lock {key!r} could not be acquired: {error}") from error
        run_logger.warning("The lock %r could not be acquired; %s runs without it: %s", key, run.task_name, error)
        acquired = True  # maybe it was, and only the response was lost: release it like any other lock
    if not acquired:
        raise lock_error(f"The lock {key!r} is held by another invocation.")
    failpoints.reached("lock:after_acquire")
    try:
        yield
    finally:
        failpoints.reached("lock:before_release")
        # Later it has expired by itself, and a worker that took over this invocation may hold it with the same token.
        if monotonic() < until:
            _release(run, key)
        failpoints.reached("lock:after_release")


def _release(run: Run, key: str) -> None:
    try:
        get_lock().release(key, token=run.root_id)
    except Exception as error:
        # The task's own error may be the context of this one.
        sentence = "The lock %r could not be released; it expires by itself."
        log_error(run_logger, run, sentence, key, error=error)


def lock_in_transaction(attempt: Attempt) -> None:
    """Hold the lock that the run has acquired in its transaction, too, if the lock and the database support it.

    The lock server may forget the lock while the task runs, but the transaction does not. Raise `LockError` if the
    transaction of another invocation holds the lock. Raise `LockUnavailable`, which is never ignored, if a worker
    holds it that has lost this invocation and does not know it yet.
    """
    run = attempt.run
    if not attempt.lock_keys:
        return
    lock = get_lock()
    # First the key that only the runs of this chain hold: if it is taken, an older run of the same chain holds it.
    if not lock.hold_in_transaction(CHAIN_KEY.format(root_id=run.root_id), database=run.database):
        raise LockUnavailable(f"A worker that lost its claim on {run.task_name} still has its transaction open.")
    for key in attempt.lock_keys:
        if not lock.hold_in_transaction(key, database=run.database):
            raise lock_error(f"The lock {key!r} is held by the transaction of another invocation.")
