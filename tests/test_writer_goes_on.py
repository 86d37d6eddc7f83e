"""A row that cannot be stored, whatever it holds, does not keep a writer from those that come with it and after it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from observatory_storage.errors import RejectedRowError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, TraceWriter, WriteMethod, WriterConfig
from tests.telemetry import NOW, assert_summaries_exact, make_spans, stored

METHODS = pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])


class Sullen:
    """A value that cannot be compared, as an array of NumPy that has several elements."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of this is ambiguous")

    def __hash__(self) -> int:
        raise LookupError("no hash")


@METHODS
def test_a_finished_version_that_cannot_be_stored_costs_itself(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    (span,) = make_spans(traces=1, spans=1)
    opened = {**span, "end_time": None, "events": []}
    later = make_spans(traces=1, spans=3, seed=7)
    rejected: list[RejectedRowError] = []
    with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        # The second time is a duplicate: from now on the writer expects them.
        for _ in range(2):
            writer.write_span(opened)
            writer.flush()
        writer.write_span({**span, "attributes": "no mapping"})
        writer.flush()
        writer.write_spans(later)
        writer.flush()
        stats = writer.write_stats()
    assert [error.reason for error in rejected] == ["attributes is of type str; it must be a mapping"]
    assert (stats.spans_written, stats.spans_duplicate, stats.spans_replaced) == (4, 1, 0)
    assert len(stored(database_url)["trace_spans"]) == 4
    assert_summaries_exact(database_url)


@METHODS
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "column",
    [
        "name",
        "status",
        "input",
        "user_id",
        "total_tokens",
        "start_time",
        "end_time",
        "events",
        "resource",
        "project",
        "tags",
        "parent_span_id",
    ],
)
def test_a_value_that_cannot_be_compared_costs_its_row_at_most(
    pool: StoragePool, database_url: str, method: WriteMethod, column: str, place: int
) -> None:
    good = make_spans(traces=2, spans=2)
    odd: dict[str, Any] = {**make_spans(traces=1, spans=1, seed=9)[0], column: Sullen()}
    rejected: list[RejectedRowError] = []
    with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_spans([odd, *good] if place == 0 else [*good, odd])
        writer.flush()
        stats = writer.write_stats()
    assert stats.spans_written + stats.rows_rejected == len(good) + 1
    assert len(rejected) == stats.rows_rejected <= 1
    assert_summaries_exact(database_url)


@METHODS
@pytest.mark.parametrize("column", ["body", "body_json", "timestamp", "severity_text", "resource", "project", "id"])
def test_a_value_of_a_record_that_cannot_be_compared_costs_its_record_at_most(
    pool: StoragePool, method: WriteMethod, column: str
) -> None:
    good = [{"timestamp": NOW + dt.timedelta(seconds=number), "body": f"step {number}"} for number in range(3)]
    rejected: list[RejectedRowError] = []
    with LogWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_logs([*good[:1], {**good[1], column: Sullen()}, *good[2:]])
        writer.flush()
        stats = writer.write_stats()
    assert stats.logs_written + stats.rows_rejected == len(good)
    assert len(rejected) == stats.rows_rejected <= 1
