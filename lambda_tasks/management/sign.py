"""The subcommand `sign`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from lambda_tasks.management.subcommands import Subcommand
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.signing import signed

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Sign(Subcommand):
    """Signs the body of a message that another program sends."""

    name = "sign"
    help = (
        "Print the body of a message with a signature, for a program that always sends the same message, such as "
        "EventBridge Scheduler. A program that reads it can send it again."
    )
    examples = ("""sign '{"task_name": "shop.tasks.send_report"}'""",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("body", metavar="BODY", help="the body of the message, without attributes")

    def run(self, *, body: str, **_: Any) -> None:
        keys = app_settings.signing_keys
        if not keys:
            raise CommandError("LAMBDA_TASKS_SIGNING_KEYS is empty. Add a key to the Django settings.")
        call = Invocation.of_body(body)
        text = signed(call.to_body(), {}, keys[0])
        self.output.result(json.loads(text), text)
