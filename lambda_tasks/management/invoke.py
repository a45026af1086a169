"""The subcommand `invoke`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError
from django.utils.module_loading import import_string

from lambda_tasks.exceptions import InvalidEvent
from lambda_tasks.management.subcommands import Subcommand, plural
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.ids import new_message_id

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler reads of Lambda's context: the id of the invocation, and how much time is left."""

    deadline: float
    aws_request_id: str = field(default_factory=new_message_id)
    function_name: str = "lambda_tasks invoke"

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until the invocation would be ended."""
        return max(round((self.deadline - time.monotonic()) * 1000), 0)


class Invoke(Subcommand):
    """Calls the handler with an event."""

    name = "invoke"
    help = (
        "Call the Lambda function's handler in this process with an event, such as one that was copied from a log, and "
        "print its response. No message is received or deleted."
    )
    examples = (
        "invoke event.json",
        """echo '{"lambda_tasks": "maintenance"}' | python manage.py lambda_tasks invoke -""",
    )
    statuses = (
        "exit status:\n  0  the handler has settled all messages of the event\n"
        "  1  it has raised an error, or its response lists messages that must stay on their queue"
    )
    errors = (*Subcommand.errors, InvalidEvent)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("event", metavar="FILE", help="a file with the event as JSON; - for standard input")
        parser.add_argument(
            "--handler",
            default="lambda_tasks.handler.handler",
            metavar="PATH",
            help="the handler (default: %(default)s)",
        )
        parser.add_argument(
            "--function-timeout",
            type=float,
            metavar="S",
            help="the seconds that the handler believes to have; it is not ended (default: LAMBDA_TASKS_MAX_TIMEOUT, "
            "which is 900 by default)",
        )

    def run(self, *, event: str, handler: str, function_timeout: float | None, **_: Any) -> None:
        content = _read(event)
        try:
            function = import_string(handler)
        except ImportError as error:
            raise CommandError(f"--handler must be the dotted path of a function, not {handler!r}: {error}") from error
        seconds = app_settings.max_timeout if function_timeout is None else function_timeout
        response = function(content, Context(time.monotonic() + seconds))
        self.output.result(response, json.dumps(response, indent=2, default=str))
        failures = response.get("batchItemFailures") if isinstance(response, dict) else None
        if failures:
            raise CommandError(
                f"{plural(len(failures), 'message')} of the event would stay on the queue. The log says why."
            )


def _read(path: str) -> Any:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise CommandError(
            f"The event cannot be read: {error}. Pass the path of a file, or - for standard input."
        ) from error
    except ValueError as error:
        raise CommandError(f"The event must be JSON, as Lambda logs it: {error}.") from error
