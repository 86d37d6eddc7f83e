"""CopyWriter: COPY and nothing else, for those who want it bare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import psycopg

from observatory_storage.errors import translate_errors
from observatory_storage.models import EventRow, SpanRow, Trace, TraceEvent, TraceRow, TraceSpan
from observatory_storage.writers.convert import (
    GivenRow,
    Rejections,
    WireRow,
    as_mapping,
    convert_rows,
    unknown_keys,
)
from observatory_storage.writers.rows import copy_rows
from observatory_storage.writers.tables import EVENTS, SPANS, TRACES, WriteTable

_CHUNK_ROWS: Final = 250


class CopyWriter:
    """Plain binary COPY into one table on a connection of the caller's, who commits.

    No deduplication (a duplicate raises IntegrityError and aborts the transaction), no summaries, no
    partitions made (rows without one land in DEFAULT), no events or resources taken out of span mappings:
    `events` and `resource` are refused. The first row that cannot be converted raises RejectedRowError.
    For telemetry that may be delivered twice use `TraceWriter`, which costs about a tenth more.
    """

    def __init__(self, project: str = "default") -> None:
        self._project = project

    def write_traces(self, connection: psycopg.Connection[Any], rows: Iterable[TraceRow | Trace]) -> int:
        """COPY rows into traces, all columns as given; returns their number."""
        return self._write(connection, TRACES, rows)

    def write_spans(self, connection: psycopg.Connection[Any], rows: Iterable[SpanRow | TraceSpan]) -> int:
        """COPY rows into trace_spans; returns their number."""
        return self._write(connection, SPANS, rows)

    def write_events(self, connection: psycopg.Connection[Any], rows: Iterable[EventRow | TraceEvent]) -> int:
        """COPY rows into trace_events; returns their number."""
        return self._write(connection, EVENTS, rows)

    def _write(self, connection: psycopg.Connection[Any], table: WriteTable, rows: Iterable[object]) -> int:
        with translate_errors():
            return copy_rows(connection, table, self._chunks(table, map(as_mapping, rows)))

    def _chunks(self, table: WriteTable, rows: Iterator[GivenRow]) -> Iterator[Sequence[WireRow]]:
        known = frozenset(table.names) | _SERVER_COLUMNS
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            rejections = Rejections()
            for row in chunk:
                reason = unknown_keys(row, known)
                if reason is not None:
                    rejections.add(row, reason)
            given = [row.get("project") or self._project for row in chunk]
            converted = convert_rows(table, chunk, rejections, ready={"project": given})
            if rejections.errors:
                raise rejections.errors[0]
            yield [row for row in converted if row is not None]


# Filled in by the server.
_SERVER_COLUMNS: Final[frozenset[str]] = frozenset({"created_at", "updated_at", "duration_us"})
