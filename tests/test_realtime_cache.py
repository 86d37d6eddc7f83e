"""Reads through the cache: the same as without, never older than promised, and one at a time."""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm.exc import DetachedInstanceError

from observatory_storage import LogWriter, MetricRepository, MetricWriter, NotFoundError, TraceRepository, TraceWriter
from observatory_storage.models import Trace, TraceSpan
from observatory_storage.models.base import Base
from observatory_storage.models.rows import TraceIdValue
from observatory_storage.policies import RetentionPolicy
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import ReadCache
from observatory_storage.realtime.codec import Rows
from observatory_storage.repositories.metric_filters import DataPointFilters
from observatory_storage.repositories.results import TraceDetail
from tests.cached import Row, columns_of, key_of, write
from tests.telemetry import make_spans
from tests.trace_rows import at, span, store, trace


@pytest.fixture
def cache(redis_pool: StoragePool) -> ReadCache:
    assert redis_pool.cache is not None
    return redis_pool.cache


@pytest.fixture
def other_pool(database_url: str, redis_url: str) -> Iterator[StoragePool]:
    """What another process would have: a cache that knows nothing of the first one's reads."""
    with StoragePool.from_url(database_url, redis_url=redis_url, min_connections=1, max_connections=10) as pool:
        yield pool


def contents(detail: TraceDetail) -> Any:
    return (
        columns_of(detail.trace),
        [columns_of(one) for one in detail.spans],
        [(key, [columns_of(one) for one in found]) for key, found in detail.events.items()],
        [(key, columns_of(one)) for key, one in detail.resources.items()],
    )


def is_detached(one: Base) -> bool:
    return bool(sa.inspect(one).detached)


@pytest.mark.every_redis
def test_what_comes_from_the_cache_equals_what_was_read(redis_pool: StoragePool, cache: ReadCache) -> None:
    rows = make_spans(4, 12)
    rows[1]["attributes"] = {
        "big": 2**62,
        "ratio": 0.1 + 0.2,
        "text": 'ü"\\\n\u2028',
        "deep": [[{"a": None}]],
        "one": 1.0,
    }
    rows[1]["links"] = [{"trace_id": "ab" * 16, "span_id": "cd" * 8, "attributes": {}}]
    write(redis_pool, rows)
    through, plain = TraceRepository(redis_pool), None
    for trace_id in {row["trace_id"] for row in rows}:
        with redis_pool.session() as session:
            plain = TraceRepository(session)
            expected = plain.get_trace_by_id(trace_id), plain.get_by_id(trace_id), plain.get_trace_statistics(trace_id)
        for _ in range(3):
            detail, one, statistics = (
                through.get_trace_by_id(trace_id),
                through.get_by_trace_id(trace_id.hex()),
                through.get_trace_statistics(trace_id),
            )
            assert contents(detail) == contents(expected[0])
            assert isinstance(detail.spans, tuple)
            assert all(isinstance(found, tuple) for found in detail.events.values())
            assert columns_of(one) == columns_of(expected[1])
            assert statistics == expected[2]
            assert isinstance(statistics.usage, tuple)
            kept: list[Base] = [one, detail.trace, *detail.spans, *detail.resources.values()]
            assert all(map(is_detached, kept))
            assert [sa.inspect(found).identity_key for found in detail.spans] == [
                sa.inspect(found).identity_key for found in expected[0].spans
            ]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.errors, stats.bypasses) == (24, 12, 0, 0)
    assert stats.hits_by_kind == {"trace": 8, "trace_detail": 8, "trace_statistics": 8}


def test_each_reader_gets_objects_of_its_own(redis_pool: StoragePool) -> None:
    write(redis_pool, rows := make_spans(1, 3))
    repository = TraceRepository(redis_pool)
    first, second = (repository.get_trace_by_id(rows[0]["trace_id"]) for _ in range(2))
    first.trace.attributes["mine"] = 1
    assert "mine" not in second.trace.attributes
    assert "mine" not in repository.get_trace_by_id(rows[0]["trace_id"]).trace.attributes


def test_a_point_with_values_that_json_has_not_comes_back_as_it_was(redis_pool: StoragePool) -> None:
    now = dt.datetime.now(dt.UTC).replace(microsecond=7)
    point: Row = {
        "metric": {"name": "load", "metric_type": "gauge", "unit": "1"},
        "attributes": {"host": "a"},
        "timestamp": now,
        "value": math.inf,
        "resource": {"service_name": "s", "attributes": {"service.name": "s"}},
    }
    with MetricWriter(redis_pool) as writer:
        writer.write_data_points([point])
    repository = MetricRepository(redis_pool)
    first, second = (repository.get_latest_data_point(DataPointFilters(name="load")) for _ in range(2))
    assert [columns_of(part) for part in first if part is not None] == [
        columns_of(part) for part in second if part is not None
    ]
    assert second.point.value == math.inf
    assert second.resource is not None


def test_what_was_not_read_because_nobody_asked_cannot_be_asked_of_a_kept_object_either(pool: StoragePool) -> None:
    write(pool, rows := make_spans(1, 3))
    spans = TraceRepository(pool).get_spans(rows[0]["trace_id"], include_content=False)
    kept = Rows(TraceSpan)
    for span_read, span_kept in zip(spans, kept.from_columns(kept.to_columns(spans)), strict=True):
        assert columns_of(span_kept) == columns_of(span_read)
        for one in (span_read, span_kept):
            with pytest.raises(DetachedInstanceError):
                _ = one.attributes


def test_a_hit_asks_postgresql_nothing(
    redis_pool: StoragePool, cache: ReadCache, database_url: str, other_pool: StoragePool
) -> None:
    write(redis_pool, rows := make_spans(1, 3))
    TraceRepository(redis_pool).get_trace_by_id(rows[0]["trace_id"])
    with statements_of(other_pool) as sent:
        TraceRepository(other_pool).get_trace_by_id(rows[0]["trace_id"])
    assert not sent
    assert other_pool.cache is not None
    assert other_pool.cache.stats().hits == 1


def test_a_session_is_read_past_the_cache(redis_pool: StoragePool, cache: ReadCache) -> None:
    write(redis_pool, rows := make_spans(1, 3))
    trace_id = rows[0]["trace_id"]
    TraceRepository(redis_pool).get_trace_by_id(trace_id)
    with redis_pool.unit_of_work() as uow:
        uow.session.execute(sa.update(Trace).values(name="changed here"))
        assert uow.traces.get_by_id(trace_id).name == "changed here"
        assert uow.traces.get_trace_by_id(trace_id).trace.name == "changed here"
    assert cache.stats().misses == 1


class Recorded(list[str]):
    """Statements, from entering to leaving."""

    def __init__(self, pool: StoragePool) -> None:
        self._engine = pool.engine

    def _note(self, *arguments: Any) -> None:
        self.append(arguments[2])

    def __enter__(self) -> Recorded:
        sa.event.listen(self._engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sa.event.remove(self._engine, "before_cursor_execute", self._note)


statements_of = Recorded


# --- What writes drop ---


@pytest.mark.every_redis
def test_whoever_has_flushed_reads_what_was_flushed(redis_pool: StoragePool, other_pool: StoragePool) -> None:
    rows = make_spans(3, 6)
    readers = [TraceRepository(pool) for pool in (redis_pool, other_pool)]
    with TraceWriter(redis_pool) as writer:
        for number, row in enumerate(rows, 1):
            writer.write_span(row)
            writer.flush()
            for reader in readers:
                expected = 1 + (number - 1) % 6
                assert len(reader.get_trace_by_id(row["trace_id"]).spans) == expected
                assert reader.get_by_id(row["trace_id"]).span_count == expected
                assert reader.get_trace_statistics(row["trace_id"]).span_count == expected


def test_a_finished_span_an_event_and_a_status_drop_their_trace(redis_pool: StoragePool) -> None:
    rows = make_spans(1, 2)
    repository = TraceRepository(redis_pool)
    trace_id = rows[0]["trace_id"]
    write(redis_pool, [{**rows[0], "end_time": None, "events": []}, rows[1]])
    mine = f"{rows[0]['span_id'].hex()}"

    def ended() -> bool:
        spans = {found.span_id: found for found in repository.get_trace_by_id(trace_id).spans}
        return spans[mine].end_time is not None

    assert not ended()
    with TraceWriter(redis_pool) as writer:
        writer.write_span({**rows[0], "events": []})
        writer.flush()
        assert ended()
        key = {"trace_id": trace_id, "span_id": rows[0]["span_id"], "span_start_time": rows[0]["start_time"]}
        writer.write_event({**key, "name": "late", "timestamp": rows[0]["start_time"]})
        writer.flush()
        assert [found.name for found in repository.get_trace_by_id(trace_id).events[mine]] == ["late"]
        writer.write_trace({"id": trace_id, "status": "error"})
        writer.flush()
        assert repository.get_by_id(trace_id).status == "error"


def test_content_from_logs_drops_the_trace(redis_pool: StoragePool) -> None:
    row = {**make_spans(1, 2)[1], "input": None, "output": None}
    write(redis_pool, [row])
    repository = TraceRepository(redis_pool)
    assert repository.get_trace_by_id(row["trace_id"]).spans[0].input is None
    with LogWriter(redis_pool) as writer:
        writer.write_log(
            {
                "timestamp": row["start_time"],
                "event_name": "gen_ai.user.message",
                "trace_id": row["trace_id"],
                "span_id": row["span_id"],
                "body_json": {"content": "hello"},
            }
        )
    assert repository.get_trace_by_id(row["trace_id"]).spans[0].input is not None


def test_deleted_traces_are_not_found(redis_pool: StoragePool) -> None:
    repository = TraceRepository(redis_pool)
    for delete in (_delete_by_pool, _delete_by_unit_of_work, _delete_by_retention):
        old = trace(delete, start_time=at())
        store(redis_pool, [old], [span(old, 1)])
        repository.get_trace_by_id(old["id"])
        delete(redis_pool)
        with pytest.raises(NotFoundError):
            repository.get_trace_by_id(old["id"])


def _delete_by_pool(pool: StoragePool) -> None:
    assert TraceRepository(pool).delete_before(at(days=1)).traces == 1


def _delete_by_unit_of_work(pool: StoragePool) -> None:
    with pool.unit_of_work() as uow:
        uow.traces.delete_before(at(days=1))
        uow.commit()


def _delete_by_retention(pool: StoragePool) -> None:
    report = pool.maintain(
        ahead=dt.timedelta(hours=1), retention=[RetentionPolicy("traces", None, dt.timedelta(days=1))]
    )
    assert not report.problems


def test_usage_that_maintenance_adds_drops_its_traces(redis_pool: StoragePool) -> None:
    row = {**make_spans(1, 1)[0], "input_tokens": 7, "output_tokens": 1, "cost_usd": None, "counts_usage": True}
    write(redis_pool, [row])
    repository = TraceRepository(redis_pool)
    with redis_pool.session() as session:
        # As an older release leaves it.
        session.execute(sa.text("UPDATE traces SET input_tokens = 0"))
        session.execute(sa.text("UPDATE trace_spans SET repeats_usage = NULL"))
        session.commit()
    repository.get_by_id(row["trace_id"])
    redis_pool.maintain(ahead=dt.timedelta(hours=1))
    with redis_pool.session() as session:
        expected = TraceRepository(session).get_by_id(row["trace_id"])
    assert expected.input_tokens == 7
    assert repository.get_by_id(row["trace_id"]).input_tokens == 7


def test_a_deletion_that_is_rolled_back_drops_nothing(redis_pool: StoragePool, cache: ReadCache) -> None:
    old = trace("old", start_time=at())
    store(redis_pool, [old], [span(old, 1)])
    repository = TraceRepository(redis_pool)
    repository.get_trace_by_id(old["id"])
    with redis_pool.unit_of_work() as uow:
        uow.traces.delete_before(at(days=1))
    assert cache.stats().forgotten == 0
    assert repository.get_trace_by_id(old["id"]).spans
    assert cache.stats().hits == 1


class PausingRepository(TraceRepository):
    """Has read, and waits before it says so."""

    has_read: threading.Event
    go_on: threading.Event

    def _read_detail(self, key: uuid.UUID, trace_id: TraceIdValue) -> TraceDetail:
        detail = super()._read_detail(key, trace_id)
        self.has_read.set()
        assert self.go_on.wait(10)
        return detail


@pytest.mark.every_redis
def test_what_was_read_before_a_commit_is_not_kept_after_it(redis_pool: StoragePool, other_pool: StoragePool) -> None:
    rows = make_spans(1, 4)
    trace_id = rows[0]["trace_id"]
    write(redis_pool, rows[:2])
    slow = PausingRepository(other_pool)
    slow.has_read, slow.go_on = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as threads:
        old = threads.submit(slow.get_trace_by_id, trace_id)
        assert slow.has_read.wait(10)
        write(redis_pool, rows[2:])
        # Nobody joins a read that a commit has overtaken, neither here nor in the reader's own process.
        for pool in (redis_pool, other_pool):
            assert len(TraceRepository(pool).get_trace_by_id(trace_id).spans) == 4
        slow.go_on.set()
        assert len(old.result().spans) == 2
    for pool in (redis_pool, other_pool):
        assert len(TraceRepository(pool).get_trace_by_id(trace_id).spans) == 4
    assert other_pool.cache is not None
    assert other_pool.cache.stats().refused == 1


def test_readers_beside_a_writer_never_go_back(redis_pool: StoragePool, other_pool: StoragePool) -> None:
    rows = make_spans(1, 60)
    trace_id = rows[0]["trace_id"]
    write(redis_pool, rows[:1])
    flushed = 1
    over = threading.Event()

    def read(pool: StoragePool) -> int:
        repository, reads = TraceRepository(pool), 0
        while not over.is_set():
            least = flushed
            assert len(repository.get_trace_by_id(trace_id).spans) >= least
            reads += 1
        return reads

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read, pool) for pool in (redis_pool, other_pool) * 2]
        try:
            with TraceWriter(redis_pool) as writer:
                for row in rows[1:]:
                    writer.write_span(row)
                    writer.flush()
                    flushed += 1
        finally:
            over.set()
        assert all(reader.result() > 10 for reader in readers)


# --- One read at a time ---


@pytest.mark.every_redis
def test_one_miss_under_load_goes_to_postgresql_once(redis_pool: StoragePool, other_pool: StoragePool) -> None:
    write(redis_pool, rows := make_spans(1, 200))
    pools = (redis_pool, other_pool)
    start = threading.Barrier(16)

    def read(pool: StoragePool) -> int:
        start.wait()
        return len(TraceRepository(pool).get_trace_by_id(rows[0]["trace_id"]).spans)

    with (
        statements_of(redis_pool) as here,
        statements_of(other_pool) as there,
        ThreadPoolExecutor(16) as threads,
    ):
        found = [threads.submit(read, pool) for pool in pools * 8]
        assert {task.result() for task in found} == {200}
    assert len(here + there) == 4
    stats = [pool.cache.stats() for pool in pools if pool.cache is not None]
    assert sum(one.misses for one in stats) == 1
    assert sum(one.hits for one in stats) == 15


def test_a_reader_that_died_keeps_others_waiting_for_a_second_once(redis_pool: StoragePool, cache: ReadCache) -> None:
    write(redis_pool, rows := make_spans(1, 3))
    repository = TraceRepository(redis_pool)
    assert redis_pool.redis is not None
    key = key_of(redis_pool, rows[0]["trace_id"], b"d")
    redis_pool.redis.set(key, b"L" + b"x" * 12, px=10_000)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(repository.get_trace_by_id, rows[0]["trace_id"]) for _ in range(4)]
        assert all(len(task.result().spans) == 3 for task in found)
    assert 0.9 < time.monotonic() - started < 2.5
    assert cache.stats().misses == 1
    assert len(repository.get_trace_by_id(rows[0]["trace_id"]).spans) == 3
    assert cache.stats().hits >= 1


def test_whoever_waits_for_a_read_that_fails_asks_for_itself(redis_pool: StoragePool, cache: ReadCache) -> None:
    absent = uuid.uuid4()
    repository = TraceRepository(redis_pool)

    def read() -> None:
        with pytest.raises(NotFoundError, match="no trace is stored"):
            repository.get_trace_by_id(absent)

    with ThreadPoolExecutor(8) as threads:
        for task in [threads.submit(read) for _ in range(16)]:
            task.result()
    assert redis_pool.redis is not None
    assert redis_pool.redis.get(key_of(redis_pool, absent.bytes, b"d")) is None
    assert cache.stats().hits == 0


def test_maintenance_that_decides_what_counts_drops_the_trace(redis_pool: StoragePool, database_url: str) -> None:
    call = {"start_time": at(), "end_time": at(1), "counts_usage": True, "operation": "chat", "input_tokens": 7}
    outer = call | {"trace_id": b"t" * 16, "span_id": b"outer..."}
    write(redis_pool, [outer, outer | {"span_id": b"inner...", "parent_span_id": outer["span_id"]}])
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE trace_spans SET counts_usage = true, repeats_usage = NULL")
        connection.execute("UPDATE traces SET input_tokens = 14")
        connection.execute("TRUNCATE usage_rollups")
    repository = TraceRepository(redis_pool)
    assert repository.get_trace_by_id(b"t" * 16).trace.input_tokens == 14
    assert redis_pool.maintain(ahead=dt.timedelta(hours=1)).usage.spans_added == 2
    detail = repository.get_trace_by_id(b"t" * 16)
    assert detail.trace.input_tokens == 7
    assert sorted(one.counts_usage for one in detail.spans) == [False, True]
