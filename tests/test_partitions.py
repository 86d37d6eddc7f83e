"""Partitions made while others write: no deadlock, no error, every row in its place."""

from __future__ import annotations

import datetime as dt
import threading
import time

import psycopg
import pytest

from observatory_storage.lifecycle import PartitionManager
from observatory_storage.models import TraceEvent, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.telemetry import NOW, assert_summaries_exact, count, make_spans
from tests.threads import threads

SPANS = table_of(TraceSpan)
TODAY = NOW.date()


@pytest.mark.every_server
def test_ensure_makes_what_is_missing_once(pool: StoragePool) -> None:
    days = [TODAY + dt.timedelta(days=number) for number in range(3)]
    manager = PartitionManager(pool)
    assert manager.ensure(SPANS, days) == []
    assert PartitionManager(pool).ensure(SPANS, [*days, TODAY]) == []
    partitions = manager.list(SPANS)
    assert [part.name for part in partitions] == [
        "trace_spans_default",
        *(f"trace_spans_p{day:%Y%m%d}" for day in days),
    ]
    assert partitions[0].is_default
    assert partitions[1].lower == dt.datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=dt.UTC)
    assert partitions[1].upper == partitions[2].lower


def test_a_new_partition_has_the_indexes_and_constraints_of_its_table(pool: StoragePool, database_url: str) -> None:
    PartitionManager(pool).ensure(SPANS, [TODAY])
    with psycopg.connect(database_url) as connection:
        unlike = connection.execute(
            """
            SELECT count(*) FROM pg_index AS parent
            WHERE parent.indrelid = 'trace_spans'::regclass AND NOT EXISTS (
                SELECT 1 FROM pg_inherits JOIN pg_index AS child ON child.indexrelid = inhrelid
                WHERE inhparent = parent.indexrelid AND child.indrelid = %s::regclass AND child.indisvalid)
            """,
            [f"trace_spans_p{TODAY:%Y%m%d}"],
        ).fetchone()
    assert unlike == (0,)


def test_only_the_latest_days_are_made_where_there_are_many(pool: StoragePool) -> None:
    days = [TODAY - dt.timedelta(days=number) for number in range(5)]
    left = PartitionManager(pool).ensure(SPANS, days, at_most=2)
    assert [start.date() for start in left] == days[2:]


def test_a_day_that_cannot_be_made_is_given_up_and_its_rows_land_in_default(
    pool: StoragePool, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM trace_spans_default")
        with TraceWriter(pool, WriterConfig(lock_timeout_seconds=1)) as writer:
            writer.write_spans(make_spans(traces=1, spans=3))
            writer.flush()
            started = time.monotonic()
            writer.write_spans(make_spans(traces=1, spans=3, seed=2))
            writer.flush()
            assert time.monotonic() - started < 1
    assert "could not make the partitions of trace_spans" in caplog.text
    assert count(database_url, "trace_spans_default") == 6


@pytest.mark.every_server
def test_writers_and_makers_of_partitions_never_fail_each_other(pool: StoragePool, database_url: str) -> None:
    days = 6
    sent = 0
    lock = threading.Lock()
    makers_done = threading.Event()

    def write(part: int) -> None:
        nonlocal sent
        number = 0
        config = WriterConfig(method=(WriteMethod.COPY, WriteMethod.INSERT)[part % 2], batch_size=60)
        with TraceWriter(pool, config) as writer:
            while not makers_done.is_set() or number < days:
                start = NOW - dt.timedelta(days=number % days)
                spans = make_spans(traces=5, spans=12, seed=part * 1_000 + number, start=start)
                writer.write_spans(spans)
                writer.flush()
                number += 1
                with lock:
                    sent += len(spans)

    def make() -> None:
        manager = PartitionManager(pool)
        for number in range(days):
            day = TODAY - dt.timedelta(days=number)
            while manager.ensure(SPANS, [day]) or manager.ensure(table_of(TraceEvent), [day]):
                manager.forget()
            manager.forget()

    with threads() as start_writer:
        start_writer(write, 0)
        start_writer(write, 1)
        try:
            with threads() as start_maker:
                start_maker(make)
                start_maker(make)
        finally:
            makers_done.set()
    assert count(database_url, "trace_spans") == sent
    assert count(database_url, "trace_spans_default") == 0
    assert_summaries_exact(database_url)
