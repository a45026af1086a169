"""The subcommand `worker`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from lambda_tasks.maintenance import outbox
from lambda_tasks.management.subcommands import Subcommand
from lambda_tasks.registry import discover_tasks
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.local.progress import Event
    from lambda_tasks.local.worker import LocalWorker


class Worker(Subcommand):
    """Runs tasks from SQS on this machine."""

    name = "worker"
    help = "Run tasks from SQS on this machine, in the runtime that Lambda uses."
    examples = ("worker --reload", "worker --queue mail --concurrency 4", "worker --until-idle")

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
            "--function-timeout",
            type=float,
            metavar="S",
            help="seconds after which an invocation is killed (default: LAMBDA_TASKS_MAX_TIMEOUT, which is 900 by "
            "default)",
        )
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

    def run(
        self,
        *,
        queue: Sequence[str] | None,
        concurrency: int,
        batch_size: int,
        batching_window: int,
        function_timeout: float | None,
        until_idle: bool,
        handler: str,
        reload: bool,
        **_: Any,
    ) -> None:
        # Imported here because importing boto3 would slow down the other subcommands by half a second.
        from lambda_tasks.local.event_source import QueueUnavailable
        from lambda_tasks.local.runtime import RuntimeStartError
        from lambda_tasks.local.ticking import TICK_SECONDS
        from lambda_tasks.local.worker import MAINTENANCE_SECONDS, LocalWorker

        self.warn_of_eager_mode()
        try:
            worker = LocalWorker(
                _chosen_queues(queue),
                handler,
                concurrency=concurrency,
                batch_size=batch_size,
                batching_window=batching_window,
                function_timeout=function_timeout,
                maintenance_every=None if outbox() is None else MAINTENANCE_SECONDS,
                tick_every=TICK_SECONDS if any(task.schedule for task in discover_tasks()) else None,
                report=self._report,
            )
            if reload:
                self._run_until_change(worker, until_idle=until_idle)
            else:
                worker.run(until_idle=until_idle)
        except (QueueUnavailable, RuntimeStartError) as error:
            raise CommandError(str(error)) from error

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
            case progress.Finished(kept_ids=[_, *_]):
                self.output.event(event, self.output.style_of("ERROR"))
            case progress.Maintained(reason=str(reason)) if reason:
                self.output.event(event, self.output.style_of("WARNING"))
            case progress.Warned() | progress.Trouble():
                self.output.event(event, self.output.style_of("WARNING"))
            case _:
                self.output.event(event)


def _chosen_queues(names: Sequence[str] | None) -> dict[str, str]:
    queues = app_settings.queues
    for name in names or ():
        if name not in queues:
            raise CommandError(
                f"--queue must be a queue in LAMBDA_TASKS_QUEUES ({', '.join(sorted(queues))}), not {name!r}. "
                "Correct --queue, or add the URL of the queue to the setting."
            )
    return {name: queues[name] for name in names or queues}
