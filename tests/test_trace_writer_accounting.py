"""Every row that is given is accounted for once: stored, stored already, replaced, rejected, or still held."""

from __future__ import annotations

import datetime as dt
import enum
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from observatory_storage.errors import RejectedRowError, WriteError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriteMethod, WriterConfig
from tests.odd_values import NoZone, Unreadable
from tests.telemetry import NOW, assert_summaries_exact, count, make_spans, stored

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=[WriteMethod.INSERT, WriteMethod.COPY])
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


class Colour(enum.Enum):
    RED = "ok"


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR

ODD: list[dict[str, Any]] = [
    {"project": ["a"]},
    {"project": {}},
    {"resource": "abc"},
    {"resource": {"attributes": [1]}},
    {"resource": {"attributes": {"a": deep(100_000)}}},
    {"resource": {"service_name": 10**5000}},
    {"name": 10**5000},
    {"tags": [10**5000]},
    {"resource_id": "abc"},
    {"resource_id": 5},
    {"events": 5},
    {"events": [5]},
    {"events": [None]},
    {"events": [{"nmae": "x"}]},
    {"events": [{"name": Unreadable()}]},
    {"input_tokens": "+-5"},
    {"input_tokens": Decimal("sNaN")},
    {"counts_usage": Decimal("sNaN")},
    {"name": {(1, 2): 3}},
    {"name": CIRCULAR},
    {"attributes": CIRCULAR},
    {"start_time": NOW.replace(tzinfo=NoZone())},
    {"attributes": {"a": Unreadable()}},
    {"attributes": {Unreadable(): 1}},
    {"tags": [Unreadable()]},
    {"kind": Unreadable()},
    {"status": []},
    {"status": Colour.RED},
    {"cost_usd": Unreadable()},
    {"cost_usd": Decimal("1e200000")},
    {"cost_usd": Decimal("1e-200000")},
    {"input_tokens": 2**63 - 1, "counts_usage": True},
    {"input_tokens": -1},
    {"duration_us": 2**64, "end_time": None},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: "-".join(odd))
def test_an_odd_value_costs_its_row_at_most(
    pool: StoragePool, database_url: str, method: WriteMethod, odd: dict[str, Any]
) -> None:
    good = make_spans(traces=2, spans=4)
    bad = [{**make_spans(traces=1, spans=2, seed=77)[place], "events": [], **odd} for place in range(2)]
    rejected: list[RejectedRowError] = []
    with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_spans([*good[:3], *bad, *good[3:]])
        writer.flush()
        stats = writer.write_stats()
    spans = [error for error in rejected if error.row is not None and "kind" in error.row]
    assert stats.spans_written + len(spans) == len(good) + len(bad)
    assert stats.spans_written >= len(good)
    assert count(database_url, "trace_spans") == stats.spans_written
    assert stats.rows_rejected == len(rejected)
    assert len({id(error.row) for error in rejected}) == len(rejected)
    assert all(len(error.reason) < 300 for error in rejected)
    assert_summaries_exact(database_url)


def test_duplicates_rejections_and_new_rows_add_up(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    theirs, ours = make_spans(traces=1, spans=3, seed=1), make_spans(traces=3, spans=3, seed=2)
    with TraceWriter(pool, WriterConfig(project="theirs")) as writer:
        writer.write_spans(theirs)
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE trace_spans ADD CONSTRAINT no_poison CHECK (name <> 'poison')")
    events = [{"name": "e", "attributes": {"n": 1}}, {"nmae": "bad"}]
    poison = {**ours[0], "span_id": b"poisoned", "name": "poison", "events": events}
    given = [*ours, poison, {**theirs[0], "events": events}, *ours[:4], {**ours[0], "trace_id": b""}, poison]
    rejected: list[RejectedRowError] = []
    with TraceWriter(pool, WriterConfig(method=method, project="ours"), on_rejected=rejected.append) as writer:
        for _ in range(2):
            writer.write_spans(given)
            writer.flush()
        stats = writer.write_stats()
    spans = [error for error in rejected if error.row is not None and "events" in error.row]
    assert all(error.row is not None and "trace_id" in error.row for error in rejected)
    assert stats.spans_written == len(ours)
    assert stats.spans_written + stats.spans_duplicate + len(spans) == 2 * len(given)
    assert stats.rows_rejected == len(rejected)
    tables = stored(database_url)
    # What belongs to a rejected span is not stored either.
    assert {(e["trace_id"], bytes(e["span_id"])) for e in tables["trace_events"]} <= {
        (span["trace_id"], bytes(span["span_id"])) for span in tables["trace_spans"]
    }
    assert_summaries_exact(database_url)


def test_a_resource_that_the_server_refuses_does_not_cost_its_spans(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE resources ADD CONSTRAINT no_poison CHECK (service_name <> 'poison')")
    bad, good = make_spans(traces=3, spans=4, seed=1), make_spans(traces=3, spans=4, seed=2)
    resource = {"service_name": "poison", "attributes": {}}
    for span in bad:
        span["resource"] = resource
    rejected: list[RejectedRowError] = []
    with TraceWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_spans([*bad, *good])
    assert [error.row for error in rejected] == [resource]
    assert count(database_url, "trace_spans") == len(bad) + len(good)
    assert_summaries_exact(database_url)


def test_rejected_events_and_traces_come_back_as_they_were_given(pool: StoragePool, method: WriteMethod) -> None:
    theirs = make_spans(traces=1, spans=1)[0]
    with TraceWriter(pool, WriterConfig(project="theirs")) as writer:
        writer.write_span(theirs)
    ids = {"trace_id": theirs["trace_id"], "span_id": theirs["span_id"]}
    event = {**ids, "span_start_time": NOW, "timestamp": NOW, "name": "mine", "attributes": {"a": 1}}
    trace = {"id": theirs["trace_id"], "name": "mine", "attributes": {"a": 1}}
    rejected: list[RejectedRowError] = []
    with TraceWriter(pool, WriterConfig(method=method, project="ours"), on_rejected=rejected.append) as writer:
        writer.write_event(event)
        writer.write_trace(trace)
    assert [error.row for error in rejected] == [event, trace]
    assert all(error.reason.endswith("belongs to project 'theirs'") for error in rejected)


def test_the_next_batches_reach_a_caller_whose_callback_fails_hard(pool: StoragePool) -> None:
    seen: list[str] = []

    def leave(error: RejectedRowError) -> None:
        seen.append(error.reason)
        if len(seen) == 1:
            raise SystemExit(3)

    writer = TraceWriter(pool, WriterConfig(flush_interval_seconds=3_600), on_rejected=leave)
    writer.write_spans([{"trace_id": b"", "span_id": b""} for _ in range(3)])
    with pytest.raises(SystemExit):
        writer.flush()
    writer.close()
    assert len(seen) == 3


def test_a_callback_may_flush_and_close(pool: StoragePool, database_url: str) -> None:
    def react(error: RejectedRowError) -> None:
        writer.write_spans(make_spans(traces=1, spans=2))
        writer.flush()
        writer.close()

    writer = TraceWriter(pool, WriterConfig(flush_interval_seconds=3_600), on_rejected=react)
    writer.write_span({"trace_id": b"", "span_id": b""})
    writer.flush()
    assert count(database_url, "trace_spans") == 2


def test_closing_while_others_write_takes_all_or_says_so(pool: StoragePool, database_url: str) -> None:
    spans = make_spans(traces=100, spans=10)
    writer = TraceWriter(pool, WriterConfig(batch_size=50, max_buffered_rows=100))
    taken = 0
    failed: list[WriteError] = []

    def write() -> None:
        nonlocal taken
        try:
            for first in range(0, len(spans), 10):
                writer.write_spans(iter(spans[first : first + 10]))
                taken += 10
        except WriteError as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.3)
    writer.close()
    thread.join()
    partly = count(database_url, "trace_spans") - taken
    assert 0 <= partly < 10
    assert failed or taken == len(spans)
    assert writer.buffer_stats().rows == 0


def test_what_a_failing_iterator_gave_before_is_taken(pool: StoragePool, database_url: str) -> None:
    spans = make_spans(traces=1, spans=7)
    no_row: Any = 5

    def some() -> Iterator[dict[str, Any]]:
        yield from spans
        raise ValueError("mine")

    with TraceWriter(pool) as writer:
        with pytest.raises(ValueError, match="mine"):
            writer.write_spans(some())
        with pytest.raises(RejectedRowError, match="row 3: a row is of type int"):
            writer.write_spans([*make_spans(traces=1, spans=2, seed=2), no_row])
    assert count(database_url, "trace_spans") == 9


def test_a_caller_may_reuse_the_mapping_that_it_gave(pool: StoragePool, database_url: str) -> None:
    row = {**make_spans(traces=1, spans=1)[0], "events": []}
    with TraceWriter(pool) as writer:
        for number in range(5):
            row["span_id"] = bytes([number + 1] * 8)
            writer.write_span(row)
    assert count(database_url, "trace_spans") == 5


def test_statements_about_a_trace_add_up_in_one_batch_as_in_several(pool: StoragePool, database_url: str) -> None:
    key = make_spans(traces=1, spans=1)[0]["trace_id"]
    steps = [{"id": key, "status": "error", "name": "a"}, {"id": key, "attributes": {"x": 1}, "status": "UNSET"}]
    found = []
    for batches in ([steps], [[step] for step in steps]):
        with psycopg.connect(database_url) as connection:
            connection.execute("TRUNCATE traces")
        with TraceWriter(pool) as writer:
            for batch in batches:
                writer.write_traces(batch)
                writer.flush()
        found.append(stored(database_url)["traces"])
    assert found[0] == found[1]
    assert (found[0][0]["status"], found[0][0]["attributes"], found[0][0]["name"]) == ("error", {"x": 1}, "a")


def test_costs_of_any_size_sum_without_rounding(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    spans = make_spans(traces=1, spans=3)
    costs = [Decimal("123456789012345.1"), Decimal("1e-30"), Decimal("1e-12")]
    for span, cost in zip(spans, costs, strict=True):
        span |= {"cost_usd": cost, "counts_usage": True, "parent_span_id": None}
    with TraceWriter(pool, WriterConfig(method=method)) as writer:
        writer.write_spans(spans)
    assert stored(database_url)["traces"][0]["cost_usd"] == Decimal("123456789012345.100000000001000000000000000001")


def test_a_partition_attached_while_a_row_waits_for_default_is_no_fault_of_the_row(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    old = NOW - dt.timedelta(days=20)
    (span,) = make_spans(traces=1, spans=1, start=old)
    rejected: list[RejectedRowError] = []
    config = WriterConfig(method=method, partition_days_back=1, flush_interval_seconds=3_600)
    with TraceWriter(pool, config, on_rejected=rejected.append) as writer, psycopg.connect(database_url) as maker:
        day = f"{old:%Y-%m-%d}"
        after = f"{old + dt.timedelta(days=1):%Y-%m-%d}"
        maker.execute("LOCK TABLE trace_spans_default IN ACCESS EXCLUSIVE MODE")
        maker.execute("CREATE TABLE trace_spans_mine (LIKE trace_spans INCLUDING ALL)")
        bounds = f"FROM ('{day} 00:00+00') TO ('{after} 00:00+00')"
        maker.execute(f"ALTER TABLE trace_spans ATTACH PARTITION trace_spans_mine FOR VALUES {bounds}")
        writer.write_span(span)
        thread = threading.Thread(target=writer.flush)
        thread.start()
        time.sleep(0.5)
        maker.commit()
        thread.join()
    assert rejected == []
    assert count(database_url, "trace_spans_mine") == 1


def test_a_role_that_may_make_no_tables_writes_to_default(
    pool: StoragePool, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS observatory_test_writer")
        connection.execute("CREATE ROLE observatory_test_writer LOGIN")
        try:
            connection.execute(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO observatory_test_writer"
            )
            connection.execute("GRANT TEMPORARY ON DATABASE " + connection.info.dbname + " TO observatory_test_writer")
            url = database_url.replace("//postgres@", "//observatory_test_writer@")
            with (
                StoragePool.from_url(url, min_connections=1, max_connections=2) as theirs,
                TraceWriter(theirs) as writer,
            ):
                writer.write_spans(make_spans(traces=1, spans=3))
            assert count(database_url, "trace_spans_default") == 3
        finally:
            connection.execute("DROP OWNED BY observatory_test_writer")
            connection.execute("DROP ROLE observatory_test_writer")
    assert "could not make the partitions" in caplog.text


def test_a_statement_timeout_makes_batches_smaller(pool: StoragePool, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{connection.info.dbname}" SET statement_timeout = 120')
    spans = make_spans(traces=600, spans=10)
    for span in spans:
        span["attributes"] = {"text": "x" * 3_000}
    slow = WriterConfig(method=WriteMethod.INSERT, batch_size=6_000, flush_interval_seconds=3_600)
    with (
        StoragePool.from_url(database_url, min_connections=1, max_connections=2) as limited,
        TraceWriter(limited, slow) as writer,
    ):
        writer.write_spans(spans)
    assert count(database_url, "trace_spans") == len(spans)
    assert_summaries_exact(database_url)


@pytest.mark.parametrize("first", ["writers", "pool"])
def test_the_order_of_imports_does_not_matter_at_exit(database_url: str, first: str) -> None:
    imports = [
        "from observatory_storage.writers import TraceWriter, WriterConfig",
        "from observatory_storage.pool import StoragePool",
    ]
    code = "\n".join(
        [
            "import sys",
            *(imports if first == "writers" else reversed(imports)),
            "from tests.telemetry import make_spans",
            "pool = StoragePool.from_url(sys.argv[1], min_connections=1, max_connections=3)",
            "writer = TraceWriter(pool, WriterConfig(flush_interval_seconds=3600))",
            "writer.write_spans(make_spans(traces=1, spans=7))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code, database_url], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert count(database_url, "trace_spans") == 7


def test_given_up_rows_are_counted_and_not_tried_again(pool: StoragePool, database_url: str) -> None:
    writer = TraceWriter(pool, WriterConfig(flush_interval_seconds=3_600))
    writer.write_spans(make_spans(traces=1, spans=3))
    assert writer.abandon() == 3
    with pytest.raises(WriteError, match="closed"):
        writer.write_spans(make_spans(traces=1, spans=1))
    assert count(database_url, "trace_spans") == 0


def test_large_rows_do_not_multiply_in_memory(database_url: str) -> None:
    code = """
import resource, sys
from observatory_storage.pool import StoragePool
from observatory_storage.writers import TraceWriter, WriterConfig
from tests.telemetry import make_spans
text = "x" * 5_000_000
spans = make_spans(traces=1, spans=60)
for span in spans:
    span["attributes"] = {"text": text}
with StoragePool.from_url(sys.argv[1], min_connections=1, max_connections=2) as pool:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TraceWriter(pool, WriterConfig(method=sys.argv[2])) as writer:
        writer.write_spans(spans)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    # The rows share one text, so that what is measured is what the writer adds: 300 MB if it held them all.
    for method, megabytes in (("copy", 200), ("insert", 200)):
        done = subprocess.run(
            [sys.executable, "-c", code, database_url, method], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < megabytes, method


def test_batches_that_are_prepared_ahead_add_up_also_when_one_fails(database_url: str) -> None:
    spans = make_spans(traces=60, spans=10)
    bad = [{"trace_id": b"", "span_id": b"%08d" % number, "name": "bad"} for number in range(12)]
    given: list[dict[str, Any]] = []
    for number in range(12):
        given += [*spans[number * 50 : number * 50 + 50], bad[number], spans[0]]
    rejected: list[RejectedRowError] = []
    config = WriterConfig(
        method=WriteMethod.COPY, batch_size=52, flush_interval_seconds=3_600, lock_timeout_seconds=0.1
    )
    impatient = {"min_connections": 1, "max_connections": 2, "initial_delay_ms": 5, "max_delay_ms": 20}
    with (
        StoragePool.from_url(database_url, **impatient) as pool,
        TraceWriter(pool, config, on_rejected=rejected.append) as writer,
    ):
        writer.write_spans(given[:52])
        writer.flush()
        with psycopg.connect(database_url) as blocker:
            blocker.execute("LOCK TABLE traces")
            writer.write_spans(given[52:])
            with pytest.raises(WriteError):
                writer.flush()
        writer.flush()
        stats = writer.write_stats()
    assert (stats.spans_written, stats.spans_duplicate, stats.rows_rejected) == (len(spans), 12, 12)
    assert sorted(str(error.row["span_id"]) for error in rejected if error.row) == sorted(
        str(row["span_id"]) for row in bad
    )
    assert count(database_url, "trace_spans") == len(spans)
    assert_summaries_exact(database_url)
