"""Numbers in a row as columns of block characters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from observatory_storage.cli.terminal import Glyphs

Value = int | float | None

# Repeated more often, a few columns would look like a bar chart of their own.
_WIDEST_COLUMN = 3


@dataclass(frozen=True, slots=True)
class Scale:
    """The values that the lowest and the highest mark stand for."""

    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[Value], *, from_zero: bool) -> Scale:
        """Return the scale on which values can be told apart, with 0 in it, or not where they lie far from it."""
        known = [float(value) for value in values if value is not None and math.isfinite(value)] or [0.0]
        lowest, highest = min(known), max(known)
        if from_zero or not 0 < highest / 2 < lowest < highest:
            lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        return cls(lowest, highest)

    def level(self, value: float, levels: int) -> int:
        """Return the level of a value, from 1 to `levels`: what is there is seen."""
        if self.highest == self.lowest and math.isfinite(value):
            # Nothing to compare it with.
            return 1 if not value else levels
        # By halves: the difference of the largest numbers is none.
        span = self.highest / 2 - self.lowest / 2
        place = (min(max(float(value), self.lowest), self.highest) / 2 - self.lowest / 2) / (span or 1.0)
        return 1 + round(place * (levels - 1))


def fitted(values: Sequence[Value], width: int) -> tuple[list[Value], int]:
    """Fit values into a number of columns: repeat each, or take the largest of several; return how many these are."""
    width = max(width, 1)
    if len(values) <= width:
        times = min(width // max(len(values), 1), _WIDEST_COLUMN)
        return [value for value in values for _ in range(times)], 1
    several = -(-len(values) // width)
    groups = (values[first : first + several] for first in range(0, len(values), several))
    return [max((value for value in group if _is_number(value)), default=None) for group in groups], several


def draw(values: Sequence[Value], scale: Scale, glyphs: Glyphs, rows: int = 1) -> list[str]:
    """Return the rows of a drawing from top to bottom; where there is no value, there is nothing."""
    steps = len(glyphs.levels)
    marks = " " + glyphs.levels
    filled = [scale.level(value, rows * steps) if _is_number(value) else 0 for value in values]
    return [
        "".join(marks[min(max(level - row * steps, 0), steps)] for level in filled) for row in reversed(range(rows))
    ]


def _is_number(value: Value) -> TypeGuard[int | float]:
    return value is not None and not math.isnan(value)
