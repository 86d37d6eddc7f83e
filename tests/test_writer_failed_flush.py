"""A flush that fails says so to its caller, and nobody says it again before the caller can act."""

from __future__ import annotations

import logging
import time

import psycopg
import pytest
from psycopg import sql

from observatory_storage.config import RetryConfig
from observatory_storage.errors import WriteError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig
from tests.servers import database, database_name
from tests.telemetry import count, make_spans

ONCE = RetryConfig(max_attempts=1, initial_delay_ms=1, max_delay_ms=1)


def test_the_thread_neither_tries_again_nor_warns_while_its_caller_is_at_it(
    server_url: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    spans = make_spans(traces=1, spans=4)
    with (
        database(server_url, database_name(database_url)) as url,
        StoragePool.from_url(url, min_connections=1, max_connections=2, retry=ONCE) as pool,
    ):
        writer = TraceWriter(pool, WriterConfig(flush_interval_seconds=0.4))
        writer.write_spans(spans[:2])
        writer.flush()
        with psycopg.connect(server_url, autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            connection.execute(drop.format(sql.Identifier(database_name(url))))
        with caplog.at_level(logging.WARNING, "observatory_storage.writers"):
            writer.write_spans(spans[2:])
            for _ in range(2):
                # Takes longer than the interval, after which the thread stands in line behind it.
                with pytest.raises(WriteError, match="does not exist"):
                    writer.flush()
                time.sleep(0.05)
            assert writer.abandon() == 2
    assert [record.message for record in caplog.records if "not committed" in record.message] == []


def test_the_thread_writes_what_a_failed_flush_left(database_url: str) -> None:
    config = WriterConfig(flush_interval_seconds=0.1, lock_timeout_seconds=0.02)
    with StoragePool.from_url(database_url, min_connections=1, retry=ONCE) as pool, TraceWriter(pool, config) as writer:
        with psycopg.connect(database_url) as blocker:
            blocker.execute("LOCK TABLE traces")
            writer.write_spans(make_spans(traces=1, spans=4))
            with pytest.raises(WriteError):
                writer.flush()
        deadline = time.monotonic() + 20
        while count(database_url, "trace_spans") < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
