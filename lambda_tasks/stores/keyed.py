"""What tasks with a lock or a unique key need from the records: waiting, the progress of a chain, replaced calls."""

from __future__ import annotations

from django.db.models import QuerySet
from django.db.models.functions import Coalesce

from lambda_tasks.database.clock import DatabaseNow, LeaseNow, from_now
from lambda_tasks.models import TaskReason, TaskRecord, TaskStatus
from lambda_tasks.outcomes import Progress
from lambda_tasks.stores.rows import waited
from lambda_tasks.wire import ids


def wait(held: QuerySet[TaskRecord], seconds: float) -> bool:
    """Release the claim on the record that a run holds, and say when its next delivery is expected."""
    waiting = held.update(
        claim=None,
        # A record without a claim can be claimed earlier, but is not lost before that.
        lease_until=from_now(seconds, clock=LeaseNow),
        waiting_since=Coalesce("waiting_since", DatabaseNow()),
    )
    return bool(waiting)


def progress(root_id: str, database: str) -> Progress | None:
    """Return the status of the newest record in a chain of retries, and when it ended."""
    chain = TaskRecord.objects.using(database).chain(root_id).order_by("-n_retries").annotate(now=DatabaseNow())
    for status, n_retries, ended, now in chain.values_list("status", "n_retries", "end_time", "now")[:1]:
        return Progress(str(status), n_retries, waited(ended, now))
    return None


def replace(message_id: str, *, task_name: str, queue: str, database: str) -> bool:
    """Insert the record of an invocation that must not run, unless it has a record."""
    record = TaskRecord(
        id=message_id,
        root_id=message_id,
        task_name=task_name,
        queue=queue,
        status=TaskStatus.SUCCESS,
        reason=TaskReason.REPLACED,
        start_time=DatabaseNow(),
        end_time=DatabaseNow(),
        claim=ids.new_message_id(),
    )
    records = TaskRecord.objects.using(database)
    # A refused INSERT would break the caller's transaction, so ask afterwards which row exists.
    records.bulk_create([record], ignore_conflicts=True)
    return bool(records.filter(pk=message_id, claim=record.claim).exists())
