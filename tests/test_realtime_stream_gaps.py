"""What a tail says of events that it could not get, and what it makes of bytes and positions that are none of ours."""

from __future__ import annotations

import base64
import datetime as dt
import itertools
import time
from typing import Any

import orjson
import pytest
import redis

from observatory_storage import LogWriter, MetricWriter, TraceRepository, TraceWriter
from observatory_storage.errors import InvalidFilterError, UnavailableError
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import Event, EventTail, LogEvent, PointEvent, SpanEvent, TailFilters
from observatory_storage.repositories import UsageQuery, UsageRepository
from tests.servers import Servers, database
from tests.telemetry import make_spans

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def tail(pool: StoragePool, filters: TailFilters | None = None, **options: Any) -> EventTail:
    """A tail that ends when nothing came for half a second."""
    return pool.stream.tail(filters, **{"idle_timeout_seconds": 0.5, **options})


def write_logs(pool: StoragePool, bodies: list[str], **more: Any) -> None:
    with LogWriter(pool) as writer:
        writer.write_logs([{"timestamp": NOW, "body": body, **more} for body in bodies])
    pool.stream._publisher.drain(10)


def bodies_of(events: list[Event]) -> list[str | None]:
    return [event.body for event in events if isinstance(event, LogEvent)]


def client_of(pool: StoragePool) -> redis.Redis:
    assert pool.redis is not None
    return pool.redis


def key_of(pool: StoragePool, signal: str = "logs", project: str = "default") -> str:
    return f"observatory:{pool.config.postgres.database}:events:{signal}:{project}"


@pytest.mark.every_redis
@pytest.mark.parametrize("project", ["default", None])
def test_a_tail_that_began_before_the_first_write_gets_it(redis_pool: StoragePool, project: str | None) -> None:
    events = tail(redis_pool, TailFilters(project=project), idle_timeout_seconds=3)
    assert bodies_of([*tail(redis_pool, idle_timeout_seconds=0.2)]) == []
    position = events.position
    write_logs(redis_pool, ["first"])
    assert bodies_of([next(events)]) == bodies_of([*tail(redis_pool, position=position)]) == ["first"]


@pytest.mark.every_redis
def test_what_was_trimmed_after_a_position_is_counted(redis_pool: StoragePool) -> None:
    """Exactly, for the reader may be another process than the one that had the position."""
    events = tail(redis_pool)
    for number in range(12):
        write_logs(redis_pool, [f"{number} {at}" for at in range(300)])
    # In the middle of an entry, and with others already read ahead.
    seen = [*itertools.islice(events, 250)]
    position = events.position
    client = client_of(redis_pool)
    assert client.xlen(key_of(redis_pool)) == 24
    client.xtrim(key_of(redis_pool), maxlen=7, approximate=False)
    rest = tail(redis_pool, position=position)
    found = [*rest]
    assert len(found) == 1000
    assert not {*bodies_of(seen)} & {*bodies_of(found)}
    assert len(seen) + rest.missed + len(found) == 12 * 300
    # All of it, and what came afterwards.
    client.delete(key_of(redis_pool))
    write_logs(redis_pool, ["last"])
    last = tail(redis_pool, position=position)
    assert bodies_of([*last]) == ["last"]
    assert last.missed == 12 * 300 - 250


def test_what_a_publisher_dropped_after_a_position_is_counted(redis_pool: StoragePool) -> None:
    events = tail(redis_pool)
    write_logs(redis_pool, ["before"])
    next(events)
    position = events.position
    redis_pool.stream._publisher.miss("logs", 7)
    write_logs(redis_pool, ["after"])
    rest = tail(redis_pool, position=position)
    assert bodies_of([*rest]) == ["after"]
    assert rest.missed == 7


def test_positions_stay_short_with_many_publishers(database_url: str, redis_url: str, redis_pool: StoragePool) -> None:
    events = tail(redis_pool)
    for number in range(12):
        with StoragePool.from_url(database_url, redis_url=redis_url, min_connections=1, max_connections=2) as pool:
            write_logs(pool, [str(number)])
    assert len([*events]) == 12
    assert len(events.position) < 600
    assert [*tail(redis_pool, position=events.position)] == []


@pytest.mark.every_redis
def test_entries_that_are_none_of_ours_are_passed_over(redis_pool: StoragePool) -> None:
    client, key = client_of(redis_pool), key_of(redis_pool)
    events = tail(redis_pool)
    write_logs(redis_pool, ["one"])
    entries: Any = client.xrange(key)
    good = entries[0][1]
    columns = orjson.loads(good[b"c"])
    odd: list[dict[bytes, bytes]] = [
        {b"x": b"y"},
        {b"v": b"1"},
        {**good, b"c": b"\xff{"},
        {**good, b"c": b"[]"},
        {**good, b"c": b"7"},
        {**good, b"c": orjson.dumps([*columns[:1], [2**62], *columns[2:]])},
        {**good, b"n": b"many"},
        {**good, b"v": b"2"},
    ]
    for fields in odd:
        client.xadd(key, dict(fields.items()))
    client.xadd(key_of(redis_pool, "traces"), {"v": "1", "c": orjson.dumps([["x"]] * 12), "p": "p", "n": 0, "d": 0})
    write_logs(redis_pool, ["two"])
    assert bodies_of([*events]) == ["one", "two"]
    with TraceWriter(redis_pool) as writer:
        writer.write_spans(make_spans(1, 3))
    assert len([*events]) == 3


def test_a_key_that_is_none_of_ours_is_said(redis_pool: StoragePool) -> None:
    client_of(redis_pool).set(key_of(redis_pool), "text")
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        next(tail(redis_pool, TailFilters(project="default")))


def test_positions_that_redis_would_not_take_are_refused(redis_pool: StoragePool) -> None:
    for made in (
        [2, "99999999999999999999-0", []],
        [2, "0-0", [["logs", "default", "1-99999999999999999999", 0, []]]],
        [2, "0-0", [["logs", "default", "1-1", 0, [["a", -1, 0]]]]],
        [2, "0-0", [["logs", "default", "1-1", 0, [[7, 1, 0]]]]],
        [2, "0-0", [["logs", "default", "1-1", 0, 7]]],
        [2, "0-0", [["logs", "default", "1-1", 0]]],
    ):
        position = base64.urlsafe_b64encode(orjson.dumps(made)).decode().rstrip("=")
        with pytest.raises(InvalidFilterError, match="malformed"):
            redis_pool.stream.tail(position=position)


def test_entries_stay_small_whatever_names_and_attributes_are(redis_pool: StoragePool) -> None:
    events = tail(redis_pool)
    with TraceWriter(redis_pool) as writer:
        # Of letters that take three bytes, so that an entry of their first 300 characters would be large still.
        texts = {"name": "語" * 20_000, "operation": "語" * 20_000, "model": "m"}
        writer.write_spans([{**row, **texts} for row in make_spans(2, 100)])
    metric = {"name": "load", "metric_type": "gauge"}
    with MetricWriter(redis_pool) as metrics:
        metrics.write_data_points(
            [
                {"metric": metric, "timestamp": NOW, "value": 1.0, "attributes": {"k": f"{number}" * 9_000}}
                for number in range(100, 200)
            ]
        )
    found = [*events]
    assert len(found) == 300
    assert {(event.name, event.model) for event in found if isinstance(event, SpanEvent)} == {("語" * 100, "m")}
    assert {(event.name, event.value) for event in found if isinstance(event, PointEvent)} == {("load", 1.0)}
    for signal in ("traces", "metrics"):
        size: Any = client_of(redis_pool).memory_usage(key_of(redis_pool, signal), samples=0)
        assert size < 256 * 1024


@pytest.mark.every_redis
def test_events_older_than_their_age_go_though_others_come(database_url: str, redis_url: str) -> None:
    with StoragePool.from_url(database_url, redis_url=redis_url, redis_stream_max_age_seconds=1) as pool:
        # Large enough for nodes of their own, which is what the server trims.
        begun = time.monotonic()
        for name in ("old", "younger", "new"):
            write_logs(pool, [f"{name} {number} {'x' * 300}" for number in range(30)])
            if name != "new":
                time.sleep(0.7)
        assert time.monotonic() - begun > 1.3
        found = tail(pool, since=NOW - dt.timedelta(hours=1), idle_timeout_seconds=0.2)
        names = {(body or "").split()[0] for body in bodies_of([*found])}
        assert "new" in names
        assert "old" not in names


def test_two_databases_on_one_redis_share_neither_values_nor_events(
    redis_pool: StoragePool, redis_url: str, servers: Servers, server_kind: str, server_url: str
) -> None:
    rows = make_spans(1, 4)
    query = UsageQuery(start=NOW - dt.timedelta(days=400), end=NOW + dt.timedelta(days=400))
    with (
        database(server_url, servers.template(server_kind)) as url,
        StoragePool.from_url(url, redis_url=redis_url, min_connections=1, max_connections=3) as other,
    ):
        mine, others = tail(redis_pool), tail(other)
        for pool, number in ((redis_pool, 4), (other, 2)):
            with TraceWriter(pool) as writer:
                writer.write_spans(rows[:number])
        for _ in range(2):
            for pool, number in ((redis_pool, 4), (other, 2)):
                assert TraceRepository(pool).get_by_id(rows[0]["trace_id"]).span_count == number
                with pool.session() as session:
                    expected = UsageRepository(session).get_totals(query)
                assert UsageRepository(pool).get_totals(query) == expected
        assert (len([*mine]), len([*others])) == (4, 2)
