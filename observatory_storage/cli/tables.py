"""Plain tables that fit the width they are given: columns of least importance leave first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

from observatory_storage.cli.terminal import Terminal

_GAP = 2


@dataclass(slots=True)
class Column:
    """A column with one cell a row.

    `keep` orders the columns' importance: those of the lowest value are left out first, and None never is.
    A flexible column is cut, to `minimum` columns at most, before another one has to go; one that is `first` only when
    the others are.
    """

    title: str
    cells: Sequence[str]
    keep: int | None = None
    right: bool = False
    flexible: bool = False
    minimum: int = 12
    first: bool = False
    styles: Sequence[str] = field(default_factory=tuple)

    @property
    def natural_width(self) -> int:
        """The width at which nothing is cut."""
        return max(cell_len(text) for text in (self.title, *self.cells))

    @property
    def smallest_width(self) -> int:
        """The width below which the column is of no use."""
        return min(self.natural_width, max(self.minimum, cell_len(self.title))) if self.flexible else self.natural_width

    @property
    def is_empty(self) -> bool:
        """Tell whether no row has anything to show here."""
        return not any(self.cells)


def print_table(terminal: Terminal, columns: Sequence[Column]) -> None:
    """Print the columns side by side under their titles; optional columns without content are left out."""
    shown = fit([column for column in columns if column.keep is None or not column.is_empty], terminal.width)
    widths = widths_of(shown, terminal.width)
    terminal.console.print(_line(terminal, [column.title for column in shown], shown, widths, "bold"), no_wrap=True)
    for number in range(len(shown[0].cells)):
        cells = [column.cells[number] for column in shown]
        terminal.console.print(_line(terminal, cells, shown, widths, row=number), no_wrap=True, crop=False)


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """Leave out columns, the least important ones first, until the rest can stand side by side."""
    shown = list(columns)
    while _total([column.smallest_width for column in shown]) > width:
        optional = [column for column in shown if column.keep is not None]
        if not optional:
            break
        shown.remove(min(optional, key=lambda column: column.keep or 0))
    return shown


def widths_of(columns: Sequence[Column], width: int) -> list[int]:
    """Return each column's width: natural, save that flexible ones share what is left, the widest cut first."""
    widths = [column.natural_width for column in columns]
    while _total(widths) > width:
        cuttable = [n for n, column in enumerate(columns) if column.flexible and widths[n] > 1]
        above = [n for n in cuttable if widths[n] > columns[n].smallest_width] or cuttable
        if not above:
            break
        others = [n for n in above if not columns[n].first]
        widths[max(others or above, key=lambda n: widths[n])] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _line(
    terminal: Terminal,
    cells: Sequence[str],
    columns: Sequence[Column],
    widths: Sequence[int],
    style: str = "",
    *,
    row: int | None = None,
) -> Text:
    line = Text(style=style)
    for place, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=True)):
        shown = terminal.cut(cell, width)
        padding = " " * (width - cell_len(shown))
        line.append(" " * _GAP if place else "")
        if column.right:
            line.append(padding)
        line.append(shown, column.styles[row] if row is not None and column.styles else "")
        if not column.right and place < len(columns) - 1:
            line.append(padding)
    return line
