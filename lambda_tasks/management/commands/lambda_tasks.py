"""`manage.py lambda_tasks SUBCOMMAND`: the library's command line tools."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser

from lambda_tasks.management.cancel import Cancel
from lambda_tasks.management.cleanup import Cleanup
from lambda_tasks.management.doctor import Doctor
from lambda_tasks.management.output import Output
from lambda_tasks.management.reap import Reap
from lambda_tasks.management.relay import Relay
from lambda_tasks.management.schedules import Schedules
from lambda_tasks.management.template import Template
from lambda_tasks.management.tick import Tick
from lambda_tasks.management.worker import Worker

if TYPE_CHECKING:
    from lambda_tasks.management.subcommands import Subcommand

#: All subcommands, in the order of the list that `--help` prints.
SUBCOMMANDS: Final[tuple[type[Subcommand], ...]] = (
    Worker,
    Relay,
    Reap,
    Cancel,
    Cleanup,
    Doctor,
    Tick,
    Schedules,
    Template,
)


class _OptionsOfEveryCommand(BaseCommand):
    """Adds the options of every command to a parser, without defaults: those before the subcommand count too."""

    def add_base_argument(self, parser: CommandParser, *args: Any, **options: Any) -> None:
        super().add_base_argument(parser, *args, **{**options, "default": argparse.SUPPRESS})


class Command(BaseCommand):
    help = "Run the local worker, look at tasks, run or cancel them, maintain the database, and check AWS."

    def add_arguments(self, parser: CommandParser) -> None:
        # Options such as --settings are accepted before and after the subcommand.
        base = _OptionsOfEveryCommand().create_parser("", "", add_help=False)
        # Without a metavar, the usage names all subcommands.
        subcommands = parser.add_subparsers(dest="subcommand", required=True)
        for each in SUBCOMMANDS:
            own = subcommands.add_parser(each.name, parents=[base], help=each.help)
            subcommand = each(Output(self))
            subcommand.add_arguments(own)
            own.set_defaults(run=subcommand)

    def handle(self, *args: Any, **options: Any) -> None:
        subcommand: Subcommand = options["run"]
        try:
            subcommand.run(**options)
        except subcommand.errors as error:
            raise CommandError(str(error)) from error
