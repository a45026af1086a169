"""The subcommand `cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lambda_tasks.handles import TaskHandle
from lambda_tasks.management.subcommands import Subcommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.management.base import CommandParser


class Cancel(Subcommand):
    """Cancels tasks."""

    name = "cancel"
    help = "Cancel tasks: those that wait never run, and those that run are asked to end."
    examples = ("cancel 019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10",)
    errors = (*Subcommand.errors, NotImplementedError)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("ids", nargs="+", metavar="ID", help="the message id of a task, or of any of its retries")

    def run(self, *, ids: Sequence[str], **_: Any) -> None:
        done: list[dict[str, object]] = []
        for message_id in ids:
            cancelled = TaskHandle(message_id).cancel()
            done.append({"id": message_id, "cancelled": cancelled})
            if not self.output.as_json:
                self.output.line(f"{message_id}: {'cancelled' if cancelled else 'has already ended'}")
        self.output.result(done)
