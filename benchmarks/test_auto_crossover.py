"""From how many spans a batch on COPY is faster than INSERT: what `WriteMethod.AUTO` goes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks.conftest import Report, Size
from benchmarks.data import SPANS_PER_TRACE, SpanSource
from benchmarks.interleaved import Benchmark, Timings, Way, quartiles
from benchmarks.spans import SpanWays
from observatory_storage.models import SpanRow
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from observatory_storage.writers.config import AUTO_COPY_ROWS

SIZES: Final = (1, 10, 30, 60, 100, 200, 300, 1_000)
REPLAY: Final = ", replay"


def test_auto_crossover(pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    tables = SpanWays(pool, 1_000)
    source = SpanSource(seed=2)
    sizes = {"smoke": SIZES[-1:], "quick": SIZES[::2]}.get(size.name, SIZES)
    spans = source.spans(max(SIZES) * 2)
    timings = Timings(
        [
            way
            for rows in sizes
            for batches in [max(2, min(size.pick(2, 4, 200), len(spans) // rows))]
            for method in (WriteMethod.INSERT, WriteMethod.COPY)
            for way in _ways(tables, pool, method, spans, rows, batches)
        ]
    )
    timings.run_round(keep=False)
    benchmark.pedantic(timings.run_round, rounds=size.pick(1, 1, 7))
    gains = {rows: timings.ratio(f"copy {rows}", f"insert {rows}") for rows in sizes}
    again = {rows: timings.ratio(f"copy {rows}, replay", f"insert {rows}, replay") for rows in sizes}
    benchmark.extra_info.update(
        machine=machine, auto_copy_rows=AUTO_COPY_ROWS, copy_against_insert=gains, copy_against_insert_replay=again
    )
    lines = [[f"{rows:,}", _spread(timings, rows), _spread(timings, rows, REPLAY)] for rows in sizes]
    report.table(
        f"Batches by COPY against the same by INSERT; AUTO takes COPY from {AUTO_COPY_ROWS} spans on",
        ["spans a batch", "COPY × INSERT", "replayed"],
        lines,
    )
    if size.name in ("default", "full"):
        assert all(gain > 1 for rows, gain in gains.items() if rows >= AUTO_COPY_ROWS * 2), lines
        # What AUTO forgoes below.
        assert all(gain < 1.35 for rows, gain in gains.items() if rows < AUTO_COPY_ROWS), lines


def _ways(
    tables: SpanWays, pool: StoragePool, method: WriteMethod, spans: list[SpanRow], rows: int, batches: int
) -> list[Way]:
    write = _flushes(pool, method, spans, rows, batches)

    def fill() -> None:
        tables.empty()
        write()

    name = f"{method} {rows}"
    return [
        Way(name, batches * rows, write, tables.empty),
        Way(f"{name}{REPLAY}", batches * rows, write, fill),
    ]


def _spread(timings: Timings, rows: int, what: str = "") -> str:
    lower, median, upper = quartiles(timings.ratios(f"copy {rows}{what}", f"insert {rows}{what}"))
    return f"{median:.2f} ({lower:.2f}–{upper:.2f})"


def _flushes(
    pool: StoragePool, method: WriteMethod, spans: list[SpanRow], rows: int, batches: int
) -> Callable[[], None]:
    # In the order in which traces end: a small batch holds spans of one trace or two.
    assert rows <= SPANS_PER_TRACE or rows * batches <= len(spans)

    def run() -> None:
        with TraceWriter(pool, WriterConfig(method=method, flush_interval_seconds=60)) as writer:
            for first in range(0, rows * batches, rows):
                writer.write_spans(spans[first : first + rows])
                writer.flush()

    return run
