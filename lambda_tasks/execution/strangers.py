"""Know which run the calling code belongs to, and warn of connections that other threads open while a task runs.

Each thread has its own Django connections. So another thread, or a coroutine under `asyncio.run()`, commits its writes
immediately, on a separate connection. They remain if the task fails, and a retry repeats them.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from lambda_tasks.limits.alarms import NoLimits, TimeLimits
from lambda_tasks.logging import Fields, run_logger

if TYPE_CHECKING:
    from contextvars import Token

    from lambda_tasks.jobs import Run

#: The task that the calling code belongs to. Coroutines and the threads of asgiref inherit it.
_in_context: ContextVar[Watch | None] = ContextVar("lambda_tasks_run", default=None)
#: The task that runs in the main thread; the tasks of other threads are not watched.
_current: Watch | None = None


class Watch:
    """Mark the code in a `with` block as part of a run, and watch for other threads' connections meanwhile.

    Connections are watched only for runs in the main thread, and each run logs one warning.
    """

    def __init__(self, run: Run, limits: TimeLimits | NoLimits) -> None:
        self.run = run
        self.limits = limits
        self._outer: Watch | None = None
        self._warned = False
        self._token: Token[Watch | None] | None = None

    def __enter__(self) -> None:
        global _current
        self._token = _in_context.set(self)
        if threading.current_thread() is threading.main_thread():
            self._outer, _current = _current, self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _current
        if _current is self:
            _current = self._outer
        if self._token is not None:
            _in_context.reset(self._token)

    def opened(self, database: str) -> None:
        """Log a warning about the first connection to the run's database from another thread."""
        if self._warned or database != self.run.database:
            return
        self._warned = True
        with run_logger.bound(self.run.message_id, self._log_fields):
            run_logger.warning(
                "Thread %r opens a connection to database %r while %s runs. Its writes are not part of the task's "
                "transaction: they remain committed if the task fails.",
                threading.current_thread().name,
                database,
                self.run.task_name,
            )

    def _log_fields(self) -> Fields:
        run = self.run
        return {"task_name": run.task_name, "queue": run.queue, "attempt": run.n_retries + 1, "root_id": run.root_id}


def watch_of_caller() -> Watch | None:
    """Return the watch of the run that the calling code belongs to, or None outside of a task.

    A plain thread inherits no context before Python 3.14. In a worker, it belongs to the task in the main thread. In
    eager mode, it may as well belong to a web server in the same process.
    """
    watch, in_main_thread = _in_context.get(), _current
    if watch is not None or in_main_thread is None or threading.current_thread() is threading.main_thread():
        return watch
    return in_main_thread if in_main_thread.run.limited else None


def stop_watching() -> None:
    """Stop watching, so that the library's own thread can record a task whose process is about to be ended."""
    global _current
    _current = None


def start_watching() -> None:
    """Connect to Django's signal for new connections; called once in a worker process."""
    connection_created.connect(_opened, dispatch_uid="lambda_tasks.strangers")


def _opened(connection: BaseDatabaseWrapper, **_: Any) -> None:
    watch = _current
    if watch is not None and threading.current_thread() is not threading.main_thread():
        _tell(watch, connection.alias)


def _tell(watch: Watch, database: str) -> None:
    from lambda_tasks.database.aside import AsideThread  # most processes never get here

    if not isinstance(threading.current_thread(), AsideThread):
        watch.opened(database)
