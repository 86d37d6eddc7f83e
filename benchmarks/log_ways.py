"""The ways in which log records reach `logs`."""

from __future__ import annotations

import datetime as dt
import random
from typing import ClassVar, Final

import psycopg
from psycopg.rows import TupleRow

from benchmarks.interleaved import Way
from benchmarks.logs import words
from benchmarks.ways import BATCH_ROWS, COPY_WRITER, COPY_WRITER_CALLS, Row, Ways
from observatory_storage.models import LogRecord, LogRow, ResourceRow
from observatory_storage.models.base import Base
from observatory_storage.pool import StoragePool
from observatory_storage.writers import CopyWriter, LogWriter, WriteMethod, WriterConfig
from observatory_storage.writers.tables import LOGS

LOG_WRITER_COPY: Final = "LogWriter, COPY"
LOG_WRITER_INSERT: Final = "LogWriter, INSERT"
REPLAY: Final = "LogWriter, COPY, replay"
INLINE_INDEX: Final = "server limit with the text index"

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


class LogWays(Ways):
    """Seeded records of about 420 bytes, made ready for each way."""

    table: ClassVar[str] = "logs"
    truncated: ClassVar[str] = "logs, resources"
    model: ClassVar[type[Base]] = LogRecord

    def __init__(self, pool: StoragePool, rows: int, *, outsiders: bool = False, blobs_only: bool = False) -> None:
        self.logs = make_logs(rows)
        bare = [{name: value for name, value in row.items() if name != "resource"} for row in self.logs]
        columns = LOGS.layout(frozenset().union(*bare)).names
        super().__init__(pool, bare, columns, outsiders=outsiders, blobs_only=blobs_only)
        self._partition = self._hour()

    def own(self) -> list[Way]:
        """The project's ways, and the limit with a text index."""
        return [
            self.way(COPY_WRITER, self.copy),
            self.way(COPY_WRITER_CALLS, self.copy_calls),
            self.way(LOG_WRITER_COPY, lambda: self.write(WriteMethod.COPY)),
            self.way(LOG_WRITER_INSERT, lambda: self.write(WriteMethod.INSERT)),
            self.way(REPLAY, lambda: self.write(WriteMethod.COPY), self.fill),
            self.way(INLINE_INDEX, self.send_blobs, self._with_text_index),
        ]

    def write(self, method: WriteMethod) -> None:
        """LogWriter from rows to committed."""
        config = WriterConfig(method=method, batch_size=BATCH_ROWS, flush_interval_seconds=60)
        with LogWriter(self.pool, config) as writer:
            writer.write_logs(self.logs)
            writer.flush()
            assert writer.write_stats().rows_rejected == 0

    def copy_batch(
        self, connection: psycopg.Connection[TupleRow], batch: list[Row], commit_rows: int | None = None
    ) -> None:
        CopyWriter(commit_rows=commit_rows).write_logs(connection, batch)

    def empty(self) -> None:
        """Leave the tables as they were made, without the text index that one way has."""
        with self.pool.raw_connection() as connection:
            connection.execute("DROP INDEX IF EXISTS bench_text_idx")
            connection.commit()
        super().empty()

    def _with_text_index(self) -> None:
        self.empty()
        vector = "to_tsvector('simple', left(body, 125000))"
        with self.pool.raw_connection() as connection:
            connection.execute(f"CREATE INDEX bench_text_idx ON {self._partition} USING gin ({vector})".encode())
            connection.commit()

    def _hour(self) -> str:
        with self.pool.raw_connection() as connection:
            self.copy_batch(connection, self._bare[:1])
            row = connection.execute("SELECT tableoid::regclass::text FROM logs").fetchone()
        assert row is not None
        return str(row[0])


def _resource(service: str, host: int) -> ResourceRow:
    return {"service_name": service, "attributes": {"service.name": service, "host.name": f"host-{host}"}}
