"""TraceWriter over sizes of batches and of rows, and over what callers hand it, each beside the limit of the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from benchmarks import ways
from benchmarks.conftest import Report, Size
from benchmarks.data import SpanSource
from benchmarks.interleaved import Benchmark, Timings, Way, quartiles
from benchmarks.spans import TRACE_WRITER_COPY, TRACE_WRITER_INSERT, SpanWays
from observatory_storage.llm import LlmSpan
from observatory_storage.models import SpanRow, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig

BATCHES: Final = (100, 1_000, 5_000, 20_000)
_NO_CONTENT: Final = ("input", "output", "attributes", "session_id", "status_message", "environment")


@pytest.fixture(scope="module")
def made(pool: StoragePool, size: Size) -> Iterator[SpanWays]:
    made = SpanWays(pool, size.pick(400, 2_000, 20_000))
    yield made
    made.close()


def test_sizes_of_batches(made: SpanWays, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    batches = [rows for rows in BATCHES if rows <= made.rows]
    timings = Timings(
        [
            way
            for rows in batches
            for way in (
                made.way(f"limit, {rows}", _blobs(made, rows)),
                made.way(f"COPY, {rows}", _write(made, rows, WriteMethod.COPY)),
                made.way(f"INSERT, {rows}", _write(made, rows, WriteMethod.INSERT)),
            )
        ]
    )
    timings.run_round(keep=False)
    benchmark.pedantic(timings.run_round, rounds=size.pick(1, 1, 5))
    benchmark.extra_info.update(machine=machine)
    largest = f"limit, {batches[-1]}"
    rows_of_table = [
        [
            f"{rows:,}",
            _spread(timings, f"COPY, {rows}", f"limit, {rows}"),
            _spread(timings, f"INSERT, {rows}", f"limit, {rows}"),
            _spread(timings, f"limit, {rows}", largest),
        ]
        for rows in batches
    ]
    report.table(
        "Rows a transaction: parts of the limit of the same size",
        ["rows", "TraceWriter, COPY", "TraceWriter, INSERT", f"limit, of the limit at {batches[-1]:,}"],
        rows_of_table,
    )
    report.lines(
        "batch_sizes",
        "Part of the limit by rows a transaction",
        [f"{rows:,}" for rows in batches],
        {
            "COPY": [round(timings.ratio(f"COPY, {rows}", f"limit, {rows}"), 3) for rows in batches],
            "INSERT": [round(timings.ratio(f"INSERT, {rows}", f"limit, {rows}"), 3) for rows in batches],
        },
        x_title="rows a transaction",
    )
    smallest = batches[0]
    best = max(timings.ratio(f"{way}, {smallest}", f"limit, {smallest}") for way in ("COPY", "INSERT"))
    report.slower(
        f"In batches of {smallest} `TraceWriter` reaches {best:.2f} of the limit "
        "of the same size: savepoint, summaries and their statements cost a batch the same, however small it is."
    )


def test_sizes_of_rows(pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    count = size.pick(200, 500, 10_000)
    kinds: dict[str, list[SpanRow]] = {
        "without content": [_without_content(row) for row in SpanSource(seed=4).spans(count)],
        "latest message": SpanSource(seed=4).spans(count),
        "whole conversation": SpanSource(seed=4, whole=True).spans(max(200, count // 10)),
        "with events": SpanSource(seed=4, events=True).spans(count),
    }
    names = (ways.COPY_WRITER, TRACE_WRITER_COPY, TRACE_WRITER_INSERT)
    rows = []

    def run() -> None:
        for name, spans in kinds.items():
            made = SpanWays(pool, len(spans), spans=spans)
            timings = Timings([made.limit(), *(way for way in made.own() if way.name in names)])
            timings.run_round(keep=False)
            for _ in range(size.pick(1, 1, 5)):
                timings.run_round()
            parts = [_spread(timings, way, ways.LIMIT) for way in names]
            limit = quartiles(timings.rates(ways.LIMIT))[1]
            rows.append([f"{name}, {made.row_bytes:,.0f} bytes", *parts, f"{limit:,.0f}"])
            made.empty()

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(machine=machine)
    report.table(
        "Kinds of rows: parts of the limit on the same spans (events are not part of the limit)",
        ["rows", *names, "limit, rows/s"],
        rows,
    )


def test_what_callers_hand_over(
    made: SpanWays, pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str
) -> None:
    rows = size.pick(100, 1_000, 10_000)
    spans = made.spans[:rows]
    instances: list[TraceSpan] = []
    llm_spans = [LlmSpan.from_row(row) for row in made.spans[:rows]]

    def one_by_one(writer: TraceWriter) -> None:
        for span in spans:
            writer.write_span(span)

    def make_instances() -> None:
        made.empty()
        instances[:] = [
            TraceSpan(**{name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()})
            for row in made.complete[:rows]
        ]

    timings = Timings(
        [
            Way(
                "write_spans(mappings)", rows, lambda: _give(pool, lambda writer: writer.write_spans(spans)), made.empty
            ),
            Way(
                "write_span(mapping), one by one",
                rows,
                lambda: _give(pool, one_by_one),
                made.empty,
            ),
            Way(
                "write_spans(ORM instances)",
                rows,
                lambda: _give(pool, lambda writer: writer.write_spans(instances)),
                make_instances,
            ),
            Way(
                "write_span_from_llm, one by one",
                rows,
                lambda: _give(pool, lambda writer: [writer.write_span_from_llm(span) for span in llm_spans]),
                made.empty,
            ),
        ]
    )
    timings.run_round(keep=False)
    benchmark.pedantic(timings.run_round, rounds=size.pick(1, 1, 5))
    records = timings.summary({"× mappings": "write_spans(mappings)"})
    benchmark.extra_info.update(machine=machine, ways=records)
    report.ways("What callers hand over (made beforehand)", records)


def _give(pool: StoragePool, put: Callable[[TraceWriter], Any]) -> None:
    with TraceWriter(pool, WriterConfig(flush_interval_seconds=60)) as writer:
        put(writer)
        writer.flush()
        assert writer.write_stats().rows_rejected == 0


def _blobs(made: SpanWays, rows: int) -> Callable[[], None]:
    blobs = made.blobs_of(rows)
    return lambda: made.send_blobs(blobs)


def _write(made: SpanWays, rows: int, method: WriteMethod) -> Callable[[], None]:
    def run() -> None:
        config = WriterConfig(
            method=method, batch_size=rows, max_buffered_rows=max(20_000, rows), flush_interval_seconds=60
        )
        with TraceWriter(made.pool, config) as writer:
            writer.write_spans(made.spans)
            writer.flush()

    return run


def _without_content(row: SpanRow) -> SpanRow:
    kept: Any = {name: value for name, value in row.items() if name not in _NO_CONTENT}
    kept["attributes"] = {}
    short: SpanRow = kept
    return short


def _spread(timings: Timings, name: str, base: str) -> str:
    lower, median, upper = quartiles(timings.ratios(name, base))
    return f"{median:.2f} ({lower:.2f}–{upper:.2f})"
