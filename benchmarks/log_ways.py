"""The ways in which log records reach `logs`, from the server's limit to SQLAlchemy."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from typing import Any, Final

from psycopg import sql
from sqlalchemy import insert

from benchmarks.interleaved import Way
from benchmarks.logs import words
from benchmarks.spans import BATCH_ROWS, LIMIT, batches, copied, pieces
from observatory_storage.models import LogRecord, LogRow, ResourceRow
from observatory_storage.pool import StoragePool
from observatory_storage.writers import CopyWriter, LogWriter, WriteMethod, WriterConfig
from observatory_storage.writers.tables import LOGS

COPY_WRITER: Final = "CopyWriter"
LOG_WRITER_COPY: Final = "LogWriter, COPY"
LOG_WRITER_INSERT: Final = "LogWriter, INSERT"
REPLAY: Final = "LogWriter, COPY, replay"
EXECUTEMANY: Final = "Core execute(insert(T), [dicts])"
INLINE_INDEX: Final = "server limit with the text index"

_TABLES: Final = "logs, resources"
_SERVICES: Final = ("gateway", "agent", "billing", "search")


def make_logs(count: int, seed: int = 1) -> list[LogRow]:
    """Return records as a decoder gives them, in order of time within this hour; one in two belongs to a trace."""
    dice = random.Random(seed)
    hour = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    resources = [_resource(name, host) for name in _SERVICES for host in range(3)]
    rows: list[LogRow] = []
    for number in range(count):
        resource = dice.choice(resources)
        is_error = dice.random() < 0.03
        row: LogRow = {
            "timestamp": hour + dt.timedelta(microseconds=number * 100),
            "observed_timestamp": hour + dt.timedelta(microseconds=number * 100 + 60),
            "severity_number": 17 if is_error else 9,
            "severity_text": "ERROR" if is_error else "INFO",
            "body": f"{words(dice)} took {dice.randrange(10_000)} ms",
            "service_name": resource["service_name"],
            "scope_name": "app.server",
            "attributes": {"code.lineno": dice.randrange(900), "http.route": dice.choice(("/chat", "/search"))},
            "resource": resource,
        }
        if dice.random() < 0.5:
            row |= {"trace_id": dice.randbytes(16), "span_id": dice.randbytes(8), "trace_flags": 1}
        rows.append(row)
    return rows


class LogWays:
    """The same seeded records, made ready for each way beforehand, so that only writing is timed."""

    def __init__(self, pool: StoragePool, rows: int) -> None:
        self._pool = pool
        self.rows = rows
        self.logs = make_logs(rows)
        self._bare = [{name: value for name, value in row.items() if name != "resource"} for row in self.logs]
        self._columns = LOGS.layout(frozenset().union(*self._bare)).names
        self.write(WriteMethod.COPY)  # makes the partition of the hour
        self.empty()
        self._blobs = [list(self._blob(batch)) for batch in batches(self._bare)]
        self.row_bytes = sum(len(piece) for blob in self._blobs for piece in blob) / rows
        self._partition = self._hour()
        self._complete = self._stored()

    def ways(self) -> list[Way]:
        """All ways."""
        return [
            Way(LIMIT, self.rows, self.send_blobs, self.empty),
            Way(COPY_WRITER, self.rows, self.copy, self.empty),
            Way(LOG_WRITER_COPY, self.rows, lambda: self.write(WriteMethod.COPY), self.empty),
            Way(LOG_WRITER_INSERT, self.rows, lambda: self.write(WriteMethod.INSERT), self.empty),
            Way(REPLAY, self.rows, lambda: self.write(WriteMethod.COPY), self._fill),
            Way(EXECUTEMANY, self.rows, self._executemany, self.empty),
            Way(INLINE_INDEX, self.rows, self.send_blobs, self._with_text_index),
        ]

    def empty(self) -> None:
        """Leave the tables as they were made, and nothing for the disk to do."""
        with self._pool.raw_connection() as connection:
            connection.execute(f"TRUNCATE {_TABLES}".encode())
            connection.execute("DROP INDEX IF EXISTS bench_text_idx")
            connection.commit()
            connection.autocommit = True
            connection.execute("CHECKPOINT")

    def write(self, method: WriteMethod) -> None:
        """LogWriter from rows to committed."""
        config = WriterConfig(method=method, batch_size=BATCH_ROWS, flush_interval_seconds=60)
        with LogWriter(self._pool, config) as writer:
            writer.write_logs(self.logs)
            writer.flush()
            assert writer.write_stats().rows_rejected == 0

    def copy(self) -> None:
        """CopyWriter, a transaction a batch."""
        writer = CopyWriter()
        for batch in batches(self._bare):
            with self._pool.raw_connection() as connection:
                writer.write_logs(connection, batch)
                connection.commit()

    def send_blobs(self) -> None:
        """Bytes that are ready to be sent: what is left is the server's work."""
        for blob in self._blobs:
            with self._pool.raw_connection() as connection:
                with connection.cursor() as cursor, cursor.copy(self._statement("FROM STDIN")) as copy:
                    for piece in blob:
                        copy.write(piece)
                connection.commit()

    def _executemany(self) -> None:
        for batch in batches(self._complete):
            with self._pool.session() as session:
                session.connection().execute(insert(LogRecord), batch)
                session.commit()

    def _fill(self) -> None:
        self.empty()
        self.write(WriteMethod.COPY)
        with self._pool.raw_connection() as connection:
            connection.autocommit = True
            connection.execute("CHECKPOINT")

    def _with_text_index(self) -> None:
        self.empty()
        vector = "to_tsvector('simple', left(body, 125000))"
        with self._pool.raw_connection() as connection:
            connection.execute(f"CREATE INDEX bench_text_idx ON {self._partition} USING gin ({vector})".encode())
            connection.commit()

    def _hour(self) -> str:
        with self._pool.raw_connection() as connection:
            CopyWriter().write_logs(connection, self._bare[:1])
            row = connection.execute("SELECT tableoid::regclass::text FROM logs").fetchone()
        assert row is not None
        return str(row[0])

    def _stored(self) -> list[dict[str, Any]]:
        """The rows as the table has them, ids and all."""
        with self._pool.session() as session:
            CopyWriter().write_logs(session.connection().connection.driver_connection, self._bare)  # type: ignore[arg-type]
            names = ", ".join(self._columns)
            rows = session.connection().exec_driver_sql(f"SELECT {names} FROM logs").mappings().all()
            return [{**row, "span_id": None if row["span_id"] is None else bytes(row["span_id"]).hex()} for row in rows]

    def _blob(self, batch: list[dict[str, Any]]) -> Iterator[bytes]:
        with self._pool.raw_connection() as connection:
            CopyWriter().write_logs(connection, batch)
            yield from pieces(b"".join(copied(connection, self._statement("TO STDOUT"))))

    def _statement(self, direction: str) -> sql.Composed:
        names = sql.SQL(", ").join(map(sql.Identifier, self._columns))
        source = sql.SQL("(SELECT {} FROM logs)" if direction.startswith("TO") else "logs ({})")
        return sql.SQL("COPY {} {} (FORMAT BINARY)").format(source.format(names), sql.SQL(direction))


def _resource(service: str, host: int) -> ResourceRow:
    return {"service_name": service, "attributes": {"service.name": service, "host.name": f"host-{host}"}}
