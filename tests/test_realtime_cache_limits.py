"""What the cache does not keep, for how long it keeps the rest, and what becomes of it in a forked child."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from observatory_storage import TraceRepository
from observatory_storage.caching import Cached
from observatory_storage.models import Trace, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import ReadCache
from tests.cached import in_child, key_of, write
from tests.telemetry import make_spans


@pytest.fixture
def cache(redis_pool: StoragePool) -> ReadCache:
    assert redis_pool.cache is not None
    return redis_pool.cache


def test_values_of_another_release_and_of_others_are_not_read(redis_pool: StoragePool, cache: ReadCache) -> None:
    write(redis_pool, rows := make_spans(1, 3))
    repository, key = TraceRepository(redis_pool), key_of(redis_pool, rows[0]["trace_id"], b"d")
    client = redis_pool.redis
    assert client is not None
    repository.get_trace_by_id(rows[0]["trace_id"])
    kept = client.get(key)
    assert isinstance(kept, bytes)
    for odd in (
        kept[:1] + b"\0\0\0\0" + kept[5:],  # another shape, whatever its content
        kept[:5] + b"[]",
        kept[:5] + b'{"trace": 1}',
        b"Z" + kept[1:5] + b"no deflate",
        b"?" + kept[1:],
        b"",
        b"\x80\x04K\x01.",
    ):
        client.set(key, odd)
        assert len(repository.get_trace_by_id(rows[0]["trace_id"]).spans) == 3
        assert len(repository.get_trace_by_id(rows[0]["trace_id"]).spans) == 3
    assert len(repository.get_trace_by_id(rows[0]["trace_id"]).spans) == 3
    last = client.get(key)
    assert last is not None
    assert last[:5] == kept[:5]


def test_values_of_other_types_are_not_read(redis_pool: StoragePool, cache: ReadCache) -> None:
    write(redis_pool, rows := make_spans(1, 3))
    repository, key = TraceRepository(redis_pool), key_of(redis_pool, rows[0]["trace_id"], b"t")
    client = redis_pool.redis
    assert client is not None
    repository.get_by_id(rows[0]["trace_id"])
    kept = client.get(key)
    assert isinstance(kept, bytes)
    names, columns = orjson.loads(kept[5:])
    for place, name in enumerate(names):
        if name not in ("id", "start_time", "cost_usd"):
            continue
        odds: list[Any] = ["x", 5, [], {}, 10**18]
        for odd in odds:
            changed = [[odd] if at == place else column for at, column in enumerate(columns)]
            client.set(key, kept[:5] + orjson.dumps([names, changed]))
            assert repository.get_by_id(rows[0]["trace_id"]).span_count == 3


def test_what_unfolds_without_end_is_not_unfolded(database_url: str, redis_url: str) -> None:
    import zlib

    with StoragePool.from_url(database_url, redis_url=redis_url, redis_cache_max_bytes=10_000) as pool:
        write(pool, rows := make_spans(1, 3))
        repository, key = TraceRepository(pool), key_of(pool, rows[0]["trace_id"], b"d")
        repository.get_trace_by_id(rows[0]["trace_id"])
        assert pool.redis is not None
        kept = pool.redis.get(key)
        assert isinstance(kept, bytes)
        pool.redis.set(key, b"Z" + kept[1:5] + zlib.compress(b" " * 3_000_000))
        assert len(repository.get_trace_by_id(rows[0]["trace_id"]).spans) == 3
        assert pool.cache is not None
        assert pool.cache.stats().errors == 1


def test_large_values_are_read_past_the_cache(database_url: str, redis_url: str) -> None:
    with StoragePool.from_url(database_url, redis_url=redis_url, redis_cache_max_bytes=5_000) as pool:
        rows = make_spans(1, 2)
        rows[0]["attributes"] = {"noise": os.urandom(20_000).hex()}
        write(pool, rows)
        for _ in range(3):
            assert len(TraceRepository(pool).get_trace_by_id(rows[0]["trace_id"]).spans) == 2
        assert pool.cache is not None
        stats = pool.cache.stats()
        assert (stats.hits, stats.misses, stats.unfit) == (0, 3, 3)
        assert pool.redis is not None
        assert pool.redis.get(key_of(pool, rows[0]["trace_id"], b"d")) is None


def test_numbers_that_json_readers_would_change_are_not_kept(redis_pool: StoragePool, cache: ReadCache) -> None:
    write(redis_pool, rows := make_spans(1, 2))
    with redis_pool.session() as session:
        session.execute(sa.text("UPDATE trace_spans SET attributes = '{\"n\": 123456789012345678901234567890}'"))
        session.commit()
    for _ in range(2):
        found = TraceRepository(redis_pool).get_trace_by_id(rows[0]["trace_id"])
        assert found.spans[0].attributes == {"n": 123456789012345678901234567890}
    assert cache.stats().unfit == 2


def test_times_to_live_are_by_kind_and_zero_keeps_nothing(database_url: str, redis_url: str) -> None:
    settings: dict[str, Any] = {"redis_cache_trace_ttl_seconds": 30, "redis_cache_figures_ttl_seconds": 0}
    with StoragePool.from_url(database_url, redis_url=redis_url, **settings) as pool:
        write(pool, rows := make_spans(1, 2))
        TraceRepository(pool).get_trace_by_id(rows[0]["trace_id"])
        assert pool.redis is not None
        left_ms = pool.redis.pttl(key_of(pool, rows[0]["trace_id"], b"d"))
        assert isinstance(left_ms, int)
        assert 25_000 < left_ms <= 30_000
        assert pool.cache is not None
        assert pool.cache.read(Cached.LATEST_POINT, b"any", lambda: 7) == 7
        assert pool.cache.stats().misses == 1


def test_the_time_to_live_counts_from_before_the_read(database_url: str, redis_url: str) -> None:
    with StoragePool.from_url(database_url, redis_url=redis_url, redis_cache_trace_ttl_seconds=0.4) as pool:
        write(pool, rows := make_spans(1, 2))
        detail = TraceRepository(pool).get_by_id(rows[0]["trace_id"])
        assert pool.cache is not None

        def slowly() -> Trace:
            time.sleep(0.3)
            return detail

        key = rows[0]["trace_id"]
        pool.cache.forget_traces([key])
        pool.cache.read(Cached.TRACE, key, slowly)
        assert pool.redis is not None
        left_ms = pool.redis.pttl(key_of(pool, key, b"t"))
        assert isinstance(left_ms, int)
        assert left_ms <= 100


def test_what_is_written_past_the_writers_shows_after_its_time(database_url: str, redis_url: str) -> None:
    with StoragePool.from_url(database_url, redis_url=redis_url, redis_cache_trace_ttl_seconds=0.5) as pool:
        write(pool, rows := make_spans(1, 2))
        repository = TraceRepository(pool)
        repository.get_by_id(rows[0]["trace_id"])
        with pool.session() as session:
            session.execute(sa.update(TraceSpan).values(name="past"))
            session.execute(sa.update(Trace).values(name="past"))
            session.commit()
        committed = time.monotonic()
        while repository.get_by_id(rows[0]["trace_id"]).name != "past":
            assert time.monotonic() - committed < 0.6
            time.sleep(0.02)
        # Or at once, where the one who wrote it says so.
        with pool.session() as session:
            session.execute(sa.update(Trace).values(name="said"))
            session.commit()
        assert pool.cache is not None
        pool.cache.forget_traces([rows[0]["trace_id"]])
        assert repository.get_by_id(rows[0]["trace_id"]).name == "said"


def test_databases_of_one_redis_are_told_apart(
    redis_pool: StoragePool, database_url: str, redis_url: str, cache: ReadCache
) -> None:
    write(redis_pool, rows := make_spans(1, 2))
    TraceRepository(redis_pool).get_by_id(rows[0]["trace_id"])
    with StoragePool.from_url(database_url, redis_url=redis_url, redis_namespace="another") as pool:
        assert TraceRepository(pool).get_by_id(rows[0]["trace_id"]).span_count == 2
        assert pool.cache is not None
        assert pool.cache.stats().misses == 1


def test_without_redis_there_is_no_cache(pool: StoragePool) -> None:
    write(pool, rows := make_spans(1, 2))
    assert pool.cache is None
    assert len(TraceRepository(pool).get_trace_by_id(rows[0]["trace_id"]).spans) == 2


def test_a_forked_child_reads_and_drops_by_itself(redis_pool: StoragePool, cache: ReadCache) -> None:
    rows = make_spans(1, 4)
    trace_id = rows[0]["trace_id"]
    write(redis_pool, rows[:2])
    repository = TraceRepository(redis_pool)
    repository.get_trace_by_id(trace_id)
    with ThreadPoolExecutor(2) as threads:
        over = threading.Event()

        def read() -> None:
            while not over.is_set():
                repository.get_trace_by_id(trace_id)

        busy = [threads.submit(read) for _ in range(2)]

        def child() -> int:
            assert len(repository.get_trace_by_id(trace_id).spans) == 2
            assert cache.stats().hits == 1
            write(redis_pool, rows[2:])
            return len(repository.get_trace_by_id(trace_id).spans)

        assert in_child(child) == 4
        assert len(repository.get_trace_by_id(trace_id).spans) == 4
        over.set()
        for task in busy:
            task.result()
