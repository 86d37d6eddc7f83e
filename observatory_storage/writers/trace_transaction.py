"""One batch, one transaction: the protocol that is exact under replay and never deadlocks.

1. READ COMMITTED, with a lock timeout; partitions were made before.
2. Resources, in id order, ON CONFLICT DO NOTHING; then messages, likewise.
3. Spans in (start_time, trace_id, span_id) order: an optimistic COPY inside a savepoint; on a duplicate a
   merge through a temporary table. Or one INSERT. Events of the spans that were new follow.
4. One additive upsert of the summaries, in id order: this is the lock on each trace.
5. Only now, in new statements whose snapshot is younger than the wait for that lock: finished versions
   replace open ones, and the traces of those, alone, are computed anew; where a trace had spans before, which of
   its model calls count is decided anew; and model calls without content get what was logged for them.
6. What the batch adds to the rollups of usage, or takes from them, is appended.
7. COMMIT, by the caller.

Why so and not otherwise: `docs/decisions/write-protocol.md`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import psycopg
from sqlalchemy import Table

from observatory_storage.errors import is_duplicate
from observatory_storage.models import TraceEvent, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.realtime.landed import Landed
from observatory_storage.usage.recount import add_calls, insert_parts, recount
from observatory_storage.usage.sums import HOUR_US, UsageSums
from observatory_storage.writers import sql, wire
from observatory_storage.writers.batch_usage import BatchUsage
from observatory_storage.writers.content import MODEL_CALLS, SpanKey, fill_spans
from observatory_storage.writers.convert import Rejections, WireRow
from observatory_storage.writers.keyed_batch import CHUNK_BYTES
from observatory_storage.writers.message_store import MessageStore
from observatory_storage.writers.resources import write_resources
from observatory_storage.writers.rows import (
    TAKEN_IN_ROWS,
    Connection,
    copy_rows,
    encode_columns,
    insert_rows,
    merge_rows,
    query,
    stored_places,
    work_meanwhile,
)
from observatory_storage.writers.span_batch import LOOSE_EVENTS, LooseEvents, SpanBatch, span_key
from observatory_storage.writers.store import ForeignTraceError, Outcome, Terms
from observatory_storage.writers.tables import EVENTS, SPANS, TRACES, Layout
from observatory_storage.writers.trace_summary import OwnTrace, TraceDeltas

_KEY_WIDTH: Final = len(SPANS.key)
_START: Final = SPANS.index["start_time"]
_PROJECT: Final = SPANS.index["project"]
_PARENT: Final = SPANS.index["parent_span_id"]
_COUNTS: Final = SPANS.index["counts_usage"]
_REPEATS: Final = SPANS.index["repeats_usage"]
_SPAN_COUNT: Final = TRACES.index["span_count"]
_EVENT_PROJECT: Final = EVENTS.index["project"]
_EVENT_SPAN_START: Final = EVENTS.index["span_start_time"]


@dataclass(slots=True)
class TraceBatch:
    """Spans with their events and resources, events by themselves, and what traces say of themselves."""

    spans: SpanBatch
    events: LooseEvents
    traces: dict[bytes, OwnTrace]

    def __len__(self) -> int:
        return len(self.spans) + len(self.events) + len(self.traces)

    @property
    def size(self) -> int:
        """The rows by whose number COPY or INSERT is chosen."""
        return len(self.spans) + len(self.events)

    @property
    def rejections(self) -> Rejections:
        """The rows that cannot be stored."""
        return self.spans.rejections

    def convert_ahead(self) -> bool:
        """Convert some spans before they are to be sent."""
        return self.spans.convert_ahead()

    def touched_traces(self) -> set[bytes]:
        """Return the ids of the traces of all rows, replays and rejected ones included."""
        return {*self.spans.trace_ids, *(event[0] for event in self.events.rows), *self.traces}

    def times(self) -> Iterator[tuple[Table, list[int]]]:
        """Yield the partitioned tables with the times of their rows; an event lies where its span does."""
        spans = self.spans.start_times
        events = [event[_EVENT_SPAN_START] for event in self.events.rows]
        yield table_of(TraceSpan), spans
        yield table_of(TraceEvent), [*(spans if self.spans.has_events else ()), *events]


class TraceTransaction:
    """Writes one batch on a connection; the caller commits, or rolls back where anything is raised."""

    def __init__(self, connection: Connection, terms: Terms, messages: MessageStore) -> None:
        self._messages = messages
        self._connection = connection
        self._terms = terms
        self._by_copy = terms.by_copy
        self._outcome = Outcome()
        self._lacking: list[SpanKey] = []
        self._landed: Landed | None = None
        self._usage = BatchUsage(SPANS.full)
        self._sums = UsageSums()
        self._encoded: tuple[Sequence[WireRow], list[Any]] = ([], [])
        """Summaries, and the same as parameters."""

    def write(self, batch: TraceBatch) -> Outcome:
        """Run the protocol up to, and without, the COMMIT."""
        self._connection.execute(sql.BEGIN_BATCH.format(lock_timeout_ms=self._terms.lock_timeout_ms).encode())
        self._outcome.known += write_resources(self._connection, batch.spans.resources, self._terms.known)
        self._outcome.learned = self._messages.write(self._connection, batch.spans, by_copy=self._by_copy)
        if self._terms.publishes:
            self._outcome.landed = self._landed = Landed("traces", batch.spans.layout.names)
        deltas = TraceDeltas(batch.traces, {event[0]: event[_EVENT_PROJECT] for event in batch.events.rows})
        self._usage = BatchUsage(batch.spans.layout)
        batch.spans.settle_usage()
        candidates = self._write_spans(batch.spans, deltas)
        self._write_loose_events(batch.events.rows)
        if candidates:
            projects = batch.spans.projects
            deltas.lock({key[:16]: projects[key[:16]] for key in candidates})
        traces = deltas.rows()
        continued = self._upsert_traces(traces)
        unsettled = batch.spans.unsettled(continued, all_new=not self._outcome.met_duplicates)
        if unsettled:
            # A trace of which all rows were duplicates is not locked, and has been decided.
            unsettled &= {trace[0] for trace in traces}
        if candidates:
            unsettled |= self._replace(batch.spans, candidates)
        self._usage.add_to(self._sums)
        recount(self._connection, unsettled, self._sums)
        insert_parts(self._connection, self._sums)
        self._outcome.counts["spans_filled"] = fill_spans(self._connection, self._lacking)
        self._outcome.counts["traces_written"] = len(batch.traces)
        return self._outcome

    def _write_spans(self, spans: SpanBatch, deltas: TraceDeltas) -> dict[bytes, int]:
        """Insert what is new; return the places of rows that may replace an open version, by key."""
        if not len(spans):
            return {}
        if self._by_copy and not self._terms.expect_duplicates and self._copy_all(spans, deltas):
            self._copy_events(spans.events())
            return {}
        self._refuse_foreign(spans.projects)
        if self._by_copy:
            # What is stored already is neither converted nor sent.
            places = self._absent(spans)
            chunks = spans.chunks() if len(places) == len(spans) else spans.chunks_at(places)
            sent = self._summed(spans, deltas, chunks)
            new = merge_rows(self._connection, SPANS, spans.layout, sent) if places else set()
        else:
            places = list(range(len(spans.start_times)))
            new = insert_rows(self._connection, SPANS, spans.layout, self._summed(spans, deltas, spans.chunks()))
        self._outcome.counts["spans_written"] = len(new)
        self._outcome.counts["spans_duplicate"] = len(spans) - len(new)
        self._outcome.met_duplicates = len(new) < len(spans)
        if not self._outcome.met_duplicates:
            self._copy_events(spans.events())
            return {}
        self._forget_sums(deltas)
        if self._landed is not None:
            self._landed.keep(lambda row: span_key(row) in new)
        if new:
            lacks_content = _lacks_content(spans.layout)
            for chunk in spans.chunks_at(places):
                rows = [row for row in chunk if span_key(row) in new]
                deltas.add(rows)
                self._usage.add(rows)
                self._lacking += lacks_content(rows)
            self._copy_events([event for event in spans.events() if span_key(event) in new])
        finished = {key: place for key, place in spans.finished().items() if key not in new}
        return self._open_among(finished, spans.start_times)

    def _copy_all(self, spans: SpanBatch, deltas: TraceDeltas) -> bool:
        """COPY straight into the table; false where a duplicate is met, with nothing written."""
        try:
            with self._connection.transaction():
                self._outcome.counts["spans_written"] = copy_rows(
                    self._connection, SPANS.name, spans.layout, self._summed(spans, deltas, spans.chunks())
                )
        except psycopg.Error as error:
            if not is_duplicate(error):
                raise
            self._forget_sums(deltas)
            if self._landed is not None:
                self._landed.clear()
            self._outcome.counts["spans_written"] = 0
            return False
        return True

    def _summed(
        self, spans: SpanBatch, deltas: TraceDeltas, chunks: Iterable[Sequence[WireRow]]
    ) -> Iterator[Sequence[WireRow]]:
        """Yield chunks of the spans, each added to the deltas while the server works on it.

        So is what is made of all of them: afterwards the server would wait for it.
        """
        lacks_content = _lacks_content(spans.layout)
        wide = list(map(spans.layout.names.index, spans.layout.wide))
        held: list[Sequence[WireRow]] = []
        sent = size = 0
        for chunk in chunks:
            yield chunk
            held.append(chunk)
            sent += len(chunk)
            if sent < TAKEN_IN_ROWS:
                size += sum(sum(map(len, filter(None, map(itemgetter(at), chunk)))) for at in wide)
                if size < CHUNK_BYTES:
                    # The server would wait for the sums, and has nothing to do yet.
                    continue
            self._add(held, deltas, lacks_content)
            held.clear()
        self._add(held, deltas, lacks_content)
        self._usage.add_to(self._sums)
        self._usage.clear()
        self._sums.encode()
        self._encode_traces(deltas.rows())
        work_meanwhile(self._connection, self._terms.meanwhile)

    def _add(
        self,
        chunks: Iterable[Sequence[WireRow]],
        deltas: TraceDeltas,
        lacks_content: Callable[[Iterable[WireRow]], list[SpanKey]],
    ) -> None:
        for chunk in chunks:
            deltas.add(chunk)
            self._usage.add(chunk)
            self._lacking += lacks_content(chunk)
            if self._landed is not None:
                self._landed.add(chunk)

    def _forget_sums(self, deltas: TraceDeltas) -> None:
        """Forget what was summed up of spans that turned out not to be new."""
        deltas.clear()
        self._usage.clear()
        self._sums.clear()
        self._lacking.clear()

    def _encode_traces(self, rows: Sequence[WireRow]) -> list[Any]:
        if self._encoded[0] is not rows:
            self._encoded = rows, encode_columns(TRACES, TRACES.full, rows) if rows else []
        return self._encoded[1]

    def _copy_events(self, events: Sequence[WireRow]) -> None:
        if self._by_copy and events:
            try:
                with self._connection.transaction():
                    self._outcome.counts["events_written"] += copy_rows(
                        self._connection, EVENTS.name, EVENTS.full, [events]
                    )
                return
            except psycopg.Error as error:
                if not is_duplicate(error):
                    raise
        self._insert_events(events)

    def _write_loose_events(self, events: Sequence[WireRow]) -> None:
        # The only merge of events in a transaction: its temporary table is made once.
        if self._by_copy and events:
            self._outcome.counts["events_written"] += len(merge_rows(self._connection, EVENTS, EVENTS.full, [events]))
        else:
            self._insert_events(events)

    def _insert_events(self, events: Sequence[WireRow]) -> None:
        if events:
            self._outcome.counts["events_written"] += len(insert_rows(self._connection, EVENTS, EVENTS.full, [events]))

    def _refuse_foreign(self, projects: Mapping[bytes, str]) -> None:
        found = query(self._connection, sql.FOREIGN_TRACES, _pairs(projects))
        if found:
            raise ForeignTraceError({bytes(key): project for key, project in found})

    def _absent(self, spans: SpanBatch) -> list[int]:
        """Return the places of the spans that are not stored; another transaction may be about to store them."""
        work_meanwhile(self._connection, self._terms.meanwhile)
        keys = spans.key_columns()
        stored = stored_places(self._connection, SPANS, sql.STORED_SPANS, keys, spans.start_times)
        return [place for place in range(len(spans.start_times)) if place not in stored]

    def _open_among(self, finished: Mapping[bytes, int], start_times: Sequence[int]) -> dict[bytes, int]:
        if not finished:
            return {}
        trace_ids = sorted({key[:16] for key in finished})
        found = query(self._connection, sql.OPEN_SPANS, [_uuids(trace_ids), *_span_of_time(start_times)])
        return {key: finished[key] for key in map(bytes, (row[0] for row in found)) if key in finished}

    def _upsert_traces(self, rows: Sequence[WireRow]) -> set[bytes]:
        """Return the traces that got spans and had some before."""
        if not rows:
            return set()
        parameters = [*self._encode_traces(rows), dt.datetime.now(dt.UTC)]
        done = {bytes(key): spans for key, spans in query(self._connection, sql.UPSERT_TRACES, parameters)}
        if len(done) < len(rows):
            foreign = {row[0]: row[1] for row in rows if row[0] not in done}
            self._refuse_foreign(foreign)
            # Their rows changed hands in between; the batch is tried again from the start.
            raise ForeignTraceError({})
        return {row[0] for row in rows if 0 < row[_SPAN_COUNT] < done[row[0]]}

    def _replace(self, spans: SpanBatch, candidates: Mapping[bytes, int]) -> set[bytes]:
        """Put finished versions in the place of open ones; return the traces in which that may change what counts."""
        known = len(spans)
        rows = spans.rows(sorted(candidates.values()))
        # Looked at for the first time, some turn out to be none that can be stored.
        self._outcome.counts["spans_duplicate"] -= known - len(spans)
        if not rows:
            return set()
        bounds = _span_of_time([row[_START] for row in rows])
        parameters = [*_span_keys(rows), *bounds]
        taken = {bytes(key): old for key, *old in query(self._connection, sql.DELETE_OPEN_SPANS, parameters)}
        replaced = [row for row in rows if span_key(row) in taken]
        if not replaced:
            return set()
        insert_rows(self._connection, SPANS, spans.layout, [replaced])
        query(self._connection, sql.DELETE_EVENTS, [*_span_keys(replaced), LOOSE_EVENTS, *bounds])
        self._insert_events([event for event in spans.events() if span_key(event) in taken])
        trace_ids = _uuids(sorted({row[0] for row in replaced}))
        query(self._connection, sql.RECOMPUTE_TRACES, [dt.datetime.now(dt.UTC), trace_ids, trace_ids])
        self._lacking += _lacks_content(spans.layout)(replaced)
        if self._landed is not None:
            self._landed.add(replaced)
        self._outcome.counts["spans_replaced"] = len(replaced)
        self._outcome.counts["spans_duplicate"] -= len(replaced)
        self._usage.add(replaced)
        return self._take_out({span_key(row): row for row in replaced}, taken)

    def _take_out(self, replaced: Mapping[bytes, WireRow], taken: Mapping[bytes, Sequence[Any]]) -> set[bytes]:
        """Take the usage of open versions out of the rollups; return the traces in which calls came, went or moved."""
        unsettled = set()
        for key, (parent, counted, repeated, *values) in taken.items():
            row = replaced[key]
            if counted and repeated is not None:
                add_calls(self._sums, [(-1, row[_START] // HOUR_US, values)])
            if counted or repeated or row[_COUNTS] or row[_REPEATS] or parent != row[_PARENT]:
                unsettled.add(row[0])
        return unsettled


def _lacks_content(layout: Layout) -> Callable[[Iterable[WireRow]], list[SpanKey]]:
    """Return what finds the model calls among rows that have no input or no output."""
    if "operation" not in layout.names:
        return lambda rows: []
    operation_at = layout.names.index("operation")
    content_at = [layout.names.index(name) for name in ("input", "output") if name in layout.names]
    if len(content_at) < 2:
        return lambda rows: [(row[0], row[1]) for row in rows if row[operation_at] in MODEL_CALLS]
    first, second = content_at
    return lambda rows: [
        (row[0], row[1])
        for row in rows
        if (row[first] is None or row[second] is None) and row[operation_at] in MODEL_CALLS
    ]


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
