"""One batch, one transaction: the protocol that is exact under replay and never deadlocks.

1. READ COMMITTED, with a lock timeout; partitions were made before.
2. Resources, in id order, ON CONFLICT DO NOTHING.
3. Spans in (start_time, trace_id, span_id) order: an optimistic COPY inside a savepoint; on a duplicate a
   merge through a temporary table. Or one INSERT. Events of the spans that were new follow.
4. One additive upsert of the summaries, in id order: this is the lock on each trace.
5. Only now, in new statements whose snapshot is younger than the wait for that lock: finished versions
   replace open ones, and the traces of those, alone, are computed anew.
6. COMMIT, by the caller.

Why so and not otherwise: `docs/decisions/write-protocol.md`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from observatory_storage.errors import is_duplicate
from observatory_storage.writers import sql, wire
from observatory_storage.writers.batch import LOOSE_EVENTS, LooseEvents, SpanBatch, span_key
from observatory_storage.writers.convert import WireRow
from observatory_storage.writers.rows import (
    Connection,
    copy_rows,
    encode_columns,
    insert_rows,
    merge_rows,
    query,
)
from observatory_storage.writers.summary import OwnTrace, TraceDeltas
from observatory_storage.writers.tables import EVENTS, RESOURCES, SPANS, TRACES

_KEY_WIDTH: Final = len(SPANS.key)
_START: Final = SPANS.index["start_time"]
_PROJECT: Final = SPANS.index["project"]
_EVENT_PROJECT: Final = EVENTS.index["project"]


class ForeignTraceError(Exception):
    """Some traces of the batch belong to another project: `projects` says to which."""

    def __init__(self, projects: Mapping[bytes, str]) -> None:
        super().__init__(f"{len(projects)} traces belong to another project")
        self.projects = projects


@dataclass(slots=True)
class Outcome:
    """What a committed batch changed."""

    spans_written: int = 0
    spans_duplicate: int = 0
    spans_replaced: int = 0
    events_written: int = 0
    traces_written: int = 0
    resources: list[bytes] = field(default_factory=list)
    met_duplicates: bool = False


@dataclass(slots=True)
class Batch:
    """All that one transaction writes."""

    spans: SpanBatch
    events: LooseEvents
    traces: dict[bytes, OwnTrace]

    def __len__(self) -> int:
        return len(self.spans) + len(self.events) + len(self.traces)


class BatchTransaction:
    """Writes one batch on a connection; the caller commits, or rolls back where anything is raised.

    `by_copy` chooses the path; `expect_duplicates` skips the optimistic COPY that a replay would fail.
    `known_resources` are ids that are committed and need not be sent again. `meanwhile` is called once all
    spans are sent, while the server still stores them.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        by_copy: bool,
        expect_duplicates: bool,
        known_resources: Collection[bytes],
        lock_timeout_seconds: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._by_copy = by_copy
        self._expect_duplicates = expect_duplicates
        self._known_resources = known_resources
        self._lock_timeout_ms = max(1, int(lock_timeout_seconds * 1000))
        self._meanwhile = meanwhile
        self._outcome = Outcome()

    def write(self, batch: Batch) -> Outcome:
        """Run the protocol up to, and without, the COMMIT."""
        self._connection.execute(sql.BEGIN_BATCH.format(lock_timeout_ms=self._lock_timeout_ms).encode())
        self._write_resources(batch.spans.resources)
        deltas = TraceDeltas()
        candidates = self._write_spans(batch.spans, deltas)
        self._write_loose_events(batch.events.rows)
        projects = batch.spans.projects
        locked = {key[:16]: projects[key[:16]] for key in candidates}
        for event in batch.events.rows:
            locked.setdefault(event[0], event[_EVENT_PROJECT])
        self._upsert_traces(deltas.rows(batch.traces, locked))
        if candidates:
            self._replace(batch.spans, candidates)
        self._outcome.traces_written = len(batch.traces)
        return self._outcome

    def _write_resources(self, resources: Mapping[bytes, WireRow]) -> None:
        new = sorted(key for key in resources if key not in self._known_resources)
        if new:
            insert_rows(self._connection, RESOURCES, RESOURCES.full, [[resources[key] for key in new]])
            self._outcome.resources = new

    def _write_spans(self, spans: SpanBatch, deltas: TraceDeltas) -> dict[bytes, int]:
        """Insert what is new; return the places of rows that may replace an open version, by key."""
        if not len(spans):
            return {}
        if self._by_copy and not self._expect_duplicates and self._copy_all(spans, deltas):
            self._copy_events(spans.events())
            return {}
        self._refuse_foreign(spans.projects)
        insert = merge_rows if self._by_copy else insert_rows
        new = insert(self._connection, SPANS, spans.layout, self._summed(spans, deltas))
        self._outcome.spans_written = len(new)
        self._outcome.spans_duplicate = len(spans) - len(new)
        self._outcome.met_duplicates = len(new) < len(spans)
        if not self._outcome.met_duplicates:
            self._copy_events(spans.events())
            return {}
        deltas.clear()
        if new:
            for chunk in spans.chunks():
                deltas.add(row for row in chunk if span_key(row) in new)
            self._copy_events([event for event in spans.events() if span_key(event) in new])
        finished = {key: place for key, place in spans.finished().items() if key not in new}
        return self._open_among(finished, spans.start_times)

    def _copy_all(self, spans: SpanBatch, deltas: TraceDeltas) -> bool:
        """COPY straight into the table; false where a duplicate is met, with nothing written."""
        try:
            with self._connection.transaction():
                self._outcome.spans_written = copy_rows(
                    self._connection, SPANS.name, spans.layout, self._summed(spans, deltas)
                )
        except psycopg.Error as error:
            if not is_duplicate(error):
                raise
            deltas.clear()
            self._outcome.spans_written = 0
            return False
        return True

    def _summed(self, spans: SpanBatch, deltas: TraceDeltas) -> Iterator[Sequence[WireRow]]:
        """Yield the spans' chunks, each added to the deltas while the server works on it."""
        for chunk in spans.chunks():
            yield chunk
            deltas.add(chunk)
        if self._meanwhile is not None and self._by_copy:
            # What was sent keeps the server busy for a while yet.
            self._connection.pgconn.flush()
            self._meanwhile()

    def _copy_events(self, events: Sequence[WireRow]) -> None:
        if self._by_copy and events:
            try:
                with self._connection.transaction():
                    self._outcome.events_written += copy_rows(self._connection, EVENTS.name, EVENTS.full, [events])
                return
            except psycopg.Error as error:
                if not is_duplicate(error):
                    raise
        self._insert_events(events)

    def _write_loose_events(self, events: Sequence[WireRow]) -> None:
        # The only merge of events in a transaction: its temporary table is made once.
        if self._by_copy and events:
            self._outcome.events_written += len(merge_rows(self._connection, EVENTS, EVENTS.full, [events]))
        else:
            self._insert_events(events)

    def _insert_events(self, events: Sequence[WireRow]) -> None:
        if events:
            self._outcome.events_written += len(insert_rows(self._connection, EVENTS, EVENTS.full, [events]))

    def _refuse_foreign(self, projects: Mapping[bytes, str]) -> None:
        found = query(self._connection, sql.FOREIGN_TRACES, _pairs(projects))
        if found:
            raise ForeignTraceError({bytes(key): project for key, project in found})

    def _open_among(self, finished: Mapping[bytes, int], start_times: Sequence[int]) -> dict[bytes, int]:
        if not finished:
            return {}
        trace_ids = sorted({key[:16] for key in finished})
        found = query(self._connection, sql.OPEN_SPANS, [_uuids(trace_ids), *_span_of_time(start_times)])
        return {key: finished[key] for key in map(bytes, (row[0] for row in found)) if key in finished}

    def _upsert_traces(self, rows: Sequence[WireRow]) -> None:
        if not rows:
            return
        parameters = [*encode_columns(TRACES, TRACES.full, rows), dt.datetime.now(dt.UTC)]
        done = {bytes(row[0]) for row in query(self._connection, sql.UPSERT_TRACES, parameters)}
        if len(done) < len(rows):
            foreign = {row[0]: row[1] for row in rows if row[0] not in done}
            self._refuse_foreign(foreign)
            # Their rows changed hands in between; the batch is tried again from the start.
            raise ForeignTraceError({})

    def _replace(self, spans: SpanBatch, candidates: Mapping[bytes, int]) -> None:
        rows = spans.rows(sorted(candidates.values()))
        bounds = _span_of_time([row[_START] for row in rows])
        parameters = [*_span_keys(rows), *bounds]
        taken = {bytes(row[0]) for row in query(self._connection, sql.DELETE_OPEN_SPANS, parameters)}
        replaced = [row for row in rows if span_key(row) in taken]
        if not replaced:
            return
        insert_rows(self._connection, SPANS, spans.layout, [replaced])
        query(self._connection, sql.DELETE_EVENTS, [*_span_keys(replaced), LOOSE_EVENTS, *bounds])
        self._insert_events([event for event in spans.events() if span_key(event) in taken])
        trace_ids = _uuids(sorted({row[0] for row in replaced}))
        query(self._connection, sql.RECOMPUTE_TRACES, [dt.datetime.now(dt.UTC), trace_ids, trace_ids])
        self._outcome.spans_replaced = len(replaced)
        self._outcome.spans_duplicate -= len(replaced)


def _uuids(keys: Sequence[bytes]) -> wire.BinaryValue:
    kind = SPANS.columns[0].kind
    return wire.encode_array(kind.element_oid, kind.element, keys)


def _pairs(projects: Mapping[bytes, str]) -> list[Any]:
    text = SPANS.columns[_PROJECT].kind
    return [
        _uuids(list(projects)),
        wire.encode_array(text.element_oid, text.element, list(projects.values())),
    ]


def _span_keys(rows: Sequence[WireRow]) -> list[Any]:
    columns = zip(*(row[:_KEY_WIDTH] for row in rows), strict=True)
    return [
        wire.encode_array(column.kind.element_oid, column.kind.element, values)
        for column, values in zip(SPANS.columns[:_KEY_WIDTH], columns, strict=True)
    ]


def _span_of_time(times: Iterable[int]) -> list[Any]:
    found = list(times)
    return [wire.encode_time(min(found)), wire.encode_time(max(found))]
