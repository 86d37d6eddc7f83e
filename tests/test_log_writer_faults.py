"""Log records under fire: many processes, killed sessions, lost locks. Nothing is lost, nothing is stored twice."""

from __future__ import annotations

import datetime as dt

import psycopg
import pytest

from observatory_storage.errors import BufferFullError, RejectedRowError, WriteError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, WriteMethod, WriterConfig
from tests.signals import LOG_TABLES, Row, assert_written_in_order, deadlocks, empty, make_logs, stored_rows, write_logs
from tests.telemetry import NOW, count
from tests.under_fire import IMPATIENT, in_processes, write_while_sessions_are_killed

WRITE = """
import datetime, json, random, sys
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, WriterConfig
from tests.signals import make_logs

url, method, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
start = datetime.datetime.fromisoformat(sys.argv[4])
requests = [make_logs(300, seed=number, start=start) for number in range(4)]
dice = random.Random(seed)
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    with LogWriter(pool, WriterConfig(method=method, batch_size=dice.choice([200, 500]))) as writer:
        for _ in range(4):
            for request in dice.sample(requests, len(requests)):
                writer.write_logs(dice.sample(request, len(request)))
                if dice.random() < 0.5:
                    writer.flush()
        writer.flush()
        stats = writer.write_stats()
print(json.dumps([stats.logs_written, stats.logs_duplicate, stats.rows_rejected, stats.failures]))
"""


@pytest.mark.every_server
@pytest.mark.parametrize("methods", [["copy"] * 4, ["copy", "insert", "auto", "insert"]])
def test_processes_with_the_same_requests_store_each_record_once(
    pool: StoragePool, database_url: str, methods: list[str]
) -> None:
    counts = in_processes(WRITE, database_url, methods)
    assert sum(written for written, *_ in counts) == count(database_url, "logs") == 4 * 300
    assert [sum(numbers) for numbers in counts] == [4 * 4 * 300] * len(methods)
    assert all(rejected == failures == 0 for *_, rejected, failures in counts)
    assert deadlocks(database_url) == 0
    found = stored_rows(database_url, *LOG_TABLES)
    empty(database_url, *LOG_TABLES)
    write_logs(pool, *(make_logs(300, seed=number) for number in range(4)))
    assert stored_rows(database_url, *LOG_TABLES) == found


@pytest.mark.every_server
@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
@pytest.mark.parametrize("seconds", [0, 1])
def test_records_are_written_in_the_order_of_their_keys(
    pool: StoragePool, database_url: str, method: WriteMethod, seconds: int
) -> None:
    rows: list[Row] = [
        {
            "timestamp": NOW + dt.timedelta(seconds=seconds * number),
            "body": f"{number}",
            "trace_id": bytes([number] * 16),
        }
        for number in range(1, 21)
    ]
    assert_written_in_order(database_url, "logs", lambda: write_logs(pool, rows[::-1], method=method))


@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
def test_sessions_killed_in_the_middle_of_batches_lose_and_repeat_nothing(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    rows = make_logs(600)
    with LogWriter(pool, WriterConfig(method=method, batch_size=50)) as writer:
        rounds = write_while_sessions_are_killed(database_url, writer, [rows], writer.write_logs)
    assert count(database_url, "logs") == len(rows)
    stats = writer.write_stats()
    # What committed though its session died before it said so counts as a duplicate.
    assert stats.logs_written + stats.logs_duplicate == rounds * len(rows)
    assert stats.logs_written <= len(rows)


def test_batches_that_are_prepared_ahead_add_up_also_when_one_fails(database_url: str) -> None:
    rows = make_logs(600)
    given: list[Row] = []
    for number in range(12):
        given += [*rows[number * 50 : number * 50 + 50], {"timestamp": number, "body": "bad"}]
    rejected: list[RejectedRowError] = []
    config = WriterConfig(
        method=WriteMethod.COPY, batch_size=51, flush_interval_seconds=3_600, lock_timeout_seconds=0.1
    )
    with (
        StoragePool.from_url(database_url, **IMPATIENT) as pool,
        LogWriter(pool, config, on_rejected=rejected.append) as writer,
    ):
        writer.write_logs(given)
        with psycopg.connect(database_url) as blocker:
            blocker.execute("LOCK TABLE logs IN SHARE MODE")
            with pytest.raises(WriteError) as raised:
                writer.flush()
            assert raised.value.unwritten == len(given)
            assert count(database_url, "logs") == 0
        writer.flush()
        stats = writer.write_stats()
    assert (stats.logs_written, stats.logs_duplicate, stats.rows_rejected) == (len(rows), 0, 12)
    assert stats.failures > 0
    assert sorted(error.row["timestamp"] for error in rejected if error.row) == list(range(12))
    assert count(database_url, "logs") == len(rows)


def test_a_request_that_found_the_buffer_full_is_repeated_as_it_was(pool: StoragePool, database_url: str) -> None:
    request = [{"timestamp": NOW, "body": "equal"} for _ in range(30)]
    config = WriterConfig(
        batch_size=10, max_buffered_rows=20, full_buffer_timeout_seconds=0.2, lock_timeout_seconds=0.2
    )
    with LogWriter(pool, config) as writer:
        with psycopg.connect(database_url) as blocker:
            blocker.execute("LOCK TABLE logs IN SHARE MODE")
            with pytest.raises(BufferFullError):
                writer.write_logs(request)
        writer.write_logs(request)
    assert count(database_url, "logs") == len(request)
