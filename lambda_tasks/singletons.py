"""One run at a time: the lock around a singleton task, and the one inside of its transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Final

from lambda_tasks import points
from lambda_tasks.exceptions import LockUnavailable, lock_error
from lambda_tasks.jobs import Run
from lambda_tasks.logging import run_logger
from lambda_tasks.strategies import get_lock

#: Documented: the key under which a singleton task is locked.
LOCK_KEY: Final = "lambda_tasks.singleton_lock.{task_name}"
#: What the transactions of one invocation and of its retries have in common, and no others.
CHAIN_KEY: Final = "lambda_tasks.singleton_chain.{root_id}"


@contextmanager
def held_lock(run: Run) -> Iterator[None]:
    """Hold the lock of a singleton task; an error on release never changes the outcome.

    Raises `LockError` if another invocation holds it; `LockUnavailable` if the lock's server is away, unless
    the lock is one that then lets the task run without it.
    """
    if not run.task.singleton:
        yield
        return
    with ExitStack() as held:
        for key in lock_keys(run):
            held.enter_context(_held(run, key))
        yield


def lock_keys(run: Run) -> list[str]:
    """Return the keys that lock the run's task: one for each name that it has or had.

    Whatever name a message uses, and whatever name a worker of an older version knows the task by, one
    of them is the same.
    """
    return [LOCK_KEY.format(task_name=name) for name in (run.task.name, *run.task.aliases)]


@contextmanager
def _held(run: Run, key: str) -> Iterator[None]:
    lock = get_lock()
    timeout = run.task.timeouts()[1]
    points.reached("lock:before_acquire")
    until = monotonic() + timeout
    try:
        # One token for a chain of retries: a lock whose answer was lost is not in the way of the next try.
        acquired = lock.acquire(key, token=run.root_id, timeout=timeout)
    except Exception as error:
        if not lock.fail_open:
            raise LockUnavailable(f"The lock {key!r} could not be asked for: {error}") from error
        run_logger.warning("The lock %r could not be asked for; %s runs without it: %s", key, run.task_name, error)
        acquired = True  # maybe it was, and only the answer is lost: it is given back as any other
    if not acquired:
        raise lock_error(f"The lock {key!r} is held by another invocation.")
    points.reached("lock:after_acquire")
    try:
        yield
    finally:
        points.reached("lock:before_release")
        # Afterwards it has ended by itself, and whoever took this invocation over holds it by the same token.
        if monotonic() < until:
            _release(run, key)
        points.reached("lock:after_release")


def _release(run: Run, key: str) -> None:
    try:
        get_lock().release(key, token=run.root_id)
    except Exception as error:
        # The task's own error may hang on this one.
        sentence = "The lock %r could not be released; it ends by itself."
        run.log_error(run_logger, logging.ERROR, sentence, key, error=error)


def lock_in_transaction(run: Run) -> None:
    """Hold the lock of a singleton task in its transaction too, where the lock and the database can.

    The lock's server may forget it while the task runs; the transaction forgets nothing. Raises
    `LockError` if another invocation's transaction holds it; `LockUnavailable`, which is never ignored,
    if it is the one of a worker that has lost this very invocation and does not know it yet.
    """
    if not run.task.singleton:
        return
    lock = get_lock()
    # First what every run of this chain of retries holds: whoever finds that taken has met itself.
    if not lock.hold_in_transaction(CHAIN_KEY.format(root_id=run.root_id), database=run.database):
        raise LockUnavailable(f"A worker that was given up still has a transaction of {run.task_name} open.")
    for key in lock_keys(run):
        if not lock.hold_in_transaction(key, database=run.database):
            raise lock_error(f"The lock {key!r} is held in another invocation's transaction.")
