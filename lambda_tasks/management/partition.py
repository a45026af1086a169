"""The subcommand `partition`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.exceptions import CannotPartition
from lambda_tasks.management.subcommands import Subcommand, plural

if TYPE_CHECKING:
    from django.core.management.base import CommandParser
    from django.db.backends.base.base import BaseDatabaseWrapper

#: The days after today for which partitions are made, and the most of them.
DAYS: Final = 14
_MOST_DAYS: Final = 366


class Partition(Subcommand):
    """Partitions the table of records, and makes the partitions of the next days."""

    name = "partition"
    help = "Partition the table of records by day, on PostgreSQL, and make the partitions of the next days."
    examples = ("partition --dry-run", "partition", "partition --days 30")
    errors = (*Subcommand.errors, CannotPartition)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days",
            type=int,
            default=DAYS,
            metavar="N",
            help="make the partitions of today and of the N days after it, by UTC (default: %(default)s)",
        )
        parser.add_argument("--dry-run", action="store_true", help="only print the SQL")

    def run(self, *, days: int, dry_run: bool, **_: Any) -> None:
        from lambda_tasks.database.partitions import is_partitioned
        from lambda_tasks.operations.partitioning.steps import TABLE, connection_of_records

        if not 1 <= days <= _MOST_DAYS:
            raise ValueError(f"--days must be from 1 to {_MOST_DAYS}, not {days}.")
        connection = connection_of_records()
        if dry_run:
            self._plan(connection, days)
        elif is_partitioned(connection, TABLE):
            self._create(connection, days)
        else:
            self._convert(connection, days)

    def _plan(self, connection: BaseDatabaseWrapper, days: int) -> None:
        from lambda_tasks.database.partitions import creation, is_partitioned
        from lambda_tasks.operations.partitioning import converting, creating
        from lambda_tasks.operations.partitioning.steps import TABLE

        if is_partitioned(connection, TABLE):
            lacking = creating.missing(connection, ahead=days)
            statements = [sql for each in lacking for sql in creation(connection, TABLE, each)]
        else:
            statements = converting.plan(connection, ahead=days)
        nothing = "All of these partitions exist."
        self.output.result({"sql": statements}, "\n".join(f"{sql};" for sql in statements) or nothing)

    def _create(self, connection: BaseDatabaseWrapper, days: int) -> None:
        from lambda_tasks.operations.partitioning.creating import create_missing

        created = [each.name for each in create_missing(connection, ahead=days)]
        text = "\n".join(f"Created {name}." for name in created) or f"All partitions of the next {days} days exist."
        self.output.result({"converted": False, "created": created}, text)

    def _convert(self, connection: BaseDatabaseWrapper, days: int) -> None:
        from lambda_tasks.database.partitions import partitions_of, rows
        from lambda_tasks.operations.partitioning import converting
        from lambda_tasks.operations.partitioning.steps import TABLE

        [(estimate,)] = rows(connection, f"SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('{TABLE}')")
        copied = 0
        with self.output.progress("Copying records", total=max(estimate, 0)) as advance:

            def report(number: int) -> None:
                nonlocal copied
                copied += number
                advance(number)

            converted = converting.convert(connection, ahead=days, report=report)
        names = [each.name for each in partitions_of(connection, TABLE)]
        self.output.result(
            {"converted": converted, "copied": copied, "created": names, "old_table": converting.OLD},
            f"{plural(copied, 'record')} copied. {TABLE} has {plural(len(names), 'partition')}.\n"
            f"The old table is {converting.OLD}. Drop it when you no longer need it: DROP TABLE {converting.OLD};",
        )
