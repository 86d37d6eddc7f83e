"""Readers and writers at once: 80 % reads, half and half, 80 % writes, by four threads on a store that is filled.

A read is a list or one whole trace; a write is one trace of 20 spans to committed. Beside it the same by hand in
psycopg: SELECTs of the trace and its spans as tuples, without events, and `CopyWriter` with a summary
that is written once and is wrong after a replay.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from benchmarks.conftest import Report, Size
from benchmarks.data import SPANS_PER_TRACE
from benchmarks.interleaved import Benchmark, p95, quartiles
from benchmarks.latency import ms
from benchmarks.stored import Copy, Template
from observatory_storage.identity import resolve_trace_id
from observatory_storage.models import SpanRow
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.filters import TraceFilters
from observatory_storage.repositories.trace import TraceRepository
from observatory_storage.writers import CopyWriter, TraceWriter, WriterConfig

MIXES: Final = {"80 % reads": 0.8, "50 % reads": 0.5, "20 % reads": 0.2}
THREADS: Final = 4
PROJECT: Final = "observatory_storage"
BY_HAND: Final = "by hand: psycopg and CopyWriter"
_NEWEST: Final = (
    b"SELECT id, name, service_name, start_time, end_time, duration_us, status, span_count, total_tokens, cost_usd, "
    b"user_id, session_id FROM traces WHERE project = %s AND service_name = %s "
    b"ORDER BY start_time DESC NULLS LAST, id DESC LIMIT 51"
)
_TRACE: Final = b"SELECT id, start_time, end_time FROM traces WHERE id = %s"
_SPANS: Final = b"SELECT * FROM trace_spans WHERE trace_id = %s AND start_time BETWEEN %s AND %s ORDER BY start_time"
_SUMMARY: Final = (
    b"INSERT INTO traces (id, service_name, start_time, end_time, span_count) VALUES (%s, %s, %s, %s, %s) "
    b"ON CONFLICT (id) DO UPDATE SET span_count = traces.span_count + EXCLUDED.span_count"
)


class Side(Protocol):
    """One implementation of the three operations."""

    def newest(self) -> None: ...

    def one(self, trace_id: bytes) -> None: ...

    def write(self, spans: list[SpanRow]) -> None: ...


@dataclass
class Found:
    """The seconds of each operation, and operations a second of each round."""

    reads: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


class Ours:
    """Repositories, and one TraceWriter for all threads, which is flushed after each trace."""

    def __init__(self, pool: StoragePool, writer: TraceWriter) -> None:
        self._writer = writer
        self._repository = TraceRepository(pool)

    def newest(self) -> None:
        self._repository.list(TraceFilters(project="default", service_name="support-agent"))

    def one(self, trace_id: bytes) -> None:
        self._repository.get_trace_by_id(trace_id)

    def write(self, spans: list[SpanRow]) -> None:
        self._writer.write_spans(spans)
        self._writer.flush()


class ByHand:
    """psycopg and its pool."""

    def __init__(self, pool: ConnectionPool[psycopg.Connection[Any]]) -> None:
        self._pool = pool
        self._writer = CopyWriter()

    def newest(self) -> None:
        with self._pool.connection() as connection:
            connection.execute(_NEWEST, ["default", "support-agent"]).fetchall()

    def one(self, trace_id: bytes) -> None:
        with self._pool.connection() as connection:
            found = connection.execute(_TRACE, [resolve_trace_id(trace_id)]).fetchone()
            connection.execute(_SPANS, found).fetchall()

    def write(self, spans: list[SpanRow]) -> None:
        bare = [{name: value for name, value in span.items() if name not in ("resource", "events")} for span in spans]
        first, last = spans[0], spans[-1]
        with self._pool.connection() as connection:
            self._writer.write_spans(connection, bare)
            key = resolve_trace_id(first["trace_id"])
            connection.execute(
                _SUMMARY, [key, first["service_name"], first["start_time"], last["end_time"], len(spans)]
            )


@pytest.fixture
def wide_pool(url: str) -> Iterator[StoragePool]:
    with StoragePool.from_url(url, min_connections=THREADS, max_connections=3 * THREADS) as pool:
        yield pool


def test_mixed_workload(
    url: str, wide_pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    template = Template(wide_pool, size.pick(400, 2_000, 10_000))
    copies = template.load(wide_pool, size.pick(400, 10_000, 50_000))
    found: dict[tuple[str, str], Found] = {}
    news = itertools.count()
    with ExitStack() as stack:
        bare = stack.enter_context(
            ConnectionPool(url, min_size=THREADS, max_size=3 * THREADS, check=ConnectionPool.check_connection)
        )
        writer = stack.enter_context(TraceWriter(wide_pool, WriterConfig(flush_interval_seconds=60)))
        sides: dict[str, Side] = {PROJECT: Ours(wide_pool, writer), BY_HAND: ByHand(bare)}

        dice = random.Random(7)

        def run_round(*, keep: bool = True) -> None:
            for mix, share in dice.sample([*MIXES.items()], len(MIXES)):
                for name, side in dice.sample([*sides.items()], len(sides)):
                    fresh = _traces(template, size.pick(4, 40, 200), next(news))
                    kept = found.setdefault((name, mix), Found()) if keep else Found()
                    _run(side, share, template, [*copies], fresh, kept)

        run_round(keep=False)
        benchmark.pedantic(run_round, rounds=size.pick(1, 1, 5))
    rates = {f"{mix}, {name}": one.rates for (name, mix), one in found.items()}
    benchmark.extra_info.update(machine=machine, operations_per_second=rates)
    rows = []
    medians = []
    for mix in MIXES:
        ours, theirs = found[PROJECT, mix], found[BY_HAND, mix]
        ratios = [one / other for one, other in zip(ours.rates, theirs.rates, strict=True)]
        lower, median, upper = quartiles(ratios)
        medians.append(median)
        for name, one in ((PROJECT, ours), (BY_HAND, theirs)):
            rows.append(
                [
                    f"{mix}, {name}",
                    f"{median:.2f} ({lower:.2f}–{upper:.2f})" if name == PROJECT else "1",
                    f"{quartiles(one.rates)[1]:,.0f}",
                    ms(quartiles(one.reads)[1]),
                    ms(p95(one.reads)),
                    ms(quartiles(one.writes)[1]),
                    ms(p95(one.writes)),
                ]
            )
    report.table(
        f"{THREADS} threads in one process, {len(copies) * len(template.rows):,} spans stored; ms",
        ["", "× by hand", "operations/s", "read p50", "p95", "write p50", "p95"],
        rows,
        "By hand makes no objects, reads no events, keeps no exact summaries, and counts a replay twice.",
    )
    report.slower(
        f"Mixed with writes, reads as objects and exact summaries reach {min(medians):.2f} of the rate of tuples and "
        "counters by hand, at worst."
    )


def _run(
    side: Side, share: float, template: Template, copies: list[Copy], fresh: list[list[SpanRow]], found: Found
) -> None:
    """Let the threads work off as many writes as there are, and reads in proportion."""
    writes = min(len(fresh), round(len(fresh) * (1 - share) / 0.5))
    reads = round(writes * share / (1 - share))
    steps: list[tuple[str, Any]] = [("write", spans) for spans in fresh[:writes]]
    dice = random.Random(6)
    for number in range(reads):
        steps.append(("list", None) if number % 2 else ("trace", template.trace_id(copies, dice)))
    dice.shuffle(steps)
    lock = threading.Lock()
    queue = iter(steps)
    before = len(found.reads) + len(found.writes)

    def work() -> None:
        while True:
            with lock:
                step = next(queue, None)
            if step is None:
                return
            kind, given = step
            started = time.perf_counter()
            if kind == "write":
                side.write(given)
            elif kind == "list":
                side.newest()
            else:
                side.one(given)
            seconds = time.perf_counter() - started
            (found.writes if kind == "write" else found.reads).append(seconds)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found.reads) + len(found.writes) - before == len(steps)
    found.rates.append(len(steps) / (time.perf_counter() - started))


def _traces(template: Template, count: int, place: int) -> list[list[SpanRow]]:
    """So many traces of 20 spans that are stored nowhere."""
    by_trace: dict[Any, list[SpanRow]] = {}
    # Whole copies, which hold whole traces.
    copies = -(-count * SPANS_PER_TRACE // len(template.rows))
    for row in template.fresh(copies * len(template.rows), 500 + place):
        by_trace.setdefault(row["trace_id"], []).append(row)
    return [*by_trace.values()][:count]
