"""Log records from rows to committed: how near the server's limit, and what a text index would cost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from benchmarks import log_ways
from benchmarks.conftest import Report, Size
from benchmarks.interleaved import Benchmark, Timings, table
from benchmarks.log_ways import LogWays
from benchmarks.spans import LIMIT
from observatory_storage.pool import StoragePool

# What the parts have to reach, of the server's limit on the same table with the same indexes.
TARGETS: Final = ((log_ways.LOG_WRITER_COPY, LIMIT, 0.75),)


@pytest.fixture
def ways(pool: StoragePool, size: Size) -> Iterator[LogWays]:
    ways = LogWays(pool, size.rows)
    yield ways
    ways.empty()


def test_log_ingest(ways: LogWays, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    timings = Timings(ways.ways())
    timings.run_round(keep=False)
    benchmark.pedantic(timings.run_round, rounds=size.rounds)
    records = timings.summary({"of limit": LIMIT})
    benchmark.extra_info.update(machine=machine, row_bytes=round(ways.row_bytes), ways=records)
    title = f"log_ingest: {ways.row_bytes:,.0f} bytes a row, {size.rounds} interleaved rounds, medians"
    report.add(title, *table(records), machine)
    if size.is_judged:
        missed = [
            f"{name}: {timings.ratio(name, base):.2f} x {base}, not {least}"
            for name, base, least in TARGETS
            if timings.ratio(name, base) < least
        ]
        assert not missed, "\n".join([*missed, *table(records)])
