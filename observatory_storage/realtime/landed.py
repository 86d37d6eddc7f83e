"""What a writer hands over of the rows that it has committed: references to what it sent, and no work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

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


class Landed:
    """Rows of one transaction in wire form, the columns of `COLUMNS` as far as they were sent (`names`).

    `metrics` and `series` say by id what points belong to: name, unit, type and service; attributes.
    """

    def __init__(self, signal: str, layout: Sequence[str]) -> None:
        self.signal = signal
        self.names = tuple(name for name in COLUMNS[signal] if name in layout)
        self._pick: Callable[[Sequence[Any]], tuple[Any, ...]] = itemgetter(*map(layout.index, self.names))
        self.rows: list[tuple[Any, ...]] = []
        self.metrics: Mapping[bytes, tuple[Any, ...]] = {}
        self.series: Mapping[tuple[bytes, bytes], Mapping[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take rows as they are sent."""
        self.rows.extend(map(self._pick, rows))

    def clear(self) -> None:
        """Forget rows that were rolled back, or will be sent again."""
        self.rows = []

    def keep(self, wanted: Callable[[tuple[Any, ...]], bool]) -> None:
        """Keep the rows that were new."""
        self.rows = [row for row in self.rows if wanted(row)]
