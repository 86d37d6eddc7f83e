"""Retention of usage: expired hours of the rollups go, in batches, beside writers and whoever folds."""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

from observatory_storage.lifecycle import FOREVER, PartitionManager, Retention, RetentionPolicy, RetentionReport
from observatory_storage.lifecycle.usage_upkeep import UsageUpkeep
from observatory_storage.pool import StoragePool
from observatory_storage.usage import statements
from tests.retaining import DAY, HOUR, NOW, policy, retain, span, write_spans
from tests.telemetry import count
from tests.threads import threads

# Ten of the morning, of today or of so many days before.
TEN = NOW.replace(hour=10, minute=0)


def call(start: dt.datetime, **columns: Any) -> dict[str, Any]:
    given = {"counts_usage": True, "operation": "chat", "model": "gpt-4o", "input_tokens": 10, **columns}
    return span(start, **given)


def hours(url: str, project: str = "default") -> dict[dt.datetime, int]:
    """The calls by hour, also where they add up to none."""
    with psycopg.connect(url) as connection:
        query = "SELECT hour, sum(calls)::int FROM usage_rollups WHERE project = %s GROUP BY 1 ORDER BY 1"
        return {hour.astimezone(dt.UTC): calls for hour, calls in connection.execute(query, [project])}


def fold(pool: StoragePool) -> int:
    return UsageUpkeep(pool, PartitionManager(pool)).fold()


@pytest.mark.every_server
@pytest.mark.parametrize("is_folded", [True, False])
def test_hours_go_by_the_policy_of_their_project(pool: StoragePool, database_url: str, is_folded: bool) -> None:
    starts = [TEN - days * DAY + dt.timedelta(minutes=59) for days in (0, 1, 5, 9, 400)]
    for project in ("short", "long", "kept"):
        # Two models in two parts each.
        for model in ("gpt-4o", "o3") * 2:
            write_spans(pool, [call(start, model=model) for start in starts], project)
    if is_folded:
        fold(pool)
    parts = count(database_url, "usage_rollups")
    policies = [policy("usage", 3 * DAY), policy("usage", 7 * DAY, "long"), policy("usage", FOREVER, "kept")]
    dry = retain(pool, *policies, dry_run=True)
    assert count(database_url, "usage_rollups") == parts
    done = retain(pool, *policies)
    assert done.rows_deleted == dry.rows_left == {"usage_rollups": parts // 3}
    assert done.is_complete
    everything = {start.replace(minute=0): 4 for start in starts}
    assert hours(database_url, "kept") == everything
    assert hours(database_url, "long") == {hour: 4 for hour in everything if hour > NOW - 7 * DAY}
    assert hours(database_url, "short") == {hour: 4 for hour in everything if hour > NOW - 3 * DAY}
    assert count(database_url, "trace_spans") == len(starts) * 12, "spans went"
    assert retain(pool, *policies) == RetentionReport()


def test_an_hour_is_kept_until_its_last_moment_is_expired(pool: StoragePool, database_url: str) -> None:
    write_spans(pool, [call(TEN + hour * HOUR) for hour in range(4)])
    # It is half past twelve, and the last moment of the hour of ten is an hour and a half ago.
    retain(pool, policy("usage", 2 * HOUR))
    assert [*hours(database_url)] == [TEN, TEN + HOUR, TEN + 2 * HOUR, TEN + 3 * HOUR]
    retain(pool, policy("usage", HOUR))
    assert [*hours(database_url)] == [TEN + HOUR, TEN + 2 * HOUR, TEN + 3 * HOUR]


@pytest.mark.parametrize("policies", [[], [policy("traces", 3 * DAY)]])
def test_usage_without_a_policy_is_kept_when_its_traces_go(
    pool: StoragePool, database_url: str, policies: Sequence[RetentionPolicy]
) -> None:
    write_spans(pool, [call(TEN - 400 * DAY), call(TEN)])
    retain(pool, *policies)
    assert count(database_url, "traces") == 2 - len(policies)
    assert hours(database_url) == {TEN - 400 * DAY: 1, TEN: 1}


def test_batches_are_committed_one_by_one(pool: StoragePool, database_url: str) -> None:
    models = [f"model-{number}" for number in range(8)]
    for _ in range(5):
        write_spans(pool, [call(TEN - 9 * DAY, model=model) for model in models])
    stopped_at = 3

    def stop(what: str, done: int, total: int) -> None:
        assert (what, total) == ("retention of usage", len(models))
        if done >= stopped_at:
            raise KeyboardInterrupt

    policies = [policy("usage", 3 * DAY)]
    with pytest.raises(KeyboardInterrupt):
        Retention(pool, PartitionManager(pool), policies, batch_size=2, on_progress=stop).run(now=NOW)
    # So many keys are done with, and no more than a batch besides.
    assert count(database_url, "usage_rollups") in range(40 - stopped_at * 5 - 1, 40 - stopped_at * 5 + 1)
    retain(pool, *policies, batch_size=2)
    assert count(database_url, "usage_rollups") == 0


@pytest.mark.every_server
def test_what_another_session_folds_goes_with_the_next_run(pool: StoragePool, database_url: str) -> None:
    for _ in range(3):
        write_spans(pool, [call(TEN - 9 * DAY), call(TEN)])
    with psycopg.connect(database_url) as folding:
        given = {"limit": 100, "part": "00000000-0000-0000-0000-000000000001"}
        folding.execute(statements.FOLD.encode(), given)
        # Nobody waits for it, and nothing fails.
        assert retain(pool, policy("usage", 3 * DAY)) == RetentionReport()
    assert hours(database_url) == {TEN - 9 * DAY: 3, TEN: 3}
    assert retain(pool, policy("usage", 3 * DAY)).rows_deleted == {"usage_rollups": 1}
    assert hours(database_url) == {TEN: 3}


def test_beside_writers_and_folding_what_is_kept_is_exact(pool: StoragePool, database_url: str) -> None:
    done = threading.Event()

    def repeat(work: Callable[[StoragePool], object]) -> None:
        with StoragePool.from_url(database_url, min_connections=1, max_connections=1) as own:
            while not done.is_set():
                work(own)

    dice = random.Random(3)
    with threads() as start:
        start(repeat, fold)
        start(repeat, lambda own: retain(own, policy("usage", 3 * DAY)))
        try:
            for _ in range(12):
                models = dice.choices(["gpt-4o", "o3", "gemini"], k=5)
                write_spans(pool, [call(time, model=model) for time in (TEN - 9 * DAY, TEN) for model in models])
        finally:
            done.set()
    retain(pool, policy("usage", 3 * DAY))
    assert hours(database_url) == {TEN: 60}


def test_a_late_span_brings_its_hour_back_until_the_next_run(pool: StoragePool, database_url: str) -> None:
    expired = TEN - 9 * DAY
    write_spans(pool, [call(expired), call(TEN)])
    policies = [policy("usage", 3 * DAY)]
    pool.maintain(ahead=HOUR, retention=policies)
    assert [*hours(database_url)] == [TEN]
    write_spans(pool, [call(expired + dt.timedelta(minutes=1))])
    # With what it adds, not with what was there.
    assert hours(database_url) == {expired: 1, TEN: 1}
    report = pool.maintain(ahead=HOUR, retention=policies)
    assert report.is_complete
    assert report.retention.rows_deleted == {"usage_rollups": 1}
    assert hours(database_url) == {TEN: 1}


def test_an_end_that_comes_after_its_hour_was_removed_goes_as_well(pool: StoragePool, database_url: str) -> None:
    # The part takes out what the open span was counted with, and that is gone: until the next run the hour is below 0.
    expired = TEN - 9 * DAY
    open_span = {**call(expired), "end_time": None, "events": []}
    write_spans(pool, [open_span])
    policies = [policy("usage", 3 * DAY)]
    pool.maintain(ahead=HOUR, retention=policies)
    write_spans(pool, [{**open_span, "end_time": expired + HOUR, "counts_usage": False, "operation": None}])
    assert hours(database_url) == {expired: -1}
    pool.maintain(ahead=HOUR, retention=policies)
    assert hours(database_url) == {}


def test_what_is_added_to_expired_hours_goes_in_the_same_run_and_is_not_added_again(
    pool: StoragePool, database_url: str
) -> None:
    write_spans(pool, [call(start) for start in (TEN - 9 * DAY, TEN - 8 * DAY, TEN)])
    # As an older release left it.
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE trace_spans SET repeats_usage = NULL")
        connection.execute("TRUNCATE usage_rollups")
    policies = [policy("usage", 3 * DAY)]
    report = pool.maintain(ahead=HOUR, retention=policies)
    assert report.is_complete
    assert report.usage.spans_added == 3
    assert hours(database_url) == {TEN: 1}
    again = pool.maintain(ahead=HOUR, retention=policies)
    assert (again.usage.spans_added, again.retention.rows_deleted) == (0, {})
    assert hours(database_url) == {TEN: 1}
    assert count(database_url, "trace_spans") == 3
