"""Spans and their GenAI events written at one time by two sessions: never do both miss each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, TraceWriter, WriteMethod, WriterConfig
from tests.forked import Program
from tests.signals import Row, deadlocks, wait_for_waiting
from tests.telemetry import NOW, count
from tests.test_content_from_logs import assert_content_exact, call, choice, contents, event
from tests.threads import threads


@pytest.fixture(params=[WriteMethod.INSERT, WriteMethod.COPY])
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


SPAN = call(1)
RECORDS = [event(SPAN), choice(SPAN)]


@contextmanager
def writers(pool: StoragePool, method: WriteMethod, spans: list[Row]) -> Iterator[dict[str, Callable[[], object]]]:
    """What writes spans, and what writes their events."""
    config = WriterConfig(method=method, flush_interval_seconds=3_600, lock_timeout_seconds=30)
    with TraceWriter(pool, config) as traces, LogWriter(pool, config) as logs:

        def write_spans() -> None:
            traces.write_spans(spans)
            traces.flush()

        def write_logs() -> None:
            logs.write_logs(RECORDS)
            logs.flush()

        # Partitions are made beforehand, so that nothing but the trace is waited for.
        traces.write_spans([call(7)])
        traces.flush()
        logs.write_logs([{**RECORDS[0], "trace_id": None, "span_id": None}])
        logs.flush()
        yield {"spans": write_spans, "logs": write_logs}


@pytest.mark.every_server
@pytest.mark.parametrize("order", [("spans", "logs"), ("logs", "spans")])
@pytest.mark.parametrize("state", ["new", "known", "replaced"])
def test_both_have_written_and_wait_for_the_trace(
    pool: StoragePool, database_url: str, method: WriteMethod, order: tuple[str, str], state: str
) -> None:
    opened = {**SPAN, "end_time": None}
    with writers(pool, method, [SPAN]) as write, psycopg.connect(database_url) as blocker:
        if state == "replaced":
            with TraceWriter(pool) as writer:
                writer.write_spans([opened])
        if state == "new":
            # Whoever makes this trace waits for the outcome; then it is as if it had never been.
            blocker.execute("INSERT INTO traces (id, project) VALUES (%s::uuid, 'default')", [SPAN["trace_id"].hex()])
        else:
            if state == "known":
                with TraceWriter(pool) as writer:
                    writer.write_spans([{**call(1), "span_id": b"\x00" * 7 + b"\x09", "operation": None}])
            blocker.execute("SELECT FROM traces WHERE id = %s::uuid FOR UPDATE", [SPAN["trace_id"].hex()])
        with threads() as start:
            for number, kind in enumerate(order, 1):
                start(write[kind])
                wait_for_waiting(database_url, number)
            blocker.rollback()
    found = contents(database_url)[1]
    assert None not in found
    assert_content_exact(
        database_url, [SPAN, opened, call(7), {**call(1), "span_id": b"\x00" * 7 + b"\x09", "operation": None}]
    )


@pytest.mark.parametrize("order", [("spans", "logs"), ("logs", "spans")])
def test_one_holds_the_trace_until_the_other_waits_for_it(
    pool: StoragePool, database_url: str, method: WriteMethod, order: tuple[str, str]
) -> None:
    # Held as it ends: a deferred trigger makes the first COMMIT wait, with all its work done.
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER held AFTER INSERT OR UPDATE ON traces DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION held()"
        )
    with writers(pool, method, [SPAN]) as write, psycopg.connect(database_url) as blocker:
        blocker.execute("SELECT pg_advisory_xact_lock(7)")
        with threads() as start:
            for number, kind in enumerate(order, 1):
                start(write[kind])
                wait_for_waiting(database_url, number)
            blocker.rollback()
    assert None not in contents(database_url)[1]
    assert_content_exact(database_url, [SPAN, call(7)])


WRITE = """
import random, sys
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, TraceWriter, WriterConfig
from tests import test_content_from_logs as content
import datetime
content.NOW = datetime.datetime.fromisoformat(sys.argv[5])
url, kind, method, seed = sys.argv[1:5]
spans = [content.call(number) for number in range(1, 61)]
rows = {
    "spans": [*spans, *({**span, "end_time": None} for span in spans[::2])],
    "logs": [record for span in spans for record in (content.event(span), content.choice(span))],
}[kind]
dice = random.Random(seed)
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    config = WriterConfig(method=method)
    with (TraceWriter if kind == "spans" else LogWriter)(pool, config) as writer:
        for _ in range(3):
            left = dice.sample(rows, len(rows))
            while left:
                size = dice.randrange(1, 30)
                (writer.write_spans if kind == "spans" else writer.write_logs)(left[:size])
                del left[:size]
                writer.flush()
        stats = writer.write_stats()
        assert (stats.rows_rejected, stats.failures) == (0, 0), stats
"""


@pytest.mark.every_server
def test_processes_that_write_spans_and_events_at_once_fill_every_span(database_url: str) -> None:
    jobs = [("spans", "copy"), ("logs", "copy"), ("spans", "insert"), ("logs", "insert")]
    programs = [Program(WRITE, database_url, *job, str(seed), NOW.isoformat()) for seed, job in enumerate(jobs)]
    for program in programs:
        assert program.output() == ""
    assert deadlocks(database_url) == 0
    spans: list[dict[str, Any]] = [call(number) for number in range(1, 61)]
    assert count(database_url, "trace_spans") == 60
    assert all(None not in found for found in contents(database_url).values())
    assert_content_exact(database_url, spans)
