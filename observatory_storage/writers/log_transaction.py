"""One batch of logs, one transaction.

1. READ COMMITTED, with a lock timeout; partitions were made before.
2. Resources, in id order, ON CONFLICT DO NOTHING.
3. Records in (timestamp, route_id, id) order: an optimistic COPY inside a savepoint; on a duplicate a merge
   through a temporary table. Where a replay is expected, because most of the batch before was stored, records are
   looked up by their keys, and INSERT sends those that are not stored. Or INSERT for all.
4. Where GenAI events are among the new records: the ordered upsert of their traces, which is the lock, and then
   the spans that lack content get it.
5. COMMIT, by the caller.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Final

from observatory_storage.otlp import GENAI_EVENT_NAMES
from observatory_storage.realtime.landed import Landed
from observatory_storage.writers import sql
from observatory_storage.writers.content import SpanKey, fill_spans
from observatory_storage.writers.convert import WireRow
from observatory_storage.writers.log_batch import LogBatch
from observatory_storage.writers.resources import write_resources
from observatory_storage.writers.rows import (
    Connection,
    encode_columns,
    insert_absent,
    query,
    store_new,
    stored_places,
    work_meanwhile,
)
from observatory_storage.writers.store import Outcome, Terms
from observatory_storage.writers.tables import LOGS, TRACES
from observatory_storage.writers.trace_summary import TraceDeltas

_KEY_WIDTH: Final = len(LOGS.key)
# A look-up is planned over all partitions between its first and its last time, and locks them: of a record without a
# time, which is stored at 1970, those would be all there are.
_LOOKED_UP_US: Final = 86_400_000_000
_ID: Final = LOGS.index["id"]
_PROJECT: Final = LOGS.index["project"]
_TRACE_ID: Final = LOGS.index["trace_id"]
_SPAN_ID: Final = LOGS.index["span_id"]


class LogTransaction:
    """Writes one batch on a connection; the caller commits, or rolls back where anything is raised."""

    def __init__(self, connection: Connection, terms: Terms) -> None:
        self._connection = connection
        self._terms = terms
        # The GenAI events that were sent, by record id, with their project.
        self._events: dict[bytes, tuple[SpanKey, str]] = {}
        self._landed: Landed | None = None

    def write(self, batch: LogBatch) -> Outcome:
        """Run the protocol up to, and without, the COMMIT."""
        outcome = Outcome()
        self._connection.execute(sql.BEGIN_BATCH.format(lock_timeout_ms=self._terms.lock_timeout_ms).encode())
        outcome.known += write_resources(self._connection, batch.resources, self._terms.known)
        if self._terms.publishes:
            outcome.landed = self._landed = Landed("logs", batch.layout.names)
        written, new = self._store(batch)
        outcome.counts["logs_written"] = written
        outcome.counts["logs_duplicate"] = len(batch) - written
        outcome.met_duplicates = new is not None and written < len(batch)
        outcome.was_replay = 2 * written < len(batch)
        if self._landed is not None and new is not None and outcome.met_duplicates:
            self._landed.keep(lambda row: row[0] in new)
        events = [event for key, event in self._events.items() if new is None or key in new]
        if events:
            outcome.counts["spans_filled"] = self._fill(events)
        return outcome

    def _store(self, batch: LogBatch) -> tuple[int, set[bytes] | None]:
        """Store the records that are new; return their number and ids. No ids: all were new."""
        by_copy = self._terms.by_copy
        if by_copy and self._terms.expect_replay and batch.span_us <= _LOOKED_UP_US:
            new = insert_absent(self._connection, LOGS, batch.layout, self._sent(batch), self._absent)
            return len(new), new
        return store_new(
            self._connection,
            LOGS,
            batch.layout,
            lambda: self._sent(batch),
            by_copy=by_copy,
            expect_duplicates=self._terms.expect_duplicates,
        )

    def _absent(self, rows: Sequence[WireRow]) -> Sequence[WireRow]:
        """Return the records that are not stored; another transaction may be about to store them."""
        keys = list(zip(*(row[:_KEY_WIDTH] for row in rows), strict=True))
        stored = stored_places(self._connection, LOGS, sql.STORED_LOGS, keys, times=keys[0])
        return [row for place, row in enumerate(rows) if place not in stored]

    def _sent(self, batch: LogBatch) -> Iterator[Sequence[WireRow]]:
        names = batch.layout.names
        event_at = names.index("event_name") if "event_name" in names else None
        self._events.clear()
        if self._landed is not None:
            self._landed.clear()
        for chunk in batch.chunks():
            yield chunk
            if self._landed is not None:
                self._landed.add(chunk)
            if event_at is not None:
                for row in chunk:
                    if row[event_at] in GENAI_EVENT_NAMES and row[_TRACE_ID] is not None and row[_SPAN_ID] is not None:
                        self._events[row[_ID]] = ((row[_TRACE_ID], row[_SPAN_ID]), row[_PROJECT])
                        batch.content_of.add(row[_TRACE_ID])
        work_meanwhile(self._connection, self._terms.meanwhile)

    def _fill(self, events: Sequence[tuple[SpanKey, str]]) -> int:
        projects = {key[0]: project for key, project in events}
        locks = TraceDeltas({}, projects).rows()
        parameters = [*encode_columns(TRACES, TRACES.full, locks), dt.datetime.now(dt.UTC)]
        # A trace of another project is not touched and not returned.
        locked = {bytes(row[0]) for row in query(self._connection, sql.UPSERT_TRACES, parameters)}
        return fill_spans(self._connection, (key for key, _ in events if key[0] in locked))
