"""Record SUCCESS and COMMIT in one request, which saves a task one of its four round trips to PostgreSQL."""

from __future__ import annotations

from select import POLLIN, poll
from typing import Any, Final

from django.db import DataError
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks import failpoints
from lambda_tasks.database.commits import act_before_commit
from lambda_tasks.database.private_names import commits_once
from lambda_tasks.database.statements import OrmCall, Statement, Statements
from lambda_tasks.exceptions import LeaseLost
from lambda_tasks.jobs import Run
from lambda_tasks.models import TaskStatus
from lambda_tasks.stores.rows import ending, ending_with_reason, takes_several_statements

#: A string that is not a number. PostgreSQL's error about it quotes it, and no other error contains it.
_CLAIM_LOST: Final = "lambda_tasks: claim lost"
#: Converted if no row was updated. Without a function that may depend on settings, such as `concat()`, PostgreSQL would
#: convert it while it plans. With `count(*)`, the request would take a sixth longer.
_FENCE: Final = f"SELECT CAST(coalesce((TABLE ended), concat('{_CLAIM_LOST}')) AS integer)"


def ending_and_committing(connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the UPDATE that records a SUCCESS, followed by COMMIT."""
    return _followed_by_commit(ending(connection))


def ending_with_reason_and_committing(connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the same for a SUCCESS with a reason."""
    return _followed_by_commit(ending_with_reason(connection))


def _followed_by_commit(statement: Statement | OrmCall) -> Statement | OrmCall:
    """Add COMMIT to an UPDATE.

    PostgreSQL runs nothing of a request after an error. So the fence is an error: if the UPDATE finds no row, the first
    statement converts a string that is not a number, and COMMIT is not run.
    """
    if isinstance(statement, OrmCall):
        return statement
    return Statement(f"WITH ended AS ({statement.sql} RETURNING '1') {_FENCE}; COMMIT", statement.params)


def end_and_commit(
    statements: Statements, run: Run, connection: BaseDatabaseWrapper, *, result: Any, reason: str | None
) -> bool:
    """Record the SUCCESS of `run` and commit. Return False, and do nothing, where that takes two requests.

    That is so if other code may run something before COMMIT; the outbox has its messages written here. It is also so if
    the session has already ended: a session that the task has cost is counted, and one that is lost during COMMIT is
    not.
    """
    if not (takes_several_statements(connection) and commits_once(connection)) or _has_news(connection.connection):
        return False
    writer = ending_and_committing if reason is None else ending_with_reason_and_committing
    statement = statements.of(writer, connection)
    if isinstance(statement, OrmCall) or not act_before_commit(connection):
        return False
    values = {"id": run.message_id, "claim": run.claim, "status": TaskStatus.SUCCESS, "traceback": None}
    if reason is not None:
        values["reason"] = reason
    failpoints.reached("finish:before_commit")
    try:
        statement.run(connection, {**values, "result": result})
    except DataError as error:
        if _CLAIM_LOST not in str(error):
            raise
        raise lease_lost(run) from None
    return True


def lease_lost(run: Run) -> LeaseLost:
    return LeaseLost(f"This run no longer holds the claim on {run.message_id}.")


def _has_news(session: Any) -> bool:
    """Return whether the session has ended, or the server has sent something else that was not asked for.

    This asks the driver and the operating system, not the server.
    """
    if session.closed:
        return True
    news = poll()
    news.register(session.pgconn.socket, POLLIN)
    return bool(news.poll(0))
