"""Charts of the report, as SVG files; needs pygal (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pygal
from pygal.style import Style

_COLORS: Final = (
    *("#2a6f97", "#e07a5f", "#3d8b5f", "#8d6a9f", "#b08900"),
    *("#5c677d", "#c0392b", "#16a085", "#7f8c8d", "#34495e"),
)
_STYLE: Final = Style(
    background="#ffffff",
    plot_background="#ffffff",
    colors=(
        "#2a6f97",
        "#e07a5f",
        "#3d8b5f",
        "#8d6a9f",
        "#b08900",
        "#5c677d",
        "#c0392b",
        "#16a085",
        "#7f8c8d",
        "#34495e",
    ),
    font_family="sans-serif",
    title_font_size=16,
    label_font_size=12,
    major_label_font_size=12,
    value_font_size=11,
    legend_font_size=12,
)
# No scripts and no tool tips: the file is looked at as a picture.
_PLAIN: Final[Mapping[str, Any]] = {"js": [], "disable_xml_declaration": False, "style": _STYLE, "no_prefix": True}


def draw(chart: Mapping[str, Any], directory: Path) -> Path:
    """Draw a chart as `Suite.bars` and `Suite.lines` describe it; return its file."""
    drawn = _bars(chart) if chart["kind"] == "bars" else _lines(chart)
    path = directory / f"{chart['name']}.svg"
    directory.mkdir(exist_ok=True)
    path.write_bytes(drawn.render())
    return path


def _bars(chart: Mapping[str, Any]) -> Any:
    values = chart["values"]
    drawn = pygal.HorizontalBar(
        **_PLAIN,
        title=chart["title"],
        show_legend=False,
        print_values=True,
        print_values_position="top",
        width=860,
        height=90 + 34 * len(values),
        truncate_label=-1,
        margin_right=40,
        value_formatter=lambda value: f"{value:.2f}",
    )
    # Drawn from below.
    names = [*reversed(values)]
    drawn.x_labels = names
    drawn.add(
        "",
        [{"value": values[name][1], "ci": {"low": values[name][0], "high": values[name][2]}} for name in names],
    )
    return drawn


def _lines(chart: Mapping[str, Any]) -> Any:
    drawn = pygal.Line(
        **_PLAIN,
        title=chart["title"],
        x_title=chart["x_title"] or None,
        logarithmic=chart["logarithmic"],
        width=860,
        height=420,
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        truncate_legend=-1,
        range=None if chart["logarithmic"] else (0, _top(chart)),
        value_formatter=lambda value: f"{value:g}",
    )
    drawn.x_labels = chart["places"]
    for name, values in chart["series"].items():
        drawn.add(name, values)
    return drawn


def _top(chart: Mapping[str, Any]) -> float:
    return 1.1 * max(float(value) for values in chart["series"].values() for value in values if value is not None)
