"""Bad input is stored repaired, or rejected alone with its reason; the rest of its batch lands, and all add up."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import RejectedRowError
from observatory_storage.identity import TRACE_NAMESPACE
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, WriteMethod, WriterConfig
from tests.odd_values import CIRCULAR, NoZone, Unreadable, deep
from tests.signals import LOG_TABLES, Row, empty, make_logs, stored_rows, write_logs
from tests.telemetry import NOW, count


@pytest.fixture(params=[WriteMethod.INSERT, WriteMethod.COPY])
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


Store = Callable[[Row], tuple[Row | None, list[RejectedRowError]]]


@pytest.fixture
def store(pool: StoragePool, database_url: str, method: WriteMethod) -> Store:
    """Write one record amid good ones; return its row, or None, and what was rejected."""

    def run(changes: Row) -> tuple[Row | None, list[RejectedRowError]]:
        good = make_logs(20)
        own = uuid.uuid4().hex
        bad = {"timestamp": NOW, "body": "odd", "attributes": {"own": own}, **changes}
        _, rejected = write_logs(pool, [*good[:10], bad, *good[10:]], method=method)
        rows = stored_rows(database_url, "logs")["logs"]
        others = {row["id"] for row in rows if "place" in row["attributes"]}
        assert len(others) == len(good)
        found = [row for row in rows if row["id"] not in others]
        return (found[0] if found else None), rejected

    return run


class Colour(enum.Enum):
    RED = "ok"


ODD: list[dict[Any, Any]] = [
    {"project": ["a"]},
    {"project": {}},
    {"resource": "abc"},
    {"resource": {"attributes": [1]}},
    {"resource": {"attributes": {"a": deep(100_000)}}},
    {"resource": {"attributes": {"a": Unreadable()}}},
    {"resource": {"attributes": CIRCULAR}},
    {"resource": {"service_name": Unreadable()}},
    {"resource": {"service_name": 10**5000}},
    {"resource_id": "abc"},
    {"resource_id": 5},
    {"timestamp": "yesterday"},
    {"timestamp": [1]},
    {"timestamp": NOW.replace(tzinfo=NoZone())},
    {"timestamp": Unreadable()},
    {"observed_timestamp": {"a": 1}},
    {"id": "abc"},
    {"id": b"short"},
    {"id": 7},
    {"ordinal": "first"},
    {"ordinal": 2**70},
    {"ordinal": Unreadable()},
    {"ordinal": -1},
    {"body": Unreadable()},
    {"body": CIRCULAR},
    {"body": 10**5000},
    {"body": {(1, 2): 3}},
    {"body": None, "body_json": Unreadable()},
    {"body": None, "body_json": {"a": [Unreadable()]}},
    {"body": None, "body_json": CIRCULAR},
    {"body": None, "body_json": deep(100_000)},
    {"body": None, "body_json": [10**5000]},
    {"body": None, "body_json": {1, 2}},
    {"body": None, "body_json": float("nan")},
    {"severity_number": Unreadable()},
    {"severity_number": []},
    {"severity_number": Decimal("sNaN")},
    {"severity_text": Colour.RED},
    {"event_name": CIRCULAR},
    {"trace_id": Unreadable()},
    {"span_id": []},
    {"trace_flags": 2**64},
    {"attributes": CIRCULAR},
    {"attributes": [1]},
    {"attributes": {"a": Unreadable()}},
    {"attributes": {Unreadable(): 1}},
    {"scope_attributes": CIRCULAR},
    {"bdoy": "x"},
    {5: "x"},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: "-".join(map(str, odd)))
def test_an_odd_value_costs_its_row_at_most(
    pool: StoragePool, database_url: str, method: WriteMethod, odd: dict[Any, Any]
) -> None:
    good = make_logs(20)
    # Twice, so that equal ones are counted; and there are structured bodies among the others.
    bad = {"timestamp": NOW, "body": "odd", "attributes": {}, **odd}
    rejected: list[RejectedRowError] = []
    with LogWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_logs([*good[:3], bad, dict(bad), *good[3:]])
        writer.flush()
        stats = writer.write_stats()
    records = [error for error in rejected if error.row is not None and "body" in error.row]
    assert stats.logs_written + stats.logs_duplicate + len(records) == len(good) + 2
    assert stats.logs_written >= len(good) + 1 - len(records)
    assert count(database_url, "logs") == stats.logs_written >= len(good)
    assert stats.rows_rejected == len(rejected)
    assert all(len(error.reason) < 300 for error in rejected)


@pytest.mark.parametrize(
    ("given_value", "kept"),
    [
        ("a\x00b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        (r"\u0000 is text", r"\u0000 is text"),
        ("日本語 🎉", "日本語 🎉"),
    ],
)
def test_text_is_repaired_in_columns_keys_and_nested_values(store: Store, given_value: str, kept: str) -> None:
    row, rejected = store(
        {
            "body": None,
            "body_json": {given_value: [given_value]},
            "severity_text": given_value,
            "event_name": given_value,
            "attributes": {given_value: [given_value, {"deep": {given_value: given_value}}]},
            "resource": {"service_name": given_value, "attributes": {given_value: given_value}},
        }
    )
    assert rejected == []
    assert row is not None
    assert (row["severity_text"], row["event_name"], row["body"]) == (kept, kept, kept)
    assert row["body_json"] == {kept: [kept]}
    assert row["attributes"] == {kept: [kept, {"deep": {kept: kept}}]}
    row, _ = store({"body": given_value})
    assert row is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"timestamp": "yesterday"}, "timestamp is of type str; it must be a datetime"),
        ({"timestamp": 0}, "timestamp is of type int; it must be a datetime"),
        ({"observed_timestamp": 5}, "observed_timestamp is of type int; it must be a datetime"),
        ({"attributes": [1]}, "attributes is of type list; it must be a mapping"),
        ({"bdoy": "x"}, "unknown column bdoy: what is not a column belongs into attributes"),
        ({"id": "abc"}, "id is 'abc'; it may be a UUID or 16 bytes"),
        ({"id": b"short"}, "id has 5 bytes; it must have 16"),
        ({"project": 5}, "project is of another shape; it must be text"),
        ({"resource": 5}, "resource is of another shape; it must be a mapping, and so its attributes"),
        ({"body": Unreadable()}, "body cannot be read: LookupError"),
        ({"body": None, "body_json": {"a": Unreadable()}}, "body_json cannot be read: LookupError"),
        ({"body": None, "body_json": CIRCULAR}, "body_json is nested too deeply to be stored as JSON"),
        (
            {"timestamp": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14)))},
            "timestamp 0001-01-01T00:00:00+14:00 lies outside the years 1 to 9999 in UTC",
        ),
    ],
)
def test_what_cannot_be_stored_is_rejected_alone(store: Store, changes: Row, reason: str) -> None:
    row, rejected = store(changes)
    assert row is None
    assert [error.reason for error in rejected] == [reason]
    assert rejected[0].row is not None
    assert rejected[0].row["attributes"] == changes.get("attributes", rejected[0].row["attributes"])


@pytest.mark.parametrize(
    ("changes", "column", "original"),
    [
        ({"severity_number": 25}, None, "25"),
        ({"severity_number": -1}, None, "-1"),
        ({"severity_number": "high"}, None, "high"),
        ({"trace_flags": 2**70}, None, str(2**70)),
        ({"trace_id": b"short"}, None, "b'short'"),
        ({"trace_id": 7}, None, "7"),
        ({"span_id": b"123456789"}, None, "b'123456789'"),
        ({"trace_id": "my-trace"}, uuid.uuid5(TRACE_NAMESPACE, "my-trace"), "my-trace"),
        ({"service_name": "é" * 5_000}, ..., "é" * 5_000),
        ({"dropped_attributes_count": "many"}, None, "many"),
    ],
)
def test_what_a_column_cannot_hold_is_kept_in_attributes(
    store: Store, changes: Row, column: Any, original: str
) -> None:
    ((name, _),) = changes.items()
    row, rejected = store(changes)
    assert rejected == []
    assert row is not None
    assert row["attributes"][f"observatory.{name}"] == original
    if column is not ...:
        assert row[name] == column
    else:
        assert len(row[name]) == 255
    assert "own" in row["attributes"]


@pytest.mark.parametrize(
    ("trace_id", "span_id"), [("", ""), (b"", b""), (bytes(16), bytes(8)), ("0" * 32, "0" * 16), (None, None)]
)
def test_no_trace_is_no_trace(store: Store, trace_id: Any, span_id: Any) -> None:
    row, rejected = store({"trace_id": trace_id, "span_id": span_id})
    assert rejected == []
    assert row is not None
    assert (row["trace_id"], row["span_id"], row["route_id"]) == (None, None, row["id"])


def test_large_and_deep_bodies_are_stored(store: Store) -> None:
    row, rejected = store({"body": "wörter " * 300_000})
    assert (rejected, row and len(row["body"])) == ([], 2_100_000)
    row, rejected = store({"body": None, "body_json": {"text": "x" * 10_000_000}, "attributes": {"n": 2}})
    assert rejected == []


@pytest.mark.parametrize("levels", [250, 260, 400])
def test_bodies_and_attributes_as_deep_as_spans_take_them_are_stored(store: Store, levels: int) -> None:
    row, rejected = store({"body": None, "body_json": deep(levels, "bottom"), "attributes": {"a": deep(levels)}})
    assert rejected == []
    assert row is not None
    assert (row["body"], row["body_json"]) == ("bottom", deep(levels, "bottom"))


def test_poison_rows_are_found_by_halves_and_all_add_up(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE logs ADD CONSTRAINT no_poison CHECK (body <> 'poison')")
    rows = make_logs(90)
    poison = [{"timestamp": NOW, "body": "poison", "attributes": {"n": number}} for number in range(3)]
    given = [*rows[:11], poison[0], *rows[11:50], poison[1], poison[1], *rows[50:], {"timestamp": 5}, poison[2]]
    for _ in range(2):
        stats, rejected = write_logs(pool, given, method=method)
        assert [error.sqlstate for error in rejected].count("23514") == 4
        assert sorted(error.row["attributes"]["n"] for error in rejected if error.row and "body" in error.row) == [
            *[0, 1, 1, 2]
        ]
        assert stats.logs_written + stats.logs_duplicate == len(rows)
    assert count(database_url, "logs") == len(rows)


def test_a_resource_that_the_server_refuses_does_not_cost_its_records(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE resources ADD CONSTRAINT no_poison CHECK (service_name <> 'poison')")
    resource = {"service_name": "poison", "attributes": {}}
    bad = [{**row, "resource": resource, "attributes": {"bad": place}} for place, row in enumerate(make_logs(12))]
    given = [*bad, *make_logs(30)]
    for _ in range(2):
        rejected: list[RejectedRowError] = []
        with LogWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
            writer.write_logs(given)
        assert [error.row for error in rejected] == [resource]
        rows = stored_rows(database_url, "logs")["logs"]
        assert len(rows) == len(given)
        assert all((row["resource_id"] is None) == ("bad" in row["attributes"]) for row in rows)


def test_a_resource_that_cannot_be_read_is_rejected_by_itself(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    resource = {"service_name": "s", "attributes": {"a": Unreadable()}}
    rejected: list[RejectedRowError] = []
    with LogWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_logs([{**row, "resource": resource} for row in make_logs(9)])
    assert [error.row for error in rejected] == [resource]
    assert "cannot be read" in rejected[0].reason
    assert count(database_url, "logs") == 9


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)


def test_any_record_lands_the_same_by_both_methods_and_only_once(pool: StoragePool, database_url: str) -> None:
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        attributes=st.dictionaries(st.text(st.characters()), JSON, max_size=4),
        body_json=JSON,
        body=st.none() | st.text(st.characters()),
        event_name=st.sampled_from([None, "gen_ai.choice", "gen_ai.user.message", "e"]),
    )
    def land(attributes: Row, body_json: Any, body: str | None, event_name: str | None) -> None:
        found = []
        row = {
            "timestamp": NOW,
            "attributes": attributes,
            "body_json": body_json,
            "body": body,
            "event_name": event_name,
            "trace_id": b"t" * 16,
            "span_id": b"s" * 8,
        }
        for method in (WriteMethod.INSERT, WriteMethod.COPY):
            empty(database_url, *LOG_TABLES)
            stats, rejected = write_logs(pool, [row], [row, row], method=method)
            assert (rejected, stats.logs_written, stats.logs_duplicate) == ([], 2, 1)
            found.append(stored_rows(database_url, *LOG_TABLES))
        assert found[0] == found[1]

    land()
