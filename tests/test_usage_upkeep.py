"""Upkeep of usage: parts are merged by many at once, and what was stored without rollups is added, once."""

from __future__ import annotations

import datetime as dt
import random
import signal
import subprocess
import threading
import time

import psycopg
import pytest

from observatory_storage.lifecycle import usage_upkeep
from observatory_storage.lifecycle.partitions import PartitionManager
from observatory_storage.lifecycle.usage_upkeep import UsageUpkeep
from observatory_storage.pool import StoragePool
from observatory_storage.usage import statements
from observatory_storage.writers import TraceWriter
from tests.command_line import environment, program
from tests.usage_cases import BASE, Span, assert_usage_exact, make_tree, stored_usage

# How an older release left things: no mark on spans, no rollups, and totals with all that was sent.
AS_BEFORE = """
UPDATE trace_spans SET counts_usage = counts_usage OR repeats_usage, repeats_usage = NULL;
TRUNCATE usage_rollups;
UPDATE traces AS t SET (input_tokens, output_tokens, total_tokens, cost_usd) = (
    SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(total_tokens), 0),
           coalesce(sum(cost_usd), 0)
    FROM trace_spans AS s WHERE s.trace_id = t.id AND s.counts_usage
)
"""
PARTS = "SELECT count(*), count(*) FILTER (WHERE is_folded) FROM usage_rollups"


@pytest.fixture
def spans() -> list[Span]:
    dice = random.Random(11)
    return [span for _ in range(60) for span in make_tree(dice, dice.randrange(1, 9))]


@pytest.fixture
def upkeep(pool: StoragePool) -> UsageUpkeep:
    return UsageUpkeep(pool, PartitionManager(pool))


def write(pool: StoragePool, spans: list[Span], size: int = 30) -> None:
    with TraceWriter(pool) as writer:
        for place in range(0, len(spans), size):
            writer.write_spans(spans[place : place + size])
            writer.flush()


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description is not None else []


@pytest.mark.every_server
def test_folding_leaves_one_part_an_hour_and_the_same_sums(
    pool: StoragePool, database_url: str, upkeep: UsageUpkeep, spans: list[Span]
) -> None:
    write(pool, spans)
    parts = execute(database_url, PARTS)[0][0]
    before = stored_usage(database_url)
    assert upkeep.fold(at_once=50) == parts
    assert execute(database_url, PARTS) == [(len(before), len(before))]
    assert_usage_exact(database_url, spans)
    assert upkeep.fold() == 0


def test_many_fold_at_once_while_others_write(pool: StoragePool, database_url: str, spans: list[Span]) -> None:
    folded = []

    def fold() -> None:
        with StoragePool.from_url(database_url, min_connections=1, max_connections=1) as own:
            upkeep = UsageUpkeep(own, PartitionManager(own))
            for _ in range(25):
                folded.append(upkeep.fold(at_once=9))

    threads = [threading.Thread(target=fold) for _ in range(3)]
    for thread in threads:
        thread.start()
    write(pool, spans, size=5)
    for thread in threads:
        thread.join()
    assert sum(folded) > 0
    assert_usage_exact(database_url, spans)


def test_a_fold_that_is_killed_changes_nothing(
    pool: StoragePool, database_url: str, upkeep: UsageUpkeep, spans: list[Span]
) -> None:
    write(pool, spans)
    parts = execute(database_url, PARTS)
    with pool.raw_connection() as connection:
        given = {"limit": 10_000, "part": "00000000-0000-0000-0000-000000000001"}
        connection.execute(statements.FOLD.encode(), given)
        # While one session folds, the sums stand for everybody else, and nobody waits.
        assert upkeep.fold() == 0
        assert_usage_exact(database_url, spans)
    assert execute(database_url, PARTS) == parts
    assert_usage_exact(database_url, spans)


def test_a_maintainer_that_is_killed_while_it_folds_changes_nothing(
    pool: StoragePool, database_url: str, spans: list[Span]
) -> None:
    write(pool, spans)
    parts = execute(database_url, PARTS)
    # The first row that it makes takes long: by then all parts are deleted, in its transaction.
    execute(
        database_url,
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(2); RETURN NEW; END$$;"
        "CREATE TRIGGER linger BEFORE INSERT ON usage_rollups FOR EACH ROW EXECUTE FUNCTION linger()",
    )
    killed = subprocess.Popen(program("maintain", "--database-url", database_url), env=environment())
    folding = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'PgSleep' AND query LIKE '%WITH waiting%'"
    )
    deadline = time.monotonic() + 40
    while execute(database_url, folding) == [(0,)]:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert execute(database_url, folding) == [(1,)], "its session was in the middle of it"
    assert_usage_exact(database_url, spans)
    execute(
        database_url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%WITH waiting%'",
    )
    assert execute(database_url, PARTS) == parts
    execute(database_url, "DROP FUNCTION linger CASCADE")
    assert_usage_exact(database_url, spans)
    assert pool.maintain(ahead=dt.timedelta(hours=1)).usage.parts_folded == parts[0][0]
    assert_usage_exact(database_url, spans)


@pytest.mark.every_server
def test_what_was_stored_before_is_added_and_nested_calls_are_taken_out(
    pool: StoragePool, database_url: str, upkeep: UsageUpkeep, spans: list[Span]
) -> None:
    write(pool, spans)
    execute(database_url, AS_BEFORE)
    due = upkeep.preview()
    calls = sum(span["counts_usage"] for span in spans)
    assert due.spans_left == calls
    assert not due.is_complete
    report = upkeep.run()
    assert (report.spans_added, report.spans_left, report.is_complete) == (calls, 0, True)
    execute(database_url, "UPDATE trace_spans SET repeats_usage = false WHERE repeats_usage IS NULL")
    found = stored_usage(database_url)
    totals = execute(database_url, "SELECT sum(input_tokens), sum(cost_usd) FROM trace_spans WHERE counts_usage")
    assert totals == [
        (sum(one["input_tokens"] for one in found.values()), sum(one["cost_usd"] for one in found.values()))
    ]
    assert_usage_exact(database_url, spans)
    assert upkeep.run().spans_added == 0


def test_adding_goes_on_where_it_was_interrupted_and_beside_writers(
    pool: StoragePool, database_url: str, spans: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of each trace was there before; writers bring the other half while it is added, in small steps.
    monkeypatch.setattr(usage_upkeep, "TRACES_AT_ONCE", 3)
    write(pool, spans[::2])
    execute(database_url, AS_BEFORE)
    writing = threading.Thread(target=write, args=(pool, spans[1::2], 7))
    writing.start()
    added = 0
    for seconds in (0.0, 0.05, 0.05, 60.0):
        added += UsageUpkeep(pool, PartitionManager(pool), seconds=seconds).run().spans_added
    writing.join()
    added += UsageUpkeep(pool, PartitionManager(pool)).run().spans_added
    assert added <= len(spans)
    execute(database_url, "UPDATE trace_spans SET repeats_usage = false WHERE repeats_usage IS NULL")
    assert_usage_exact(database_url, spans)


def test_a_trace_that_a_writer_holds_is_left_for_the_next_run(
    pool: StoragePool, database_url: str, upkeep: UsageUpkeep, spans: list[Span]
) -> None:
    write(pool, spans)
    execute(database_url, AS_BEFORE)
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT FROM traces FOR UPDATE")
        assert upkeep.run().spans_added == 0
    assert upkeep.run().spans_added > 0
    assert upkeep.preview().is_complete


def test_maintenance_folds_and_says_so(pool: StoragePool, database_url: str, spans: list[Span]) -> None:
    write(pool, spans)
    waiting = pool.maintain(dry_run=True).usage
    assert waiting.parts_left > 0
    report = pool.maintain(ahead=dt.timedelta(hours=1))
    assert report.usage.parts_folded == waiting.parts_left
    assert report.usage.is_complete
    assert pool.maintain(ahead=dt.timedelta(hours=1)).usage.parts_folded == 0
    assert_usage_exact(database_url, spans)


def test_hours_are_those_of_utc(pool: StoragePool, database_url: str, upkeep: UsageUpkeep) -> None:
    dice = random.Random(2)
    zone = dt.timezone(dt.timedelta(hours=5, minutes=45))
    spans = [{**span, "start_time": span["start_time"].astimezone(zone)} for span in make_tree(dice, 12)]
    write(pool, spans)
    execute(database_url, AS_BEFORE)
    execute(
        database_url,
        "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Kathmandu''', current_database()); END$$",
    )
    upkeep.run()
    assert {key[0] for key in stored_usage(database_url)} <= {BASE + dt.timedelta(hours=hour) for hour in range(4)}
