"""CopyWriter: COPY and nothing else, for those who want it bare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final

import psycopg

from observatory_storage.errors import RejectedRowError, translate_errors
from observatory_storage.models import EventRow, SpanRow, Trace, TraceEvent, TraceRow, TraceSpan
from observatory_storage.writers.batch import CHUNK_ROWS, computed_columns
from observatory_storage.writers.convert import (
    GivenRow,
    Rejections,
    WireRow,
    as_mapping,
    convert_column,
    convert_rows,
    known_rows,
)
from observatory_storage.writers.rows import copy_rows
from observatory_storage.writers.tables import EVENTS, SPANS, TRACES, Column, Layout, WriteTable


class CopyWriter:
    """Plain binary COPY into one table on a connection of the caller's, who commits.

    No deduplication (a duplicate raises IntegrityError and aborts the transaction), no summaries, no traces
    made where they are missing, no partitions made (rows without one land in DEFAULT). Span mappings with
    `events` or `resource` are refused, since those are rows of other tables; `created_at` is the server's.
    Rows are read while they are sent, so that an iterable may be longer than memory, but must not use the
    same connection. The first row that cannot be converted raises RejectedRowError and aborts the
    transaction. For telemetry that may be delivered
    twice use `TraceWriter`.
    """

    def __init__(self, project: str = "default") -> None:
        self._project = project

    def write_traces(
        self, connection: psycopg.Connection[Any], rows: Iterable[TraceRow | Mapping[str, object] | Trace]
    ) -> int:
        """COPY rows into traces, all columns as given; returns their number."""
        return self._write(connection, _TRACES, rows)

    def write_spans(
        self, connection: psycopg.Connection[Any], rows: Iterable[SpanRow | Mapping[str, object] | TraceSpan]
    ) -> int:
        """COPY rows into trace_spans; returns their number."""
        return self._write(connection, SPANS, rows)

    def write_events(
        self, connection: psycopg.Connection[Any], rows: Iterable[EventRow | Mapping[str, object] | TraceEvent]
    ) -> int:
        """COPY rows into trace_events; returns their number."""
        return self._write(connection, EVENTS, rows)

    def _write(self, connection: psycopg.Connection[Any], table: WriteTable, rows: Iterable[object]) -> int:
        segments = groupby(self._chunks(table, iter(rows)), itemgetter(0))
        with translate_errors():
            return sum(
                copy_rows(connection, table.name, layout, map(itemgetter(1), parts)) for layout, parts in segments
            )

    def _chunks(self, table: WriteTable, rows: Iterator[object]) -> Iterator[tuple[Layout, Sequence[WireRow]]]:
        known = frozenset(table.names) | _SERVER_COLUMNS
        present: frozenset[str] = frozenset()
        layout = table.layout(present)
        while chunk := [as_mapping(row) for row in islice(rows, CHUNK_ROWS)]:
            rejections = Rejections()
            _, found = known_rows(chunk, known, rejections)
            for error in rejections.errors:
                raise error
            if not found <= present:
                # Columns that are met later start another COPY: what was sent has nothing in them.
                present |= found
                layout = table.layout(present)
            ready: dict[str, list[Any]] = {"project": [row.get("project") or self._project for row in chunk]}
            failed: dict[int, str] = {}
            kept: dict[int, dict[str, Any]] = {}
            if table is SPANS:
                ready |= _span_columns(chunk, failed, kept)
            converted = convert_rows(layout, chunk, failed, ready=ready, kept=kept)
            for at, reason in failed.items():
                raise RejectedRowError(reason, row=chunk[at])
            yield layout, converted


def _span_columns(
    rows: Sequence[GivenRow], failed: dict[int, str], kept: dict[int, dict[str, Any]]
) -> dict[str, list[Any]]:
    times = {
        name: convert_column(SPANS.columns[SPANS.index[name]], [row.get(name) for row in rows], failed, kept)
        for name in ("start_time", "end_time")
    }
    return times | computed_columns(rows, times["start_time"], times["end_time"], kept)


# An upsert computes the duration, bare COPY takes it as given.
_TRACES: Final = WriteTable(
    TRACES.name,
    (*TRACES.columns, Column("duration_us", SPANS.columns[SPANS.index["duration_us"]].kind)),
    TRACES.key,
    TRACES.order,
)
# Filled in by the server.
_SERVER_COLUMNS: Final[frozenset[str]] = frozenset({"created_at", "updated_at"})
