"""Run statements on a cursor that is kept for each connection.

Creating Django's and the driver's cursor for each of its statements took a task 116,000 of 1,638,000 instructions
(`python -m benchmarks.instructions`, on PostgreSQL).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

#: The attribute of Django's connection with the driver's connection and a cursor on it. The cursor is freed with the
#: connection, which belongs to one thread.
_KEPT: Final = "_lambda_tasks_cursor"


def execute(connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> int:
    """Run a statement without rows, and return how many rows it has affected.

    The cursor is Django's, so errors are Django's, and `execute_wrapper()` sees the statement. While queries are
    logged, as by `CaptureQueriesContext`, and if a tool has replaced `connection.cursor()`, each statement has a new
    cursor.
    """
    try:
        if connection.queries_logged or _is_replaced(connection):
            with connection.cursor() as cursor:
                return _affected(cursor, sql, params)
        return _affected(_kept_cursor(connection), sql, params)
    except BaseException:
        vars(connection).pop(_KEPT, None)
        with transaction.mark_for_rollback_on_error(using=connection.alias):
            raise


def _is_replaced(connection: BaseDatabaseWrapper) -> bool:
    """Return whether `connection.cursor` is another function than that of its class."""
    method = vars(connection).get("cursor")
    return method is not None and getattr(method, "__func__", None) is not type(connection).cursor


def _affected(cursor: Any, sql: str, params: Sequence[Any]) -> int:
    cursor.execute(sql, params)
    return int(cursor.rowcount)


def _kept_cursor(connection: BaseDatabaseWrapper) -> Any:
    """Return the connection's cursor. Like `connection.cursor()`, check the connection first, and connect if needed."""
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    driver, cursor = vars(connection).get(_KEPT, (None, None))
    if cursor is not None and driver is connection.connection:
        return cursor
    created = connection.cursor()
    if connection.vendor == "sqlite":
        created = _converting(connection, created)
    vars(connection)[_KEPT] = connection.connection, created
    return created


def _converting(connection: BaseDatabaseWrapper, created: Any) -> Any:
    """Return a cursor that converts each statement once, or `created` if the backend's cursors are not Django's."""
    # Loaded here, so that processes with another database do not load SQLite's backend.
    from django.db.backends.sqlite3.base import SQLiteCursorWrapper

    from lambda_tasks.database.sqlite_cursor import ConvertingCursor

    if type(created.cursor) is not SQLiteCursorWrapper:
        return created
    return connection.make_cursor(connection.connection.cursor(factory=ConvertingCursor))
