"""The subcommand `worker`."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from django.core.management.base import CommandError

from lambda_tasks.maintenance import outbox
from lambda_tasks.management.subcommands import Subcommand
from lambda_tasks.registry import discover_tasks
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.local.progress import Event
    from lambda_tasks.local.worker import LocalWorker

#: Seconds that running batches have by default after a signal to stop: ECS kills a container after 30 s.
DRAIN_SECONDS: Final = 25.0
#: The exit status if the worker was stopped before its batches had ended.
_NOT_DRAINED: Final = 3


class Worker(Subcommand):
    """Runs tasks from SQS on this machine."""

    name = "worker"
    named = (
        ("concurrency", "--concurrency"),
        ("batch_size", "--batch-size"),
        ("batching_window", "--batching-window"),
        ("function_timeout", "--function-timeout"),
        ("drain_seconds", "--drain"),
        ("poll_seconds", "--poll"),
        ("max_messages", "--max-messages"),
    )
    help = "Run tasks from SQS on this machine, in the runtime that Lambda uses: for development, and on ECS or EC2."
    examples = (
        "worker --reload",
        "worker --queue mail --concurrency 4",
        "worker --until-idle",
        "worker --one-by-one --drain 110 --poll 20 --health-port 8080 --format json",
    )
    statuses = (
        "exit status:\n"
        "  0  it was stopped, or with --until-idle, the queues are empty\n"
        "  1  it could not start or continue, and standard error says why\n"
        "  2  an option does not exist, or has no value\n"
        "  3  it was stopped before its batches had ended, and handed their messages back"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--queue",
            action="append",
            metavar="NAME",
            help="a queue in LAMBDA_TASKS_QUEUES to serve; can be repeated (default: all queues)",
        )
        parser.add_argument(
            "--concurrency",
            type=int,
            default=1,
            metavar="N",
            help="the number of processes for each queue (default: 1)",
        )
        _add_arguments_for_batches(parser)
        parser.add_argument("--until-idle", action="store_true", help="exit when the queues are empty")
        parser.add_argument(
            "--handler",
            default="lambda_tasks.handler.handler",
            metavar="PATH",
            help="the Lambda function's handler (default: %(default)s)",
        )

        parser.add_argument(
            "--reload",
            action="store_true",
            help="start again when a file of the code changes, after the running batches have finished",
        )
        _add_arguments_for_production(parser)

    def run(
        self,
        *,
        queue: Sequence[str] | None,
        until_idle: bool,
        reload: bool,
        health_port: int | None,
        health_file: str | None,
        **options: Any,
    ) -> None:
        # Imported here because importing boto3 would slow down the other subcommands by half a second.
        from lambda_tasks.local import health
        from lambda_tasks.local.event_source import QueueUnavailable
        from lambda_tasks.local.runtime import RuntimeStartError

        self.warn_of_eager_mode()
        if reload:  # a batch may be stopped in a debugger
            options["drain"] = None
        try:
            worker = self._worker(_chosen_queues(queue), **options)
            file = Path(health_file) if health_file else None
            with health.shown(worker.problems, port=health_port, file=file, is_ready=is_ready):
                if reload:
                    self._run_until_change(worker, until_idle=until_idle)
                else:
                    worker.run(until_idle=until_idle)
        except (QueueUnavailable, RuntimeStartError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise CommandError(str(error)) from error
        if worker.was_killed:
            raise SystemExit(_NOT_DRAINED)

    def _worker(
        self,
        queues: Mapping[str, str],
        *,
        concurrency: int,
        batch_size: int,
        batching_window: int,
        one_by_one: bool,
        function_timeout: float | None,
        drain: float | None,
        poll: int | None,
        max_messages: int | None,
        max_memory: int | None,
        handler: str,
        **_: Any,
    ) -> LocalWorker:
        from lambda_tasks.local.ticking import TICK_SECONDS
        from lambda_tasks.local.worker import MAINTENANCE_SECONDS, LocalWorker

        has_schedules = any(task.schedule for task in discover_tasks())  # first, since limits depend on the tasks
        return LocalWorker(
            queues,
            handler,
            concurrency=concurrency,
            batch_size=batch_size,
            batching_window=batching_window,
            one_by_one=one_by_one,
            function_timeout=_time_for(queues) if function_timeout is None else function_timeout,
            heartbeat=True,
            drain_seconds=drain,
            poll_seconds=poll,
            max_messages=max_messages,
            max_memory=max_memory,
            environment={"AWS_LAMBDA_LOG_FORMAT": "JSON"} if self.output.as_json else None,
            maintenance_every=None if outbox() is None else MAINTENANCE_SECONDS,
            tick_every=TICK_SECONDS if has_schedules else None,
            report=self._report,
        )

    def _run_until_change(self, worker: LocalWorker, *, until_idle: bool) -> None:
        """Run the worker, and replace this process by a new one if the code changes meanwhile."""
        from lambda_tasks.local import progress
        from lambda_tasks.local.reloading import Changes, problem_of_project, start_again
        from lambda_tasks.local.runtime import RuntimeStartError

        changes = Changes(worker.stop, self._report)
        with changes.watched(), suppress(KeyboardInterrupt):
            try:
                worker.run(until_idle=until_idle)
            except RuntimeStartError as error:  # often a mistake in the code that is being written
                self._report(progress.Warned(f"{error} Waiting for a change of the code."))
                changes.wait()
            while changes.happened:
                changes.forget()
                if (problem := problem_of_project()) is None:
                    start_again()
                self._report(progress.Warned(f"The project cannot be loaded. Waiting for a change.\n{problem}"))
                changes.wait()

    def _report(self, event: Event) -> None:
        from lambda_tasks.local import progress

        match event:
            case progress.Output(environment, line) if self.output.as_json and (fields := _fields_of(line)):
                self.output.raw(json.dumps({"environment": environment} | fields) + "\n")
            case progress.Finished(kept_ids=[_, *_]):
                self.output.event(event, self.output.style_of("ERROR"))
            case progress.Maintained(reason=str(reason)) if reason:
                self.output.event(event, self.output.style_of("WARNING"))
            case progress.Warned() | progress.Trouble():
                self.output.event(event, self.output.style_of("WARNING"))
            case _:
                self.output.event(event)


def _chosen_queues(names: Sequence[str] | None) -> dict[str, str]:
    queues, job_queues = app_settings.queue_urls, app_settings.job_queues
    if job_queue := next((name for name in names or () if name in job_queues), None):
        raise CommandError(
            f"--queue must be a queue of SQS, not {job_queue!r}, whose tasks are jobs of AWS Batch. A job runs "
            "`manage.py lambda_tasks batch-job`."
        )
    if not queues:
        raise CommandError("LAMBDA_TASKS_QUEUES must have a queue of SQS for a worker, not only queues of AWS Batch.")
    for name in names or ():
        if name not in queues:
            raise CommandError(
                f"--queue must be a queue in LAMBDA_TASKS_QUEUES ({', '.join(sorted(queues))}), not {name!r}. "
                "Correct --queue, or add the URL of the queue to the setting."
            )
    return {name: queues[name] for name in names or queues}


def _add_arguments_for_batches(parser: CommandParser) -> None:
    parser.add_argument(
        "--batch-size", type=int, default=10, metavar="N", help="messages per invocation, at most (default: 10)"
    )
    parser.add_argument(
        "--batching-window",
        type=int,
        default=0,
        metavar="S",
        help="seconds to wait for a batch to fill; required if --batch-size is more than 10 (default: 0)",
    )
    parser.add_argument(
        "--one-by-one",
        action="store_true",
        help="pass one message at a time to a process; those that wait are handed back when the worker stops",
    )
    parser.add_argument(
        "--function-timeout",
        type=float,
        metavar="S",
        help="seconds after which an invocation is killed (default: LAMBDA_TASKS_MAX_TIMEOUT, which is 900 "
        "by default, or more if the longest task needs more)",
    )


def _add_arguments_for_production(parser: CommandParser) -> None:
    parser.add_argument(
        "--drain",
        type=float,
        default=DRAIN_SECONDS,
        metavar="S",
        help=(
            "seconds that running batches have after SIGTERM or Ctrl-C; then their processes are killed, and their "
            "messages are handed back (default: %(default)g; any time with --reload)"
        ),
    )
    parser.add_argument(
        "--poll",
        type=int,
        metavar="S",
        help="seconds that a request waits for messages, 0 to 20; an idle worker takes as long to stop (default: 2)",
    )
    parser.add_argument(
        "--max-messages", type=int, metavar="N", help="replace a process after N messages (default: never)"
    )
    parser.add_argument(
        "--max-memory",
        type=int,
        metavar="MB",
        help="replace a process that uses more resident memory after a batch (default: never)",
    )
    parser.add_argument(
        "--health-port",
        type=int,
        metavar="PORT",
        help="serve the health of the worker over HTTP: /ready also checks the database, all other paths do not",
    )
    parser.add_argument(
        "--health-file",
        metavar="PATH",
        help="update the time of this file every 5 seconds while the worker is healthy",
    )


def _time_for(queues: Mapping[str, str]) -> float:
    """Return the time for an invocation that is enough for the longest task of these queues."""
    from lambda_tasks.handler import longest_time_needed
    from lambda_tasks.local.options import default_timeout

    return max(default_timeout(), *(math.ceil(longest_time_needed(name)) for name in queues))


def is_ready() -> bool:
    """Return whether the database and the rest of what `HealthView` checks are available."""
    from django.db import connections
    from django.http import HttpRequest

    from lambda_tasks.contrib.health import HealthView

    request = HttpRequest()
    request.method = "GET"
    try:
        return HealthView.as_view()(request).status_code == 200
    finally:
        connections.close_all()  # each request has a thread of its own


def _fields_of(line: str) -> dict[str, Any] | None:
    """Return the fields of a record that was logged as JSON; None for any other line."""
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
