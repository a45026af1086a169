"""The rows of records: the statements of every task, and what they mean."""

from __future__ import annotations

from datetime import datetime
from functools import reduce
from operator import and_
from typing import Final
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DurationField, Q, QuerySet

from lambda_tasks.database.clock import DatabaseNow, FromNow, LeaseNow, from_now
from lambda_tasks.database.slots import Slot
from lambda_tasks.database.statements import OrmCall, Statement, insertion, update
from lambda_tasks.fitting import Recorded
from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.models import TaskReason, TaskRecord, TaskStatus
from lambda_tasks.outcomes import Lost

#: The fields of `Recorded`, in their order.
RECORDED: Final = ("task_name", "kwargs", "n_retries", "root_id")
#: The other fields of `Existing`, in their order.
EXISTING: Final = (
    *("status", "claim", "takeovers", "reason"),
    *("lease_until", "now", "waiting_since", "waits_until_now"),
)

#: Records of other versions and of fixtures lack a lease, so no worker holds them.
NO_LEASE: Final = Q(lease_until=None)
#: A worker released these records, or they wait for a lock, so the next delivery may claim them.
NOT_CLAIMED: Final = Q(claim=None)
#: Used instead of `status = RUNNING` for a record whose key is known, because no index matches it. If PostgreSQL's
#: statistics do not contain RUNNING records, it would use the index on status, and read an entry for each task that
#: has ended since the start of the oldest snapshot. One condition for each status, because SQLite fills a temporary
#: table for IN with three values.
NOT_ENDED: Final = reduce(and_, (~Q(status=status) for status in TaskStatus.values if status != TaskStatus.RUNNING))

_FIELDS: Final = {field.name: field for field in TaskRecord._meta.concrete_fields}


def held(database: str, message_id: str | Slot, claim: str | Slot) -> QuerySet[TaskRecord]:
    """Return the record only while `claim` holds it: this is the fence."""
    records: QuerySet[TaskRecord] = TaskRecord.objects.using(database).filter(NOT_ENDED, pk=message_id, claim=claim)
    return records


def ending(connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the UPDATE that records a SUCCESS."""
    return _ending(connection, "status", "result", "traceback")


def ending_with_reason(connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the UPDATE that records any other outcome."""
    return _ending(connection, "status", "result", "traceback", "reason")


def _ending(connection: BaseDatabaseWrapper, *names: str) -> Statement | OrmCall:
    columns = {name: _slot(name) for name in names}
    return update(held(connection.alias, _slot("id"), _slot("claim")), connection, end_time=DatabaseNow(), **columns)


def claiming(connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the INSERT of a claim."""
    columns = {name: _slot(name) for name in ("id", "task_name", "kwargs", "n_retries", "root_id", "queue", "claim")}
    times = {"start_time": DatabaseNow(), "lease_until": FromNow(Slot("lease", DurationField()), LeaseNow)}
    return insertion(TaskRecord(status=TaskStatus.RUNNING, **columns, **times), connection)


def claiming_asynchronously(connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the INSERT of a claim whose COMMIT does not wait for the disk.

    Both statements are sent to the server in one message, and so run in one transaction, to which SET LOCAL applies.
    """
    insert = claiming(connection)
    if isinstance(insert, OrmCall):
        return insert  # its COMMIT waits for the disk, which costs time alone
    return Statement(f"SET LOCAL synchronous_commit TO OFF; {insert.sql}", insert.params)


def takes_several_statements(connection: BaseDatabaseWrapper) -> bool:
    """Return whether one request can contain several statements, which is so on PostgreSQL only."""
    # With server-side parameter binding, a message can contain only one statement.
    bound_by_server = connection.settings_dict["OPTIONS"].get("server_side_binding", False)
    return connection.vendor == "postgresql" and not bound_by_server


def _slot(column: str) -> Slot:
    return Slot(column, _FIELDS[column])


@frozen
class Existing:
    """The existing record that a claim has found."""

    recorded: Recorded
    status: str
    claim: UUID | None
    takeovers: int
    reason: str
    lease_until: datetime | None
    now: datetime
    waiting_since: datetime | None
    #: The database's time by the clock of `waiting_since`.
    waits_until_now: datetime

    @property
    def cancelled_unclaimed(self) -> bool:
        """Whether cancelling has ended it while no worker held it. It may lack everything that the message contains."""
        return self.claim is None and self.status == TaskStatus.FAILED and self.reason == TaskReason.CANCELLED

    @property
    def seconds_left(self) -> float:
        """Seconds until another worker may take it over. A record that waits for its lock has a lease and no claim."""
        return (self.lease_until - self.now).total_seconds() if self.claim and self.lease_until else 0.0

    @property
    def waited(self) -> float:
        return waited(self.waiting_since, self.waits_until_now)

    @property
    def replaced(self) -> bool:
        return self.status == TaskStatus.SUCCESS and self.reason == TaskReason.REPLACED


def waited(since: datetime | None, now: datetime) -> float:
    """Return for how many seconds an invocation has waited for its lock."""
    return 0.0 if since is None else max((now - since).total_seconds(), 0.0)


def lost_of(record: TaskRecord, now: datetime) -> Lost:
    return Lost(
        message_id=str(record.pk),
        root_id=str(record.root_id or record.pk),
        task_name=record.task_name,
        kwargs=record.kwargs,
        n_retries=record.n_retries,
        takeovers=record.takeovers,
        queue=record.queue,
        claim=None if record.claim is None else str(record.claim),
        started_at=None if record.start_time is None else record.start_time.timestamp(),
        waited=waited(record.waiting_since, now) if record.waiting_since and record.claim is None else None,
    )


def expired_since(seconds: float) -> Q:
    """Return the condition that a lease expired, or a run without a lease started, more than `seconds` ago."""
    began = Q(start_time=None) | Q(start_time__lt=from_now(-seconds))
    return Q(lease_until__lt=from_now(-seconds, clock=LeaseNow)) | NO_LEASE & began
