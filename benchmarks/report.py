"""What a benchmark found: as text for a terminal, and as a file that `python -m benchmarks` makes pages of."""

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
        """Return the table in Markdown, its columns aligned for those who read the text itself."""
        rows = [list(self.header), *map(list, self.rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.header))]
        rule = ["-" * width for width in widths]
        return [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in (rows[0], rule, *rows[1:])
        ]


@dataclass(frozen=True, slots=True)
class Bars:
    """A plot of one bar a contender; `bars` are (label, median, low, high)."""

    name: str
    title: str
    axis: str
    bars: Sequence[tuple[str, float, float, float]]
    #: Where a line is drawn: the floor, or the goal.
    mark: float | None = None
    kind: str = "bars"


@dataclass(frozen=True, slots=True)
class Lines:
    """A plot of one line a contender; `lines` are (label, [(x, y), …])."""

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
    #: What is asked, and what is compared with what, in a few sentences.
    question: str
    #: What somebody must know to do the same: sizes, rounds, servers, versions.
    method: Sequence[str]
    tables: Sequence[Table]
    plots: Sequence[Bars | Lines] = ()
    #: What the figures say, and what they do not.
    remarks: Sequence[str] = field(default=())

    def __str__(self) -> str:
        lines = [self.title, "=" * len(self.title), "", self.question, ""]
        lines += [f"- {sentence}" for sentence in self.method]
        for table in self.tables:
            lines += ["", table.caption, "", *table.lines()]
        lines += ["", *(f"- {sentence}" for sentence in self.remarks)]
        return "\n".join(lines)


def main(measure: Callable[[argparse.Namespace], Report], *, rounds: int, **options: Any) -> None:
    """Run a benchmark as a program: print its report, and write it to the file of `--json`.

    Each of `options` is another option, with the type of its default.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the report")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contender is measured")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    chosen = parser.parse_args()
    report = measure(chosen)
    print(report)
    if chosen.json:
        today = date.today().isoformat()  # noqa: DTZ011, the day where it was measured
        chosen.json.write_text(json.dumps({**asdict(report), "measured": today}))
