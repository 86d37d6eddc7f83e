"""COPY against INSERT, side by side in one run, and both against what the server can take at most.

5,000 rows a transaction into `trace_spans` with its partition of the day, its indexes and constraints; tables
emptied and a CHECKPOINT before each run; rows of about 1.6 kB, 20 spans a trace, made beforehand.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from benchmarks import spans
from benchmarks.conftest import Report, Size
from benchmarks.interleaved import Benchmark, Timings, table
from benchmarks.spans import SpanWays
from observatory_storage.pool import StoragePool

# At least so many times as fast as the other way.
TARGETS = (
    (spans.COPY_WRITER, spans.LIMIT, 0.85),
    (spans.TRACE_WRITER_COPY, spans.LIMIT, 0.70),
    (spans.TRACE_WRITER_INSERT, spans.VALUES, 10.0),
)


@pytest.fixture
def ways(pool: StoragePool, size: Size) -> Iterator[SpanWays]:
    made = SpanWays(pool, size.rows)
    # These rows live as long as the benchmark does: let no way pay for the collector's walks over them.
    gc.collect()
    gc.freeze()
    yield made
    gc.unfreeze()


def test_every_way_stores_every_row(ways: SpanWays) -> None:
    for way in ways.ways():
        way.prepare()
        way.run()
        assert ways.stored() == way.rows, way.name


def test_copy_vs_insert(ways: SpanWays, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    timings = Timings(ways.ways())
    timings.run_round(keep=False)
    # What pytest-benchmark times is a round of all ways; the figures of each are in its extra_info.
    benchmark.pedantic(timings.run_round, rounds=size.rounds)
    records = timings.summary({"of limit": spans.LIMIT, "x values()": spans.VALUES})
    benchmark.extra_info.update(machine=machine, row_bytes=round(ways.row_bytes), ways=records)
    title = f"copy_vs_insert: {ways.row_bytes:,.0f} bytes a row, {size.rounds} interleaved rounds, medians"
    report.add(title, *table(records), machine)
    if size.is_judged:
        missed = [
            f"{name}: {timings.ratio(name, base):.2f} x {base}, not {least}"
            for name, base, least in TARGETS
            if timings.ratio(name, base) < least
        ]
        assert not missed, "\n".join([*missed, *table(records)])
