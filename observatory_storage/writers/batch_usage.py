"""What a batch of spans used: model calls in wire form, summed up by hour and dimensions."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Any, Final

from observatory_storage.usage.sums import AMOUNTS, DIMENSIONS, HOUR_US, Key, UsageSums
from observatory_storage.writers.convert import WireRow
from observatory_storage.writers.tables import SPANS, Layout

_START: Final = SPANS.index["start_time"]
_COUNTS: Final = SPANS.index["counts_usage"]


class BatchUsage:
    """Gathers the model calls of a batch and sums them up when all are known.

    While rows are sent, a call costs a look-up and a place in a list, in which its amounts stand one behind the other:
    as tuples they would cost as much again, because the garbage collector walks over them. The sums are made by
    column, in C.
    """

    def __init__(self, layout: Layout) -> None:
        self._dimensions = tuple(name for name in DIMENSIONS if name in layout.names)
        self._amounts = tuple(name for name in AMOUNTS if name in layout.names)
        self._dimensions_of = itemgetter(*map(layout.names.index, self._dimensions))
        self._amounts_of = itemgetter(*map(layout.names.index, self._amounts))
        self._calls: dict[tuple[int, Any], list[Any]] = {}

    def add(self, rows: Iterable[WireRow]) -> None:
        """Add those of the rows that count."""
        calls, dimensions_of, amounts_of = self._calls, self._dimensions_of, self._amounts_of
        for row in rows:
            if row[_COUNTS]:
                key = (row[_START] // HOUR_US, dimensions_of(row))
                found = calls.get(key)
                if found is None:
                    calls[key] = [*amounts_of(row)]
                else:
                    found += amounts_of(row)

    def clear(self) -> None:
        """Forget all calls."""
        self._calls.clear()

    def add_to(self, sums: UsageSums) -> None:
        """Add the sums of what was gathered to others."""
        width = len(self._amounts)
        for (hour, dimensions), amounts in self._calls.items():
            key = Key(hour, **dict(zip(self._dimensions, dimensions, strict=True)))
            columns: dict[str, list[Any]] = {name: amounts[place::width] for place, name in enumerate(self._amounts)}
            sums.add(key, columns, len(amounts) // width)
