"""The ways in which spans reach `trace_spans`."""

from __future__ import annotations

from typing import ClassVar, Final

import psycopg
from psycopg.rows import TupleRow

from benchmarks.data import SpanSource, bare
from benchmarks.interleaved import Way
from benchmarks.ways import BATCH_ROWS, COPY_WRITER, COPY_WRITER_CALLS, Row, Ways
from observatory_storage.models import SpanRow, TraceSpan
from observatory_storage.models.base import Base
from observatory_storage.pool import StoragePool
from observatory_storage.writers import CopyWriter, TraceWriter, WriteMethod, WriterConfig
from observatory_storage.writers.tables import SPANS

TRACE_WRITER_COPY: Final = "TraceWriter, COPY"
TRACE_WRITER_INSERT: Final = "TraceWriter, INSERT"
REPLAY: Final = "TraceWriter, COPY, replay"
TABLES: Final = "trace_spans, trace_events, traces, resources, messages, message_packs, message_uses, usage_rollups"
"""All that TraceWriter writes to."""


class SpanWays(Ways):
    """Seeded spans of about 1.6 kB, 20 a trace, or those that are given, made ready for each way."""

    table: ClassVar[str] = "trace_spans"
    truncated: ClassVar[str] = TABLES
    model: ClassVar[type[Base]] = TraceSpan

    def __init__(
        self,
        pool: StoragePool,
        rows: int,
        *,
        spans: list[SpanRow] | None = None,
        outsiders: bool = False,
        blobs_only: bool = False,
    ) -> None:
        self.spans = SpanSource().spans(rows) if spans is None else spans
        rows_alone = bare(self.spans)
        # The baselines send neither more nor less than CopyWriter does.
        columns = SPANS.layout(frozenset().union(*rows_alone)).names
        super().__init__(pool, rows_alone, columns, outsiders=outsiders, blobs_only=blobs_only)

    def own(self) -> list[Way]:
        """The project's ways."""
        return [
            self.way(COPY_WRITER, self.copy),
            self.way(COPY_WRITER_CALLS, self.copy_calls),
            self.way(TRACE_WRITER_COPY, lambda: self.write(WriteMethod.COPY)),
            self.way(TRACE_WRITER_INSERT, lambda: self.write(WriteMethod.INSERT)),
            self.way(REPLAY, lambda: self.write(WriteMethod.COPY), self.fill),
        ]

    def write(self, method: WriteMethod) -> None:
        """TraceWriter from rows to committed, summaries and all."""
        config = WriterConfig(method=method, batch_size=BATCH_ROWS, flush_interval_seconds=60)
        with TraceWriter(self.pool, config) as writer:
            writer.write_spans(self.spans)
            writer.flush()
            assert writer.write_stats().rows_rejected == 0

    def copy_batch(
        self, connection: psycopg.Connection[TupleRow], batch: list[Row], commit_rows: int | None = None
    ) -> None:
        CopyWriter(commit_rows=commit_rows).write_spans(connection, batch)
