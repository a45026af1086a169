"""Classify database errors (conflict, lock timeout, lost connection), and replace broken connections."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from django.db import InterfaceError, InternalError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks.database.infrastructure import ends_session, sqlstate
from lambda_tasks.exceptions import InvalidSetting

T = TypeVar("T")

#: The errors that drivers raise when the database, not the statement, is the cause.
DATABASE_ERRORS: Final = (OperationalError, InterfaceError)

#: Seconds until a record that an open transaction has locked is tried again.
LOCKED_PAUSE: Final = 10.0

#: SQLSTATE 40001 serialization_failure and 40P01 deadlock_detected (PostgreSQL, appendix A).
_SQLSTATES: Final = frozenset({"40001", "40P01"})
#: Waiting for a lock timed out: SQLSTATE 55P03 lock_not_available, and ER_LOCK_WAIT_TIMEOUT of MySQL and MariaDB.
_LOCK_TIMEOUTS: Final = frozenset({"55P03", 1205})
#: SQLSTATE 25006 read_only_sql_transaction: the only sign that a failover has demoted the server.
_READ_ONLY: Final = "25006"
#: libpq's PQTRANS_INERROR: the server accepts only ROLLBACK.
_IN_ERROR: Final = 3
#: ER_LOCK_DEADLOCK, and ER_CHECKREAD for a snapshot that is too old (MariaDB's list of error codes).
_MYSQL_CODES: Final = frozenset({1213, 1020})


def is_conflict(error: BaseException) -> bool:
    """Return whether the database aborted the transaction because of a concurrent one, so that a rerun may succeed.

    This is the case after a deadlock, a serialization failure, or a timeout while waiting for SQLite's lock.
    """
    if not isinstance(error, OperationalError):
        return False
    code = error.args[0] if error.args else None
    return sqlstate(error) in _SQLSTATES or code in _MYSQL_CODES or code == "database is locked"


def is_lock_timeout(error: BaseException) -> bool:
    """Return whether a statement waited for another transaction's lock until the lock timeout."""
    code = error.args[0] if error.args else None
    return isinstance(error, OperationalError) and (sqlstate(error) in _LOCK_TIMEOUTS or code in _LOCK_TIMEOUTS)


def connection_lost(database: str, error: BaseException, session: object) -> bool:
    """Return whether `session`, the driver's connection on which a transaction began, is lost.

    Django closes a connection on which even ROLLBACK fails. So a different session, or a missing one, proves the loss
    after any error. After a database error, the session is tested: Django may not have noticed the loss yet.
    """
    of_database = isinstance(error, DATABASE_ERRORS)
    if session is None:
        return of_database
    connection = connections[database]
    if connection.connection is not session or ends_session(error):
        return True
    return of_database and not connection.is_usable()


def transaction_broken(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the open transaction can only be rolled back, because the code caught a database error in it."""
    if connection.needs_rollback:
        return True
    if connection.vendor != "postgresql":
        return False
    # After a statement that bypassed Django, only the driver knows. psycopg and psycopg2 share this attribute.
    info = getattr(connection.connection, "info", None)
    return getattr(info, "transaction_status", None) == _IN_ERROR


def on_sound_connection(database: str, action: Callable[[], T]) -> T:
    """Run `action`, and rerun it once on a new connection if the old one has died unnoticed, as during a freeze.

    Rerun it on a new connection too if a failover has made the server read-only, which health checks do not detect.
    Rerun it on the same connection after a conflict with another transaction. Do not rerun it if the connection was
    already new. With a pool, replace its idle connections first, since it would otherwise return another dead one.
    """
    connection = connections[database]
    # A pool may return a session that was opened long ago.
    maybe_old = connection.connection is not None or pool_of(connection) is not None
    try:
        return action()
    except (*DATABASE_ERRORS, InternalError) as error:
        if isinstance(error, InternalError) and sqlstate(error) != _READ_ONLY:
            raise
        conflict = is_conflict(error)
        maybe_old = maybe_old and not _pool_is_empty(error)
        if connection.in_atomic_block or is_lock_timeout(error) or not (maybe_old or conflict):
            raise
        if not conflict:
            end_session(connection)
            drain_pool(connection)
        return action()


def commits_by_itself(connection: BaseDatabaseWrapper) -> bool:
    """Return whether Django commits a statement or an `atomic()` block on this database when it ends."""
    return bool(connection.settings_dict["AUTOCOMMIT"])


def manual_commits(database: str) -> str:
    """Return the error message about a database with AUTOCOMMIT set to False."""
    return (
        f"DATABASES[{database!r}]['AUTOCOMMIT'] must be True, not False: otherwise Django's atomic() does not commit, "
        "tasks are acknowledged without effect, and messages are never sent."
    )


def refuse_manual_commits(connection: BaseDatabaseWrapper) -> None:
    """Raise `InvalidSetting` if AUTOCOMMIT is False for this database."""
    if not commits_by_itself(connection):
        raise InvalidSetting(manual_commits(connection.alias) + " Remove AUTOCOMMIT from it.")


def close_broken_connections() -> None:
    """Close this thread's unusable connections, such as those that a time limit interrupted in the middle of a query.

    Skip connections in a transaction: the code that opened the transaction is responsible for them.
    """
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None and not connection.in_atomic_block and not connection.is_usable():
            end_session(connection)


def end_session(connection: BaseDatabaseWrapper) -> None:
    """Close the connection and end its session on the server.

    With a pool, Django's `close()` returns the session to the pool, together with its advisory locks and settings. A
    pool discards a returned connection that is closed.
    """
    driver = connection.connection
    if driver is not None and pool_of(connection) is not None:
        # Not close(): with psycopg_pool's option close_returns, that returns the session too.
        pgconn = getattr(driver, "pgconn", None)
        if pgconn is not None:
            pgconn.finish()
    connection.close()


def drain_pool(connection: BaseDatabaseWrapper) -> None:
    """Replace the pool's idle connections after one has died, since they are as old; do nothing without a pool."""
    pool = pool_of(connection)
    if pool is None:
        return
    drain = getattr(pool, "drain", None) or getattr(pool, "check", None)  # psycopg_pool before 3.3 lacks drain()
    if drain is not None:
        with suppress(Exception):  # the next attempt to connect reports the problem
            drain()


def _pool_is_empty(error: BaseException) -> bool:
    """Return whether the pool had no free connection. It has already waited for one, so a rerun would not help."""
    return type(error.__cause__).__name__ in ("PoolTimeout", "TooManyRequests")


def pool_of(connection: BaseDatabaseWrapper) -> Any:
    """Return the open pool of the connection's alias, or None. Django's own property would open a pool."""
    return getattr(connection, "_connection_pools", {}).get(connection.alias)
