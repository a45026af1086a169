"""A plugin that ends the statements of a task in PostgreSQL soon after its time limit or the death of its worker.

    LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.postgres"]

When an alarm interrupts a query in the worker, or when the worker dies, the server does not notice. It continues with
the statement, and keeps its locks, until the statement ends. The plugin therefore sets, with one query at the start
of each transaction of a task that has time limits:

- `statement_timeout` to the hard timeout plus `MARGIN`, unless a shorter timeout is already set;
- `client_connection_check_interval`, so that the server notices if a worker dies.

A statement that an alarm interrupts is also cancelled immediately with psycopg 3. A query in psycopg2 cannot be
interrupted, so the server ends it. All of these settings end with the transaction.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks.database.private_names import in_inner_block
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.limits.alarms import HardTimeLimitExceeded
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry
from lambda_tasks.plugins import ask, hooks
from lambda_tasks.recording.lines import get_logger

logger = get_logger("lambda_tasks.contrib.postgres")

#: Seconds after the hard timeout at which the server ends a statement, so that the worker's own alarm comes first.
MARGIN: Final = 1.0
#: Seconds between two checks of the server that the worker is still connected.
CHECK_INTERVAL: Final = 1.0
#: Seconds that cancelling a statement may take.
CANCEL_TIMEOUT: Final = 1.0

#: SQLSTATE query_canceled (PostgreSQL, appendix A), because of statement_timeout or a cancel request.
_QUERY_CANCELED: Final = "57014"
#: libpq's PQTRANS_ACTIVE: a statement was sent, and its result is not read yet.
_ACTIVE: Final = 1

# current_setting() returns '0' or a number with a unit, such as '5s' or '2min', which is also a valid interval.
_SET_LOCAL: Final = """
    SELECT set_config('client_connection_check_interval', %(check)s::int::text, true),
           CASE WHEN longer THEN set_config('statement_timeout', %(ms)s::int::text, true) END
      FROM (SELECT own = 0 OR own > %(ms)s::int
              FROM (SELECT extract(epoch FROM current_setting('statement_timeout')::interval) * 1000) AS a (own)
           ) AS b (longer)
"""


@hookimpl(wrapper=True)
def lambda_task_call(run: Run) -> Generator[None, object, object]:
    connection = connections[run.database]
    if not run.limited or not _owns_transaction(connection):
        return (yield)
    with connection.cursor() as cursor:
        cursor.execute(
            _SET_LOCAL, {"ms": round((run.hard_timeout + MARGIN) * 1000), "check": round(CHECK_INTERVAL * 1000)}
        )
    with connection.execute_wrapper(_cancel_if_interrupted):
        try:
            return (yield)
        finally:
            # An alarm may have interrupted a fetch from a server-side cursor.
            end_statement(connection)


@hookimpl
def lambda_task_classify(run: Run, error: BaseException) -> Outcome | None:
    """Classify a statement that the server ended after the hard timeout as `HardTimeLimitExceeded`."""
    sqlstate = getattr(error.__cause__, "sqlstate", None) or getattr(error.__cause__, "pgcode", None)
    if sqlstate != _QUERY_CANCELED or not run.limited or run.duration < run.hard_timeout:
        return None
    exceeded = HardTimeLimitExceeded(
        f"The hard timeout of {run.hard_timeout:g} s has expired, and PostgreSQL has ended the statement."
    )
    exceeded.__cause__ = error
    outcome: Outcome = ask(hooks().lambda_task_classify, Ignored | Retry | Failed, run=run, error=exceeded)
    return outcome


def end_statement(connection: BaseDatabaseWrapper) -> None:
    """Cancel the running statement of `connection`, if any, and read its result, so that the connection can be used.

    Errors are logged and not raised, because `statement_timeout` ends the statement in any case, and the executor
    closes an unusable connection.
    """
    session: Any = connection.connection
    pgconn = getattr(session, "pgconn", None)
    if pgconn is None or pgconn.transaction_status != _ACTIVE:
        return
    try:
        _cancel(session)
        _read_answer(pgconn, until=time.monotonic() + CANCEL_TIMEOUT)
    except Exception:
        logger.exception("An interrupted statement could not be cancelled. Its statement_timeout will end it.")


def _owns_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the run has its own transaction on PostgreSQL.

    In a savepoint of the caller's transaction, SET LOCAL would outlive the run.
    """
    return connection.vendor == "postgresql" and connection.in_atomic_block and not in_inner_block(connection)


def _cancel_if_interrupted(
    execute: Callable[[str, Any, bool, dict[str, Any]], Any], sql: str, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    try:
        return execute(sql, params, many, context)
    except BaseException:
        end_statement(context["connection"])
        raise


def _cancel(session: Any) -> None:
    if hasattr(session, "cancel_safe"):  # psycopg 3.2
        session.cancel_safe(timeout=CANCEL_TIMEOUT)
    else:
        session.cancel()


def _read_answer(pgconn: Any, *, until: float) -> None:
    """Read and discard the results of the statement until the server has finished it, or until the deadline."""
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0:
            if not pgconn.is_busy() and pgconn.get_result() is None:
                return
            if pgconn.is_busy() and selector.select(left):
                pgconn.consume_input()
