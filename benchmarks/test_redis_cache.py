"""A trace of 200 spans through the cache, without it, and from a pool without Redis, in turns; and what writers pay."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.conftest import Report, Size
from benchmarks.data import SpanSource
from benchmarks.interleaved import Benchmark, Timings, Way, table
from benchmarks.spans import TABLES
from observatory_storage.models import SpanRow
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceRepository
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.servers import RedisProcess

SPANS = 200
LEAST_GAIN = 3.0
CACHED, UNCACHED, WITHOUT = "cached", "uncached: each dropped before", "a pool without Redis"


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as process:
        yield process


@pytest.fixture
def pool_with_redis(url: str, server: RedisProcess) -> Iterator[StoragePool]:
    with StoragePool.from_url(url, redis_url=server.url, min_connections=1, max_connections=5) as pool:
        yield pool


def test_get_trace_by_id(
    pool: StoragePool,
    pool_with_redis: StoragePool,
    size: Size,
    benchmark: Benchmark,
    report: Report,
    machine: str,
) -> None:
    spans = SpanSource().spans(SPANS)
    trace_id = spans[0]["trace_id"]
    for span in spans:
        span["trace_id"] = trace_id
    with TraceWriter(pool) as writer:
        writer.write_spans(spans)
    cache = pool_with_redis.cache
    assert cache is not None
    assert isinstance(trace_id, bytes)
    known = trace_id
    reads = size.pick(4, 40, 40)
    rounds = _rounds(size)
    milliseconds: dict[str, list[float]] = {name: [] for name in (CACHED, UNCACHED, WITHOUT)}

    def reading(name: str, which: StoragePool, before: Callable[[], None]) -> Way:
        repository = TraceRepository(which)

        def read() -> None:
            for _ in range(reads):
                before()
                started = time.perf_counter()
                assert len(repository.get_trace_by_id(known).spans) == SPANS
                milliseconds[name].append((time.perf_counter() - started) * 1000)

        return Way(name, reads, read, lambda: None)

    timings = Timings(
        [
            reading(CACHED, pool_with_redis, lambda: None),
            reading(UNCACHED, pool_with_redis, lambda: cache.forget_traces([known])),
            reading(WITHOUT, pool, lambda: None),
        ]
    )
    timings.run_round(keep=False)
    for values in milliseconds.values():
        values.clear()
    benchmark.pedantic(timings.run_round, rounds=rounds)
    p50 = {name: statistics.median(values) for name, values in milliseconds.items()}
    benchmark.extra_info.update(machine=machine, p50_ms=p50)
    lines = [f"{name:<34} p50 {value:7.2f} ms   {p50[WITHOUT] / value:5.2f} x" for name, value in p50.items()]
    report.add(f"get_trace_by_id, {SPANS} spans, {reads * rounds} reads each", *lines, machine)
    if size.is_judged:
        assert p50[WITHOUT] / p50[CACHED] >= LEAST_GAIN, lines


def test_writers_beside_redis(
    pool: StoragePool,
    pool_with_redis: StoragePool,
    url: str,
    server: RedisProcess,
    size: Size,
    benchmark: Benchmark,
    report: Report,
    machine: str,
) -> None:
    """The same spans by COPY on a pool without Redis, on one with, and on one whose Redis was paused before."""
    rounds = _rounds(size)
    spans = SpanSource().spans(size.rows)
    paused = RedisProcess()
    with paused, StoragePool.from_url(url, redis_url=paused.url, max_connections=5) as pool_without_answer:

        def empty() -> None:
            with pool.raw_connection() as connection:
                connection.execute(f"TRUNCATE {TABLES}".encode())
                connection.commit()
                connection.autocommit = True
                connection.execute("CHECKPOINT")

        def writing(name: str, which: StoragePool) -> Way:
            return Way(name, size.rows, lambda: _write(which, spans), empty)

        timings = Timings(
            [
                writing("no Redis", pool),
                writing("Redis", pool_with_redis),
                writing("Redis that does not answer", pool_without_answer),
            ]
        )
        _write(pool_without_answer, spans[:10])
        paused.pause()
        _write(pool_without_answer, spans[10:20])
        timings.run_round(keep=False)
        benchmark.pedantic(timings.run_round, rounds=rounds)
    records: list[dict[str, Any]] = timings.summary({"of none": "no Redis"})
    benchmark.extra_info.update(machine=machine, ways=records)
    report.add("TraceWriter by COPY beside Redis", *table(records), machine)
    if size.is_judged:
        assert timings.ratio("Redis that does not answer", "no Redis") >= 0.9


def _rounds(size: Size) -> int:
    """Enough for a median wherever figures are judged."""
    return max(3, size.rounds) if size.is_judged else size.rounds


def _write(pool: StoragePool, spans: list[SpanRow]) -> None:
    config = WriterConfig(method=WriteMethod.COPY, flush_interval_seconds=60)
    with TraceWriter(pool, config) as writer:
        writer.write_spans(list(spans))
        writer.flush()
