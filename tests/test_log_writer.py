"""LogWriter: both methods store the same records, each exactly once, under ids that their content gives them."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import RejectedRowError
from observatory_storage.models import LogRecord
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, LogWriteStats, WriteMethod, WriterConfig, sql
from observatory_storage.writers.rows import query
from tests.signals import LOG_TABLES, Row, empty, make_logs, stored_rows, write_logs
from tests.telemetry import NOW, count

METHODS = (WriteMethod.INSERT, WriteMethod.COPY)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


Write = Callable[..., tuple[LogWriteStats, list[RejectedRowError]]]


@pytest.fixture
def write(pool: StoragePool, method: WriteMethod) -> Write:
    """Write requests; return what was counted and what was rejected."""
    return lambda *requests, **config: write_logs(pool, *requests, method=method, **config)


def logs_of(url: str) -> list[Row]:
    return stored_rows(url, "logs")["logs"]


@pytest.mark.every_server
def test_all_that_is_written_is_stored_as_it_was_given(write: Write, database_url: str) -> None:
    rows = make_logs(150)
    stats, rejected = write(rows)
    assert (stats.logs_written, rejected) == (150, [])
    tables = stored_rows(database_url, "logs", "resources")
    assert len(tables["resources"]) == len({row["service_name"] for row in rows})
    found: dict[int, list[Row]] = {}
    for row in tables["logs"]:
        found.setdefault(row["attributes"]["place"], []).append(row)
    for row in rows:
        stored = found[row["attributes"]["place"]].pop()
        for name, value in row.items():
            if name == "resource":
                assert {"id": stored["resource_id"], **value}.items() <= next(
                    resource for resource in tables["resources"] if resource["id"] == stored["resource_id"]
                ).items()
            elif name == "trace_id":
                assert stored["trace_id"].bytes == stored["route_id"].bytes == value
            elif name == "body" and value is None:
                assert stored["body"].startswith("structured ")
            else:
                assert stored[name] == value, name
        if "trace_id" not in row:
            assert stored["route_id"] == stored["id"]
    assert not any(found.values())


@pytest.mark.every_server
def test_a_replay_changes_nothing(write: Write, database_url: str) -> None:
    rows = make_logs(120)
    write(rows)
    first = stored_rows(database_url, *LOG_TABLES)
    stats, _ = write(rows, rows, batch_size=7)
    assert (stats.logs_written, stats.logs_duplicate) == (0, 240)
    shuffled = random.Random(3).sample(rows, len(rows))
    write(shuffled)
    assert stored_rows(database_url, *LOG_TABLES) == first


@pytest.mark.every_server
def test_what_is_new_beside_what_is_known_is_stored_also_where_duplicates_are_expected(
    write: Write, database_url: str
) -> None:
    rows = make_logs(2_600)
    known = rows[:120] + rows[1_300:1_340]
    # By one writer: the second request is a replay, so that the third is looked up.
    stats, rejected = write(known, known, rows, batch_size=3_000)
    first = logs_of(database_url)
    assert (len(first), stats.logs_written, stats.logs_duplicate) == (len(rows), len(rows), 2 * len(known))
    assert not rejected
    empty(database_url, *LOG_TABLES)
    write(rows)
    assert logs_of(database_url) == first


@pytest.mark.parametrize(("undated", "looks_up"), [(False, True), (True, False)])
def test_a_replay_is_looked_up_unless_that_would_open_years_of_partitions(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch, undated: bool, looks_up: bool
) -> None:
    looked: list[int] = []

    def counted(connection: Any, statement: str, *given: Any, **options: Any) -> Any:
        looked.append(1) if statement == sql.STORED_LOGS else None
        return query(connection, statement, *given, **options)

    monkeypatch.setattr("observatory_storage.writers.rows.query", counted)
    rows = make_logs(120)
    if undated:
        rows.append({"body": "of no time"})
    stats, _ = write_logs(pool, rows, rows, rows, method=WriteMethod.COPY)
    assert (stats.logs_written, stats.logs_duplicate) == (len(rows), 2 * len(rows))
    assert count(database_url, "logs") == len(rows)
    assert bool(looked) is looks_up


def test_all_methods_store_the_same_under_the_same_ids(pool: StoragePool, database_url: str) -> None:
    rows = make_logs(200)
    results = []
    for method in (*METHODS, WriteMethod.AUTO):
        empty(database_url, *LOG_TABLES)
        write_logs(pool, rows[:20], rows, method=method)
        results.append(stored_rows(database_url, *LOG_TABLES))
    assert results[0] == results[1] == results[2]


@pytest.mark.every_server
def test_any_order_and_any_split_give_the_same_records(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    # Equal records of one request are told apart by it, so that here none is equal to another.
    rows = [{**row, "body": f"{number}"} for number, row in enumerate(make_logs(30, seed=5))]
    seen: list[dict[str, list[Row]]] = []

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        order=st.permutations(range(len(rows))),
        cuts=st.sets(st.integers(1, len(rows) - 1), max_size=6),
        batch_size=st.sampled_from([1, 2, 3, 7, 5_000]),
    )
    def arrive(order: list[int], cuts: set[int], batch_size: int) -> None:
        empty(database_url, *LOG_TABLES)
        edges = [0, *sorted(cuts), len(order)]
        write_logs(
            pool,
            *([rows[place] for place in order[first:last]] for first, last in pairwise(edges)),
            method=method,
            batch_size=batch_size,
        )
        seen.append(stored_rows(database_url, *LOG_TABLES))
        assert seen[-1] == seen[0]

    arrive()
    assert len(seen[0]["logs"]) == len(rows)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5_000])
def test_equal_records_of_one_request_stay_several_however_it_is_split(
    write: Write, database_url: str, batch_size: int
) -> None:
    row = {"timestamp": NOW, "body": "again", "attributes": {"a": 1}}
    request: list[Row] = [dict(row), {**row, "body": "other"}, dict(row), row, row, {**row, "body": None}] * 2
    stats, _ = write(request, batch_size=batch_size)
    assert (stats.logs_written, stats.logs_duplicate) == (12, 0)
    first = logs_of(database_url)
    assert [row["body"] for row in first].count("again") == 8
    stats, _ = write(request, request, batch_size=batch_size + 1)
    assert (stats.logs_written, stats.logs_duplicate) == (0, 24)
    assert logs_of(database_url) == first


def test_equal_records_are_told_apart_whatever_the_order_of_their_keys(write: Write, database_url: str) -> None:
    row = {"timestamp": NOW, "body": "again", "severity_number": 9}
    write([row, dict(reversed(row.items())), {**row, "trace_id": None}])
    assert count(database_url, "logs") == 3


ALIKE: list[tuple[Row, Row]] = [
    ({"trace_id": "ab" * 16}, {"trace_id": b"\xab" * 16}),
    ({"trace_id": "AB" * 16}, {"trace_id": uuid.UUID("ab" * 16)}),
    ({"trace_id": b"t" * 16, "span_id": "cd" * 8}, {"trace_id": b"t" * 16, "span_id": b"\xcd" * 8}),
    ({"span_id": "0" * 16}, {"span_id": None}),
    ({"attributes": {"a": 1, "b": {"c": 2, "d": 3}}}, {"attributes": {"b": {"d": 3, "c": 2}, "a": 1}}),
    ({"attributes": {}}, {"attributes": None}),
    ({"attributes": {"a": float("nan")}}, {"attributes": {"a": None}}),
    ({"timestamp": NOW}, {"timestamp": NOW.astimezone(dt.timezone(dt.timedelta(hours=1)))}),
    ({"timestamp": NOW}, {"timestamp": NOW.replace(tzinfo=None)}),
    ({"observed_timestamp": NOW}, {"observed_timestamp": NOW, "timestamp": None}),
    ({"body": "a\x00b"}, {"body": "a\ufffdb"}),
    ({"body": 7}, {"body": "7"}),
    ({"body": None, "body_json": {"a": 1, "b": 2}}, {"body": None, "body_json": {"b": 2, "a": 1}}),
    ({"body": None, "body_json": {"a": "x"}}, {"body": "x", "body_json": {"a": "x"}}),
    ({"severity_number": 9}, {"severity_number": 9.0}),
    ({"trace_flags": "1"}, {"trace_flags": 1}),
    ({"project": "default"}, {"project": None}),
    (
        {"resource": {"service_name": "s", "attributes": {"a": 1, "b": 2}}},
        {"resource": {"attributes": {"b": 2, "a": 1}, "service_name": "s", "schema_url": None}},
    ),
]


@pytest.mark.parametrize(("one", "other"), ALIKE, ids=lambda row: "-".join(row))
def test_records_of_one_request_that_are_stored_alike_stay_several(
    write: Write, database_url: str, one: Row, other: Row
) -> None:
    row: Row = {"timestamp": NOW, "body": "again"}
    request = [row | one, row | other, row | one, {"timestamp": NOW, "body": "another"}, row | other]
    for batch_size in (2, 5_000):
        write(request, batch_size=batch_size)
        assert count(database_url, "logs") == 5
    # All that tells them apart is their number.
    write([row | other], batch_size=5_000)
    write([row | one], batch_size=5_000)
    assert count(database_url, "logs") == 5


def test_records_of_one_request_that_are_not_stored_alike_have_no_number(write: Write, database_url: str) -> None:
    row: Row = {"timestamp": NOW, "body": None}
    others: list[Row] = [
        {"body": "1"},
        {"body_json": 1},
        {"body_json": 1.5},
        {"body_json": "1"},
        {"body_json": {"a": True}},
        {"attributes": {"a": 1}},
        {"attributes": {"a": "1"}},
        {"project": "another"},
    ]
    for number in range(len(others)):
        write([row | others[number]])
    write([row | other for other in others], [row | other for other in reversed(others)])
    assert count(database_url, "logs") == len(others)


def test_equal_records_of_a_request_larger_than_the_buffer_stay_several(pool: StoragePool, database_url: str) -> None:
    row = {"timestamp": NOW, "body": "again"}
    config = WriterConfig(batch_size=13, max_buffered_rows=20, flush_interval_seconds=0.01)
    for _ in range(2):
        with LogWriter(pool, config) as writer:
            writer.write_logs(dict(row) for _ in range(1_100))
    assert count(database_url, "logs") == 1_100


def test_hundreds_of_records_of_one_time_keep_their_ids_in_any_batch(write: Write, database_url: str) -> None:
    rows = [{"timestamp": NOW, "body": f"{number % 300}"} for number in range(600)]
    for batch_size in (5_000, 100, 64):
        stats, _ = write(rows, batch_size=batch_size)
    assert (stats.logs_written, stats.logs_duplicate) == (0, 600)
    assert count(database_url, "logs") == 600


def test_a_record_written_by_itself_is_the_first_of_its_equals(pool: StoragePool, database_url: str) -> None:
    row: Row = {"timestamp": NOW, "body": "once", "attributes": {}}
    with LogWriter(pool) as writer:
        writer.write_log(row)
        writer.write_log(row)
        writer.flush()
        row["body"] = "changed after it was given"
        writer.write_logs([{"timestamp": NOW, "body": "once"}])
        writer.write_log(LogRecord(timestamp=NOW, body="once"))
    assert [row["body"] for row in logs_of(database_url)] == ["once"]
    assert (writer.write_stats().logs_written, writer.write_stats().logs_duplicate) == (1, 3)


def test_ids_are_uuids_of_version_8_in_the_order_of_time(write: Write, database_url: str) -> None:
    times = [NOW + dt.timedelta(milliseconds=number) for number in range(50)]
    write([{"timestamp": time, "body": "same"} for time in random.Random(1).sample(times, 50)])
    rows = logs_of(database_url)
    ids = [row["id"] for row in rows]
    assert {(key.version, key.variant) for key in ids} == {(8, uuid.RFC_4122)}
    assert [row["timestamp"] for row in sorted(rows, key=lambda row: row["id"])] == times
    assert [key.int >> 80 for key in ids] == [round(time.timestamp() * 1000) for time in times]


def test_an_id_is_the_same_for_ever(write: Write, database_url: str) -> None:
    # Stored records would otherwise be stored again when they are delivered once more.
    trace_id = bytes(range(16))
    time = dt.datetime(2026, 3, 10, 12, 0, 0, 123_456, tzinfo=dt.UTC)
    write(
        [
            {"timestamp": time, "body": "hello"},
            {"timestamp": time, "body": "hello", "ordinal": 1},
            {
                "timestamp": time,
                "project": "p",
                "trace_id": trace_id,
                "span_id": b"12345678",
                "body_json": {"a": ["x", 1]},
                "attributes": {"b": 1.5, "a": None},
                "severity_number": 9,
                "resource": {"service_name": "s", "attributes": {"service.name": "s"}},
            },
        ]
    )
    assert sorted(str(row["id"]) for row in logs_of(database_url)) == FIXED_IDS


FIXED_IDS = [
    "019cd79e-467b-8070-80b8-16ad3a0ba3c7",
    "019cd79e-467b-8085-8094-926420da7b91",
    "019cd79e-467b-80a1-8041-27815d5259c8",
]


DIFFERENCES: list[Row] = [
    {"timestamp": NOW + dt.timedelta(microseconds=1)},
    {"project": "other"},
    {"observed_timestamp": NOW},
    {"severity_number": 9},
    {"severity_text": "INFO"},
    {"body": "another"},
    {"body_json": {"a": 1}},
    {"event_name": "e"},
    {"trace_id": b"t" * 16},
    {"span_id": b"s" * 8},
    {"trace_flags": 1},
    {"service_name": "s"},
    {"scope_name": "s"},
    {"scope_version": "1"},
    {"scope_attributes": {"a": 1}},
    {"attributes": {"a": 1}},
    {"attributes": {"a": 1.0}},
    {"dropped_attributes_count": 1},
    {"resource": {"attributes": {"a": 1}}},
    {"resource": {"attributes": {"a": 2}}},
    {"resource_id": uuid.UUID(int=1)},
]


@pytest.mark.parametrize("batch_size", [1, 5_000])
def test_records_that_differ_in_anything_are_different_records(
    write: Write, database_url: str, batch_size: int
) -> None:
    base = {"timestamp": NOW, "body": "one"}
    rows = [base, *({**base, **difference} for difference in DIFFERENCES)]
    stats, rejected = write(rows, rows, batch_size=batch_size)
    assert (stats.logs_written, stats.logs_duplicate, rejected) == (len(rows), len(rows), [])
    assert len({row["id"] for row in logs_of(database_url)}) == len(rows)


def test_what_means_the_same_is_one_record(write: Write, database_url: str) -> None:
    trace_id = uuid.uuid4()
    base = {"timestamp": NOW, "body": "one", "trace_id": trace_id.bytes, "span_id": b"\x01" * 8, "attributes": {}}
    berlin = dt.timezone(dt.timedelta(hours=1))
    same: list[Row] = [
        {"trace_id": str(trace_id), "span_id": "01" * 8},
        {"timestamp": NOW.astimezone(berlin)},
        {"timestamp": NOW.replace(tzinfo=None)},
        {"timestamp": None, "attributes": None, "project": "default", "severity_text": None},
    ]
    same[3] |= {"timestamp": NOW}
    write([base], *([{**base, **form}] for form in same))
    assert count(database_url, "logs") == 1


def test_given_ids_are_kept(write: Write, database_url: str) -> None:
    own = [uuid.uuid4(), uuid.uuid4()]
    rows: list[Row] = [
        {"timestamp": NOW, "body": "x", "id": own[0]},
        {"timestamp": NOW, "body": "x", "id": own[1].bytes, "trace_id": b"t" * 16},
        {"timestamp": NOW, "body": "changed", "id": own[0]},
        {"timestamp": NOW, "body": "x"},
    ]
    stats, rejected = write(rows, rows)
    assert (stats.logs_written, stats.logs_duplicate, rejected) == (3, 5, [])
    found = {row["id"]: row for row in logs_of(database_url)}
    assert set(own) < set(found)
    assert found[own[0]]["body"] == "x"
    assert (found[own[0]]["route_id"], found[own[1]]["route_id"]) == (own[0], uuid.UUID(bytes=b"t" * 16))


def test_a_missing_time_is_the_observed_one_and_else_the_epoch(write: Write, database_url: str) -> None:
    earlier = NOW - dt.timedelta(minutes=1)
    rows: list[Row] = [
        {"body": "none"},
        {"body": "observed", "observed_timestamp": earlier},
        {"body": "both", "timestamp": NOW, "observed_timestamp": earlier},
        {"body": "null", "timestamp": None, "observed_timestamp": earlier},
    ]
    stats, _ = write(rows, rows)
    assert stats.logs_duplicate == 4
    found = {row["body"]: (row["timestamp"], row["observed_timestamp"]) for row in logs_of(database_url)}
    assert found == {
        "none": (EPOCH, None),
        "observed": (earlier, earlier),
        "both": (NOW, earlier),
        "null": (earlier, earlier),
    }


def test_projects_are_told_apart(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    row = {"timestamp": NOW, "body": "x", "resource": {"service_name": "s", "attributes": {}}}
    write_logs(pool, [row], method=method, project="a")
    write_logs(pool, [row, {**row, "project": "c"}, {**row, "project": "a"}], method=method, project="b")
    tables = stored_rows(database_url, "logs", "resources")
    assert sorted(row["project"] for row in tables["logs"]) == ["a", "b", "c"]
    assert sorted(row["project"] for row in tables["resources"]) == ["a", "b", "c"]
    assert len({row["id"] for row in tables["logs"]}) == 3


def test_a_structured_body_is_searched_by_its_words(write: Write, database_url: str) -> None:
    body = {"role": "user", "content": [{"text": "größe"}, None, True, 7, 2.5], "key": {"deep": "below"}}
    write(
        [
            {"timestamp": NOW, "body_json": body, "attributes": {"n": 0}},
            {"timestamp": NOW, "body_json": ["x" * 200_000, "y"], "attributes": {"n": 1}},
            {"timestamp": NOW, "body_json": {"a": "json"}, "body": "text", "attributes": {"n": 2}},
            {"timestamp": NOW, "body_json": 5, "attributes": {"n": 3}},
            {"timestamp": NOW, "body": "plain", "attributes": {"n": 4}},
            {"timestamp": NOW, "attributes": {"n": 5}},
            {"timestamp": NOW, "body_json": {}, "attributes": {"n": 6}},
        ]
    )
    found = {row["attributes"]["n"]: row for row in logs_of(database_url)}
    assert (found[0]["body"], found[0]["body_json"]) == ("größe\n7\n2.5\nbelow\nuser", body)
    assert set(found[1]["body"]) == {"x"}
    assert len(found[1]["body"]) <= 250_000
    assert found[1]["body_json"] == ["x" * 200_000, "y"]
    assert (found[2]["body"], found[2]["body_json"]) == ("text", {"a": "json"})
    assert (found[3]["body"], found[3]["body_json"]) == ("5", 5)
    assert (found[4]["body_json"], found[5]["body"]) == (None, None)
    assert found[6]["body_json"] == {}


def test_each_hour_gets_a_partition_and_far_hours_go_to_default(write: Write, database_url: str) -> None:
    hours = [NOW, NOW - dt.timedelta(hours=5), NOW - dt.timedelta(days=4_000), NOW + dt.timedelta(days=900), EPOCH]
    write([{"timestamp": hour, "body": "x"} for hour in hours])
    with psycopg.connect(database_url) as connection:
        places = connection.execute("SELECT tableoid::regclass::text, timestamp FROM logs").fetchall()
    found = {time.astimezone(dt.UTC): name for name, time in places}
    assert [found[hour] for hour in hours] == [
        f"logs_p{hours[0]:%Y%m%d%H}",
        f"logs_p{hours[1]:%Y%m%d%H}",
        *["logs_default"] * 3,
    ]


def test_the_transaction_that_stored_a_record_is_noted(write: Write, database_url: str) -> None:
    write([{"timestamp": NOW, "body": "a"}, {"timestamp": NOW, "body": "b"}], [{"timestamp": NOW, "body": "c"}])
    with psycopg.connect(database_url) as connection:
        noted: dict[Any, Any] = dict(connection.execute("SELECT body, transaction_id FROM logs").fetchall())
    assert noted["a"] == noted["b"] < noted["c"]


def test_records_make_no_traces_unless_they_carry_content(write: Write, database_url: str) -> None:
    write([{"timestamp": NOW, "body": "x", "trace_id": b"t" * 16, "span_id": b"s" * 8, "event_name": "device.started"}])
    assert count(database_url, "traces") == 0
