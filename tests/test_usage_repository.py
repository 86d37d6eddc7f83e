"""Usage as it is read: the same as the spans' at any moment, by any dimensions, in any range of hours."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory_storage.errors import InvalidFilterError
from observatory_storage.lifecycle.partitions import PartitionManager
from observatory_storage.lifecycle.usage_upkeep import UsageUpkeep
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import (
    TopUsageQuery,
    UsagePercentileQuery,
    UsageQuery,
    UsageRepository,
    UsageSeriesQuery,
    UsageTotals,
)
from observatory_storage.usage.buckets import MAX_RELATIVE_ERROR, bounds, bucket_of, representative
from observatory_storage.writers import TraceWriter
from tests.servers import Servers
from tests.usage_cases import BASE, Span, expected_usage, make_tree

HOUR = dt.timedelta(hours=1)
NAMES = ("project", "service", "provider", "model", "operation")
COLUMNS = {"service": "service_name"}


@pytest.fixture(scope="module")
def spans() -> list[Span]:
    dice = random.Random(3)
    return [
        {**span, "project": project, "user_id": f"user-{number % 3}", "session_id": f"session-{number}"}
        for number, project in enumerate(["default", "research"] * 20)
        for span in make_tree(dice, dice.randrange(1, 10))
    ]


@pytest.fixture(scope="module", params=["parts", "folded"])
def usage(
    request: pytest.FixtureRequest, servers: Servers, server_kind: str, spans: list[Span]
) -> Iterator[UsageRepository]:
    """The usage of a database that is only read."""
    with servers.pool(server_kind) as pool:
        yield usage_in(pool, spans, request.param)


@pytest.fixture(params=["parts", "folded"])
def own_usage(request: pytest.FixtureRequest, pool: StoragePool, spans: list[Span]) -> UsageRepository:
    """The usage of the pool's database."""
    return usage_in(pool, spans, request.param)


def usage_in(pool: StoragePool, spans: list[Span], state: str) -> UsageRepository:
    with TraceWriter(pool) as writer:
        for place in range(0, len(spans), 40):
            writer.write_spans(spans[place : place + 40])
            writer.flush()
    if state == "folded":
        assert UsageUpkeep(pool, PartitionManager(pool)).run().parts_folded > 0
    return UsageRepository(pool)


def figures(totals: UsageTotals) -> list[object]:
    return list(totals[1:])


def oracle(group: dict[str, Any]) -> list[object]:
    names = {
        "call_count": "calls",
        "error_count": "errors",
        "unpriced_count": "unpriced_calls",
    }
    return [group[names.get(name, name)] for name in UsageTotals._fields[1:]]


@pytest.mark.parametrize("group_by", [by for size in range(4) for by in itertools.combinations(NAMES, size)])
def test_totals_by_any_dimensions(usage: UsageRepository, spans: list[Span], group_by: Any) -> None:
    found = usage.get_totals(UsageQuery(start=BASE, end=BASE + 4 * HOUR, group_by=group_by))
    assert (found.start, found.end) == (BASE, BASE + 4 * HOUR)
    expected = expected_usage(spans, [COLUMNS.get(name, name) for name in group_by])
    assert {tuple(value or "" for value in one.labels.values()): figures(one) for one in found} == {
        key: oracle(group) for key, group in expected.items()
    }
    costs = [one.cost_usd for one in found]
    assert costs == sorted(costs, reverse=True)


def test_filters_and_absent_dimensions(usage: UsageRepository, spans: list[Span]) -> None:
    asked = UsageQuery(start=BASE, end=BASE + 4 * HOUR, project="research", model="", operation="chat")
    expected = expected_usage(spans, ("project", "model", "operation"))["research", "", "chat"]
    (found,) = usage.get_totals(asked)
    assert figures(found) == oracle(expected)
    assert found.labels == {}


def test_a_range_that_cuts_an_hour_is_widened_and_says_so(usage: UsageRepository, spans: list[Span]) -> None:
    minute = dt.timedelta(minutes=1)
    found = usage.get_totals(UsageQuery(start=BASE + HOUR + minute, end=BASE + 2 * HOUR - minute))
    assert (found.start, found.end) == (BASE + HOUR, BASE + 2 * HOUR)
    assert figures(found[0]) == oracle(expected_usage(spans, ("hour",))[(BASE + HOUR,)])


def test_a_series_adds_up_to_the_totals(usage: UsageRepository, spans: list[Span]) -> None:
    asked = UsageSeriesQuery(start=BASE, end=BASE + 5 * HOUR, group_by=("model",), include_empty=True)
    found = usage.get_series(asked)
    expected = expected_usage(spans, ("model", "hour"))
    assert [series.labels["model"] for series in found] == [None, "gpt-4o", "gpt-4o-mini"]
    for series in found:
        assert [bucket.start for bucket in series.buckets] == [BASE + number * HOUR for number in range(5)]
        for bucket in series.buckets:
            wanted = expected.get((series.labels["model"] or "", bucket.start))
            assert figures(bucket.usage) == (oracle(wanted) if wanted else [0] * 9 + [Decimal(0)])
    week = usage.get_series(UsageSeriesQuery(start=BASE, end=BASE + 5 * HOUR, bucket=dt.timedelta(weeks=1)))
    assert week[0].buckets[0].start.weekday() == 0
    total = usage.get_totals(UsageQuery(start=BASE, end=BASE + 5 * HOUR))[0]
    assert sum(bucket.usage.call_count for bucket in week[0].buckets) == total.call_count


@pytest.mark.parametrize("measure", ["duration", "time_to_first_token"])
def test_percentiles_are_within_the_stated_error(usage: UsageRepository, spans: list[Span], measure: Any) -> None:
    fractions = (0.0, 0.07, 0.5, 0.9, 0.99, 1.0)
    asked = UsagePercentileQuery(
        start=BASE, end=BASE + 4 * HOUR, group_by=("model",), measure=measure, percentiles=fractions
    )
    found = usage.get_percentiles(asked)
    expected = expected_usage(spans, ("model",))
    assert len(found) == 3
    for one in found:
        group = expected[(one.labels["model"] or "",)]
        values = sorted(group["latency" if measure == "duration" else "ttft"].elements())
        assert one.count == len(values)
        for percentile in one.percentiles:
            true = nearest_rank(values, percentile.fraction)
            assert abs(percentile.value - true) <= one.max_relative_error * true + 1e-9
            assert percentile.lower - 1e-6 <= true <= percentile.upper + 1e-6
        assert one.value(0.5) == one.percentiles[2].value


def nearest_rank(values: list[int], fraction: float) -> int:
    return values[max(math.ceil(round(fraction * len(values), 9)), 1) - 1]


@settings(max_examples=300)
@given(st.integers(0, 10**15))
def test_a_bucket_stands_for_its_durations_within_the_stated_error(duration: int) -> None:
    bucket = bucket_of(duration)
    lower, upper = bounds(bucket)
    assert lower * (1 - 1e-9) <= duration <= upper * (1 + 1e-9)
    assert abs(representative(bucket) - duration) <= MAX_RELATIVE_ERROR * duration * (1 + 1e-9)
    assert bucket_of(duration + 1) >= bucket


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 10**11), min_size=1), min_size=1, max_size=4), st.floats(0, 1))
def test_percentiles_of_a_sum_of_histograms(parts: list[list[int]], fraction: float) -> None:
    merged: Counter[int] = Counter()
    for part in parts:
        merged.update(map(bucket_of, part))
    values = sorted(itertools.chain(*parts))
    rank = max(math.ceil(fraction * len(values)), 1)
    bucket = sorted(merged.elements())[rank - 1]
    true = values[rank - 1]
    assert abs(representative(bucket) - true) <= MAX_RELATIVE_ERROR * true * (1 + 1e-9)


def test_top_users_and_sessions(own_usage: UsageRepository, pool: StoragePool, spans: list[Span]) -> None:
    window: dict[str, Any] = {"start": BASE, "end": BASE + 4 * HOUR}
    users = own_usage.get_top_users(TopUsageQuery(**window))
    assert sorted(user.name for user in users) == ["user-0", "user-1", "user-2"]
    assert [user.cost_usd for user in users] == sorted((user.cost_usd for user in users), reverse=True)
    (total,) = own_usage.get_totals(UsageQuery(**window))
    assert sum(user.cost_usd for user in users) == total.cost_usd
    assert sum(user.total_tokens for user in users) == total.total_tokens
    sessions = own_usage.get_top_sessions(TopUsageQuery(**window, order_by="total_tokens", limit=5))
    assert len(sessions) == 5
    assert [one.total_tokens for one in sessions] == sorted((one.total_tokens for one in sessions), reverse=True)
    with pool.unit_of_work() as uow:
        found = uow.usage.get_top_users(TopUsageQuery(**window, project="research", service_name="no such"))
        assert found == ()


def test_usage_outlives_its_spans(own_usage: UsageRepository, pool: StoragePool) -> None:
    asked = UsageQuery(start=BASE, end=BASE + 4 * HOUR, group_by=("model",))
    before = own_usage.get_totals(asked)
    with pool.unit_of_work() as uow:
        uow.traces.delete_before(dt.datetime.now(dt.UTC) + HOUR)
        uow.commit()
    assert own_usage.get_totals(asked) == before


def test_nothing_was_used(pool: StoragePool) -> None:
    usage = UsageRepository(pool)
    window: dict[str, Any] = {"start": BASE, "end": BASE + HOUR}
    assert usage.get_totals(UsageQuery(**window)).items == (UsageTotals({}),)
    assert usage.get_totals(UsageQuery(**window, group_by=("model",))).items == ()
    assert usage.get_series(UsageSeriesQuery(**window))[0].buckets == ()
    assert usage.get_percentiles(UsagePercentileQuery(**window)).items == ()


@pytest.mark.parametrize(
    ("query", "given_fields", "problem"),
    [
        (UsageQuery, {"start": BASE, "end": BASE}, "start must be before end"),
        (UsageQuery, {"start": BASE, "end": BASE + HOUR, "group_by": ("model", "model")}, "twice"),
        (UsageQuery, {"start": BASE, "end": BASE + HOUR, "group_by": ("user",)}, "group_by"),
        (UsageSeriesQuery, {"start": BASE, "end": BASE + HOUR, "bucket": HOUR * 1.5}, "whole number of hours"),
        (UsageSeriesQuery, {"start": BASE, "end": BASE + 10_001 * HOUR}, "10001 buckets"),
        (UsagePercentileQuery, {"start": BASE, "end": BASE + HOUR, "percentiles": (95.0,)}, "percentiles"),
        (TopUsageQuery, {"start": BASE, "end": BASE + HOUR, "limit": 0}, "limit"),
    ],
)
def test_what_cannot_hold_is_refused(query: type[UsageQuery], given_fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidFilterError, match=problem):
        query(**given_fields)


def test_the_ends_of_time(pool: StoragePool) -> None:
    asked = UsageQuery(start=dt.datetime.min, end=dt.datetime.max)
    assert UsageRepository(pool).get_totals(asked)[0].call_count == 0
