"""The subcommand `reap`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from lambda_tasks.management.subcommands import Subcommand
from lambda_tasks.operations.reaping import reap

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Reap(Subcommand):
    """Recovers lost tasks."""

    name = "reap"
    named = (("older_than", "--older-than"),)
    help = "Recover lost tasks, whose record is RUNNING although no worker runs them."
    examples = ("reap", "reap --older-than 7200")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            type=int,
            metavar="S",
            help="seconds after which a task counts as lost, from the end of its lease (default: 6 times "
            "LAMBDA_TASKS_MAX_TIMEOUT and 5 minutes, which is the longest visibility timeout that a queue should have)",
        )

    def run(self, *, older_than: int | None, **_: Any) -> None:
        self.warn_of_eager_mode()
        reaped = reap(older_than=older_than)
        self.output.result(asdict(reaped), f"{reaped.sent_again} sent again, {reaped.failed} failed.")
        if reaped.unsent:
            raise CommandError(
                f"{reaped.unsent} could not be sent. The records stay RUNNING, and the log contains the errors."
            )
