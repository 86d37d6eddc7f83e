"""What the tests of retention share: policies, spans of any age, and what is stored of them."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from typing import Any

import psycopg

from observatory_storage.lifecycle import PartitionManager, Retention, RetentionPolicy, RetentionReport
from observatory_storage.models import LogRecord, MetricDataPoint, TraceEvent, TraceSpan
from observatory_storage.models.base import table_of
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig

LOGS, SPANS, EVENTS, POINTS = map(table_of, (LogRecord, TraceSpan, TraceEvent, MetricDataPoint))
DAY, HOUR = dt.timedelta(days=1), dt.timedelta(hours=1)
# In the middle of an hour and of a day.
NOW = dt.datetime.now(dt.UTC).replace(hour=12, minute=30, second=0, microsecond=0)


def policy(signal: str, keep: dt.timedelta, project: str | None = None) -> RetentionPolicy:
    return RetentionPolicy(signal, project, keep)


def retain(
    pool: StoragePool, *policies: RetentionPolicy, dry_run: bool = False, batch_size: int = 3
) -> RetentionReport:
    retention = Retention(pool, PartitionManager(pool), policies, batch_size=batch_size)
    return retention.run(dry_run=dry_run, now=NOW)


def span(
    start: dt.datetime, end: dt.datetime | None = None, trace: bytes | None = None, **columns: Any
) -> dict[str, Any]:
    dice = random.Random()
    return {
        "trace_id": trace or dice.randbytes(16),
        "span_id": dice.randbytes(8),
        "name": "step",
        "start_time": start,
        "end_time": end or start + dt.timedelta(seconds=1),
        "events": [{"timestamp": start, "name": "said"}],
        **columns,
    }


def write_spans(pool: StoragePool, spans: Sequence[dict[str, Any]], project: str = "default") -> None:
    with TraceWriter(pool, WriterConfig(project=project)) as writer:
        writer.write_spans(spans)


def names(pool: StoragePool, table: Any) -> list[str]:
    return [partition.name for partition in PartitionManager(pool).list(table) if not partition.is_default]


def projects(url: str, table: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        query = f"SELECT project, count(*) FROM {table} GROUP BY 1 ORDER BY 1"
        return dict(connection.execute(query.encode()).fetchall())


def orphans(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM trace_spans WHERE trace_id NOT IN (SELECT id FROM traces)) + "
            "(SELECT count(*) FROM trace_events WHERE trace_id NOT IN (SELECT id FROM traces))"
        ).fetchone()
    assert row is not None
    return int(row[0])
