"""TraceWriter: both methods store the same rows, exactly once, with exact summaries."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import RejectedRowError
from observatory_storage.identity import TRACE_NAMESPACE
from observatory_storage.models import Trace, TraceEvent, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.telemetry import NOW, assert_summaries_exact, count, make_spans, stored

METHODS = (WriteMethod.INSERT, WriteMethod.COPY)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


@pytest.fixture
def write(pool: StoragePool, method: WriteMethod) -> Callable[..., list[RejectedRowError]]:
    """Write spans in batches and return what was rejected."""

    def run(*batches: list[dict[str, Any]], **config: Any) -> list[RejectedRowError]:
        rejected: list[RejectedRowError] = []
        with TraceWriter(pool, WriterConfig(method=method, **config), on_rejected=rejected.append) as writer:
            for batch in batches:
                writer.write_spans(batch)
                writer.flush()
        return rejected

    return run


Write = Callable[..., list[RejectedRowError]]


@pytest.mark.every_server
def test_all_that_is_written_is_stored_with_exact_summaries(write: Write, database_url: str) -> None:
    spans = make_spans(traces=12, spans=9)
    assert write(spans) == []
    tables = stored(database_url)
    assert len(tables["trace_spans"]) == len(spans)
    assert len(tables["trace_events"]) == sum(len(span["events"]) for span in spans)
    assert len(tables["traces"]) == 12
    assert len(tables["resources"]) == len({span["service_name"] for span in spans})
    by_key = {(row["trace_id"].bytes, bytes(row["span_id"])): row for row in tables["trace_spans"]}
    for span in spans:
        row = by_key[span["trace_id"], span["span_id"]]
        for name, value in span.items():
            if name in ("events", "resource", "trace_id"):
                continue
            if name == "counts_usage":
                assert value == (row["counts_usage"] or row["repeats_usage"])
                continue
            assert row[name] == value, name
        assert row["duration_us"] == (span["end_time"] - span["start_time"]) // dt.timedelta(microseconds=1)
    assert_summaries_exact(database_url)


@pytest.mark.every_server
def test_a_replay_changes_nothing(write: Write, database_url: str) -> None:
    spans = make_spans(traces=20)
    write(spans)
    first = stored(database_url)
    shuffled = spans * 2
    random.Random(3).shuffle(shuffled)
    write(spans, shuffled[:7], shuffled[7:150], shuffled[150:])
    assert stored(database_url) == first


def test_any_order_and_any_split_give_the_same_tables(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    spans = make_spans(traces=6, spans=6, seed=5)

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(order=st.permutations(range(len(spans))), cuts=st.sets(st.integers(1, len(spans) - 1), max_size=6))
    def arrive(order: list[int], cuts: set[int]) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute("TRUNCATE trace_spans, trace_events, traces, resources")
        edges = [0, *sorted(cuts), len(spans)]
        with TraceWriter(pool, WriterConfig(method=method)) as writer:
            for first, last in pairwise(edges):
                writer.write_spans([spans[place] for place in order[first:last]])
                writer.flush()
        found = stored(database_url)
        seen.append(found)
        assert found == seen[0]
        assert_summaries_exact(database_url)

    seen: list[dict[str, Any]] = []
    arrive()
    assert len(seen) > 10


def test_insert_and_copy_store_the_same(pool: StoragePool, database_url: str) -> None:
    spans = make_spans(traces=10)
    results = []
    for method in METHODS:
        with psycopg.connect(database_url) as connection:
            connection.execute("TRUNCATE trace_spans, trace_events, traces, resources")
        with TraceWriter(pool, WriterConfig(method=method)) as writer:
            writer.write_spans(spans)
        results.append(stored(database_url))
    assert results[0] == results[1]


@pytest.mark.every_server
def test_a_finished_version_replaces_an_open_one_and_never_the_reverse(write: Write, database_url: str) -> None:
    finished = make_spans(traces=5, spans=5, seed=9)
    opened = [
        {**span, "end_time": None, "status": "unset", "input_tokens": None, "output_tokens": None, "events": []}
        for span in finished
    ]
    write(finished)
    want = stored(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("TRUNCATE trace_spans, trace_events, traces, resources")
    write(opened, finished[::2], opened, finished, opened)
    assert stored(database_url) == want
    assert_summaries_exact(database_url)


def test_replacement_within_one_batch_and_counts(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    span = make_spans(traces=1, spans=1)[0]
    opened = {**span, "end_time": None, "events": []}
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        writer.write_spans([opened, span, opened])
        writer.flush()
        assert writer.write_stats().spans_written == 1
        assert writer.write_stats().spans_duplicate == 2
        other = {**opened, "span_id": b"01234567"}
        writer.write_span(other)
        writer.flush()
        writer.write_span({**other, "end_time": span["end_time"]})
        writer.flush()
        stats = writer.write_stats()
    assert (stats.spans_written, stats.spans_replaced, stats.spans_duplicate) == (2, 1, 2)
    assert_summaries_exact(database_url)


def test_a_trace_whose_root_never_arrives_is_named_by_its_earliest_span(write: Write, database_url: str) -> None:
    spans = make_spans(traces=1, spans=5)
    write(spans[3:], spans[1:3])
    (trace,) = stored(database_url)["traces"]
    assert trace["has_root"] is False
    assert trace["name"] == min(spans[1:], key=lambda span: span["start_time"])["name"]
    write(spans[:1])
    (trace,) = stored(database_url)["traces"]
    assert (trace["has_root"], trace["name"]) == (True, "step 0")
    assert_summaries_exact(database_url)


@pytest.mark.parametrize("trace_first", [True, False])
def test_a_trace_keeps_its_own_status_and_attributes_in_any_order(
    pool: StoragePool, database_url: str, method: WriteMethod, trace_first: bool
) -> None:
    spans = make_spans(traces=1, spans=3)
    own = {"id": spans[0]["trace_id"], "name": "mine", "status": "ok", "attributes": {"release": "7"}}
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        steps: list[Callable[[], None]] = [lambda: writer.write_trace(own), lambda: writer.write_spans(spans)]
        for step in steps if trace_first else reversed(steps):
            step()
            writer.flush()
    (trace,) = stored(database_url)["traces"]
    assert (trace["status"], trace["attributes"]) == ("ok", {"release": "7"})
    assert (trace["name"], trace["span_count"]) == ("step 0", 3)


def test_a_trace_without_spans_has_what_it_was_given(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    key = uuid.uuid4()
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        writer.write_trace(Trace(id=key, name="batch job", start_time=NOW, end_time=NOW, user_id="u"))
    (trace,) = stored(database_url)["traces"]
    assert (trace["id"], trace["name"], trace["start_time"], trace["user_id"]) == (key, "batch job", NOW, "u")
    assert (trace["duration_us"], trace["span_count"]) == (0, 0)


def test_orm_instances_and_mappings_are_the_same(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    trace_id = uuid.uuid4()
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        writer.write_span(
            TraceSpan(trace_id=trace_id, span_id="00f067aa0ba902b7", name="orm", start_time=NOW, attributes={"a": 1})
        )
        writer.write_event(
            TraceEvent(trace_id=trace_id, span_id="00f067aa0ba902b7", span_start_time=NOW, name="e", timestamp=NOW)
        )
    tables = stored(database_url)
    assert tables["trace_spans"][0]["attributes"] == {"a": 1}
    assert tables["trace_events"][0]["name"] == "e"


def test_loose_events_are_stored_once_and_survive_a_replacement(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    span = {**make_spans(traces=1, spans=1)[0], "events": []}
    event = {
        "trace_id": span["trace_id"],
        "span_id": span["span_id"],
        "span_start_time": span["start_time"],
        "timestamp": NOW,
        "name": "token",
        "attributes": {"n": 1},
    }
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        for _ in range(2):
            writer.write_events([event, event, {**event, "attributes": {"n": 2}}])
            writer.flush()
        writer.write_span({**span, "end_time": None})
        writer.flush()
        writer.write_span({**span, "events": [{"name": "own", "timestamp": NOW}]})
    names = [row["name"] for row in stored(database_url)["trace_events"]]
    assert sorted(names) == ["own", "token", "token"]


def test_a_span_of_another_projects_trace_is_rejected_alone(write: Write, database_url: str) -> None:
    ours, theirs = make_spans(traces=2, spans=3)[:3], make_spans(traces=2, spans=3)[3:]
    write(theirs, project="theirs")
    before = [row for row in stored(database_url)["traces"] if row["project"] == "theirs"]
    rejected = write([*ours, {**theirs[0], "span_id": b"12345678"}, theirs[1]], project="ours")
    assert [error.reason for error in rejected] == ["its trace belongs to project 'theirs'"] * 2
    tables = stored(database_url)
    assert {row["project"] for row in tables["trace_spans"]} == {"ours", "theirs"}
    assert len(tables["trace_spans"]) == 6
    assert [row for row in tables["traces"] if row["project"] == "theirs"] == before
    assert_summaries_exact(database_url)


def test_one_batch_may_hold_several_projects(write: Write, database_url: str) -> None:
    spans = make_spans(traces=2, spans=2)
    mixed = [{**span, "project": "a" if place < 2 else "b"} for place, span in enumerate(spans)]
    assert write([*mixed, {**mixed[0], "project": "b", "span_id": b"abcdefgh"}])[0].reason.endswith("'a'")
    assert sorted(row["project"] for row in stored(database_url)["traces"]) == ["a", "b"]
    assert_summaries_exact(database_url)


def test_textual_ids_resolve_and_their_originals_are_kept(write: Write, database_url: str) -> None:
    span = {**make_spans(traces=1, spans=1)[0], "trace_id": "trace_xyz789", "span_id": "span one"}
    child = {**span, "span_id": "span two", "parent_span_id": "span one", "events": []}
    write([span, child])
    tables = stored(database_url)
    assert tables["traces"][0]["id"] == uuid.uuid5(TRACE_NAMESPACE, "trace_xyz789")
    by_name = {row["attributes"]["observatory.span_id"]: row for row in tables["trace_spans"]}
    assert by_name["span two"]["parent_span_id"] == by_name["span one"]["span_id"]
    assert by_name["span two"]["attributes"]["observatory.parent_span_id"] == "span one"
    assert by_name["span one"]["attributes"]["observatory.trace_id"] == "trace_xyz789"


def test_the_day_gets_a_partition_and_far_days_go_to_default(write: Write, database_url: str) -> None:
    spans = make_spans(traces=1, spans=4)
    days = [NOW, NOW - dt.timedelta(days=30), NOW - dt.timedelta(days=4_000), NOW + dt.timedelta(days=900)]
    for span, day in zip(spans, days, strict=True):
        span["start_time"], span["end_time"] = day, day
    write(spans)
    with psycopg.connect(database_url) as connection:
        places = connection.execute("SELECT tableoid::regclass::text, start_time FROM trace_spans").fetchall()
    found = {start.astimezone(dt.UTC): name for name, start in places}
    assert [found[day] for day in days] == [
        f"trace_spans_p{days[0]:%Y%m%d}",
        f"trace_spans_p{days[1]:%Y%m%d}",
        "trace_spans_default",
        "trace_spans_default",
    ]
    assert_summaries_exact(database_url)


def test_rows_that_waited_in_default_move_when_their_day_gets_a_partition(write: Write, database_url: str) -> None:
    old = NOW - dt.timedelta(days=40)
    spans = make_spans(traces=1, spans=3, start=old)
    write(spans, partition_days_back=1)
    assert count(database_url, "trace_spans_default") == 3
    write(spans, partition_days_back=90)
    assert count(database_url, "trace_spans_default") == 0
    assert count(database_url, f"trace_spans_p{old:%Y%m%d}") == 3


def test_costs_sum_exactly(write: Write, database_url: str) -> None:
    spans = make_spans(traces=1, spans=30)
    for span in spans:
        span |= {"cost_usd": 0.1, "counts_usage": True, "parent_span_id": None}
    write(spans)
    assert stored(database_url)["traces"][0]["cost_usd"] == Decimal("3.0")
