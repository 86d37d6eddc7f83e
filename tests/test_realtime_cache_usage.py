"""Usage totals through the cache: equal to what was read, and no older than the stated seconds."""

from __future__ import annotations

import datetime as dt
import random
import time
from typing import Any

import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import UsageQuery, UsageRepository
from tests.cached import cache_of, write
from tests.usage_cases import BASE, make_tree

HOUR = dt.timedelta(hours=1)


def calls(number: int, seed: int = 3) -> list[dict[str, Any]]:
    dice = random.Random(seed)
    return [span for _ in range(number) for span in make_tree(dice, 6)]


@pytest.mark.every_redis
def test_totals_from_the_cache_equal_those_that_were_read(redis_pool: StoragePool) -> None:
    write(redis_pool, calls(20))
    through = UsageRepository(redis_pool)
    queries = [
        UsageQuery(start=BASE, end=BASE + 4 * HOUR),
        UsageQuery(start=BASE, end=BASE + 4 * HOUR, group_by=("model", "service")),
        UsageQuery(start=BASE, end=BASE + 4 * HOUR, model="gpt-4o", group_by=("project",)),
        UsageQuery(start=BASE, end=BASE + 4 * HOUR, provider=""),
        UsageQuery(start=BASE - 9 * HOUR, end=BASE - 8 * HOUR),
        UsageQuery(start=BASE - 9 * HOUR, end=BASE - 8 * HOUR, group_by=("model",)),
    ]
    for query in queries:
        with redis_pool.session() as session:
            expected = UsageRepository(session).get_totals(query)
        found = [through.get_totals(query) for _ in range(3)]
        assert found == [expected] * 3
        for one in found:
            assert isinstance(one.items, tuple)
            assert [[type(part) for part in totals] for totals in one] == [
                [type(part) for part in totals] for totals in expected
            ]
            assert [str(totals.cost_usd) for totals in one] == [str(totals.cost_usd) for totals in expected]
    stats = cache_of(redis_pool).stats()
    assert (stats.hits, stats.misses, stats.unfit, stats.errors) == (12, 6, 0, 0)
    assert stats.hits_by_kind == {"usage_totals": 12}


def test_ranges_that_touch_the_same_hours_are_one_question(redis_pool: StoragePool) -> None:
    write(redis_pool, calls(5))
    repository = UsageRepository(redis_pool)
    first = repository.get_totals(UsageQuery(start=BASE, end=BASE + HOUR * 2.2))
    assert repository.get_totals(UsageQuery(start=BASE + HOUR * 0.3, end=BASE + HOUR * 2.9)) == first
    assert cache_of(redis_pool).stats().hits == 1
    assert repository.get_totals(UsageQuery(start=BASE, end=BASE + HOUR)).end == BASE + HOUR
    assert cache_of(redis_pool).stats().misses == 2


def test_totals_are_no_older_than_said_and_zero_keeps_none(database_url: str, redis_url: str) -> None:
    query = UsageQuery(start=BASE, end=BASE + 4 * HOUR)
    for seconds in (0.5, 0.0):
        with StoragePool.from_url(database_url, redis_url=redis_url, redis_cache_figures_ttl_seconds=seconds) as pool:
            repository = UsageRepository(pool)
            with pool.session() as session:
                before = UsageRepository(session).get_totals(query)
            assert repository.get_totals(query) == before
            write(pool, calls(5, seed=round(seconds * 10)))
            committed = time.monotonic()
            with pool.session() as session:
                now = UsageRepository(session).get_totals(query)
            assert now != before
            while repository.get_totals(query) != now:
                assert time.monotonic() - committed < seconds + 0.1
                time.sleep(0.02)


def test_a_session_reads_totals_past_the_cache(redis_pool: StoragePool) -> None:
    query = UsageQuery(start=BASE, end=BASE + 4 * HOUR)
    write(redis_pool, calls(3))
    UsageRepository(redis_pool).get_totals(query)
    write(redis_pool, calls(3, seed=4))
    with redis_pool.session() as session:
        assert UsageRepository(session).get_totals(query) != UsageRepository(redis_pool).get_totals(query)
