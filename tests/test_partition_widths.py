"""Partitions of an hour, a day, a week or a month, and what happens when the width changes."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import time
import uuid
from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory_storage.lifecycle import Partition, PartitionManager, PartitionWidth
from observatory_storage.models import LogRecord, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.pool import StoragePool

HOUR, DAY, WEEK, MONTH = PartitionWidth
LOGS, SPANS = table_of(LogRecord), table_of(TraceSpan)
# A Sunday, in the ISO week that began on Monday the 16th.
NOON = dt.datetime(2026, 11, 22, 12, 30, tzinfo=dt.UTC)
ONE_DAY, ONE_HOUR = dt.timedelta(days=1), dt.timedelta(hours=1)


def utc(year: int, month: int, day: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(year, month, day, hour, tzinfo=dt.UTC)


def manager(pool: StoragePool, width: PartitionWidth) -> PartitionManager:
    return PartitionManager(pool, {"logs": width})


def ranges(partitions: Sequence[Partition]) -> list[tuple[dt.datetime, dt.datetime]]:
    """The bounds of all but DEFAULT, ascending."""
    return sorted((part.lower, part.upper) for part in partitions if part.lower and part.upper)


def names(partitions: Sequence[Partition]) -> list[str]:
    ordered = sorted((part for part in partitions if part.lower), key=lambda part: str(part.lower))
    return [part.name.removeprefix("logs_") for part in ordered]


def store(url: str, *moments: dt.datetime) -> list[str]:
    """Store a log record for each moment; the partitions that they went to."""
    statement = "INSERT INTO logs (timestamp, route_id, id) VALUES (%s, %s, %s) RETURNING tableoid::regclass::text"
    with psycopg.connect(url) as connection:
        rows = [connection.execute(statement, [at, uuid.uuid4(), uuid.uuid4()]).fetchone() for at in moments]
    return [str(row[0]).removeprefix("logs_") for row in rows if row is not None]


@pytest.mark.parametrize(
    ("width", "name", "lower", "upper"),
    [
        (HOUR, "p2026112212", utc(2026, 11, 22, 12), utc(2026, 11, 22, 13)),
        (DAY, "p20261122", utc(2026, 11, 22), utc(2026, 11, 23)),
        (WEEK, "p2026w47", utc(2026, 11, 16), utc(2026, 11, 23)),
        (MONTH, "p202611", utc(2026, 11, 1), utc(2026, 12, 1)),
    ],
)
@pytest.mark.every_server
def test_each_width_has_its_bounds_and_its_name(
    pool: StoragePool, width: PartitionWidth, name: str, lower: dt.datetime, upper: dt.datetime
) -> None:
    partitions = manager(pool, width)
    assert partitions.width("logs") is width
    assert partitions.ensure(LOGS, [NOON, lower, upper - dt.timedelta.resolution]) == []
    assert names(partitions.list(LOGS)) == [name]
    assert ranges(partitions.list(LOGS)) == [(lower, upper)]


def test_logs_go_by_the_hour_and_all_else_by_the_day(pool: StoragePool) -> None:
    partitions = PartitionManager(pool)
    assert partitions.width("logs") is HOUR
    assert [partitions.width(name) for name in ("trace_spans", "trace_events", "metric_data_points")] == [DAY] * 3


@given(time=st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2200, 1, 1)), width=st.sampled_from(PartitionWidth))
def test_each_time_lies_in_one_range_and_the_ranges_meet(time: dt.datetime, width: PartitionWidth) -> None:
    start = width.floor(time)
    end = width.after(start)
    assert start <= time.replace(tzinfo=dt.UTC) < end
    assert width.floor(start) == start
    assert width.floor(end) == end
    assert width.floor(end - dt.timedelta.resolution) == start
    assert width.starts(start, end) == [start, end]
    epochs = (utc(1970, 1, 1), utc(2000, 1, 1))
    if width.microseconds is not None:
        length = dt.timedelta(microseconds=width.microseconds)
        for epoch in epochs:
            assert epoch + (time.replace(tzinfo=dt.UTC) - epoch) // length * length == start
    else:
        assert (
            width.floor(DAY.floor(time)) == width.floor(DAY.after(DAY.floor(time)) - dt.timedelta.resolution) == start
        )


def test_a_time_in_another_zone_is_taken_in_utc() -> None:
    new_york = dt.timezone(dt.timedelta(hours=-5))
    assert DAY.floor(dt.datetime(2026, 11, 21, 22, tzinfo=new_york)) == utc(2026, 11, 22)


def test_a_date_stands_for_all_its_hours(pool: StoragePool) -> None:
    partitions = PartitionManager(pool)
    assert partitions.ensure(LOGS, [NOON.date()]) == []
    assert ranges(partitions.list(LOGS)) == [
        (utc(2026, 11, 22, hour), utc(2026, 11, 22, hour) + ONE_HOUR) for hour in range(24)
    ]


def test_a_daily_partition_keeps_its_day_when_logs_go_by_the_hour(pool: StoragePool) -> None:
    assert manager(pool, DAY).ensure(LOGS, [NOON]) == []
    hourly = manager(pool, HOUR)
    assert hourly.ensure(LOGS, [NOON, NOON + ONE_DAY]) == []
    assert names(hourly.list(LOGS)) == ["p20261122", "p2026112312"]


@pytest.mark.every_server
def test_a_wider_partition_fills_what_narrower_ones_leave(pool: StoragePool) -> None:
    hourly = manager(pool, HOUR)
    hourly.ensure(LOGS, [utc(2026, 11, 22, 3), utc(2026, 11, 22, 4), utc(2026, 11, 22, 20)])
    daily = manager(pool, DAY)
    assert daily.ensure(LOGS, [NOON]) == []
    assert names(daily.list(LOGS)) == [
        "p20261122_2026112203",
        "p2026112203",
        "p2026112204",
        "p2026112205_2026112220",
        "p2026112220",
        "p2026112221_20261123",
    ]
    assert manager(pool, DAY).ensure(LOGS, [NOON]) == []


def test_a_month_fills_what_weeks_leave_and_weeks_what_months_leave(pool: StoragePool) -> None:
    manager(pool, WEEK).ensure(LOGS, [utc(2026, 10, 28), NOON])
    manager(pool, MONTH).ensure(LOGS, [NOON])
    assert names(manager(pool, WEEK).list(LOGS)) == ["p2026w44", "p20261102_20261116", "p2026w47", "p20261123_20261201"]
    manager(pool, WEEK).ensure(LOGS, [utc(2026, 12, 2)])
    assert names(manager(pool, WEEK).list(LOGS))[-1] == "p20261201_20261207"


@pytest.mark.every_server
def test_widths_that_change_at_will_never_overlap_nor_leave_a_gap(pool: StoragePool, database_url: str) -> None:
    widths = itertools.cycle([HOUR, WEEK, DAY, MONTH, HOUR, DAY])
    times = [NOON + number * dt.timedelta(days=5, hours=7) for number in (3, -2, 0, 1, -1, 2, -5, 8)]
    for width, moment in zip(widths, times, strict=False):
        assert manager(pool, width).ensure(LOGS, [moment]) == []
        start = width.floor(moment)
        assert manager(pool, width).missing(LOGS, [moment]) == []
        homes = store(database_url, start, moment, width.after(start) - dt.timedelta.resolution)
        assert "default" not in homes
    bounds = ranges(manager(pool, DAY).list(LOGS))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(bounds))


@pytest.mark.every_server
def test_makers_that_are_told_different_widths_never_fail_each_other(pool: StoragePool, database_url: str) -> None:
    left: list[dt.datetime] = []
    start = threading.Barrier(4)

    def make(width: PartitionWidth) -> None:
        start.wait()
        for day in range(4):
            left.extend(manager(pool, width).ensure(LOGS, [NOON + day * ONE_DAY]))

    threads = [threading.Thread(target=make, args=(width,)) for width in (HOUR, DAY, HOUR, WEEK)]
    with psycopg.connect(database_url) as reader:
        # Holds them up, so that all have looked before one of them is done.
        reader.execute("SELECT count(*) FROM logs_default")
        for thread in threads:
            thread.start()
        time.sleep(0.6)
    for thread in threads:
        thread.join()
    assert left == []
    bounds = ranges(manager(pool, DAY).list(LOGS))
    assert (bounds[0][0], bounds[-1][1]) == (utc(2026, 11, 16), utc(2026, 11, 30))
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))


def test_a_partition_of_odd_bounds_is_left_its_place(pool: StoragePool, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE logs_odd PARTITION OF logs"
            " FOR VALUES FROM ('2026-11-22 12:10:00.5+00') TO ('2026-11-22 12:20+00')"
        )
        connection.execute(
            "CREATE TABLE logs_old PARTITION OF logs FOR VALUES FROM (MINVALUE) TO ('2026-11-01 00:00+00')"
        )
    partitions = PartitionManager(pool)
    assert partitions.ensure(LOGS, [NOON, utc(2026, 10, 1)]) == []
    assert names(partitions.list(LOGS)) == [
        "p2026112212_20261122121000500000",
        "odd",
        "p20261122122000_2026112213",
    ]


def test_what_is_missing_is_said_and_not_made(pool: StoragePool) -> None:
    partitions = PartitionManager(pool)
    partitions.ensure(LOGS, [NOON])
    assert partitions.missing(LOGS, [NOON, NOON + ONE_HOUR, NOON + ONE_DAY]) == [
        HOUR.floor(NOON + ONE_DAY),
        HOUR.floor(NOON + ONE_HOUR),
    ]
    assert len(partitions.list(LOGS)) == 2


def test_rows_in_default_move_to_the_partitions_that_fill_their_range(pool: StoragePool, database_url: str) -> None:
    manager(pool, HOUR).ensure(LOGS, [NOON])
    store(database_url, utc(2026, 11, 22, 3), utc(2026, 11, 22, 12), utc(2026, 11, 22, 23), utc(2026, 11, 23))
    assert manager(pool, DAY).ensure(LOGS, [NOON]) == []
    with psycopg.connect(database_url) as connection:
        homes = connection.execute("SELECT tableoid::regclass::text FROM logs ORDER BY timestamp").fetchall()
    assert [home.removeprefix("logs_") for (home,) in homes] == [
        "p20261122_2026112212",
        "p2026112212",
        "p2026112213_20261123",
        "default",
    ]


def test_a_range_that_default_holds_many_rows_of_is_left_and_the_others_are_made(
    pool: StoragePool, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store(database_url, NOON, NOON, NOON)
    partitions = PartitionManager(pool, move_limit=2)
    assert partitions.ensure(LOGS, [NOON, NOON + ONE_HOUR]) == [HOUR.floor(NOON)]
    assert names(partitions.list(LOGS)) == ["p2026112213"]
    assert "holds more than 2 rows of logs_p2026112212" in caplog.text
