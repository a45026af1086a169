"""Turn numbers into SVG elements, with classes instead of styles, a title and a description."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

#: The size of a chart in its own units.
WIDTH: Final = 720
HEIGHT: Final = 200
_LEFT: Final = 44
_RIGHT: Final = 8
_BOTTOM: Final = 22
_TOP: Final = 10
#: The parts that are hatched, so that they differ from the others without colour.
HATCHED: Final = frozenset({"failed"})
_HATCH: Final = (
    '<defs><pattern id="task-hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line class="task-hatch" x1="0" x2="0" y1="0" y2="5"/></pattern></defs>'
)
#: The maximum number of labels below a chart.
_LABELS: Final = 8


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a chart: its label and the parts that are stacked, each with its CSS class."""

    label: str
    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(number for _, number in self.parts)


def columns(data: Sequence[Column], *, name: str, title: str, description: str) -> SafeString:
    """Return stacked columns. `name` begins the ids of the title and the description, which must be unique in a page.

    Each part is an element of the class `task-part-…`.
    """
    top = _rounded_up(max((column.total for column in data), default=0))
    return format_html(
        '<svg class="task-chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-description">'
        '<title id="{}-title">{}</title><desc id="{}-description">{}</desc>{}{}{}</svg>',
        *(WIDTH, HEIGHT, name, name, name, title, name, description),
        mark_safe(_HATCH),  # a constant
        _grid(top),
        _columns(data, top),
    )


def _grid(top: int) -> SafeString:
    lines = ((_y(value, top), value) for value in sorted({0, top // 2, top}))
    line = '<line class="task-grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="task-axis" x="{}" y="{}">{}</text>'
    return format_html_join(
        "",
        line,
        ((_LEFT, WIDTH, _number(y), _number(y), _LEFT - 6, _number(y + 4), short(value)) for y, value in lines),
    )


def _columns(data: Sequence[Column], top: int) -> SafeString:
    step = (WIDTH - _LEFT - _RIGHT) / max(len(data), 1)
    width = max(step * 0.72, 1.0)
    every = math.ceil(len(data) / _LABELS) or 1
    pieces: list[SafeString] = []
    for index, column in enumerate(data):
        left = _LEFT + index * step + (step - width) / 2
        pieces.append(_stack(column, left, width, top))
        if index % every == 0 and left + width / 2 < WIDTH - _LEFT / 2:
            pieces.append(_below(left + width / 2, column.label))
    return format_html_join("", "{}", ((piece,) for piece in pieces))


def _stack(column: Column, left: float, width: float, top: int) -> SafeString:
    pieces = []
    below = 0
    for kind, number in column.parts:
        if number:
            y = _y(below + number, top)
            height = _y(below, top) - y
            place = (_number(left), _number(y), _number(width), _number(height))
            pieces.append((kind, "", *place))
            if kind in HATCHED:
                pieces.append(("hatched", mark_safe(' fill="url(#task-hatch)"'), *place))
        below += number
    rectangles = format_html_join("", '<rect class="task-part-{}"{} x="{}" y="{}" width="{}" height="{}"/>', pieces)
    told = ", ".join(f"{number} {kind}" for kind, number in column.parts)
    return format_html("<g><title>{}: {}</title>{}</g>", column.label, told, rectangles)


def _below(x: float, label: str) -> SafeString:
    return format_html('<text class="task-label" x="{}" y="{}">{}</text>', _number(x), HEIGHT - 6, label)


def _y(value: int, top: int) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / max(top, 1)


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic scale of durations, from 10 to the power of `low` to 10 to the power of `high` seconds."""

    low: int
    high: int

    @classmethod
    def around(cls, durations: Iterable[float | None]) -> Scale:
        """Return the smallest scale in whole powers of ten that contains the durations. None and 0 do not count."""
        powers = [math.log10(each) for each in durations if each]
        low = math.floor(min(powers, default=0))
        return cls(low, max(math.ceil(max(powers, default=1)), low + 1))

    def place(self, seconds: float) -> float:
        """Return where a duration is, from 0 to 100."""
        power = math.log10(seconds) if seconds > 0 else self.low
        return 100 * min(max((power - self.low) / (self.high - self.low), 0), 1)


def duration_range(median: float | None, late: float | None, scale: Scale) -> SafeString | str:
    """Return a line from the median to the 95th percentile of a duration.

    It repeats numbers of the table that contains it, so assistive technology skips it.
    """
    if median is None or late is None:
        return ""
    start, end = scale.place(median), scale.place(late)
    places = (_number(scale.place(10.0**power)) for power in range(scale.low, scale.high + 1))
    ticks = format_html_join(
        "", '<line class="task-grid" x1="{}" x2="{}" y1="0" y2="12"/>', ((place, place) for place in places)
    )
    return format_html(
        '<svg class="task-range" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">{}'
        '<rect class="task-range-line" x="{}" y="4" width="{}" height="4"/>'
        '<rect class="task-range-median" x="{}" y="1" width="2" height="10"/></svg>',
        *(ticks, _number(start), _number(max(end - start, 1)), _number(max(start - 1, 0))),
    )


def _rounded_up(value: int) -> int:
    """Return the smallest of 1, 2, 4 or 5 times a power of ten that is not less than `value`."""
    size = 1
    while True:
        for factor in (1, 2, 4, 5):
            if factor * size >= value:
                return factor * size
        size *= 10


def short(value: int) -> str:
    """Return a number with at most a few digits, such as `12k`."""
    for size, unit in ((1_000_000, "M"), (10_000, "k")):
        if value >= size:
            divided = value / (1_000 if unit == "k" else size)
            return f"{divided:.1f}".removesuffix(".0") + unit
    return str(value)


def _number(value: float) -> str:
    """Return a coordinate with at most one decimal, with a point in every language."""
    return f"{value:.1f}".removesuffix(".0")
