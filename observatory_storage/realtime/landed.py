"""What a writer hands over of the rows that it has committed: references to what it sent, and hardly any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import orjson

# A live view shows a line of a record; who wants all of it reads it by its id. A row that waits takes 600 bytes beside
# its texts, four at most, so that this also says how much memory all that may wait takes.
_TEXT_CHARACTERS: Final = 300
_ATTRIBUTES_BYTES: Final = 1024

SPAN_COLUMNS: Final = (
    "trace_id",
    "span_id",
    "start_time",
    "project",
    "name",
    "service_name",
    "duration_us",
    "status",
    "operation",
    "model",
    "input_tokens",
    "output_tokens",
    "cost_usd",
)
LOG_COLUMNS: Final = (
    "id",
    "timestamp",
    "project",
    "severity_number",
    "severity_text",
    "service_name",
    "event_name",
    "body",
    "trace_id",
    "span_id",
)
POINT_COLUMNS: Final = ("metric_id", "series_id", "timestamp", "project", "value", "value_int", "count", "sum")

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {"traces": SPAN_COLUMNS, "logs": LOG_COLUMNS, "metrics": POINT_COLUMNS}
"""What is told of a row of each signal."""

# Of any length; the other texts are short where they are stored already.
_LONG_TEXTS: Final = ("name", "operation", "severity_text", "event_name", "body")


class Landed:
    """Rows of one transaction in wire form, the columns of `COLUMNS` as far as they were sent (`names`).

    `metrics` and `series` say by id what points belong to: name, unit, type and service; attributes, as they were given
    or as JSON.
    """

    def __init__(self, signal: str, layout: Sequence[str]) -> None:
        self.signal = signal
        self.names = tuple(name for name in COLUMNS[signal] if name in layout)
        self._pick: Callable[[Sequence[Any]], tuple[Any, ...]] = itemgetter(*map(layout.index, self.names))
        self.rows: list[tuple[Any, ...]] = []
        self.metrics: Mapping[bytes, tuple[Any, ...]] = {}
        self.series: Mapping[tuple[bytes, bytes], Mapping[str, Any] | orjson.Fragment | None] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take rows as they are sent."""
        self.rows.extend(map(self._pick, rows))

    def compact(self) -> None:
        """Cut texts and leave out large attributes, so that rows that wait do not hold what no event shows.

        Attributes are JSON from then on.
        """
        for place, name in enumerate(self.names):
            if name in _LONG_TEXTS and self.rows:
                # Looked at in C, and nearly always all that is done.
                texts = filter(None, map(itemgetter(place), self.rows))
                if max(map(len, texts), default=0) > _TEXT_CHARACTERS:
                    self.rows = [(*row[:place], _cut(row[place]), *row[place + 1 :]) for row in self.rows]
        self.metrics = {key: tuple(map(_cut, named)) for key, named in self.metrics.items()}
        self.series = {key: _encoded(attributes) for key, attributes in self.series.items()}

    def clear(self) -> None:
        """Forget rows that were rolled back, or will be sent again."""
        self.rows = []

    def keep(self, wanted: Callable[[tuple[Any, ...]], bool]) -> None:
        """Keep the rows that were new."""
        self.rows = [row for row in self.rows if wanted(row)]


def _cut(text: str | None) -> str | None:
    return text and text[:_TEXT_CHARACTERS]


def _encoded(attributes: Any) -> orjson.Fragment | None:
    try:
        encoded = orjson.dumps(attributes, default=str, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, RecursionError):
        # They come as they were given: with numbers that JSON readers cannot take, or odd text.
        return None
    return orjson.Fragment(encoded) if len(encoded) <= _ATTRIBUTES_BYTES else None
