"""A server that stops, a connection that breaks, a process that forks or ends: nothing acknowledged is lost."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import psycopg
import pytest

from observatory_storage.embedded import embedded_server
from observatory_storage.errors import BufferFullError, RejectedRowError, WriteError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.telemetry import assert_summaries_exact, count, make_spans, stored
from tests.under_fire import output_of, run_python, write_while_sessions_are_killed


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


def test_a_full_buffer_makes_callers_wait_and_then_says_so(pool: StoragePool, database_url: str) -> None:
    spans = make_spans(traces=5, spans=10)
    config = WriterConfig(
        batch_size=10, max_buffered_rows=20, full_buffer_timeout_seconds=0.3, lock_timeout_seconds=0.2
    )
    with TraceWriter(pool, config) as writer:
        with psycopg.connect(database_url) as blocker:
            blocker.execute("LOCK TABLE traces")
            with pytest.raises(BufferFullError, match=r"buffer of 20 rows stayed full for 0\.3 s") as raised:
                writer.write_spans(spans)
            taken = raised.value.taken
        writer.write_spans(spans[taken:])
    assert count(database_url, "trace_spans") == len(spans)


def test_old_rows_are_written_without_being_asked(pool: StoragePool, database_url: str) -> None:
    with TraceWriter(pool, WriterConfig(flush_interval_seconds=0.1)) as writer:
        writer.write_spans(make_spans(traces=1, spans=3))
        deadline = time.monotonic() + 10
        while count(database_url, "trace_spans") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert writer.buffer_stats().rows == 0


def test_the_interpreters_end_writes_what_is_buffered(database_url: str) -> None:
    code = (
        "import sys\n"
        "from observatory_storage.pool import StoragePool\n"
        "from observatory_storage.writers import TraceWriter, WriterConfig\n"
        "from tests.telemetry import make_spans\n"
        "pool = StoragePool.from_url(sys.argv[1], min_connections=1, max_connections=3)\n"
        "writer = TraceWriter(pool, WriterConfig(flush_interval_seconds=3600))\n"
        "writer.write_spans(make_spans(traces=1, spans=7))\n"
    )
    assert output_of(run_python(code, database_url)) == ""
    assert count(database_url, "trace_spans") == 7


def test_a_forked_child_has_an_empty_writer_of_its_own(pool: StoragePool, database_url: str) -> None:
    parents, childs = make_spans(traces=1, spans=4, seed=1), make_spans(traces=1, spans=5, seed=2)
    with TraceWriter(pool, WriterConfig(flush_interval_seconds=3600)) as writer:
        writer.write_spans(parents)
        child = os.fork()
        if child == 0:
            # The child must end without unwinding pytest's frames.
            code = 1
            try:
                if writer.buffer_stats().rows == 0:
                    writer.write_spans(childs)
                    writer.close()
                    pool.close()
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert count(database_url, "trace_spans") == 5
    assert count(database_url, "trace_spans") == 9
    assert_summaries_exact(database_url)


def test_many_threads_share_a_writer(pool: StoragePool, database_url: str) -> None:
    spans = make_spans(traces=40, spans=10)
    with TraceWriter(pool, WriterConfig(batch_size=37, flush_interval_seconds=0.01)) as writer:

        def some(part: int) -> None:
            for span in spans[part::8]:
                writer.write_span(span)
            writer.flush()

        threads = [threading.Thread(target=some, args=(part,)) for part in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert count(database_url, "trace_spans") == len(spans)
        assert writer.write_stats().spans_written == len(spans)
    assert_summaries_exact(database_url)


def test_a_failing_callback_does_not_disturb_the_writer(
    pool: StoragePool, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: RejectedRowError) -> None:
        raise RuntimeError("mine")

    spans = make_spans(traces=1, spans=3)
    with TraceWriter(pool, on_rejected=fail) as writer:
        writer.write_spans([*spans, {**spans[0], "trace_id": b""}])
        writer.flush()
    assert count(database_url, "trace_spans") == 3
    assert "on_rejected failed" in caplog.text


def test_rejections_without_a_callback_are_logged(pool: StoragePool, caplog: pytest.LogCaptureFixture) -> None:
    with TraceWriter(pool) as writer, caplog.at_level(logging.WARNING):
        writer.write_span({"trace_id": b"", "span_id": b"12345678"})
        writer.flush()
        assert writer.write_stats().rows_rejected == 1
    assert "1 rows rejected; the first one: trace_id has 0 bytes" in caplog.text


def test_a_closed_writer_takes_nothing(pool: StoragePool) -> None:
    writer = TraceWriter(pool)
    writer.close()
    writer.close()
    with pytest.raises(WriteError, match="the writer is closed"):
        writer.write_span({"trace_id": b"1" * 16, "span_id": b"12345678"})


def test_repeatable_read_as_the_servers_default_changes_nothing(pool: StoragePool, database_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'")
    spans = make_spans(traces=3)
    for _ in range(2):
        with TraceWriter(pool, WriterConfig(method=WriteMethod.COPY)) as writer:
            writer.write_spans(spans)
    assert len(stored(database_url)["trace_spans"]) == len(spans)
