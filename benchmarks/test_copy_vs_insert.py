"""COPY against INSERT, side by side in one run, and both against what the server can take at most.

5,000 rows a transaction into `trace_spans` with its partition of the day, its indexes and constraints; tables
emptied and a CHECKPOINT before each run; rows of about 1.6 kB, 20 spans a trace, made beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks import spans, ways
from benchmarks.conftest import Report, Size
from benchmarks.figures import ratio_bars
from benchmarks.interleaved import Benchmark, Timings, Way, quartiles
from benchmarks.near_limit import NearLimit, copy_ways
from benchmarks.spans import SpanWays
from observatory_storage.pool import StoragePool


@pytest.fixture(scope="module")
def span_ways(pool: StoragePool, size: Size) -> Iterator[SpanWays]:
    made = SpanWays(pool, size.rows, outsiders=True)
    yield made
    made.close()


def all_ways(made: SpanWays) -> list[Way]:
    return [made.limit(), *made.own(), *made.by_hand(), *made.by_sqlalchemy()]


def test_copy_vs_insert(span_ways: SpanWays, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    timings = Timings([_checked(span_ways, way) for way in all_ways(span_ways)])
    timings.run_round(keep=False)
    timings = Timings(all_ways(span_ways))
    # What pytest-benchmark times is a round of all ways; the figures of each are in its extra_info.
    benchmark.pedantic(timings.run_round, rounds=size.rounds)
    records = timings.summary({"of the limit": ways.LIMIT, "× values()": ways.VALUES})
    benchmark.extra_info.update(machine=machine, row_bytes=round(span_ways.row_bytes), ways=records)
    title = f"Spans of {span_ways.row_bytes:,.0f} bytes, 20 a trace, 5,000 a transaction"
    note = (
        f"Fewer a transaction: `values()` has {ways.VALUES_ROWS:,}, as many as its statement holds, ORM add_all all "
        "of a round. psql is started anew each time, which is in its figure."
    )
    if span_ways.psql is None:
        note += " This machine has no psql: `\\copy` is not measured."
    report.ways(title, records, note)
    report.bars("copy_vs_insert", "Spans: part of the server's limit", ratio_bars(records, "of the limit"))
    for key, ours, other in (
        ("replay", spans.REPLAY, spans.TRACE_WRITER_COPY),
        ("insert_against_values", spans.TRACE_WRITER_INSERT, ways.VALUES),
        ("insert_against_executemany", spans.TRACE_WRITER_INSERT, ways.EXECUTEMANY_CONFLICT),
    ):
        lower, median, upper = quartiles(timings.ratios(ours, other))
        report.measure(key, median, spread=(lower, upper))
    report.data["claim"] = {
        name: [round(timings.ratio(ours, name), 2) for ours in (ways.COPY_WRITER, spans.TRACE_WRITER_COPY)]
        for name in (
            ways.ROW_BY_ROW,
            ways.VALUES,
            ways.ADD_ALL,
            ways.EXECUTEMANY,
            ways.EXECUTEMANY_CONFLICT,
            spans.TRACE_WRITER_INSERT,
        )
    } | {"rows_per_second": {record["way"]: record["rows_per_second"] for record in records}}
    if (part := timings.ratio(spans.TRACE_WRITER_COPY, ways.WRITE_ROW)) < 1:
        report.slower(
            f"`TraceWriter` by COPY reaches {part:.2f} of psycopg's `write_row` from ready tuples, which checks, "
            "repairs, identifies and sums up nothing and refuses a replay."
        )


def test_near_the_limit(pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    writer = spans.TRACE_WRITER_COPY
    with closing(SpanWays(pool, size.many_rows, blobs_only=True)) as made:
        judged = copy_ways(made, writer)
        near = NearLimit(
            "Spans: by COPY", made.limit(), judged, rounds=size.many_rounds, benchmark=benchmark, report=report
        )
    benchmark.extra_info.update(machine=machine, ways=near.records)
    near.measure("copy_writer_spans", ways.COPY_WRITER, near.calls)
    near.measure("trace_writer_copy", writer, near.beside)


def _checked(made: SpanWays, way: Way) -> Way:
    """The same way, which makes sure of what it stored: the round that warms up is not timed."""

    def run() -> None:
        way.run()
        assert made.stored() == way.rows, way.name

    return Way(way.name, way.rows, run, way.prepare)
