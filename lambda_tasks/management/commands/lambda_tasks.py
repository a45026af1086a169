"""`manage.py lambda_tasks SUBCOMMAND`: what the library offers on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from lambda_tasks.lost import reap
from lambda_tasks.maintenance import outbox, relay_once, relay_until_stopped
from lambda_tasks.settings import LOST_AFTER, app_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.local.progress import Event


class Command(BaseCommand):
    help = "Tools of django-lambda-tasks."

    def add_arguments(self, parser: CommandParser) -> None:
        subcommands = parser.add_subparsers(dest="subcommand", metavar="subcommand", required=True)
        self._add_worker(subcommands)
        self._add_relay(subcommands)
        self._add_reap(subcommands)
        self._add_doctor(subcommands)

    def handle(self, *args: Any, **options: Any) -> None:
        options["run"](**options)

    # worker

    def _add_worker(self, subcommands: Any) -> None:
        parser: CommandParser = subcommands.add_parser(
            "worker",
            help="Run tasks on this machine, in the runtime that Lambda uses, as they arrive in SQS.",
        )
        parser.set_defaults(run=self._work)
        parser.add_argument(
            "--queue",
            action="append",
            metavar="NAME",
            help="a queue of LAMBDA_TASKS_QUEUES to serve; may be repeated (default: all of them)",
        )
        parser.add_argument(
            "--concurrency", type=int, default=1, metavar="N", help="processes for each queue (default: 1)"
        )
        parser.add_argument(
            "--batch-size", type=int, default=10, metavar="N", help="messages for one invocation (default: 10)"
        )
        parser.add_argument(
            "--batching-window",
            type=int,
            default=0,
            metavar="S",
            help="seconds in which a batch may fill; needed for more than 10 messages (default: 0)",
        )
        parser.add_argument(
            "--function-timeout",
            type=float,
            default=900,
            metavar="S",
            help="seconds after which an invocation is killed (default: 900, Lambda's maximum)",
        )
        parser.add_argument("--until-idle", action="store_true", help="end when the queues are empty")
        parser.add_argument(
            "--handler",
            default="lambda_tasks.handler.handler",
            metavar="PATH",
            help="the Lambda function's handler (default: %(default)s)",
        )

    def _work(
        self,
        *,
        queue: Sequence[str] | None,
        concurrency: int,
        batch_size: int,
        batching_window: int,
        function_timeout: float,
        until_idle: bool,
        handler: str,
        **_: Any,
    ) -> None:
        # Imported here because it brings boto3, which costs other subcommands half a second.
        from lambda_tasks.local.event_source import QueueUnavailable
        from lambda_tasks.local.runtime import RuntimeStartError
        from lambda_tasks.local.worker import MAINTENANCE_SECONDS, LocalWorker

        try:
            self._warn_of_eager_mode()
            worker = LocalWorker(
                self._chosen_queues(queue),
                handler,
                concurrency=concurrency,
                batch_size=batch_size,
                batching_window=batching_window,
                function_timeout=function_timeout,
                maintenance_every=None if outbox() is None else MAINTENANCE_SECONDS,
                report=self._report,
            )
            worker.run(until_idle=until_idle)
        except (ImproperlyConfigured, ValueError, QueueUnavailable, RuntimeStartError) as error:
            raise CommandError(str(error)) from error

    # relay

    def _add_relay(self, subcommands: Any) -> None:
        parser: CommandParser = subcommands.add_parser(
            "relay",
            help="Send what waits in the outbox: what could not be sent after its commit, and what is due by now.",
        )
        parser.set_defaults(run=self._relay)
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--once", action="store_true", help="end when everything that is due was tried, as for cron")
        how.add_argument(
            "--interval",
            type=float,
            default=10,
            metavar="S",
            help="seconds from one look at the outbox to the next (default: %(default)s); ends on SIGTERM and Ctrl-C",
        )

    def _relay(self, *, once: bool, interval: float, **_: Any) -> None:
        try:
            self._warn_of_eager_mode()
            if not once:
                relay_until_stopped(interval, report=self._print)
                return
            relayed = relay_once()
        except (ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from error
        self._print(str(relayed))
        if relayed.failed:
            raise CommandError("Not all that is due could be sent; the log says why, and the next relay tries again.")

    # reap

    def _add_reap(self, subcommands: Any) -> None:
        parser: CommandParser = subcommands.add_parser(
            "reap",
            help="Settle the tasks that nobody runs any more, though their records say RUNNING.",
        )
        parser.set_defaults(run=self._reap)
        parser.add_argument(
            "--older-than",
            type=int,
            default=LOST_AFTER,
            metavar="S",
            help="seconds after the end of its lease at which a task counts as lost (default: %(default)s)",
        )

    def _reap(self, *, older_than: int, **_: Any) -> None:
        try:
            self._warn_of_eager_mode()
            reaped = reap(older_than=older_than)
        except (ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from error
        self._print(f"{reaped.sent_again} sent again, {reaped.failed} failed.")
        if reaped.unsent:
            raise CommandError(f"{reaped.unsent} could not be sent and stay RUNNING for now; the log says why.")

    # doctor

    def _add_doctor(self, subcommands: Any) -> None:
        parser: CommandParser = subcommands.add_parser(
            "doctor",
            help="Ask AWS about queues and functions, and say what would lose or repeat work.",
        )
        parser.set_defaults(run=self._diagnose)
        parser.add_argument(
            "--function",
            metavar="NAME",
            help="the Lambda function that takes from the queues (default: those of their event source mappings)",
        )

    def _diagnose(self, *, function: str | None, **_: Any) -> None:
        from lambda_tasks.doctor import diagnose

        try:
            self._warn_of_eager_mode()
            findings = diagnose(function=function)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        styles = {"error": self.style.ERROR, "warning": self.style.WARNING, "unasked": self.style.NOTICE}
        for finding in findings:
            self._print(str(finding), styles[finding.level])
        levels = [finding.level for finding in findings]
        errors, warnings, unasked = (levels.count(level) for level in ("error", "warning", "unasked"))
        summary = (
            f"Looked at {', '.join(sorted(app_settings.queues))}: {errors} error{'s' * (errors != 1)}, "
            f"{warnings} warning{'s' * (warnings != 1)}, {unasked} question{'s' * (unasked != 1)} without an answer."
        )
        if errors:
            raise CommandError(summary)
        self._print(summary)

    def _chosen_queues(self, names: Sequence[str] | None) -> dict[str, str]:
        queues = app_settings.queues
        for name in names or ():
            if name not in queues:
                raise CommandError(
                    f"Queue {name!r} is not in LAMBDA_TASKS_QUEUES ({', '.join(sorted(queues))}); "
                    f"add its URL there or fix --queue."
                )
        return {name: queues[name] for name in names or queues}

    def _warn_of_eager_mode(self) -> None:
        if app_settings.eager:
            self._print(
                "LAMBDA_TASKS_EAGER is True in these settings: tasks run where they are called and reach no queue.",
                self.style.WARNING,
            )

    def _report(self, event: Event) -> None:
        from lambda_tasks.local import progress

        match event:
            case progress.Finished(kept_ids=[_, *_]):
                self._print(str(event), self.style.ERROR)
            case progress.Maintained(reason=str(reason)) if reason:
                self._print(str(event), self.style.WARNING)
            case progress.Warned() | progress.Trouble():
                self._print(str(event), self.style.WARNING)
            case _:
                self._print(str(event))

    def _print(self, text: str, style: Any = None) -> None:
        self.stdout.write(text, style)
        self.stdout.flush()  # into a pipe or a file it would wait for 8 KiB
