"""The subcommand `relay`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from lambda_tasks.maintenance import relay_once, relay_until_stopped
from lambda_tasks.management.subcommands import Subcommand

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Relay(Subcommand):
    """Sends the due messages of the outbox."""

    name = "relay"
    named = (("interval", "--interval"),)
    help = (
        "Send the due messages of the outbox (delayed messages, and those that could not be sent before), and start "
        "periodic tasks."
    )
    examples = ("relay --once", "relay --interval 5")

    def add_arguments(self, parser: CommandParser) -> None:
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--once", action="store_true", help="exit after one attempt for each due message, as for cron")
        how.add_argument(
            "--interval",
            type=float,
            default=10,
            metavar="S",
            help="seconds between two checks of the outbox (default: %(default)s), until SIGTERM or Ctrl-C",
        )

    def run(self, *, once: bool, interval: float, **_: Any) -> None:
        self.warn_of_eager_mode()
        if not once:
            relay_until_stopped(interval, report=self.output.line)
            return
        relayed = relay_once()
        self.output.result(asdict(relayed), str(relayed))
        if relayed.failed:
            raise CommandError(
                "Some messages could not be sent. The log contains the errors, and the next relay tries again."
            )
