"""Recognize errors that a database raises because of its own state, not because of a statement.

A locked table, a full disk or a demoted server is not the task's fault. Errors that end the session, such as a
shutdown, are not listed here: the executor detects the lost connection itself.
"""

from __future__ import annotations

from typing import Final

from django.db import DatabaseError, InterfaceError

#: SQLSTATE (PostgreSQL, appendix A): lock_not_available, query_canceled (for example by `statement_timeout`).
_SQLSTATES: Final = frozenset({"55P03", "57014"})
#: Classes of SQLSTATE: insufficient resources (disk, memory, connections), and errors of the operating system.
_SQLSTATE_CLASSES: Final = ("53", "58")
#: SQLSTATE read_only_sql_transaction. The session, or a failover that demoted the server, forbids writing.
_READ_ONLY_SQLSTATE: Final = "25006"

#: MariaDB and MySQL: disk full, error while writing, error of the storage engine, out of memory (1037, 1038, 1041),
#: too many connections, node of a cluster is not ready, shutdown in progress, table full, too many connections of one
#: user, lock wait timeout, lock table full, global read lock, limit of an account used up (1226), query interrupted,
#: table was altered meanwhile, statement timeout of MariaDB (1969) and of MySQL (3024).
_MYSQL_CODES: Final = frozenset(
    {1021, 1026, 1030, 1037, 1038, 1040, 1041, 1047, 1053, 1114, 1203, 1205, 1206, 1223, 1226, 1317, 1412, 1969, 3024}
)
#: MariaDB and MySQL: server unavailable, lost connection, lost connection at an operation, connection was killed
#: (1927), disconnected for inactivity (4031).
_SESSION_ENDED: Final = frozenset({1927, 2006, 2013, 2055, 4031})
#: The code of PyMySQL's InterfaceError for a connection that is closed.
_CLOSED: Final = 0
#: ER_OPTION_PREVENTS_STATEMENT is about any option, --read-only among them; ER_READ_ONLY_MODE.
_OPTION_PREVENTS: Final = 1290
_READ_ONLY_MODE: Final = 1836

#: The beginnings of SQLite's error messages. Its driver exposes the error codes only since Python 3.11.
_SQLITE_MESSAGES: Final = (
    "database is locked",
    "database table is locked",
    "database schema is locked",
    "disk I/O error",
    "database or disk is full",
    "unable to open database file",
)
_SQLITE_READ_ONLY: Final = "attempt to write a readonly database"


def is_infrastructure(error: BaseException) -> bool:
    """Return whether `error` is due to the state of the database, not to the statement."""
    if not isinstance(error, DatabaseError):
        return False
    if is_read_only(error):
        return True
    state, code = sqlstate(error), _code(error)
    if state is not None and (state in _SQLSTATES or state.startswith(_SQLSTATE_CLASSES)):
        return True
    return code.startswith(_SQLITE_MESSAGES) if isinstance(code, str) else code in _MYSQL_CODES


def is_read_only(error: BaseException) -> bool:
    """Return whether the database refuses all writes, as a server does after a failover has demoted it."""
    if not isinstance(error, DatabaseError):
        return False
    code = _code(error)
    if code == _OPTION_PREVENTS:
        text = str(error).lower()
        return "read-only" in text or "read_only" in text
    if isinstance(code, str) and code.startswith(_SQLITE_READ_ONLY):
        return True
    return sqlstate(error) == _READ_ONLY_SQLSTATE or code == _READ_ONLY_MODE


def ends_session(error: BaseException) -> bool:
    """Return whether `error` itself says that the session has ended.

    PyMySQL before 1.2 opens a new session when Django asks whether the connection is usable, which hides the loss.
    """
    if isinstance(error, InterfaceError):
        return _code(error) == _CLOSED
    return isinstance(error, DatabaseError) and _code(error) in _SESSION_ENDED


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of the driver's error that Django has wrapped."""
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)  # psycopg, psycopg2


def _code(error: BaseException) -> object:
    return error.args[0] if error.args else None
