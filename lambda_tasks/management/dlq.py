"""The subcommand `dlq`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from lambda_tasks.management.output import utc
from lambda_tasks.management.subcommands import Subcommand, plural
from lambda_tasks.registry import discover_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.operations.dead_letters import DeadLetter, DeadLetterQueue


class DeadLetters(Subcommand):
    """Looks at dead letter queues, sends their messages back, or deletes them."""

    name = "dlq"
    help = (
        "Look at the messages in the dead letter queues (peek), send them back to the queues that they came from "
        "(redrive), or delete them (purge)."
    )
    examples = ("dlq peek", "dlq redrive --queue default", "dlq redrive --limit 10", "dlq purge --queue default --yes")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=("peek", "redrive", "purge"), help="what to do")
        parser.add_argument(
            "--queue",
            action="append",
            default=[],
            metavar="NAME",
            help="only the dead letter queue of this queue in LAMBDA_TASKS_QUEUES; can be repeated (default: all)",
        )
        parser.add_argument(
            "--limit",
            type=int,
            metavar="N",
            help="at most N messages of each dead letter queue (default: 10 for peek, otherwise all)",
        )
        parser.add_argument("--arguments", action="store_true", help="peek: also print the tasks' arguments")
        parser.add_argument("--yes", action="store_true", help="purge: do not ask for a confirmation")

    def run(
        self, *, action: str, queue: Sequence[str], limit: int | None, arguments: bool, yes: bool, **_: Any
    ) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        from lambda_tasks.operations.dead_letters import DeadLetterError, dead_letter_queues

        if limit is not None and limit < 1:
            raise ValueError(f"--limit must be 1 or more, not {limit}.")
        try:
            found = dead_letter_queues(queue)
            if not found:
                raise CommandError(
                    "None of the queues has a dead letter queue. `lambda_tasks doctor` says how to add one."
                )
            if action == "peek":
                self._peek(found, limit or 10, arguments)
            elif action == "redrive":
                self._redrive(found, limit)
            else:
                self._purge(found, yes)
        except (DeadLetterError, BotoCoreError, ClientError) as error:
            raise CommandError(str(error)) from error

    def _peek(self, queues: Sequence[DeadLetterQueue], limit: int, arguments: bool) -> None:
        from lambda_tasks.operations.dead_letters import peek

        discover_tasks()  # whose sensitive arguments are masked
        letters = [letter for queue in queues for letter in peek(queue, limit=limit)]
        hidden = set() if arguments else {"kwargs", "stored"}
        fields = [{key: value for key, value in asdict(each).items() if key not in hidden} for each in letters]
        names = ", ".join(queue.name for queue in queues)
        self.output.result(fields, None if letters else f"No messages in {names}.")
        if letters:
            headings = ("queue", "id", "task", "retry", "sent", "receives", *(("arguments",) if arguments else ()))
            self.output.table(headings, [_row(letter, arguments) for letter in letters])

    def _redrive(self, queues: Sequence[DeadLetterQueue], limit: int | None) -> None:
        from lambda_tasks.operations.dead_letters import redrive

        results: list[dict[str, object]] = []
        errors: list[str] = []
        for queue in queues:
            with self.output.progress(f"Moving messages of {queue.name}", total=queue.count) as advance:
                moved = redrive(queue, limit=limit, report=advance)
            results.append({"queue": queue.name, "moved": moved.number, "errors": moved.errors})
            errors += moved.errors
            if not self.output.as_json:
                self.output.line(f"{queue.name}: {plural(moved.number, 'message')} sent back.")
            for error in moved.errors:
                self.output.warn(f"{queue.name}: {error}")
        self.output.result(results)
        if errors:
            raise CommandError(f"{plural(len(errors), 'error')}. Messages that were not sent back stay where they are.")

    def _purge(self, queues: Sequence[DeadLetterQueue], yes: bool) -> None:
        from lambda_tasks.operations.dead_letters import purge

        counted = {queue.name: queue.count for queue in queues}
        question = "; ".join(f"{name}: {plural(number, 'message')}" for name, number in counted.items())
        if not yes and not self._confirmed(f"This deletes all messages ({question}). Type 'yes' to continue: "):
            raise CommandError("Nothing was deleted.")
        for queue in queues:
            purge(queue)
            if not self.output.as_json:
                self.output.line(f"{queue.name}: {plural(counted[queue.name], 'message')} deleted.")
        self.output.result([{"queue": name, "deleted": number} for name, number in counted.items()])

    def _confirmed(self, question: str) -> bool:
        if self.output.as_json or not sys.stdin.isatty():
            raise CommandError("Deleting messages needs a confirmation. Pass --yes.")
        return input(question).strip().lower() == "yes"


def _row(letter: DeadLetter, arguments: bool) -> tuple[object, ...]:
    row = (
        letter.queue,
        letter.message_id,
        letter.task_name or f"not a task: {letter.problem.partition(': ')[2]}",
        letter.n_retries,
        utc(letter.sent),
        letter.receives,
    )
    kwargs = letter.stored or (None if letter.kwargs is None else json.dumps(letter.kwargs, ensure_ascii=False))
    return (*row, kwargs) if arguments else row
