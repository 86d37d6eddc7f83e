"""Charts of the report, as SVG files; needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLORS: Final = (
    *("#2a6f97", "#e07a5f", "#3d8b5f", "#8d6a9f", "#b08900"),
    *("#5c677d", "#c0392b", "#16a085", "#7f8c8d", "#34495e"),
)
# Text stays text, and the same figures give the same file.
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "observatory_storage",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
}


def draw(chart: Mapping[str, Any], directory: Path) -> Path:
    """Draw a chart as `Suite.bars` and `Suite.lines` describe it; return its file."""
    with mpl.rc_context(_STYLE):
        height = 1.0 + 0.32 * len(chart["values"]) if chart["kind"] == "bars" else 4.2
        figure = Figure(figsize=(8.4, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(chart["title"], loc="left")
        if chart["kind"] == "bars":
            _bars(axes, chart)
        else:
            _lines(axes, chart)
        directory.mkdir(exist_ok=True)
        path = directory / f"{chart['name']}.svg"
        figure.savefig(path, metadata={"Date": None})
    return path


def _bars(axes: Axes, chart: Mapping[str, Any]) -> None:
    """Medians as bars, from the top; quartiles as whiskers."""
    names = [*reversed(chart["values"])]
    lower, median, upper = zip(*(chart["values"][name] for name in names), strict=True)
    below = [max(0.0, middle - low) for low, middle in zip(lower, median, strict=True)]
    above = [max(0.0, high - middle) for middle, high in zip(median, upper, strict=True)]
    axes.barh(names, median, xerr=[below, above], color=_COLORS[0], ecolor="#333333", capsize=2, height=0.66)
    for place, (value, high) in enumerate(zip(median, upper, strict=True)):
        axes.annotate(f"{value:.2f}", (max(value, high), place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.12 * max(upper))
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _lines(axes: Axes, chart: Mapping[str, Any]) -> None:
    series: Mapping[str, list[float | None]] = chart["series"]
    for number, (name, values) in enumerate(series.items()):
        shown = [float("nan") if value is None else value for value in values]
        # Colours repeat after ten, so that the kind of line has to differ.
        style = ("-", "--", ":")[number // len(_COLORS) % 3]
        axes.plot(chart["places"], shown, style, marker="o", color=_COLORS[number % len(_COLORS)], label=name)
    if chart["logarithmic"]:
        axes.set_yscale("log")
        known = [value for values in series.values() for value in values if value]
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if max(known) < 10 * min(known) else "")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(chart["x_title"])
    axes.grid(alpha=0.25)
    if len(series) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
