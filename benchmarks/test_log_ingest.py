"""Log records from rows to committed: how near the server's limit, and what a text index would cost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks import ways
from benchmarks.conftest import Report, Size
from benchmarks.figures import ratio_bars
from benchmarks.interleaved import Benchmark, Timings, quartiles
from benchmarks.log_ways import LOG_WRITER_COPY, REPLAY, LogWays
from benchmarks.near_limit import NearLimit, copy_ways
from observatory_storage.pool import StoragePool


@pytest.fixture(scope="module")
def log_ways(pool: StoragePool, size: Size) -> Iterator[LogWays]:
    made = LogWays(pool, size.rows, outsiders=True)
    yield made
    made.close()


def test_log_ingest(log_ways: LogWays, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    by_sqlalchemy = [way for way in log_ways.by_sqlalchemy() if way.name in (ways.EXECUTEMANY, ways.ADD_ALL)]
    timings = Timings([log_ways.limit(), *log_ways.own(), *log_ways.by_hand(), *by_sqlalchemy])
    timings.run_round(keep=False)
    benchmark.pedantic(timings.run_round, rounds=size.rounds)
    records = timings.summary({"of the limit": ways.LIMIT})
    benchmark.extra_info.update(machine=machine, row_bytes=round(log_ways.row_bytes), ways=records)
    report.ways(f"Log records of {log_ways.row_bytes:,.0f} bytes, 5,000 a transaction", records)
    lower, median, upper = quartiles(timings.ratios(REPLAY, LOG_WRITER_COPY))
    report.measure("replay_of_logs", median, spread=(lower, upper))
    if (part := timings.ratio(LOG_WRITER_COPY, ways.WRITE_ROW)) < 1:
        report.slower(
            f"`LogWriter` by COPY reaches {part:.2f} of psycopg's `write_row` from ready tuples, which checks and "
            "identifies nothing and refuses a replay."
        )
    report.bars("log_ingest", "Log records: part of the server's limit", ratio_bars(records, "of the limit"))


def test_near_the_limit(pool: StoragePool, size: Size, benchmark: Benchmark, report: Report, machine: str) -> None:
    with closing(LogWays(pool, size.many_rows, blobs_only=True)) as made:
        judged = copy_ways(made, LOG_WRITER_COPY)
        # A record takes a third of a span's time, so that a round sees less of what the machine does.
        rounds = 2 * size.many_rounds
        title = "Log records: by COPY"
        near = NearLimit(title, made.limit(), judged, rounds=rounds, benchmark=benchmark, report=report)
    benchmark.extra_info.update(machine=machine, ways=near.records)
    near.measure("copy_writer_logs", ways.COPY_WRITER, near.calls)
