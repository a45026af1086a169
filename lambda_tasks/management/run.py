"""The subcommand `run`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from lambda_tasks.exceptions import DuplicateTask, InvalidMessage, LambdaTasksError, TaskFailed
from lambda_tasks.management.failures import failure
from lambda_tasks.management.subcommands import Subcommand
from lambda_tasks.registry import find_task
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

    from lambda_tasks.outcomes import Outcome, Skipped


class Run(Subcommand):
    """Sends a task, or runs it in this process."""

    name = "run"
    named = (
        ("delay", "--delay"),
        ("timeout", "--wait"),
    )
    help = (
        "Call a task: send it to its queue, like execute_on_commit(). With --now, run it in this process instead, like "
        "a worker does, with a record and time limits."
    )
    examples = (
        """run shop.tasks.greet --kwargs '{"user_id": 7}'""",
        "run shop.tasks.report --queue slow --delay 60 --wait 120",
        "run shop.tasks.report --now",
    )
    statuses = (
        "exit status:\n  0  it was sent; with --now or --wait, it has succeeded, or will be retried\n"
        "  1  it was not sent, has failed, or has not ended in time"
    )
    errors = (*Subcommand.errors, LambdaTasksError, TypeError)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("task", metavar="TASK", help="the dotted path of the task, as in `lambda_tasks list`")
        parser.add_argument(
            "--kwargs", default="{}", metavar="JSON", help="the arguments, as a JSON object (default: {})"
        )
        parser.add_argument("--queue", metavar="NAME", help="another queue than the task's own")
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--now", action="store_true", help="run it in this process, and do not send it")
        how.add_argument("--delay", type=int, metavar="S", help="seconds before it may run")
        parser.add_argument(
            "--wait", type=float, metavar="S", help="wait up to S seconds for its end, and print its result"
        )

    def run(
        self, *, task: str, kwargs: str, queue: str | None, now: bool, delay: int | None, wait: float | None, **_: Any
    ) -> None:
        found: Any = find_task(task).using(queue=queue, delay=delay)  # type: ignore[attr-defined]  # of the decorator
        given = _object(kwargs)
        try:
            arguments = found.signature.decode(given)
        except InvalidMessage as error:
            problems = str(error).partition(": ")[2]
            raise CommandError(f"--kwargs must have the arguments of {found.name}: {problems}") from error
        if now:
            self._run_here(Invocation(found.name, given), found)
            return
        self.warn_of_eager_mode()
        try:
            handle = found.execute_on_commit(**arguments)
        except DuplicateTask as duplicate:
            raise CommandError(str(duplicate)) from duplicate
        sent = {"id": handle.message_id, "task": found.name, "queue": found.queue, "created": handle.created}
        if wait is None:
            what = f"Sent to queue {found.queue!r}" if handle.created else "Waits or runs already"
            self.output.result(sent, f"{what}: {handle.message_id}")
            return
        try:
            result = _as_stored(handle, wait)
        except (TaskFailed, TimeoutError) as error:
            raise CommandError(str(error)) from error
        except Exception as error:
            if (text := failure(error)) is None:
                raise
            raise CommandError(
                f"The task was sent as {handle.message_id}, and may run. Its end could not be read. {text} "
                f"`lambda_tasks inspect {handle.message_id}` shows its record."
            ) from error
        self.output.result(sent | {"status": "SUCCESS", "result": result}, _shown(handle.message_id, "SUCCESS", result))

    def _run_here(self, call: Invocation, task: Any) -> None:
        from lambda_tasks.execution import pipeline

        message_id = ids.new_message_id()
        outcome = pipeline.execute(call, message_id=message_id, task=task, queue=task.queue)
        status, error, result = _described(outcome)
        fields = {"id": message_id, "task": call.task_name, "status": status, "error": error, "result": result}
        self.output.result(fields, _shown(message_id, status, result if status == "SUCCESS" else error))
        if status == "FAILED":
            raise CommandError(f"The task has failed. `lambda_tasks inspect {message_id}` prints its traceback.")


def _as_stored(handle: Any, timeout: float) -> Any:
    """Return the result as JSON values, since not every type of a return annotation can be printed."""
    from lambda_tasks.handles import TaskHandle

    return TaskHandle(handle.message_id, handle.database, state=handle.state).result(timeout)


def _described(outcome: Outcome | Skipped) -> tuple[str, str | None, Any]:
    """Return the status of an outcome, its error, and its result."""
    from lambda_tasks import outcomes

    match outcome:
        case outcomes.Succeeded(result):
            return "SUCCESS", None, result
        case outcomes.Ignored(error):
            return "SUCCESS", f"ignored {type(error).__name__}", None
        case outcomes.Retry(error):
            return "RETRYING", f"{type(error).__name__}, and its retry was sent", None
        case outcomes.Failed(error):
            return "FAILED", type(error).__name__, None
        case outcomes.Skipped(reason):
            return "RUNNING", f"not finished: {reason}", None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandError(
            f"""--kwargs must be a JSON object, as in '{{"user_id": 7}}', not invalid JSON ({error}). Quote it, so """
            "that the shell leaves the double quotes."
        ) from None
    if not isinstance(value, dict):
        raise CommandError(f"""--kwargs must be a JSON object, as in '{{"user_id": 7}}', not {type(value).__name__}.""")
    return value


def _shown(message_id: str, status: str, detail: Any) -> str:
    text = (
        detail
        if isinstance(detail, str) and status != "SUCCESS"
        else json.dumps(detail, ensure_ascii=False, default=str)
    )
    return f"{message_id}: {status}" + ("" if detail is None else f", {text}")
