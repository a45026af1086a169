"""The subcommand `tick`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from lambda_tasks.management.subcommands import Subcommand

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Tick(Subcommand):
    """Starts periodic tasks."""

    name = "tick"
    named = (("interval", "--interval"),)
    help = "Start the periodic tasks that are due: once, as for cron, or regularly with --interval."
    examples = ("tick", "tick --interval 30")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--interval", type=float, metavar="S", help="start due tasks every S seconds, until SIGTERM or Ctrl-C"
        )

    def run(self, *, interval: float | None, **_: Any) -> None:
        from lambda_tasks.maintenance import tick_until_stopped
        from lambda_tasks.operations.schedules import fire_due

        if interval is not None:
            tick_until_stopped(interval, report=self.output.line)
            return
        fired = fire_due()
        self.output.result(asdict(fired), str(fired))
        if fired.failed:
            raise CommandError(
                "Some periodic tasks could not be sent. The log contains the errors, and the next tick tries again."
            )
