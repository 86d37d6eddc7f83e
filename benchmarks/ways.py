"""The ways in which rows reach a table, from the server's limit to one row a transaction.

What all tables have in common; `SpanWays` and `LogWays` say what is their own. Rows are made ready for each way
beforehand, so that only writing is timed.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, dict_row
from psycopg.types.json import Jsonb
from psycopg.types.string import BytesBinaryDumper
from sqlalchemy import insert
from sqlalchemy.dialects import postgresql

from benchmarks.busy_core import BusyCore
from benchmarks.interleaved import Way
from benchmarks.others import AsyncpgCopy, Psql
from observatory_storage.models.base import Base
from observatory_storage.pool import StoragePool
from observatory_storage.writers import WriteMethod

BATCH_ROWS: Final = 5_000
LIMIT: Final = "server limit: encoded blob"
LIMIT_BESIDE_WORK: Final = "server limit beside a busy core"
COPY_WRITER: Final = "CopyWriter"
COPY_WRITER_CALLS: Final = "CopyWriter, a call a batch"
WRITE_ROW: Final = "psycopg write_row, ready tuples"
BY_HAND: Final = "psycopg write_row, from mappings"
PSQL: Final = "psql \\copy, binary file"
PSQL_TEXT: Final = "psql \\copy, text file"
ASYNCPG: Final = "asyncpg copy_records_to_table"
EXECUTEMANY: Final = "Core execute(insert(T), [dicts])"
EXECUTEMANY_CONFLICT: Final = "Core execute(…), ON CONFLICT DO NOTHING"
VALUES: Final = "insert(T).values([dicts])"
ADD_ALL: Final = "ORM add_all"
ROW_BY_ROW: Final = "one row a transaction"

# A statement with 34 columns may hold 1,927 rows: PostgreSQL allows 65,535 parameters.
VALUES_ROWS: Final = 1_000
# What libpq is handed at once; below it psycopg does not split a buffer.
_PIECE: Final = 128 * 1024
# A hand-written COPY whose values go as they are stored: ids and JSON as bytes, times as microseconds.
_WIRE_TYPES: Final = {"uuid": "bytea", "jsonb": "bytea", "timestamptz": "int8"}
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)

T = TypeVar("T")
Row = dict[str, Any]


class Ways(ABC):
    """The same seeded rows, made ready for each way."""

    table: ClassVar[str]
    truncated: ClassVar[str]
    model: ClassVar[type[Base]]

    def __init__(
        self,
        pool: StoragePool,
        bare: list[Row],
        columns: Sequence[str],
        *,
        outsiders: bool = False,
        blobs_only: bool = False,
    ) -> None:
        """Prepare `bare`, which are rows of the table alone.

        `outsiders` adds other programs and libraries; `blobs_only` leaves SQLAlchemy and them out.
        """
        self.pool = pool
        self.rows = len(bare)
        self.columns = columns
        self._bare = bare
        self.write(WriteMethod.COPY)  # makes the partitions
        self.empty()
        self._blobs = self.blobs_of(BATCH_ROWS)
        self.row_bytes = sum(len(piece) for blob in self._blobs for piece in blob) / self.rows
        self.complete, self._types = ([], []) if blobs_only else self._stored_rows()
        self._instances: list[Base] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.psql: Psql | None = None
        self._asyncpg: AsyncpgCopy | None = None
        self._busy_core: BusyCore | None = None
        self._tuples: list[tuple[Any, ...]] = []
        if outsiders:
            self._tuples = [self._ready(row) for row in self.complete]
            self.psql = Psql.find(pool)
            self._asyncpg = AsyncpgCopy(pool, self.table, self.columns, self._types)
            self._records = [[*self._asyncpg.records(batch)] for batch in batches(self.complete)]
            self._directory = tempfile.TemporaryDirectory(prefix="obs-ways-")
            folder = Path(self._directory.name)
            self._files = self._write_files(folder, "BINARY"), self._write_files(folder, "TEXT")

    @abstractmethod
    def own(self) -> list[Way]:
        """The project's ways."""

    @abstractmethod
    def write(self, method: WriteMethod) -> None:
        """Write all rows by the writer of the signal, and flush."""

    @abstractmethod
    def copy_batch(
        self, connection: psycopg.Connection[TupleRow], batch: list[Row], commit_rows: int | None = None
    ) -> None:
        """Write rows of the table by CopyWriter."""

    def close(self) -> None:
        """Leave no row, no connection and no file."""
        self.empty()
        if self._busy_core is not None:
            self._busy_core.close()
        if self._asyncpg is not None:
            self._asyncpg.close()
        if self._directory is not None:
            self._directory.cleanup()

    def way(self, name: str, run: Callable[[], None], prepare: Callable[[], None] | None = None) -> Way:
        """Return a way that writes all rows to empty tables."""
        return Way(name, self.rows, run, prepare or self.empty)

    def limit(self) -> Way:
        """What the server can take at most: bytes that are ready to be sent."""
        return self.way(LIMIT, self.send_blobs)

    def limit_beside_work(self) -> Way:
        """What the limit is where a client has work to do."""
        if self._busy_core is None:
            self._busy_core = BusyCore()
        beside = self._busy_core.beside
        return self.way(LIMIT_BESIDE_WORK, lambda: beside(self.send_blobs))

    def by_hand(self) -> list[Way]:
        """COPY by other programs, other libraries, and by hand, and the limit beside work."""
        assert self._asyncpg is not None
        ways = [
            self.limit_beside_work(),
            self.way(WRITE_ROW, self._write_tuples),
            self.way(BY_HAND, self._write_mappings),
            self.way(ASYNCPG, self._by_asyncpg),
        ]
        if self.psql is not None:
            binary, text = self._files
            ways.append(self.way(PSQL, lambda: self._by_psql(binary, "BINARY")))
            ways.append(self.way(PSQL_TEXT, lambda: self._by_psql(text, "TEXT")))
        return ways

    def by_sqlalchemy(self) -> list[Way]:
        """INSERT by SQLAlchemy's own means; the slow ones write fewer rows."""
        few, some = max(100, self.rows // 100), min(self.rows, max(VALUES_ROWS, self.rows // 10))
        return [
            self.way(EXECUTEMANY, lambda: self.executemany()),
            self.way(EXECUTEMANY_CONFLICT, lambda: self.executemany(on_conflict=True)),
            Way(VALUES, some, lambda: self._values(some), self.empty),
            Way(ADD_ALL, some, self._add_all, lambda: self._make_instances(some)),
            Way(ROW_BY_ROW, few, lambda: self._row_by_row(few), self.empty),
        ]

    def empty(self) -> None:
        """Leave the tables, their partitions and indexes as they were made, and nothing for the disk to do."""
        with self.pool.raw_connection() as connection:
            connection.execute(f"TRUNCATE {self.truncated}".encode())
            connection.commit()
            checkpoint(connection)

    def fill(self) -> None:
        """Leave the rows in the tables, and nothing for the disk to do."""
        self.empty()
        self.write(WriteMethod.COPY)
        with self.pool.raw_connection() as connection:
            checkpoint(connection)

    def stored(self) -> int:
        """The number of rows in the table."""
        with self.pool.raw_connection() as connection:
            row = connection.execute(f"SELECT count(*) FROM {self.table}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    def copy(self) -> None:
        """CopyWriter, which commits each batch."""
        with self.pool.raw_connection() as connection:
            self.copy_batch(connection, self._bare, BATCH_ROWS)

    def copy_calls(self) -> None:
        """CopyWriter, which knows of no next batch."""
        with self.pool.raw_connection() as connection:
            for batch in batches(self._bare):
                self.copy_batch(connection, batch)
                connection.commit()

    def blobs_of(self, rows: int) -> list[list[bytes]]:
        """What CopyWriter would send in transactions of so many rows."""
        return [list(self._blob(batch)) for batch in batches(self._bare, rows)]

    def send_blobs(self, blobs: list[list[bytes]] | None = None) -> None:
        """Bytes that are ready to be sent, a transaction each: what is left is the server's work."""
        with self.pool.raw_connection() as connection:
            for blob in self._blobs if blobs is None else blobs:
                with connection.cursor() as cursor, cursor.copy(self._copy_in("BINARY")) as copy:
                    for piece in blob:
                        copy.write(piece)
                connection.commit()

    def executemany(self, *, on_conflict: bool = False) -> None:
        """SQLAlchemy Core, a transaction a batch."""
        statement = postgresql.insert(self.model).on_conflict_do_nothing() if on_conflict else insert(self.model)
        for batch in batches(self.complete):
            with self.pool.session() as session:
                session.connection().execute(statement, batch)
                session.commit()

    def _write_tuples(self) -> None:
        """COPY by hand, from tuples of values that need no further thought."""
        types = [_WIRE_TYPES.get(kind, kind) for kind in self._types]
        with self.pool.raw_connection() as connection:
            for batch in batches(self._tuples):
                with connection.cursor() as cursor:
                    # Asked by type name psycopg would take a slower one, which is in Python.
                    cursor.adapters.register_dumper(bytes, BytesBinaryDumper)
                    with cursor.copy(self._copy_in("BINARY")) as copy:
                        copy.set_types(types)
                        for row in batch:
                            copy.write_row(row)
                connection.commit()

    def _write_mappings(self) -> None:
        """COPY by hand, as psycopg's manual has it: values as Python has them, JSON wrapped."""
        json = [kind in ("json", "jsonb") for kind in self._types]
        with self.pool.raw_connection() as connection:
            for batch in batches(self.complete):
                with connection.cursor() as cursor, cursor.copy(self._copy_in("BINARY")) as copy:
                    copy.set_types(self._types)
                    for row in batch:
                        copy.write_row(
                            [
                                Jsonb(value) if is_json and value is not None else value
                                for value, is_json in zip(row.values(), json, strict=True)
                            ]
                        )
                connection.commit()

    def _by_asyncpg(self) -> None:
        assert self._asyncpg is not None
        for records in self._records:
            self._asyncpg.copy(records)

    def _by_psql(self, files: Sequence[Path], form: str) -> None:
        assert self.psql is not None
        names = ", ".join(self.columns)
        self.psql.run([f"\\copy {self.table} ({names}) FROM '{file}' (FORMAT {form})" for file in files])

    def _values(self, rows: int) -> None:
        for first in range(0, rows, VALUES_ROWS):
            with self.pool.session() as session:
                part = self.complete[first : min(rows, first + VALUES_ROWS)]
                session.connection().execute(insert(self.model).values(part))
                session.commit()

    def _make_instances(self, rows: int) -> None:
        self.empty()
        # Bytes are span ids, which the ORM has as hex digits.
        self._instances = [
            self.model(**{name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()})
            for row in self.complete[:rows]
        ]

    def _add_all(self) -> None:
        for batch in batches(self._instances):
            with self.pool.session() as session:
                session.add_all(batch)
                session.commit()
        self._instances = []

    def _row_by_row(self, rows: int) -> None:
        with self.pool.session() as session:
            for row in self.complete[:rows]:
                session.execute(insert(self.model), row)
                session.commit()

    def _blob(self, batch: list[Row]) -> Iterator[bytes]:
        """What CopyWriter would send, as the server itself encodes it, in pieces."""
        with self.pool.raw_connection() as connection:
            self.copy_batch(connection, batch)
            yield from pieces(b"".join(copied(connection, self._copy_out("BINARY"))))

    def _write_files(self, folder: Path, form: str) -> list[Path]:
        found = []
        for number, batch in enumerate(batches(self._bare)):
            path = folder / f"{number}.{form.lower()}"
            with self.pool.raw_connection() as connection:
                self.copy_batch(connection, batch)
                path.write_bytes(b"".join(copied(connection, self._copy_out(form))))
            found.append(path)
        return found

    def _stored_rows(self) -> tuple[list[Row], list[str]]:
        """The rows as the table has them, ids and all, and the names of their types."""
        with self.pool.raw_connection() as connection:
            self.copy_batch(connection, self._bare)
            with connection.cursor(row_factory=dict_row, binary=True) as cursor:
                cursor.execute(f"SELECT {', '.join(self.columns)} FROM {self.table}".encode())
                assert cursor.description is not None
                codes = [column.type_code for column in cursor.description]
                rows = cursor.fetchall()
        known = psycopg.adapters.types
        return rows, [kind.name if (kind := known.get(code)) else "text" for code in codes]

    def _ready(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(
            None if value is None else _wire(kind, value) for kind, value in zip(self._types, row.values(), strict=True)
        )

    def _copy_in(self, form: str) -> sql.Composed:
        return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT {})").format(
            sql.Identifier(self.table), self._names(), sql.SQL(form)
        )

    def _copy_out(self, form: str) -> sql.Composed:
        # COPY … TO reads no partitioned table but by a query; without an order it comes as it was stored.
        return sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT {})").format(
            self._names(), sql.Identifier(self.table), sql.SQL(form)
        )

    def _names(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))


@dataclass
class Checkpoints:
    """How often the server is settled: before each timed run, but for quick runs, of which it would be most."""

    least_seconds: float = 0.0
    latest: float = 0.0


CHECKPOINTS: Final = Checkpoints()


def checkpoint(connection: psycopg.Connection[TupleRow]) -> None:
    """Leave nothing for the disk to do, so that no way pays for what another has written."""
    if time.monotonic() - CHECKPOINTS.latest < CHECKPOINTS.least_seconds:
        return
    connection.autocommit = True
    connection.execute("CHECKPOINT")
    connection.autocommit = False
    CHECKPOINTS.latest = time.monotonic()


def pieces(blob: bytes) -> Iterator[bytes]:
    """Cut a COPY stream as it is handed to libpq."""
    for first in range(0, len(blob), _PIECE):
        yield blob[first : first + _PIECE]


def copied(connection: psycopg.Connection[TupleRow], statement: sql.Composed) -> Iterator[bytes]:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        yield from map(bytes, copy)


def batches(rows: list[T], size: int = BATCH_ROWS) -> Iterator[list[T]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _wire(kind: str, value: Any) -> Any:
    if kind == "jsonb":
        return b"\x01" + orjson.dumps(value)
    if kind == "uuid":
        return value.bytes
    if kind == "timestamptz":
        return (value - _EPOCH) // dt.timedelta(microseconds=1)
    return value
