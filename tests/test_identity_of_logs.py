"""A record's id is made from its content: the same content has the same id in every release and every Python."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest

from observatory_storage.identity import timed_ids
from observatory_storage.models import LogRow
from observatory_storage.writers.convert import Rejections
from observatory_storage.writers.log_batch import LogBatch

TIME = dt.datetime(2026, 3, 10, 12, 0, 0, 123_456, tzinfo=dt.UTC)
PLAIN: LogRow = {"timestamp": TIME, "body": "a plain line"}
FULL: LogRow = {
    "timestamp": TIME,
    "observed_timestamp": TIME,
    "project": "shop",
    "severity_number": 17,
    "severity_text": "ERROR",
    "body_json": {"role": "user", "content": ["Grüße", 1, 2.5, None, True]},
    "event_name": "gen_ai.user.message",
    "trace_id": bytes(range(1, 17)),
    "span_id": bytes(range(1, 9)),
    "trace_flags": 1,
    "service_name": "api",
    "scope_name": "app",
    "scope_version": "1.0",
    "scope_attributes": {"a": 1},
    "attributes": {"k": "v", "n": 2**63},
    "dropped_attributes_count": 3,
    "resource": {"service_name": "api", "attributes": {"host.name": "h"}},
}


def ids(*rows: LogRow | dict[str, Any]) -> list[str]:
    """The ids that a batch gives its rows, in writing order."""
    batch = LogBatch.from_rows(rows, "default", Rejections())
    return [str(uuid.UUID(bytes=row[2])) for chunk in batch.chunks() for row in chunk]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PLAIN, "019cd79e-467b-8052-8062-1767b5ed1359"),
        (FULL, "019cd79e-467b-8085-8035-175b4cbe4c99"),
        ({**PLAIN, "ordinal": 1}, "019cd79e-467b-80f2-802c-4ad3a1f47c97"),
        ({"body": "no time"}, "00000000-0000-80b3-80d2-eb916f045ef1"),
    ],
)
def test_ids_do_not_change(row: LogRow, expected: str) -> None:
    assert ids(row) == [expected]


def test_ids_are_version_8_and_begin_with_the_time() -> None:
    (found,) = map(uuid.UUID, ids(PLAIN))
    assert (found.version, found.variant) == (8, uuid.RFC_4122)
    assert found.int >> 80 == int(TIME.timestamp() * 1000)


def test_ids_do_not_depend_on_the_columns_of_other_rows() -> None:
    other = {**FULL, "timestamp": TIME + dt.timedelta(seconds=1)}
    assert ids(PLAIN, other)[0] == ids(PLAIN)[0]
    assert ids(PLAIN, other)[1] == ids(other)[0]


@pytest.mark.parametrize("name", [name for name in FULL if name != "timestamp"])
def test_every_column_is_part_of_the_content(name: str) -> None:
    without = {key: value for key, value in FULL.items() if key != name}
    assert ids(without) != ids(FULL)


def test_the_order_of_keys_says_nothing() -> None:
    there = {**PLAIN, "attributes": {"a": 1, "b": {"c": 2, "d": 3}}}
    back = {**PLAIN, "attributes": {"b": {"d": 3, "c": 2}, "a": 1}}
    assert ids(there) == ids(back)
    structured = {"timestamp": TIME, "body_json": {"a": "x", "b": "y"}}
    assert ids(structured) == ids({"timestamp": TIME, "body_json": {"b": "y", "a": "x"}})


def test_times_beyond_48_bits_count_as_the_first_or_the_last() -> None:
    contents = [b"", b"a", b"b", b"c"]
    assert [key.hex() for key in timed_ids([0, -1, 2**48, 2**48 - 1], contents)] == [
        "00000000000080e380b0c44298fc1c14",
        "00000000000080ca80978112ca1bbdca",
        "ffffffffffff803e8023e8160039594a",
        "ffffffffffff802e807d2c03a9507ae2",
    ]
    assert timed_ids([], []) == []
