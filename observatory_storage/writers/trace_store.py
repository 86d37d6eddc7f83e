"""How batches of spans, events and traces are made, split and stored."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Table

from observatory_storage.errors import StorageError
from observatory_storage.lifecycle import Periods
from observatory_storage.models import Message, MessagePack, MessageUse, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.writers.config import WriterConfig
from observatory_storage.writers.convert import GivenRow, Rejections
from observatory_storage.writers.message_store import MessageStore
from observatory_storage.writers.rows import Connection
from observatory_storage.writers.span_batch import LooseEvents, SpanBatch
from observatory_storage.writers.store import (
    BatchStore,
    ConnectionSource,
    ForeignTraceError,
    Outcome,
    Prepared,
    RetryPolicy,
    Terms,
    by_project,
)
from observatory_storage.writers.trace_bisection import parts_of
from observatory_storage.writers.trace_summary import own_traces
from observatory_storage.writers.trace_transaction import TraceBatch, TraceTransaction

_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_HOUR: Final = dt.timedelta(hours=1)
_HOUR_US: Final = 3_600_000_000


class TraceStore(BatchStore[TraceBatch]):
    """Stores rows of the kinds `span`, `event` and `trace`."""

    signal = "traces"
    landed_count = "spans_written"

    def __init__(self, pool: ConnectionSource, config: WriterConfig, project: str, retry: RetryPolicy) -> None:
        super().__init__(pool, config, project, retry)
        self._messages = MessageStore()
        self._periods = Periods(self._partitions, table_of(TraceSpan))

    def prepare(self, rows: Mapping[str, Sequence[GivenRow]]) -> Prepared[TraceBatch]:
        """Check, fold and order rows, so that no transaction says two projects of one trace."""
        batches = []
        for part in by_project(rows, self._project):
            rejections = Rejections()
            batches.append(
                TraceBatch(
                    SpanBatch.from_rows(part["span"], self._project, rejections, share=self._config.share_messages),
                    LooseEvents.from_rows(part["event"], self._project, rejections),
                    own_traces(part["trace"], self._project, rejections),
                )
            )
        return Prepared(sum(map(len, rows.values())), batches)

    def transact(self, connection: Connection, batch: TraceBatch, terms: Terms) -> Outcome:
        """Run the protocol of `trace_transaction`."""
        return TraceTransaction(connection, terms, self._messages).write(batch)

    def parts(self, batch: TraceBatch, error: StorageError) -> Iterator[TraceBatch]:
        """Tell spans from events and traces, then half from half, then a span from what hangs on it."""
        return parts_of(batch, error)

    def without_foreign(self, batch: TraceBatch, error: ForeignTraceError) -> TraceBatch:
        """Reject the rows of traces that belong to another project."""
        projects = error.projects
        reasons = {key: f"its trace belongs to project {project!r}" for key, project in projects.items()}
        rejections = batch.rejections
        for event in batch.events.rows:
            if event[0] in reasons:
                rejections.add(batch.events.given(event), reasons[event[0]])
        for key, trace in batch.traces.items():
            for row in trace.given if key in reasons else ():
                rejections.add(row, f"the trace belongs to project {projects[key]!r}")
        events = batch.events.rows
        return TraceBatch(
            batch.spans.without_traces(reasons),
            batch.events.select(lambda place: events[place][0] not in reasons),
            {key: trace for key, trace in batch.traces.items() if key not in reasons},
        )

    def _times(self, batch: TraceBatch) -> Iterator[tuple[Table, list[int]]]:
        yield from super()._times(batch)
        shared = batch.spans.shared.spans
        if not shared:
            return
        # Now that the partitions of the spans are there, their starts are known.
        starts = batch.spans.start_times
        hours = {at: starts[at] // _HOUR_US for at in shared}
        times = {hour: _time(hour) for hour in set(hours.values())}
        periods = self._periods.of(times.values())
        found = {hour: (periods[time] - _EPOCH) // dt.timedelta(microseconds=1) for hour, time in times.items()}
        batch.spans.periods = {at: found[hour] for at, hour in hours.items()}
        for model in (Message, MessagePack, MessageUse):
            yield table_of(model), [*found.values()]

    def _committed(self, outcome: Outcome) -> None:
        learned: Any = outcome.learned
        if learned is not None:
            self._messages.learn(learned)


def _time(hour: int) -> dt.datetime:
    return _EPOCH + hour * _HOUR
