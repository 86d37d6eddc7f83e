"""Bad input is stored repaired, or rejected alone with its reason; the rest of its batch lands."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from observatory_storage.errors import RejectedRowError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.telemetry import NOW, assert_summaries_exact, make_spans, stored

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
YEAR_9999 = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)
YEAR_1 = dt.datetime(1, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(params=[WriteMethod.INSERT, WriteMethod.COPY])
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


Store = Callable[[dict[str, Any]], tuple[dict[str, Any] | None, list[RejectedRowError]]]


@pytest.fixture
def store(pool: StoragePool, database_url: str, method: WriteMethod) -> Store:
    """Write one span amid good ones; return its row, or None, and what was rejected."""

    def run(changes: dict[str, Any]) -> tuple[dict[str, Any] | None, list[RejectedRowError]]:
        good = make_spans(traces=4, spans=5)
        bad = {**make_spans(traces=1, spans=1, seed=99)[0], "events": [], "attributes": {"a": 1}, **changes}
        bad = {name: value for name, value in bad.items() if value is not ...}
        rejected: list[RejectedRowError] = []
        with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
            writer.write_spans([*good[:10], bad, *good[10:]])
        with psycopg.connect(database_url, row_factory=dict_row) as connection:
            connection.execute("SET timezone = 'UTC'")
            known = [span["span_id"] for span in good]
            rows = connection.execute("SELECT * FROM trace_spans WHERE span_id <> ALL(%s::bytea[])", [known]).fetchall()
            landed = connection.execute("SELECT count(*) AS n FROM trace_spans").fetchone()
        assert landed is not None
        assert landed["n"] == len(good) + len(rows)
        assert_summaries_exact(database_url)
        return (rows[0] if rows else None), rejected

    return run


@pytest.mark.parametrize(
    ("given_value", "kept"),
    [
        ("a\x00b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("\udfff\x00", "\ufffd\ufffd"),
        (r"\u0000 is text", r"\u0000 is text"),
        ("\\\x00", "\\\ufffd"),
        ("日本語 🎉", "日本語 🎉"),
    ],
)
def test_text_is_repaired_in_columns_keys_and_nested_values(store: Store, given_value: str, kept: str) -> None:
    row, rejected = store(
        {
            "name": given_value,
            "status_message": given_value,
            "attributes": {given_value: [given_value, {"deep": {given_value: given_value}}], "n": 1},
            "input": [{"content": given_value}],
            "tags": [given_value],
            "events": [{"name": given_value, "attributes": {given_value: given_value}}],
            "resource": {"service_name": given_value, "attributes": {given_value: given_value}},
        }
    )
    assert rejected == []
    assert row is not None
    assert (row["name"], row["status_message"], row["tags"]) == (kept, kept, [kept])
    assert row["attributes"] == {kept: [kept, {"deep": {kept: kept}}], "n": 1}
    assert row["input"] == [{"content": kept}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trace_id": b"short"}, "trace_id has 5 bytes; it must have 16"),
        ({"trace_id": bytes(16)}, "trace_id is all zeros, which OpenTelemetry defines as invalid"),
        ({"trace_id": "0" * 32}, "trace_id is all zeros, which OpenTelemetry defines as invalid"),
        ({"trace_id": ...}, "trace_id is missing"),
        ({"trace_id": 7}, "trace_id is of type int; it may be a UUID, 16 bytes or text"),
        ({"span_id": b"123456789"}, "span_id has 9 bytes; it must have 8"),
        ({"span_id": bytes(8)}, "span_id is all zeros, which OpenTelemetry defines as invalid"),
        ({"span_id": None}, "span_id is missing"),
        ({"start_time": "yesterday"}, "start_time is of type str; it must be a datetime"),
        ({"status": "fine"}, "status is 'fine'; it may be error, ok, unset"),
        ({"attributes": [1]}, "attributes is of type list; it must be a mapping"),
        ({"tags": "one"}, "tags is of type str; it must be a list of texts"),
        ({"modle": "x"}, "unknown column modle: what is not a column belongs into attributes"),
        ({"counts_usage": "maybe"}, "counts_usage is of type str; it may be true or false"),
        (
            {"start_time": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14)))},
            "start_time 0001-01-01T00:00:00+14:00 lies outside the years 1 to 9999 in UTC",
        ),
    ],
)
def test_what_cannot_be_stored_is_rejected_alone(store: Store, changes: dict[str, Any], reason: str) -> None:
    row, rejected = store(changes)
    assert row is None
    assert [error.reason for error in rejected] == [reason]
    assert rejected[0].row is not None
    assert rejected[0].row["name"] == "step 0"


@pytest.mark.parametrize(
    ("changes", "stored_as"),
    [
        ({"end_time": NOW - dt.timedelta(hours=1), "start_time": NOW}, {"duration_us": 0, "start_time": NOW}),
        ({"start_time": None, "end_time": NOW}, {"start_time": NOW, "duration_us": 0}),
        ({"start_time": ..., "end_time": ..., "events": [{"timestamp": NOW}]}, {"start_time": NOW, "end_time": None}),
        ({"start_time": None, "end_time": None}, {"start_time": EPOCH, "end_time": None, "duration_us": None}),
        ({"start_time": YEAR_1, "end_time": YEAR_9999}, {"start_time": YEAR_1, "end_time": YEAR_9999}),
        ({"start_time": NOW.replace(tzinfo=None), "end_time": None}, {"start_time": NOW}),
        ({"parent_span_id": bytes(8)}, {"parent_span_id": None}),
        ({"parent_span_id": ""}, {"parent_span_id": None}),
        ({"input_tokens": "12", "output_tokens": 3.0}, {"input_tokens": 12, "output_tokens": 3}),
        ({"input_tokens": True}, {"input_tokens": 1}),
        ({"cost_usd": float("nan")}, {"cost_usd": None}),
        ({"cost_usd": Decimal("Infinity")}, {"cost_usd": None}),
        ({"name": None, "kind": None, "status": None}, {"name": "", "kind": "unspecified", "status": "unset"}),
        ({"status": "ERROR"}, {"status": "error"}),
        ({"user_id": 42}, {"user_id": "42"}),
        ({"trace_id": "A" * 32}, {"trace_id": uuid.UUID("a" * 32)}),
        ({"trace_id": str(uuid.UUID("ab" * 16)).upper()}, {"trace_id": uuid.UUID("ab" * 16)}),
    ],
)
def test_what_is_odd_is_stored(store: Store, changes: dict[str, Any], stored_as: dict[str, Any]) -> None:
    row, rejected = store(changes)
    assert rejected == []
    assert row is not None
    assert {name: row[name] for name in stored_as} == stored_as


def test_numbers_that_their_columns_cannot_hold_are_kept_in_attributes(store: Store) -> None:
    row, rejected = store({"input_tokens": 2**70, "output_tokens": "many", "total_tokens": -(2**63)})
    assert rejected == []
    assert row is not None
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (None, None, None)
    assert row["attributes"]["observatory.input_tokens"] == str(2**70)
    assert row["attributes"]["observatory.output_tokens"] == "many"
    assert row["attributes"]["observatory.total_tokens"] == str(-(2**63))


def test_json_without_a_form_is_stored_as_something_readable(store: Store) -> None:
    attributes = {
        "nan": float("nan"),
        "infinity": [float("inf")],
        "past 64 bits": 2**70,
        "bytes": b"\x00\xff",
        "set": {1},
        "id": uuid.UUID(int=1),
        5: "number as key",
        "huge": 10**5000,
    }
    row, rejected = store({"attributes": attributes})
    assert rejected == []
    assert row is not None
    found = row["attributes"]
    assert (found["nan"], found["infinity"], found["past 64 bits"]) == (None, [None], str(2**70))
    assert (found["bytes"], found["set"], found["5"]) == ("AP8=", [1], "number as key")
    assert found["id"] == str(uuid.UUID(int=1))
    assert found["huge"] == hex(10**5000)


def test_large_attributes_are_stored(store: Store) -> None:
    row, rejected = store({"attributes": {"text": "x" * 10_000_000}})
    assert rejected == []
    assert row is not None
    assert len(row["attributes"]["text"]) == 10_000_000


def test_many_attributes_are_stored(store: Store) -> None:
    row, rejected = store({"attributes": {f"key {number}": number for number in range(100_000)}})
    assert rejected == []
    assert row is not None
    assert len(row["attributes"]) == 100_000


def test_text_too_long_for_an_index_is_cut_and_kept_whole(store: Store) -> None:
    long = "é" * 5_000
    names = ("user_id", "session_id", "model", "service_name")
    row, rejected = store({name: f"{name}{long}" for name in names})
    assert rejected == []
    assert row is not None
    for name in names:
        assert len(row[name]) == 255
        assert row["attributes"][f"observatory.{name}"] == f"{name}{long}"


def test_nesting_deeper_than_the_server_takes_is_rejected_alone(store: Store) -> None:
    nested: Any = "bottom"
    for _ in range(400):
        nested = [nested]
    row, rejected = store({"attributes": {"ok": nested}})
    assert rejected == []
    assert row is not None
    for _ in range(200_000):
        nested = [nested]
    row, rejected = store({"attributes": {"deep": nested}, "span_id": b"deepdeep"})
    assert "nested too deeply" in rejected[0].reason


def test_a_row_the_server_refuses_costs_that_row(store: Store, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE trace_spans ADD CONSTRAINT no_poison CHECK (name <> 'poison')")
        connection.execute("ALTER TABLE trace_events ADD CONSTRAINT no_poison CHECK (name <> 'poison')")
    row, rejected = store({"name": "poison"})
    assert row is None
    assert len(rejected) == 1
    assert "23514" in rejected[0].reason
    row, rejected = store({"events": [{"name": "poison"}, {"name": "fine"}], "span_id": b"withevnt"})
    assert row is not None
    assert len(rejected) == 1
    assert "fine" in [event["name"] for event in stored(database_url)["trace_events"]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)


def test_any_attributes_land_the_same_by_both_methods(pool: StoragePool, database_url: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(attributes=st.dictionaries(st.text(st.characters()), JSON, max_size=4), text=st.text(st.characters()))
    def land(attributes: dict[str, Any], text: str) -> None:
        found = []
        for method in (WriteMethod.INSERT, WriteMethod.COPY):
            with psycopg.connect(database_url) as connection:
                connection.execute("TRUNCATE trace_spans, trace_events, traces, resources")
            span = {**make_spans(traces=1, spans=1)[0], "attributes": attributes, "name": text, "tags": [text]}
            rejected: list[RejectedRowError] = []
            with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
                writer.write_span(span)
            assert rejected == []
            found.append(stored(database_url))
        assert found[0] == found[1]
        assert len(found[0]["trace_spans"]) == 1

    land()
