"""Draw the plots of reports as SVG files, which are identical for identical figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

# A fixed salt and a missing date keep the files of every run identical.
mpl.rcParams.update({"svg.hashsalt": "lambda_tasks", "svg.fonttype": "none", "font.family": "sans-serif"})

#: Readable on a white page and on a dark one.
COLOURS: Final = ("#3b7dd8", "#d8743b", "#3ba272", "#9a60b4", "#c9a227", "#7a8793", "#d8527c", "#2aa5a0")
INK: Final = "#7a7a7a"


def draw(plot: dict[str, Any], file: Path) -> None:
    """Draw a plot, given as the dict of a `Bars` or `Lines`, into `file`."""
    figure = Figure(figsize=(7.2, 0.6 + 0.42 * len(plot["bars"])) if plot["kind"] == "bars" else (7.2, 4))
    axes = figure.add_subplot()
    axes.set_title(plot["title"], fontsize=11, color=INK)
    axes.tick_params(colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    (_bars if plot["kind"] == "bars" else _lines)(axes, plot)
    figure.savefig(file, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})


def _bars(axes: Any, plot: dict[str, Any]) -> None:
    labels = [label for label, *_ in plot["bars"]]
    medians = [median for _, median, _, _ in plot["bars"]]
    errors = [
        [median - low for _, median, low, _ in plot["bars"]],
        [high - median for _, median, _, high in plot["bars"]],
    ]
    axes.barh(labels, medians, xerr=errors, color=COLOURS[0], ecolor=INK, height=0.6)
    axes.invert_yaxis()
    axes.set_xlabel(plot["axis"], color=INK, fontsize=9)
    for row, median in enumerate(medians):
        axes.annotate(f" {median:,.3g}", (median + errors[1][row], row), va="center", fontsize=9, color=INK)
    axes.margins(x=0.12)
    if plot["mark"] is not None:
        axes.axvline(plot["mark"], color=COLOURS[1], linewidth=1, linestyle="--")


def _lines(axes: Any, plot: dict[str, Any]) -> None:
    for colour, (label, points) in zip(COLOURS * 3, plot["lines"], strict=False):
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=4, color=colour, label=label)
    axes.set_xlabel(plot["x_axis"], color=INK, fontsize=9)
    axes.set_ylabel(plot["y_axis"], color=INK, fontsize=9)
    axes.set_xscale("log" if plot["logarithmic_x"] else "linear")
    axes.set_yscale("log" if plot["logarithmic_y"] else "linear")
    if not plot["logarithmic_y"]:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
