"""What writers of all signals share: a bounded buffer, a background thread, the end of a process."""

from __future__ import annotations

import datetime as dt
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from observatory_storage.errors import BufferFullError, RejectedRowError, WriteError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter, WriterConfig
from tests.telemetry import NOW, assert_summaries_exact, count, make_spans
from tests.under_fire import output_of, run_python

Row = dict[str, Any]


@dataclass(frozen=True)
class Signal:
    """How rows of one signal are made, written and counted."""

    writer: Callable[..., Any]
    table: str
    written: str
    make: Callable[[int, int], list[Row]]
    write: Callable[[Any, Sequence[Row]], None]
    write_one: Callable[[Any, Row], None]
    bad: Row
    reason: str


def spans(number: int, seed: int = 1) -> list[Row]:
    return make_spans(traces=1, spans=number, seed=seed)


def logs(number: int, seed: int = 1) -> list[Row]:
    return [{"timestamp": NOW + dt.timedelta(seconds=seed), "body": f"{place}"} for place in range(number)]


def points(number: int, seed: int = 1) -> list[Row]:
    metric = {"name": f"g{seed}", "metric_type": "gauge"}
    return [{"metric": metric, "timestamp": NOW + dt.timedelta(seconds=n), "value": 1.0} for n in range(number)]


SIGNALS = {
    "traces": Signal(
        TraceWriter,
        "trace_spans",
        "spans_written",
        spans,
        TraceWriter.write_spans,
        TraceWriter.write_span,
        {"trace_id": b"", "span_id": b"12345678"},
        "trace_id has 0 bytes",
    ),
    "logs": Signal(
        LogWriter,
        "logs",
        "logs_written",
        logs,
        LogWriter.write_logs,
        LogWriter.write_log,
        {"timestamp": 5, "body": "bad"},
        "timestamp is of type int",
    ),
    "metrics": Signal(
        MetricWriter,
        "metric_data_points",
        "data_points_written",
        points,
        MetricWriter.write_data_points,
        MetricWriter.write_data_point,
        {"metric": {"name": "g", "metric_type": "gauge"}, "timestamp": 5, "value": 1.0},
        "timestamp is of type int",
    ),
}


@pytest.fixture(params=SIGNALS)
def signal(request: pytest.FixtureRequest) -> Signal:
    return SIGNALS[request.param]


def assert_stored(url: str, signal: Signal, number: int) -> None:
    assert count(url, signal.table) == number
    if signal.table == "trace_spans":
        assert_summaries_exact(url)


def test_what_is_acknowledged_is_committed(signal: Signal, pool: StoragePool, database_url: str) -> None:
    with signal.writer(pool, WriterConfig(flush_interval_seconds=3_600)) as writer:
        for number, row in enumerate(signal.make(5, 1), 1):
            signal.write_one(writer, row)
            assert count(database_url, signal.table) == number - 1
            writer.flush()
            assert_stored(database_url, signal, number)
            assert getattr(writer.write_stats(), signal.written) == number


def test_a_full_buffer_makes_callers_wait_and_then_says_so(
    signal: Signal, pool: StoragePool, database_url: str
) -> None:
    rows = signal.make(50, 1)
    config = WriterConfig(
        batch_size=10, max_buffered_rows=20, full_buffer_timeout_seconds=0.3, lock_timeout_seconds=0.2
    )
    with signal.writer(pool, config) as writer:
        with psycopg.connect(database_url) as blocker:
            blocker.execute(f"LOCK TABLE {signal.table} IN SHARE MODE")
            with pytest.raises(BufferFullError, match=r"buffer of 20 rows stayed full for 0\.3 s") as raised:
                signal.write(writer, rows)
            taken = raised.value.taken
        signal.write(writer, rows[taken:])
    assert_stored(database_url, signal, len(rows))


def test_old_rows_are_written_without_being_asked(signal: Signal, pool: StoragePool, database_url: str) -> None:
    with signal.writer(pool, WriterConfig(flush_interval_seconds=0.1)) as writer:
        signal.write(writer, signal.make(3, 1))
        deadline = time.monotonic() + 10
        while count(database_url, signal.table) < 3 or writer.buffer_stats().rows:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_interpreters_end_writes_what_is_buffered(database_url: str) -> None:
    code = (
        "import sys\n"
        "from observatory_storage.pool import StoragePool\n"
        "from observatory_storage.writers import WriterConfig\n"
        "from tests.test_buffered_writers import SIGNALS\n"
        "pool = StoragePool.from_url(sys.argv[1], min_connections=1, max_connections=3)\n"
        "for signal in SIGNALS.values():\n"
        "    writer = signal.writer(pool, WriterConfig(flush_interval_seconds=3600))\n"
        "    signal.write(writer, signal.make(7, 1))\n"
    )
    assert output_of(run_python(code, database_url)) == ""
    for signal in SIGNALS.values():
        assert_stored(database_url, signal, 7)


def test_the_interpreters_end_says_what_is_lost_and_why(database_url: str) -> None:
    code = (
        "import sys\n"
        "from observatory_storage.pool import StoragePool\n"
        "from observatory_storage.writers import WriterConfig\n"
        "from tests.test_buffered_writers import SIGNALS\n"
        "pool = StoragePool.from_url(sys.argv[1], min_connections=1, max_connections=3)\n"
        "writers = {}\n"
        "for name, signal in SIGNALS.items():\n"
        "    writers[name] = signal.writer(pool, WriterConfig(flush_interval_seconds=3600))\n"
        "    signal.write(writers[name], signal.make(7, 1))\n"
        "writers['traces']._store.store = lambda *given: 1 / 0\n"
        "writers['logs'].flush = lambda: {}['nothing']\n"
    )
    process = run_python(code, database_url)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "at interpreter exit 7 rows of a TraceWriter are lost: ZeroDivisionError('division by zero')" in said
    assert "at interpreter exit 7 rows of a LogWriter are lost: KeyError('nothing')" in said
    assert said.count("Traceback") >= 2
    assert [count(database_url, signal.table) for signal in SIGNALS.values()] == [0, 0, 7]


def test_a_forked_child_has_an_empty_writer_of_its_own(signal: Signal, pool: StoragePool, database_url: str) -> None:
    with signal.writer(pool, WriterConfig(flush_interval_seconds=3600)) as writer:
        signal.write(writer, signal.make(4, 1))
        child = os.fork()
        if child == 0:
            # The child must end without unwinding pytest's frames.
            code = 1
            try:
                if writer.buffer_stats().rows == 0:
                    signal.write(writer, signal.make(5, 2))
                    writer.close()
                    pool.close()
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert count(database_url, signal.table) == 5
    assert_stored(database_url, signal, 9)


def test_many_threads_share_a_writer(signal: Signal, pool: StoragePool, database_url: str) -> None:
    rows = signal.make(400, 1)
    with signal.writer(pool, WriterConfig(batch_size=37, flush_interval_seconds=0.01)) as writer:

        def some(part: int) -> None:
            for row in rows[part::8]:
                signal.write_one(writer, row)
            writer.flush()

        threads = [threading.Thread(target=some, args=(part,)) for part in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert count(database_url, signal.table) == len(rows)
        assert getattr(writer.write_stats(), signal.written) == len(rows)
    assert_stored(database_url, signal, len(rows))


def test_a_failing_callback_does_not_disturb_the_writer(
    signal: Signal, pool: StoragePool, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: RejectedRowError) -> None:
        raise RuntimeError("mine")

    with signal.writer(pool, on_rejected=fail) as writer:
        signal.write(writer, [*signal.make(3, 1), signal.bad])
        writer.flush()
    assert_stored(database_url, signal, 3)
    assert "on_rejected failed" in caplog.text


def test_rejections_without_a_callback_are_logged(
    signal: Signal, pool: StoragePool, caplog: pytest.LogCaptureFixture
) -> None:
    with signal.writer(pool) as writer, caplog.at_level(logging.WARNING):
        signal.write_one(writer, signal.bad)
        writer.flush()
        assert writer.write_stats().rows_rejected == 1
    assert f"1 rows rejected; the first one: {signal.reason}" in caplog.text


def test_a_closed_writer_takes_nothing(signal: Signal, pool: StoragePool) -> None:
    writer = signal.writer(pool)
    writer.close()
    writer.close()
    with pytest.raises(WriteError, match="the writer is closed"):
        signal.write_one(writer, signal.make(1, 1)[0])
