"""Stores of any size, quickly: a few thousand spans, encoded once, are copied again and again as other traces.

The spans are written by TraceWriter and read back as the server encodes them, with their events and their traces'
summaries. In each copy the ids of the traces and all times are others, and everything else is as it was.
"""

from __future__ import annotations

import datetime as dt
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from benchmarks.data import SPANS_PER_TRACE, SpanSource
from benchmarks.spans import TABLES
from benchmarks.ways import checkpoint, copied
from observatory_storage.lifecycle.partitions import PartitionManager
from observatory_storage.models import SpanRow, TraceEvent, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig

# So many spans a day: what one day holds is the same in a store of any size, and older days are more of them.
SPANS_A_DAY: Final = 250_000
TEMPLATE_SPANS: Final = 10_000
_MICROSECOND: Final = dt.timedelta(microseconds=1)
# Where the server's binary times begin.
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_EMPTY: Final = f"TRUNCATE {TABLES}".encode()
_EMPTY_BUT_RESOURCES: Final = f"TRUNCATE {TABLES.replace(' resources,', '')}".encode()
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_RESOURCES: Final = sql.Identifier("resources")
_PIECE: Final = 256 * 1024


@dataclass(frozen=True)
class Copy:
    """One copy of the template: what its ids are XORed with, and by how many microseconds it is later."""

    mask: int
    later_us: int

    @classmethod
    def number(cls, place: int, seed: int, step_us: int, first_us: int = 0) -> Copy:
        return cls(random.Random(f"{seed}/{place}").getrandbits(128), first_us - place * step_us)

    def of(self, rows: Sequence[SpanRow]) -> list[SpanRow]:
        """Return the copies of rows."""
        later = dt.timedelta(microseconds=self.later_us)
        ids: dict[bytes, bytes] = {}
        copies: list[SpanRow] = []
        for row in rows:
            key = _raw(row["trace_id"])
            if key not in ids:
                ids[key] = (int.from_bytes(key) ^ self.mask).to_bytes(16, "big")
            start, end = row["start_time"], row["end_time"]
            assert start is not None
            assert end is not None
            copies.append({**row, "trace_id": ids[key], "start_time": start + later, "end_time": end + later})
        return copies


@dataclass(frozen=True)
class _Encoded:
    """A table's rows: the trace's id and the times, which change, in front of the rest, which does not."""

    table: str
    columns: Sequence[str]
    layout: struct.Struct
    rows: Sequence[tuple[int, tuple[int, ...], bytes]]

    def stream(self, copies: Sequence[Copy]) -> Iterator[bytes]:
        """Yield a binary COPY stream of these copies, in pieces."""
        pack, fields = self.layout.pack, len(self.columns)
        yield _SIGNATURE
        pieces: list[bytes] = []
        room = _PIECE
        for copy in copies:
            mask, later = copy.mask, copy.later_us
            ids: dict[int, bytes] = {}
            for key, times, rest in self.rows:
                trace_id = ids.get(key)
                if trace_id is None:
                    trace_id = ids[key] = (key ^ mask).to_bytes(16, "big")
                values: list[int] = []
                for time in times:
                    values += (8, time + later)
                pieces.append(pack(fields, 16, trace_id, *values))
                pieces.append(rest)
                room -= len(rest)
                if room < 0:
                    yield b"".join(pieces)
                    pieces, room = [], _PIECE
        yield b"".join(pieces)
        yield _TRAILER


class Template:
    """Spans of one project with events and summaries, of which copies are made."""

    def __init__(self, pool: StoragePool, spans: int = TEMPLATE_SPANS, *, project: str = "default") -> None:
        # Whole traces alone, so that the copies' summaries say what their spans say: those that end first.
        source = SpanSource(seed=11, events=True).spans(spans + 1_000)
        ended = [row["trace_id"] for row in source if row.get("parent_span_id") is None]
        complete = frozenset(ended[: spans // SPANS_PER_TRACE])
        self.rows: list[SpanRow] = [row for row in source if row["trace_id"] in complete]
        assert len(self.rows) == spans
        self.trace_ids = sorted({int.from_bytes(_raw(row["trace_id"])) for row in self.rows})
        with pool.raw_connection() as connection:
            connection.execute(_EMPTY)
            connection.commit()
        write(pool, self.rows, project)
        with pool.raw_connection() as connection:
            self.spans = _encoded(connection, "trace_spans", "trace_id", ("start_time", "end_time"))
            self.events = _encoded(connection, "trace_events", "trace_id", ("span_start_time", "timestamp"))
            self.traces = _encoded(connection, "traces", "id", ("start_time", "end_time", "root_start_time"))
            connection.execute(_EMPTY_BUT_RESOURCES)
            connection.commit()
            self._resources = b"".join(
                copied(connection, sql.SQL("COPY {} TO STDOUT (FORMAT BINARY)").format(_RESOURCES))
            )

    def load(self, pool: StoragePool, spans: int, *, already: int = 0, seed: int = 1) -> Sequence[Copy]:
        """Store about so many spans, those of `already` left out, newest at today's end; return the copies.

        Also vacuums, analyses and writes everything to disk, so that readers find a settled store.
        """
        step_us = self._step_us()
        copies = [
            Copy.number(place, seed, step_us, int(23 * 3600e6))
            for place in range(already // len(self.rows), max(1, round(spans / len(self.rows))))
        ]
        # Oldest first, as they came.
        self.add(pool, copies[::-1])
        settle(pool)
        return copies

    def add(self, pool: StoragePool, copies: Sequence[Copy]) -> None:
        """Store copies, in this order, beside whatever is stored."""
        self._make_partitions(pool, copies)
        with pool.raw_connection() as connection:
            connection.execute("CREATE TEMP TABLE given (LIKE resources) ON COMMIT DROP")
            _send(connection, sql.SQL("COPY given FROM STDIN (FORMAT BINARY)").format(), iter([self._resources]))
            connection.execute("INSERT INTO resources SELECT * FROM given ON CONFLICT DO NOTHING")
            for encoded in (self.spans, self.events, self.traces):
                send(connection, encoded, copies)
            connection.commit()

    def started_from(self, moment: dt.datetime, copies: Sequence[Copy]) -> Counter[str]:
        """Count the rows of these copies, by table, whose traces started at a moment or later."""
        least = round((moment - _EPOCH) / _MICROSECOND)
        rows = {one.table: Counter(key for key, _, _ in one.rows) for one in (self.spans, self.events, self.traces)}
        found: Counter[str] = Counter()
        for key, (start, *_), _ in self.traces.rows:
            later = sum(start + copy.later_us >= least for copy in copies)
            found.update({table: later * of_trace[key] for table, of_trace in rows.items()})
        return found

    def trace_id(self, copies: Sequence[Copy], dice: random.Random) -> bytes:
        """Return the id of any stored trace."""
        return (dice.choice(self.trace_ids) ^ dice.choice(copies).mask).to_bytes(16, "big")

    def fresh(self, count: int, place: int, *, seed: int = 2) -> list[SpanRow]:
        """Return spans that are stored nowhere, at today's end: whole copies, without the last one's rest."""
        rows: list[SpanRow] = []
        number = 0
        while len(rows) < count:
            copy = Copy.number(place * 1_000 + number, seed, 0, int(23.2 * 3600e6))
            rows += copy.of(self.rows[: count - len(rows)])
            number += 1
        return rows

    def _step_us(self) -> int:
        return int(len(self.rows) / SPANS_A_DAY * 86_400e6)

    def _make_partitions(self, pool: StoragePool, copies: Sequence[Copy]) -> None:
        first, last = self.rows[0]["start_time"], self.rows[-1]["end_time"]
        assert first is not None
        assert last is not None
        days = {(time + dt.timedelta(microseconds=copy.later_us)).date() for copy in copies for time in (first, last)}
        manager = PartitionManager(pool)
        for model in (TraceSpan, TraceEvent):
            assert not manager.ensure(table_of(model), sorted(days))


def settle(pool: StoragePool) -> None:
    """Vacuum, analyse and write to disk what was loaded."""
    with pool.raw_connection() as connection:
        connection.autocommit = True
        for table in ("trace_spans", "trace_events", "traces", "resources"):
            connection.execute(f"VACUUM ANALYZE {table}".encode())
        connection.autocommit = False
        checkpoint(connection)


def write(pool: StoragePool, spans: Sequence[SpanRow], project: str = "default") -> None:
    """TraceWriter by COPY, 5,000 a batch, from rows to committed."""
    config = WriterConfig(method=WriteMethod.COPY, flush_interval_seconds=60, project=project)
    with TraceWriter(pool, config) as writer:
        writer.write_spans(spans)
        writer.flush()
        assert writer.write_stats().rows_rejected == 0


def days_covered(spans: int) -> float:
    return spans / SPANS_A_DAY


def send(connection: psycopg.Connection[TupleRow], encoded: _Encoded, copies: Sequence[Copy]) -> None:
    """COPY these copies into their table; the caller commits."""
    names = sql.SQL(", ").join(map(sql.Identifier, encoded.columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(sql.Identifier(encoded.table), names)
    _send(connection, statement, encoded.stream(copies))


def _send(connection: psycopg.Connection[TupleRow], statement: sql.Composed, stream: Iterator[bytes]) -> None:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for piece in stream:
            copy.write(piece)


def _encoded(connection: psycopg.Connection[TupleRow], table: str, key: str, times: Sequence[str]) -> _Encoded:
    """Read a table as the server encodes it, with what changes in front."""
    query = sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(table))
    description = connection.execute(query).description
    assert description is not None
    rest = [column.name for column in description if column.name not in (key, *times)]
    columns = [key, *times, *rest]
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    statement = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT BINARY)").format(names, sql.Identifier(table))
    layout = struct.Struct(">hi16s" + "iq" * len(times))
    rows = []
    # The server sends a row, and the end, in a message of its own; the signature stands before the first row.
    for number, row in enumerate(copied(connection, statement)):
        message = row.removeprefix(_SIGNATURE) if number == 0 else row
        if message == _TRAILER or not message:
            continue
        fields, length, trace_id, *values = layout.unpack_from(message)
        # A null has the length -1 and would have shifted what follows.
        assert (fields, length, set(values[::2])) == (len(columns), 16, {8}), table
        rows.append((int.from_bytes(trace_id), tuple(values[1::2]), message[layout.size :]))
    return _Encoded(table, columns, layout, rows)


def _raw(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
