"""The subcommand `cleanup`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lambda_tasks.management.subcommands import Subcommand, plural

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Cleanup(Subcommand):
    """Deletes the records of old tasks."""

    name = "cleanup"
    named = (("retention_days", "--days"),)
    help = "Delete the records of old tasks."
    examples = ("cleanup --days 30 --dry-run", "cleanup --days 30")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days",
            type=int,
            default=7,
            metavar="N",
            help="delete records that started more than N days ago (default: %(default)s)",
        )
        parser.add_argument("--dry-run", action="store_true", help="only count the records that would be deleted")

    def run(self, *, days: int, dry_run: bool, **_: Any) -> None:
        from lambda_tasks.tasks import count_old_records, delete_old_records

        number = count_old_records(retention_days=days) if dry_run or self.output.is_terminal else None
        if dry_run:
            assert number is not None
            self.output.result({"records": number, "deleted": False}, f"{plural(number, 'record')} would be deleted.")
            return
        with self.output.progress("Deleting records", total=number) as advance:
            number = delete_old_records(days, report=advance)
        self.output.result({"records": number, "deleted": True}, f"{plural(number, 'record')} deleted.")
