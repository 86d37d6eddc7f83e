"""One writer for each signal that `ingest` meets, and what it has stored so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, Protocol

from observatory_storage.cli.counts import AnyDecoded, Counts, metrics_of
from observatory_storage.cli.tally import Tally
from observatory_storage.errors import RejectedRowError
from observatory_storage.otlp import DecodedLogs, DecodedMetrics, DecodedTraces, Signal
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter, WriterConfig

# Rows between two flushes that are waited for: what is held here for counting stays small.
_CHECKPOINT_ROWS: Final = 10_000

Reject = Callable[[RejectedRowError], None]


class Writer(Protocol):
    """What the writers of all signals have in common."""

    def flush(self) -> None:
        """Write what is buffered."""

    def close(self) -> None:
        """Write what is buffered, and stop."""

    def abandon(self) -> int:
        """Give up what is buffered."""


class Feed(ABC):
    """Feeds one signal's writer, and waits for it now and then. `counts` holds what is committed."""

    signal: ClassVar[Signal]

    def __init__(self, writer: Writer) -> None:
        self._open = writer
        self.given = 0
        self._pending = 0

    @abstractmethod
    def take(self, decoded: AnyDecoded) -> int:
        """Give the writer the rows of a request; return their number."""

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """What is committed, duplicates included."""

    @property
    @abstractmethod
    def duplicates(self) -> int:
        """How many of the rows were stored already."""

    @property
    def conflicting(self) -> int:
        """How many of the rejected rows differ from the one that is stored under their key."""
        return 0

    @property
    def spans_filled(self) -> int:
        """How many spans got their input or output from log records."""
        return 0

    def write(self, decoded: AnyDecoded) -> None:
        """Take the rows of a request, and wait for the COMMIT where many are under way."""
        rows = self.take(decoded)
        self.given += rows
        self._pending += rows
        if self._pending >= _CHECKPOINT_ROWS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Wait for the COMMIT, so that the counts are true, and a rejected row is one of the present file."""
        if self._pending:
            self._open.flush()
            self._pending = 0

    def close(self) -> None:
        """Close the writer. Raises WriteError for what could not be stored, and keeps it for `abandon`."""
        self._open.close()

    def abandon(self) -> None:
        """Give up what could not be stored."""
        self._open.abandon()


class TraceFeed(Feed):
    """Spans. What is committed is counted here, because traces and events are, duplicates included."""

    signal = Signal.TRACES

    def __init__(self, pool: StoragePool, config: WriterConfig, reject: Reject) -> None:
        self._tally = Tally()
        self._reject = reject
        self._writer = TraceWriter(pool, config, on_rejected=self._note)
        super().__init__(self._writer)

    def take(self, decoded: AnyDecoded) -> int:
        """Give the writer spans."""
        assert isinstance(decoded, DecodedTraces)
        self._tally.give(decoded.spans)
        self._writer.write_spans(decoded.spans)
        return len(decoded.spans)

    def checkpoint(self) -> None:
        """Wait for the COMMIT, and count all spans that were not rejected."""
        super().checkpoint()
        if not self._pending:
            self._tally.commit_all()

    def close(self) -> None:
        """Close the writer, and count what it has written also where that is not all."""
        try:
            super().close()
        finally:
            self._tally.commit_written(self._writer.write_stats())

    @property
    def counts(self) -> Counts:
        """What is committed."""
        return Counts(traces=self._tally.traces, spans=self._tally.spans, events=self._tally.events)

    @property
    def duplicates(self) -> int:
        """How many of the spans were stored already."""
        return max(self._tally.spans - self._writer.write_stats().spans_written, 0)

    @property
    def spans_filled(self) -> int:
        """How many spans got their input or output from log records that were stored before them."""
        return self._writer.write_stats().spans_filled

    def _note(self, error: RejectedRowError) -> None:
        self._tally.reject(error)
        self._reject(error)


class MetricFeed(Feed):
    """Data points."""

    signal = Signal.METRICS

    def __init__(self, pool: StoragePool, config: WriterConfig, reject: Reject) -> None:
        self._metrics: set[tuple[Any, ...]] = set()
        self._writer = MetricWriter(pool, config, on_rejected=reject)
        super().__init__(self._writer)

    def take(self, decoded: AnyDecoded) -> int:
        """Give the writer data points."""
        assert isinstance(decoded, DecodedMetrics)
        self._metrics |= metrics_of(decoded)
        self._writer.write_data_points(decoded.data_points)
        return len(decoded.data_points)

    @property
    def counts(self) -> Counts:
        """What is committed; metrics are those that were met."""
        stats = self._writer.write_stats()
        return Counts(metrics=len(self._metrics), data_points=stats.data_points_written + stats.data_points_duplicate)

    @property
    def duplicates(self) -> int:
        """How many of the data points were stored already."""
        return self._writer.write_stats().data_points_duplicate

    @property
    def conflicting(self) -> int:
        """How many of the rejected data points differ from the one stored for their series and time."""
        return self._writer.write_stats().data_points_conflicting


class LogFeed(Feed):
    """Log records."""

    signal = Signal.LOGS

    def __init__(self, pool: StoragePool, config: WriterConfig, reject: Reject) -> None:
        self._writer = LogWriter(pool, config, on_rejected=reject)
        super().__init__(self._writer)

    def take(self, decoded: AnyDecoded) -> int:
        """Give the writer log records."""
        assert isinstance(decoded, DecodedLogs)
        self._writer.write_logs(decoded.logs)
        return len(decoded.logs)

    @property
    def counts(self) -> Counts:
        """What is committed."""
        stats = self._writer.write_stats()
        return Counts(logs=stats.logs_written + stats.logs_duplicate)

    @property
    def duplicates(self) -> int:
        """How many of the log records were stored already."""
        return self._writer.write_stats().logs_duplicate

    @property
    def spans_filled(self) -> int:
        """How many spans that were stored before got their input or output from log records."""
        return self._writer.write_stats().spans_filled


FEEDS: Final[dict[Signal, Callable[[StoragePool, WriterConfig, Reject], Feed]]] = {
    feed.signal: feed for feed in (TraceFeed, MetricFeed, LogFeed)
}
