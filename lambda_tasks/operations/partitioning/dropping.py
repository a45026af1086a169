"""Drop the partitions of days whose records are all old enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from django.db import connections, router
from django.db.models import Q

from lambda_tasks.database import partitions
from lambda_tasks.database.dividing import divided
from lambda_tasks.database.partitions import Partition, quoted, rows
from lambda_tasks.exceptions import CannotPartition
from lambda_tasks.models import EnqueuedTask, OutboxMessage, TaskProgress, TaskRerun
from lambda_tasks.operations.outboxes import databases_of_outboxes
from lambda_tasks.operations.partitioning.steps import TABLE, alone, today
from lambda_tasks.recording.lines import get_logger

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = get_logger("lambda_tasks.maintenance")

#: The most messages of an outbox in another database that are compared with the records of a partition.
_MOST_COMPARED: Final = 1_000


@dataclass(slots=True)
class Dropped:
    """The partitions that were dropped, and the number of their records."""

    names: list[str] = field(default_factory=list)
    records: int = 0
    #: Matches the records of partitions that could not be locked, and that the next cleanup drops.
    busy: Q = field(default_factory=Q)


def drop_old(database: str, retention_days: int, *, attempts: int = 0) -> Dropped:
    """Drop each partition whose records all started more than `retention_days` days ago, have ended, and are not owed.

    A partition with a record that is RUNNING, that started later, or whose message is in an outbox stays. Do nothing
    if the table is not partitioned. After one that is still locked after some `attempts`, try no other.
    The function must not be called in a transaction.
    """
    dropped = Dropped()
    connection = connections[database]
    if not partitions.is_partitioned(connection, TABLE):
        return dropped
    over = today(connection) - timedelta(days=retention_days)
    for partition in partitions.partitions_of(connection, TABLE):
        if partition.ends is None or partition.ends.date() > over:
            continue
        try:
            number = None if dropped.busy else _drop(connection, partition, retention_days, attempts)
        except CannotPartition:
            logger.warning("The partition %s is locked by other sessions. The next cleanup drops it.", partition.name)
            dropped.busy = Q(pk__gte=partition.low, pk__lt=partition.high)
            continue
        if dropped.busy:
            dropped.busy |= Q(pk__gte=partition.low, pk__lt=partition.high)
        elif number is not None:
            dropped.names.append(partition.name)
            dropped.records += number
    return dropped


def _drop(connection: BaseDatabaseWrapper, partition: Partition, retention_days: int, attempts: int) -> int | None:
    """Drop a partition and return the number of its records, or None if it has records that must stay."""
    if _is_needed(connection, partition, retention_days):
        return None  # before anything is locked
    [(number,)] = rows(connection, f"SELECT count(*) FROM {quoted(connection, partition.name)}")

    def drop() -> int | None:
        name = quoted(connection, partition.name)
        # No worker can start or end an invocation of that day from now on.
        rows(connection, f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
        if _is_needed(connection, partition, retention_days):
            return None
        for model in (TaskProgress, TaskRerun, EnqueuedTask):
            if router.allow_migrate_model(connection.alias, model):
                details = quoted(connection, model._meta.db_table)
                rows(connection, f"DELETE FROM {details} USING {name} WHERE {details}.id = {name}.id")
        # Not CONCURRENTLY, which PostgreSQL refuses if there is a default partition.
        rows(connection, f"ALTER TABLE {quoted(connection, TABLE)} DETACH PARTITION {name}")
        rows(connection, f"DROP TABLE {name}")
        return int(number)

    return alone(connection, drop, attempts=attempts)


def _is_needed(connection: BaseDatabaseWrapper, partition: Partition, retention_days: int) -> bool:
    name = quoted(connection, partition.name)
    young = f"start_time IS NULL OR start_time >= clock_timestamp() - interval '{int(retention_days)} days'"
    for condition in (young, "status = 'RUNNING'"):
        if rows(connection, f"SELECT 1 FROM {name} WHERE {condition} LIMIT 1"):
            return True
    return any(_is_owed(connection, partition, alias) for alias in {connection.alias, *databases_of_outboxes()})


def _is_owed(connection: BaseDatabaseWrapper, partition: Partition, alias: str) -> bool:
    """Return whether a message of an outbox belongs to a record of the partition, or might belong to one."""
    if not router.allow_migrate_model(alias, OutboxMessage):
        return False
    kept: Any = OutboxMessage.objects.using(alias).filter(pk__gte=partition.low, pk__lt=partition.high)
    ids = [str(pk) for pk in kept.values_list("pk", flat=True)[: _MOST_COMPARED + 1]]
    if len(ids) > _MOST_COMPARED:
        return True
    name = quoted(connection, partition.name)
    found = f"SELECT 1 FROM {name} WHERE id = ANY(%s::uuid[]) LIMIT 1"
    return any(rows(connection, found, [some]) for some in divided(ids))
