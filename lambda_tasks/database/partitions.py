"""Tables of PostgreSQL that are partitioned by the time in their ids: names, bounds, and the statements that make them.

The ids are UUIDv7, which begin with a time, so a day is a range of ids. Two more partitions take the rest: ids without
a time, such as those of retries, are spread over all values, most of which lie far in the future.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

#: Ids from this year on contain no time. Of the ids that are spread over all values, 98.5 % lie there.
_FAR: Final = date(2100, 1, 1)
_MILLISECONDS_PER_DAY: Final = 86_400_000
_EPOCH: Final = date(1970, 1, 1)
_BOUNDS: Final = re.compile(r"FOR VALUES FROM \('?([0-9a-f-]{36}|MINVALUE)'?\) TO \('?([0-9a-f-]{36}|MAXVALUE)'?\)")
_INDEX: Final = re.compile(r"CREATE (UNIQUE )?INDEX .+? ON (?:ONLY )?.+? USING ")


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a table, and the ids in it: from `low`, and below `high`. None for the lowest and highest id."""

    name: str
    low: UUID | None
    high: UUID | None
    is_default: bool = False

    @property
    def ends(self) -> datetime | None:
        """The time at which its last id is made; None for a partition that is not that of a day."""
        if self.is_default or self.low is None or self.high is None:
            return None
        return datetime.fromtimestamp((self.high.int >> 80) / 1000, timezone.utc)

    @property
    def bounds(self) -> str:
        if self.is_default:
            return "DEFAULT"
        low = "MINVALUE" if self.low is None else f"'{self.low}'"
        high = "MAXVALUE" if self.high is None else f"'{self.high}'"
        return f"FOR VALUES FROM ({low}) TO ({high})"


def first_id(day: date) -> UUID:
    """Return the lowest id that is made on a day, by UTC."""
    return UUID(int=(day - _EPOCH).days * _MILLISECONDS_PER_DAY << 80)


def of_day(table: str, day: date) -> Partition:
    return Partition(f"{table}_{day:%Y%m%d}", first_id(day), first_id(day + timedelta(days=1)))


def of_days(table: str, first: date, last: date) -> list[Partition]:
    return [of_day(table, first + timedelta(days=number)) for number in range((last - first).days + 1)]


def of_rest(table: str) -> list[Partition]:
    """Return the partitions for ids without a time, and for ids of days that have no partition."""
    return [
        Partition(f"{table}_untimed", first_id(_FAR), None),
        Partition(f"{table}_default", None, None, is_default=True),
    ]


# The catalogue


def is_partitioned(connection: BaseDatabaseWrapper, table: str) -> bool:
    """Return whether a table exists, and is partitioned. No other database than PostgreSQL is asked."""
    return connection.vendor == "postgresql" and kind_of(connection, table) == "p"


def kind_of(connection: BaseDatabaseWrapper, table: str) -> str | None:
    """Return the kind of a relation: "r" for a table, "p" for a partitioned one; None if it does not exist."""
    found = rows(connection, "SELECT relkind FROM pg_class WHERE oid = to_regclass(%s)", [quoted(connection, table)])
    return None if not found else (kind.decode() if isinstance(kind := found[0][0], bytes) else str(kind))


def partitions_of(connection: BaseDatabaseWrapper, table: str) -> list[Partition]:
    """Return the partitions of a table, by name."""
    found = rows(
        connection,
        "SELECT relname, pg_get_expr(relpartbound, pg_class.oid) FROM pg_inherits "
        "JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = to_regclass(%s) ORDER BY relname",
        [quoted(connection, table)],
    )
    return [_parsed(name, bounds) for name, bounds in found]


def _parsed(name: str, bounds: str) -> Partition:
    match = _BOUNDS.fullmatch(bounds)
    if match is None:
        return Partition(name, None, None, is_default=bounds == "DEFAULT")
    low, high = match.groups()
    return Partition(
        name, None if low == "MINVALUE" else UUID(low), None if high == "MAXVALUE" else UUID(high), is_default=False
    )


def indexes_of(connection: BaseDatabaseWrapper, table: str) -> dict[str, tuple[str, bool]]:
    """Return the indexes of a table by name: the statement that makes each, and whether it is the primary key's."""
    found = rows(
        connection,
        "SELECT relname, pg_get_indexdef(indexrelid), indisprimary FROM pg_index "
        "JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = to_regclass(%s) ORDER BY relname",
        [quoted(connection, table)],
    )
    return {name: (definition, primary) for name, definition, primary in found}


def index_on(definition: str, name: str, table: str, *, concurrently: bool = False) -> str:
    """Return the statement that makes the same index under another name on another table. Both are quoted names."""
    how = "CONCURRENTLY " if concurrently else ""
    return _INDEX.sub(lambda match: f"CREATE {match[1] or ''}INDEX {how}{name} ON {table} USING ", definition, count=1)


def rows(connection: BaseDatabaseWrapper, sql: str, params: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, list(params) or None)
        return list(cursor.fetchall()) if cursor.description else []


def quoted(connection: BaseDatabaseWrapper, name: str) -> str:
    """Return a name as SQL writes it."""
    as_written: str = connection.ops.quote_name(name)
    return as_written


# Statements


def creation(connection: BaseDatabaseWrapper, parent: str, partition: Partition) -> Iterator[str]:
    """Yield the statements that make a partition.

    `CREATE TABLE … PARTITION OF` would lock the whole table against every reader; attaching locks only the default
    partition.
    """
    table, name = quoted(connection, parent), quoted(connection, partition.name)
    yield f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"
    yield f"ALTER TABLE {table} ATTACH PARTITION {name} {partition.bounds}"


def build_on_partitions(connection: BaseDatabaseWrapper, table: str, index: str) -> None:
    """Build an index of a partitioned table, which exists for the table itself only, on each partition.

    PostgreSQL cannot build the index of a partitioned table concurrently.
    """
    definition, _ = indexes_of(connection, table)[index]
    for partition in partitions_of(connection, table):
        name = f"{partition.name}_{index}"[:63]
        if name not in indexes_of(connection, partition.name):
            target = quoted(connection, partition.name)
            rows(connection, index_on(definition, quoted(connection, name), target, concurrently=True))
        rows(connection, f"ALTER INDEX {quoted(connection, index)} ATTACH PARTITION {quoted(connection, name)}")
