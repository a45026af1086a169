"""Make the table of records a partitioned one while tasks run.

The rows are copied into a partitioned table, in which a trigger repeats every write meanwhile. So both tables have the
same rows at each commit, and a short transaction exchanges them. A conversion that is interrupted continues where it
stopped, and several at the same time do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lambda_tasks.database import partitions
from lambda_tasks.database.partitions import Partition, quoted, rows
from lambda_tasks.exceptions import CannotPartition
from lambda_tasks.operations.partitioning import creating
from lambda_tasks.operations.partitioning.steps import TABLE, alone, columns, today

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

#: The name of the partitioned table before the exchange, that of the other one after it, and that of the trigger.
COPY: Final = f"{TABLE}_partitioned"
OLD: Final = f"{TABLE}_unpartitioned"
TRIGGER: Final = f"{TABLE}_copy"
#: The number of records that a statement copies.
BATCH_SIZE: Final = 5_000
#: The most days before today for which partitions are made. Older records go to the default partition.
MOST_HISTORY: Final = 31
_LOWEST: Final = "00000000-0000-0000-0000-000000000000"
#: The objects that would be left behind with the old table: a name for each, and the query that finds them.
_OBSTACLES: Final = (
    (
        "foreign keys",
        "SELECT conrelid::regclass || '.' || conname FROM pg_constraint WHERE confrelid = to_regclass(%s)",
    ),
    (
        "views",
        (
            "SELECT DISTINCT ev_class::regclass::text FROM pg_rewrite JOIN pg_depend ON objid = pg_rewrite.oid "
            "WHERE refobjid = to_regclass(%s) AND ev_class <> refobjid"
        ),
    ),
    (
        "triggers",
        (
            "SELECT tgname::text FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND NOT tgisinternal "
            f"AND tgname <> '{TRIGGER}'"
        ),
    ),
    ("policies", "SELECT polname::text FROM pg_policy WHERE polrelid = to_regclass(%s)"),
)


def convert(
    connection: BaseDatabaseWrapper,
    *,
    ahead: int = 0,
    report: Callable[[int], object] = lambda number: None,
) -> bool:
    """Partition the table, with `ahead` days ahead, by default `DAYS_AHEAD`. Return False if it already is partitioned.

    `report` is called with the number of records of each batch. Raise `CannotPartition` if other objects of the
    database depend on the table, or if it cannot be locked for a moment. The old table stays under the name `OLD`.
    """
    if partitions.is_partitioned(connection, TABLE):
        return False
    refuse_obstacles(connection)
    if partitions.kind_of(connection, COPY) is None:
        alone(connection, lambda: _run_if(connection, lambda: preparation(connection, ahead=ahead)))
    for number in _copied(connection):
        report(number)
    _refuse_difference(connection)
    alone(connection, lambda: _run_if(connection, lambda: exchange(connection)))
    return True


def _run_if(connection: BaseDatabaseWrapper, statements: Callable[[], list[str]]) -> None:
    """Run the statements unless another process has done the work."""
    if not partitions.is_partitioned(connection, TABLE):
        for statement in statements():
            rows(connection, statement)


def refuse_obstacles(connection: BaseDatabaseWrapper) -> None:
    """Raise `CannotPartition` if anything that is not the library's depends on the table."""
    for what, query in _OBSTACLES:
        if names := [str(name) for (name,) in rows(connection, query, [quoted(connection, TABLE)])]:
            raise CannotPartition(
                f"The table {TABLE} must have no {what} of other tables or programs, and has {', '.join(names)}. Drop "
                "them, and create them again for the partitioned table if PostgreSQL allows that."
            )
    if partitions.kind_of(connection, OLD) is not None:
        raise CannotPartition(
            f"The table {OLD}, which an earlier conversion has left, must not exist. Drop it: DROP TABLE {OLD}"
        )


def initial_partitions(connection: BaseDatabaseWrapper, ahead: int) -> list[Partition]:
    now = today(connection)
    [(age,)] = rows(
        connection,
        "SELECT ceil(extract(epoch FROM clock_timestamp() - min(start_time)) / 86400)::int FROM "
        + quoted(connection, TABLE),
    )
    first = now - timedelta(days=min(max(age or 0, 0), MOST_HISTORY))
    last = now + timedelta(days=ahead or creating.DAYS_AHEAD)
    return [*partitions.of_rest(TABLE), *partitions.of_days(TABLE, first, last)]


def preparation(connection: BaseDatabaseWrapper, *, ahead: int = 0) -> list[str]:
    """Return the statements that make the partitioned table and let a trigger write into it."""
    table, copy = quoted(connection, TABLE), quoted(connection, COPY)
    statements = [
        f"CREATE TABLE {copy} (LIKE {table} INCLUDING ALL EXCLUDING INDEXES) PARTITION BY RANGE (id)",
        *_indexes(connection),
        *_grants(connection),
    ]
    for partition in initial_partitions(connection, ahead):
        statements += partitions.creation(connection, COPY, partition)
    names = columns(connection, TABLE)
    listed, new = ", ".join(names), ", ".join(f"NEW.{name}" for name in names)
    changed = ", ".join(f"{name} = EXCLUDED.{name}" for name in names if name != quoted(connection, "id"))
    statements += [
        (
            f"CREATE OR REPLACE FUNCTION {TRIGGER}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF TG_OP = 'DELETE' THEN DELETE FROM {copy} WHERE id = OLD.id; ELSE "
            f"INSERT INTO {copy} ({listed}) VALUES ({new}) ON CONFLICT (id) DO UPDATE SET {changed}; END IF; "
            "RETURN NULL; END $$"
        ),
        (
            f"CREATE TRIGGER {TRIGGER} AFTER INSERT OR UPDATE OR DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION {TRIGGER}()"
        ),
    ]
    return statements


def _new_name(index: str) -> str:
    return f"{index}_new"


def _indexes(connection: BaseDatabaseWrapper) -> Iterator[str]:
    copy = quoted(connection, COPY)
    for name, (definition, is_primary) in partitions.indexes_of(connection, TABLE).items():
        new = quoted(connection, _new_name(name))
        if is_primary:
            yield f"ALTER TABLE {copy} ADD CONSTRAINT {new} PRIMARY KEY (id)"
        else:
            yield partitions.index_on(definition, new, copy)


def _grants(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """Yield the statements that give other roles the same permissions for the new table."""
    granted = rows(
        connection,
        "SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END "
        "FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = to_regclass(%s) AND grantee <> relowner",
        [quoted(connection, TABLE)],
    )
    for privilege, role in granted:
        yield f"GRANT {privilege} ON {quoted(connection, COPY)} TO {role}"


def copying(connection: BaseDatabaseWrapper) -> str:
    """Return the statement that copies the records after the id that it is executed with.

    FOR KEY SHARE waits for a transaction that deletes a record, and lets those continue that change it.
    """
    table, copy = quoted(connection, TABLE), quoted(connection, COPY)
    listed = ", ".join(columns(connection, TABLE))
    return (
        f"WITH batch AS MATERIALIZED (SELECT {listed} FROM {table} WHERE id > %s ORDER BY id LIMIT {BATCH_SIZE} "
        f"FOR KEY SHARE), copied AS (INSERT INTO {copy} ({listed}) SELECT {listed} FROM batch "
        "ON CONFLICT (id) DO NOTHING) SELECT id, count(*) OVER () FROM batch ORDER BY id DESC LIMIT 1"
    )


def _copied(connection: BaseDatabaseWrapper) -> Iterator[int]:
    """Copy the records in batches, and yield the size of each. Records that exist in the copy are left as they are."""
    last, statement = _LOWEST, copying(connection)
    while not partitions.is_partitioned(connection, TABLE):
        found = alone(connection, lambda after=last: rows(connection, statement, [after]))  # type: ignore[misc]
        if not found:
            return
        [(last, number)] = found
        yield int(number)


def _refuse_difference(connection: BaseDatabaseWrapper) -> None:
    """Raise `CannotPartition` if a record was not copied, which a trigger that was disabled could cause."""
    if partitions.is_partitioned(connection, TABLE):
        return
    table, copy = quoted(connection, TABLE), quoted(connection, COPY)
    # One statement has one snapshot of both tables, in which each commit has changed both or neither.
    [(number,)] = rows(
        connection,
        f"SELECT count(*) FROM {table} one WHERE NOT EXISTS (SELECT 1 FROM {copy} two WHERE two.id = one.id)",
    )
    if number:
        raise CannotPartition(
            f"All records must be in {COPY}, and {number:,} are not. Drop that table and the trigger {TRIGGER} of "
            f"{TABLE}, and run the command again."
        )


def exchange(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the statements that put the partitioned table under the name of the other one, and rename the indexes."""
    table, copy, old = (quoted(connection, name) for name in (TABLE, COPY, OLD))
    statements = [
        f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
        f"DROP TRIGGER {TRIGGER} ON {table}",
        f"DROP FUNCTION {TRIGGER}()",
        f"ALTER TABLE {table} RENAME TO {old}",
        f"ALTER TABLE {copy} RENAME TO {table}",
    ]
    for name in partitions.indexes_of(connection, TABLE):
        current, kept, new = (quoted(connection, each) for each in (name, f"{name}_old", _new_name(name)))
        statements += [f"ALTER INDEX {current} RENAME TO {kept}", f"ALTER INDEX {new} RENAME TO {current}"]
    return statements


def plan(connection: BaseDatabaseWrapper, *, ahead: int = 0) -> list[str]:
    """Return all statements of the conversion. PostgreSQL executes the one that copies until nothing is left."""
    refuse_obstacles(connection)
    return [*preparation(connection, ahead=ahead), copying(connection).replace("%s", "…"), *exchange(connection)]
