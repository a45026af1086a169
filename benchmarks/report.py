"""Reports of benchmarks: printed in a terminal, and written to a file for `python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        """Return the table in Markdown, with aligned columns."""
        rows = [list(self.header), *map(list, self.rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.header))]
        rule = ["-" * width for width in widths]
        return [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in (rows[0], rule, *rows[1:])
        ]


@dataclass(frozen=True, slots=True)
class Bars:
    """A plot with one bar for each contender; `bars` are (label, median, low, high)."""

    name: str
    title: str
    axis: str
    bars: Sequence[tuple[str, float, float, float]]
    #: The position of a line: the floor, or the goal.
    mark: float | None = None
    kind: str = "bars"


@dataclass(frozen=True, slots=True)
class Lines:
    """A plot with one line for each contender; `lines` are (label, [(x, y), …])."""

    name: str
    title: str
    x_axis: str
    y_axis: str
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]
    logarithmic_x: bool = False
    logarithmic_y: bool = False
    kind: str = "lines"


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to one question."""

    title: str
    #: The question, and the comparison that answers it, in a few sentences.
    question: str
    #: The details that are needed to repeat the measurement: sizes, rounds, servers, versions.
    method: Sequence[str]
    tables: Sequence[Table]
    plots: Sequence[Bars | Lines] = ()
    #: The meaning of the figures, and its limits.
    remarks: Sequence[str] = field(default=())

    def __str__(self) -> str:
        lines = [self.title, "=" * len(self.title), "", self.question, ""]
        lines += [f"- {sentence}" for sentence in self.method]
        for table in self.tables:
            lines += ["", table.caption, "", *table.lines()]
        lines += ["", *(f"- {sentence}" for sentence in self.remarks)]
        return "\n".join(lines)


def main(measure: Callable[[argparse.Namespace], Report], *, rounds: int, **options: Any) -> None:
    """Run a benchmark as a program: print its report, and write it to the file given by `--json`.

    Each of `options` adds a command-line option with the type of its default.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", type=Path, help="the file for the report")
    parser.add_argument("--rounds", type=int, default=rounds, help="the number of measurements of each contender")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    chosen = parser.parse_args()
    report = measure(chosen)
    print(report)
    if chosen.json:
        today = date.today().isoformat()  # noqa: DTZ011, the local date of the measurement
        chosen.json.write_text(json.dumps({**asdict(report), "measured": today}))
