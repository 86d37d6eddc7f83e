"""How batches of spans, events and traces are made, split and stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from observatory_storage.errors import StorageError
from observatory_storage.writers.convert import GivenRow, Rejections
from observatory_storage.writers.rows import Connection
from observatory_storage.writers.span_batch import LooseEvents, SpanBatch
from observatory_storage.writers.store import BatchStore, ForeignTraceError, Outcome, Prepared, Terms, by_project
from observatory_storage.writers.trace_bisection import parts_of
from observatory_storage.writers.trace_summary import own_traces
from observatory_storage.writers.trace_transaction import TraceBatch, TraceTransaction


class TraceStore(BatchStore[TraceBatch]):
    """Stores rows of the kinds `span`, `event` and `trace`."""

    signal = "traces"
    landed_count = "spans_written"

    def prepare(self, rows: Mapping[str, Sequence[GivenRow]]) -> Prepared[TraceBatch]:
        """Check, fold and order rows, so that no transaction says two projects of one trace."""
        batches = []
        for part in by_project(rows, self._project):
            rejections = Rejections()
            batches.append(
                TraceBatch(
                    SpanBatch.from_rows(part["span"], self._project, rejections),
                    LooseEvents.from_rows(part["event"], self._project, rejections),
                    own_traces(part["trace"], self._project, rejections),
                )
            )
        return Prepared(sum(map(len, rows.values())), batches)

    def transact(self, connection: Connection, batch: TraceBatch, terms: Terms) -> Outcome:
        """Run the protocol of `trace_transaction`."""
        return TraceTransaction(connection, terms).write(batch)

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
