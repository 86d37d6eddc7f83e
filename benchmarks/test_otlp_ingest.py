"""OTLP requests from bytes to committed in one process, against the server's limit on the same spans."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Final

from benchmarks import spans as span_ways
from benchmarks import ways
from benchmarks.conftest import Report, Size
from benchmarks.data import SpanSource
from benchmarks.distributions import tau_runs
from benchmarks.figures import ratio_bars
from benchmarks.interleaved import Benchmark, Timings
from benchmarks.near_limit import NearLimit
from benchmarks.otlp_bytes import requests
from benchmarks.spans import SpanWays
from observatory_storage.models import SpanRow
from observatory_storage.otlp import decode_traces
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig

TO_COMMITTED: Final = "OTLP bytes to committed"
DECODE: Final = "decode_traces alone"


def test_otlp_ingest(pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    payloads = [*requests(SpanSource(seed=8).spans(size.rows))]
    timings, made = _timings(pool, payloads, size.rows)
    timings.run_round(keep=False)
    benchmark.pedantic(timings.run_round, rounds=size.rounds)
    records = timings.summary({"of the limit": ways.LIMIT})
    benchmark.extra_info.update(machine=machine, ways=records)
    total = sum(map(len, payloads))
    report.ways(
        f"Requests of 512 spans, {total / size.rows:,.0f} bytes of protobuf a span ({made.row_bytes:,.0f} stored)",
        records,
    )
    report.bars(
        "otlp_ingest", "OTLP: part of the server's limit on the same spans", ratio_bars(records, "of the limit")
    )
    made.close()


def test_near_the_limit(pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    payloads = [*requests(SpanSource(seed=8).spans(size.many_rows))]
    with closing(SpanWays(pool, size.many_rows, spans=decode_all(payloads), blobs_only=True)) as made:
        judged = [made.way(TO_COMMITTED, lambda: ingest(pool, payloads))]
        title = "Requests of 512 spans"
        near = NearLimit(title, made.limit(), judged, rounds=size.many_rounds, benchmark=benchmark, report=report)
    benchmark.extra_info.update(machine=machine, ways=near.records)
    near.measure("otlp", TO_COMMITTED)


def test_whole_conversations(pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    """Each call with the whole conversation so far: recorded agent runs, where they are, else made ones."""
    recorded = tau_runs() if size.rows >= 30_000 else None
    if recorded is not None:
        payloads, source = [recorded], "40 recorded agent runs"
    else:
        payloads = [*requests(SpanSource(seed=9, whole=True).spans(size.pick(100, 400, 1_000)))]
        source = "Made agent runs"
    rows = sum(len(decode_traces(payload).spans) for payload in payloads)
    timings, made = _timings(pool, payloads, rows)
    timings.run_round(keep=False)
    benchmark.pedantic(timings.run_round, rounds=size.rounds)
    records = timings.summary({"of the limit": ways.LIMIT})
    benchmark.extra_info.update(machine=machine, ways=records)
    report.ways(
        f"{source}, whole conversations: {sum(map(len, payloads)) / rows:,.0f} bytes of protobuf a span, "
        f"{made.row_bytes:,.0f} in the COPY stream",
        records,
    )
    made.close()


def _timings(pool: StoragePool, payloads: list[bytes], rows: int) -> tuple[Timings, SpanWays]:
    decoded = decode_all(payloads)
    assert len(decoded) == rows
    made = SpanWays(pool, rows, spans=decoded, blobs_only=True)
    own = [way for way in made.own() if way.name in (ways.COPY_WRITER, span_ways.TRACE_WRITER_COPY)]
    return Timings(
        [
            made.limit(),
            *own,
            made.way(TO_COMMITTED, lambda: ingest(pool, payloads)),
            made.way(DECODE, lambda: _decode(payloads), lambda: None),
        ]
    ), made


def ingest(pool: StoragePool, payloads: Iterable[bytes]) -> None:
    """From bytes to committed, as a receiver does it."""
    config = WriterConfig(method=WriteMethod.COPY, flush_interval_seconds=60)
    with TraceWriter(pool, config) as writer:
        for payload in payloads:
            writer.write_spans(decode_traces(payload).spans)
        writer.flush()
        assert writer.write_stats().rows_rejected == 0


def decode_all(payloads: Iterable[bytes]) -> list[SpanRow]:
    return [span for payload in payloads for span in decode_traces(payload).spans]


def _decode(payloads: Iterable[bytes]) -> None:
    for payload in payloads:
        decode_traces(payload)
