"""Retention: what is older than its policy goes and nothing else, in whole partitions where it can be."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table

from observatory_storage.errors import ConfigurationError
from observatory_storage.lifecycle import FOREVER, PartitionManager, RetentionPolicy, RetentionReport
from observatory_storage.lifecycle.expiry import Remover
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter, WriterConfig
from tests.logs import log, store_logs
from tests.metrics import Telemetry
from tests.retaining import (
    DAY,
    EVENTS,
    HOUR,
    LOGS,
    NOW,
    POINTS,
    SPANS,
    names,
    orphans,
    policy,
    projects,
    retain,
    span,
    write_spans,
)
from tests.signals import make_points
from tests.telemetry import assert_summaries_exact, count, make_spans
from tests.threads import threads


@pytest.mark.every_server
def test_whole_partitions_go_where_every_project_agrees(pool: StoragePool, database_url: str) -> None:
    write_spans(pool, [span(NOW - days * DAY) for days in (1, 5, 9, 20)])
    PartitionManager(pool).ensure(LOGS, [NOW - days * DAY for days in (1, 9)])
    store_logs(pool, [log(0, timestamp=NOW - days * DAY) for days in (1, 9)])
    policies = policy("traces", 7 * DAY), policy("logs", 2 * DAY)
    before = names(pool, SPANS), names(pool, LOGS)
    dry = retain(pool, *policies, dry_run=True)
    assert (names(pool, SPANS), names(pool, LOGS)) == before
    assert count(database_url, "traces") == 4
    done = retain(pool, *policies)
    assert set(done.partitions_dropped) == set(dry.partitions_left)
    assert set(done.partitions_dropped) == {
        *(f"{table}_p{NOW - days * DAY:%Y%m%d}" for table in ("trace_spans", "trace_events") for days in (9, 20)),
        f"logs_p{NOW - 9 * DAY:%Y%m%d%H}",
    }
    assert done.rows_deleted == dry.rows_left == {"traces": 2}
    assert done.bytes_freed == dry.bytes_left > 0
    assert [count(database_url, table) for table in ("traces", "trace_spans", "trace_events", "logs")] == [2, 2, 2, 1]
    assert_summaries_exact(database_url)
    assert retain(pool, *policies) == RetentionReport()


@pytest.mark.every_server
def test_exceptions_go_by_rows(pool: StoragePool, database_url: str) -> None:
    for project in ("short", "long"):
        write_spans(pool, [span(NOW - days * DAY) for days in (1, 5, 9) for _ in range(5)], project)
        PartitionManager(pool).ensure(LOGS, [NOW - days * DAY for days in (1, 9)])
        store_logs(pool, [log(0, timestamp=NOW - days * DAY, project=project) for days in (1, 9, 400)])
    policies = [policy(signal, 3 * DAY, "short") for signal in ("traces", "logs")]
    dry = retain(pool, *policies, dry_run=True)
    done = retain(pool, *policies)
    assert done.partitions_dropped == ()
    assert done.rows_deleted == dry.rows_left == {"traces": 10, "trace_spans": 10, "trace_events": 10, "logs": 2}
    assert projects(database_url, "traces") == {"short": 5, "long": 15}
    assert projects(database_url, "logs") == {"short": 1, "long": 3}
    assert_summaries_exact(database_url)
    assert orphans(database_url) == 0


@pytest.mark.every_server
def test_points_go_and_later_what_has_none_left(pool: StoragePool, database_url: str) -> None:
    for project in ("a", "b"):
        telemetry = Telemetry()
        ended = telemetry.metric("ended", project=project)
        telemetry.add(ended, [(NOW - 9 * DAY, 1), (NOW - 8 * DAY, 1)], {"n": 1})
        living = telemetry.metric("living", project=project)
        telemetry.add(living, [(NOW - 9 * DAY, 1), (NOW - DAY, 1)], {"n": 1})
        if project == "a":
            PartitionManager(pool).ensure(POINTS, [NOW - 9 * DAY, NOW - DAY])
        telemetry.store(pool)
    policies = [policy("metrics", 3 * DAY), policy("metrics", FOREVER, "b")]
    assert retain(pool, *policies).rows_deleted == {"metric_data_points": 3}
    assert retain(pool, *policies) == RetentionReport(), "parents went that writers may remember"
    with psycopg.connect(database_url, autocommit=True) as connection:
        for table in ("metrics", "metric_series"):
            connection.execute(f"UPDATE {table} SET seen_at = now() - interval '30 days'".encode())
    assert retain(pool, *policies).rows_deleted == {"metric_series": 1, "metrics": 1}
    assert projects(database_url, "metrics") == {"a": 1, "b": 2}
    assert projects(database_url, "metric_series") == {"a": 1, "b": 2}
    retain(pool, policy("metrics", 3 * DAY))
    assert len(names(pool, POINTS)) == 1


def test_a_trace_that_goes_on_keeps_all_its_spans(pool: StoragePool, database_url: str) -> None:
    long = random.Random(1).randbytes(16)
    write_spans(pool, [span(NOW - 9 * DAY, trace=long), span(NOW - DAY, trace=long, parent_span_id=b"12345678")])
    write_spans(pool, [span(NOW - 9 * DAY) for _ in range(10)])
    done = retain(pool, policy("traces", 3 * DAY))
    assert done.partitions_dropped == ()
    assert done.rows_deleted == {"traces": 10, "trace_spans": 10, "trace_events": 10}
    assert count(database_url, "trace_spans") == 2
    assert_summaries_exact(database_url)
    assert orphans(database_url) == 0


def test_without_a_policy_nothing_goes(pool: StoragePool, database_url: str) -> None:
    write_spans(pool, [span(NOW - 900 * DAY), span(dt.datetime(1970, 1, 1, tzinfo=dt.UTC))])
    store_logs(pool, [log(0, timestamp=NOW - 900 * DAY)])
    assert retain(pool) == RetentionReport()
    assert retain(pool, policy("traces", DAY, "other"), policy("logs", FOREVER)) == RetentionReport()
    assert pool.maintain(ahead=HOUR).retention == RetentionReport()
    assert count(database_url, "traces") == 2
    # What lies in DEFAULT goes as well.
    assert retain(pool, policy("traces", DAY), policy("logs", DAY)).rows_deleted == {
        "traces": 2,
        "trace_spans": 2,
        "trace_events": 2,
        "logs": 1,
    }


def test_a_trace_that_a_writer_holds_is_left_for_the_next_run(pool: StoragePool, database_url: str) -> None:
    write_spans(pool, [span(NOW - 9 * DAY) for _ in range(4)])
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT 1 FROM traces ORDER BY id LIMIT 1 FOR UPDATE")
        assert retain(pool, policy("traces", 3 * DAY)).rows_deleted["traces"] == 3
        assert_summaries_exact(database_url)
    retain(pool, policy("traces", 3 * DAY))
    assert [count(database_url, table) for table in ("traces", "trace_spans", "trace_events")] == [0, 0, 0]
    assert names(pool, SPANS) == []


def test_an_interrupted_run_is_finished_by_the_next(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spans(pool, [span(NOW - days * DAY) for days in (8, 9) for _ in range(10)])

    def killed(*_: Any, **__: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartitionManager, "drop", killed)
        with pytest.raises(KeyboardInterrupt):
            retain(pool, policy("traces", 3 * DAY))
    assert (count(database_url, "traces"), count(database_url, "trace_spans")) == (0, 20)
    # Meanwhile a project came that keeps more: what is left of the others goes by rows.
    write_spans(pool, [span(NOW - 9 * DAY)], "research")
    policies = policy("traces", 3 * DAY), policy("traces", FOREVER, "research")
    done = retain(pool, *policies)
    assert done.rows_deleted == {"trace_spans": 10, "trace_events": 10}
    assert (count(database_url, "trace_spans"), count(database_url, "trace_events")) == (1, 1)
    assert_summaries_exact(database_url)


def test_a_reader_in_the_way_leaves_the_partition_for_later(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory_storage.lifecycle.partitions._REMOVAL_ATTEMPTS", 2)
    PartitionManager(pool).ensure(LOGS, [NOW - 9 * DAY])
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM logs")
        report = pool.maintain(ahead=HOUR, retention=[policy("logs", 3 * DAY)])
    assert len(report.retention.partitions_left) == 1
    assert not report.is_complete
    assert any("could not be dropped" in problem for problem in report.problems)
    assert pool.maintain(ahead=HOUR, retention=[policy("logs", 3 * DAY)]).is_complete


@pytest.mark.every_server
def test_what_comes_just_before_the_drop_stays(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = NOW - 9 * DAY
    long = random.Random(7).randbytes(16)
    for table in (LOGS, POINTS):
        PartitionManager(pool).ensure(table, [old])
    write_spans(pool, [span(old)])
    store_logs(pool, [log(0, timestamp=old)])
    measure = Remover.size

    def late(remover: Remover, table: Table, partitions: Sequence[str]) -> int:
        # Called when a partition was found to be free and is about to be dropped.
        if table is LOGS:
            store_logs(pool, [log(0, timestamp=old, project="kept")])
        elif table is SPANS and not count(database_url, "traces"):
            write_spans(pool, [span(old, trace=long), span(NOW, trace=long, parent_span_id=b"12345678")])
        elif table is POINTS:
            telemetry = Telemetry()
            telemetry.add(telemetry.metric("m", project="kept"), [(old, 1)])
            telemetry.store(pool)
        return measure(remover, table, partitions)

    policies = [policy(signal, 3 * DAY) for signal in ("traces", "logs", "metrics")]
    policies += [policy(signal, FOREVER, "kept") for signal in ("logs", "metrics")]
    with monkeypatch.context() as patch:
        patch.setattr(Remover, "size", late)
        assert retain(pool, *policies).partitions_dropped == ()
    assert projects(database_url, "logs") == {"default": 1, "kept": 1}
    assert projects(database_url, "metric_data_points") == {"kept": 1}
    assert count(database_url, "trace_spans") == count(database_url, "trace_events") == 2
    retain(pool, *policies)
    assert projects(database_url, "logs") == {"kept": 1}
    assert_summaries_exact(database_url)


TIMES = st.one_of(st.integers(0, 12 * 24), st.sampled_from([24 * 400, 24 * 20_000]))
KEEPS = st.sampled_from([None, HOUR, DAY, 3 * DAY, 10 * DAY, FOREVER])


@pytest.mark.every_server
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keeps=st.fixed_dictionaries({(s, p): KEEPS for s in ("traces", "logs", "metrics") for p in (None, "a", "b")}),
    rows=st.lists(st.tuples(st.sampled_from("abc"), TIMES, st.integers(0, 72)), min_size=1, max_size=10),
    partitioned=st.booleans(),
)
def test_what_goes_is_what_the_policies_say(
    pool: StoragePool,
    database_url: str,
    keeps: dict[tuple[str, str | None], dt.timedelta | None],
    rows: list[tuple[str, int, int]],
    partitioned: bool,
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for table in (SPANS, EVENTS, LOGS, POINTS):
            for name in names(pool, table):
                connection.execute(f"DROP TABLE {name}".encode())
        connection.execute(
            "TRUNCATE traces, trace_spans, trace_events, logs, metrics, metric_series, metric_data_points"
        )
    policies = [policy(signal, keep, project) for (signal, project), keep in keeps.items() if keep is not None]

    def cutoff(signal: str, project: str) -> dt.datetime | None:
        keep = keeps[signal, project] if project in "ab" else None
        keep = keep or keeps[signal, None]
        return None if keep in (None, FOREVER) or keep is None else NOW - keep

    def border(time: dt.datetime, width: dt.timedelta) -> dt.datetime:
        return time.replace(minute=0, hour=0 if width == DAY else time.hour)

    given_rows = [(project, NOW - hours * HOUR, length) for project, hours, length in rows]
    if partitioned:
        for table in (SPANS, EVENTS, LOGS, POINTS):
            PartitionManager(pool).ensure(table, [at for _, at, _ in given_rows if at > NOW - 20 * DAY])
    expected: dict[str, list[Any]] = {"traces": [], "logs": [], "metrics": []}
    telemetry = Telemetry()
    for number, (project, start, length) in enumerate(given_rows):
        trace = uuid.UUID(int=number + 1)
        last = min(start + length * HOUR, NOW)
        write_spans(pool, [span(start, trace=trace.bytes), span(last, trace=trace.bytes)], project)
        store_logs(pool, [log(0, timestamp=start, project=project, id=trace, route_id=trace)])
        telemetry.add(telemetry.metric(project, "gauge", project=project), [(start, number)], {"n": number})
        at = cutoff("traces", project)
        if at is None or start >= border(at - HOUR, DAY) or last + dt.timedelta(seconds=1) >= at:
            expected["traces"].append(trace)
        for signal, width in (("logs", HOUR), ("metrics", DAY)):
            at = cutoff(signal, project)
            if at is None or start >= border(at, width):
                expected[signal].append(trace if signal == "logs" else float(number))
    telemetry.store(pool)
    dry = retain(pool, *policies, dry_run=True)
    done = retain(pool, *policies)
    assert dry.rows_left.get("traces", 0) == done.rows_deleted.get("traces", 0)
    assert sorted(dry.partitions_left) == sorted(done.partitions_dropped)
    assert done.bytes_freed == dry.bytes_left or done.rows_deleted
    with psycopg.connect(database_url) as connection:
        for signal, query in (
            ("traces", "SELECT id FROM traces ORDER BY id"),
            ("logs", "SELECT id FROM logs ORDER BY id"),
            ("metrics", "SELECT value FROM metric_data_points ORDER BY value"),
        ):
            assert [row[0] for row in connection.execute(query.encode())] == expected[signal], signal
    assert orphans(database_url) == 0
    assert_summaries_exact(database_url)
    again = retain(pool, *policies)
    assert (again.partitions_dropped, again.rows_deleted) == ((), {})


@pytest.mark.every_server
def test_four_writers_go_on_and_lose_nothing(database_url: str) -> None:
    kept: list[int] = [0] * 4
    stop = threading.Event()
    with StoragePool.from_url(database_url, min_connections=1, max_connections=12) as pool:
        write_spans(pool, make_spans(40, 5, start=NOW - 9 * DAY), "a")
        write_spans(pool, make_spans(40, 5, seed=2, start=NOW - 10 * DAY), "b")

        def write(place: int) -> None:
            dice = random.Random(place)
            project = "ab"[place % 2]
            with TraceWriter(pool, WriterConfig(batch_size=40, project=project)) as writer:
                while not stop.is_set():
                    for days in (0, 2, 6):
                        spans = make_spans(4, 5, seed=dice.randrange(10**9), start=NOW - days * DAY)
                        writer.write_spans(spans)
                        writer.flush()
                        kept[place] += len(spans) if days < 4 or project == "b" else 0

        policies = policy("traces", 4 * DAY), policy("traces", 8 * DAY, "b")
        dropped = 0
        with threads() as start:
            for place in range(4):
                start(write, place)
            try:
                until = time.monotonic() + 3
                while time.monotonic() < until:
                    dropped += len(retain(pool, *policies, batch_size=50).partitions_dropped)
            finally:
                stop.set()
        assert dropped == 4
        for _ in range(2):
            retain(pool, *policies, batch_size=50)
    assert count(database_url, "trace_spans") == sum(kept)
    assert_summaries_exact(database_url)
    assert orphans(database_url) == 0


def test_writers_of_logs_and_points_go_on(pool: StoragePool, database_url: str) -> None:
    stop = threading.Event()
    sent = [0]

    def write() -> None:
        with MetricWriter(pool) as metrics, LogWriter(pool) as logs:
            while not stop.is_set():
                points = make_points(5, 3, seed=sent[0], start=NOW + sent[0] * dt.timedelta(seconds=60))
                metrics.write_data_points(points)
                metrics.write_data_points(make_points(5, 3, seed=sent[0], start=NOW - 9 * DAY - sent[0] * HOUR / 60))
                logs.write_logs([{"timestamp": NOW - 9 * DAY, "body": f"old {sent[0]}"}])
                logs.write_logs([{"timestamp": NOW, "body": f"new {sent[0]}"}])
                metrics.flush()
                logs.flush()
                sent[0] += 1

    with threads() as start:
        start(write)
        try:
            for _ in range(5):
                retain(pool, policy("metrics", 3 * DAY), policy("logs", 3 * DAY))
        finally:
            stop.set()
    retain(pool, policy("metrics", 3 * DAY), policy("logs", 3 * DAY))
    assert count(database_url, "logs") == sent[0]
    with psycopg.connect(database_url) as connection:
        lost = connection.execute(
            "SELECT count(*) FROM metric_data_points p WHERE NOT EXISTS "
            "(SELECT FROM metric_series s WHERE s.metric_id = p.metric_id AND s.id = p.series_id)"
        ).fetchone()
    assert lost == (0,)


@pytest.mark.parametrize(
    ("signal", "project", "keep"), [("spans", None, DAY), ("logs", "", DAY), ("logs", None, dt.timedelta(minutes=1))]
)
def test_a_policy_that_makes_no_sense_is_refused(signal: str, project: str | None, keep: dt.timedelta) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RetentionPolicy(signal, project, keep)
    assert len(caught.value.problems) == 1
