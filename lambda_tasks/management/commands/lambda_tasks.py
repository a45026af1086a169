"""`manage.py lambda_tasks SUBCOMMAND`: the library's command line tools."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from lambda_tasks.handles import TaskHandle
from lambda_tasks.maintenance import outbox, relay_once, relay_until_stopped
from lambda_tasks.management.infrastructure import add_template
from lambda_tasks.management.schedules import add_schedules, add_tick
from lambda_tasks.operations.reaping import reap
from lambda_tasks.registry import discover_tasks
from lambda_tasks.settings import LOST_AFTER, app_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lambda_tasks.local.progress import Event

#: The exit status of the doctor if it found no error, but could not do all checks.
UNKNOWN_STATUS: Final = 2


class _OptionsOfEveryCommand(BaseCommand):
    """Adds the options of every command to a parser, without defaults: those before the subcommand count too."""

    def add_base_argument(self, parser: CommandParser, *args: Any, **options: Any) -> None:
        super().add_base_argument(parser, *args, **{**options, "default": argparse.SUPPRESS})


class Command(BaseCommand):
    help = (
        "Run the local worker, start periodic tasks, relay the outbox, recover lost tasks, cancel tasks, delete old "
        "records, and check AWS."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        # Options such as --settings are accepted before and after the subcommand.
        base = _OptionsOfEveryCommand().create_parser("", "", add_help=False)
        # Without a metavar, the usage names all subcommands.
        subcommands = parser.add_subparsers(dest="subcommand", required=True)
        add = partial(subcommands.add_parser, parents=[base])
        self._add_worker(add)
        self._add_relay(add)
        self._add_reap(add)
        self._add_cancel(add)
        self._add_cleanup(add)
        self._add_doctor(add)
        add_tick(add, print_line=self._print)
        add_schedules(add, print_line=self._print)
        add_template(add, print_line=self._print)

    def handle(self, *args: Any, **options: Any) -> None:
        options["run"](**options)

    # worker

    def _add_worker(self, add: Callable[..., CommandParser]) -> None:
        parser = add(
            "worker",
            help="Run tasks from SQS on this machine, in the runtime that Lambda uses.",
        )
        parser.set_defaults(run=self._work)
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
            default=900,
            metavar="S",
            help="seconds after which an invocation is killed (default: 900, the maximum in Lambda)",
        )
        parser.add_argument("--until-idle", action="store_true", help="exit when the queues are empty")
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
        # Imported here because importing boto3 would slow down the other subcommands by half a second.
        from lambda_tasks.local.event_source import QueueUnavailable
        from lambda_tasks.local.runtime import RuntimeStartError
        from lambda_tasks.local.ticking import TICK_SECONDS
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
                tick_every=TICK_SECONDS if any(task.schedule for task in discover_tasks()) else None,
                report=self._report,
            )
            worker.run(until_idle=until_idle)
        except (ImproperlyConfigured, ValueError, QueueUnavailable, RuntimeStartError) as error:
            raise CommandError(str(error)) from error

    # relay

    def _add_relay(self, add: Callable[..., CommandParser]) -> None:
        parser = add(
            "relay",
            help="Send the due messages of the outbox (delayed messages, and those that could not be sent before), and "
            "start periodic tasks.",
        )
        parser.set_defaults(run=self._relay)
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--once", action="store_true", help="exit after one attempt for each due message, as for cron")
        how.add_argument(
            "--interval",
            type=float,
            default=10,
            metavar="S",
            help="seconds between two checks of the outbox (default: %(default)s), until SIGTERM or Ctrl-C",
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
            raise CommandError(
                "Some messages could not be sent. The log contains the errors, and the next relay tries again."
            )

    # reap

    def _add_reap(self, add: Callable[..., CommandParser]) -> None:
        parser = add(
            "reap",
            help="Recover lost tasks, whose record is RUNNING although no worker runs them.",
        )
        parser.set_defaults(run=self._reap)
        parser.add_argument(
            "--older-than",
            type=int,
            default=LOST_AFTER,
            metavar="S",
            help="seconds after which a task counts as lost, from the end of its lease (default: %(default)s)",
        )

    def _reap(self, *, older_than: int, **_: Any) -> None:
        try:
            self._warn_of_eager_mode()
            reaped = reap(older_than=older_than)
        except (ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from error
        self._print(f"{reaped.sent_again} sent again, {reaped.failed} failed.")
        if reaped.unsent:
            raise CommandError(
                f"{reaped.unsent} could not be sent. The records stay RUNNING, and the log contains the errors."
            )

    # cleanup

    def _add_cleanup(self, add: Callable[..., CommandParser]) -> None:
        parser = add("cleanup", help="Delete the records of old tasks.")
        parser.set_defaults(run=self._clean_up)
        parser.add_argument(
            "--days",
            type=int,
            default=7,
            metavar="N",
            help="delete records that started more than N days ago (default: %(default)s)",
        )
        parser.add_argument("--dry-run", action="store_true", help="only count the records that would be deleted")

    def _clean_up(self, *, days: int, dry_run: bool, **_: Any) -> None:
        from lambda_tasks.tasks import cleanup_task_records, count_old_records

        work, did = (count_old_records, "would be deleted") if dry_run else (cleanup_task_records, "deleted")
        try:
            number = work(retention_days=days)
        except (ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from error
        self._print(f"{number} record{'s' * (number != 1)} {did}.")

    # cancel

    def _add_cancel(self, add: Callable[..., CommandParser]) -> None:
        parser = add(
            "cancel",
            help="Cancel tasks: those that wait never run, and those that run are asked to end.",
        )
        parser.set_defaults(run=self._cancel)
        parser.add_argument("ids", nargs="+", metavar="ID", help="the message id of a task, or of any of its retries")

    def _cancel(self, *, ids: Sequence[str], **_: Any) -> None:
        for message_id in ids:
            try:
                cancelled = TaskHandle(message_id).cancel()
            except (ImproperlyConfigured, NotImplementedError, ValueError) as error:
                raise CommandError(str(error)) from error
            self._print(f"{message_id}: {'cancelled' if cancelled else 'has already ended'}")

    # doctor

    def _add_doctor(self, add: Callable[..., CommandParser]) -> None:
        parser = add(
            "doctor",
            help="Check the queues and functions on AWS, the databases and the outbox for configurations that would "
            "lose or repeat work.",
        )
        parser.set_defaults(run=self._diagnose)
        parser.add_argument(
            "--function",
            metavar="NAME",
            help="the Lambda function that reads from the queues (default: those of the event source mappings)",
        )

        parser.add_argument(
            "--allow-skipped",
            action="store_true",
            help="exit with status 0 although checks were skipped, for example because a permission is missing",
        )

    def _diagnose(self, *, function: str | None, allow_skipped: bool, **_: Any) -> None:
        from lambda_tasks.operations.doctor import diagnose

        try:
            self._warn_of_eager_mode()
            findings = diagnose(function=function, note=self._print)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        styles = {"error": self.style.ERROR, "warning": self.style.WARNING, "unasked": self.style.NOTICE}
        for finding in findings:
            self._print(str(finding), styles[finding.level])
        levels = [finding.level for finding in findings]
        errors, warnings, unasked = (levels.count(level) for level in ("error", "warning", "unasked"))
        summary = (
            f"Checked {', '.join(sorted(app_settings.queues))}: {errors} error{'s' * (errors != 1)}, "
            f"{warnings} warning{'s' * (warnings != 1)}, {unasked} skipped check{'s' * (unasked != 1)}."
        )
        if errors:
            raise CommandError(summary)
        if unasked and not allow_skipped:
            raise CommandError(
                f"{summary} Without them, the result is unknown. To accept this, pass --allow-skipped.",
                returncode=UNKNOWN_STATUS,
            )
        self._print(summary)

    def _chosen_queues(self, names: Sequence[str] | None) -> dict[str, str]:
        queues = app_settings.queues
        for name in names or ():
            if name not in queues:
                raise CommandError(
                    f"--queue must be a queue in LAMBDA_TASKS_QUEUES ({', '.join(sorted(queues))}), not {name!r}. "
                    "Correct --queue, or add the URL of the queue to the setting."
                )
        return {name: queues[name] for name in names or queues}

    def _warn_of_eager_mode(self) -> None:
        if app_settings.eager:
            self._print(
                "LAMBDA_TASKS_EAGER is True in these settings, so tasks run in the calling process and do not reach "
                "a queue.",
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
        self.stdout.flush()  # a pipe or a file would be buffered up to 8 KiB
