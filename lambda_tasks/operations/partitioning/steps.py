"""What all steps that change the partitions have in common: the connection, and short waits for locks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from time import sleep
from typing import TYPE_CHECKING, Final, TypeVar

from django.db import OperationalError, connections, transaction

from lambda_tasks.database import partitions
from lambda_tasks.database.errors import is_lock_timeout
from lambda_tasks.database.partitions import quoted, rows
from lambda_tasks.exceptions import CannotPartition
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_store

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")

TABLE: Final = TaskRecord._meta.db_table
#: How long a statement waits for a lock, since other sessions wait behind it; how often it is tried, and the seconds
#: between two attempts.
LOCK_TIMEOUT: Final = "1s"
ATTEMPTS: Final = 30
PAUSE: Final = 0.5
#: The number of the advisory lock that lets one process at a time change the partitions.
_LOCK: Final = 0x6C746B70


def connection_of_records() -> BaseDatabaseWrapper:
    """Return the connection to the database of the records.

    Raise `CannotPartition` if its tables cannot be partitioned, or if the store does not write them.
    """
    store = get_store()
    if not store.keeps_records:
        raise CannotPartition(
            f"LAMBDA_TASKS_STORE must be ORMStore to partition its records, not {type(store).__name__}. Partition the "
            "table of your store by its own means."
        )
    connection = connections[store.database]
    if connection.vendor != "postgresql":
        raise CannotPartition(
            f"The database of the records must be PostgreSQL, and {store.database!r} is {connection.display_name}. "
            "Delete old records with `manage.py lambda_tasks cleanup` instead."
        )
    if partitions.kind_of(connection, TABLE) is None:
        raise CannotPartition(
            f"The database {store.database!r} has no table {TABLE}. Run `migrate lambda_tasks` first."
        )
    return connection


def today(connection: BaseDatabaseWrapper) -> date:
    """Return the day by the database's clock, in UTC."""
    [(seconds,)] = rows(connection, "SELECT extract(epoch FROM clock_timestamp())::bigint / 86400")
    return date.fromordinal(date(1970, 1, 1).toordinal() + int(seconds))


def alone(connection: BaseDatabaseWrapper, work: Callable[[], T], *, attempts: int = 0) -> T:
    """Call `work` in a transaction in which no other process changes the partitions, and return its result.

    Each statement waits for a lock for a second at most, since other sessions wait behind it. After that, the
    transaction is rolled back and tried again. Raise `CannotPartition` after `attempts`, by default `ATTEMPTS`.
    """
    attempts = attempts or ATTEMPTS
    for attempt in range(attempts):
        if attempt:
            sleep(PAUSE)
        try:
            with transaction.atomic(using=connection.alias):
                rows(connection, f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                rows(connection, f"SELECT pg_advisory_xact_lock({_LOCK})")
                return work()
        except OperationalError as error:
            if not is_lock_timeout(error):
                raise
            cause = error
    raise CannotPartition(
        f"The table {TABLE} must be free for a moment, and other sessions had locked it in all of {attempts} attempts. "
        "Look for long transactions in pg_stat_activity, and run the command again."
    ) from cause


def columns(connection: BaseDatabaseWrapper, table: str) -> list[str]:
    """Return the quoted columns of a table, in their order."""
    found = rows(
        connection,
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped "
        "ORDER BY attnum",
        [quoted(connection, table)],
    )
    return [quoted(connection, name) for (name,) in found]
