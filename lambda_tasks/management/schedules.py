"""The subcommand `schedules`."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.exceptions import DuplicateTask
from lambda_tasks.management.subcommands import Subcommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.operations.schedules import Status

#: The headings of the table, and the fields of JSON in the same order.
_HEADINGS: Final = ("schedule", "last run", "status", "next run")


class Schedules(Subcommand):
    """Lists and controls schedules."""

    name = "schedules"
    help = "List the schedules of periodic tasks, or pause, resume or run one of them."
    examples = ("schedules", "schedules --pause shop.tasks.report", "schedules --run shop.tasks.report")
    errors = (*Subcommand.errors, DuplicateTask)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=("table", "json"), default="table", help="(default: %(default)s)")
        what = parser.add_mutually_exclusive_group()
        key = "KEY: a schedule in the list, or the name of a task for all of its schedules"
        what.add_argument("--pause", metavar="KEY", help=f"omit the runs of a schedule until --resume ({key})")
        what.add_argument("--resume", metavar="KEY", help="continue a paused schedule with its next run")
        what.add_argument("--run", metavar="KEY", dest="run_key", help="run the task of a schedule now, additionally")

    def run(self, *, format: str, pause: str | None, resume: str | None, run_key: str | None, **_: Any) -> None:
        from lambda_tasks.operations import schedules

        if pause is not None:
            self._print_each("Paused", schedules.pause(pause))
        elif resume is not None:
            self._print_each("Resumed", schedules.resume(resume))
        elif run_key is not None:
            for handle in schedules.run_now(run_key):
                self._print_each("Sent" if handle.created else "Waits or runs already", [handle.message_id])
        else:
            listed = schedules.list_schedules()
            self.output.line(_as_json(listed) if format == "json" else _as_table(listed))

    def _print_each(self, done: str, names: Sequence[str]) -> None:
        for name in names:
            self.output.line(f"{done}: {name}")


def _as_json(listed: Sequence[Status]) -> str:
    shown = [
        {
            "key": status.key,
            "task": status.task_name,
            "schedule": status.description,
            "queue": status.queue,
            "paused": status.paused,
            "last_run": _utc(status.last),
            "last_status": status.last_status,
            "next_run": _utc(status.next),
        }
        for status in listed
    ]
    return json.dumps(shown, indent=2)


def _as_table(listed: Sequence[Status]) -> str:
    if not listed:
        return "No task has a schedule."
    rows = [_HEADINGS, *map(_row, listed)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(status: Status) -> tuple[str, ...]:
    following = "paused" if status.paused else (_utc(status.next) or "never")
    return status.key, _utc(status.last) or "-", status.last_status or "-", following


def _utc(moment: int | None) -> str | None:
    return None if moment is None else f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
