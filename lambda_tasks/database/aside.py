"""Run a function on a connection of its own, outside of the transaction that is open in the calling thread.

There it sees what other sessions have committed in the meantime, at any isolation level, and its own writes commit
immediately.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Generic, TypeVar, cast

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")


def can_run_aside(connection: BaseDatabaseWrapper) -> bool:
    """Return whether another connection reaches the same data. An SQLite database in memory belongs to one."""
    return connection.vendor != "sqlite" or not cast(Any, connection).is_in_memory_db()


def run_aside(action: Callable[[], T]) -> T:
    """Call `action` in a short-lived thread, whose connections are closed before this function returns.

    Django's connections belong to a thread, so that `action` may use the ORM as usual, also if it is called for a
    coroutine. If an alarm interrupts the wait, the thread still closes its connections.
    """
    thread = AsideThread(action)
    thread.start()
    thread.join()
    if thread.error is not None:
        raise thread.error
    return cast(T, thread.result)


def run_aside_without_waiting(action: Callable[[], T], database: str) -> T:
    """Do the same on an SQLite database that another connection may be writing to; then it raises OperationalError."""

    def act() -> T:
        with connections[database].cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 0")
        return action()

    return run_aside(act)


class AsideThread(threading.Thread, Generic[T]):
    """A thread of the library that uses the database for the thread that waits for it."""

    def __init__(self, action: Callable[[], T]) -> None:
        super().__init__(name="lambda_tasks aside", daemon=True)
        self._action = action
        self._context = copy_context()
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._context.run(self._action)
        except BaseException as error:
            self.error = error
        finally:
            connections.close_all()
