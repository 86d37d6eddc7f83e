"""Partitions dropped and detached while others read and write, what they take, and widths from the configuration."""

from __future__ import annotations

import datetime as dt
import threading
import time

import psycopg
import pytest

from observatory_storage.errors import ConfigurationError, StorageError
from observatory_storage.lifecycle import PartitionManager, PartitionWidth
from observatory_storage.models import LogRecord, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, TraceWriter
from tests.logs import log, store_logs
from tests.telemetry import count, make_spans

LOGS, SPANS = table_of(LogRecord), table_of(TraceSpan)
NOON = dt.datetime(2026, 3, 10, 12, 30, tzinfo=dt.UTC)
NAME = "logs_p2026031012"


def names(pool: StoragePool) -> list[str]:
    return [partition.name for partition in PartitionManager(pool).list(LOGS)]


@pytest.mark.every_server
def test_a_partition_goes_with_its_rows(pool: StoragePool, database_url: str) -> None:
    manager = PartitionManager(pool)
    manager.ensure(LOGS, [NOON, NOON + dt.timedelta(hours=1)])
    store_logs(pool, [log(0, timestamp=NOON), log(0, timestamp=NOON + dt.timedelta(hours=1))])
    assert manager.drop(LOGS, NAME)
    assert names(pool) == ["logs_default", "logs_p2026031013"]
    assert count(database_url, "logs") == 1
    assert manager.drop(LOGS, NAME), "it is gone"
    # It is not remembered as there.
    assert manager.ensure(LOGS, [NOON]) == []
    assert NAME in names(pool)


@pytest.mark.every_server
def test_a_detached_partition_keeps_its_rows(pool: StoragePool, database_url: str) -> None:
    manager = PartitionManager(pool)
    manager.ensure(LOGS, [NOON])
    store_logs(pool, [log(0, timestamp=NOON)])
    assert manager.detach(LOGS, NAME)
    assert names(pool) == ["logs_default"]
    assert (count(database_url, "logs"), count(database_url, NAME)) == (0, 1)


def test_default_stays(pool: StoragePool) -> None:
    with pytest.raises(ValueError, match="DEFAULT"):
        PartitionManager(pool).drop(LOGS, "logs_default")
    assert names(pool) == ["logs_default"]


def test_what_the_condition_refuses_stays(pool: StoragePool) -> None:
    manager = PartitionManager(pool)
    manager.ensure(LOGS, [NOON])
    assert not manager.drop(LOGS, NAME, only_if=lambda connection: False)
    assert NAME in names(pool)


def test_whoever_reads_is_waited_for_and_others_get_through(pool: StoragePool, database_url: str) -> None:
    manager = PartitionManager(pool)
    manager.ensure(LOGS, [NOON])
    done: list[bool] = []
    with psycopg.connect(database_url) as reader, psycopg.connect(database_url, autocommit=True) as other:
        reader.execute("SELECT count(*) FROM logs")
        thread = threading.Thread(target=lambda: done.append(manager.drop(LOGS, NAME)))
        thread.start()
        longest = 0.0
        for _ in range(10):
            started = time.monotonic()
            other.execute("SELECT count(*) FROM logs")
            longest = max(longest, time.monotonic() - started)
            time.sleep(0.1)
        reader.rollback()
        thread.join()
    assert done == [True]
    assert longest < 1.5


def test_a_table_in_use_all_the_time_keeps_its_partition(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.lifecycle.partitions._REMOVAL_ATTEMPTS", 2)
    manager = PartitionManager(pool)
    manager.ensure(LOGS, [NOON])
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM logs")
        assert not manager.drop(LOGS, NAME)
    assert manager.drop(LOGS, NAME)


def test_sizes_count_indexes_and_toast(pool: StoragePool, database_url: str) -> None:
    manager = PartitionManager(pool)
    manager.ensure(LOGS, [NOON])
    before = {size.partition.name: size for size in manager.sizes(LOGS)}
    assert before[NAME].rows is None
    store_logs(pool, [log(0, timestamp=NOON, body=f"{number} " * 20_000) for number in range(50)])
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ANALYZE {NAME}".encode())
    after = {size.partition.name: size for size in manager.sizes(LOGS)}
    assert list(after) == ["logs_default", NAME]
    assert after[NAME].rows == 50
    assert after[NAME].total_bytes > before[NAME].total_bytes > 0


def test_a_role_that_owns_nothing_is_told(pool: StoragePool, database_url: str) -> None:
    PartitionManager(pool).ensure(LOGS, [NOON])
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("CREATE ROLE onlooker LOGIN")
        try:
            owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO onlooker")
            with (
                StoragePool.from_url(database_url, username="onlooker", min_connections=1, max_connections=2) as theirs,
                pytest.raises(StorageError, match=r"permission denied|must be owner"),
            ):
                PartitionManager(theirs).drop(LOGS, NAME)
        finally:
            owner.execute("DROP OWNED BY onlooker")
            owner.execute("DROP ROLE onlooker")


def test_writers_and_maintenance_take_widths_from_the_configuration(database_url: str) -> None:
    now = dt.datetime.now(dt.UTC)
    with StoragePool.from_url(
        database_url, partitions="traces=week, logs=day", min_connections=1, max_connections=4
    ) as pool:
        with TraceWriter(pool) as traces, LogWriter(pool) as logs:
            traces.write_spans(make_spans(1, 2, start=now))
            logs.write_logs([{"timestamp": now, "body": "said"}])
        manager = PartitionManager(pool)
        assert manager.width("trace_events") is PartitionWidth.WEEK
        assert manager.width("metric_data_points") is PartitionWidth.DAY
        year, week, _ = now.isocalendar()
        assert f"trace_spans_p{year:04d}w{week:02d}" in [part.name for part in manager.list(SPANS)]
        assert f"logs_p{now:%Y%m%d}" in names(pool)
        made = pool.maintain(ahead=dt.timedelta(hours=1)).partitions_made
        assert not [
            name for name in made if name.startswith(f"logs_p{now:%Y%m%d}") and len(name) > len("logs_p20260101")
        ]


@pytest.mark.parametrize("wrong", ["logs=minute", "logs", {"logs": "year"}, 7, "traces=day, trace_spans=hour"])
def test_a_wrong_width_is_one_sentence(wrong: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        StoragePool.from_url("postgresql://u@h/d", partitions=wrong)
    (problem,) = caught.value.problems
    assert problem.startswith("partitions is ")
    assert "hour, day, week or month" in problem
