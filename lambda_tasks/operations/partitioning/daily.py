"""What a partitioned table needs every day: the partitions of the next days, and the end of old ones."""

from __future__ import annotations

from functools import partial
from typing import Final

from django.db import ProgrammingError, connections

from lambda_tasks.database import partitions
from lambda_tasks.database.aside import run_aside
from lambda_tasks.database.private_names import blocks_of_test_case
from lambda_tasks.exceptions import CannotPartition
from lambda_tasks.operations.partitioning.creating import create_missing
from lambda_tasks.operations.partitioning.dropping import Dropped, drop_old
from lambda_tasks.operations.partitioning.steps import TABLE
from lambda_tasks.recording.lines import get_logger

logger = get_logger("lambda_tasks.maintenance")

#: How often a step is tried whose locks other sessions hold. The next cleanup tries again.
ATTEMPTS: Final = 5


def maintain(database: str, retention_days: int) -> Dropped:
    """Make the partitions of the next days, drop those that are over, and return what was dropped.

    Do nothing if the table of records is not partitioned. In a transaction, such as that of a task, do it on another
    connection, since the transaction would keep the locks until it ends; in that of a TestCase, do nothing.
    """
    connection = connections[database]
    if blocks_of_test_case(connection) or not partitions.is_partitioned(connection, TABLE):
        return Dropped()
    work = partial(_maintain, database, retention_days)
    return run_aside(work) if connection.in_atomic_block or not connection.get_autocommit() else work()


def _maintain(database: str, retention_days: int) -> Dropped:
    try:
        try:
            create_missing(connections[database], attempts=ATTEMPTS)
        except CannotPartition:
            logger.warning("The partitions of the next days were not made. The next cleanup makes them.", exc_info=True)
        return drop_old(database, retention_days, attempts=ATTEMPTS)
    except ProgrammingError:
        logger.warning(
            "The database refuses changes of partitions, so old records are deleted row by row. Run `manage.py "
            "lambda_tasks cleanup` as the role that owns the table.",
            exc_info=True,
        )
        return Dropped()
