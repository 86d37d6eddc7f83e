"""The ways in which spans reach `trace_spans`, from the server's limit to one row a transaction."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg.types.string import BytesBinaryDumper
from sqlalchemy import insert

from benchmarks.data import SpanSource, bare
from benchmarks.interleaved import Way
from observatory_storage.models import SpanRow, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.writers import CopyWriter, TraceWriter, WriteMethod, WriterConfig
from observatory_storage.writers.tables import SPANS

BATCH_ROWS: Final = 5_000
LIMIT: Final = "server limit: encoded blob"
COPY_WRITER: Final = "CopyWriter"
WRITE_ROW: Final = "psycopg write_row, ready tuples"
TRACE_WRITER_COPY: Final = "TraceWriter, COPY"
TRACE_WRITER_INSERT: Final = "TraceWriter, INSERT"
REPLAY: Final = "TraceWriter, COPY, replay"
EXECUTEMANY: Final = "Core execute(insert(T), [dicts])"
VALUES: Final = "insert(T).values([dicts])"
ADD_ALL: Final = "ORM add_all"
ROW_BY_ROW: Final = "one row a transaction"

# A statement with 34 columns may hold 1,927 rows: PostgreSQL allows 65,535 parameters.
_VALUES_ROWS: Final = 1_000
# What libpq is handed at once; below it psycopg does not split a buffer.
_PIECE: Final = 128 * 1024
_TABLES: Final = "trace_spans, trace_events, traces, resources"
# The wire forms of a hand-written COPY, by column, where it is not text: ids and JSON are bytes as they are
# stored, times are microseconds.
_TYPES: Final = {
    **dict.fromkeys(("trace_id", "span_id", "parent_span_id", "resource_id"), "bytea"),
    **dict.fromkeys(("attributes", "input", "output"), "bytea"),
    **dict.fromkeys(("start_time", "end_time", "duration_us", "ttft_us", "flags"), "int8"),
    **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens"), "int8"),
    "cost_usd": "numeric",
    "counts_usage": "bool",
}
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)

T = TypeVar("T")


class SpanWays:
    """The same seeded spans, made ready for each way beforehand, so that only writing is timed."""

    def __init__(self, pool: StoragePool, rows: int) -> None:
        self._pool = pool
        self.rows = rows
        self.spans = SpanSource().spans(rows)
        self._bare = bare(self.spans)
        present = frozenset().union(*self._bare)
        columns = [name for name in SPANS.names if name in present]
        # The baselines send neither more nor less than CopyWriter does.
        assert tuple(columns) == SPANS.layout(present).names
        self.columns: Sequence[str] = columns
        self._uniform = [_for_sqlalchemy({name: row.get(name) for name in columns}) for row in self._bare]
        self._instances: list[TraceSpan] = []
        self.write(WriteMethod.COPY, self.spans)  # makes the partitions of the day
        self.empty()
        self._blobs = [list(self._blob(batch)) for batch in batches(self._bare)]
        self.row_bytes = sum(len(piece) for blob in self._blobs for piece in blob) / rows
        self._tuples = [_ready(row, columns) for row in self._bare]

    def ways(self) -> list[Way]:
        """All ways; the slow ones write fewer rows."""
        few, some = max(100, self.rows // 100), max(_VALUES_ROWS, self.rows // 10)
        return [
            Way(LIMIT, self.rows, self.send_blobs, self.empty),
            Way(COPY_WRITER, self.rows, self.copy, self.empty),
            Way(WRITE_ROW, self.rows, self.write_tuples, self.empty),
            Way(TRACE_WRITER_COPY, self.rows, lambda: self.write(WriteMethod.COPY, self.spans), self.empty),
            Way(TRACE_WRITER_INSERT, self.rows, lambda: self.write(WriteMethod.INSERT, self.spans), self.empty),
            Way(REPLAY, self.rows, lambda: self.write(WriteMethod.COPY, self.spans), self._fill),
            Way(EXECUTEMANY, self.rows, self._executemany, self.empty),
            Way(VALUES, some, lambda: self._values(some), self.empty),
            Way(ADD_ALL, some, self._add_all, lambda: self._make_instances(some)),
            Way(ROW_BY_ROW, few, lambda: self._row_by_row(few), self.empty),
        ]

    def empty(self) -> None:
        """Leave the tables, their partitions and indexes as they were made, and nothing for the disk to do."""
        with self._pool.raw_connection() as connection:
            connection.execute(f"TRUNCATE {_TABLES}")
            connection.commit()
            connection.autocommit = True
            connection.execute("CHECKPOINT")

    def stored(self) -> int:
        """The number of spans in the table."""
        with self._pool.raw_connection() as connection:
            row = connection.execute("SELECT count(*) FROM trace_spans").fetchone()
        assert row is not None
        return int(row[0])

    def write(self, method: WriteMethod, spans: list[SpanRow]) -> None:
        """TraceWriter from rows to committed, summaries and all."""
        config = WriterConfig(method=method, batch_size=BATCH_ROWS, flush_interval_seconds=60)
        with TraceWriter(self._pool, config) as writer:
            writer.write_spans(spans)
            writer.flush()
            assert writer.write_stats().rows_rejected == 0

    def copy(self) -> None:
        """CopyWriter, a transaction a batch."""
        writer = CopyWriter()
        for batch in batches(self._bare):
            with self._pool.raw_connection() as connection:
                writer.write_spans(connection, batch)
                connection.commit()

    def send_blobs(self) -> None:
        """Bytes that are ready to be sent: what is left is the server's work."""
        for blob in self._blobs:
            with self._pool.raw_connection() as connection:
                with connection.cursor() as cursor, cursor.copy(self._copy("FROM STDIN")) as copy:
                    for piece in blob:
                        copy.write(piece)
                connection.commit()

    def write_tuples(self) -> None:
        """COPY by hand, from tuples of values that need no further thought."""
        for batch in batches(self._tuples):
            with self._pool.raw_connection() as connection:
                with connection.cursor() as cursor:
                    # Asked by type name psycopg would take a slower one, which is in Python.
                    cursor.adapters.register_dumper(bytes, BytesBinaryDumper)
                    with cursor.copy(self._copy("FROM STDIN")) as copy:
                        copy.set_types([_TYPES.get(name, "text") for name in self.columns])
                        for row in batch:
                            copy.write_row(row)
                connection.commit()

    def _executemany(self) -> None:
        for batch in batches(self._uniform):
            with self._pool.session() as session:
                session.connection().execute(insert(TraceSpan), batch)
                session.commit()

    def _values(self, rows: int) -> None:
        for first in range(0, rows, _VALUES_ROWS):
            with self._pool.session() as session:
                session.connection().execute(insert(TraceSpan).values(self._uniform[first : first + _VALUES_ROWS]))
                session.commit()

    def _make_instances(self, rows: int) -> None:
        self.empty()
        self._instances = [TraceSpan(**row | {"span_id": row["span_id"].hex()}) for row in self._uniform[:rows]]

    def _add_all(self) -> None:
        for batch in batches(self._instances):
            with self._pool.session() as session:
                session.add_all(batch)
                session.commit()
        self._instances = []

    def _row_by_row(self, rows: int) -> None:
        with self._pool.session() as session:
            for row in self._uniform[:rows]:
                session.execute(insert(TraceSpan), row)
                session.commit()

    def _fill(self) -> None:
        self.empty()
        self.write(WriteMethod.COPY, self.spans)
        with self._pool.raw_connection() as connection:
            connection.autocommit = True
            connection.execute("CHECKPOINT")

    def _blob(self, batch: list[dict[str, Any]]) -> Iterator[bytes]:
        """What CopyWriter would send, as the server itself encodes it, in pieces."""
        with self._pool.raw_connection() as connection:
            CopyWriter().write_spans(connection, batch)
            yield from pieces(b"".join(copied(connection, self._copy("TO STDOUT"))))

    def _copy(self, direction: str) -> sql.Composed:
        names = sql.SQL(", ").join(map(sql.Identifier, self.columns))
        # COPY … TO reads no partitioned table but by a query; without an order it comes as it was stored.
        source = sql.SQL("(SELECT {} FROM trace_spans)" if direction.startswith("TO") else "trace_spans ({})")
        return sql.SQL("COPY {} {} (FORMAT BINARY)").format(source.format(names), sql.SQL(direction))


def pieces(blob: bytes) -> Iterator[bytes]:
    """Cut a COPY stream as it is handed to libpq."""
    for first in range(0, len(blob), _PIECE):
        yield blob[first : first + _PIECE]


def copied(connection: psycopg.Connection[TupleRow], statement: sql.Composed) -> Iterator[bytes]:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        yield from map(bytes, copy)


def batches(rows: list[T]) -> Iterator[list[T]]:
    for first in range(0, len(rows), BATCH_ROWS):
        yield rows[first : first + BATCH_ROWS]


def _for_sqlalchemy(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "trace_id": uuid.UUID(bytes=row["trace_id"]), "resource_id": uuid.UUID(bytes=row["resource_id"])}


def _ready(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[Any, ...]:
    values = dict(row)
    for name in ("attributes", "input", "output"):
        if values.get(name) is not None:
            values[name] = b"\x01" + orjson.dumps(values[name])
    for name in ("start_time", "end_time"):
        values[name] = (values[name] - _EPOCH) // dt.timedelta(microseconds=1)
    return tuple(values.get(name) for name in columns)
