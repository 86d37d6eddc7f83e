"""A server that stops, a connection that breaks, a process that forks or ends: nothing acknowledged is lost."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest

from observatory_storage.embedded import embedded_server
from observatory_storage.errors import WriteError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.telemetry import assert_summaries_exact, count, make_spans, stored
from tests.under_fire import write_while_sessions_are_killed


@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
def test_sessions_killed_in_the_middle_of_batches_lose_and_repeat_nothing(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    spans = make_spans(traces=100, spans=10)
    batches = [spans[first : first + 50] for first in range(0, len(spans), 50)]
    with TraceWriter(pool, WriterConfig(method=method, batch_size=50)) as writer:
        write_while_sessions_are_killed(
            database_url, writer, batches, writer.write_spans, pause_seconds=0.05, seconds=60
        )
    assert count(database_url, "trace_spans") == len(spans)
    assert_summaries_exact(database_url)


def test_a_server_stopped_in_the_middle_and_started_again(tmp_path: Path) -> None:
    spans = make_spans(traces=40, spans=10)
    server = embedded_server(tmp_path / "data")
    config = {"min_connections": 1, "max_connections": 3}
    acknowledged = 0
    with StoragePool.from_url(server.url, **config) as pool:
        pool.run_migrations()
        writer = TraceWriter(pool, WriterConfig(batch_size=100, flush_interval_seconds=0.05))
        writer.write_spans(spans[:200])
        writer.flush()
        acknowledged = 200
        server.close()
        writer.write_spans(spans[200:])
        with pytest.raises(WriteError) as raised:
            writer.flush()
        assert raised.value.unwritten == 200
        assert "200 rows are held" in str(raised.value)
        assert writer.buffer_stats().rows == 200
        assert writer.buffer_stats().last_error
        server = embedded_server(tmp_path / "data")
        # Those, and what the background thread may have written since the server is back.
        assert count(server.url, "trace_spans") >= acknowledged
        writer.write_spans(spans[150:250])
        for _ in range(20):
            try:
                writer.close()
                break
            except WriteError:
                time.sleep(0.2)
        assert writer.buffer_stats().rows == 0
        assert writer.buffer_stats().last_error is None
        assert count(server.url, "trace_spans") == len(spans)
        assert_summaries_exact(server.url)
    server.close()


def test_repeatable_read_as_the_servers_default_changes_nothing(pool: StoragePool, database_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'")
    spans = make_spans(traces=3)
    for _ in range(2):
        with TraceWriter(pool, WriterConfig(method=WriteMethod.COPY)) as writer:
            writer.write_spans(spans)
    assert len(stored(database_url)["trace_spans"]) == len(spans)
