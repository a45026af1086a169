"""Print what subcommands report: for people, in colours on a terminal, or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

from lambda_tasks.recording.storable import printable

if TYPE_CHECKING:
    from django.core.management.base import BaseCommand

    Style: TypeAlias = Callable[[str], str]

#: The formats of every subcommand.
TEXT: Final = "text"
JSON: Final = "json"
#: The colours of statuses and levels on a terminal.
_COLOURS: Final = {
    "SUCCESS": "green",
    "FAILED": "red",
    "DEAD": "red",
    "RUNNING": "cyan",
    "RETRYING": "yellow",
    "WAITING": "yellow",
    "paused": "yellow",
}
#: Columns whose cells stay in one line, so that they can be copied.
_UNBROKEN: Final = frozenset({"id", "of", "record"})
#: The number of characters to which rich may narrow the other columns, and those between two columns.
_NARROWEST: Final = 8
_BETWEEN: Final = 3
#: The maximum number of characters of a cell.
_MAX_CELL: Final = 300
#: Seconds between two lines about progress, where no bar can be shown.
_PROGRESS_EVERY: Final = 10.0


class Output:
    """Prints to the streams of a command, with its styles.

    With the format JSON, standard output has only JSON: one document, or one object in each line if the subcommand runs
    until it is stopped. Warnings go to standard error.
    """

    def __init__(self, command: BaseCommand, *, format: str = TEXT, colours: bool = True) -> None:
        self._command = command
        self.format = format
        self._colours = colours

    @property
    def as_json(self) -> bool:
        return self.format == JSON

    def line(self, text: str, style: Style | None = None) -> None:
        """Print a line immediately. As JSON, it is the object `{"message": text}`."""
        self._write(json.dumps({"message": text}) if self.as_json else text, None if self.as_json else style)

    def event(self, event: Any, style: Style | None = None) -> None:
        """Print a dataclass immediately: its text, or an object with the name of its class and its fields."""
        if self.as_json:
            self._write(json.dumps({"event": type(event).__name__} | asdict(event), default=plain_json))
        else:
            self._write(str(event), style)

    def warn(self, text: str) -> None:
        """Print a warning."""
        if self.as_json:
            self._command.stderr.write(text)
        else:
            self.line(text, self.style_of("WARNING"))

    def result(self, value: Any, text: str | None = None) -> None:
        """Print a result: `value` as a JSON document, or `text`, if it is given."""
        if self.as_json:
            self._write(json.dumps(value, indent=2, default=plain_json))
        elif text is not None:
            self._write(text)

    def raw(self, text: str) -> None:
        """Write `text` as it is."""
        self._command.stdout.write(text, ending="")
        self._command.stdout.flush()

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at the text."""
        return self.format == TEXT and self._command.stdout.isatty()

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
        """Print a table, by rich on a terminal if it is installed. Nothing is printed as JSON."""
        if self.as_json:
            return
        cells = [[_cell(value) for value in row] for row in rows]
        if (console := self._console()) is not None:
            if _needed_width(headings, cells) <= console.width:
                console.print(_rich_table(headings, cells, title))
            else:
                self._list(headings, cells, title)
            return
        widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (headings, *cells)]
        self._write("\n".join([title, *lines] if title else lines))

    def _list(self, headings: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> None:
        """Print each row as lines, on a terminal that is too narrow for a table: rich would leave out columns."""
        if title:
            self._write(title)
        for number, row in enumerate(cells):
            if number:
                self._write("")
            self.facts(dict(zip(headings, row, strict=True)))

    def facts(self, facts: Mapping[str, object]) -> None:
        """Print names with their values, one in each line. Those without a value are left out."""
        shown = {name: _cell(value) for name, value in facts.items() if value not in (None, "")}
        width = max(map(len, shown), default=0)
        for name, value in shown.items():
            self._coloured(f"{name:<{width}}  ", value)

    def block(self, text: str) -> None:
        """Print several lines that may come from a task, indented, with control characters escaped."""
        lines = (printable(line, max_length=1_000) for line in text.rstrip("\n").split("\n"))
        self._write("\n".join(f"    {line}" for line in lines))

    @contextmanager
    def progress(
        self, label: str, *, total: int | None, clock: Callable[[], float] = monotonic
    ) -> Iterator[Callable[[int], None]]:
        """Yield a function that adds to the number of what is done, and show it: as a bar, or as a line now and then.

        `total` is None if it is unknown. Nothing is shown as JSON.
        """
        if (console := self._console()) is not None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, console=console, transient=True) as bar:
                shown = bar.add_task(label, total=total)
                yield lambda number: bar.update(shown, advance=number)
            return
        yield _Lines(self, label, total, clock).add

    def style_of(self, name: str) -> Style:
        """Return one of the styles in Django's palettes, such as `ERROR`."""
        style: Style = getattr(self._command.style, name)
        return style

    def _write(self, text: str, style: Style | None = None) -> None:
        self._command.stdout.write(text, style)
        self._command.stdout.flush()  # a pipe or a file would be buffered up to 8 KiB

    def _coloured(self, label: str, value: str) -> None:
        console = self._console() if value in _COLOURS else None
        if console is None:
            self._write(label + value)
        else:
            from rich.text import Text

            console.print(Text(label).append(value, style=_COLOURS[value]))

    def _console(self) -> Any:
        """Return a console of rich; None without a terminal, without rich, without colours, or as JSON."""
        if self.as_json or not self._colours or not self._command.stdout.isatty():
            return None
        try:
            from rich.console import Console
        except ImportError:
            return None
        return Console(file=_Stream(self._command.stdout), highlight=False)  # type: ignore[arg-type]  # what rich needs


class _Stream:
    """A stream of a command, without the line break that Django adds to each write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text, ending="")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lines:
    """Progress in lines, for a stream that cannot show a bar."""

    def __init__(self, output: Output, label: str, total: int | None, clock: Callable[[], float]) -> None:
        self._output = output
        self._label = label
        self._of = "" if total is None else f" of {total:,}"
        self._clock = clock
        self._done = 0
        self._next = clock() + _PROGRESS_EVERY

    def add(self, number: int) -> None:
        self._done += number
        if self._clock() >= self._next and not self._output.as_json:
            self._next = self._clock() + _PROGRESS_EVERY
            self._output.line(f"{self._label}: {self._done:,}{self._of}")


def utc(moment: datetime | float | None) -> str | None:
    """Return a time in UTC and to the second, as in 2026-05-02T09:30:11Z. A naive datetime is a local time."""
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, timezone.utc)
    return f"{moment.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def seconds(number: float | None) -> str | None:
    """Return a duration for people: `0.012 s`, `12.3 s`, `5 min 2 s`, or `3 h 20 min`."""
    if number is None:
        return None
    if number < 60:
        return f"{number:.3g} s" if number < 10 else f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def plain_json(value: object) -> object:
    """Return a value that JSON lacks as one that it has."""
    if isinstance(value, datetime):
        return utc(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON.")


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return printable(text, max_length=_MAX_CELL)


def _needed_width(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Return the number of characters in a line that a table needs to show all of its columns."""
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    return sum(
        (width if heading in _UNBROKEN else min(width, _NARROWEST)) + _BETWEEN
        for heading, width in zip(headings, widths, strict=True)
    )


def _rich_table(headings: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="",
        header_style="bold",
        show_edge=False,
        pad_edge=False,
    )
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in _UNBROKEN)
    for row in cells:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    return table
