"""Following what writers commit: live, from a position, through outages, and never what was rolled back."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from observatory_storage import LogRepository, LogWriter, MetricWriter, TraceWriter, WriterConfig
from observatory_storage.errors import ConfigurationError, InvalidFilterError, UnavailableError
from observatory_storage.models import LogRecord
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import EventTail, LogEvent, PointEvent, SpanEvent, TailFilters
from tests.cached import until
from tests.command_line import environment, invoke, program
from tests.servers import RedisProcess
from tests.telemetry import make_spans

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
Row = dict[str, Any]


def tail(pool: StoragePool, filters: TailFilters | None = None, **options: Any) -> EventTail:
    """A tail that ends when nothing came for half a second."""
    return pool.stream.tail(filters, **{"idle_timeout_seconds": 0.5, **options})


def write_spans(pool: StoragePool, rows: list[Row], **config: Any) -> TraceWriter:
    with TraceWriter(pool, WriterConfig(**config)) as writer:
        writer.write_spans(rows)
    return writer


def write_logs(pool: StoragePool, bodies: list[str], **more: Any) -> None:
    with LogWriter(pool) as writer:
        writer.write_logs([{"timestamp": NOW, "body": body, **more} for body in bodies])


@pytest.mark.every_redis
def test_what_is_committed_is_told_of(redis_pool: StoragePool) -> None:
    events = tail(redis_pool)
    span = {
        **make_spans(1, 1)[0],
        "name": "chat",
        "service_name": "shop",
        "operation": "chat",
        "model": "gpt-4o",
        "input_tokens": 12,
        "output_tokens": 3,
        "cost_usd": Decimal("0.00042"),
        "status": "error",
        "start_time": NOW,
        "end_time": NOW + dt.timedelta(milliseconds=830),
    }
    write_spans(redis_pool, [span])
    log: Row = {
        "timestamp": NOW,
        "severity_number": 17,
        "service_name": "shop",
        "body": "ü" * 1000,
        "trace_id": span["trace_id"],
        "span_id": span["span_id"],
    }
    with LogWriter(redis_pool) as writer:
        writer.write_logs([log, {"timestamp": NOW, "body_json": {"a": 1}, "event_name": "e"}])
    point: Row = {
        "metric": {"name": "load", "metric_type": "gauge", "unit": "1", "service_name": "shop"},
        "attributes": {"host": "a", "n": 2**70},
        "timestamp": NOW,
    }
    with MetricWriter(redis_pool) as metrics:
        metrics.write_data_points([{**point, "value": 0.5}, {**point, "value_int": 7, "attributes": {"host": "b"}}])
    found = list(events)
    trace_id, span_id = span["trace_id"].hex(), span["span_id"].hex()
    assert [event for event in found if isinstance(event, SpanEvent)] == [
        SpanEvent(
            trace_id,
            span_id,
            NOW,
            "default",
            "chat",
            "shop",
            830_000,
            "error",
            "chat",
            "gpt-4o",
            12,
            3,
            Decimal("0.00042"),
        )
    ]
    logs = {event.body: event for event in found if isinstance(event, LogEvent)}
    assert logs["ü" * 300][1:] == (NOW, "default", 17, None, "shop", None, "ü" * 300, trace_id, span_id)
    assert logs["1"].event_name == "e"
    assert logs["1"].trace_id is None
    with redis_pool.session() as session:
        stored = {record.id.hex for record in LogRepository(session).list()}
    assert {event.id for event in logs.values()} == stored
    points = {event.value: event for event in found if isinstance(event, PointEvent)}
    assert points[7] == PointEvent(NOW, "default", "load", "1", "gauge", "shop", points[7].attributes, 7, None, None)
    assert points[0.5].name == "load"
    assert len(found) == 5
    assert events.missed == 0
    assert redis_pool.stream.stats().published == 5


def test_several_readers_get_all_of_it_in_order(redis_pool: StoragePool) -> None:
    with ThreadPoolExecutor(4) as threads:
        readers = [tail(redis_pool, idle_timeout_seconds=1.5) for _ in range(4)]
        found = [threads.submit(list, reader) for reader in readers]
        for number in range(20):
            write_logs(redis_pool, [f"{number} {at}" for at in range(30)])
        results = [task.result() for task in found]
    assert results[1:] == results[:-1]
    bodies = [event.body or "" for event in results[0] if isinstance(event, LogEvent)]
    assert sorted(bodies) == sorted(f"{n} {at}" for n in range(20) for at in range(30))
    batches = [body.split()[0] for body in bodies]
    assert [key for key, _ in itertools.groupby(batches)] == [str(number) for number in range(20)]


def test_replays_are_not_told_of_again_and_finished_versions_are(redis_pool: StoragePool) -> None:
    for method in ("copy", "insert"):
        rows = make_spans(3, 4, seed=len(method))
        pending = {**rows[0], "end_time": None, "events": []}
        events = tail(redis_pool)
        write_spans(redis_pool, [pending, *rows[1:8]], method=method)
        write_spans(redis_pool, rows, method=method)
        write_spans(redis_pool, rows, method=method)
        found = [event for event in events if isinstance(event, SpanEvent)]
        key = (rows[0]["trace_id"].hex(), rows[0]["span_id"].hex())
        assert len(found) == 13
        mine = [event for event in found if (event.trace_id, event.span_id) == key]
        assert [event.duration_us is None for event in mine] == [True, False]


def test_what_was_rolled_back_is_never_told_of(redis_pool: StoragePool) -> None:
    events = tail(redis_pool)
    rows = make_spans(4, 25)
    # Only the server finds out: the batch is rolled back, and again in halves until the row is alone.
    with redis_pool.raw_connection() as connection:
        connection.execute("ALTER TABLE trace_spans ADD CONSTRAINT no_poison CHECK (name <> 'poison')")
        connection.commit()
    rows[60]["name"] = rows[71]["name"] = "poison"
    writer = write_spans(redis_pool, rows, method="copy")
    found = [(event.trace_id, event.span_id) for event in events if isinstance(event, SpanEvent)]
    stats = writer.write_stats()
    assert len(found) == len(set(found)) == stats.spans_written == 98
    with redis_pool.raw_connection() as connection:
        stored = connection.execute("SELECT trace_id, encode(span_id, 'hex') FROM trace_spans").fetchall()
    assert {(key.hex, span) for key, span in stored} == set(found)


def test_what_does_not_commit_is_never_told_of(redis_pool: StoragePool) -> None:
    """Two COMMITs fail, after everything else of their transactions went well, and the third does not."""
    with redis_pool.raw_connection() as connection:
        connection.execute("CREATE SEQUENCE attempts")
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('attempts') <= 2 THEN "
            "RAISE EXCEPTION 'not yet' USING ERRCODE = 'serialization_failure'; END IF; RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON traces DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        connection.commit()
    events = tail(redis_pool, idle_timeout_seconds=2)
    writer = write_spans(redis_pool, make_spans(1, 5))
    assert writer.write_stats().retries == 2
    found = [event.span_id for event in events if isinstance(event, SpanEvent)]
    assert len(found) == len(set(found)) == 5


@pytest.mark.every_redis
def test_a_tail_goes_on_from_its_position_within_an_entry_too(redis_pool: StoragePool) -> None:
    events = tail(redis_pool)
    position = events.position
    write_logs(redis_pool, [str(number) for number in range(450)])
    write_spans(redis_pool, make_spans(5, 50))
    seen: list[Any] = []
    for count in itertools.cycle([1, 3, 199, 200, 201, 7]):
        part = [*itertools.islice(events, count)]
        seen += part
        if not part:
            break
        events = tail(redis_pool, position=events.position)
    assert len(seen) == len(set(seen)) == 700
    assert len([*tail(redis_pool, position=position)]) == 700


def test_since_begins_with_what_is_there(redis_pool: StoragePool) -> None:
    write_logs(redis_pool, ["before"])
    until(lambda: redis_pool.stream.stats().published == 1)
    time.sleep(0.05)
    moment = dt.datetime.now(dt.UTC)
    write_logs(redis_pool, ["after"])
    assert [event.body for event in tail(redis_pool, since=moment) if isinstance(event, LogEvent)] == ["after"]
    hour_ago = moment - dt.timedelta(hours=1)
    assert len([*tail(redis_pool, since=hour_ago)]) == 2


def test_filters_let_through_what_they_name(redis_pool: StoragePool) -> None:
    row = {**make_spans(1, 1)[0], "status": "error", "model": "m", "name": "chat", "service_name": "a"}
    write_spans(redis_pool, [{**row, "resource": None}])
    write_logs(redis_pool, ["one"], severity_number=9, service_name="a", trace_id=row["trace_id"])
    write_logs(redis_pool, ["two"], severity_number=17, service_name="b", project="other")
    with MetricWriter(redis_pool) as metrics:
        metrics.write_data_points(
            [{"metric": {"name": "load", "metric_type": "gauge"}, "timestamp": NOW, "value": 1.0}]
        )
    begin = NOW - dt.timedelta(hours=1)

    def kinds(**filters: Any) -> list[str]:
        found = tail(redis_pool, TailFilters(**filters), since=begin, idle_timeout_seconds=0.3)
        return sorted(event.body or "" if isinstance(event, LogEvent) else event.name or "" for event in found)

    assert kinds() == ["chat", "load", "one", "two"]
    assert kinds(project="other") == ["two"]
    assert kinds(signals=["logs", "metrics"]) == ["load", "one", "two"]
    assert kinds(service_name="a") == ["chat", "one"]
    assert kinds(trace_id=row["trace_id"]) == ["chat", "one"]
    assert kinds(min_severity="error") == ["two"]
    assert kinds(status="error") == kinds(model="m") == ["chat"]
    assert kinds(name="load") == ["load"]


def test_what_cannot_be_asked_is_refused(redis_pool: StoragePool, pool: StoragePool) -> None:
    for position in ("", "x", "W10", "WzEsICIxIiwgW11d"):
        with pytest.raises(InvalidFilterError, match="malformed"):
            redis_pool.stream.tail(position=position)
    with pytest.raises(InvalidFilterError, match="not both"):
        redis_pool.stream.tail(position=tail(redis_pool).position, since=NOW)
    with pytest.raises(InvalidFilterError, match="signals"):
        TailFilters(signals=frozenset())
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        _ = pool.stream


def test_streams_are_trimmed_by_length_and_age_and_gaps_are_counted(database_url: str, redis_url: str) -> None:
    settings: dict[str, Any] = {"redis_stream_max_entries": 20, "redis_stream_max_age_seconds": 60}
    with StoragePool.from_url(database_url, redis_url=redis_url, max_connections=4, **settings) as pool:
        first = tail(pool, idle_timeout_seconds=5)
        with LogWriter(pool) as writer:
            for number in range(300):
                writer.write_log({"timestamp": NOW, "body": str(number)})
                writer.flush()
                if not number:
                    next(first)
        found = [event.body for event in tail(pool, position=first.position) if isinstance(event, LogEvent)]
        rest = tail(pool, position=first.position)
        rest._publishers = dict(first._publishers)
        assert len([*rest]) + rest.missed == 299
        # The server trims whole nodes of a hundred entries.
        assert 20 <= len(found) < 150
        client = pool.redis
        assert client is not None
        key = f"observatory:{pool.config.postgres.database}:events:logs:default"
        left_ms = client.pttl(key)
        assert isinstance(left_ms, int)
        assert 0 < left_ms <= 60_000


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as process:
        yield process


@pytest.fixture
def own_pool(database_url: str, server: RedisProcess) -> Iterator[StoragePool]:
    """A pool with a Redis of its own, which the test may hurt."""
    settings: dict[str, Any] = {"redis_cache_timeout_seconds": 0.2, "min_connections": 1, "max_connections": 8}
    with StoragePool.from_url(database_url, redis_url=server.url, **settings) as pool:
        yield pool


def test_a_tail_waits_for_redis_and_goes_on(own_pool: StoragePool, server: RedisProcess) -> None:
    events = tail(own_pool, idle_timeout_seconds=5)
    write_logs(own_pool, ["before"])
    first = next(events)
    assert isinstance(first, LogEvent)
    server.kill()
    write_logs(own_pool, ["while it is away"])
    server.start()
    assert own_pool.cache is not None
    cache = own_pool.cache
    until(lambda: not cache.stats().is_open)
    write_logs(own_pool, ["after"])
    second = next(events)
    assert isinstance(second, LogEvent)
    assert (first.body, second.body) == ("before", "after")
    # Not told of, but told that there was something.
    assert events.missed == own_pool.stream.stats().dropped == 1


def test_a_redis_that_is_away_is_said_at_the_beginning(own_pool: StoragePool, server: RedisProcess) -> None:
    server.kill()
    with pytest.raises(UnavailableError, match="Redis does not answer"):
        own_pool.stream.tail()


def test_what_is_too_much_is_dropped_and_counted_and_never_waited_for(
    own_pool: StoragePool, server: RedisProcess
) -> None:
    events = tail(own_pool, idle_timeout_seconds=2)
    write_spans(own_pool, make_spans(2, 10))
    assert len([*itertools.islice(events, 20)]) == 20
    server.pause()
    started = time.monotonic()
    writer = write_spans(own_pool, make_spans(100, 40, seed=2), batch_size=500)
    assert writer.write_stats().spans_written == 4000
    assert time.monotonic() - started < 5
    server.resume()
    assert own_pool.cache is not None
    cache = own_pool.cache
    until(lambda: not cache.stats().is_open)
    until(lambda: own_pool.stream.stats().waiting == 0)
    write_spans(own_pool, make_spans(2, 10, seed=3))
    until(lambda: own_pool.stream.stats().waiting == 0)
    stats = own_pool.stream.stats()
    assert stats.published + stats.dropped == 4040
    assert stats.dropped > 0
    assert len([*events]) + events.missed >= 4020


# --- LogRepository.stream_logs ---


@pytest.mark.every_redis
def test_a_follower_is_woken_when_records_are_committed(redis_pool: StoragePool) -> None:
    over = threading.Event()
    stream = LogRepository(redis_pool).stream_logs(poll_interval_seconds=60, stop=over.is_set)
    with ThreadPoolExecutor(1) as threads:
        arrivals: list[float] = []

        def follow() -> list[str | None]:
            bodies = []
            for record in stream:
                arrivals.append(time.monotonic())
                bodies.append(record.body)
            return bodies

        found = threads.submit(follow)
        committed = []
        for number in range(5):
            time.sleep(0.3)
            # However late, by its own time.
            with LogWriter(redis_pool) as writer:
                writer.write_log({"timestamp": NOW - dt.timedelta(hours=number), "body": str(number)})
            committed.append(time.monotonic())
        time.sleep(0.7)
        over.set()
        assert found.result() == ["0", "1", "2", "3", "4"]
    assert max(arrival - commit for arrival, commit in zip(arrivals, committed, strict=True)) < 0.6


def test_followers_miss_nothing_and_get_nothing_twice_whatever_redis_does(
    own_pool: StoragePool, server: RedisProcess
) -> None:
    """Writers with and without Redis, three of whose outages a follower does not notice but by waiting longer."""
    over = threading.Event()
    stream = LogRepository(own_pool).stream_logs(poll_interval_seconds=0.5, stop=over.is_set, batch_size=50)
    url = own_pool.config.postgres.conninfo()
    assert url

    def writing(name: str) -> int:
        with LogWriter(own_pool, WriterConfig(batch_size=40)) as writer:
            for number in range(60):
                times = [NOW - dt.timedelta(minutes=(number * 7 + at) % 90) for at in range(10)]
                writer.write_logs(
                    [{"timestamp": time, "body": f"{name} {number} {at}"} for at, time in enumerate(times)]
                )
                writer.flush()
                time.sleep(0.02)
        return 600

    def following() -> list[LogRecord]:
        return list(stream)

    with ThreadPoolExecutor(4) as threads:
        found = threads.submit(following)
        writers = [threads.submit(writing, name) for name in ("a", "b")]
        for disturb in (server.pause, server.resume, server.kill, server.start, server.pause, server.resume):
            time.sleep(0.25)
            disturb()
        written = sum(task.result() for task in writers)
        time.sleep(1.5)
        over.set()
        records = found.result()
    assert len(records) == len({record.id for record in records}) == written


# --- The command line ---


def test_the_command_prints_events_as_they_come(redis_pool: StoragePool, database_url: str, redis_url: str) -> None:
    write_logs(redis_pool, ["before"], severity_number=17)
    command = program("tail", "--since", "1h", "--database-url", database_url, "--redis-url", redis_url)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as following:
        try:
            assert following.stdout is not None
            assert b"ERROR" in (line := following.stdout.readline())
            assert line.endswith(b"before\n")
            write_spans(redis_pool, [{**make_spans(1, 1)[0], "name": "chat\x1b[2J"}])
            line = following.stdout.readline()
            assert b"span" in line
            assert b"chat" in line
            assert b"\x1b" not in line
            following.terminate()
            assert following.wait(20) == 143
        finally:
            following.kill()


def test_the_command_goes_on_from_a_position_and_says_what_is_missing(
    redis_pool: StoragePool, database_url: str, redis_url: str
) -> None:
    where = ("--database-url", database_url, "--redis-url", redis_url)
    write_logs(redis_pool, ["one", "two"])
    lines = _lines(["tail", "--json", "--since", "1h", "--signal", "logs", *where], 2)
    assert {line["body"] for line in lines} == {"one", "two"}
    assert lines[0]["signal"] == "logs"
    again = _lines(["tail", "--json", "--position", lines[0]["position"], *where], 1)
    assert again[0]["body"] == lines[1]["body"]
    refused = invoke("tail", "--position", "x", *where)
    assert refused.status == 2
    missing = invoke("tail", "--database-url", database_url)
    assert missing.status == 1
    assert "REDIS_URL" in missing.stderr


def _lines(arguments: list[str], number: int) -> list[dict[str, Any]]:
    with subprocess.Popen(program(*arguments), stdout=subprocess.PIPE, env=environment()) as following:
        try:
            assert following.stdout is not None
            return [json.loads(following.stdout.readline()) for _ in range(number)]
        finally:
            following.terminate()
