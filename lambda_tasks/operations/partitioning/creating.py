"""Make the partitions of the next days."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lambda_tasks.database import partitions
from lambda_tasks.database.partitions import Partition, quoted, rows
from lambda_tasks.exceptions import CannotPartition
from lambda_tasks.operations.partitioning.steps import TABLE, alone, columns, today
from lambda_tasks.recording.lines import get_logger

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = get_logger("lambda_tasks.maintenance")

#: Days for which partitions are made ahead.
DAYS_AHEAD: Final = 14
#: The most records that are moved from the default partition into a new one, while the default partition is locked.
MOST_MOVED: Final = 10_000


def missing(connection: BaseDatabaseWrapper, *, ahead: int = 0) -> list[Partition]:
    """Return the partitions that the partitioned table lacks: of today, and of `ahead` days after it, by UTC.

    By default, these are `DAYS_AHEAD` days."""
    names = {each.name for each in partitions.partitions_of(connection, TABLE)}
    first = today(connection)
    last = first + timedelta(days=ahead or DAYS_AHEAD)
    return [day for day in partitions.of_days(TABLE, first, last) if day.name not in names]


def create_missing(connection: BaseDatabaseWrapper, *, ahead: int = 0, attempts: int = 0) -> list[Partition]:
    """Create the partitions of the next days, and return those that were created. Any number of processes may do it.

    `attempts` is the number of attempts to lock the table, as of `alone()`.

    A day that began without a partition may have too many records in the default partition. It stays without one,
    with a WARNING, and its records are deleted one by one.
    """
    created = []
    for partition in missing(connection, ahead=ahead):
        try:
            if alone(connection, lambda partition=partition: _create(connection, partition), attempts=attempts):  # type: ignore[misc]
                created.append(partition)
        except _TooManyToMove:
            logger.warning(
                "The day of %s began without a partition, and has more than %d records, which the cleanup will delete "
                "one by one. Run `manage.py lambda_tasks partition` every day.",
                partition.name,
                MOST_MOVED,
            )
    return created


class _TooManyToMove(CannotPartition):
    """The default partition has too many records of a day."""


def _create(connection: BaseDatabaseWrapper, partition: Partition) -> bool:
    if partition.name in {each.name for each in partitions.partitions_of(connection, TABLE)}:
        return False  # another process was faster
    create, attach = partitions.creation(connection, TABLE, partition)
    rows(connection, create)
    _move_from_default(connection, partition)
    rows(connection, attach)
    return True


def _move_from_default(connection: BaseDatabaseWrapper, partition: Partition) -> None:
    """Move the records of a new partition out of the default partition, which PostgreSQL requires."""
    default = next((each.name for each in partitions.partitions_of(connection, TABLE) if each.is_default), None)
    if default is None:
        return
    ids = [str(partition.low), str(partition.high)]
    among = f"FROM {quoted(connection, default)} WHERE id >= %s AND id < %s"
    if not rows(connection, f"SELECT 1 {among} LIMIT 1", ids):
        return
    [(number,)] = rows(connection, f"SELECT count(*) FROM (SELECT 1 {among} LIMIT {MOST_MOVED + 1}) few", ids)
    if number > MOST_MOVED:
        raise _TooManyToMove
    # From now on, no record is added: attaching would lock it anyway.
    rows(connection, f"LOCK TABLE {quoted(connection, default)} IN ACCESS EXCLUSIVE MODE")
    names = ", ".join(columns(connection, TABLE))
    rows(
        connection,
        f"WITH moved AS (DELETE {among} RETURNING {names}) "
        f"INSERT INTO {quoted(connection, partition.name)} ({names}) SELECT {names} FROM moved",
        ids,
    )
