"""What `ingest` has stored so far, counted as what the files held and the database has committed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from observatory_storage.errors import RejectedRowError
from observatory_storage.models import SpanRow
from observatory_storage.writers import WriteStats


@dataclass(slots=True)
class _Pending:
    """A span that was given to the writer and is not known to be committed."""

    trace_id: Any
    span_id: Any
    events: int


@dataclass(slots=True)
class Tally:
    """Counts spans, their events and their traces, duplicates included; safe for threads.

    Ids of traces are held to count each once: about 100 bytes for each trace.
    """

    spans: int = 0
    events: int = 0
    _traces: set[Any] = field(default_factory=set)
    _pending: deque[_Pending] = field(default_factory=deque)
    _rejected: dict[tuple[Any, Any], int] = field(default_factory=dict)
    _rejected_spans: int = 0
    _rejected_events: int = 0
    _settled: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def traces(self) -> int:
        """The number of different traces that a committed span belongs to."""
        return len(self._traces)

    @property
    def given(self) -> int:
        """The number of spans that were given to the writer."""
        return self._settled + len(self._pending)

    @property
    def pending(self) -> int:
        """The number of spans that were given to the writer and are not known to be committed."""
        return len(self._pending)

    def give(self, spans: Iterable[SpanRow]) -> None:
        """Note spans before they are given to the writer."""
        for span in spans:
            self._pending.append(_Pending(span.get("trace_id"), span.get("span_id"), len(span.get("events") or ())))

    def reject(self, error: RejectedRowError) -> None:
        """Note a row that the writer rejected: a span, which takes its events along, or an event."""
        row = error.row or {}
        with self._lock:
            if "span_id" in row and "timestamp" not in row:
                key = (row.get("trace_id"), row.get("span_id"))
                self._rejected[key] = self._rejected.get(key, 0) + 1
                self._rejected_spans += 1
            else:
                self._rejected_events += 1

    def commit_all(self) -> None:
        """Count all spans that were given as committed, save those that were rejected."""
        self._commit(len(self._pending))

    def commit_written(self, stats: WriteStats) -> None:
        """Count as committed what the writer says it has written; it writes in the order in which it is given."""
        done = stats.spans_written + stats.spans_duplicate + stats.spans_replaced + self._rejected_spans
        self._commit(min(max(done - self._settled, 0), len(self._pending)))

    def _commit(self, spans: int) -> None:
        with self._lock:
            for _ in range(spans):
                span = self._pending.popleft()
                key = (span.trace_id, span.span_id)
                if self._rejected.get(key):
                    self._rejected[key] -= 1
                    continue
                self.spans += 1
                self.events += span.events
                self._traces.add(span.trace_id)
            self._settled += spans
            self.events -= self._rejected_events
            self._rejected_events = 0
