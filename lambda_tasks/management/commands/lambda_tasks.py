"""`manage.py lambda_tasks SUBCOMMAND`: the library's command line tools."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter

import lambda_tasks
from lambda_tasks.management.batch_job import BatchJob
from lambda_tasks.management.cancel import Cancel
from lambda_tasks.management.cleanup import Cleanup
from lambda_tasks.management.dlq import DeadLetters
from lambda_tasks.management.doctor import Doctor
from lambda_tasks.management.failures import failure
from lambda_tasks.management.from_celery import FromCelery
from lambda_tasks.management.invoke import Invoke
from lambda_tasks.management.listing import List
from lambda_tasks.management.output import Output
from lambda_tasks.management.partition import Partition
from lambda_tasks.management.reap import Reap
from lambda_tasks.management.relay import Relay
from lambda_tasks.management.retry import Retry
from lambda_tasks.management.run import Run
from lambda_tasks.management.schedules import Schedules
from lambda_tasks.management.sign import Sign
from lambda_tasks.management.stats import Stats
from lambda_tasks.management.status import Inspect, Status
from lambda_tasks.management.template import Template
from lambda_tasks.management.tick import Tick
from lambda_tasks.management.worker import Worker

if TYPE_CHECKING:
    from lambda_tasks.management.subcommands import Subcommand

#: All subcommands, in the order of the list that `--help` prints.
SUBCOMMANDS: Final[tuple[type[Subcommand], ...]] = (
    List,
    Run,
    Status,
    Inspect,
    Retry,
    Cancel,
    Stats,
    DeadLetters,
    Worker,
    BatchJob,
    Invoke,
    Sign,
    Relay,
    Tick,
    Schedules,
    Reap,
    Cleanup,
    Partition,
    Doctor,
    Template,
    FromCelery,
)
_STATUSES: Final = (
    "exit status:\n"
    "  0  it is done\n"
    "  1  it failed, or a value is invalid, and standard error says why\n"
    "  2  an option is unknown or missing; or the doctor could not do all checks\n"
    "  3  the worker was stopped before its batches had ended\n"
    "  130  it was interrupted by Ctrl-C"
)
#: The exit statuses of programs that were ended by SIGINT and by SIGPIPE.
_INTERRUPTED: Final = 130
_UNREAD: Final = 141
_WIDTH: Final = 78


class _Formatter(DjangoHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Lists Django's own options last, and keeps the line breaks of examples."""


class _OptionsOfEveryCommand(BaseCommand):
    """Adds the options of every command to a parser, without defaults: those before the subcommand count too."""

    def add_base_argument(self, parser: CommandParser, *args: Any, **options: Any) -> None:
        super().add_base_argument(parser, *args, **{**options, "default": argparse.SUPPRESS})

    def get_version(self) -> str:
        return lambda_tasks.__version__


class Command(BaseCommand):
    help = "Run the local worker, look at tasks, run or cancel them, maintain the database, and check AWS."

    def get_version(self) -> str:
        """Return the version of the library, for `--version`."""
        return lambda_tasks.__version__

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs.setdefault("formatter_class", _Formatter)
        return super().create_parser(prog_name, subcommand, epilog=_STATUSES, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        # Options such as --settings are accepted before and after the subcommand.
        base = _OptionsOfEveryCommand().create_parser("", "", add_help=False)
        # Without a metavar, the usage names all subcommands.
        subcommands = parser.add_subparsers(dest="subcommand", required=True)
        for each in SUBCOMMANDS:
            own = subcommands.add_parser(
                each.name,
                parents=[base],
                help=each.help,
                description=textwrap.fill(each.help, _WIDTH),
                epilog=_epilog(each),
                formatter_class=_Formatter,
            )
            own.add_argument(
                "--format", choices=each.formats, default=each.formats[0], help="what to print (default: %(default)s)"
            )
            subcommand = each()
            subcommand.add_arguments(own)
            own.set_defaults(run=subcommand)

    def execute(self, *args: Any, **options: Any) -> str | None:
        if not options["run"].needs_checks:
            options["skip_checks"] = True
        return super().execute(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        subcommand: Subcommand = options["run"]
        subcommand.output = Output(self, format=options["format"], colours=not options["no_color"])
        try:
            subcommand.run(**options)
        except subcommand.errors as error:
            raise CommandError(subcommand.message_of(error)) from error
        except KeyboardInterrupt:
            raise CommandError("Interrupted.", returncode=_INTERRUPTED) from None
        except BrokenPipeError:  # the reader of the output, such as `head`, has ended
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, sys.stdout.fileno())  # so that flushing it at the end of the process does not fail
            sys.exit(_UNREAD)
        except Exception as error:
            if (text := failure(error)) is None:
                raise
            raise CommandError(text) from error


def _epilog(subcommand: type[Subcommand]) -> str:
    examples = "\n".join(f"  python manage.py lambda_tasks {example}" for example in subcommand.examples)
    return f"examples:\n{examples}\n\n{subcommand.statuses}".rstrip()
