"""What all subcommands of `manage.py lambda_tasks` have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import ImproperlyConfigured

from lambda_tasks.management.output import JSON, TEXT
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.management.output import Output


class Subcommand(ABC):
    """One subcommand: its options, and its work.

    To add one, write a subclass in a module of its own, and list it in `lambda_tasks.management.commands.lambda_tasks`.
    Import what takes long inside of `run()`, since all subcommands are imported to parse the options of one.
    """

    #: The word after `manage.py lambda_tasks`.
    name: ClassVar[str]
    #: One or two sentences, for the list of subcommands and for the subcommand's own `--help`.
    help: ClassVar[str]
    #: What follows `manage.py lambda_tasks` in each of the examples at the end of `--help`.
    examples: ClassVar[Sequence[str]]
    #: Exceptions whose message is enough for the user. They end the command with status 1 and without a traceback.
    errors: ClassVar[tuple[type[Exception], ...]] = (ImproperlyConfigured, ValueError)
    #: The options for arguments of Python that errors name.
    named: ClassVar[Sequence[tuple[str, str]]] = ()
    #: The formats that `--format` accepts; the first is the default.
    formats: ClassVar[Sequence[str]] = (TEXT, JSON)
    #: Whether Django's system checks run first, as for every command. They import the tasks of all apps.
    needs_checks: ClassVar[bool] = True
    #: What `--help` says about exit statuses, if there are others than 0 and 1.
    statuses: ClassVar[str] = ""
    #: Where to print. The command sets it before it calls `run()`.
    output: Output

    def add_arguments(self, parser: CommandParser) -> None:  # noqa: B027, optional
        """Add the subcommand's own options. Those of every command, such as --settings, are added for it."""

    @abstractmethod
    def run(self, *args: Any, **options: Any) -> None:
        """Do the work. Raise `CommandError`, or one of `errors`, if it fails."""

    def message_of(self, error: Exception) -> str:
        """Return the message of one of `errors`, with the option in place of the argument that it begins with."""
        text = str(error)
        if isinstance(error, ImproperlyConfigured):
            return text
        for argument, option in self.named:
            is_word = "_" not in argument  # which may also stand for itself in the rest of the message
            text = re.sub(rf"^{argument}(?= must)" if is_word else rf"\b{argument}\b", option, text)
        return text

    def warn_of_eager_mode(self) -> None:
        """Warn that the settings send nothing to a queue."""
        if app_settings.eager:
            self.output.warn(
                "LAMBDA_TASKS_EAGER is True in these settings, so tasks run in the calling process and do not reach "
                "a queue."
            )


def plural(number: int, noun: str) -> str:
    """Return the number with its noun, as in `1 record` and `2 records`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
