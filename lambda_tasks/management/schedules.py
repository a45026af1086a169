"""The subcommand `schedules`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.exceptions import DuplicateTask
from lambda_tasks.management.output import utc
from lambda_tasks.management.subcommands import Subcommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.operations.schedules import Status

_HEADINGS: Final = ("schedule", "last run", "status", "next run")


class Schedules(Subcommand):
    """Lists and controls schedules."""

    name = "schedules"
    help = "List the schedules of periodic tasks, or pause, resume or run one of them."
    examples = ("schedules", "schedules --pause shop.tasks.report", "schedules --run shop.tasks.report")
    errors = (*Subcommand.errors, DuplicateTask)

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group()
        key = "KEY: a schedule in the list, or the name of a task for all of its schedules"
        what.add_argument("--pause", metavar="KEY", help=f"omit the runs of a schedule until --resume ({key})")
        what.add_argument("--resume", metavar="KEY", help="continue a paused schedule with its next run")
        what.add_argument("--run", metavar="KEY", dest="run_key", help="run the task of a schedule now, additionally")

    def run(self, *, pause: str | None, resume: str | None, run_key: str | None, **_: Any) -> None:
        from lambda_tasks.operations import schedules

        if pause is not None:
            self._done("Paused", schedules.pause(pause))
        elif resume is not None:
            self._done("Resumed", schedules.resume(resume))
        elif run_key is not None:
            sent: list[dict[str, object]] = []
            for handle in schedules.run_now(run_key):
                sent.append({"id": handle.message_id, "created": handle.created})
                if not self.output.as_json:
                    self.output.line(f"{'Sent' if handle.created else 'Waits or runs already'}: {handle.message_id}")
            self.output.result(sent)
        else:
            listed = schedules.list_schedules()
            self.output.result([_fields(status) for status in listed], None if listed else "No task has a schedule.")
            if listed:
                self.output.table(_HEADINGS, [_row(status) for status in listed])

    def _done(self, what: str, keys: Sequence[str]) -> None:
        self.output.result({what.lower(): list(keys)}, "\n".join(f"{what}: {key}" for key in keys))


def _fields(status: Status) -> dict[str, object]:
    return {
        "key": status.key,
        "task": status.task_name,
        "schedule": status.description,
        "queue": status.queue,
        "paused": status.paused,
        "last_run": utc(status.last),
        "last_status": status.last_status,
        "next_run": utc(status.next),
    }


def _row(status: Status) -> tuple[str | None, ...]:
    following = "paused" if status.paused else (utc(status.next) or "never")
    return status.key, utc(status.last), status.last_status, following
