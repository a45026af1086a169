"""The tasks that come with the library."""

from __future__ import annotations

from datetime import timedelta

from lambda_tasks.decorators import lambda_task
from lambda_tasks.logging import current_message_id, task_logger
from lambda_tasks.models import DatabaseNow, TaskRecord
from lambda_tasks.strategies import get_store

#: Rows per DELETE: few enough that a statement holds no lock for long.
BATCH_SIZE = 1_000


@lambda_task
def cleanup_task_records(*, retention_days: int = 7) -> int:
    """Delete the records that were started more than `retention_days` days ago; return their number.

    Whatever their status. Its own record stays. Raises ValueError for a negative number of days.
    """
    if retention_days < 0:
        raise ValueError(f"retention_days is {retention_days}; give 0 or more.")
    records = TaskRecord.objects.using(get_store().database)
    old = (
        records.filter(start_time__lt=DatabaseNow() - timedelta(days=retention_days))
        .exclude(pk=current_message_id())
        .order_by("start_time")
        .values_list("pk", flat=True)
    )
    deleted = 0
    while batch := list(old[:BATCH_SIZE]):
        _, rows = records.filter(pk__in=batch).delete()
        if not rows.get(TaskRecord._meta.label):
            break  # somebody else has deleted them, and our snapshot does not show it
        deleted += rows[TaskRecord._meta.label]
        task_logger.debug("%d records deleted so far", deleted)
    return deleted
