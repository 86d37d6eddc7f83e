"""A Redis without room, with another password, emptied or stopped in a fill: no failed write, no old read."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
import redis

from observatory_storage import TraceRepository, TraceWriter, WriterConfig
from observatory_storage.caching import Cached
from observatory_storage.errors import UnavailableError
from observatory_storage.models import Trace
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import PublishStats
from observatory_storage.realtime.codec import UnfitError, typed
from observatory_storage.realtime.landed import Landed
from observatory_storage.repositories import UsageTotals
from tests.cached import TIMEOUT, cache_of, pool_on, until, write
from tests.servers import RedisProcess
from tests.telemetry import count, make_spans


def test_a_redis_without_room_fails_no_write_and_what_it_did_not_take_is_counted(
    pool: StoragePool, server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_spans(20, 5)
    repository = TraceRepository(pool)
    with redis.Redis.from_url(server.url) as client, caplog.at_level(logging.INFO, "observatory_storage.realtime"):
        client.config_set("maxmemory", "1")
        with TraceWriter(pool) as writer:
            for number in range(20):
                writer.write_spans(rows[number * 5 : number * 5 + 5])
                writer.flush()
                assert len(repository.get_trace_by_id(rows[number * 5]["trace_id"]).spans) == 5
            assert (writer.write_stats().failures, writer.write_stats().spans_written) == (0, 100)
        until(lambda: pool.stream.stats().waiting == 0)
        assert (pool.stream.stats().published, pool.stream.stats().dropped) == (0, 100)
        assert len(caplog.records) == 1
        assert cache_of(pool).stats().openings == 0
        client.config_set("maxmemory", "0")
        write(pool, more := make_spans(2, 5, seed=9))
        until(lambda: pool.stream.stats().published == 10)
        for _ in range(2):
            repository.get_trace_by_id(more[0]["trace_id"])
        assert cache_of(pool).stats().hits == 1


def test_nobody_waits_for_a_value_that_redis_had_no_room_for(pool: StoragePool, server: RedisProcess) -> None:
    write(pool, rows := make_spans(1, 3))
    trace_id = rows[0]["trace_id"]
    detail = TraceRepository(pool).get_by_id(trace_id)
    cache_of(pool).forget_traces([trace_id])
    with redis.Redis.from_url(server.url) as client:

        def read() -> Trace:
            # Another client took what was left, after the lease and before the value.
            client.config_set("maxmemory", "1")
            return detail

        cache_of(pool).read(Cached.TRACE, trace_id, read)
        client.config_set("maxmemory", "0")
        started = time.monotonic()
        assert TraceRepository(pool).get_by_id(trace_id).span_count == 3
        assert time.monotonic() - started < 0.5


def test_a_wrong_password_costs_one_try_and_is_not_shown(
    database_url: str, server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "right")
        for user in (":wrong-secret@", ""):
            caplog.clear()
            with pool_on(database_url, server.url.replace("//", f"//{user}")) as pool, caplog.at_level(logging.DEBUG):
                rows = make_spans(1, 20, seed=len(user))
                repository = TraceRepository(pool)
                with TraceWriter(pool) as writer:
                    for number, row in enumerate(rows, 1):
                        writer.write_span(row)
                        writer.flush()
                        assert len(repository.get_trace_by_id(row["trace_id"]).spans) == number
                    assert writer.write_stats().failures == 0
                with pytest.raises(UnavailableError) as caught:
                    pool.stream.tail()
                stats = cache_of(pool).stats()
                assert (stats.hits, stats.openings, stats.is_open) == (0, 1, True)
                assert pool.stream.stats().dropped == 20
                said = [record.getMessage() for record in caplog.records] + [
                    str(caught.value),
                    str(pool.stream.stats()),
                ]
                assert sum(line.startswith("Redis does not answer, going on") for line in said) == 1
                assert not any("secret" in line for line in said)
                # As soon as it is right, it is used.
                if not user:
                    client.config_set("requirepass", "")
                    until(lambda: not cache_of(pool).stats().is_open)


def test_redis_is_stopped_in_the_middle_of_a_fill_while_others_commit(
    pool: StoragePool, other_pool: StoragePool, server: RedisProcess
) -> None:
    rows = make_spans(1, 4)
    trace_id = rows[0]["trace_id"]
    write(pool, rows[:2])
    repository = TraceRepository(pool)
    old = repository.get_by_id(trace_id)
    cache_of(pool).forget_traces([trace_id])

    def read() -> Trace:
        server.pause()
        return old

    # The value is on its way when Redis stops, and a commit of another process is announced behind it.
    with ThreadPoolExecutor(1) as threads:
        filling = threads.submit(cache_of(pool).read, Cached.TRACE, trace_id, read)
        time.sleep(TIMEOUT / 4)
        write(other_pool, rows[2:])
        assert filling.result().span_count == 2
    server.resume()
    until(lambda: not cache_of(pool).stats().is_open and not cache_of(other_pool).stats().is_open)
    for which in (pool, other_pool):
        assert TraceRepository(which).get_by_id(trace_id).span_count == 4


def test_redis_is_emptied_at_any_moment_of_a_read(
    pool: StoragePool, other_pool: StoragePool, server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that reads inside of another's read waits for it in vain.
    monkeypatch.setattr("observatory_storage.realtime.cache._PATIENCE_SECONDS", 0.1)
    rows = make_spans(1, 11)
    trace_id = rows[0]["trace_id"]
    write(pool, rows[:1])
    repository, others = TraceRepository(pool), TraceRepository(other_pool)
    with redis.Redis.from_url(server.url) as client:
        for number, row in enumerate(rows[1:], 2):
            steps = [
                client.flushall,
                lambda row=row: write(other_pool, [row]),
                client.script_flush,
                lambda: others.get_by_id(trace_id),
                client.flushall,
            ]
            steps = steps[number % 5 :] + steps[: number % 5]
            stale = repository.get_by_id(trace_id)
            client.delete(*client.keys("*:trace:*"))

            def read(steps: list[Callable[[], object]] = steps, stale: Trace = stale) -> Trace:
                for step in steps:
                    step()
                return stale

            cache_of(pool).read(Cached.TRACE, trace_id, read)
            for which in (repository, others):
                assert which.get_by_id(trace_id).span_count == number


def test_a_commit_while_older_ones_are_announced_is_announced_too(
    pool: StoragePool, server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is back, what was owed is being sent, and the same trace changes once more."""
    cache = cache_of(pool)
    trace_id = os.urandom(16)
    server.pause()
    cache.forget_traces([trace_id])
    assert cache.stats().pending == 1
    send, sent = cache._send_forgotten, threading.Event()

    def send_and_commit(ids: list[bytes]) -> None:
        send(ids)
        if not sent.is_set():
            sent.set()
            cache.forget_traces([trace_id])

    monkeypatch.setattr(cache, "_send_forgotten", send_and_commit)
    server.resume()
    until(lambda: not cache.stats().is_open)
    assert cache.stats().forgotten == 2
    assert cache.stats().pending == 0


def test_a_figure_that_is_not_a_number_is_returned_and_not_kept() -> None:
    codec = typed(UsageTotals)
    with pytest.raises(UnfitError):
        codec.encode(UsageTotals({}, cost_usd=Decimal("NaN")))
    assert codec.decode(codec.encode(UsageTotals({}))) == UsageTotals({})


def test_a_batch_larger_than_what_may_wait_is_told_of(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.realtime.publisher._MOST_ROWS", 50)
    with TraceWriter(pool, WriterConfig(batch_size=1000)) as writer:
        writer.write_spans(make_spans(10, 10))
    until(lambda: pool.stream.stats().waiting == 0)
    assert (pool.stream.stats().published, count(database_url, "trace_spans")) == (100, 100)


def test_what_waits_for_a_slow_redis_is_bounded_and_no_writer_waits(
    pool: StoragePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.realtime.publisher._MOST_ROWS", 50)
    publisher = pool.stream._publisher
    publish, go_on = publisher._publish, threading.Event()

    def slowly(landed: Landed, dropped: int) -> int:
        assert go_on.wait(10)
        return publish(landed, dropped)

    monkeypatch.setattr(publisher, "_publish", slowly)
    with TraceWriter(pool, WriterConfig(batch_size=20)) as writer:
        writer.write_spans(make_spans(5, 20))
        writer.flush()
        assert pool.stream.stats() == PublishStats(published=0, dropped=60, waiting=40)
    go_on.set()
    until(lambda: pool.stream.stats() == PublishStats(published=40, dropped=60, waiting=0))


def test_a_child_forked_beside_busy_threads_counts_and_closes(pool: StoragePool) -> None:
    publisher, cache = pool.realtime.publisher if pool.realtime else None, cache_of(pool)
    assert publisher is not None
    holding, over = threading.Event(), threading.Event()

    def hold() -> None:
        with publisher._changed, cache._lock:
            holding.set()
            over.wait(30)

    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(hold)
        assert holding.wait(5)
        with warnings.catch_warnings():
            # That there are threads is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            cache.stats()
            pool.stream.stats()
            publisher.close()
            os._exit(7)
        deadline = time.monotonic() + 5
        found = (0, 0)
        while not found[0] and time.monotonic() < deadline:
            found = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)
        if not found[0]:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        over.set()
        held.result()
    assert os.waitstatus_to_exitcode(found[1]) == 7
