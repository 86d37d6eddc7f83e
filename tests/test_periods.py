"""The period of a span's messages, where partitions are removed and made anew with another width beside a writer."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from types import SimpleNamespace

import psycopg
import pytest

from observatory_storage.lifecycle import PartitionManager, Periods
from observatory_storage.models.base import Base
from observatory_storage.models.message import MESSAGE_TABLES
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter
from tests import retaining
from tests.conversations import contents, conversation, read_back, seen_by_sql

DAY = retaining.DAY
MONDAY = (retaining.NOW - (7 + retaining.NOW.weekday()) * DAY).replace(hour=0, minute=0)
WEDNESDAY = MONDAY + 2 * DAY
TABLES = [Base.metadata.tables[name] for name in ("trace_spans", *MESSAGE_TABLES)]


@pytest.fixture
def wide(database_url: str) -> Iterator[StoragePool]:
    """A pool that makes partitions of weeks."""
    partitions = {"partitions": {"trace_spans": "week"}}
    with StoragePool.from_url(database_url, min_connections=1, max_connections=3, **partitions) as pool:
        yield pool


def remove_weeks(pool: StoragePool) -> None:
    manager = PartitionManager(pool)
    for table in TABLES:
        (week,) = (one.name for one in manager.list(table) if one.lower == MONDAY)
        assert manager.drop(table, week)


def test_no_message_goes_before_the_spans_that_refer_to_it(
    pool: StoragePool, wide: StoragePool, database_url: str
) -> None:
    noon = WEDNESDAY + dt.timedelta(hours=12)
    with TraceWriter(wide) as living:
        living.write_spans(conversation(1, start=noon))
        living.flush()
        remove_weeks(wide)
        with TraceWriter(pool) as other:
            other.write_spans(conversation(2, start=MONDAY) + (late := conversation(3, start=noon)))
        living.write_spans(rows := conversation(4, start=noon + dt.timedelta(minutes=1)))
    kept = [*late, *rows]
    report = retaining.retain(pool, retaining.policy("traces", retaining.NOW - WEDNESDAY))
    assert f"trace_spans_p{MONDAY:%Y%m%d}" in report.partitions_dropped
    assert seen_by_sql(database_url) == contents(kept)
    assert read_back(pool, kept) == contents(kept)
    # And when those spans go, nothing keeps what they referred to.
    retaining.retain(pool, retaining.policy("traces", DAY))
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM message_packs").fetchone() == (0,)
    left = [partition for table in TABLES for partition in PartitionManager(pool).list(table)]
    assert not any(partition.overlaps(MONDAY, WEDNESDAY + DAY) for partition in left)


def test_a_period_is_believed_for_a_minute(
    pool: StoragePool, wide: StoragePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, spans = PartitionManager(wide), TABLES[0]
    for table in TABLES:
        manager.ensure(table, [WEDNESDAY])
    periods = Periods(manager, spans)
    assert periods.of([WEDNESDAY]) == {WEDNESDAY: MONDAY}
    remove_weeks(wide)
    PartitionManager(pool).ensure(spans, [WEDNESDAY])
    assert periods.of([WEDNESDAY]) == {WEDNESDAY: MONDAY}
    later = time.monotonic() + 61
    monkeypatch.setattr("observatory_storage.lifecycle.periods.time", SimpleNamespace(monotonic=lambda: later))
    assert periods.of([WEDNESDAY]) == {WEDNESDAY: WEDNESDAY}
