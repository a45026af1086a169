"""Draw diagrams as SVG files that are readable in light and dark pages, and load nothing."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

#: A point: x and y in pixels, from the top left corner.
Point = tuple[float, float]

#: Pixels.
TEXT_SIZE: Final = 14
LINE_HEIGHT: Final = 18
#: The mean width of a character, as a part of the size of the text. It is generous, since readers have other fonts.
_CHARACTER: Final = 0.58

# An image follows the colour scheme of the page that shows it. It has a background of its own for pages that do not say
# which one they have.
_STYLE: Final = """\
svg { color-scheme: light dark }
text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1d2b30 }
.paper { fill: #fff }
.plain { fill: #f1f5f6; stroke: #78909c }
.main { fill: #d9eef3; stroke: #0f6f86 }
.good { fill: #dff3e3; stroke: #2e7d43 }
.bad { fill: #fde6e1; stroke: #b3391f }
.wait { fill: #fff1d6; stroke: #a3690b }
.strong { font-weight: 600 }
.small { font-size: 12px; fill: #4c5f66 }
.over { stroke: #fff; stroke-width: 4px; paint-order: stroke }
.line { fill: none; stroke: #546e7a; stroke-width: 1.5 }
.life { fill: none; stroke: #b0bec5; stroke-width: 1.5; stroke-dasharray: 4 4 }
.return { fill: none; stroke: #a3690b; stroke-width: 1.5; stroke-dasharray: 5 4 }
.head { fill: #546e7a }
.mark { fill: #b3391f }
.number { fill: #fff; font-weight: 700; font-size: 12px }
@media (prefers-color-scheme: dark) {
  text { fill: #e3eaec }
  .paper { fill: #1c2326 }
  .plain { fill: #2a3438; stroke: #78909c }
  .main { fill: #12414d; stroke: #4fb3cb }
  .good { fill: #1d3b26; stroke: #6cc184 }
  .bad { fill: #4a241c; stroke: #ef8b73 }
  .wait { fill: #41320f; stroke: #e0ac4c }
  .small { fill: #a9b7bc }
  .over { stroke: #1c2326 }
  .line { stroke: #90a4ae }
  .life { stroke: #55656c }
  .return { stroke: #e0ac4c }
  .head { fill: #90a4ae }
  .mark { fill: #d9573b }
}
"""


class Drawing:
    """A diagram: call its methods in the order in which the shapes cover each other, and `str()` for the file."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self._size = width, height
        self._title = title
        self._description = description
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, lines: Iterable[str], kind: str = "plain") -> None:
        """Draw a box with lines of text in its middle; the first line is strong."""
        lines = list(lines)
        self._add(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')
        top = y + height / 2 - LINE_HEIGHT * (len(lines) - 1) / 2 + 5
        for number, line in enumerate(lines):
            needed = _width_of(line, small=bool(number))
            if needed > width - 8:
                raise ValueError(f"A box of {width:g} px must be at least {needed + 8:.0f} px wide for {line!r}.")
            style = "small" if number else "strong"
            self.text(x + width / 2, top + number * LINE_HEIGHT, line, anchor="middle", style=style)

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", style: str = "") -> None:
        """Write a line, with its beginning, middle or end at `x` and its base line at `y`.

        The style `over` covers the lines below the text.
        """
        width = _width_of(text, small="small" in style)
        start = x - {"start": 0, "middle": 0.5, "end": 1}[anchor] * width
        if start < 0 or start + width > self._size[0]:
            raise ValueError(f"{text!r} must be within the drawing of {self._size[0]} px, not begin at {start:.0f} px.")
        self._add(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(text, quote=False)}</text>'
        )

    def line(self, *points: Point, style: str = "line", both: bool = False, head: bool = True) -> None:
        """Draw a line with an arrow head at its end, or at both."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        ends = (' marker-end="url(#head)"' if head else "") + (' marker-start="url(#head)"' if both else "")
        self._add(f'<path class="{style}" d="{path}"{ends}/>')

    def mark(self, x: float, y: float, number: int) -> None:
        """Draw a number in a circle; the page explains it."""
        self._add(f'<circle class="mark" cx="{x:g}" cy="{y:g}" r="10"/>')
        self.text(x, y + 4, str(number), anchor="middle", style="number")

    def _add(self, part: str) -> None:
        self._parts.append(part)

    def __str__(self) -> str:
        width, height = self._size
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
            'orient="auto-start-reverse"><path class="head" d="M0 1 L10 5 L0 9 z"/></marker>'
        )
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-labelledby="title description">'
        )
        return "\n".join(
            [
                svg,
                f'<title id="title">{escape(self._title)}</title>',
                f'<desc id="description">{escape(self._description)}</desc>',
                f"<style>\n{_STYLE}</style>",
                f"<defs>{head}</defs>",
                f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
                *self._parts,
                "</svg>\n",
            ]
        )


def _width_of(text: str, *, small: bool) -> float:
    """Return about how many pixels a line takes."""
    return len(text) * (12 if small else TEXT_SIZE) * _CHARACTER
