"""Partition the table of records in a test, and restore it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections

from lambda_tasks.database import partitions
from lambda_tasks.database.partitions import rows
from lambda_tasks.operations.partitioning.converting import COPY, OLD, TRIGGER, convert
from lambda_tasks.operations.partitioning.steps import TABLE


@contextmanager
def partitioned(alias: str) -> Iterator[None]:
    """Partition the table of records for the `with` block. Its records are lost at the end."""
    convert(connections[alias])
    try:
        yield
    finally:
        restore(alias)


def restore(alias: str) -> None:
    """Undo a conversion, or a part of it."""
    connection = connections[alias]
    if partitions.kind_of(connection, OLD) is not None:
        rows(connection, f"DROP TABLE {TABLE} CASCADE")
        rows(connection, f"ALTER TABLE {OLD} RENAME TO {TABLE}")
        for name in partitions.indexes_of(connection, TABLE):
            rows(connection, f'ALTER INDEX "{name}" RENAME TO "{name.removesuffix("_old")}"')
        rows(connection, f"DELETE FROM {TABLE}")
    rows(connection, f"DROP TRIGGER IF EXISTS {TRIGGER} ON {TABLE}")
    rows(connection, f"DROP FUNCTION IF EXISTS {TRIGGER}() CASCADE")
    rows(connection, f"DROP TABLE IF EXISTS {COPY} CASCADE")
