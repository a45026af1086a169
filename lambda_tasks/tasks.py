"""The tasks that come with the library."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import islice
from time import monotonic
from typing import Final
from uuid import UUID

from django.db import router
from django.db.models import Q, QuerySet

from lambda_tasks.database.clock import DatabaseNow, from_now
from lambda_tasks.database.dividing import divided
from lambda_tasks.decorators import lambda_task
from lambda_tasks.limits.alarms import TimeLimits
from lambda_tasks.logging import current_message_id, task_logger
from lambda_tasks.models import (
    CancelRequest,
    EnqueuedTask,
    OutboxMessage,
    TaskFlow,
    TaskFlowMember,
    TaskRecord,
    TaskRerun,
    UniqueKey,
)
from lambda_tasks.operations import forgetting
from lambda_tasks.operations.forgetting import delete_in_batches, without_outbox
from lambda_tasks.operations.outboxes import databases_of_outboxes
from lambda_tasks.settings import whole_number
from lambda_tasks.strategies import get_store

#: The share of the time until the soft timeout after which a task in this module starts no new batch. The rest of the
#: time is for the last batch, the commit and the callbacks after it.
TIME_SHARE: Final = 0.5
#: The number of days for which SQS can keep a message.
MESSAGE_DAYS: Final = 14
#: The maximum number of chains and groups per run of `cleanup_task_records`.
MAX_FLOWS: Final = 1_000
#: The maximum number of invocations per run of `reap_lost_tasks`. They are sent after its commit, ten per call to SQS.
MAX_REAPED: Final = 5_000
#: The longest time for which SQS keeps a message, in days.
MAX_RETENTION_DAYS: Final = 14
#: Checks `retention_days`. The maximum, a century, keeps the limit in the range of dates of every database.
_retention_days: Final = whole_number(1, 36_500, unit="days")


@lambda_task
def cleanup_task_records(*, retention_days: int = 7) -> int:
    """Delete all records that were started more than `retention_days` days ago, and return their number.

    The status does not matter. The task keeps its own record, and the records of messages that are still in the
    outbox: such a message may have been sent already, and must not run again. Requests to cancel of that age are
    deleted, too, and so are large arguments that no message needs. In a worker, the task stops after half of
    its time, and the next run deletes the rest. Raises ValueError unless the number of days is from 1 to 36500: with 0,
    the records of running tasks would be deleted.
    """
    return delete_old_records(retention_days)


def delete_old_records(retention_days: int, *, report: Callable[[int], object] = lambda number: None) -> int:
    """Do the work of `cleanup_task_records`. `report` is called with the number of records of each batch."""
    # Imported here because many processes import this module only to send the task.
    from lambda_tasks.operations.partitioning import daily

    deadline = monotonic() + _seconds_to_spend()
    database = get_store().database
    old = _old_records(database, retention_days)
    dropped = daily.maintain(database, retention_days)
    report(dropped.records)
    if dropped.busy:
        old = old.exclude(dropped.busy)
    _delete_old_requests(database, retention_days)
    _delete_old_flows(database, retention_days)
    _delete_old_calls(database, retention_days)
    deleted = delete_in_batches(old, deadline=deadline, report=report)
    _delete_old_keys(retention_days)
    _delete_old_arguments(retention_days)
    return dropped.records + deleted


def _delete_old_arguments(days: int) -> None:
    """Delete arguments that were stored outside of their messages, and that no message refers to."""
    from lambda_tasks.backends.unused_arguments import delete_unused

    delete_unused(days)


def _delete_old_keys(days: int) -> None:
    """Delete unused keys of tasks with `unique`. This is the last step, so that their locks are held briefly."""
    from lambda_tasks.sending.unique import delete_old_keys

    for alias in {get_store().database, *databases_of_outboxes()}:
        if router.allow_migrate_model(alias, UniqueKey):
            delete_old_keys(alias, days=days, limit=forgetting.BATCH_SIZE)


@lambda_task
def reap_lost_tasks(*, older_than: int | None = None) -> dict[str, int]:
    """Recover tasks that are recorded as RUNNING although their worker died, and return the number of each result.

    `older_than` is the number of seconds since the end of the lease, by default the longest visibility timeout that a
    queue should have, which follows LAMBDA_TASKS_MAX_TIMEOUT: 5,700 without this setting. The results are
    `sent_again`, `failed`, and `unsent`, which the next run tries again; `lambda_tasks.operations.reaping.reap`
    describes them. Raises ValueError for a negative number of seconds.
    """
    # Imported here because it needs the whole pipeline, and many processes import this module only to send the task.
    from lambda_tasks.operations.reaping import reap

    reaped = reap(older_than=older_than, seconds=_seconds_to_spend(), limit=MAX_REAPED)
    if not reaped.complete:
        task_logger.warning("%d lost tasks recovered. There are more; the next run continues.", reaped.total)
    return {"sent_again": reaped.sent_again, "failed": reaped.failed, "unsent": reaped.unsent}


def count_old_records(*, retention_days: int) -> int:
    """Return the number of records that `cleanup_task_records` would delete now."""
    database = get_store().database
    old = _old_records(database, retention_days)
    spared = 0
    for alias in databases_of_outboxes() - {database}:
        keys = OutboxMessage.objects.using(alias).order_by("pk").values_list("pk", flat=True)
        waiting = keys.iterator(chunk_size=forgetting.BATCH_SIZE)
        while batch := list(islice(waiting, forgetting.BATCH_SIZE)):
            spared += sum(old.filter(pk__in=some).count() for some in divided(batch))
    return old.count() - spared


def _old_records(database: str, retention_days: int) -> QuerySet[TaskRecord]:
    """Return the records that may be deleted, except those whose message is in an outbox of another database."""
    _retention_days(retention_days, "retention_days")
    started_before = DatabaseNow() - timedelta(days=retention_days)
    old: QuerySet[TaskRecord] = TaskRecord.objects.using(database).filter(start_time__lt=started_before)
    old = old.exclude(pk=current_message_id())  # type: ignore[misc]  # None excludes no record
    return without_outbox(old)


def _delete_old_requests(database: str, days: int) -> None:
    """Delete requests to cancel: a chain of retries that was asked to end so long ago has ended.

    Delete also the rows of reruns whose messages are gone, because they have no record with which to delete them.
    """
    if router.allow_migrate_model(database, CancelRequest):
        old = from_now(-timedelta(days=days).total_seconds())
        CancelRequest.objects.using(database).filter(requested_at__lt=old).delete()
    if router.allow_migrate_model(database, TaskRerun):
        gone = from_now(-timedelta(days=days + MAX_RETENTION_DAYS).total_seconds())
        TaskRerun.objects.using(database).filter(rerun_at__lt=gone).delete()


def _never_sent(flows: QuerySet[TaskFlow], days: int) -> list[UUID]:
    """Return the flows, created so long ago, of whose tasks nothing is known: none has a record or is in the outbox."""
    created_before = from_now(-timedelta(days=days).total_seconds())
    old = flows.filter(created_at__lt=created_before, ended_at=None).order_by("created_at")
    return [flow_id for flow_id in old.values_list("pk", flat=True)[:MAX_FLOWS] if not _is_known(flow_id, flows.db)]


def _is_known(flow_id: UUID, database: str) -> bool:
    members = TaskFlowMember.objects.using(database).filter(flow_id=flow_id).values("pk")
    models = filter(partial(router.allow_migrate_model, database), (TaskRecord, OutboxMessage))
    rows = [model._default_manager.using(database) for model in models]
    return any(each.filter(pk=flow_id).exists() or each.filter(pk__in=members).exists() for each in rows)


def _delete_old_flows(database: str, days: int) -> None:
    """Delete chains and groups that ended so long ago, with their members."""
    if not router.allow_migrate_model(database, TaskFlow):
        return
    flows = TaskFlow.objects.using(database).filter(owed_since=None)
    ended = flows.filter(ended_at__lt=from_now(-timedelta(days=days).total_seconds())).order_by("ended_at")
    old = [*ended.values_list("pk", flat=True)[:MAX_FLOWS], *_never_sent(flows, max(days, MESSAGE_DAYS))]
    members = TaskFlowMember.objects.using(database)
    for some in divided(old):
        left = members.filter(flow_id__in=some).order_by("pk")
        while keys := list(left.values_list("pk", flat=True)[: forgetting.BATCH_SIZE]):
            for part in divided(keys):
                members.filter(pk__in=part).delete()
            left = left.filter(pk__gt=keys[-1])  # this transaction's snapshot may contain what another one has deleted
        TaskFlow.objects.using(database).filter(pk__in=some).delete()


def _delete_old_calls(database: str, days: int) -> None:
    """Delete calls of Django's tasks that were due so long ago."""
    if not router.allow_migrate_model(database, EnqueuedTask):
        return
    limit = from_now(-timedelta(days=days).total_seconds())
    due = Q(run_after=None) | Q(run_after__lt=limit)
    old = EnqueuedTask.objects.using(database).filter(due, enqueued_at__lt=limit).order_by("enqueued_at")
    while keys := list(old.values_list("pk", flat=True)[: forgetting.BATCH_SIZE]):
        calls = EnqueuedTask.objects.using(database)
        if not sum(calls.filter(pk__in=some).delete()[0] for some in divided(keys)):
            break  # another process has deleted them, but this transaction's snapshot still contains them


def _seconds_to_spend() -> float:
    limits = TimeLimits.current()
    return float("inf") if limits is None else limits.seconds_left * TIME_SHARE
