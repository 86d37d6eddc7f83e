"""Figures equal what the rows say, counted by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters, TraceRepository, TraceStats
from tests.conftest import Statements
from tests.trace_rows import at, cost, span, store, trace


def test_figures_of_a_trace_are_sums_over_its_spans(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    agent = trace("agent", start_time=at())
    call = {"operation": "chat", "provider": "openai", "model": "gpt", "counts_usage": True}
    spans = [
        # A wrapper that repeats the sum of its calls.
        span(agent, 1, operation="invoke_agent", input_tokens=30, total_tokens=44, duration_us=9, cost_usd=cost(3)),
        span(agent, 2, **call, input_tokens=10, output_tokens=4, total_tokens=14, cost_usd=cost(1), duration_us=5),
        span(agent, 3, **call, input_tokens=20, total_tokens=20, cost_usd=cost(2), ttft_us=70, status="error"),
        span(agent, 4, **{**call, "model": "claude"}, cached_input_tokens=2, reasoning_tokens=3, ttft_us=80),
        span(agent, 5, name="plain"),
    ]
    store(pool, [agent], spans)
    with recorded_statements() as seen:
        figures = TraceRepository(pool).get_trace_statistics(agent["id"])
    assert len(seen) == 2
    assert (figures.trace_id, figures.start_time, figures.end_time) == (agent["id"], at(), at(10))
    assert figures.duration_us == 10_000_000
    assert (figures.span_count, figures.error_count, figures.model_call_count) == (5, 1, 3)
    assert (figures.input_tokens, figures.output_tokens, figures.total_tokens) == (30, 4, 34)
    assert (figures.cached_input_tokens, figures.reasoning_tokens) == (2, 3)
    assert figures.cost_usd == cost(3)
    assert (figures.max_span_duration_us, figures.max_ttft_us) == (9, 80)
    assert figures.spans_by_operation == {"invoke_agent": 1, "chat": 3, None: 1}
    assert figures.spans_by_model == {"gpt": 2, "claude": 1}
    gpt = next(row for row in figures.usage if row.model == "gpt")
    assert (gpt.provider, gpt.span_count, gpt.error_count, gpt.usage_count) == ("openai", 2, 1, 2)
    assert (gpt.input_tokens, gpt.cost_usd, gpt.duration_us, gpt.max_ttft_us) == (30, cost(3), 5, 70)
    assert all(type(value) is int for value in (gpt.input_tokens, gpt.span_count, gpt.duration_us))


def test_a_trace_without_spans_has_figures_of_nothing(pool: StoragePool) -> None:
    store(pool, [trace("empty")])
    figures = TraceRepository(pool).get_trace_statistics(trace("empty")["id"])
    assert (figures.span_count, figures.total_tokens, figures.cost_usd) == (0, 0, Decimal(0))
    assert (figures.duration_us, figures.max_span_duration_us, figures.max_ttft_us) == (None, None, None)


def test_sums_beyond_64_bits_are_exact(pool: StoragePool) -> None:
    huge = 2**63 - 1
    rows = [trace(number, start_time=at(), total_tokens=huge) for number in range(3)]
    store(pool, rows, [span(rows[0], n, counts_usage=True, total_tokens=huge, duration_us=huge) for n in (1, 2)])
    repository = TraceRepository(pool)
    assert repository.get_stats().total_tokens == 3 * huge
    assert repository.get_trace_statistics(rows[0]["id"]).total_tokens == 2 * huge
    assert repository.get_trace_statistics(rows[0]["id"]).usage[0].duration_us == 2 * huge


def test_totals_are_of_all_traces_that_the_filters_let_through(pool: StoragePool) -> None:
    rows = [
        trace(
            number,
            start_time=at(number),
            project="a" if number % 2 else "b",
            duration_us=number * 1000,
            span_count=2,
            error_count=number % 3,
            status="error" if number % 5 == 0 else "ok",
            input_tokens=number,
            output_tokens=1,
            total_tokens=number + 1,
            cost_usd=cost(number),
        )
        for number in range(101)
    ]
    store(pool, [*rows, trace("undated", project="b")], [span(rows[3], 1, model="gpt")])
    repository = TraceRepository(pool)
    everything = repository.get_stats()
    assert everything == TraceStats(
        trace_count=102,
        error_trace_count=sum(row["status"] == "error" or row["error_count"] > 0 for row in rows),
        span_count=202,
        error_count=sum(row["error_count"] for row in rows),
        input_tokens=5050,
        output_tokens=101,
        total_tokens=5151,
        cost_usd=cost(5050),
        p50_duration_us=50_000.0,
        p95_duration_us=95_000.0,
        p99_duration_us=99_000.0,
    )
    part = repository.get_stats(TraceFilters(project="a", start_time_from=at(10), start_time_before=at(20), limit=1))
    assert part.trace_count == 5
    durations = [row["duration_us"] for row in rows[11:20:2]]
    assert part.p50_duration_us == statistics.median(durations)
    assert repository.get_stats(TraceFilters(model="gpt")).total_tokens == 4


def test_totals_of_nothing_are_zero_and_percentiles_absent(pool: StoragePool) -> None:
    assert TraceRepository(pool).get_stats() == TraceStats(0, 0, 0, 0, 0, 0, 0, Decimal(0), None, None, None)
