"""Faults for failpoints: each fault is a function that a worker process calls to injure itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

import psycopg
import pymysql
import redis
from django.apps import apps
from django.db import connection

from lambda_tasks.limits.alarms import TimeLimits
from tests.commits import replace_next_commit
from tests.simulation.transport import FileBackend, locks

#: A closed port of this machine.
CLOSED_PORT: Final = 1
#: Seconds for which another session locks the table of records.
LOCKED_FOR: Final = 0.5


def killed() -> NoReturn:
    """Kill the process, as the kernel does when memory runs out, or Lambda at its timeout."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("the process survived SIGKILL")


def session_ended() -> None:
    """End the database session, as an administrator or a failover does."""
    session = _session_id()
    if session is None:
        return
    if connection.vendor == "postgresql":
        _ask_server("SELECT pg_terminate_backend(%s)", session)
        return
    with suppress(pymysql.OperationalError):  # an earlier fault has ended it
        _ask_server("KILL CONNECTION %s", session)


#: The address of the database, once the worker's settings name another one.
_moved: dict[str, Any] = {}


def database_unavailable() -> None:
    """End the database session, and refuse new connections for the rest of the invocation."""
    session_ended()
    for name in ("HOST", "PORT"):
        _moved.setdefault(name, connection.settings_dict[name])
    connection.settings_dict["HOST"] = "127.0.0.1"
    connection.settings_dict["PORT"] = CLOSED_PORT


def commit_answer_lost() -> None:
    """Lose the answer to the next COMMIT, which reaches the database."""
    database: Any = connection  # private attributes that Django's types lack

    def commit_and_lose_the_answer(commit: Callable[[], object]) -> None:
        commit()
        session_ended()
        database.connection.close()
        with database.wrap_database_errors:
            raise database.Database.OperationalError("server closed the connection unexpectedly")

    replace_next_commit(commit_and_lose_the_answer)


def records_locked() -> None:
    """Lock the table of records in another session, for longer than the worker's statements wait.

    Do nothing while the worker's own transaction holds the table, because a migration would wait for its end.
    """
    holder = _lock_of_records()
    if holder is None:
        return
    connection.execute_wrappers.append(_without_patience)
    unlocking = threading.Timer(LOCKED_FOR, holder.close)
    unlocking.daemon = True  # the lock ends with the process
    unlocking.start()


def server_read_only() -> None:
    """Demote the server of the open session, as a switchover does, on PostgreSQL. New sessions get the new primary."""
    if connection.vendor != "postgresql" or connection.connection is None:
        return
    with suppress(psycopg.Error):  # after an error, the transaction rejects statements
        connection.connection.execute("SET default_transaction_read_only = on")
        if connection.in_atomic_block:
            connection.connection.execute("SET transaction_read_only = on")


def send_rejected() -> None:
    """Prevent the next message from reaching SQS."""
    FileBackend.next_failure = "before"


def sqs_unavailable() -> None:
    """Prevent all messages from reaching SQS for the rest of the process."""
    FileBackend.unavailable = True


def send_answer_lost() -> None:
    """Lose the answer to the next message, which reaches SQS."""
    FileBackend.next_failure = "after"


def locks_lost() -> None:
    """Delete all locks, as if Redis failed over to a replica without them."""
    with suppress(redis.ConnectionError):  # already unavailable
        locks().lose_all()


def redis_unavailable() -> None:
    """Refuse connections to Redis for the rest of the invocation."""
    pool = locks().client.connection_pool
    pool.disconnect()
    pool.reset()  # a connection that is reopened keeps its address
    where: dict[str, Any] = {"path": "/missing/socket"} if "path" in pool.connection_kwargs else {"port": CLOSED_PORT}
    pool.connection_kwargs.update(where)


def limit_exceeded() -> None:
    """Exceed the hard limit now, if limits are running."""
    limits = TimeLimits.current()
    if limits is not None:
        limits._started = time.monotonic() - limits.hard_timeout - 0.01
        signal.raise_signal(signal.SIGALRM)


#: Every fault except the freeze, which the parent process has to end.
FAULTS: Final[dict[str, Callable[[], object]]] = {
    "killed": killed,
    "session ended": session_ended,
    "database unavailable": database_unavailable,
    "answer to COMMIT lost": commit_answer_lost,
    "records locked": records_locked,
    "server read-only": server_read_only,
    "send rejected": send_rejected,
    "SQS unavailable": sqs_unavailable,
    "answer to send lost": send_answer_lost,
    "locks lost": locks_lost,
    "Redis unavailable": redis_unavailable,
    "limit exceeded": limit_exceeded,
}
FROZEN: Final = "frozen past the lease"
#: Affects every process that is running or frozen at that moment. Only the worlds of `crashes` use it.
CRASHED: Final = "database crashed"


def _session_id() -> int | None:
    if connection.connection is None:
        return None
    if connection.vendor == "postgresql":
        return int(connection.connection.info.backend_pid)
    return int(connection.connection.thread_id())


def _address() -> dict[str, Any]:
    """Return the driver's connection parameters for the same database, even where the worker cannot reach it."""
    reachable = {name: connection.settings_dict[name] for name in ("HOST", "PORT")}
    connection.settings_dict.update(_moved)
    given: dict[str, Any] = connection.get_connection_params()
    connection.settings_dict.update(reachable)
    names = {"host", "port", "user", "password", "dbname", "database", "unix_socket"}
    return {name: given[name] for name in names & given.keys()}


def _lock_of_records() -> Any:
    """Return a session that has locked the table of records, or None if the lock is not available immediately."""
    table = apps.get_model("lambda_tasks", "TaskRecord")._meta.db_table
    if connection.vendor == "postgresql":
        session: Any = psycopg.connect(**_address())
        statement = f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE NOWAIT"
    else:
        session = pymysql.connect(**_address())
        statement = f"LOCK TABLES {table} WRITE NOWAIT"
    try:
        session.cursor().execute(statement)
    except (psycopg.Error, pymysql.Error):
        session.close()
        return None
    return session


def _without_patience(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
    """Limit the time that a statement waits for a lock, in any session."""
    session = context["connection"].connection
    postgres = context["connection"].vendor == "postgresql"
    setting = "lock_timeout = '20ms'" if postgres else "SESSION lock_wait_timeout = 0"
    with suppress(psycopg.Error, pymysql.Error):  # after an error, the transaction rejects statements
        session.cursor().execute(f"SET {setting}")
    return execute(sql, params, many, context)


def _ask_server(sql: str, session: int) -> None:
    """Execute `sql` on a separate connection, and wait until the session has ended."""
    address = _address()
    if connection.vendor == "postgresql":
        with psycopg.connect(**address, autocommit=True) as other:
            other.execute(sql, [session])
            while other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [session]).fetchone():
                time.sleep(0.001)
        return
    with pymysql.connect(**address) as another, another.cursor() as cursor:
        cursor.execute(sql, [session])
        while cursor.execute("SELECT 1 FROM information_schema.processlist WHERE id = %s", [session]):
            time.sleep(0.001)
