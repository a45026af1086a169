"""The subcommand `cleanup`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lambda_tasks.management.subcommands import Subcommand, plural

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Cleanup(Subcommand):
    """Deletes the records of old tasks."""

    name = "cleanup"
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
        from lambda_tasks.tasks import cleanup_task_records, count_old_records

        work, did = (count_old_records, "would be deleted") if dry_run else (cleanup_task_records, "deleted")
        number = work(retention_days=days)
        self.output.line(f"{plural(number, 'record')} {did}.")
