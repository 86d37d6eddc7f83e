"""Redis killed, paused, flushed and slow: no failed write, no wrong read, one wait an outage, and back by itself."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from observatory_storage import TraceRepository, TraceWriter
from observatory_storage.pool import StoragePool
from observatory_storage.realtime.breaker import Breaker
from tests.cached import TIMEOUT, cache_of, in_child, pool_on, until, write
from tests.servers import RedisProcess
from tests.telemetry import assert_summaries_exact, count, make_spans


def test_a_paused_redis_costs_one_timeout_and_not_one_a_call(pool: StoragePool, server: RedisProcess) -> None:
    write(pool, rows := make_spans(20, 2))
    repository = TraceRepository(pool)
    ids = sorted({row["trace_id"] for row in rows})
    for trace_id in ids:
        repository.get_by_id(trace_id)
    server.pause()
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        assert all(one.span_count == 2 for one in threads.map(repository.get_by_id, ids * 5))
    assert time.monotonic() - started < TIMEOUT * 2 + 1.0
    stats = cache_of(pool).stats()
    assert stats.is_open
    assert stats.openings == 1
    assert stats.errors <= 4
    assert stats.bypasses >= 96
    server.resume()
    until(lambda: not cache_of(pool).stats().is_open)
    hits = cache_of(pool).stats().hits
    repository.get_by_id(ids[0])
    assert cache_of(pool).stats().hits == hits + 1


def test_a_killed_redis_is_used_again_once_it_is_back(
    pool: StoragePool, server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    write(pool, rows := make_spans(2, 2))
    repository, trace_id = TraceRepository(pool), rows[0]["trace_id"]
    repository.get_by_id(trace_id)
    server.kill()
    with caplog.at_level(logging.INFO, "observatory_storage.realtime"):
        for _ in range(50):
            assert repository.get_by_id(trace_id).span_count == 2
        server.start()
        until(lambda: not cache_of(pool).stats().is_open)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("Redis does not answer, going on without it")
    assert said[1] == "Redis answers again"
    repository.get_by_id(trace_id)
    hits = cache_of(pool).stats().hits
    repository.get_by_id(trace_id)
    assert cache_of(pool).stats().hits == hits + 1


def test_a_restart_between_two_calls_goes_unnoticed(pool: StoragePool, server: RedisProcess) -> None:
    write(pool, rows := make_spans(2, 2))
    repository, trace_id = TraceRepository(pool), rows[0]["trace_id"]
    repository.get_by_id(trace_id)
    server.kill()
    server.start()
    assert repository.get_by_id(trace_id).span_count == 2
    assert repository.get_by_id(trace_id).span_count == 2
    stats = cache_of(pool).stats()
    assert (stats.errors, stats.openings, stats.hits) == (0, 0, 1)


def test_what_was_committed_during_an_outage_is_read_by_everyone_afterwards(
    pool: StoragePool, other_pool: StoragePool, server: RedisProcess
) -> None:
    rows = make_spans(1, 6)
    trace_id = rows[0]["trace_id"]
    write(pool, rows[:2])
    mine, others = TraceRepository(pool), TraceRepository(other_pool)
    assert len(mine.get_trace_by_id(trace_id).spans) == len(others.get_trace_by_id(trace_id).spans) == 2
    server.pause()
    started = time.monotonic()
    write(pool, rows[2:])
    # The writer waited for Redis once, and whoever wrote reads what it wrote.
    assert time.monotonic() - started < TIMEOUT + 1.0
    assert len(mine.get_trace_by_id(trace_id).spans) == 6
    assert cache_of(pool).stats().pending == 1
    server.resume()
    while cache_of(pool).stats().is_open:
        assert len(mine.get_trace_by_id(trace_id).spans) == 6
    assert len(mine.get_trace_by_id(trace_id).spans) == len(others.get_trace_by_id(trace_id).spans) == 6
    assert cache_of(pool).stats().pending == 0


def test_where_too_much_was_written_to_remember_the_cache_waits_until_it_has_expired(
    database_url: str, server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.realtime.cache._MOST_PENDING", 3)
    with pool_on(database_url, server.url, redis_cache_trace_ttl_seconds=1, redis_cache_figures_ttl_seconds=0) as pool:
        rows = make_spans(8, 2)
        write(pool, rows[::2])
        repository = TraceRepository(pool)
        ids = sorted({row["trace_id"] for row in rows})
        for trace_id in ids:
            repository.get_by_id(trace_id)
        server.pause()
        write(pool, rows[1::2])
        server.resume()
        until_open = time.monotonic()
        while cache_of(pool).stats().is_open:
            assert all(repository.get_by_id(trace_id).span_count == 2 for trace_id in ids)
        assert time.monotonic() - until_open > 0.5
        assert all(repository.get_by_id(trace_id).span_count == 2 for trace_id in ids)


def test_a_redis_that_refuses_writes_is_read_past(pool: StoragePool, server: RedisProcess) -> None:
    rows = make_spans(1, 4)
    write(pool, rows[:2])
    repository, trace_id = TraceRepository(pool), rows[0]["trace_id"]
    repository.get_by_id(trace_id)
    client = pool.redis
    assert client is not None
    client.config_set("maxmemory", "1")
    write(pool, rows[2:])
    for _ in range(3):
        assert repository.get_by_id(trace_id).span_count == 4
    client.config_set("maxmemory", "0")
    until(lambda: not cache_of(pool).stats().is_open)
    hits = cache_of(pool).stats().hits
    for _ in range(2):
        assert repository.get_by_id(trace_id).span_count == 4
    assert cache_of(pool).stats().hits > hits


def test_redis_killed_paused_and_flushed_in_the_middle_of_a_mixed_load(
    database_url: str, pool: StoragePool, other_pool: StoragePool, server: RedisProcess
) -> None:
    """Two writers and four readers, each of which knows what was flushed before it looks."""
    per_trace, traces = 30, 40
    flushed: dict[bytes, int] = {}
    over = threading.Event()

    def writing(seed: int) -> float:
        spans = make_spans(traces, per_trace, seed=seed)
        by_trace: dict[bytes, list[Any]] = {}
        for row in spans:
            by_trace.setdefault(row["trace_id"], []).append(row)
        longest = 0.0
        with TraceWriter(pool) as writer:
            for number in range(per_trace):
                part = [rows[number] for rows in by_trace.values()]
                writer.write_spans(part)
                began = time.monotonic()
                writer.flush()
                longest = max(longest, time.monotonic() - began)
                for trace_id in by_trace:
                    flushed[trace_id] = number + 1
                time.sleep(0.05)
            assert writer.write_stats().failures == 0
        return longest

    def reading(reader_pool: StoragePool, *, is_writers: bool) -> tuple[int, float]:
        repository, reads, longest = TraceRepository(reader_pool), 0, 0.0
        while not over.is_set():
            for trace_id, least in list(flushed.items()):
                began = time.monotonic()
                found = len(repository.get_trace_by_id(trace_id).spans)
                longest = max(longest, time.monotonic() - began)
                # Other processes may read what an outage kept the writer from dropping, as long as the time to live.
                assert found >= least or not is_writers
                reads += 1
        return reads, longest

    with ThreadPoolExecutor(6) as threads:
        writers = [threads.submit(writing, seed) for seed in (1, 2)]
        until(lambda: bool(flushed))
        readers = [
            threads.submit(reading, which, is_writers=which is pool) for which in (pool, other_pool, pool, other_pool)
        ]
        for disturb in (_pause, _kill, _flush, _pause, _flush, _kill):
            time.sleep(0.2)
            disturb(server)
        slowest_write = max(task.result() for task in writers)
        over.set()
        slowest_read = max(task.result()[1] for task in readers)
    assert count(database_url, "trace_spans") == 2 * per_trace * traces
    assert_summaries_exact(database_url)
    until(lambda: not cache_of(pool).stats().is_open and not cache_of(other_pool).stats().is_open, 15)
    for which in (pool, other_pool):
        for trace_id in flushed:
            assert len(TraceRepository(which).get_trace_by_id(trace_id).spans) == per_trace
    assert slowest_write < 5
    assert slowest_read < 5


def _pause(server: RedisProcess) -> None:
    server.pause()
    time.sleep(TIMEOUT * 3)
    server.resume()


def _kill(server: RedisProcess) -> None:
    server.kill()
    time.sleep(0.3)
    server.start()


def _flush(server: RedisProcess) -> None:
    import redis

    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def test_a_breaker_may_be_stopped_by_whoever_holds_it() -> None:
    def probe() -> None:
        breaker.stop()
        stopped.set()

    stopped = threading.Event()
    breaker = Breaker(probe)
    breaker.open(redis.ConnectionError("away"))
    # By its own probe, which need not wait for itself; and by a signal handler in the midst of its own work.
    assert stopped.wait(10)
    with breaker._lock:
        breaker.stop()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "observatory-redis-probe"])


def test_a_pool_is_closed_while_its_own_thread_or_its_parent_holds_the_queue(pool: StoragePool) -> None:
    realtime = pool.realtime
    assert realtime is not None
    write(pool, make_spans(1, 2))
    with realtime._waiting_readers.pool.mutex:
        started = time.monotonic()
        realtime.close()
        assert time.monotonic() - started < 5

        def close() -> int:
            started = time.monotonic()
            realtime.close()
            return int(time.monotonic() - started > 0.9)

        assert in_child(close) == 0


def test_a_pool_that_closes_waits_for_the_probe_under_way(database_url: str, server: RedisProcess) -> None:
    def probes() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "observatory-redis-probe"}

    before = probes()
    for seconds in (0.0, 0.05, 0.15, 0.25):
        with pool_on(database_url, server.url) as pool:
            server.pause()
            cache_of(pool).forget_traces([b"x" * 16])
            assert len(probes() - before) == 1
            time.sleep(seconds)
            if seconds > 0.2:
                server.resume()
        assert probes() == before
        server.resume()
