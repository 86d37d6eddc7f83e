"""Costs and latencies from spans equal what the rows say, counted by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import Any

import pytest

from observatory_storage.errors import InvalidFilterError
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_filters import SPAN_LABELS, CostQuery, LatencyQuery
from observatory_storage.repositories.metric_labels import SPAN_COLUMNS
from observatory_storage.repositories.metric_results import CostSummary, Percentile
from tests.conftest import Statements
from tests.trace_rows import Row, at, cost, span, store, trace

CALL = {"counts_usage": True, "operation": "chat", "provider": "openai", "model": "gpt", "service_name": "api"}


def store_spans(pool: StoragePool, *columns: Row) -> None:
    of = trace("t", start_time=at())
    store(
        pool, [of], [span(of, number, **{"start_time": at(number - 1), **row}) for number, row in enumerate(columns, 1)]
    )


def test_costs_are_summed_exactly_by_label_the_most_expensive_first(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    tiny = Decimal("0.000000000000000000000000000001")
    more = Decimal("100000000000000.000000000000000000000000000001")
    huge = 2**63 - 1
    store_spans(
        pool,
        {
            **CALL,
            "cost_usd": more,
            "input_tokens": huge,
            "total_tokens": huge,
        },
        {**CALL, "cost_usd": tiny, "input_cost_usd": cost(1), "input_tokens": huge, "total_tokens": huge},
        {**CALL, "status": "error", "reasoning_tokens": 3, "cached_input_tokens": 2, "cache_write_input_tokens": 1},
        {**CALL, "model": "claude", "provider": "anthropic", "cost_usd": Decimal(10**15 - 1), "output_tokens": 7},
        {**CALL, "model": None, "provider": None, "output_cost_usd": cost(5), "cost_usd": cost(5)},
        # A wrapper that repeats the sum.
        {"operation": "invoke_agent", "cost_usd": Decimal(10**14), "model": "gpt", "provider": "openai"},
    )
    repository = MetricRepository(pool)
    with recorded_statements() as seen:
        found = repository.get_cost_summary(CostQuery(start=at(), end=at(60)))
    assert len(seen) == 1
    assert [row.labels for row in found] == [
        {"provider": "anthropic", "model": "claude"},
        {"provider": "openai", "model": "gpt"},
        {"provider": None, "model": None},
    ]
    assert found[1] == CostSummary(
        labels={"provider": "openai", "model": "gpt"},
        call_count=3,
        error_count=1,
        unpriced_count=1,
        input_tokens=2 * huge,
        output_tokens=0,
        cached_input_tokens=2,
        cache_write_input_tokens=1,
        reasoning_tokens=3,
        total_tokens=2 * huge,
        input_cost_usd=cost(1),
        output_cost_usd=Decimal(0),
        cost_usd=Decimal("100000000000000.000000000000000000000000000002"),
    )
    assert (found[2].cost_usd, found[2].output_cost_usd, found[2].unpriced_count) == (cost(5), cost(5), 0)
    (every,) = repository.get_cost_summary(
        CostQuery(start=at(), end=at(60), group_by=("model",), labels={"model": "gpt"}, every_span=True)
    )
    assert (every.call_count, every.cost_usd) == (4, Decimal("200000000000000.000000000000000000000000000002"))


def test_costs_of_a_time_range_a_project_and_labels(pool: StoragePool) -> None:
    store_spans(
        pool,
        *({**CALL, "cost_usd": cost(2**number), "project": "ab"[number % 2], "user_id": None} for number in range(4)),
        {**CALL, "cost_usd": cost(16), "user_id": "u", "session_id": "s", "environment": "prod"},
    )
    repository = MetricRepository(pool)

    def total(**asked: Any) -> Decimal | None:
        query = {"start": at(), "end": at(60), "group_by": (), **asked}
        found = repository.get_cost_summary(CostQuery.model_validate(query))
        assert len(found) <= 1
        return found[0].cost_usd if found else None

    assert total() == cost(31)
    assert total(start=at(1), end=at(3)) == cost(6)
    assert total(project="a") == total(labels={"project": "a"}) == cost(5)
    assert total(labels={"user": "u", "service": "api"}) == cost(16)
    assert total(labels={"user": None}) == cost(15)
    assert total(labels={"environment": ("prod", "test")}) == cost(16)
    assert total(labels={"service": ("worker", None)}) in (None, Decimal(0))


def test_spans_give_percentiles_exactly(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    durations = [number * number for number in range(1, 41)]
    store_spans(
        pool,
        *({**CALL, "duration_us": duration, "ttft_us": duration // 2} for duration in durations),
        {**CALL, "model": "claude", "duration_us": 2**53 + 1},
        {**CALL, "duration_us": None},
        {"model": "gpt", "duration_us": 10**9},
    )
    repository = MetricRepository(pool)
    window = {"start": at(), "end": at(60)}
    fractions = (0.0, 0.25, 0.5, 0.75, 1.0)
    with recorded_statements() as seen:
        query = LatencyQuery.model_validate({**window, "group_by": ("model",), "percentiles": fractions})
        claude, gpt = repository.get_latency_percentiles(query)
    assert len(seen) == 1
    assert (claude.labels, claude.count, gpt.labels, gpt.count) == ({"model": "claude"}, 1, {"model": "gpt"}, 40)
    assert (gpt.source, gpt.unit, gpt.max_relative_error) == ("spans", "us", 0.0)
    quartiles = statistics.quantiles(durations, n=4, method="inclusive")
    expected = [1.0, *quartiles, 1600.0]
    assert gpt.percentiles == tuple(
        Percentile(fraction, value, value, value) for fraction, value in zip(fractions, expected, strict=True)
    )
    assert gpt.value(0.5) == statistics.median(durations)
    with pytest.raises(KeyError):
        gpt.value(0.1)
    (first_token,) = repository.get_latency_percentiles(
        LatencyQuery.model_validate({**window, "measure": "time_to_first_token", "percentiles": [1]})
    )
    assert (first_token.count, first_token.value(1.0)) == (40, 800.0)
    (every,) = repository.get_latency_percentiles(
        LatencyQuery.model_validate({**window, "labels": {"model": "gpt"}, "every_span": True, "percentiles": [1]})
    )
    assert (every.count, every.value(1)) == (41, 1e9)
    absent = LatencyQuery.model_validate({**window, "labels": {"model": "none"}})
    assert repository.get_latency_percentiles(absent) == []


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"group_by": ("colour",)}, "spans have no label colour; they have project, service"),
        ({"labels": {"gen_ai.system": "x"}}, "spans have no label gen_ai.system"),
        ({"percentiles": [1.1]}, "percentiles.0: Input should be less than or equal to 1"),
        ({"percentiles": []}, "percentiles"),
        ({"unit": "s"}, "unit narrows metrics down"),
        ({"name": "m", "every_span": True}, "measure and every_span are of spans"),
        ({"name": "m", "metric_id": "0" * 32}, "give either name or metric_id"),
        ({"start": at(61)}, "start must be before end"),
    ],
)
def test_what_cannot_be_asked_of_spans_is_refused(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidFilterError, match=sentence):
        LatencyQuery.model_validate({"start": at(), "end": at(60), **asked})


def test_the_labels_of_spans_are_those_that_are_named() -> None:
    assert tuple(SPAN_COLUMNS) == SPAN_LABELS
    with pytest.raises(InvalidFilterError, match="spans have no label tier"):
        CostQuery(start=at(), end=at(1), labels={"tier": 1})
