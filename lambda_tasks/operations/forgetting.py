"""Delete records in batches, and forget the successes of tasks that keep only the records of failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Final
from uuid import UUID

from django.db import router
from django.db.models import Exists, OuterRef, QuerySet

from lambda_tasks import registry
from lambda_tasks.database.clock import from_now
from lambda_tasks.database.dividing import divided, oldest_first
from lambda_tasks.logging import task_logger
from lambda_tasks.models import EnqueuedTask, OutboxMessage, TaskProgress, TaskReason, TaskRecord, TaskRerun
from lambda_tasks.operations.outboxes import databases_of_outboxes
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_store

#: The number of rows that are deleted together. It is small, so that the keys need little memory.
BATCH_SIZE: Final = 1_000


def forget(*, seconds: float = float("inf")) -> int:
    """Delete the records of successes that need not be kept, and return their number.

    These are the successes of tasks with `record="failures"` that ended more than LAMBDA_TASKS_FORGET_AFTER seconds
    ago. A record stays while its message is in the outbox, since that message may be sent again. Start no batch after
    `seconds`.
    """
    store = get_store()
    if not store.keeps_records:
        return 0
    ended_before = from_now(-app_settings.forget_after)
    # With the start, by which the index of reasons is ordered, and which is never later than the end.
    forgotten = TaskRecord.objects.using(store.database).filter(
        reason=TaskReason.NOT_KEPT, start_time__lt=ended_before, end_time__lt=ended_before
    )
    return delete_in_batches(without_outbox(forgotten), deadline=monotonic() + seconds)


def is_wanted() -> bool:
    """Return whether any task may leave successes to forget."""
    return app_settings.record == "failures" or any(task.record == "failures" for task in registry.discover_tasks())


def delete_in_batches(
    records: QuerySet[TaskRecord], *, deadline: float, report: Callable[[int], object] = lambda number: None
) -> int:
    """Delete started records, those that started first first, and return their number.

    Spare records whose message is in an outbox of another database. `report` is called with the number of records of
    each batch. After `deadline`, start no batch, and log that the next run continues.
    """
    database = records.db
    outboxes_elsewhere = databases_of_outboxes() - {database}
    spared: set[UUID] = set()
    deleted = 0
    # A record without a time is not old, so each has one.
    for keys in oldest_first(records, "start_time", BATCH_SIZE, spared):
        for alias in outboxes_elsewhere:
            for some in divided(keys):
                spared.update(OutboxMessage.objects.using(alias).filter(pk__in=some).values_list("pk", flat=True))
        number = _delete(database, [key for key in keys if key not in spared])
        if not number and spared.isdisjoint(keys):
            break  # another process has deleted them, but this transaction's snapshot still contains them
        deleted += number
        report(number)
        task_logger.debug("%d records deleted so far", deleted)
        if monotonic() >= deadline:
            task_logger.warning("%d records deleted. The time is used up; the next run continues.", deleted)
            break
    return deleted


def _delete(database: str, keys: Iterable[UUID]) -> int:
    deleted = 0
    for some in divided(keys):
        delete_details(database, some)
        _, rows = TaskRecord.objects.using(database).filter(pk__in=some).delete()
        deleted += rows.get(TaskRecord._meta.label, 0)
    return deleted


def delete_details(database: str, keys: Sequence[UUID]) -> None:
    """Delete the rows of other tables whose primary key is that of these records.

    A call of one of Django's tasks without a record would look as if it waited.
    """
    for model in (TaskProgress, TaskRerun, EnqueuedTask):
        if router.allow_migrate_model(database, model):
            model._default_manager.using(database).filter(pk__in=keys).delete()


def without_outbox(records: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
    """Exclude the records whose message is in an outbox of the same database."""
    if router.allow_migrate_model(records.db, OutboxMessage):
        return records.exclude(Exists(OutboxMessage.objects.filter(pk=OuterRef("pk"))))
    return records
