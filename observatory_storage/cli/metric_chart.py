"""The series of a metric in the terminal: one as a chart, several as lines of one scale."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len
from rich.text import Text

from observatory_storage.cli import formats
from observatory_storage.cli.drawing import Scale, Value, draw, fitted
from observatory_storage.cli.metric_reading import Reading, Series
from observatory_storage.cli.tables import Column, print_table
from observatory_storage.cli.terminal import Terminal

_ROWS: Final = 8
_LEAST_WIDTH: Final = 12
_GOOD_WIDTH: Final = 30
_MOST_LABEL: Final = 32
# What is averaged says nothing about amounts, so that its scale need not begin at 0.
_AMOUNTS: Final = ("sum", "count", "rate", "increase")
_DAY: Final = dt.timedelta(days=1)


def print_chart(out: Terminal, reading: Reading, most: int) -> None:
    """Print a metric's series, those with the largest figures first, and `most` of them at most."""
    series = sorted(reading.series, key=_largest, reverse=True)
    shown = series[:most]
    from_zero = reading.aggregation in _AMOUNTS
    scale = Scale.of((point.value for one in shown for point in one.points), from_zero=from_zero)
    if len(series) == 1:
        several = _print_one(out, reading, shown[0], scale)
    else:
        several = _print_lines(out, reading, shown, scale)
    if several > 1:
        out.print((f"each column shows the largest of {several} steps", "dim"))
    if len(series) > most:
        left = f"{out.glyphs.ellipsis} and {len(series) - most:,} more series; -n shows more of them"
        out.print((left, "dim"))


def _print_heading(out: Terminal, reading: Reading) -> None:
    unit = _unit(out, reading)
    facts = [
        reading.metric_type.replace("_", " "),
        f"{reading.aggregation}{f' in {unit}' if unit else ''} by {formats.step(reading.step)}",
        f"{formats.moment(reading.start)} to {formats.moment(reading.end)} UTC",
    ]
    out.print((out.text(reading.name), "bold"), ("  " + "  ".join(facts), "dim"))


def _unit(out: Terminal, reading: Reading) -> str:
    unit = out.text(reading.unit or "", _MOST_LABEL)
    if reading.metric_type not in ("gauge", "counter") and reading.aggregation in ("rate", "increase"):
        unit = "values"
    if reading.aggregation == "count":
        return ""
    return f"{unit or '1'}/s" if reading.aggregation == "rate" else unit


def _print_one(out: Terminal, reading: Reading, series: Series, scale: Scale) -> int:
    _print_heading(out, reading)
    named = ", ".join(f"{name} {_label(out, value)}" for name, value in series.labels)
    if named:
        out.print(named)
    middle = scale.lowest / 2 + scale.highest / 2
    marks = {0: scale.highest, _ROWS // 2: middle, _ROWS - 1: scale.lowest}
    shown = {row: formats.figure(mark) for row, mark in marks.items()}
    margin = max(map(cell_len, shown.values()))
    values, several = fitted([point.value for point in series.points], out.width - margin - 2)
    for number, row in enumerate(draw(values, scale, out.glyphs, _ROWS)):
        line = Text(f"{shown.get(number, ''):>{margin}}  ", "dim").append(row, "cyan")
        line.rstrip()
        out.console.print(line, no_wrap=True, crop=False)
    out.console.print(Text(" " * (margin + 2) + _axis(reading, len(values)), "dim"), no_wrap=True, crop=False)
    figures = [f"{name} {figure}" for name, figure in _figures(series) if figure]
    out.print("  ".join(figures))
    return several


def _print_lines(out: Terminal, reading: Reading, shown: Sequence[Series], scale: Scale) -> int:
    _print_heading(out, reading)
    names = [name for name, _ in shown[0].labels]
    labels = [
        Column(out.text(name), [_label(out, one.labels[place][1]) for one in shown], flexible=True, minimum=8)
        for place, name in enumerate(names)
    ]
    figures = [dict(_figures(one)) for one in shown]
    facts = [
        Column(name.upper(), [figure[name] for figure in figures], keep=9 - place, right=True)
        for place, name in enumerate(figures[0])
    ]
    taken = sum(min(column.natural_width, _MOST_LABEL) + 2 for column in labels)
    # The drawing comes before the last of the figures.
    while len(facts) > 1 and out.width - taken - sum(column.natural_width + 2 for column in facts) < _GOOD_WIDTH:
        facts.pop()
    taken += sum(column.natural_width + 2 for column in facts)
    drawn = [fitted([point.value for point in one.points], max(out.width - taken, _LEAST_WIDTH)) for one in shown]
    lines = [draw(values, scale, out.glyphs)[0] for values, _ in drawn]
    print_table(out, [*labels, Column(_axis(reading, len(lines[0])), lines, styles=["cyan"] * len(lines)), *facts])
    out.print((f"scale {formats.figure(scale.lowest)} to {formats.figure(scale.highest)}", "dim"))
    return drawn[0][1]


def _figures(series: Series) -> Iterator[tuple[str, str]]:
    known = [point.value for point in series.points if point.value is not None]
    yield "last", formats.figure(known[-1] if known else None)
    yield "min", formats.figure(min(known, default=None))
    yield "max", formats.figure(max(known, default=None))
    for percentile in series.percentiles:
        value = None if math.isnan(percentile.value) else percentile.value
        yield f"p{percentile.fraction * 100:g}", formats.figure(value)


def _axis(reading: Reading, width: int) -> str:
    """Return when the first step begins and the last one ends, at both ends of the width where there is room."""
    form = "%H:%M:%S" if reading.step < dt.timedelta(minutes=1) else "%H:%M"
    if reading.end - reading.start > _DAY:
        form = "%Y-%m-%d" if reading.step >= _DAY else "%m-%d %H:%M"
    begin, end = f"{reading.start:{form}}", f"{reading.end:{form}}"
    return begin + " " * (width - len(begin) - len(end)) + end if width > len(begin) + len(end) else begin


def _label(out: Terminal, value: str | None) -> str:
    return "-" if value is None else out.text(value, 120)


def _largest(series: Series) -> float:
    values: list[Value] = [point.value for point in series.points]
    return max((float(value) for value in values if value is not None and not math.isnan(value)), default=-math.inf)
