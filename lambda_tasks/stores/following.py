"""What callers read of an invocation that they follow: the end of its chain of retries, and its progress."""

from __future__ import annotations

from django.db import connections, transaction
from django.db.models import QuerySet, Subquery

from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.jobs import Run
from lambda_tasks.models import TaskProgress, TaskReason, TaskRecord
from lambda_tasks.outcomes import Latest, ReportedProgress
from lambda_tasks.stores.rows import held


def latest(message_id: str, database: str) -> Latest | None:
    """Return the newest invocation of a chain of retries."""
    for record in _newest(message_id, database):
        return Latest(
            message_id=str(record.pk),
            root_id=str(record.root_id or record.pk),
            status=str(record.status),
            reason="" if record.reason == TaskReason.NOT_KEPT else record.reason,
            result=record.result,
            traceback=record.traceback or "",
            task_name=record.task_name,
            record=record,
        )
    return None


def write_progress(run: Run, progress: ReportedProgress) -> bool:
    """Insert or replace the row of the invocation while the run holds its claim: no other run can take it meanwhile."""
    with transaction.atomic(using=run.database):
        if not _lock_if_free(held(run.database, run.message_id, run.claim)):
            return False
        row = TaskProgress(
            id=run.message_id,
            done=progress.done,
            total=progress.total,
            note=progress.note,
            updated_at=DatabaseNow(),
        )
        with_target = connections[run.database].features.supports_update_conflicts_with_target
        TaskProgress.objects.using(run.database).bulk_create(
            [row],
            update_conflicts=True,
            update_fields=("done", "total", "note", "updated_at"),
            unique_fields=("id",) if with_target else None,
        )
    return True


def read_progress(message_id: str, database: str) -> ReportedProgress | None:
    """Return the progress of the newest invocation of a chain of retries."""
    newest = Subquery(_newest(message_id, database).values("pk"))
    for row in TaskProgress.objects.using(database).filter(pk=newest):
        return reported(row)
    return None


def reported(row: TaskProgress) -> ReportedProgress:
    """Return the progress in a row."""
    return ReportedProgress(row.done, row.total, row.note, row.updated_at)


def _newest(message_id: str, database: str) -> QuerySet[TaskRecord]:
    records: QuerySet[TaskRecord] = TaskRecord.objects.using(database).chain(message_id).order_by("-n_retries")[:1]
    return records


def _lock_if_free(records: QuerySet[TaskRecord]) -> bool:
    """Lock the record for this transaction. Return False if it does not exist, or if another transaction locks it."""
    features = connections[records.db].features
    if features.has_select_for_update_skip_locked:
        records = records.select_for_update(skip_locked=True, no_key=features.has_select_for_no_key_update)
    elif features.has_select_for_update_nowait:
        records = records.select_for_update(nowait=True)
    return bool(list(records.values_list("pk")))
