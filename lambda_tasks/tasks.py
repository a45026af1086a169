"""The tasks that come with the library."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import Final
from uuid import UUID

from django.db import router
from django.db.models import Exists, OuterRef

from lambda_tasks.decorators import lambda_task
from lambda_tasks.logging import current_message_id, task_logger
from lambda_tasks.maintenance import outbox
from lambda_tasks.models import DatabaseNow, OutboxMessage, TaskRecord
from lambda_tasks.settings import LOST_AFTER
from lambda_tasks.strategies import get_store
from lambda_tasks.timeouts import TimeLimits

#: Rows per DELETE: few enough that a statement holds no lock for long.
BATCH_SIZE = 1_000
#: The share of its time up to the soft timeout after which a task here begins nothing new. The last
#: batch, COMMIT and what follows it come on top.
TIME_SHARE: Final = 0.5
#: Invocations that one run of `reap_lost_tasks` settles: they leave after its COMMIT, ten in a call to SQS.
MAX_REAPED: Final = 5_000


@lambda_task
def cleanup_task_records(*, retention_days: int = 7) -> int:
    """Delete the records that were started more than `retention_days` days ago; return their number.

    Whatever their status. Its own record stays, and so do those whose message is in the outbox still: it may
    have been sent already, and must not run again. In a worker it ends when half of its time is over, and
    leaves the rest to the next run. Raises ValueError for a negative number of days.
    """
    if retention_days < 0:
        raise ValueError(f"retention_days is {retention_days}; give 0 or more.")
    deadline = monotonic() + _seconds_to_spend()
    database = get_store().database
    records = TaskRecord.objects.using(database)
    old = (
        records.filter(start_time__lt=DatabaseNow() - timedelta(days=retention_days))
        .exclude(pk=current_message_id())
        .order_by("start_time")
        .values_list("pk", "start_time")
    )
    if router.allow_migrate_model(database, OutboxMessage):
        old = old.exclude(Exists(OutboxMessage.objects.filter(pk=OuterRef("pk"))))
    outboxes_elsewhere = _databases_of_outboxes() - {database}
    spared: set[UUID] = set()
    deleted = 0
    left = old
    while batch := list(left.exclude(pk__in=spared)[:BATCH_SIZE]):
        keys = {pk for pk, _ in batch}
        for alias in outboxes_elsewhere:
            spared.update(OutboxMessage.objects.using(alias).filter(pk__in=keys).values_list("pk", flat=True))
        _, rows = records.filter(pk__in=keys - spared).delete()
        if not rows.get(TaskRecord._meta.label) and keys.isdisjoint(spared):
            break  # somebody else has deleted them, and our snapshot does not show it
        deleted += rows.get(TaskRecord._meta.label, 0)
        task_logger.debug("%d records deleted so far", deleted)
        if monotonic() >= deadline:
            task_logger.warning("%d records deleted; the time is over, the next run goes on.", deleted)
            break
        # What is deleted stays in the index until COMMIT: do not walk over it for each batch. A second
        # earlier, since SQLite compares moments as texts, of which some have fewer digits.
        left = old.filter(start_time__gte=batch[-1][1] - timedelta(seconds=1))
    return deleted


@lambda_task
def reap_lost_tasks(*, older_than: int = LOST_AFTER) -> dict[str, int]:
    """Settle the invocations that nobody runs any more, though their records say RUNNING; return their numbers.

    `older_than` is in seconds since the end of the lease. `lambda_tasks.lost.reap` says what happens to
    them: `sent_again`, `failed`, or `unsent`, which is for the next run to try. Raises ValueError for a
    negative number of seconds.
    """
    # Imported where it runs: it needs the whole pipeline, and whoever imports this module may only send it.
    from lambda_tasks.lost import reap

    reaped = reap(older_than=older_than, seconds=_seconds_to_spend(), limit=MAX_REAPED)
    if not reaped.complete:
        task_logger.warning("%d lost tasks settled; there are more, the next run goes on.", reaped.total)
    return {"sent_again": reaped.sent_again, "failed": reaped.failed, "unsent": reaped.unsent}


def _databases_of_outboxes() -> set[str]:
    kept = outbox()
    return set() if kept is None else set(kept.databases)


def _seconds_to_spend() -> float:
    limits = TimeLimits.current()
    return float("inf") if limits is None else limits.seconds_left * TIME_SHARE
