"""The subcommands `tick` and `schedules` of `manage.py lambda_tasks`."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.operations.schedules import Status

    Print = Callable[[str], object]

#: The headings of the table, and the fields of JSON in the same order.
_HEADINGS: Final = ("schedule", "last run", "status", "next run")


def add_tick(add: Callable[..., CommandParser], *, print_line: Print) -> None:
    """Add the subcommand `tick`."""
    parser = add("tick", help="Start the periodic tasks that are due: once, as for cron, or regularly with --interval.")
    parser.add_argument(
        "--interval", type=float, metavar="S", help="start due tasks every S seconds, until SIGTERM or Ctrl-C"
    )

    def run(*, interval: float | None, **_: Any) -> None:
        from lambda_tasks.maintenance import tick_until_stopped
        from lambda_tasks.operations.schedules import fire_due

        try:
            if interval is not None:
                tick_until_stopped(interval, report=print_line)
                return
            fired = fire_due()
        except (ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from error
        print_line(str(fired))
        if fired.failed:
            raise CommandError(
                "Some periodic tasks could not be sent. The log contains the errors, and the next tick tries again."
            )

    parser.set_defaults(run=run)


def add_schedules(add: Callable[..., CommandParser], *, print_line: Print) -> None:
    """Add the subcommand `schedules`."""
    parser = add("schedules", help="List the schedules of periodic tasks, or pause, resume or run one of them.")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="(default: %(default)s)")
    what = parser.add_mutually_exclusive_group()
    key = "KEY: a schedule in the list, or the name of a task for all of its schedules"
    what.add_argument("--pause", metavar="KEY", help=f"omit the runs of a schedule until --resume ({key})")
    what.add_argument("--resume", metavar="KEY", help="continue a paused schedule with its next run")
    what.add_argument("--run", metavar="KEY", dest="run_key", help="run the task of a schedule now, additionally")

    def run(*, format: str, pause: str | None, resume: str | None, run_key: str | None, **_: Any) -> None:
        from lambda_tasks.exceptions import DuplicateTask
        from lambda_tasks.operations import schedules

        try:
            if pause is not None:
                _print_each(print_line, "Paused", schedules.pause(pause))
            elif resume is not None:
                _print_each(print_line, "Resumed", schedules.resume(resume))
            elif run_key is not None:
                for handle in schedules.run_now(run_key):
                    _print_each(print_line, "Sent" if handle.created else "Waits or runs already", [handle.message_id])
            else:
                listed = schedules.list_schedules()
                print_line(_as_json(listed) if format == "json" else _as_table(listed))
        except (ImproperlyConfigured, ValueError, DuplicateTask) as error:
            raise CommandError(str(error)) from error

    parser.set_defaults(run=run)


def _print_each(print_line: Print, done: str, names: Sequence[str]) -> None:
    for name in names:
        print_line(f"{done}: {name}")


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
