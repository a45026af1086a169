"""What can go wrong at a point: each fault is a function that a worker's process calls on itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

import psycopg
import pymysql
import redis
from django.db import connection

from lambda_tasks.timeouts import TimeLimits
from tests.simulation.transport import FileBackend, locks

#: A port of this machine that nobody listens on.
CLOSED_PORT: Final = 1


def killed() -> NoReturn:
    """The kernel ends the process: out of memory, or Lambda's own timeout."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a SIGKILL cannot be survived")


def session_ended() -> None:
    """The database ends the session: an administrator, a failover."""
    session = _session_id()
    if session is None:
        return
    if connection.vendor == "postgresql":
        _ask_server("SELECT pg_terminate_backend(%s)", session)
        return
    _ask_server("KILL CONNECTION %s", session)


def database_away() -> None:
    """The database ends the session, and takes no new ones for the rest of the invocation."""
    session_ended()
    connection.settings_dict["HOST"] = "127.0.0.1"
    connection.settings_dict["PORT"] = CLOSED_PORT


def commit_answer_lost() -> None:
    """The next COMMIT reaches the database, and its answer does not come back."""
    database: Any = connection  # its own parts are no part of Django's types
    commit = database._commit

    def commit_and_lose_the_answer() -> None:
        database._commit = commit  # the next one is none of ours
        commit()
        session_ended()
        database.connection.close()
        with database.wrap_database_errors:
            raise database.Database.OperationalError("server closed the connection unexpectedly")

    database._commit = commit_and_lose_the_answer


def send_refused() -> None:
    """The next message does not reach SQS."""
    FileBackend.next_failure = "before"


def sqs_away() -> None:
    """No message reaches SQS for the rest of the process."""
    FileBackend.away = True


def send_answer_lost() -> None:
    """The next message reaches SQS, and the answer does not come back."""
    FileBackend.next_failure = "after"


def locks_forgotten() -> None:
    """Redis fails over to a replica that has not heard of any lock."""
    with suppress(redis.ConnectionError):  # away already
        locks().forget_everything()


def redis_away() -> None:
    """Redis takes no connections for the rest of the invocation."""
    pool = locks().client.connection_pool
    pool.disconnect()
    pool.reset()  # a connection that is made again remembers its address
    where: dict[str, Any] = {"path": "/nobody/listens"} if "path" in pool.connection_kwargs else {"port": CLOSED_PORT}
    pool.connection_kwargs.update(where)


def limit_over() -> None:
    """The hard limit passes at this moment; nothing happens where no limits run."""
    limits = TimeLimits.current()
    if limits is not None:
        limits._started = time.monotonic() - limits.hard_timeout - 0.01
        signal.raise_signal(signal.SIGALRM)


#: Every fault but the freeze, which takes the parent process to end it.
FAULTS: Final[dict[str, Callable[[], object]]] = {
    "killed": killed,
    "session ended": session_ended,
    "database away": database_away,
    "answer to COMMIT lost": commit_answer_lost,
    "send refused": send_refused,
    "SQS away": sqs_away,
    "answer to send lost": send_answer_lost,
    "locks forgotten": locks_forgotten,
    "Redis away": redis_away,
    "limit over": limit_over,
}
FROZEN: Final = "frozen past the lease"
#: It strikes every process that runs or is frozen at that moment; only the worlds of `crashes` have it.
CRASHED: Final = "database crashed"


def _session_id() -> int | None:
    if connection.connection is None:
        return None
    if connection.vendor == "postgresql":
        return int(connection.connection.info.backend_pid)
    return int(connection.connection.thread_id())


def _ask_server(sql: str, session: int) -> None:
    """Run `sql` on a connection of its own, and wait until the session is gone."""
    given: dict[str, Any] = connection.get_connection_params()
    names = {"host", "port", "user", "password", "dbname", "database", "unix_socket"}
    address = {name: given[name] for name in names & given.keys()}
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
