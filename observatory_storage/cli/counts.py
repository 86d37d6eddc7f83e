"""What files held, by kind of row."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any, Final

from observatory_storage.cli import formats
from observatory_storage.models.rows import MetricRow
from observatory_storage.otlp import DecodedLogs, DecodedMetrics, DecodedTraces, Signal

AnyDecoded = DecodedTraces | DecodedMetrics | DecodedLogs

NOUNS: Final = {Signal.TRACES: "span", Signal.METRICS: "data point", Signal.LOGS: "log record"}
"""What a row of each signal is called."""

_NAMES: Final = {
    Signal.TRACES: ("traces", "spans", "events"),
    Signal.METRICS: ("metrics", "data_points"),
    Signal.LOGS: ("logs",),
}


@dataclass(slots=True)
class Counts:
    """Rows by kind, duplicates included. Of a kind that was not met there are none."""

    traces: int = 0
    spans: int = 0
    events: int = 0
    metrics: int = 0
    data_points: int = 0
    logs: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Add up kind by kind."""
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def sentence(self, signals: set[Signal]) -> str:
        """Say how much there is of some signals."""
        said = []
        if Signal.TRACES in signals:
            said.append(
                f"{formats.counted(self.traces, 'trace')}, {formats.counted(self.spans, 'span')} and "
                f"{formats.counted(self.events, 'event')}"
            )
        if Signal.METRICS in signals:
            of = formats.counted(self.metrics, "metric")
            said.append(f"{formats.counted(self.data_points, 'data point')} of {of}")
        if Signal.LOGS in signals:
            said.append(formats.counted(self.logs, "log record"))
        return ", ".join(said)


@dataclass(slots=True)
class Held:
    """What one file held: rows as they were decoded, before anything is known of their being stored."""

    file: str
    signals: set[Signal] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)
    _traces: set[Any] = field(default_factory=set)
    _metrics: set[tuple[Any, ...]] = field(default_factory=set)

    def add(self, decoded: AnyDecoded) -> None:
        """Count the rows of a part of the file."""
        if isinstance(decoded, DecodedTraces):
            self.signals.add(Signal.TRACES)
            self.counts.spans += len(decoded.spans)
            self.counts.events += decoded.event_count
            self._traces.update(span["trace_id"] for span in decoded.spans)
            self.counts.traces = len(self._traces)
        elif isinstance(decoded, DecodedMetrics):
            self.signals.add(Signal.METRICS)
            self.counts.data_points += len(decoded.data_points)
            self._metrics.update(metrics_of(decoded))
            self.counts.metrics = len(self._metrics)
        else:
            self.signals.add(Signal.LOGS)
            self.counts.logs += len(decoded.logs)

    def forget_names(self) -> None:
        """Keep the numbers alone, once the file is read."""
        self._traces.clear()
        self._metrics.clear()

    def as_json(self) -> dict[str, Any]:
        """Return the figures of the file's signals; of one that holds nothing its name alone."""
        signals = [signal for signal in Signal if signal in self.signals]
        names = [name for signal in signals for name in _NAMES[signal]]
        return {"file": self.file, "signals": signals} | {name: getattr(self.counts, name) for name in names}


def rows_in(decoded: AnyDecoded) -> int:
    """Return the number of spans, data points or log records, those that cannot be stored included."""
    if isinstance(decoded, DecodedTraces):
        rows = len(decoded.spans)
    elif isinstance(decoded, DecodedMetrics):
        rows = len(decoded.data_points)
    else:
        rows = len(decoded.logs)
    return rows + len(decoded.rejected)


def metrics_of(decoded: DecodedMetrics) -> set[tuple[Any, ...]]:
    """Return the different metrics that data points belong to."""
    rows: dict[int, MetricRow] = {id(point["metric"]): point["metric"] for point in decoded.data_points}
    return {
        tuple(row.get(name) for name in sorted(MetricRow.__annotations__) if name != "description")
        for row in rows.values()
    }
