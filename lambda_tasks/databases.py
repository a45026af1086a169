"""What an error of the database means: the connection is lost, or two transactions met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from django.db import InterfaceError, InternalError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")

#: What drivers raise when the database, and not the statement, is the reason.
DATABASE_ERRORS: Final = (OperationalError, InterfaceError)

#: Seconds until another look at what an open transaction keeps locked.
LOCKED_PAUSE: Final = 10.0

#: SQLSTATE 40001 serialization_failure and 40P01 deadlock_detected (PostgreSQL, appendix A).
_SQLSTATES: Final = frozenset({"40001", "40P01"})
#: SQLSTATE 55P03 lock_not_available, and ER_LOCK_WAIT_TIMEOUT of MySQL and MariaDB: a lock was waited for too long.
_LOCK_TIMEOUTS: Final = frozenset({"55P03", 1205})
#: SQLSTATE 25006 read_only_sql_transaction: all that a server says which a failover has demoted.
_READ_ONLY: Final = "25006"
#: libpq's PQTRANS_INERROR: the server takes nothing but ROLLBACK.
_IN_ERROR: Final = 3
#: ER_LOCK_DEADLOCK and ER_CHECKREAD, a snapshot that is too old (MariaDB's list of error codes).
_MYSQL_CODES: Final = frozenset({1213, 1020})


def is_conflict(error: BaseException) -> bool:
    """Tell whether the database gave the transaction up for another one's sake: it may succeed when run again.

    A deadlock, a serialization failure, or SQLite's lock that did not become free.
    """
    if not isinstance(error, OperationalError):
        return False
    code = error.args[0] if error.args else None
    return _sqlstate(error) in _SQLSTATES or code in _MYSQL_CODES or code == "database is locked"


def is_lock_timeout(error: BaseException) -> bool:
    """Tell whether a statement has waited for another transaction for as long as the settings allow."""
    code = error.args[0] if error.args else None
    return isinstance(error, OperationalError) and (_sqlstate(error) in _LOCK_TIMEOUTS or code in _LOCK_TIMEOUTS)


def _sqlstate(error: BaseException) -> str | None:
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)  # psycopg, psycopg2


def connection_lost(database: str, error: BaseException, session: object) -> bool:
    """Tell whether `session`, the driver's connection that a transaction began on, is gone.

    Django closes a connection on which not even ROLLBACK works, so another session, or none, is a sign
    for any error; an error of the database may come before it is noticed.
    """
    of_database = isinstance(error, DATABASE_ERRORS)
    if session is None:
        return of_database
    connection = connections[database]
    return connection.connection is not session or (of_database and not connection.is_usable())


def transaction_broken(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether the open transaction can only be rolled back, since an error in it was caught and not undone."""
    if connection.needs_rollback:
        return True
    if connection.vendor != "postgresql":
        return False
    # After a statement that was sent past the ORM, only the driver knows; psycopg and psycopg2 say it alike.
    info = getattr(connection.connection, "info", None)
    return getattr(info, "transaction_status", None) == _IN_ERROR


def on_sound_connection(database: str, action: Callable[[], T]) -> T:
    """Do `action`; if the connection has died unnoticed, as over a freeze, once more on a new one.

    So too if its server may only read since a failover, which no health check notices; and on the same
    connection if another transaction was preferred. A database that a new connection does not reach is
    not asked twice.
    """
    connection = connections[database]
    had_connected = connection.connection is not None
    try:
        return action()
    except (*DATABASE_ERRORS, InternalError) as error:
        if isinstance(error, InternalError) and _sqlstate(error) != _READ_ONLY:
            raise
        conflict = is_conflict(error)
        if connection.in_atomic_block or is_lock_timeout(error) or not (had_connected or conflict):
            raise
        if not conflict:
            connection.close()
        return action()


def close_broken_connections() -> None:
    """Close this thread's connections that answer no more, as after an interrupt in the middle of a query.

    One in a transaction is left to whoever has begun it.
    """
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None and not connection.in_atomic_block and not connection.is_usable():
            connection.close()
