"""One to sixteen writers at once, in threads and in processes, beside as many sessions that send encoded blobs.

Each writer has rows of its own, of its own traces, in the same partition; all together write the same number of rows
whatever their number. Processes are started and have made their rows before anything is timed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

import pytest

from benchmarks.conftest import Report, Size
from benchmarks.data import SpanSource
from benchmarks.interleaved import Benchmark, Timings, TimingsBetween, Way, freeze, quartiles
from benchmarks.machine import busy_seconds
from benchmarks.spans import TABLES, SpanWays
from benchmarks.ways import checkpoint
from observatory_storage.models import SpanRow
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig

BATCH: Final = 1_500
Line: TypeAlias = "Connection[Any, Any]"


class Writer:
    """One writer's rows, and both ways of writing the first so many of them."""

    def __init__(self, pool: StoragePool, place: int, rows: int) -> None:
        self._pool = pool
        self._spans: list[SpanRow] = SpanSource(seed=100 + place).spans(rows)
        # Encoded in a transaction that is rolled back; what was written to make partitions is gone as well.
        self._ways = SpanWays(pool, rows, spans=self._spans, blobs_only=True)
        self._blobs = self._ways.blobs_of(BATCH)

    def write(self, way: str, rows: int) -> None:
        if way == "blobs":
            self._ways.send_blobs(self._blobs[: -(-rows // BATCH)])
            return
        config = WriterConfig(method=WriteMethod.COPY, batch_size=BATCH, flush_interval_seconds=60)
        with TraceWriter(self._pool, config) as writer:
            writer.write_spans(self._spans[:rows])
            writer.flush()
            assert writer.write_stats().spans_written == rows


def serve(url: str, place: int, rows: int, line: Line) -> None:
    """A process: make the rows when told, say so, then write as told, until there is nothing to write."""
    with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
        line.recv()
        writer = Writer(pool, place, rows)
        freeze()
        line.send("ready")
        while (told := line.recv()) is not None:
            writer.write(*told)
            line.send("done")


class Processes:
    """Writers in processes of their own."""

    def __init__(self, url: str, shares: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._lines: list[Line] = []
        self._processes = []
        for place, rows in enumerate(shares):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(url, place, rows, theirs))
            process.start()
            self._lines.append(ours)
            self._processes.append(process)
        for line in self._lines:
            # One after the other: rows are made in tables that all of them write to.
            line.send("make")
            assert line.recv() == "ready"

    def write(self, way: str, writers: int, rows: int) -> None:
        for line in self._lines[:writers]:
            line.send((way, rows))
        for line in self._lines[:writers]:
            assert line.recv() == "done"

    def close(self) -> None:
        for line in self._lines:
            line.send(None)
        for process in self._processes:
            process.join()


class Meter:
    """How many CPUs are busy on average while something runs: the whole machine's, with the server's sessions."""

    def __init__(self) -> None:
        self._busy = 0.0
        self._seconds = 0.0

    def around(self, run: Callable[[], None]) -> Callable[[], None]:
        """Return what runs and is counted."""

        def counted() -> None:
            started, before = time.perf_counter(), busy_seconds()
            run()
            after = busy_seconds()
            if before is not None and after is not None:
                self._busy += after - before
                self._seconds += time.perf_counter() - started

        return counted

    @property
    def cpus(self) -> float | None:
        return self._busy / self._seconds if self._seconds else None


class Threads:
    """Writers in threads of this process, each with a TraceWriter of its own on one pool."""

    def __init__(self, pool: StoragePool, shares: list[int]) -> None:
        self._writers = [Writer(pool, place, rows) for place, rows in enumerate(shares)]

    def write(self, way: str, writers: int, rows: int) -> None:
        threads = [threading.Thread(target=writer.write, args=(way, rows)) for writer in self._writers[:writers]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture
def total(size: Size) -> int:
    return size.pick(200, 2 * BATCH, 16 * BATCH)


@pytest.fixture
def counts(size: Size) -> tuple[int, ...]:
    return (1, 2) if size.name in ("smoke", "quick") else (1, 2, 4, 8, 16)


@pytest.fixture
def shares(total: int, counts: tuple[int, ...]) -> list[int]:
    """How many rows each writer has: as many as it writes when it is one of the fewest."""
    return [total // next(count for count in counts if count > place) for place in range(counts[-1])]


@pytest.fixture
def wide_pool(url: str) -> Iterator[StoragePool]:
    with StoragePool.from_url(url, min_connections=1, max_connections=34) as pool:
        yield pool


def test_concurrent_writes(
    url: str,
    wide_pool: StoragePool,
    total: int,
    counts: tuple[int, ...],
    shares: list[int],
    size: Size,
    benchmark: Benchmark,
    report: Report,
    machine: str,
) -> None:
    def empty() -> None:
        _empty(wide_pool)

    meters: dict[str, Meter] = {}
    with ExitStack() as stack:
        processes = Processes(url, shares)
        stack.callback(processes.close)
        threads = Threads(wide_pool, shares)

        def way(kind: str, run: Callable[[str, int, int], None], how: str, count: int) -> Way:
            name = f"{kind}, {how}, {count}"
            metered = meters.setdefault(name, Meter()).around(lambda: run(how, count, total // count))
            return Way(name, total, metered, empty)

        timings = Timings(
            [
                way(kind, run, how, count)
                for count in counts
                for kind, run in (("processes", processes.write), ("threads", threads.write))
                for how in ("blobs", "TraceWriter")
            ]
        )
        timings.run_round(keep=False)
        benchmark.pedantic(timings.run_round, rounds=size.pick(1, 1, 5))
        empty()
    benchmark.extra_info.update(machine=machine, ways=timings.summary({"× one": "processes, TraceWriter, 1"}))
    kinds = ("processes", "threads")
    report.table(
        f"{total:,} spans by so many writers, {BATCH:,} a transaction: × one TraceWriter in a process",
        ["writers", *(f"{kind}, {how}" for kind in kinds for how in ("TraceWriter", "blobs"))],
        [
            [
                str(count),
                *(
                    _spread(timings.ratios(f"{kind}, {how}, {count}", "processes, TraceWriter, 1"))
                    for kind in kinds
                    for how in ("TraceWriter", "blobs")
                ),
            ]
            for count in counts
        ],
        f"One TraceWriter in a process: {quartiles(timings.rates('processes, TraceWriter, 1'))[1]:,.0f} spans/s."
        f" {_room(*(meters[f'processes, TraceWriter, {count}'] for count in (1, 2)))}",
    )
    report.lines(
        "concurrent_writes",
        "Spans a second by the number of writers, against one",
        [str(count) for count in counts],
        {
            f"{kind}, {how}": [
                round(timings.ratio(f"{kind}, {how}, {count}", "processes, TraceWriter, 1"), 3) for count in counts
            ]
            for kind in kinds
            for how in ("TraceWriter", "blobs")
        },
        x_title="writers",
    )


def test_two_processes(
    url: str, wide_pool: StoragePool, total: int, size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    """Two against one once more: a round of all ways takes so long that the machine's speed changes in it.

    On all cores: what keeps client and server apart would have both sessions share one.
    """

    def empty() -> None:
        _empty(wide_pool)

    meters: dict[str, Meter] = {}
    with ExitStack() as stack:
        processes = Processes(url, [total, total // 2])
        stack.callback(processes.close)

        def way(how: str, count: int) -> Way:
            name = f"{how}, {count}"
            metered = meters.setdefault(name, Meter()).around(lambda: processes.write(how, count, total // count))
            return Way(name, total, metered, empty)

        writers, blobs = (TimingsBetween(way(how, 1), [way(how, 2)]) for how in ("TraceWriter", "blobs"))

        def run_round() -> None:
            writers.run_round()
            blobs.run_round()

        for timings in (writers, blobs):
            timings.run_round(keep=False)
        rounds = size.many_rounds
        benchmark.pedantic(run_round, rounds=rounds)
        empty()
    for how, timings in (("TraceWriter", writers), ("blobs", blobs)):
        records = timings.summary({"× one": f"{how}, 1"})
        benchmark.extra_info.update({"machine": machine, how: records})
        room = _room(meters["TraceWriter, 1"], meters["TraceWriter, 2"]) if how == "TraceWriter" else ""
        report.ways(f"Two processes of {how}, each run between two of one, {rounds} rounds", records, room)
    lower, median, upper = quartiles(writers.ratios("TraceWriter, 2", "TraceWriter, 1"))
    limit = blobs.ratio("blobs, 2", "blobs, 1")
    note = f"two sessions of encoded blobs against one: {limit:.2f} ×"
    if (cpus := meters["TraceWriter, 1"].cpus) is not None:
        busy = f"one process and its session keep {cpus:.2f} of {os.cpu_count()} CPUs busy"
        note += f"; {busy}, which leaves room for {(os.cpu_count() or 1) / cpus:.2f} ×"
    report.measure("two_processes", median, note, spread=(lower, upper))


def _empty(pool: StoragePool) -> None:
    with pool.raw_connection() as connection:
        connection.execute(f"TRUNCATE {TABLES}".encode())
        connection.commit()
        checkpoint(connection)


def _room(one: Meter, two: Meter) -> str:
    """Say what one writer leaves of the machine, which bounds what a second can add."""
    cpus = os.cpu_count()
    if one.cpus is None or two.cpus is None or cpus is None:
        return ""
    return (
        f"One writer and its session keep {one.cpus:.2f} of {cpus} CPUs busy, two {two.cpus:.2f}: at the same cost of a"
        f" span all of them could store {cpus / one.cpus:.2f} times as many."
    )


def _spread(ratios: list[float]) -> str:
    lower, median, upper = quartiles(ratios)
    return f"{median:.2f} ({lower:.2f}–{upper:.2f})"
