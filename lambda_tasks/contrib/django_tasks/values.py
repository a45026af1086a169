"""The parts of a `TaskResult`, from records, tracebacks and exceptions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings as django_settings

from lambda_tasks.contrib.django_tasks.compat import AnyTask, InvalidTask, TaskError
from lambda_tasks.models import TaskReason, TaskRecord, TaskStatus
from lambda_tasks.wire import ids

if TYPE_CHECKING:
    from lambda_tasks.jobs import Run

#: The reasons of ends that are not errors of the function.
_NO_ERROR: Final = frozenset({TaskReason.SKIPPED, TaskReason.REPLACED, TaskReason.RETRY_LATER})
#: The class path in a traceback that does not begin with one.
_UNKNOWN_CLASS: Final = "builtins.Exception"
_HEADER: Final = "Traceback (most recent call last):\n"
#: The line of an error in a traceback, after the indented lines of its frames: "shop.errors.Rejected: no stock".
_ERROR_LINE: Final = re.compile(r"(?P<path>[^\W\d][\w.<>]*)(?::|$)")


def moment(seconds: float | None) -> datetime | None:
    """Return a time in seconds since 1970 as Django's `timezone.now()` does: aware with USE_TZ, otherwise local."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc if django_settings.USE_TZ else None)


def enqueued_at(root_id: str) -> datetime | None:
    """Return when the first invocation of a chain was enqueued; None for a schedule's, whose id does not tell."""
    return moment(ids.made_at(root_id))


def task_for(task: AnyTask, *, backend: str, queue_name: str = "", run_after: datetime | None = None) -> AnyTask:
    """Return the task as it was enqueued: with the backend, queue and time of the call."""
    changes: dict[str, Any] = {"backend": backend, "queue_name": queue_name or task.queue_name, "run_after": run_after}
    if all(getattr(task, name) == value for name, value in changes.items()):
        return task
    try:
        return replace(task, **changes)  # `using()` would keep a time, if `task` is a copy with one
    except InvalidTask:
        return task  # the settings have changed since, which must not hide the result


def error_of(error: BaseException, run: Run) -> TaskError:
    """Return an exception that has ended `run`."""
    kind = type(error)
    return TaskError(exception_class_path=f"{kind.__module__}.{kind.__qualname__}", traceback=run.traceback_text(error))


def errors_of(records: Iterable[TaskRecord]) -> list[TaskError]:
    """Return the errors in the records of a chain of retries, the first one first."""
    return [
        TaskError(exception_class_path=class_path(record.traceback), traceback=record.traceback)
        for record in records
        if record.traceback and record.reason not in _NO_ERROR
    ]


def class_path(traceback: str) -> str:
    """Return the dotted path of the exception class in a recorded traceback, whose last error ended the task."""
    _, header, last = traceback.rpartition(f"\n{_HEADER}")
    lines = (last if header else traceback.removeprefix(_HEADER)).splitlines()
    line = next((line for line in lines if line and not line.startswith(" ")), "")
    found = _ERROR_LINE.match(line)
    if found is None:
        return _UNKNOWN_CLASS
    path = found["path"]
    return path if "." in path else f"builtins.{path}"


def worker_ids(records: Iterable[TaskRecord]) -> list[str]:
    """Return one id for each attempt, which is that of its invocation.

    A worker on Lambda has no id of its own that lasts, and the ids of retries are known without a query. A record that
    no worker has claimed is not an attempt: its call was cancelled or replaced.
    """
    return [str(record.pk) for record in records if was_started(record)]


def was_started(record: TaskRecord) -> bool:
    """Return whether a worker has started the invocation of a record."""
    ended = record.status in (TaskStatus.SUCCESS, TaskStatus.FAILED)
    return record.claim is not None or record.takeovers > 0 or not ended
