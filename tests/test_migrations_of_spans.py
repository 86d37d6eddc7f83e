"""Revisions 0003 and 0004 with spans that share messages and repeat usage: up, down, and older writers beside."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter
from tests.conversations import Row, contents, conversation, read_back, seen_by_sql, stored_messages
from tests.telemetry import count
from tests.test_migrations import alembic, query
from tests.usage_cases import assert_usage_exact

# What a release writes that knows neither column.
OLDER = """
INSERT INTO trace_spans (trace_id, span_id, start_time, end_time, duration_us, project, name, parent_span_id,
    status, operation, model, finish_reason, counts_usage, input_tokens, total_tokens, input, output, attributes)
VALUES (%(trace_id)s, %(span_id)s, %(start_time)s, %(end_time)s, 500000, 'default', %(name)s, %(parent_span_id)s,
    %(status)s, %(operation)s, %(model)s, %(finish_reason)s, %(counts_usage)s, %(input_tokens)s, %(input_tokens)s,
    %(input)s, %(output)s, %(attributes)s)
"""
OLDER_TRACE = """
INSERT INTO traces (id, project, has_root, root_span_id, root_start_time, start_time, end_time, span_count,
    input_tokens, total_tokens)
SELECT trace_id, project, true, (array_agg(span_id ORDER BY start_time))[1], min(start_time), min(start_time),
    max(end_time), count(*), sum(input_tokens), sum(input_tokens)
FROM trace_spans WHERE trace_id = %s GROUP BY 1, 2
"""


def nested(seed: int) -> list[Row]:
    """A conversation whose first call is around all others and repeats their usage."""
    rows = conversation(seed)
    return [
        row
        | {
            "status": "ok",
            "counts_usage": True,
            "input_tokens": 100 + place,
            "parent_span_id": rows[0]["span_id"] if place else None,
        }
        for place, row in enumerate(rows)
    ]


def write(pool: StoragePool, rows: list[Row]) -> None:
    with TraceWriter(pool) as writer:
        writer.write_spans(rows)


def write_as_before(url: str, rows: list[Row]) -> None:
    with psycopg.connect(url) as connection:
        for row in rows:
            given: dict[str, Any] = dict(row)
            for name in ("input", "output", "attributes"):
                given[name] = Jsonb(row[name])
            connection.execute(OLDER, given | {"trace_id": uuid.UUID(bytes=row["trace_id"])})
        connection.execute(OLDER_TRACE, [uuid.UUID(bytes=rows[0]["trace_id"])])


def down(url: str, revision: str) -> None:
    done = alembic(url, "downgrade", revision)
    assert done.returncode == 0, done.stderr


@pytest.mark.every_server
def test_usage_goes_down_and_comes_up_again(pool: StoragePool, database_url: str) -> None:
    rows = [row for seed in range(3) for row in nested(seed)]
    write(pool, rows)
    assert_usage_exact(database_url, rows)
    assert query(database_url, "SELECT count(*) FROM trace_spans WHERE repeats_usage AND NOT counts_usage") == [(3,)]

    down(database_url, "0003")
    assert query(database_url, "SELECT count(*) FROM trace_spans WHERE counts_usage") == [(len(rows),)]
    assert query(database_url, "SELECT to_regclass('usage_rollups'), to_regclass('trace_spans_trace_id_idx')") == [
        (None, None)
    ]
    assert seen_by_sql(database_url) == contents(rows)
    later = nested(7)
    write_as_before(database_url, later)

    pool.run_migrations()
    assert pool.maintain(ahead=dt.timedelta(hours=1)).usage.spans_added == len(rows) + len(later)
    assert_usage_exact(database_url, rows + later)
    assert read_back(pool, rows + later) == contents(rows + later)


@pytest.mark.every_server
def test_both_go_down_and_come_up_again_with_what_was_written_between(pool: StoragePool, database_url: str) -> None:
    rows = [row for seed in range(3) for row in nested(seed)]
    write(pool, rows)
    down(database_url, "0002")
    later = nested(7)
    write_as_before(database_url, later)
    pool.run_migrations()
    assert count(database_url, "messages") == 0
    pool.maintain(ahead=dt.timedelta(hours=1))
    assert_usage_exact(database_url, rows + later)
    assert read_back(pool, rows + later) == contents(rows + later)
    more = nested(8)
    write(pool, rows + more)
    assert_usage_exact(database_url, rows + later + more)
    assert read_back(pool, more) == contents(more)
    assert stored_messages(database_url)


@pytest.mark.every_server
def test_an_older_writer_goes_on_beside_a_new_one(pool: StoragePool, database_url: str) -> None:
    older, newer = nested(1), nested(2)
    # The first call of a trace by the one, those inside it by the other.
    write_as_before(database_url, older[:1])
    write(pool, newer + older[1:])
    pool.maintain(ahead=dt.timedelta(hours=1))
    assert_usage_exact(database_url, older + newer)
    assert read_back(pool, older + newer) == contents(older + newer)
