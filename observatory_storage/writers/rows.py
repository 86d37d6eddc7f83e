"""How rows in wire form reach a table: plain COPY, COPY merged through a temporary table, INSERT of all or of some."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import Buffer
from psycopg.copy import LibpqWriter
from psycopg.types.string import BytesBinaryDumper

from observatory_storage.connections import PooledConnection
from observatory_storage.errors import is_duplicate
from observatory_storage.writers import sql, wire
from observatory_storage.writers.convert import WireRow
from observatory_storage.writers.tables import Layout, WriteTable

Connection = psycopg.Connection[Any]
T = TypeVar("T")

# What one INSERT carries. More rows a statement gain nothing; the server builds each array in memory, and no
# message may exceed 1 GB.
_INSERT_ROWS: Final = 1_000
_INSERT_BYTES: Final = 32 * 1024 * 1024
# What libpq may hold before a COPY waits for the server. While it waits nothing is converted, and afterwards the
# server waits for the next chunk: with psycopg's own 1 MB both stand still for a fifth of the time.
_UNFLUSHED_BYTES: Final = 8 * 1024 * 1024
# What is handed to libpq at once: each time this thread gives the interpreter away, and another one that is busy keeps
# it for 5 ms. With pieces of 32 kB as psycopg makes them, which are 20 spans, a writer beside a busy thread would stand
# still most of the time; what is larger than 128 kB psycopg cuts and copies.
_HANDED_OVER_BYTES: Final = 88 * 1024
TAKEN_IN_ROWS: Final = 1_000
"""What binary COPY takes in before it stores any of it: until the first so many are sent, the server has nothing to do.

MAX_BUFFERED_TUPLES of PostgreSQL's copyfrom.c; its bound by bytes counts rows in text format alone.
"""
# COPY takes in that many rows at a time and then stores them for some milliseconds. Linux gives a local socket room
# for 130 rows, so that the server would wait for the next chunk each time. With room for all of a batch this process
# is free for the next one while the server works on it; Linux doubles what is asked, and grants what is allowed.
_SEND_BUFFER: Final = 4 * 1024 * 1024
_INSERT_STATEMENTS: Final = {
    "trace_spans": sql.INSERT_SPANS,
    "trace_events": sql.INSERT_EVENTS,
    "resources": sql.INSERT_RESOURCES,
    "messages": sql.INSERT_MESSAGES,
    "message_packs": sql.INSERT_MESSAGE_PACKS,
    "message_uses": sql.INSERT_MESSAGE_USES,
    "metric_series": sql.INSERT_SERIES,
    "metric_data_points": sql.INSERT_DATA_POINTS,
    "logs": sql.INSERT_LOGS,
}


def copy_rows(connection: Connection, table: str, layout: Layout, chunks: Iterable[Sequence[WireRow]]) -> int:
    """COPY rows straight into a table; a duplicate raises. Returns their number."""
    written = 0
    with connection.cursor() as cursor:
        # Asked by type name, psycopg takes its last dumper of bytes, which is in Python (1.2 µs a span).
        cursor.adapters.register_dumper(bytes, BytesBinaryDumper)
        _widen(connection)
        writer = LibpqWriter(cursor)
        writer.flush_threshold = _UNFLUSHED_BYTES
        with cursor.copy(sql.copy_into(table, layout), writer=writer) as copy:
            copy.set_types([column.kind.copy_type for column in layout.columns])
            # What `copy.write_row` does, but for several of psycopg's pieces at once.
            format_row = copy.formatter.write_row
            pieces: list[Buffer] = []
            waiting = 0
            # The first at once: until it is there the server has nothing to parse.
            enough = 0
            for chunk in chunks:
                for row in chunk:
                    if data := format_row(row):
                        pieces.append(data)
                        waiting += len(data)
                        if waiting >= enough:
                            enough = _HANDED_OVER_BYTES
                            writer.write(b"".join(pieces))
                            pieces.clear()
                            waiting = 0
                written += len(chunk)
                if pieces:
                    # The server is to work on it while the next chunk is made.
                    writer.write(b"".join(pieces))
                    pieces.clear()
                    waiting = 0
    return written


def _widen(connection: Connection) -> None:
    """Let the kernel hold more of what is sent by a local socket; a TCP connection grows by itself."""
    if hasattr(socket, "AF_UNIX"):
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
            if line.family == socket.AF_UNIX:
                # BSD refuses what Linux cuts to what it allows.
                with suppress(OSError):
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)


def merge_rows(
    connection: Connection, table: WriteTable, layout: Layout, chunks: Iterable[Sequence[WireRow]]
) -> set[bytes]:
    """Insert the rows that are new, by COPY to a temporary table; return the keys of new ones."""
    connection.execute(sql.create_staging(table, layout))
    copy_rows(connection, sql.staging_name(table), layout, chunks)
    return {row[0] for row in query(connection, sql.merge_staging(table, layout))}


def insert_rows(
    connection: Connection, table: WriteTable, layout: Layout, chunks: Iterable[Sequence[WireRow]]
) -> set[bytes]:
    """Insert the rows that are new, a statement for every thousand; return the keys of new ones."""
    new: set[bytes] = set()
    parameters = (encode_columns(table, layout, part) for part in _parts(layout, chunks))
    for given in _one_ahead(connection, parameters):
        new.update(row[0] for row in query(connection, _INSERT_STATEMENTS[table.name], given))
    return new


def stored_places(
    connection: Connection, table: WriteTable, statement: str, keys: Sequence[Sequence[Any]], times: Sequence[int]
) -> set[int]:
    """Return the places of the keys that are stored; `keys` are columns, `times` those of the rows.

    Planned anew each time: a plan that was made while a partition was empty would read all of it for each key. It is
    over every partition between the first and the last time.
    """
    arrays = [
        wire.encode_array(column.kind.element_oid, column.kind.element, values)
        for column, values in zip(table.columns[: len(table.key)], keys, strict=True)
    ]
    bounds = [wire.encode_time(min(times)), wire.encode_time(max(times))]
    return {row[0] - 1 for row in query(connection, statement, [*arrays, *bounds], prepare=False)}


def insert_absent(
    connection: Connection,
    table: WriteTable,
    layout: Layout,
    chunks: Iterable[Sequence[WireRow]],
    absent: Callable[[Sequence[WireRow]], Sequence[WireRow]],
) -> set[bytes]:
    """Look rows up, a thousand at a time, and insert those that are absent; return the keys of new ones.

    The next thousand is converted while the server looks. Another transaction may store one in between: that one
    is not new either.
    """
    new: set[bytes] = set()
    for part in _one_ahead(connection, _parts(layout, chunks)):
        if rows := absent(part):
            given = encode_columns(table, layout, rows)
            new.update(row[0] for row in query(connection, _INSERT_STATEMENTS[table.name], given))
    return new


def store_new(
    connection: Connection,
    table: WriteTable,
    layout: Layout,
    chunks: Callable[[], Iterable[Sequence[WireRow]]],
    *,
    by_copy: bool,
    expect_duplicates: bool,
) -> tuple[int, set[bytes] | None]:
    """Store the rows that are new; return their number and keys. No keys: all were new.

    By COPY first, in a savepoint, without looking for duplicates, unless they are expected. `chunks` may be asked
    for the rows twice.
    """
    if by_copy and not expect_duplicates:
        try:
            with connection.transaction():
                return copy_rows(connection, table.name, layout, chunks()), None
        except psycopg.Error as error:
            if not is_duplicate(error):
                raise
    insert = merge_rows if by_copy else insert_rows
    new = insert(connection, table, layout, chunks())
    return len(new), new


def encode_columns(table: WriteTable, layout: Layout, rows: Sequence[WireRow]) -> list[Any]:
    """Encode rows as one array parameter for each column of the table; the layout's absent ones are filled."""
    columns = dict(zip(layout.names, zip(*rows, strict=True), strict=True))
    parameters = []
    for column in table.columns:
        oid = column.kind.element_oid
        if column.name in columns:
            parameters.append(wire.encode_array(oid, column.kind.element, columns[column.name]))
        elif column.default is not None:
            parameters.append(wire.encode_array(oid, column.kind.element, [column.default] * len(rows)))
        else:
            parameters.append(wire.encode_nulls(oid, len(rows)))
    return parameters


def work_meanwhile(connection: Connection, work: Callable[[], bool] | None) -> None:
    """Have some other work done while the server is waited for, until the connection goes back to its pool.

    From the moment when all rows are sent: the server has work left, and this process has none.
    """
    if isinstance(connection, PooledConnection):
        connection.meanwhile = work


def query(
    connection: Connection, statement: str, parameters: Sequence[Any] = (), *, prepare: bool | None = None
) -> list[tuple[Any, ...]]:
    """Run a statement with binary results. Without `prepare` psycopg decides; false has it planned anew."""
    with connection.cursor(binary=True) as cursor:
        cursor.adapters.register_dumper(wire.BinaryValue, wire.BinaryValueDumper)
        cursor.execute(statement.encode(), parameters, prepare=prepare)
        return cursor.fetchall() if cursor.description is not None else []


class Ahead(Iterator[T]):
    """The items of an iterator, some of them made before they are asked for.

    `is_enough` tells when what is made will do. An error is raised when its turn comes: where it is made, the answer
    of the server is still to be read.
    """

    def __init__(self, items: Iterator[T], is_enough: Callable[[Sequence[T]], bool]) -> None:
        self._items = items
        self._is_enough = is_enough
        self._made: deque[T] = deque()
        self._error: Exception | None = None
        self._is_over = False

    def make(self) -> bool:
        """Make one more; false, and nothing done, where there is enough or nothing more."""
        if self._is_over or self._is_enough(self._made):
            return False
        try:
            self._made.append(next(self._items))
        except StopIteration:
            self._is_over = True
        except Exception as error:  # noqa: BLE001 - raised below
            self._error, self._is_over = error, True
        return not self._is_over

    def has_more(self) -> bool:
        """Tell whether there is something to come, an error too; makes an item to find out."""
        return bool(self._made) or self.make() or self._error is not None

    def __next__(self) -> T:
        if self.has_more():
            if self._made:
                return self._made.popleft()
            error, self._error = self._error, None
            assert error is not None
            raise error
        raise StopIteration


def _one_ahead(connection: Connection, items: Iterator[T]) -> Iterator[T]:
    """Yield items, each of which costs work; the next one is made while the server is waited for."""
    if not isinstance(connection, PooledConnection):
        yield from items
        return
    ahead = Ahead(items, bool)
    make = ahead.make
    before, connection.meanwhile = connection.meanwhile, make
    try:
        yield from ahead
    finally:
        # Making the last item may have given it other work.
        if connection.meanwhile is make:
            connection.meanwhile = before


def _parts(layout: Layout, chunks: Iterable[Sequence[WireRow]]) -> Iterator[Sequence[WireRow]]:
    """Yield what one statement each carries: enough rows, or enough bytes."""
    wide = list(map(layout.names.index, layout.wide))
    part: list[WireRow] = []
    size = 0
    for chunk in chunks:
        for row in chunk:
            part.append(row)
            size += sum(len(row[at]) for at in wide if row[at] is not None)
            if len(part) >= _INSERT_ROWS or size >= _INSERT_BYTES:
                yield part
                part, size = [], 0
    if part:
        yield part
