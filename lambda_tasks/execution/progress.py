"""Store the progress that a running task reports, outside of its transaction and without delaying it."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from django.db import connections, transaction

from lambda_tasks.database.aside import can_run_aside, run_aside, run_aside_without_waiting
from lambda_tasks.database.coroutines import in_coroutine
from lambda_tasks.database.errors import is_conflict
from lambda_tasks.jobs import Run
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.logging import run_logger
from lambda_tasks.outcomes import ReportedProgress
from lambda_tasks.recording.described import described
from lambda_tasks.recording.storable import storable
from lambda_tasks.strategies import get_store

#: Seconds between two reports of a run that are stored.
INTERVAL: Final = 1.0
#: Seconds after an error until the next attempt. Each may take time, as when the server accepts no connection.
PAUSE_AFTER_ERROR: Final = 30.0
#: The maximum number of characters of a note; the rest is cut off.
MAX_NOTE: Final = 255
#: The largest number that every database stores.
_MAX_NUMBER: Final = 2**63 - 1
#: The number of runs whose state is kept: more than a process runs at the same time.
_MAX_RUNS: Final = 64


@dataclass(slots=True)
class _Reports:
    """What a run has reported so far."""

    next_at: float = 0.0
    #: Whether the last one that was stored was complete.
    complete: bool = False
    warned: bool = False


#: The state of each run, by the token of its claim.
_reports: dict[str, _Reports] = {}


def report(run: Run, done: Any, total: Any, note: Any) -> None:
    """Store the progress of `run`: the first report, the complete one, and others at most once in `INTERVAL` seconds.

    Raise TypeError or ValueError for invalid arguments. An error of the database is logged, once for the run.
    """
    progress = _checked(run, done, total, note)
    reports = _reports.get(run.claim)
    if reports is None:
        while len(_reports) >= _MAX_RUNS:
            _reports.pop(next(iter(_reports)), None)
        reports = _reports[run.claim] = _Reports()
    complete = progress.done == progress.total
    if monotonic() < reports.next_at and (reports.complete or not complete):
        return
    reports.next_at = monotonic() + INTERVAL
    try:
        stored = _store(run, progress)
    except SoftTimeLimitExceeded:
        raise  # it belongs to the task
    except Exception as error:
        reports.next_at = monotonic() + PAUSE_AFTER_ERROR
        if not reports.warned:
            reports.warned = True
            text = run.scrubbed(f"{type(error).__name__}: {error}").strip()
            run_logger.warning("The progress of %s could not be stored (%s).", run.task_name, text)
    else:
        reports.complete = complete and stored


def _checked(run: Run, done: Any, total: Any, note: Any) -> ReportedProgress:
    for name, value in (("done", done), ("total", total)):
        if name == "total" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, not {described(value)}.")
        if not 0 <= value <= _MAX_NUMBER:
            raise ValueError(f"{name} must be from 0 to {_MAX_NUMBER}, not {value}.")
    if not isinstance(note, str):
        raise TypeError(f"note must be a string, not {described(note)}.")
    if note and run.task.sensitive:
        note = run.scrubbed(note)
    return ReportedProgress(done, total, storable(note[:MAX_NOTE])[:MAX_NOTE] if note else "")


def _store(run: Run, progress: ReportedProgress) -> bool:
    """Store the progress on a connection that does not wait for the task's transaction. Return False if it cannot."""
    store = get_store()
    if not store.keeps_progress:
        return False
    connection = connections[run.database]
    if run.nested and connection.in_atomic_block and not in_coroutine():
        # Only the caller's connection sees the record. A savepoint, so that an error does not break the transaction.
        with transaction.atomic(using=run.database):
            return store.write_progress(run, progress)
    if connection.vendor != "sqlite":
        return run_aside(lambda: store.write_progress(run, progress))
    if run.task.atomic or not can_run_aside(connection):
        return False  # SQLite has one writer, which is the task's transaction
    try:
        return run_aside_without_waiting(lambda: store.write_progress(run, progress), connection.alias)
    except Exception as error:
        if is_conflict(error):  # "database is locked"
            return False
        raise
