"""Summarize records in one line, for the page and the demo's table."""

from __future__ import annotations

import json
import re
from datetime import datetime

from lambda_tasks.models import TaskRecord


def short_name(task_name: str) -> str:
    return task_name.rpartition(".")[2]


def outcome(record: TaskRecord) -> str:
    """Return the last line of the traceback, or the result as JSON, or an empty string while the task runs.

    The name of an exception does not include its module.
    """
    if record.traceback:
        return re.sub(r"^[\w.]+\.(?=\w+(:|$))", "", record.traceback.strip().splitlines()[-1])
    if record.status == TaskRecord.TaskStatus.SUCCESS:
        return json.dumps(record.result, ensure_ascii=False)
    return ""


def seconds(record: TaskRecord, *, now: datetime) -> float:
    """Return the duration of the run, until now if it has not ended."""
    if record.start_time is None:
        return 0.0
    return max(((record.end_time or now) - record.start_time).total_seconds(), 0.0)
