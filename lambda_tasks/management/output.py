"""Print what subcommands report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.core.management.base import BaseCommand

    Style = Callable[[str], str]


class Output:
    """Prints to the streams of a command, with its styles."""

    def __init__(self, command: BaseCommand) -> None:
        self._command = command

    def line(self, text: str, style: Style | None = None) -> None:
        """Print a line immediately."""
        self._command.stdout.write(text, style)
        self._command.stdout.flush()  # a pipe or a file would be buffered up to 8 KiB

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.line(text, self.style_of("WARNING"))

    def style_of(self, name: str) -> Style:
        """Return one of the styles in Django's palettes, such as `ERROR`."""
        style: Style = getattr(self._command.style, name)
        return style
