"""Usage by model over thirty days: from the rollups and from the spans, the same to the token and the cent."""

from __future__ import annotations

import datetime as dt
import statistics
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

import psycopg
import pytest

from benchmarks.conftest import Report, Size
from benchmarks.usage_spans import DAYS, MODELS, SPANS_PER_TRACE, load
from observatory_storage.embedded import embedded_server
from observatory_storage.lifecycle.partitions import PartitionManager
from observatory_storage.lifecycle.usage_upkeep import UsageUpkeep
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import (
    CostQuery,
    MetricRepository,
    TopUsageQuery,
    UsagePercentileQuery,
    UsageQuery,
    UsageRepository,
)
from tests.servers import GIVEN_URL, database, private_directory

# By how much the rollups have to be faster where the full size runs.
TARGET: Final = 50
_ASKED: Final = 5_000_000
_ROUNDS: Final = 7


@pytest.fixture(scope="module")
def spans(size: Size) -> int:
    """How many spans are stored."""
    return size.pick(8_000, 50_000, 500_000, _ASKED)


@pytest.fixture(scope="module")
def stored(spans: int) -> Iterator[tuple[StoragePool, float, float]]:
    """A pool on a database with the spans, and for how many seconds they were loaded and added to the rollups."""
    with private_directory("usage") as directory:
        server = None if GIVEN_URL else embedded_server(directory / "data")
        try:
            with (
                database(GIVEN_URL or (server.url if server else "")) as url,
                StoragePool.from_url(url, max_connections=2) as pool,
            ):
                pool.run_migrations()
                started = time.perf_counter()
                with psycopg.connect(url) as connection:
                    load(pool, connection, spans)
                loaded = time.perf_counter()
                # They were stored without rollups, as before there were any.
                upkeep = UsageUpkeep(pool, PartitionManager(pool), seconds=3600)
                report = upkeep.run()
                assert report.is_complete
                assert report.spans_added > 0
                added = time.perf_counter()
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("VACUUM (ANALYZE) trace_spans, traces, usage_rollups")
                yield pool, loaded - started, added - loaded
        finally:
            if server is not None:
                server.close()


def test_usage_by_model_over_thirty_days(
    stored: tuple[StoragePool, float, float], spans: int, report: Report, machine: str
) -> None:
    pool, loading, adding = stored
    end = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    start = end - dt.timedelta(days=DAYS)
    window: dict[str, Any] = {"start": start, "end": end}
    usage, metrics = UsageRepository(pool), MetricRepository(pool, statement_timeout_seconds=None)
    from_rollups, rollup_seconds = timed(lambda: usage.get_totals(UsageQuery(**window, group_by=("model",))))
    from_spans, span_seconds = timed(lambda: metrics.get_cost_summary(CostQuery(**window, group_by=("model",))), 3)

    assert {one.labels["model"]: tuple(one[1:]) for one in from_rollups} == {
        one.labels["model"]: (
            one.call_count,
            one.error_count,
            one.unpriced_count,
            one.input_tokens,
            one.output_tokens,
            one.cached_input_tokens,
            one.cache_write_input_tokens,
            one.reasoning_tokens,
            one.total_tokens,
            one.cost_usd,
        )
        for one in from_spans
    }
    assert len(from_rollups) == len(MODELS)
    assert sum((one.cost_usd for one in from_rollups), Decimal(0)) > 0

    _, percentile_seconds = timed(lambda: usage.get_percentiles(UsagePercentileQuery(**window, group_by=("model",))))
    top, top_seconds = timed(lambda: usage.get_top_users(TopUsageQuery(**window)), 3)
    _, top_span_seconds = timed(lambda: metrics.get_cost_summary(CostQuery(**window, group_by=("user",))), 1)
    assert top
    ratio = span_seconds / rollup_seconds
    with pool.raw_connection() as connection:
        rows, size = connection.execute(
            "SELECT count(*), pg_total_relation_size('usage_rollups') FROM usage_rollups"
        ).fetchone() or (0, 0)
    report.add(
        f"usage_rollups: {spans:,} spans in {spans // SPANS_PER_TRACE:,} traces over {DAYS} days",
        f"usage by model: {rollup_seconds * 1e3:,.1f} ms from rollups, {span_seconds * 1e3:,.0f} ms from spans, "
        f"{ratio:,.0f} times as fast",
        f"percentiles by model: {percentile_seconds * 1e3:,.1f} ms",
        f"top users: {top_seconds * 1e3:,.0f} ms from traces, {top_span_seconds * 1e3:,.0f} ms from spans",
        f"rollups: {rows:,} rows, {size / 1e6:,.1f} MB; loaded in {loading:,.0f} s, added to usage in {adding:,.0f} s",
        machine,
    )
    report.measure("usage_rollups", ratio, f"at {spans:,} spans", partial=spans < _ASKED)
    if spans >= _ASKED:
        assert ratio >= TARGET


def timed(work: Callable[[], Any], rounds: int = _ROUNDS) -> tuple[Any, float]:
    """The result, and the median of some rounds after one that does not count."""
    found = work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - started)
    return found, statistics.median(times)
