"""Run a task with `atomic=False`: without a transaction around its function, so that its writes commit as it goes.

SUCCESS is written with the claim's fence after the function has returned. A worker that dies in between has written
everything but SUCCESS, and the task runs again, unless `on_crash="fail"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks import failpoints
from lambda_tasks.database.errors import connection_lost, end_session, on_sound_connection
from lambda_tasks.database.guards import session_in_transaction
from lambda_tasks.database.private_names import blocks_around
from lambda_tasks.exceptions import LeaseLost, TransactionBroken
from lambda_tasks.execution.attempt import Attempt, Stage
from lambda_tasks.execution.settling import write
from lambda_tasks.execution.strangers import Watch
from lambda_tasks.jobs import Run
from lambda_tasks.limits.alarms import NoLimits, TimeLimits
from lambda_tasks.outcomes import Succeeded
from lambda_tasks.plugins import first, hooks
from lambda_tasks.strategies import get_store

#: A statement that does nothing. The answer contains the state of the session.
_ASK_STATE: Final = "DO 0"


def run_in_autocommit(attempt: Attempt, limits: TimeLimits | NoLimits) -> None:
    """Call the task, and then record its SUCCESS."""
    run = attempt.run
    failpoints.reached("task:before_begin")
    connection = connections[run.database]
    before = _open_blocks()
    attempt.called = True
    attempt.stage = Stage.CALL
    failpoints.reached("task:enter")
    try:
        with Watch(run, limits), limits.armed():
            result = first(hooks().lambda_task_call, run=run)
    except BaseException as error:
        lost = connection_lost(run.database, error, connection.connection)
        left = _close_left_open(before)
        # That of the end: a task may close its connection and open another one, which is not an outage.
        attempt.session = connection.connection
        if left and isinstance(error, Exception) and not lost and not limits.interrupted:
            raise _left_open(run, left) from error
        raise
    if left := _close_left_open(before):
        raise _left_open(run, left)
    attempt.session = connection.connection
    attempt.stage = Stage.RECORD
    failpoints.reached("task:leave")
    attempt.success = Succeeded(result)
    # Another connection will do: nothing but the record depends on this one.
    on_sound_connection(run.database, lambda: _record(run, attempt.success))
    attempt.committed = True
    failpoints.reached("finish:after_commit")


def _record(run: Run, success: Succeeded) -> None:
    store = get_store()
    try:
        write(run, success, None)
    except LeaseLost:
        if not store.has_succeeded(run):  # recorded before, but the response was lost
            raise


def _open_blocks() -> dict[str, int]:
    """Return how many blocks of `atomic()`, or other transactions, are open on each of this thread's connections."""
    return {each.alias: blocks for each in connections.all(initialized_only=True) if (blocks := _depth(each))}


def _depth(connection: BaseDatabaseWrapper) -> int:
    if connection.connection is None:
        return 0
    if connection.in_atomic_block:
        return blocks_around(connection)
    return int(not connection.autocommit or _session_in_transaction(connection))


def _session_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    if not session_in_transaction(connection.vendor, connection.connection):
        return False
    if connection.vendor != "mysql" or not connection.is_usable():
        return True
    # PyMySQL's state is that of the last answer, which may belong to a statement that was still running.
    with connection.cursor() as cursor:
        cursor.execute(_ASK_STATE)
    return session_in_transaction(connection.vendor, connection.connection)


def _close_left_open(before: Mapping[str, int]) -> list[str]:
    """Close the connections on which the task has left a transaction open, and return their aliases.

    A connection that has been in a transaction of the caller stays open, as in eager mode.
    """
    left = [each for each in connections.all(initialized_only=True) if _depth(each) > before.get(each.alias, 0)]
    for connection in left:
        if connection.alias not in before:
            connection.in_atomic_block = False  # otherwise Django keeps the closed connection for a rollback
            end_session(connection)
    return sorted(connection.alias for connection in left)


def _left_open(run: Run, aliases: list[str]) -> TransactionBroken:
    broken = TransactionBroken(
        f"{run.task_name} has left a transaction open on {', '.join(map(repr, aliases))}, which is rolled back. What "
        "it has committed before stays, so the task is not run again. End each transaction in the function that begins "
        "it: use `with transaction.atomic():`, and neither BEGIN nor set_autocommit(False)."
    )
    broken.work_may_stand = True
    return broken
