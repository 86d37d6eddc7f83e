"""How rows in wire form reach a table: plain COPY, COPY merged through a temporary table, or INSERT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import psycopg

from observatory_storage.writers import sql, wire
from observatory_storage.writers.convert import WireRow
from observatory_storage.writers.tables import WriteTable

Connection = psycopg.Connection[Any]

# What one INSERT carries: the server builds each array in memory, and no message may exceed 1 GB.
_INSERT_BYTES: Final = 32 * 1024 * 1024
_INSERT_STATEMENTS: Final = {
    "trace_spans": sql.INSERT_SPANS,
    "trace_events": sql.INSERT_EVENTS,
    "resources": sql.INSERT_RESOURCES,
}


def copy_rows(
    connection: Connection, table: WriteTable, chunks: Iterable[Sequence[WireRow]], into: str | None = None
) -> int:
    """COPY rows straight into a table; a duplicate raises. Returns their number."""
    written = 0
    with connection.cursor() as cursor, cursor.copy(sql.copy_into(into or table.name, table)) as copy:
        copy.set_types([column.kind.copy_type for column in table.columns])
        write_row = copy.write_row
        for chunk in chunks:
            for row in chunk:
                write_row(row)
            written += len(chunk)
    return written


def merge_rows(connection: Connection, table: WriteTable, rows: Sequence[WireRow]) -> set[bytes]:
    """Insert the rows that are new, by COPY to a temporary table; return the keys of new ones."""
    connection.execute(sql.create_staging(table))
    copy_rows(connection, table, [rows], into=sql.staging_name(table))
    return {row[0] for row in _binary(connection, sql.merge_staging(table))}


def insert_rows(connection: Connection, table: WriteTable, rows: Sequence[WireRow]) -> set[bytes]:
    """Insert the rows that are new, by one statement; return the keys of new ones."""
    new: set[bytes] = set()
    for part in _by_size(table, rows):
        new.update(row[0] for row in _binary(connection, _INSERT_STATEMENTS[table.name], encode_columns(table, part)))
    return new


def encode_columns(table: WriteTable, rows: Sequence[WireRow]) -> list[Any]:
    """Encode rows as one array parameter a column."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(table.columns)
    return [
        wire.encode_array(column.kind.element_oid, column.kind.element, values)
        for column, values in zip(table.columns, columns, strict=True)
    ]


def query(connection: Connection, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement with binary results."""
    return _binary(connection, statement, parameters)


def _binary(connection: Connection, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with connection.cursor(binary=True) as cursor:
        cursor.adapters.register_dumper(wire.BinaryValue, wire.BinaryValueDumper)
        cursor.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description is not None else []


def _by_size(table: WriteTable, rows: Sequence[WireRow]) -> Iterator[Sequence[WireRow]]:
    wide = [table.index[name] for name in ("input", "output", "attributes") if name in table.index]
    first = size = 0
    for place, row in enumerate(rows):
        size += sum(len(row[at]) for at in wide if row[at] is not None)
        if size > _INSERT_BYTES and place > first:
            yield rows[first:place]
            first, size = place, 0
    if first < len(rows):
        yield rows[first:]
